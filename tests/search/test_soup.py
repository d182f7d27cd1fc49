"""Averages of a run's checkpoints: which they are, their weights, and what is built."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from commands import invoke
from merge_reference import linear
from refusals import refused, told
from safetensors.torch import load_file, save_file
from searches import minimal

from hf_evomerge import Recipe, SourceRef
from hf_evomerge.errors import RecipeError
from hf_evomerge.merging import linear as merge_linear
from hf_evomerge.recipes.strict_yaml import validate
from hf_evomerge.search.spaces.parameter import ParameterSpace


@pytest.fixture
def run(tiny, tmp_path):
    """What transformers' Trainer leaves: four checkpoints with optimizer states, and a folder of
    logs."""
    folder = tmp_path / "run"
    for step, name in {"3": "base", "20": "a", "100": "b"}.items():
        shutil.copytree(tiny / name, folder / f"checkpoint-{step}")
    shutil.copytree(tiny / "base", folder / "checkpoint-1000")
    for checkpoint in folder.iterdir():
        torch.save({}, checkpoint / "optimizer.pt")
        save_file({"state": torch.ones(3)}, checkpoint / "optimizer.safetensors")
        (checkpoint / "trainer_state.json").write_text("{}")
    (folder / "runs").mkdir()
    return folder


def _recipe(text):
    given = {"sources": yaml.safe_load(text), "merge": {"method": "linear"}}
    return validate(Recipe, given, RecipeError)


def _sources(run, checkpoints):
    return _recipe(f"{{run: {run}, checkpoints: {checkpoints}}}").sources


def _names(run, checkpoints):
    return [Path(source.model).name for source in _sources(run, checkpoints)]


@pytest.mark.parametrize(
    ("checkpoints", "steps"),
    [
        ("all", [3, 20, 100, 1000]),
        ("last 2", [100, 1000]),
        ('"*-1*"', [100, 1000]),
        ("[checkpoint-20, checkpoint-3]", [20, 3]),
    ],
)
def test_checkpoints_are_in_the_order_of_their_steps(checkpoints, steps, run):
    """By number and not by letter; the last of them, those of a pattern, or those that are
    named."""
    # as a Trainer's last save, and a link to one of them: they have no place in the order
    shutil.copytree(run / "checkpoint-20", run / "final")
    (run / "latest").symlink_to("checkpoint-1000")
    assert _names(run, checkpoints) == [f"checkpoint-{step}" for step in steps]


def test_links_among_checkpoints(run, tiny):
    """One to another checkpoint may be named; one that leads out of the run is refused, whatever it
    leads to."""
    (run / "latest").symlink_to("checkpoint-1000")
    (run / "checkpoint-2000").symlink_to(tiny / "a")
    told = r"checkpoint-2000: a link to .*, which is not in .*; list checkpoints as sources"
    with refused(RecipeError, told):
        _sources(run, "last 2")
    assert _names(run, "[latest, checkpoint-3]") == ["latest", "checkpoint-3"]


@pytest.mark.parametrize(
    ("sources", "message"),
    told("""
{run: RUN, checkpoints: last 1}
  1 of its checkpoints are 'last 1', and a merge takes 2; it has
{run: RUN, checkpoints: step-*}
  0 of its checkpoints are 'step-
{run: RUN/nowhere}
  no such folder of checkpoints
{run: RUN, checkpoints: [checkpoint-3, ../x]}
  ../x is not in it; list checkpoints
{run: RUN, checkpoints: [checkpoint-3, /tmp]}
  /tmp is not in it; list checkpoints
{run: RUN, checkpoint: all}
  sources: checkpoint: no such key; did you mean checkpoint
"""),
)
def test_a_run_that_is_none_is_one_line(run, sources, message):
    """Too few checkpoints, no folder, others' folders, and another key are named before anything is
    read."""
    with refused(RecipeError, rf"^.*{re.escape(message)}.*$"):
        _recipe(sources.replace("RUN", str(run)))


def test_a_repository_has_checkpoints_in_its_revisions(monkeypatch):
    """Branches and tags but main, by their numbers; a list of names asks no Hub."""
    branches = [SimpleNamespace(name=name) for name in ("main", "step-20", "step-3")]
    refs = SimpleNamespace(branches=branches, tags=[SimpleNamespace(name="step-100")])
    monkeypatch.setattr("huggingface_hub.list_repo_refs", lambda name: refs)
    found = _sources("you/run", "step-*")
    assert found == [SourceRef(model="you/run", revision=f"step-{step}") for step in (3, 20, 100)]
    monkeypatch.delattr("huggingface_hub.list_repo_refs")
    assert [source.revision for source in _sources("you/run", "[a, b]")] == ["a", "b"]


@pytest.fixture
def search_run(run, tiny):
    """Makes a search over the checkpoints of the run."""
    data = {"search": {"jsonl": str(tiny / "search.jsonl")}}

    def make(**merge):
        return minimal(sources={"run": str(run)}, merge={"method": "linear", **merge}, data=data)

    return make


def test_a_search_file_has_a_run(search_run):
    """The study's file names every checkpoint, so that it means the same when the run goes on."""
    assert search_run().source_names == [f"checkpoint-{step}" for step in (3, 20, 100, 1000)]


def test_a_run_is_averaged(run, tmp_path):
    """Tensor by tensor; optimizer states are no weights, and the recipe beside the weights names
    the checkpoints."""
    file = tmp_path / "average.yaml"
    file.write_text(f"sources: {{run: {run}, checkpoints: last 3}}\nmerge: {{method: linear}}\n")
    invoke("merge", file, "--out", tmp_path / "out")
    sources = Recipe.load(tmp_path / "out" / "recipe.yaml").sources
    assert [Path(ref.model).name for ref in sources] == [
        "checkpoint-20",
        "checkpoint-100",
        "checkpoint-1000",
    ]
    out = load_file(tmp_path / "out" / "model.safetensors")
    inputs = [load_file(Path(source.model) / "model.safetensors") for source in sources]
    assert out.keys() == inputs[0].keys()
    for name, tensor in out.items():
        wanted = linear([each[name].double().numpy() for each in inputs], [1, 1, 1])
        np.testing.assert_allclose(tensor.numpy(), wanted, atol=1e-6)


def test_a_search_over_checkpoints_stays_on_the_simplex(search_run):
    """Whatever the genome, the weights of the average are not negative and add up to 1; starts are
    the known averages."""
    space = ParameterSpace(search_run(groups="model", starts=["average", "last"]), 2)
    start = space.start()
    genomes = np.random.default_rng(0).uniform(size=(20, 4))
    for genome in (*genomes, *start.candidates):
        part = space.decode(genome).merge
        assert part.options.get("normalize", True)
        assert min(each["weight"] for each in part.parameters) >= 0
    assert start.names[-1] == "average of the last half"
    last = space.decode(start.candidates[-1]).merge.parameters
    assert [each["weight"] for each in last] == [0, 0, 1, 1]
    with refused(RecipeError, "add up to 0"):
        merge_linear([torch.ones(2)] * 2, weights=[0, 0])
