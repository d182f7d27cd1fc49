"""What holds for every architecture."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny_models import ARCHITECTURES, OLD_CACHE_NAMES, tiny_model, token_ids
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_evomerge.modeling import MLP_BRANCH, EvoMergedForCausalLM
from hf_evomerge.modeling.modeling_evo_merged import ScaleOutput, find_layers
from hf_evomerge.modeling.origins import tensor_origins
from hf_evomerge.path import Path as LayerPath
from hf_evomerge.recipe import FlowPart, SourceRef
from hf_evomerge.routing.checkpoint import build_flow
from hf_evomerge.routing.pool import LayerPool

SERIAL = LayerPath.parse("0:0, 1:1, 1:3, 0:1, 1:2, 0:0, 1:3, 0:2", [1, 0.9, 1.1, 1, 1.2, 1, -0.8, 1])
SUMS = LayerPath.parse(["0:0", "0:1*0.5 + 1:1*0.5", "1:2 + 0:2 + 0:0*-1", "0:2*1.5"])
NO_STATIC_CACHE = ("gpt_neo", *(("bloom",) if OLD_CACHE_NAMES else ()))  # the source architecture itself cannot use one
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


@pytest.fixture(scope="module", autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def pool_of(architecture: str) -> LayerPool:
    """A source of three layers and one of four."""
    return LayerPool([tiny_model(architecture, 3), tiny_model(architecture, 4, seed=1)])


def greedy(model: PreTrainedModel, ids: torch.Tensor, **options: object) -> torch.Tensor:
    """Greedy tokens after the prompt; token 0 is padding."""
    given = {
        "max_new_tokens": 6,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
        "attention_mask": (ids != 0).long(),
    }
    return model.generate(ids, **{**given, **options})[:, ids.shape[1] :]


@every_architecture
@pytest.mark.parametrize("scale_target", ["stream", "mlp_delta"])
def test_the_identity_path_is_the_source(architecture: str, scale_target: str) -> None:
    """The path that runs a source as it is gives that source's logits, to the bit."""
    pool = pool_of(architecture)
    assert torch.equal(pool.model(LayerPath.identity(3), scale_target)(token_ids()).logits, pool.models[0](token_ids()).logits)
    other = LayerPool(pool.models, embedding_source=1)
    assert torch.equal(other.model(LayerPath.identity(4, 1))(token_ids()).logits, pool.models[1](token_ids()).logits)


@every_architecture
@pytest.mark.parametrize("path", [SERIAL, SUMS], ids=["serial", "sums"])
def test_caches_do_not_change_the_text(architecture: str, path: LayerPath) -> None:
    """Greedy tokens are the same with a dynamic cache, no cache and, where the source class can, a static cache."""
    model = pool_of(architecture).model(path)
    tokens = greedy(model, token_ids())
    assert torch.equal(greedy(model, token_ids(), use_cache=False), tokens)
    if architecture not in NO_STATIC_CACHE:
        assert torch.equal(greedy(model, token_ids(), cache_implementation="static"), tokens)


@every_architecture
def test_padding_does_not_change_the_text(architecture: str) -> None:
    """A prompt in a left-padded batch gives the tokens that it gives alone."""
    model = pool_of(architecture).model(SERIAL)
    short = token_ids()[:1, :6]
    padded = torch.cat([torch.cat([torch.zeros(1, 3, dtype=torch.long), short], 1), token_ids()[1:]])
    assert torch.equal(greedy(model, padded)[:1], greedy(model, short))


@every_architecture
@pytest.mark.parametrize("path", [SERIAL, SUMS], ids=["serial", "sums"])
def test_evaluated_saved_and_built_are_one_model(architecture: str, path: LayerPath, tmp_path: Path) -> None:
    """The model over resident layers, what it saves, a deep copy, and the checkpoint built from files give the same bits."""
    pool = pool_of(architecture)
    model = pool.model(path)
    logits = model(token_ids()).logits
    assert torch.equal(copy.deepcopy(model)(token_ids()).logits, logits)
    model.save_pretrained(tmp_path / "saved")
    for number, source in enumerate(pool.models):
        source.save_pretrained(tmp_path / str(number))
    flow = FlowPart(path=path.as_text(), scales=path.scales)
    folders = [tmp_path / "0", tmp_path / "1"]
    refs = [SourceRef(model="first"), SourceRef(model="second")]
    build_flow(folders, flow, tmp_path / "built", sources=refs, progress=False)
    for name in ("saved", "built"):
        again, info = AutoModelForCausalLM.from_pretrained(tmp_path / name, output_loading_info=True)
        assert type(again) is EvoMergedForCausalLM
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert torch.equal(again(token_ids()).logits, logits)
        assert again.num_parameters() == model.num_parameters()
    written = [set(safe_open(tmp_path / name / "model.safetensors", "pt").keys()) for name in ("saved", "built")]
    assert written[0] == written[1] == tensor_origins(model.config).keys()


@every_architecture
def test_hidden_states_are_one_per_hop(architecture: str) -> None:
    """A path of n hops has n + 1 hidden states, whatever the number of terms."""
    pool = pool_of(architecture)
    for path in (SERIAL, SUMS):
        assert len(pool.model(path)(token_ids(), output_hidden_states=True).hidden_states) == len(path) + 1


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name in MLP_BRANCH])
def test_the_mlp_branch_is_added_to_the_residual(architecture: str) -> None:
    """Where mlp_delta is allowed, a block's output is a straight line in the factor of its MLP, and not through zero."""
    model = tiny_model(architecture, 3)
    block = model.get_submodule(find_layers(model, 3))[1]  # type: ignore[index]
    outputs: list[torch.Tensor] = []
    block.register_forward_hook(lambda module, args, out: outputs.append(out[0] if isinstance(out, tuple) else out))
    for factor in (0.0, 1.0, 2.0, 3.0):
        hook = block.get_submodule(MLP_BRANCH[architecture]).register_forward_hook(ScaleOutput(factor))
        model(token_ids())
        hook.remove()
    steps = [after - before for before, after in itertools.pairwise(outputs)]
    assert steps[0].abs().max() > 1e-4
    assert outputs[0].abs().max() > 1e-4
    assert all(torch.allclose(step, steps[0], atol=1e-5, rtol=1e-4) for step in steps[1:])


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name in MLP_BRANCH])
def test_mlp_delta_scales_the_branch_of_the_hop_before(architecture: str) -> None:
    """With mlp_delta the scale of a hop multiplies the MLP output of the hop before it, and the first one the embeddings."""
    pool = pool_of(architecture)
    plain = tiny_model(architecture, 3)
    for layer, factor in ((0, 0.5), (1, -2.0)):
        block = plain.get_submodule(find_layers(plain, 3))[layer]  # type: ignore[index]
        block.get_submodule(MLP_BRANCH[architecture]).register_forward_hook(ScaleOutput(factor))
    merged = pool.model(LayerPath.identity(3).with_scales([1, 0.5, -2]), "mlp_delta")
    assert torch.equal(merged(token_ids()).logits, plain(token_ids()).logits)
    scaled = pool.model(LayerPath.identity(3).with_scales([3, 1, 1]), "mlp_delta")
    stream = pool.model(LayerPath.identity(3).with_scales([3, 1, 1]), "stream")
    assert torch.equal(scaled(token_ids()).logits, stream(token_ids()).logits)
