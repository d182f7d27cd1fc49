import os
from functools import partial

import pytest
import torch
from classes import edit_json, edited, read_json
from refused import refused
from tiny_models import tiny_model
from transformers import AutoModelForCausalLM

from hf_evomerge.building.routed import Routed
from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.checkpoints.source import Source
from hf_evomerge.checkpoints.writer import write_checkpoint
from hf_evomerge.errors import EvoMergeError
from hf_evomerge.recipes.recipe import FlowPart, SourceRef
from hf_evomerge.routing.pool import LayerPool

IDS = torch.arange(3, 15).view(2, 6)
FLOW = FlowPart(path=["0:0", "1:3", "0:1*0.5 + 1:1*0.5", "1:3", "0:2"], scales=[1, 0.5, 1, 2, 1])
REFS = [SourceRef(model="someone/first", revision="abc"), SourceRef(model="someone/second")]
llama = partial(tiny_model, "llama")


@pytest.fixture
def folders(tmp_path):
    """Two Llamas of three and four layers, with files of a tokenizer beside the first."""
    llama(3).save_pretrained(tmp_path / "a")
    llama(4, seed=1).save_pretrained(tmp_path / "b")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / "a" / name).write_text(f"first {name}")
        (tmp_path / "b" / name).write_text(f"second {name}")
    (tmp_path / "a" / "README.md").write_text("not to be copied")
    return [tmp_path / "a", tmp_path / "b"]


def build(folders, flow=FLOW, dtype=None, **options):
    """Build into the folder ``out`` beside the sources."""
    return write_checkpoint(
        Routed(opened(folders), flow, dtype=dtype), folders[0].parent / "out", **options
    )


def opened(folders):
    """The sources, called as they are on the Hub."""
    return [Source(folder, ref) for folder, ref in zip(folders, REFS, strict=True)]


def evaluated(folders, flow=FLOW, **options):
    """The logits of the model over resident layers."""
    models = [AutoModelForCausalLM.from_pretrained(folder, **options) for folder in folders]
    return (
        LayerPool(models, flow.embedding_source)
        .model(flow.to_path(), flow.scale_target)(IDS)
        .logits
    )


@pytest.mark.parametrize("scale_target", ["stream", "mlp_delta"])
@pytest.mark.parametrize(
    ("dtype", "embedding_source"), [("float32", 0), ("float32", 1), ("bfloat16", 1)]
)
def test_the_checkpoint_is_the_model_that_was_evaluated(
    folders, scale_target, dtype, embedding_source
):
    """The built checkpoint gives the bits of the model over resident layers in the same dtype."""
    flow = FLOW.model_copy(
        update={"scale_target": scale_target, "embedding_source": embedding_source}
    )
    out = build(folders, flow, dtype=dtype)
    again = AutoModelForCausalLM.from_pretrained(out)
    assert str(again.dtype) == f"torch.{dtype}"
    assert torch.equal(again(IDS).logits, evaluated(folders, flow, dtype=getattr(torch, dtype)))


def test_what_belongs_to_the_model_is_beside_it(folders):
    """The folder has the code to load it and the tokenizer of the embedding source, readable by
    all, and nothing else."""
    old = os.umask(0o077)
    try:
        out = build(folders, FLOW.model_copy(update={"embedding_source": 1}))
    finally:
        os.umask(old)
    code = {
        f"{part}_evo_merged.py"
        for part in ("blocks", "configuration", "layers", "modeling", "sources")
    }
    tokenizer = {"chat_template.jinja", "tokenizer.json", "tokenizer_config.json"}
    there = {"config.json", "generation_config.json", "model.safetensors"} | code | tokenizer
    assert {file.name for file in out.iterdir()} == there
    assert (out / "tokenizer.json").read_text() == "second tokenizer.json"
    assert {file.stat().st_mode & 0o777 for file in out.iterdir()} == {0o644}
    assert out.stat().st_mode & 0o777 == 0o755
    config = read_json(out / "config.json")
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_evo_merged.EvoMergedForCausalLM"
    assert config["architectures"] == ["EvoMergedForCausalLM"]
    assert config["sources"] == [
        {"model": "someone/first", "revision": "abc", "layers": 3},
        {"model": "someone/second", "layers": 4},
    ]
    assert str(folders[0].parent) not in (out / "config.json").read_text()


def test_a_checkpoint_of_the_base_model_is_read(tmp_path):
    """A source saved without its head's prefix, as the first GPT-2 was, is understood."""
    model = tiny_model("gpt2", 2)
    model.transformer.save_pretrained(tmp_path / "gpt2")
    flow = FlowPart(path="0:0, 0:1, 0:1")
    out = write_checkpoint(Routed([open_source(tmp_path / "gpt2")], flow), tmp_path / "out")
    expected = LayerPool([model]).model(flow.to_path())(IDS).logits
    assert torch.equal(AutoModelForCausalLM.from_pretrained(out)(IDS).logits, expected)


def test_sources_that_do_not_fit_are_refused(folders):
    """Sources whose layers cannot run in one model are refused in one line."""
    llama(4, intermediate_size=48).save_pretrained(folders[1])
    with refused("intermediate_size is 48"):
        build(folders)


def test_a_body_without_its_head_is_called_one(folders):
    """A path needs a head, which a model that was saved as a bare body has not."""
    llama(4, tie_word_embeddings=False).model.save_pretrained(folders[1])
    with refused(r"lm_head.weight; it was saved from LlamaModel: a path needs a LlamaForCausalLM"):
        build(folders, FlowPart(path=["1:0", "1:1"], embedding_source=1))


def test_a_missing_or_misshapen_tensor_is_named(folders):
    """A checkpoint that lacks a tensor, or has it in another shape than its config says, is refused
    with the tensor's name."""
    edit_json(folders[1] / "config.json", num_hidden_layers=6)
    with refused(r"someone/second: no tensor called model.layers.5", EvoMergeError):
        build(folders, FlowPart(path=["0:0", "1:5"]))
    for folder in folders:
        edit_json(folder / "config.json", intermediate_size=44)
    with refused(r"mlp\.\w+\.weight has shape"):
        build(folders)


def test_quantised_layers_are_refused(folders):
    """Weights that are stored as codes are refused, and not taken for numbers."""
    with edited(folders[1]) as tensors:
        codes = {name: each.to(torch.int8) for name, each in tensors.items() if each.ndim == 2}
        tensors.update(codes)
    with refused("quantised; give the model in bfloat16 or float32"):
        build(folders)
