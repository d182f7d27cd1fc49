"""The live executor: the same bits as on disk, written into a model that stays in memory."""

import itertools

import pytest
import torch
from method_cases import CASES, IDS
from refusals import refused
from slowly import slow_beyond
from transformers import AutoModel, GPT2Config, GPT2LMHeadModel, GPT2Model

from hf_evomerge.building.build import build_model
from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.errors import RecipeError, SourceError
from hf_evomerge.merging.live import LiveMerger

WAYS = {  # the family, the dtype of the result, and the memory limit
    "float32": ("family", None, 0),
    "bfloat16": ("half_family", None, 1 << 30),
    "bfloat16 to float32": ("half_family", "float32", 30_000),
    "float32 to bfloat16": ("family", "bfloat16", 1 << 30),
    "bfloat16 to float16": ("half_family", "float16", 0),
}
DIAGONAL = list(zip(IDS, itertools.cycle(WAYS), strict=False))


@pytest.mark.parametrize(("case", "way"), slow_beyond(DIAGONAL, itertools.product(IDS, WAYS)))
def test_live_equals_checkpoint(request, make_recipe, open_all, load, tmp_path, case, way):
    """A merge in memory and the same merge on disk are equal bit for bit, cached or not, also after
    other candidates."""
    method, parameters, options = CASES[IDS.index(case)]
    which, dtype, memory_limit = WAYS[way]
    folder = request.getfixturevalue(which)
    fields = {"base": method != "slerp", "dtype": dtype, "seed": 3}
    recipe = make_recipe(folder, method, parameters, options, len(parameters), **fields)
    expected = load(build_model(recipe, tmp_path / "out"))
    model = load(folder / "source0", dtype=expected.dtype)
    merger = LiveMerger(*open_all(recipe), method, options, 3, model, memory_limit=memory_limit)
    for values in (parameters[::-1], parameters):
        merger.apply(values)
    for (name, found), wanted in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(found, wanted), name


def merger_of(recipe, model, open_all):
    """A merger of what the recipe names."""
    part = recipe.merge
    return LiveMerger(*open_all(recipe), part.method, part.options, recipe.seed, model)


def test_a_model_stays_where_it_is(family, make_recipe, open_all, load):
    """The parameters are overwritten in place: the tied head stays tied, and what refers to them
    sees the merge."""
    model = load(family / "base")
    before = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    merger = merger_of(make_recipe(family, "task_arithmetic"), model, open_all)
    said = []
    for weight in (0, 0.7):
        merger.apply([{"weight": weight}, {"weight": weight}])
        with torch.no_grad():
            said.append(model(torch.arange(8)[None]).logits)
    with torch.no_grad():
        assert torch.equal(said[0], load(family / "base")(torch.arange(8)[None]).logits)
    assert not torch.equal(*said)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == before
    for parameter in model.parameters():
        assert parameter.requires_grad
        assert not parameter.is_inference()


def test_options_of_one_merge(family, make_recipe, open_all, load):
    """Options given to one merge hold for that merge alone."""
    model = load(family / "base")
    merger = merger_of(make_recipe(family, "slerp", base=False), model, open_all)
    sources = [load(family / f"source{number}") for number in range(2)]
    for options, same in (({"t": 1.0}, sources[1]), ({"t": 0.0}, sources[0]), ({}, None)):
        merger.apply([], options)
        for source in sources:
            pairs = zip(model.parameters(), source.parameters(), strict=True)
            equal = [torch.equal(*pair) for pair in pairs if pair[0].dim() > 1]
            assert all(equal) if source is same else not any(equal)


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        (
            "linear",
            [{"weight": {"default": 1, "blocks.1.mlp": -0.5}}, {"weight": 0.5}],
            "the weights of linear add up to 0; with normalize",
        ),
        ("ties", [{}, {"density": 2}], r"merge.parameters\[1\].density: 2 is out of range"),
    ],
)
def test_a_wrong_candidate_is_refused_and_changes_nothing(
    family, make_recipe, open_all, load, method, parameters, message
):
    """A candidate that is wrong raises before the first tensor is written, and the next one is
    fine."""
    model = load(family / "base")
    merger = merger_of(make_recipe(family, method), model, open_all)
    with refused(RecipeError, message):
        merger.apply(parameters)
    before = load(family / "base").state_dict()
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    merger.apply([{}, {}])


def test_raw_names_without_the_models_prefix(tmp_path):
    """Tensors saved without the prefix of the base model, as GPT-2's are, find their parameters."""
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=32, n_positions=16)
    parents = [GPT2Model(config) for _ in range(2)]
    for number, parent in enumerate(parents):
        parent.save_pretrained(tmp_path / str(number))
    model = GPT2LMHeadModel(config)
    sources = [open_source(str(tmp_path / name)) for name in "01"]
    LiveMerger(sources, None, "linear", {}, 0, model).apply([{"weight": 0}, {"weight": 1}])
    for name, parameter in parents[1].named_parameters():
        assert torch.equal(model.transformer.get_parameter(name), parameter)


def test_a_model_that_does_not_fit_is_refused(family, half_family, make_recipe, open_all, load):
    """A model with other shapes, or with parameters that no source has, is refused by the tensor's
    name."""
    for folder, model, message in (
        (
            family,
            load(half_family / "base"),
            "source0: has no tensor for the model's parameter lm_head.weight",
        ),
        (
            half_family,
            AutoModel.from_pretrained(half_family / "base"),
            "does not fit the model, a LlamaModel with no such parameter",
        ),
    ):
        with refused(SourceError, message):
            merger_of(make_recipe(folder, "linear", base=False), model, open_all)
