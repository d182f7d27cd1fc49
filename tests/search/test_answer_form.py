"""The form of the answers, measured on models that have learnt one: what `init` writes, and what a
dry run warns of."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from slowly import slow_beyond
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from hf_evomerge import cli
from hf_evomerge.errors import SearchError
from hf_evomerge.recipes.strict_yaml import parse_yaml
from hf_evomerge.search import answer_form
from hf_evomerge.search.answer_form import measure_form
from hf_evomerge.search.file.config import SearchConfig
from hf_evomerge.search.file.scaffold import draft_search
from hf_evomerge.search.plan import plan_search

SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]
PROBLEMS = [(f"say {first}{second}:", f"{second}{first}") for first in "abcd" for second in "pqrs"]
TEMPLATE = "{% for m in messages %}ask {{ m['content'] }} tell{% endfor %}"
TEXTS = [f"ask {prompt} tell {answer}" for prompt, answer in PROBLEMS]
Trained = Callable[..., list[str]]


def _byte_pairs(merges: int) -> Tokenizer:
    """Tokens are bytes, and as many pairs of them as there are merges."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = len(SPECIAL) + len(alphabet) + merges
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(TEXTS, trainer)
    return inner


def _of_tokens(kind: Any, tokens: list[str], by: pre_tokenizers.PreTokenizer) -> Tokenizer:
    """Tokens of a given list, in pieces of the text that a pre-tokenizer cuts."""
    inner = Tokenizer(
        kind({token: number for number, token in enumerate(SPECIAL + tokens)}, unk_token="<unk>")
    )
    inner.pre_tokenizer = by
    return inner


def _word_pieces() -> Tokenizer:
    """Tokens are as BERT's: whole words and pieces, and the space between words is none."""
    letters = [*dict.fromkeys("".join(TEXTS).replace(" ", ""))]
    return _of_tokens(
        models.WordPiece,
        letters + [f"##{letter}" for letter in letters],
        pre_tokenizers.BertPreTokenizer(),
    )


def _characters() -> Tokenizer:
    """Every character is a token, the space too."""
    every = pre_tokenizers.Split(Regex("."), "isolated")
    return _of_tokens(models.WordLevel, [*dict.fromkeys("".join(TEXTS))], every)


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "characters": _characters,
    "bytes": lambda: _byte_pairs(0),
    "byte pairs": lambda: _byte_pairs(40),
    "word pieces": _word_pieces,
}


def _save_model(
    folder: Path, inner: Tokenizer, texts: list[str], seed: int, template: str | None
) -> None:
    """A model of one layer that has learnt some texts by heart."""
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


@pytest.fixture
def trained(tmp_path: Path) -> Trained:
    """Makes two models that have learnt problems and answers in one form, and a file of these
    problems; returns names."""

    def make(
        separator: str, inner: Tokenizer, *, template: str | None = None, chat: bool = False
    ) -> list[str]:
        around = ("ask {} tell" if chat else "{}") + separator
        texts = [around.format(prompt) + answer for prompt, answer in PROBLEMS]
        for seed, name in enumerate(("upper", "twice")):
            _save_model(tmp_path / name, inner, texts, seed, template)
        lines = (json.dumps({"prompt": prompt, "answer": answer}) for prompt, answer in PROBLEMS)
        (tmp_path / "problems.jsonl").write_text("\n".join(lines))
        return [str(tmp_path / name) for name in ("upper", "twice")]

    return make


def _measured(names: list[str], data: Path) -> tuple[SearchConfig, list[str]]:
    draft = draft_search(names, data, measure=measure_form)
    return parse_yaml(SearchConfig, draft.text, SearchError), [
        line for line in draft.found if "separator" in line
    ]


@pytest.mark.parametrize("separator", ["", " "])
@pytest.mark.parametrize("kind", slow_beyond(["characters", "byte pairs"], TOKENIZERS))
def test_the_form_that_the_models_know_is_written(kind, separator, trained, tmp_path):
    """Whatever the tokenizer: the separator that the models have learnt; where it is no token, the
    usual one."""
    names = trained(separator, TOKENIZERS[kind]())
    config, lines = _measured(names, tmp_path / "problems.jsonl")
    if kind == "word pieces":
        assert (config.fitness.separator, lines) == (" ", [])
        return
    assert config.fitness.separator == separator
    (line,) = lines
    other = {"": " ", " ": ""}[separator]
    assert line.startswith(f'right answers are likeliest with separator: "{separator}": -')
    assert line.endswith(
        (f' nats by upper with separator: "{other}"', f' nats by twice with separator: "{other}"')
    )


@pytest.mark.parametrize("chat", [True, False])
def test_the_chat_template_is_measured(chat, trained, tmp_path):
    """A template that every tokenizer has is written only where the models know the answers in it
    better."""
    names = trained(" ", _characters(), template=TEMPLATE, chat=chat)
    config, lines = _measured(names, tmp_path / "problems.jsonl")
    assert (config.data["search"].chat, config.fitness.separator) == (chat, " ")
    assert lines[0].startswith(
        f'right answers are likeliest with separator: " ", chat: {str(chat).lower()}: -'
    )


def test_answers_that_begin_with_a_space_get_no_second_one(trained, tmp_path):
    """Completions as trl has them are not set apart again, with models to measure and without."""
    names = trained(" ", _characters())
    data = tmp_path / "trl.jsonl"
    lines = (
        json.dumps({"prompt": prompt, "completion": f" {answer}"}) for prompt, answer in PROBLEMS
    )
    data.write_text("\n".join(lines))
    assert _measured(names, data)[0].fitness.separator == ""
    assert (
        parse_yaml(SearchConfig, draft_search(names, data).text, SearchError).fitness.separator
        == ""
    )


def test_one_answer_with_a_space_decides_nothing(trained, tmp_path):
    """Where one answer of many begins with a space, the form is measured as if it did not."""
    names = trained(" ", _characters())
    data = tmp_path / "one.jsonl"
    lines = [{"prompt": prompt, "completion": answer} for prompt, answer in PROBLEMS]
    lines[0]["completion"] = f" {lines[0]['completion']}"
    data.write_text("\n".join(map(json.dumps, lines)))
    assert _measured(names, data)[0].fitness.separator == " "


def test_a_dry_run_warns_of_the_wrong_form(trained, tmp_path):
    """A file that says otherwise than the figures is told so, with both; the right one is not."""
    names = trained("", _characters(), template=TEMPLATE)
    config, _ = _measured(names, tmp_path / "problems.jsonl")
    assert not any("separator" in line for line in plan_search(config).warnings)
    wrong = config.model_copy(
        update={"fitness": config.fitness.model_copy(update={"separator": " "})}
    )
    (line,) = (line for line in plan_search(wrong).warnings if "separator" in line)
    assert line.startswith('right answers are likelier with separator: "", chat: false: -')
    assert line.endswith('with separator: " ", chat: false; write separator: "", chat: false')
    chats = {split: spec.model_copy(update={"chat": True}) for split, spec in config.data.items()}
    (line,) = (
        line
        for line in plan_search(config.model_copy(update={"data": chats})).warnings
        if "separator" in line
    )
    assert line.endswith('with separator: "", chat: true; write separator: "", chat: false')


def test_choices_are_measured_too(trained, tmp_path):
    """What stands before a choice is measured as what stands before an answer."""
    names = trained("", _characters())
    data = tmp_path / "choices.jsonl"
    records = (
        {"prompt": prompt, "choices": [answer, prompt], "answer": answer}
        for prompt, answer in PROBLEMS
    )
    data.write_text("\n".join(map(json.dumps, records)))
    config, _ = _measured(names, data)
    assert (config.fitness.task, config.fitness.separator) == ("multiple_choice", "")


def test_a_form_that_cannot_be_measured_is_a_guess(trained, tmp_path, monkeypatch, caplog):
    """Models that do not fit or cannot be scored leave a guess and a line that says why; a large
    one is announced."""
    names = trained("", _characters())
    data = tmp_path / "problems.jsonl"
    monkeypatch.setattr(answer_form, "_LARGE", 1.0)
    caplog.set_level("INFO")
    assert _measured(names, data)[0].fitness.separator == ""
    assert "`--no-measure` guesses what" in caplog.text
    monkeypatch.setattr(answer_form, "device_memory", lambda device: 9.0)
    config, (line,) = _measured(names, data)
    assert config.fitness.separator == " "
    assert line.startswith('warning: separator: " " is a guess (the largest model takes ')
    monkeypatch.undo()
    for name in names:
        weights = LlamaForCausalLM.from_pretrained(name)
        torch.nn.init.constant_(weights.model.norm.weight, float("nan"))
        weights.save_pretrained(name)
    config, (line,) = _measured(names, data)
    assert config.fitness.separator == " "
    assert 'warning: separator: " " is a guess (no model can be evaluated: ' in line


def test_the_command_measures_unless_told_not_to(trained, tmp_path, monkeypatch):
    """`init` says the figures on the screen; with --no-measure it reads no weights."""
    names = [Path(name).name for name in trained("", _characters())]
    monkeypatch.chdir(tmp_path)
    words = ["init", *names, "--data", "problems.jsonl"]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.output
    assert "right answers are likeliest" in done.stdout
    assert SearchConfig.load("search.yaml").fitness.separator == ""
    for name in names:
        shutil.move(tmp_path / name / "model.safetensors", tmp_path / name / "weights.safetensors")
    guessed = CliRunner().invoke(cli.app, [*words, "--no-measure", "--out", "guessed.yaml"])
    assert guessed.exit_code == 0, guessed.output
    assert SearchConfig.load("guessed.yaml").fitness.separator == " "
