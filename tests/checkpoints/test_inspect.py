"""What a checkpoint is said to be."""

import json
from dataclasses import replace

import pytest
import torch
import yaml
from classes import random_class, save_tensors
from commands import invoke
from families import tiny_config
from recipes import path_of
from tiny_adapters import save_adapter
from transformers import LlamaForCausalLM

from hf_evomerge.building.build import build_model
from hf_evomerge.checkpoints import inspect as inspection
from hf_evomerge.checkpoints.inspect import inspect_model

# q, k and v, o, MLP, norms of the tiny Llama
BLOCK = 16 * 16 + 2 * 8 * 16 + 16 * 16 + 3 * 16 * 24 + 2 * 16
OUTSIDE = 2 * 26 * 16 + 16  # embeddings, head, final norm


def _invoke(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


@pytest.fixture(scope="module")
def merged(tiny, tmp_path_factory):
    """A path of four hops that runs one layer twice and sums two layers once, so five slots over
    three layers."""
    hops = ["0:0", "1:1", "0:0*0.5 + 0:1*0.5", "1:1"]
    recipe = path_of(
        tiny / "a", tiny / "b", hops=hops, flow={"scales": [1, 0.5, 1, 2], "embedding_source": 1}
    )
    return build_model(recipe, tmp_path_factory.mktemp("merged") / "model")


@pytest.mark.parametrize(
    ("family", "dtype", "size"), [("tiny", "F32", 4), ("tiny_half", "BF16", 2)]
)
def test_a_plain_model(family, dtype, size, request):
    """Layers, parameters, bytes and dtypes of a plain model are its architecture's, and what is
    stored is what runs."""
    found = inspect_model(request.getfixturevalue(family) / "a")
    count = 2 * BLOCK + OUTSIDE
    whole = inspection.Size(count, count * size, {dtype: count})
    expected = {
        "architecture": "LlamaForCausalLM",
        "model_type": "llama",
        "layers": 2,
        "vocab_size": 26,
        "hidden_size": 16,
        "tied_head": False,
        "stored": whole,
        "effective": whole,
        "chat_template": False,
        "merged": None,
    }
    assert vars(found) == vars(found) | expected


def test_a_merged_model(merged, tiny):
    """A merged model stores each layer once, runs it as often as the path says, and knows path,
    scales and sources."""
    found = inspect_model(merged)
    assert found.stored.parameters == 3 * BLOCK + OUTSIDE
    assert found.effective.parameters == 5 * BLOCK + OUTSIDE
    assert found.effective.bytes == 4 * found.effective.parameters
    assert (found.architecture, found.layers) == ("EvoMergedForCausalLM", 5)
    assert not found.tied_head
    sources = found.merged.pop("sources")
    assert [source["model"] for source in sources] == [str(tiny / "a"), str(tiny / "b")]
    assert found.merged == {
        "path": ["0:0", "1:1", "0:0*0.5 + 0:1*0.5", "1:1"],
        "scales": [1, 0.5, 1, 2],
        "scale_target": "stream",
        "embedding_source": 1,
        "distinct_layers": 3,
    }


def test_a_tied_head_is_seen_in_plain_and_merged_models(built, tmp_path):
    """A head that is the embedding matrix is counted once, also in a merged model."""
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    config = tiny_config(vocab_size=26, hidden_size=16, intermediate_size=24, **heads)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "tied")
    built(path_of(tmp_path / "tied", hops=["0:0", "0:0"]), "merged")
    for name, layers in (("tied", 2), ("merged", 1)):
        found = inspect_model(tmp_path / name)
        assert found.tied_head
        assert found.stored.parameters == layers * BLOCK + OUTSIDE - 26 * 16


def test_integers_and_templates_and_quantised_weights(tmp_path):
    """Integers are no parameters but take room; a template inside the tokenizer's settings and the
    quantisation are seen."""
    tensors = {
        "w": torch.zeros(3, 5, dtype=torch.float16),
        "ids": torch.zeros(7, dtype=torch.int64),
        "on": torch.ones(2) > 0,
    }
    folder = save_tensors(
        tmp_path / "odd", tensors, quantization_config={"quant_method": "gptq", "bits": 4}
    )
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    found = inspect_model(folder)
    assert found.stored == inspection.Size(15, 30 + 56 + 2, {"BOOL": 2, "F16": 15, "I64": 7})
    assert (found.quantization, found.chat_template) == ("gptq", True)
    assert "gptq" in str(found)


def test_an_adapter(tiny, tmp_path):
    """An adapter is told with its rank, alpha, modules and size, and everything else is its base's;
    in JSON too."""
    settings = """{r: 4, lora_alpha: 7, target_modules: [q_proj, down_proj],
        rank_pattern: {q_proj: 2}}"""
    folder = save_adapter(tiny / "base", tmp_path / "lora", 0, **yaml.safe_load(settings))
    found = inspect_model(folder)
    base = inspect_model(tiny / "base")
    assert replace(found, adapter=None) == base
    size = 4 * 2 * (2 * (16 + 16) + 4 * (16 + 24))
    told = {"name": str(folder), "ranks": [2, 4], "alphas": [7], "modules": ["down_proj", "q_proj"]}
    told |= {"weights": 4, "bytes": size}
    assert found.adapter == told
    lines = str(found).splitlines()
    assert lines[0] == (
        f"adapter       {folder}, rank 2/4, alpha 7, 4 weights (down_proj, q_proj), {size:,} bytes"
    )
    assert lines[1] == f"base          {tiny / 'base'}"
    assert json.loads(_invoke("inspect", folder, "--json"))["adapter"] == told


def test_the_commands(merged, tmp_path):
    """Both commands print text for people, and numbers for programs."""
    text = _invoke("inspect", merged)
    assert "4 hops over 3 distinct layers" in text
    assert "hop   2  1:1                      scale 0.5000" in text
    assert f"{3 * BLOCK + OUTSIDE:,} parameters" in text
    for name, change in (("base", [0.5, 0.5]), ("a", [1.0, 1.0]), ("b", [2.0, 1.5])):
        tensors = {f"layers.{i}.w": torch.full((4,), value) for i, value in enumerate(change)}
        save_tensors(tmp_path / name, tensors)
    words = ["diff", tmp_path / "a", tmp_path / "b", "--base", tmp_path / "base"]
    shown = _invoke(*words).splitlines()
    assert max(map(len, shown[4:7])) <= 80  # above stand the folders
    distances = {line.split()[0]: line.split()[1] for line in shown if line.startswith("blocks.")}
    assert distances == {"blocks.0": "1.0000", "blocks.1": "0.5000"}
    relative = json.loads(_invoke(*words, "--json"))["total"]["distance"]
    assert relative == pytest.approx((5 / 8) ** 0.5)


def test_a_head_of_labels_is_its_own(tmp_path):
    """The config of a BERT ties words to the embeddings, and a classifier has no head of words."""
    random_class("bert", 0).save_pretrained(tmp_path / "model")
    assert not inspect_model(tmp_path / "model").tied_head
