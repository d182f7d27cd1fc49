"""Which tensors of a fine-tune are those of its base."""

import shutil

import torch
from families import save_family, tiny_config
from tiny_adapters import save_adapter
from transformers import AutoModelForCausalLM

from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.checkpoints.unchanged import twins, unchanged_tensors
from hf_evomerge.recipes.recipe import SourceRef


def test_frozen_tensors_are_found(tmp_path):
    """A tensor that was not trained is unchanged; one that differs in its last element alone is
    not."""
    save_family(tmp_path, tiny_config(), torch.bfloat16, count=1)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        base.model.norm.weight[-1] += 1
    base.save_pretrained(tmp_path / "tuned")
    source = open_source(tmp_path / "tuned")
    root = open_source(tmp_path / "base")
    assert set(source.tensors) - unchanged_tensors(source, root) == {"model.norm.weight"}
    assert not unchanged_tensors(open_source(tmp_path / "source0"), root)


def test_an_adapter_changes_what_it_names(tmp_path):
    """Of a LoRA source of the same base only the tensors that its adapter changes are compared."""
    save_family(tmp_path, tiny_config(), torch.float32, count=0)
    save_adapter(
        tmp_path / "base",
        tmp_path / "adapter",
        0,
        target_modules=["q_proj"],
        layers_to_transform=[1],
    )
    base = open_source(tmp_path / "base")
    source = open_source(SourceRef(model=str(tmp_path / "base"), adapter=str(tmp_path / "adapter")))
    assert set(source.tensors) - unchanged_tensors(source, base) == {
        "model.layers.1.self_attn.q_proj.weight"
    }


def test_sources_that_are_one_model_are_named(tiny, tmp_path):
    """The same folder twice, and a copy of it, are one model; another fine-tune is not."""
    shutil.copytree(tiny / "a", tmp_path / "copy")
    sources = [
        open_source(folder) for folder in (tiny / "a", tiny / "b", tiny / "a", tmp_path / "copy")
    ]
    lines = twins(sources, ["a", "b", "a (2)", "copy"], download=False)
    assert [line.split(" are the same model")[0] for line in lines] == [
        "sources: a and a (2)",
        "sources: a and copy",
    ]
