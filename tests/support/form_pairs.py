"""Pairs of tiny models that have learnt to answer in one form: tokenizers of five kinds, data of
four. As a program it prints what every model scores in every form, and what `init` writes."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_evomerge.errors import SearchError
from hf_evomerge.recipes.strict_yaml import parse_yaml
from hf_evomerge.search.answer_form import measure_form, score_forms
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.file.config import SearchConfig
from hf_evomerge.search.file.scaffold import draft_search

SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]
PROBLEMS = [(f"say {first}{second}:", f"{second}{first}") for first in "abcd" for second in "pqrs"]
JAPANESE = [
    (f"{first}と{second}の逆は", f"{second}{first}")
    for first in "赤青白黒"
    for second in "山川海空"
]
TEMPLATE = "{% for m in messages %}ask {{ m['content'] }} tell{% endfor %}"


def byte_pairs(texts: Sequence[str], merges: int = 40) -> Tokenizer:
    """Tokens are bytes, and as many pairs of them as there are merges."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = len(SPECIAL) + len(alphabet) + merges
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(texts, trainer)
    return inner


def _of_tokens(kind: Any, tokens: list[str], by: pre_tokenizers.PreTokenizer) -> Tokenizer:
    """Tokens of a given list, in pieces of the text that a pre-tokenizer cuts."""
    inner = Tokenizer(
        kind({token: number for number, token in enumerate(SPECIAL + tokens)}, unk_token="<unk>")
    )
    inner.pre_tokenizer = by
    return inner


def word_pieces(texts: Sequence[str]) -> Tokenizer:
    """Tokens are as BERT's: whole words and pieces, and the space between words is none."""
    letters = [*dict.fromkeys("".join(texts).replace(" ", ""))]
    return _of_tokens(
        models.WordPiece,
        letters + [f"##{letter}" for letter in letters],
        pre_tokenizers.BertPreTokenizer(),
    )


def characters(texts: Sequence[str]) -> Tokenizer:
    """Every character is a token, the space too."""
    every = pre_tokenizers.Split(Regex("."), "isolated")
    return _of_tokens(models.WordLevel, [*dict.fromkeys("".join(texts))], every)


def sentence_pieces(texts: Sequence[str]) -> Tokenizer:
    """Tokens are as SentencePiece's: a space belongs to what follows it, and one stands before
    every text."""
    inner = Tokenizer(models.Unigram())
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    inner.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=80, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    inner.train_from_iterator(texts, trainer)
    return inner


TOKENIZERS: dict[str, Callable[[Sequence[str]], Tokenizer]] = {
    "characters": characters,
    "bytes": lambda texts: byte_pairs(texts, 0),
    "byte pairs": byte_pairs,
    "word pieces": word_pieces,
    "sentence pieces": sentence_pieces,
}


@dataclass(frozen=True)
class Data:
    """Kind of data.

    Attributes:
        problems: Prompts and answers.
        answer_field: Name of the answer in a record.
        space: What every answer of a record begins with.
        chat: Whether the models have learnt the problems in their chat template.
    """

    problems: Sequence[tuple[str, str]] = tuple(PROBLEMS)
    answer_field: str = "answer"
    space: str = ""
    chat: bool = False

    @property
    def texts(self) -> list[str]:
        """Texts that a tokenizer is made from."""
        return [f"ask {prompt} tell {answer}" for prompt, answer in self.problems]


DATA = {
    "answers": Data(),
    "completions": Data(answer_field="completion", space=" "),
    "chat": Data(chat=True),
    "japanese": Data(tuple(JAPANESE)),
}
PAIRS = [
    ("characters", "answers", ""),
    ("characters", "completions", " "),
    ("bytes", "japanese", ""),
    ("bytes", "chat", " "),
    ("byte pairs", "answers", " "),
    ("byte pairs", "completions", " "),
    ("word pieces", "answers", " "),
    ("word pieces", "chat", " "),
    ("sentence pieces", "japanese", ""),
    ("sentence pieces", "answers", " "),
]
"""Tokenizer, data, and what the models have learnt to put between prompt and answer."""


def save_model(
    folder: Path, inner: Tokenizer, texts: Sequence[str], seed: int, template: str | None = None
) -> None:
    """Write a model of one layer that has learnt some texts by heart."""
    special = {f"{token.strip('<>')}_token": token for token in SPECIAL}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **special)
    tokenizer.chat_template = template
    torch.manual_seed(seed)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes, **ids)
    )
    batch = tokenizer(
        [f"{text}<eos>" for text in texts],
        padding=True,
        return_tensors="pt",
        return_token_type_ids=False,
    )
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_pair(
    folder: Path, kind: str, data: Data, separator: str, template: str | None = None
) -> list[str]:
    """Write two models that have learnt problems in one form, and a file of these problems,
    `problems.jsonl`; returns their names."""
    around = ("ask {} tell" if data.chat else "{}") + separator
    texts = [around.format(prompt) + answer for prompt, answer in data.problems]
    inner = TOKENIZERS[kind](data.texts)
    for seed, name in enumerate(("upper", "twice")):
        save_model(folder / name, inner, texts, seed, template)
    lines = (
        json.dumps({"prompt": prompt, data.answer_field: data.space + answer})
        for prompt, answer in data.problems
    )
    (folder / "problems.jsonl").write_text("\n".join(lines))
    return [str(folder / name) for name in ("upper", "twice")]


def measured(names: Sequence[str], data: Path) -> tuple[SearchConfig, list[str]]:
    """The search that `init` writes, and what it says of the form of the answers."""
    draft = draft_search(names, data, measure=measure_form)
    return parse_yaml(SearchConfig, draft.text, SearchError), [
        line for line in draft.found if "separator" in line
    ]


def print_table() -> None:
    """Print nats per answer by every model in every form, and which one `init` writes."""
    print("| tokenizer | data | learnt | written | " + "model: nats in each form |")
    print("| --- | --- | --- | --- | --- |")
    for kind, data, separator in PAIRS:
        with tempfile.TemporaryDirectory() as folder:
            names = make_pair(Path(folder), kind, DATA[data], separator, TEMPLATE)
            config, _ = measured(names, Path(folder) / "problems.jsonl")
            scores = score_forms(Evaluator(config), config.fitness)
        nats = [
            f"{_name(*form)}: {', '.join(f'{model.mean:.1f}' for model in models)}"
            for form, models in scores.items()
        ]
        learnt = _name(separator, DATA[data].chat)
        written = _name(*next(iter(scores)))
        print(f"| {kind} | {data} | {learnt} | {written} | {'; '.join(nats)} |", flush=True)


def _name(separator: str, chat: bool) -> str:
    return f"{separator!r}{' chat' if chat else ''}"


if __name__ == "__main__":
    sys.exit(print_table())
