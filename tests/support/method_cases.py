"""A case or more of every merge method, and how tests merge one tensor.

A new method joins the tests of this folder with its line in `CASES`.
"""

import numpy as np
import pytest
import torch
import yaml

from hf_evomerge.merging.arithmetic import TensorJob
from hf_evomerge.merging.checks import complete
from hf_evomerge.merging.registry import get_method

NAME = "model.layers.0.mlp.up_proj.weight"
CASES = [
    tuple(case)
    for case in yaml.safe_load("""
- [linear, &three [{weight: 0.6}, {weight: &grouped
    {embed: 0.3, blocks.0.attn: 0.9, blocks.0.mlp: 0.1, default: 0.6}}, {weight: -0.2}], {}]
- [slerp, [{}, {}], {t: *grouped}]
- [passthrough, [{scale: *grouped}], {}]
- [task_arithmetic, *three, {lambda: 0.8}]
- - ties
  - [{weight: 0.6, density: *grouped}, {weight: 0.9, density: 0.3}, {density: 0.0}]
  - {rescale: l1}
- - dare_linear
  - [{weight: 0.6, density: *grouped}, {weight: 0.9, density: 0.3}, {density: 1.0}]
  - {}
- - dare_ties
  - [{weight: *grouped, density: 0.5}, {weight: 0.9, density: 0.3}, {weight: 0}]
  - {normalize: true}
- - breadcrumbs
  - [{weight: 0.6, density: *grouped, gamma: 0.2}, {density: 0.4, gamma: *grouped}]
  - {rescale: l1}
- - breadcrumbs_ties
  - - {weight: 0.6, density: *grouped, gamma: 0.1}
    - {weight: 0.9, density: 0.3, gamma: 0.1}
    - {density: 1.0, gamma: 0.1}
  - {normalize: true}
- - della
  - - {weight: 0.6, density: *grouped, epsilon: 0.1}
    - {density: 0.5, epsilon: {head: 0.5, default: 0.2}}
  - {}
- - della_linear
  - - {weight: 0.6, density: *grouped, epsilon: 0.2}
    - {weight: 0.9, density: 0.3, epsilon: 0.2}
    - {density: 1.0, epsilon: 0.2}
  - {rescale: expected, lambda: 1.2}
- [model_stock, [{}, {}, {}], {}]
- [model_stock, [{}, {}], {filter_wise: true}]
- [sce, [{}, {}, {}], {select_topk: *grouped}]
- [nuslerp, [{weight: *grouped}, {weight: 0.3}], {}]
- [nuslerp, [{weight: *grouped}, {weight: 0.3}], {nuslerp_flatten: false}]
- - nuslerp
  - [{weight: 0.7}, {weight: *grouped}]
  - {nuslerp_flatten: false, nuslerp_row_wise: true}
- [multislerp, [{weight: 0.6}, {weight: *grouped}, {weight: 0.2}], {}]
- [karcher, [{weight: 0.6}, {weight: *grouped}, {}], {}]
- - linear
  - [{weight: [0.2, 0.9]}, {weight: {"*up_proj*": [0.5, 0.1], default: 0.4}}]
  - {}
- [nearswap, [{}], {t: {embed: 0.001, default: 0.01}}]
- [ram, [{}, {}, {}], {epsilon: 0.05}]
""")
]
IDS = [f"{method}-{position}" for position, (method, *_) in enumerate(CASES)]
every_case = pytest.mark.parametrize(("method", "parameters", "options"), CASES, ids=IDS)
RANDOM = ["dare_linear", "dare_ties", "della", "della_linear"]


def merge(
    method,
    base,
    sources,
    parameters=(),
    options=None,
    *,
    seed=0,
    name=NAME,
    keep=False,
    slice_size=1 << 17,
):
    """Merge one tensor in float32."""
    chosen = get_method(method)
    job = TensorJob(name, chosen, base, sources, seed=seed, keep=keep)
    out = torch.empty(sources[0].shape)
    given = complete(
        chosen, parameters, options or {}, sources=len(sources), has_base=True, layer_count=4
    )
    job.run(*given, out, slice_size=slice_size)
    return out


def check_part(part, **known):
    """Check a merge part and return its method."""
    method = get_method(part.method)
    complete(method, part.parameters, part.options, **known)
    return method


def tensors(count=3, size=999, spread=0.1, seed=0):
    """A base and sources, of numbers that are not round."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(size, generator=generator)
    return base, [base + spread * torch.randn(size, generator=generator) for _ in range(count)]


def exact(tensor):
    """The same numbers in float64."""
    return tensor.double().numpy()


def deltas(base, sources):
    """The task vectors as float32 makes them, in float64."""
    return [exact(source - base) for source in sources]


def assert_close(found, expected, tolerance=2e-6):
    """Equal up to a few roundings of float32."""
    assert np.abs(exact(found) - expected).max() < tolerance


def stepped(value, key, change):
    """A number of a recipe with a change: at a layer group, or at one run of a tensor's rows."""
    if key is None:
        return value + change
    if isinstance(key, str):
        return {**value, key: value[key] + change}
    name, run = key
    return {**value, name: [own + change * (at == run) for at, own in enumerate(value[name])]}


def check_slopes(slopes, parameters, options, measure, step, **tolerance):
    """Compare the slope of every number of a recipe with the difference between two merges, of
    which `measure` gives a number."""
    for (name, source, key), slope in slopes.items():
        ends = []
        for change in (step, -step):
            values = [dict(each) for each in parameters]
            chosen = dict(options)
            target = chosen if source is None else values[source]
            target[name] = stepped(target.get(name, 1.0), key, change)
            ends.append(measure(values, chosen))
        wanted = (ends[0] - ends[1]) / (2 * step)
        assert slope == pytest.approx(wanted, **tolerance), (name, source, key)
