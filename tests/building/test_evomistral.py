"""The paper's released layout, as `examples/evomistral.py` reads it: what is built computes what
the description says."""

import json
import runpy
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

import hf_evomerge
from hf_evomerge import Recipe
from hf_evomerge.recipes.layer_path import LayerPath
from hf_evomerge.routing.pool import LayerPool

ROOT = Path(__file__).parents[2]
STORED = [0, 1, 2, 0, 1, 3, 2, 3, 1]
SCALES = [1.25, 0.9, 1.1, 0.7, 1.3, 0.8, 1.05, 0.95, 1.2]
CONFIG = yaml.safe_load("""
architectures: [EvoMistralForCausalLM]
auto_map:
  AutoConfig: SakanaAI/EvoLLM-v1-JP-10B--configuration_evomistral.EvoMistralConfig
  AutoModelForCausalLM: SakanaAI/EvoLLM-v1-JP-10B--modeling_evomistral.EvoMistralForCausalLM
model_type: evomistral
num_hidden_layers: 4
num_hops: 9
hidden_size: 16
intermediate_size: 24
num_attention_heads: 4
num_key_value_heads: 2
vocab_size: 32
max_position_embeddings: 64
rms_norm_eps: 0.00001
rope_theta: 10000.0
sliding_window: 4096
tie_word_embeddings: false
torch_dtype: float32
transformers_version: 4.38.2
use_cache: false
bos_token_id: 1
eos_token_id: 2
""")


def plain_model():
    """A plain Mistral of the stored layers."""
    names = MistralConfig().to_dict().keys() & CONFIG.keys() - {"architectures", "model_type"}
    return MistralForCausalLM(MistralConfig(**{name: CONFIG[name] for name in names})).eval()


def tensors():
    """Random weights in the released layout."""
    generator = torch.Generator().manual_seed(0)
    found = {
        name: torch.randn(tensor.shape, generator=generator) / 3 + ("norm" in name)
        for name, tensor in plain_model().state_dict().items()
    }
    path = {
        "model.input_layers": torch.tensor(STORED, dtype=torch.int32),
        "model.input_scales": torch.tensor(SCALES, dtype=torch.float32),
    }
    return found | path


def save(folder, weights=None, **changes):
    """Write a checkpoint in the released layout, in two files with an index."""
    folder.mkdir()
    weights = tensors() if weights is None else weights
    files = {}
    for number in (1, 2):
        file = f"model-0000{number}-of-00002.safetensors"
        inside = {name: weights[name] for name in sorted(weights)[number - 1 :: 2]}
        save_file(inside, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(inside, file)
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    return folder


def expected(weights):
    """The model that the layout means: a path through a Mistral of the stored layers, on which
    scales multiply what the MLP of the hop before adds."""
    source = plain_model()
    source.load_state_dict(
        {name: value for name, value in weights.items() if not name.startswith("model.input_")}
    )
    return LayerPool([source]).model(LayerPath.of([(0, n) for n in STORED], SCALES), "mlp_delta")


def convert(folder, monkeypatch):
    """Run the script on a folder; returns the recipe that it writes."""
    monkeypatch.setattr("sys.argv", ["evomistral.py", str(folder)])
    runpy.run_path(str(ROOT / "examples" / "evomistral.py"), run_name="__main__")
    return Recipe.load(folder / "recipe.yaml")


def test_the_recipe_computes_what_the_layout_means(built, tmp_path, monkeypatch):
    """Logits, and those of the folded plain Mistral; every stored layer is there once."""
    released = save(tmp_path / "released")
    out = built(convert(released, monkeypatch), "ours")
    ids = torch.tensor([[3, 9, 30, 12, 7, 7, 21]])
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert type(model).__name__ == "EvoMergedForCausalLM"
    assert model.config.scale_target == "mlp_delta"
    plain = AutoModelForCausalLM.from_pretrained(
        hf_evomerge.fold(out, tmp_path / "plain"), dtype=torch.float32
    )
    assert type(plain).__name__ == "MistralForCausalLM"
    with torch.no_grad():
        wanted = expected(tensors())(ids).logits
        assert wanted.std() > 0.5
        assert torch.equal(model(ids).logits, wanted)
        assert torch.allclose(plain(ids).logits, wanted, atol=2e-4)
    stored = sum(value.numel() for value in tensors().values()) - 2 * len(STORED)
    assert sum(parameter.numel() for parameter in model.parameters()) == stored
    assert not {"auto_map", "num_hops"} & model.config.text_config.to_dict().keys()


def without(name):
    """The weights without one tensor."""
    return {key: value for key, value in tensors().items() if key != name}


WRONG = {
    "another model": (
        {"model_type": "mistral"},
        None,
        "model_type is 'mistral', not 'evomistral'; nothing to do",
    ),
    "no path": (
        {},
        without("model.input_layers"),
        "no tensor called model.input_layers, which holds the path",
    ),
    "lengths": (
        {},
        {**tensors(), "model.input_scales": torch.ones(8)},
        "9 layers, 8 scales, 9 hops; download it again",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_another_layout_is_refused(tmp_path, monkeypatch, case):
    """One line says what is wrong, and the folder stays as it was."""
    changes, weights, message = WRONG[case]
    folder = save(tmp_path / "released", weights, **changes)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(SystemExit, match=message):
        convert(folder, monkeypatch)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
