"""What holds for every architecture, and that the table in benchmarks/pages/model-tests.md says
so."""

import itertools
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from fold_cases import VARIANTS
from properties import CASES, NO_MLP_DELTA, NO_SDPA, PROPERTIES
from slowly import slow_beyond
from tiny_models import ARCHITECTURES, FAMILIES, OLD_CACHE_NAMES, tiny_model, token_ids
from transformers import AutoModelForCausalLM

from hf_evomerge.modeling import EvoMergedConfig
from hf_evomerge.modeling.blocks_evo_merged import layouts_of
from hf_evomerge.modeling.modeling_evo_merged import ScaleOutput, find_layers

TABLE = Path(__file__).parents[2] / "benchmarks" / "pages" / "model-tests.md"


@pytest.fixture(scope="module", autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


CORE = (
    "identity",
    "stream",
    "mlp_delta",
    "sums",
    "caches",
    "saved",
    "fold_stream",
    "fold_mlp_delta",
)
OFTEN = [
    (kind, name) for kind, name in CASES if kind == "llama" or (kind in FAMILIES and name in CORE)
]


@pytest.mark.parametrize(("architecture", "name"), slow_beyond(OFTEN, CASES))
def test_properties_hold_for_every_architecture(architecture, name, tmp_path):
    """Each property of the table holds for each architecture to which it applies."""
    if name == "offloaded":
        pytest.importorskip("accelerate")
    PROPERTIES[name].check(architecture, tmp_path)


@pytest.mark.parametrize(
    "architecture", slow_beyond(FAMILIES, sorted(ARCHITECTURES.keys() - NO_MLP_DELTA.keys()))
)
def test_the_mlp_branch_is_added_to_the_residual(architecture):
    """Where mlp_delta is allowed, a block's output is a straight line in the factor of its MLP, and
    not through zero."""
    model = tiny_model(architecture, 3)
    block = model.get_submodule(find_layers(model, 3))[1]
    outputs = []
    block.register_forward_hook(
        lambda module, args, out: outputs.append(out[0] if isinstance(out, tuple) else out)
    )
    for factor in (0.0, 1.0, 2.0, 3.0):
        hook = block.get_submodule(layouts_of(model.config).blocks[1].branch).register_forward_hook(
            ScaleOutput(factor)
        )
        model(token_ids())
        hook.remove()
    steps = [after - before for before, after in itertools.pairwise(outputs)]
    assert steps[0].abs().max() > 1e-4
    assert outputs[0].abs().max() > 1e-4
    assert all(torch.allclose(step, steps[0], atol=1e-5, rtol=1e-4) for step in steps[1:])


def test_the_table_is_of_these_architectures_and_properties():
    """The table has a row per architecture and a column per property, and no cell says that one
    does not hold."""
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    assert all(any(line.startswith(f"| {variant} | ") for line in lines) for variant in VARIANTS)
    rows = [re.split(r" *\| *", line)[1:-1] for line in lines if line.count("|") > 15]
    assert [cell.replace(" ", "_") for cell in rows[0][1:]] == list(PROPERTIES)
    cells = {row[0]: dict(zip(PROPERTIES, row[1:], strict=True)) for row in rows[2:]}
    assert cells.keys() == {*ARCHITECTURES, *(["mamba"] if OLD_CACHE_NAMES else [])}
    for architecture, row in cells.items():
        assert "NO" not in row.values()
        for name, cell in row.items():
            assert (cell == "n/a") is (architecture in PROPERTIES[name].not_applicable)


@pytest.mark.slow
def test_mlp_delta_is_left_out_only_where_it_is_not_defined():
    """The architectures without mlp_delta in the table are those that the model class refuses."""
    layouts = {name: layouts_of(tiny_model(name).config) for name in ARCHITECTURES}
    without = {
        name for name, found in layouts.items() if not all(layout.branch for layout in found.blocks)
    }
    assert without == NO_MLP_DELTA.keys() & ARCHITECTURES.keys()


@pytest.mark.parametrize("architecture", sorted(NO_SDPA.keys() & ARCHITECTURES.keys()))
def test_attention_that_the_source_class_lacks_is_refused(architecture):
    """Where the source class of the installed transformers has no sdpa, asking the merged model for
    it is the same error."""
    source = tiny_model(architecture)
    expected = (
        nullcontext()
        if source._supports_sdpa
        else pytest.raises(ValueError, match="does not support an attention")
    )
    for config in (source.config, EvoMergedConfig.from_sources([source.config], ["0:0", "0:2"])):
        with expected:
            AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
