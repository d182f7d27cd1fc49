"""Pairs of tiny models that have learnt to answer in one form, by tokenizers of three kinds."""

from pathlib import Path

import torch
from searches import write_lines
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_evomerge.errors import SearchError
from hf_evomerge.recipes.strict_yaml import parse_yaml
from hf_evomerge.search.answer_form import measure_form
from hf_evomerge.search.file.config import SearchConfig
from hf_evomerge.search.file.scaffold import draft_search

SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]
PROBLEMS = [(f"say {first}{second}:", f"{second}{first}") for first in "abcd" for second in "pqrs"]
RECORDS = [{"prompt": prompt, "answer": answer} for prompt, answer in PROBLEMS]
TEXTS = [f"ask {prompt} tell {answer}" for prompt, answer in PROBLEMS]
LETTERS = [*dict.fromkeys("".join(TEXTS))]
TEMPLATE = "{% for m in messages %}ask {{ m['content'] }} tell{% endfor %}"


def byte_pairs():
    """Tokens are bytes, and forty pairs of them."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = len(SPECIAL) + len(alphabet) + 40
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(TEXTS, trainer)
    return inner


def _of_tokens(kind, tokens, by):
    """Tokens of a given list, in pieces of the text that a pre-tokenizer cuts."""
    vocabulary = {token: number for number, token in enumerate(SPECIAL + tokens)}
    inner = Tokenizer(kind(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = by
    return inner


def word_pieces():
    """Tokens are as BERT's: whole words and pieces, and the space between words is none."""
    pieces = LETTERS + [f"##{letter}" for letter in LETTERS]
    return _of_tokens(models.WordPiece, pieces, pre_tokenizers.BertPreTokenizer())


def characters():
    """Every character is a token, the space too."""
    return _of_tokens(models.WordLevel, LETTERS, pre_tokenizers.Split(Regex("."), "isolated"))


TOKENIZERS = {"characters": characters, "byte pairs": byte_pairs, "word pieces": word_pieces}


def save_model(folder, inner, texts, seed, template=None):
    """Write a model of one layer that has learnt some texts by heart."""
    special = {f"{token.strip('<>')}_token": token for token in SPECIAL}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **special)
    tokenizer.chat_template = template
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    ended = [f"{text}<eos>" for text in texts]
    batch = tokenizer(ended, padding=True, return_tensors="pt", return_token_type_ids=False)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_pair(folder, separator, kind="characters", *, chat=False, template=None):
    """Write two models that have learnt problems in one form, and a file of these problems,
    `problems.jsonl`; returns their names."""
    around = ("ask {} tell" if chat else "{}") + separator
    texts = [around.format(prompt) + answer for prompt, answer in PROBLEMS]
    names = [str(folder / name) for name in ("upper", "twice")]
    for seed, name in enumerate(names):
        save_model(Path(name), TOKENIZERS[kind](), texts, seed, template)
    write_lines(folder / "problems.jsonl", *RECORDS)
    return names


def measured(names, data):
    """The search that `init` writes, and what it says of the form of the answers."""
    draft = draft_search(names, data, measure=measure_form)
    lines = [line for line in draft.found if "separator" in line]
    return parse_yaml(SearchConfig, draft.text, SearchError), lines
