"""What every checkpoint answers, whatever it is made of: the same tensors whether read, written or
accounted for."""

from collections import Counter

import pytest
import torch
import yaml
from classes import tensors_of
from recipes import merge_of, ref_of
from refused import refused

from hf_evomerge.building.build import open_recipe
from hf_evomerge.building.folded import Folded, fold
from hf_evomerge.checkpoints.ledger import Ledger
from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.checkpoints.writer import write_checkpoint
from hf_evomerge.recipes.recipe import Recipe

PARTS = yaml.safe_load("""
merged:
  merge: &merge
    method: ties
    parameters: [{weight: 0.6, density: 0.5}, {weight: 0.7, density: 0.4}]
routed: &routed
  flow: {path: ["0:0", "1:1", "0:1"], scales: [1, 0.5, 2]}
hybrid:
  merge: *merge
  flow: {path: ["2:0", "2:1", "0:1", "2:1"], scales: [1, 0.5, 1.5, 1]}
folded: *routed
""")


@pytest.fixture
def make(tiny):
    """Makes a checkpoint of each kind over the tiny family."""

    def made(kind):
        if kind == "source":
            return open_source(tiny / "a")
        given = {"sources": [ref_of(tiny / name) for name in "ab"], "base": ref_of(tiny / "base")}
        checkpoint = open_recipe(Recipe.model_validate({**given, **PARTS[kind]}))
        return Folded(checkpoint) if kind == "folded" else checkpoint

    return made


KINDS = ["source", *PARTS]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_is_what_is_written(kind, make, tmp_path):
    """Each tensor that can be read is the one that is written, under the same name, with the dtype
    and shape it states."""
    checkpoint = make(kind)
    out = write_checkpoint(checkpoint, tmp_path / "out")
    written = tensors_of(out)
    assert set(written) == set(checkpoint.tensors)
    again = make(kind)  # read in another order than it was written in
    for name, tensor in sorted(written.items(), reverse=True):
        assert torch.equal(again.read(name), tensor), name
        assert checkpoint.tensors[name].shape == tuple(tensor.shape)
    reopened = open_source(out)
    assert {name: str(info) for name, info in reopened.tensors.items()} == {
        name: str(info) for name, info in checkpoint.tensors.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_is_accounted_for(kind, make):
    """The ledger counts each tensor of the result once, and each tensor of the sources that is not
    used, with a reason."""
    checkpoint = make(kind)
    ledger = Ledger.of(checkpoint)
    kinds = Counter[str]()
    for kind, count in ledger.kinds.items():
        kinds[kind.partition(" from ")[0]] += count
    assert kinds == Counter(checkpoint.origin(name).kind for name in checkpoint.tensors)
    used = {
        f"{source}: {own}"
        for name in checkpoint.tensors
        for source, own in checkpoint.origin(name).inputs
    }
    everything = {f"{source}: {name}" for source in checkpoint.sources for name in source.tensors}
    assert used <= everything
    assert ledger.dropped.total() == len(everything - used)
    assert all(ledger.dropped)


def test_a_hybrid_merges_only_what_is_on_its_path(make, tiny, tmp_path, monkeypatch):
    """The layers of the merged model that no hop runs are neither merged nor written."""
    from hf_evomerge.building.merged import Merged

    read = []
    stream = Merged.stream

    def noting(self, name):
        read.append(name)
        return stream(self, name)

    monkeypatch.setattr(Merged, "stream", noting)
    recipe = merge_of(tiny / "a", tiny / "b", flow={"path": ["0:0", "2:1"], "embedding_source": 0})
    write_checkpoint(open_recipe(recipe), tmp_path / "out")
    assert read
    assert all(name.startswith("model.layers.1.") for name in read)


def test_a_plan_folds_as_the_model_on_disk_does(make, tmp_path):
    """Folding a path that was never written gives the bits of folding what was."""
    built = write_checkpoint(make("routed"), tmp_path / "built")
    there = tensors_of(fold(built, tmp_path / "there"))
    here = tensors_of(write_checkpoint(make("folded"), tmp_path / "here"))
    assert all(torch.equal(here[name], tensor) for name, tensor in there.items())
    assert set(here) == set(there)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_that_is_not_there(make, kind):
    """A name that no tensor has is an error that names it and the checkpoint."""
    checkpoint = make(kind)
    name = next(name for name in checkpoint.tensors if name.endswith("norm.weight"))
    with refused(rf"no tensor called {name}s"):
        checkpoint.read(f"{name}s")
