"""What is checked before a merge: what makes it impossible is refused, what makes it doubtful is
told, with both sides."""

import json
import shutil

import pytest
import torch
import yaml
from classes import edit_json, edited, random_class, read_json, tensors_of
from commands import invoke
from recipes import merge_of
from refused import refused

from hf_evomerge.building.build import check_recipe
from hf_evomerge.checkpoints.compatibility import check_mergeable, find_warnings
from hf_evomerge.checkpoints.open import open_source


@pytest.fixture
def pair(tiny, tmp_path):
    """Two fine-tunes in folders that a test may change."""
    return shutil.copytree(tiny / "a", tmp_path / "a"), shutil.copytree(tiny / "b", tmp_path / "b")


def edit(folder, change):
    """Change a tokenizer."""
    data = read_json(folder / "tokenizer.json")
    change(data)
    (folder / "tokenizer.json").write_text(json.dumps(data))


def told(*folders):
    """The warnings about some folders."""
    return find_warnings(list(map(open_source, folders)))


def test_relatives_raise_no_doubt(pair):
    """Fine-tunes of one base with one tokenizer are told nothing about."""
    assert told(*pair) == []
    assert check_recipe(merge_of(*pair)).warnings == []


def labelled(folder, *heads):
    """Save a classifier for each list of labels."""
    for seed, names in enumerate(heads):
        labels = dict(enumerate(names.split()))
        ids = {name: number for number, name in labels.items()}
        model = random_class("bert", seed, id2label=labels, label2id=ids)
        model.save_pretrained(folder / str(seed))
    return [folder / str(seed) for seed in range(len(heads))]


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ("red green", "x y", ["labels differ: red, green in 0, x, y in 1: rows of their heads"]),
        ("neg pos", "NEG POS", []),
        ("LABEL_0 LABEL_1", "LABEL_0 LABEL_1", []),
    ],
)
def test_labels_that_mean_other_things_are_told(first, second, said, tmp_path):
    """Heads whose labels differ are merged with a line; case does not count."""
    warnings = check_recipe(merge_of(*labelled(tmp_path, first, second))).warnings
    lines = [line.replace(f"{tmp_path}/", "") for line in warnings if "labels" in line]
    assert [line.partition(" mean other")[0] for line in lines] == said


def test_labels_in_another_order_are_refused_whatever_their_case(tmp_path):
    """Heads of NEG, POS and pos, neg are not averaged row by row."""
    folders = labelled(tmp_path, "NEG POS", "pos neg")
    with refused(r"labels of .*1 are those of .*0 in another order, pos, neg and NEG, POS"):
        check_recipe(merge_of(*folders))


SETTINGS = {
    "rms_norm_eps: 0.001": (
        "rms_norm_eps differs: 1e-06 in {a}, 0.001 in {b}; the result has that of the first"
    ),
    "max_position_embeddings: 99": "max_position_embeddings differs: 48 in {a}, 99 in {b}",
    "rope_parameters: {rope_type: default, rope_theta: 500000.0}": (
        "rope_parameters differs: {{'rope_theta': 10000.0, 'rope_type': 'default'}} in {a}, "
    ),
}


@pytest.mark.parametrize(("changes", "message"), SETTINGS.items())
def test_settings_that_differ_are_told(changes, message, pair):
    """Other rotary settings, norm epsilons and lengths are a warning that names both sides, and the
    merge is still made."""
    edit_json(pair[1] / "config.json", **yaml.safe_load(changes))
    (line,) = told(*pair)
    assert line.startswith(message.format(a=pair[0], b=pair[1]))
    check_mergeable(list(map(open_source, pair)))


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

    edit(pair[1], swap)
    with refused(r"token 7 is 'w3' in .*, 'w4' in .*, so their rows do not match"):
        check_mergeable(list(map(open_source, pair)))
    edit(pair[1], swap)
    edit(pair[1], rename)
    (line,) = told(*pair)
    assert line.startswith(
        f"tokenizers differ: 26 tokens in {pair[0]}, 26 in {pair[1]}; first at 7: 'w3' and "
        "'other'; that of"
    )
    shutil.copyfile(pair[0] / "tokenizer.json", pair[1] / "tokenizer.json")
    edit(pair[1], lambda data: data["model"].update(merges=["a b"]))
    assert told(*pair) == [
        f"tokenizers differ in their merges: {pair[0]} and {pair[1]}; that of {pair[0]} is kept"
    ]


def test_where_generation_stops(pair):
    """Generation that stops at other tokens than the tokenizer's end of text is told."""
    file = pair[0] / "generation_config.json"
    edit_json(file, eos_token_id=[99, 3])
    assert told(*pair) == [
        f"generation_config.json of {pair[0]} stops at 99 (None), 3 ('<unk>'), but its tokenizer's "
        "eos_token is '<eos>'"
    ]
    edit_json(file, eos_token_id=[2, 3])
    assert told(*pair) == []


def test_a_dry_run_and_a_build_tell_the_same(pair, tmp_path):
    """Doubts are printed by a dry run, and by a build before it begins; a build adds what became of
    the tensors."""
    edit_json(pair[1] / "config.json", rms_norm_eps=1e-3)
    merge_of(*pair).save(tmp_path / "recipe.yaml")
    words = ["merge", tmp_path / "recipe.yaml", "--out", tmp_path / "out"]
    dry = invoke(*words, "--dry-run")
    built = invoke(*words)
    assert dry.exit_code == built.exit_code == 0
    first, *lines = dry.stdout.splitlines()
    assert first.startswith("fine: linear of 2 sources, as ")
    line = next(line for line in lines if line.startswith("warning: rms_norm_eps differs"))
    assert line in built.stderr
    assert "note: 21 tensors: 21 merged" in built.stderr


@pytest.mark.parametrize("method", ["task_arithmetic", "linear"])
@pytest.mark.parametrize(("spread", "warned"), [(0.02, False), (3.0, True)])
def test_how_the_sources_are_related(spread, method, warned, pair, tiny, built, caplog):
    """A build warns of sources that are strangers to each other or to their base, and of no
    others."""
    torch.manual_seed(0)
    for folder in pair:
        with edited(folder) as tensors:
            for name, tensor in tensors_of(tiny / "base").items():
                tensors[name] = tensor + spread * torch.randn_like(tensor)
    base = tiny / "base" if method != "linear" else None
    built(merge_of(*pair, method=method, base=base))
    assert ("hardly have a common ancestor" in caplog.text) == warned
