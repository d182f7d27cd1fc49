"""Building a recipe's model: the parts together, the same bits every time, and nothing half-made
left behind."""

import os
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from forked import build_and_die, status_of_fork
from recipes import merge_of, ref_of
from refused import refused
from searches import digests
from transformers import AutoModelForCausalLM

from hf_evomerge.building.build import build_model, check_recipe
from hf_evomerge.checkpoints import model_folder, shards
from hf_evomerge.errors import EvoMergeError
from hf_evomerge.recipes.recipe import Recipe

# Two parts of a recipe, and both of them.
PARTS = yaml.safe_load("""
merge:
  merge: &merge
    method: dare_ties
    parameters: [{weight: 0.9, density: 0.5}, {weight: 0.4, density: 0.7}]
flow:
  flow: {path: ["0:0", "1:1", "0:1"], scales: [1, 0.8, 1.1]}
both:
  merge: *merge
  flow: {path: ["2:0", "1:1", "2:1"], embedding_source: 2}
""")


@pytest.fixture
def make(tiny):
    """Makes a recipe over the tiny family."""

    def recipe(part="merge", models=(tiny / "a", tiny / "b"), base=tiny / "base", **fields):
        given = {"sources": list(map(ref_of, models)), "base": ref_of(base)}
        return Recipe.model_validate({**given, **PARTS[part], **fields})

    return recipe


def failing(error):
    """A function that raises an error, whatever it is given."""

    def fail(*_):
        raise error

    return fail


@pytest.mark.parametrize("part", PARTS)
def test_the_same_recipe_gives_the_same_files(part, make, built, tmp_path):
    """A recipe, and the one that was saved beside its model, give the same bits in every file
    however often they are built."""
    first = built(make(part), "first")
    assert Recipe.load(first / "recipe.yaml") == make(part)
    again = build_model(Recipe.load(first / "recipe.yaml"), tmp_path / "elsewhere" / "again")
    assert digests(first) == digests(again)
    assert {"config.json", "model.safetensors", "recipe.yaml", "tokenizer.json"} <= set(
        digests(first)
    )
    other = built(make(part, seed=1), "other")
    same_weights = digests(other)["model.safetensors"] == digests(first)["model.safetensors"]
    assert same_weights == (part == "flow")


def test_the_path_runs_through_the_merged_model(make, built):
    """With both parts and the identity path through the merged model, the result computes what the
    plain merge computes."""
    plain = AutoModelForCausalLM.from_pretrained(built(make("merge"), "plain"))
    flow = {"path": ["2:0-1"], "embedding_source": 2}
    both = AutoModelForCausalLM.from_pretrained(built(make("merge", flow=flow), "both"))
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(plain(ids).logits, both(ids).logits)


def test_the_dtype_is_the_first_sources(tiny, tiny_half, built):
    """Where no dtype is given it is that of source 0, also where source 0 is not the first that is
    merged."""
    recipe = merge_of(tiny / "a", tiny_half / "b", merge={"sources": [1, 0]})
    folder = built(recipe, "model")
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.float32


@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError("disk full")])
def test_an_interrupted_build_changes_nothing(fault, make, built, tmp_path, monkeypatch):
    """A build that is interrupted at its very end leaves only a hidden folder, and what it was to
    replace is still there."""
    out = built(make("flow"), "model")
    before = digests(out)

    monkeypatch.setattr("hf_evomerge.checkpoints.writer._replace", failing(fault))
    for folder in (out, tmp_path / "new"):
        with pytest.raises((KeyboardInterrupt, OSError)):
            build_model(make("both"), folder, overwrite=True, max_shard_size="2KB")
    assert digests(out) == before
    assert [name for name in os.listdir(tmp_path) if not name.startswith(".")] == ["model"]
    assert all(list(tmp_path.glob(f".{name}.*.partial")) for name in ("model", "new"))
    monkeypatch.undo()
    build_model(make("flow"), out, overwrite=True)
    built(make("flow"), "new")
    assert sorted(os.listdir(tmp_path)) == ["model", "new"]


@pytest.mark.parametrize("part", ["merge", "both"])
def test_a_killed_build_goes_on(part, make, built, tmp_path, monkeypatch):
    """A build killed at any point leaves no folder; the next goes on to the same bytes, and cleans
    up."""
    recipe = make(part)
    whole = built(recipe, "whole", max_shard_size="2KB")
    out = tmp_path / "out"
    for call in (7, 6):  # the second process begins where the first was killed
        assert (
            status_of_fork(partial(build_and_die, call, recipe, out, max_shard_size="2KB"))
            == -signal.SIGKILL
        )
        assert not out.exists()
    kept = {file.name for file in tmp_path.rglob(".out.*/**/*.safetensors")}
    assert len(kept) >= 3
    made = []
    write = shards._write_file
    monkeypatch.setattr(
        shards,
        "_write_file",
        lambda file, *how, **more: (made.append(file.name), write(file, *how, **more)),
    )
    build_model(recipe, out, max_shard_size="2KB")
    assert made
    assert not kept & set(made)
    assert digests(out) == digests(whole)
    assert sorted(os.listdir(tmp_path)) == ["out", "whole"]


def test_what_another_recipe_left_is_removed(make, built, tmp_path):
    """A scratch folder of another recipe for the same name goes, unless a process is building in
    it; others stay."""
    gone, used, other = (
        tmp_path / f".{name}.partial"
        for name in ("model.0123456789abcdef", "model.fedcba9876543210", "other.0123456789abcdef")
    )
    for folder in (gone, used, other):
        folder.mkdir()
    with FileLock(used.with_suffix(".lock")):
        built(make("merge"), "model")
    assert {*tmp_path.glob(".*.partial")} == {used, other}


def test_two_builds_of_one_recipe_do_not_meet(make, tmp_path):
    """While a process builds a folder, another one is told so."""
    key = "0123456789abcdef"
    with (
        model_folder.scratch_folder(tmp_path / "model", key),
        refused("another process is building it", EvoMergeError),
    ):
        model_folder.scratch_folder(tmp_path / "model", key).__enter__()
    assert os.listdir(tmp_path) == []


def test_changed_sources_are_merged_anew(tiny, make, built, tmp_path, monkeypatch):
    """What was finished from other weights under the same folder's name is not used."""
    models = [shutil.copytree(tiny / name, tmp_path / "sources" / name) for name in ("a", "b")]
    recipe = make(models=models)
    with monkeypatch.context() as patch:
        patch.setattr("hf_evomerge.checkpoints.writer._replace", failing(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            built(recipe)
    shutil.copyfile(models[1] / "model.safetensors", models[0] / "model.safetensors")
    out = built(recipe)
    assert digests(out) == digests(built(recipe, "fresh"))


@pytest.mark.parametrize("rename", [1, 2], ids=["old moved away", "new put in place"])
def test_a_build_killed_while_it_replaces_a_model(rename, make, built, tmp_path):
    """After the first rename the next build puts the old model back, after the second the new one
    stays; no rest is left."""
    out = built(make("flow"), "model")
    old = digests(out)
    new = digests(built(make("merge"), "new"))
    shutil.rmtree(tmp_path / "new")

    def killed(call, last):
        def act(*names):
            call(*names)
            if last and str(names[-1]).endswith(("replaced", "model")):
                os.kill(os.getpid(), signal.SIGKILL)

        return act

    def build_and_be_killed():
        moved = Path.rename
        replace = os.replace
        Path.rename = killed(moved, rename == 1)
        os.replace = killed(replace, True)
        build_model(make("merge"), out, overwrite=True)

    assert status_of_fork(build_and_be_killed) == -signal.SIGKILL
    assert out.exists() == (rename == 2)
    assert len(list(tmp_path.glob(".model.*"))) == 2  # a folder and its lock
    with refused("exists already", EvoMergeError):
        build_model(make("merge"), out)
    assert digests(out) == (old if rename == 1 else new)
    build_model(make("merge"), out, overwrite=True)
    assert digests(out) == new
    assert sorted(os.listdir(tmp_path)) == ["model"]


@pytest.mark.parametrize(
    ("flow", "told"),
    {
        "path: 0:0-1": True,
        "path: 0:0, 2:1": False,
        "{path: 0:0-1, embedding_source: 2}": False,
    }.items(),
)
def test_a_merge_that_no_hop_runs_is_told(flow, told, make):
    """A hybrid whose path goes through the sources alone says that its merge is of no use."""
    line = "no hop of the path runs a layer of the merge, source 2, which is of no use"
    assert (line in check_recipe(make("both", flow=yaml.safe_load(flow))).warnings) == told


KNOWN = "{% for m in messages %}{% break %}{% generation %}{% endgeneration %}{% endfor %}"


@pytest.mark.parametrize(
    ("part", "template", "wrong"),
    [("merge", "{% for", True), ("flow", "{% for", True), ("merge", KNOWN, False)],
)
def test_a_chat_template_that_is_none_is_told(part, template, wrong, make):
    """A template that does not parse is a warning; transformers' own tag and loop controls are
    known."""
    told = "\n".join(check_recipe(make(part, chat_template=template)).warnings)
    assert ("chat_template: is no Jinja template, so the model" in told) == wrong


def test_a_broken_chat_template_of_a_source_is_told(tiny, make, tmp_path):
    """The template that goes with the model is looked at where the recipe gives none."""
    file = shutil.copytree(tiny / "a", tmp_path / "a") / "chat_template.jinja"
    file.write_text("{% if %}")
    warnings = check_recipe(make(models=[tmp_path / "a", tiny / "b"])).warnings
    assert f"{file}: is no Jinja template" in "\n".join(warnings)


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_appears_meanwhile_is_kept(overwrite, make, built, tmp_path, monkeypatch):
    """A folder that comes to be under the name during a build is not replaced; the same command
    goes on from what was built."""

    def somebody_else(*_):
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model/notes.txt").write_text("mine")

    monkeypatch.setattr("hf_evomerge.building.merged.Merged.write_companions", somebody_else)
    with refused("exists and is no model" if overwrite else "exists already", EvoMergeError):
        built(make("merge"), "model", overwrite=overwrite)
    monkeypatch.undo()
    assert [file.name for file in (tmp_path / "model").iterdir()] == ["notes.txt"]
    (tmp_path / "model/notes.txt").unlink()
    built(make("merge"), "model", overwrite=True)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["model"]


def test_only_models_are_replaced(tiny, make, built, tmp_path):
    """Overwriting removes an empty folder, and never one that is no model, a file, or a source of
    the recipe."""
    (tmp_path / "empty").mkdir()
    assert (built(make(), "empty", overwrite=True) / "config.json").exists()
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.tex").write_text("ten years")
    (tmp_path / "file").write_text("something")
    for name in ("work", "file"):
        with refused(f"{name}: exists and is no model", EvoMergeError):
            built(make(), name, overwrite=True)
    assert (tmp_path / "work" / "thesis.tex").read_text() == "ten years"
    for name in ("a", "base"):
        with refused("one of the recipe's own sources", EvoMergeError):
            build_model(make(), tiny / name, overwrite=True)
    assert (tiny / "a" / "config.json").is_file()


def test_a_folder_that_holds_a_source_is_not_replaced(tiny, make, tmp_path):
    """A model folder with checkpoints of its own inside, as trainers leave it, is kept where one of
    them is a source."""
    run = shutil.copytree(tiny / "base", tmp_path / "run")
    inner = shutil.copytree(tiny / "a", run / "checkpoint-100")
    with refused(r"run: holds .*checkpoint-100, one of the recipe's own sources", EvoMergeError):
        build_model(make(models=[inner, tiny / "b"]), run, overwrite=True)
    assert (inner / "config.json").is_file()


@pytest.mark.parametrize(
    ("part", "summary"),
    [
        ("merge", "dare_ties of 2 sources"),
        ("flow", "a path of 3 hops over 3 distinct layers"),
        ("both", "dare_ties of 2 sources, then a path of 3 hops over 3 distinct layers"),
    ],
)
def test_checking_says_what_would_be_built(part, summary, make):
    """Checking a good recipe says in one line what it would be."""
    assert str(check_recipe(make(part))) == f"fine: {summary}, as float32"


@pytest.mark.parametrize(
    ("fields", "message"),
    {
        "merge: {method: magic}": "'magic' is not known",
        "merge: {method: linear, parameters: [{wait: 1}, {}]}": "wait",
        "{merge: {method: linear}, base: ./nowhere}": "./nowhere: no such folder",
        "{merge: null, flow: {path: ['0:0', '1:2']}}": "layer 2 of source 1",
    }.items(),
)
def test_checking_refuses_what_building_refuses(fields, message, make, tmp_path):
    """A recipe that cannot be built is refused by the check with the same line as by the build,
    which leaves nothing."""
    recipe = make(**yaml.safe_load(fields))
    with pytest.raises(EvoMergeError, match=message) as checked:
        check_recipe(recipe)
    with pytest.raises(type(checked.value)) as built:
        build_model(recipe, tmp_path / "model")
    assert str(checked.value) == str(built.value)
    assert list(tmp_path.iterdir()) == []
