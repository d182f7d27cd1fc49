"""What is checked before a merge: what makes it impossible is refused, what makes it doubtful is
told, with both sides."""

import json
import re
import shutil
from collections.abc import Callable
from typing import Any

import pytest
from classes import random_class
from recipes import merge_of
from typer.testing import CliRunner

from hf_evomerge.building.build import build_model, check_recipe
from hf_evomerge.checkpoints.compatibility import check_mergeable, find_warnings
from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.cli import app
from hf_evomerge.errors import SourceError

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def pair(tiny, tmp_path):
    """Two fine-tunes in folders that a test may change."""
    return shutil.copytree(tiny / "a", tmp_path / "a"), shutil.copytree(tiny / "b", tmp_path / "b")


def edit(folder, name, change):
    """Change a JSON file."""
    data = json.loads((folder / name).read_text())
    change(data)
    (folder / name).write_text(json.dumps(data))


def told(first, second):
    """The find_warnings about two folders."""
    return find_warnings([open_source(first), open_source(second)])


def test_relatives_raise_no_doubt(pair):
    """Fine-tunes of one base with one tokenizer are told nothing about."""
    assert told(*pair) == []
    assert check_recipe(merge_of(*pair)).warnings == []


def labelled(folder, *heads):
    """Save a classifier for each list of labels."""
    for seed, names in enumerate(heads):
        labels = {
            "id2label": dict(enumerate(names)),
            "label2id": {name: i for i, name in enumerate(names)},
        }
        random_class("bert", seed, **labels).save_pretrained(folder / str(seed))
    return [folder / str(seed) for seed in range(len(heads))]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            "red green",
            "x y",
            "labels differ: red, green in .*0, x, y in .*1: rows of their heads mean other.*",
        ),
        ("neg pos", "NEG POS", None),
        ("LABEL_0 LABEL_1", "LABEL_0 LABEL_1", None),
    ],
)
def test_labels_that_mean_other_things_are_told(first, second, message, tmp_path):
    """Heads whose labels differ are merged with a line; case does not count."""
    folders = labelled(tmp_path, first.split(), second.split())
    lines = [line for line in check_recipe(merge_of(*folders)).warnings if "labels" in line]
    assert len(lines) == (message is not None)
    assert message is None or re.fullmatch(message, lines[0])


def test_labels_in_another_order_are_refused_whatever_their_case(tmp_path):
    """Heads of NEG, POS and pos, neg are not averaged row by row."""
    folders = labelled(tmp_path, ["NEG", "POS"], ["pos", "neg"])
    with pytest.raises(
        SourceError, match=r"labels of .*1 are those of .*0 in another order, pos, neg and NEG, POS"
    ):
        check_recipe(merge_of(*folders))


SETTINGS = [
    (
        lambda c: c.update(rms_norm_eps=1e-3),
        "rms_norm_eps differs: 1e-06 in {a}, 0.001 in {b}; the result has that of the first",
    ),
    (
        lambda c: c.update(max_position_embeddings=99),
        "max_position_embeddings differs: 48 in {a}, 99 in {b}",
    ),
    (
        lambda c: c.update(rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
        "rope_parameters differs: {{'rope_theta': 10000.0, 'rope_type': 'default'}} in {a}, ",
    ),
]


@pytest.mark.parametrize(("change", "message"), SETTINGS)
def test_settings_that_differ_are_told(change, message, pair):
    """Other rotary settings, norm epsilons and lengths are a warning that names both sides, and the
    merge is still made."""
    edit(pair[1], "config.json", change)
    lines = told(*pair)
    assert len(lines) == 1
    assert lines[0].startswith(message.format(a=pair[0], b=pair[1])), lines
    check_mergeable([open_source(folder) for folder in pair])


def test_dtypes_that_differ_are_told(tiny, tiny_half):
    """Sources of two dtypes are named."""
    assert told(tiny / "a", tiny_half / "b") == [
        f"dtype differs: F32 in {tiny / 'a'}, BF16 in {tiny_half / 'b'}"
    ]


def test_tokenizers_that_differ_are_told(pair):
    """A token with another id, and other merges, are named with both sources and with whose
    tokenizer stays."""

    def rename(data):
        data["model"]["vocab"]["other"] = data["model"]["vocab"].pop("w3")

    def swap(data):
        words = data["model"]["vocab"]
        words["w3"], words["w4"] = words["w4"], words["w3"]

    edit(pair[1], "tokenizer.json", swap)
    with pytest.raises(
        SourceError, match=r"token 7 is 'w3' in .*, 'w4' in .*, so their rows do not match"
    ):
        check_mergeable([open_source(folder) for folder in pair])
    edit(pair[1], "tokenizer.json", swap)
    edit(pair[1], "tokenizer.json", rename)
    lines = told(*pair)
    assert len(lines) == 1
    assert lines[0].startswith(
        f"tokenizers differ: 26 tokens in {pair[0]}, 26 in {pair[1]}; first at 7: 'w3' and "
        "'other'; that of"
    )
    shutil.copyfile(pair[0] / "tokenizer.json", pair[1] / "tokenizer.json")
    edit(pair[1], "tokenizer.json", lambda data: data["model"].update(merges=["a b"]))
    assert told(*pair) == [
        f"tokenizers differ in their merges: {pair[0]} and {pair[1]}; that of {pair[0]} is kept"
    ]


def test_where_generation_stops(pair):
    """Generation that stops at other tokens than the tokenizer's end of text is told."""
    edit(pair[0], "generation_config.json", lambda data: data.update(eos_token_id=[99, 3]))
    where = f"generation_config.json of {pair[0]}"
    assert told(*pair) == [
        f"{where} stops at 99 (None), 3 ('<unk>'), but its tokenizer's eos_token is '<eos>'"
    ]
    edit(pair[0], "generation_config.json", lambda data: data.update(eos_token_id=[2, 3]))
    assert told(*pair) == []


def test_a_dry_run_and_a_build_tell_the_same(pair, tmp_path):
    """Doubts are printed by a dry run, and by a build before it begins; a build adds what became of
    the tensors."""
    edit(pair[1], "config.json", lambda data: data.update(rms_norm_eps=1e-3))
    merge_of(*pair).save(tmp_path / "recipe.yaml")
    words = ["merge", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out")]
    dry = CliRunner().invoke(app, [*words, "--dry-run"])
    built = CliRunner().invoke(app, words)
    assert dry.exit_code == built.exit_code == 0
    line = next(
        line for line in dry.stdout.splitlines() if line.startswith("warning: rms_norm_eps differs")
    )
    assert dry.stdout.startswith("fine: linear of 2 sources, as ")
    assert line in built.stderr
    assert "note: 21 tensors: 21 merged" in built.stderr


@pytest.mark.parametrize(
    ("spread", "method", "warned"),
    [
        (0.02, "task_arithmetic", False),
        (3.0, "task_arithmetic", True),
        (0.02, "linear", False),
        (3.0, "linear", True),
    ],
)
def test_how_the_sources_are_related(spread, method, warned, pair, tiny, tmp_path, caplog):
    """A build warns of sources that are strangers to each other or to their base, and of no
    others."""
    import torch
    from safetensors.torch import load_file, save_file

    base = load_file(tiny / "base" / "model.safetensors")
    torch.manual_seed(0)
    for folder in pair:
        tensors = {
            name: tensor + spread * torch.randn_like(tensor) for name, tensor in base.items()
        }
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    recipe = merge_of(*pair, method=method, base=tiny / "base" if method != "linear" else None)
    with caplog.at_level("INFO", logger="hf_evomerge"):
        build_model(recipe, tmp_path / "out")
    lines = [record.getMessage() for record in caplog.records]
    assert any("hardly have a common ancestor" in line for line in lines) == warned
