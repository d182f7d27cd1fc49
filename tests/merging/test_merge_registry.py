"""The registry of merge methods, and the checks of a recipe's merge part."""

import pytest
import torch
import yaml
from method_cases import check_part
from refusals import refused

from hf_evomerge import merging
from hf_evomerge.errors import EvoMergeError, RecipeError
from hf_evomerge.merging.parameters import Parameter
from hf_evomerge.merging.registry import all_methods, get_method, register_method
from hf_evomerge.recipes.layer_groups import one_of_each
from hf_evomerge.recipes.recipe import MergePart

NAMES = ["linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties"]


def part(method="dare_ties", **fields):
    """A merge part."""
    return MergePart(method=method, **fields)


def test_the_methods_of_the_field_are_there():
    """The names of the field are registered, with help for each parameter; what the paper evolves
    has bounds."""
    assert set(NAMES) <= set(all_methods())
    for method in all_methods().values():
        for part in (method, *method.parameters):
            assert part.help
            assert "|" not in part.help  # it goes into a table
        assert all(each.grouped for each in method.parameters if each.search)
    found = {p.name for name in NAMES for p in get_method(name).parameters if p.search is not None}
    assert found == {"weight", "density", "t"}


def test_an_unknown_method_is_refused_with_the_nearest_one():
    """A misspelt method is answered with the nearest one."""
    with refused(RecipeError, r"merge.method: 'tise' is not known; did you mean ties\?"):
        get_method("tise")


def test_a_duplicate_is_refused():
    """A second method of the same name is an error."""
    with refused(EvoMergeError, "merge method 'linear' is registered already"):
        register_method("linear")(lambda base, tensors, call: tensors[0])


def test_a_sum_has_the_parameters_of_a_sum():
    """A method that is no plain sum cannot say that it is one: gradients and adapters would leave
    the rest out."""
    with refused(EvoMergeError, "merge method 'mine' is no plain sum"):
        register_method("mine", is_sum=True)(lambda base, tensors, call: tensors[0])


def test_a_new_method_is_one_function(monkeypatch):
    """A method registered by a user is found, documented and checked like the others, and is a
    function of tensors too."""
    monkeypatch.setattr(merging, "METHODS", extended := dict(all_methods()))
    monkeypatch.setattr("hf_evomerge.merging.registry.METHODS", extended)
    size = Parameter("size", "number", 1.0, "global", "Factor.", low=0.0)

    @register_method("scaled", parameters=[size], count=(1, 1))
    def scaled(base, tensors, call):
        """The source times a number."""
        return tensors[0] * call.options["size"]

    assert get_method("scaled").help == "The source times a number."
    one = [torch.ones(1)]
    assert [merging.scaled(one).item(), merging.scaled(one, size=3).item()] == [1, 3]
    check_part(part("scaled", options={"size": 2}), sources=1, has_base=False)
    for size, sources, message in (
        (-1, 1, "options.size: -1.0 is out of range; give a number at least 0"),
        (1, 2, r"sources: scaled merges 1 model \(found 2\)"),
    ):
        with refused(RecipeError, f"merge.{message}"):
            check_part(part("scaled", options={"size": size}), sources=sources, has_base=False)


# A merge part, of dare_ties where it names no method.
REFUSED = [
    (
        "options: {lamda: 1}",
        r"merge.options.lamda: dare_ties has no such parameter here; it takes normalize, lambda",
    ),
    (
        "options: {weight: 1}",
        r"merge.options.weight: .*it belongs in merge.parameters, once per source",
    ),
    (
        "parameters: [{lambda: 1}, {}]",
        r"merge.parameters\[0\].lambda: .*it belongs in merge.options",
    ),
    ("parameters: [{}, {wieght: 1}]", r"merge.parameters\[1\].wieght: .*it takes weight, density"),
    (
        "parameters: [{}, {density: 1.5}]",
        r"merge.parameters\[1\].density: 1.5 is out of range; give a number from 0 to 1",
    ),
    ("options: {normalize: 'yes'}", r"merge.options.normalize: 'yes' is not true or false"),
    ("options: {rescale: l2}", r"merge.options.rescale: 'l2' is not one of l1, expected, none"),
    ("options: {lambda: true}", r"merge.options.lambda: True is not a finite number"),
    (
        "options: {lambda: {head: 1.0}}",
        r"merge.options.lambda: takes one value, not one per layer group",
    ),
    (
        "{method: task_arithmetic, parameters: [{density: 0.5}, {}]}",
        r"density: task_arithmetic has no such parameter here",
    ),
    (
        "parameters: [{weight: {block.0: 1}}, {}]",
        r"merge.parameters\[0\].weight: 'block.0' is not a layer group",
    ),
    ("parameters: [{weight: {}}, {}]", r"merge.parameters\[0\].weight: no layer groups"),
    (
        "parameters: [{weight: {embed: 1, head: 1}}, {}]",
        r"weight: no layer group names layers.0.self_attn.weight",
    ),
    (
        "parameters: [{weight: {default: 1, blocks.0-4: 1}}, {}]",
        r"blocks.0-4: there are 4 blocks, 0 to 3",
    ),
    (
        "parameters: [{weight: {default: 1, blocks.0-1: 1, blocks.1: 1}}, {}]",
        r"both name layers.1.self_attn.weight",
    ),
    (
        "{method: linear, parameters: [{weight: {default: 1, blocks.3.mlp: 0}}, {weight: 0}]}",
        "the weights of linear add up to 0",
    ),
    (
        "parameters: [{weight: []}, {}]",
        r"merge.parameters\[0\].weight: an empty list; give the numbers of the gradient",
    ),
    (
        "parameters: [{density: {'*mlp*': [0.5, -1], default: 1}}, {}]",
        r"density.\*mlp\*\[1\]: -1(.0)? is out of range",
    ),
    (
        "options: {lambda: [1.0, 2.0]}",
        r"merge.options.lambda: takes one value, not a gradient over the layers",
    ),
    (
        "{method: slerp, options: {t: {'*norm*': 0.1, default: 0.5}}}",
        r"merge.options.t: the pattern '\*norm\*' names no tensor",
    ),
]


@pytest.mark.parametrize(("wrong", "message"), REFUSED)
def test_a_wrong_part_is_refused(wrong, message):
    """Each mistake in a merge part is answered with its key, what was found and what to do."""
    wrong = part(**yaml.safe_load(wrong))
    with refused(RecipeError, message):
        check_part(wrong, sources=2, has_base=True, layer_count=4, names=one_of_each(4))


def test_a_base_is_asked_for():
    """Methods on task vectors need a base, and slerp needs one where there is but one source."""
    with refused(
        RecipeError, "base: ties works on differences to a common base; name the base model"
    ):
        check_part(part("ties"), sources=2, has_base=False)
    check_part(part("slerp"), sources=1, has_base=True)
    for sources, base in [(1, False), (3, False), (3, True)]:
        with refused(
            RecipeError,
            rf"slerp merges 2 models \(found {sources}\); give 2 sources, or one source and",
        ):
            check_part(part("slerp"), sources=sources, has_base=base)
