"""How two checkpoints are said to differ, against numpy's own float64."""

import json
import math

import numpy as np
import pytest
import torch
from classes import save_tensors, tensors_of

from hf_evomerge.checkpoints import diff
from hf_evomerge.checkpoints.diff import diff_models


def _vector(tensors, names):
    """The tensors of some names as one vector."""
    return np.concatenate([tensors[name].double().numpy().ravel() for name in names])


def _cosine(x, y):
    """Numpy's word on the angle of two vectors."""
    return x @ y / np.linalg.norm(x) / np.linalg.norm(y)


@pytest.mark.parametrize("family", ["tiny", "tiny_half"])
def test_the_numbers_are_numpys(family, request, monkeypatch):
    """Every layer group and the whole, with and without a base, in slices that cut tensors, is as
    numpy has it."""
    monkeypatch.setattr(diff, "SLICE", 37)
    folder = request.getfixturevalue(family)
    a, b, base = (tensors_of(folder / name) for name in ("a", "b", "base"))
    found = diff_models(folder / "a", folder / "b", base=folder / "base")
    assert found.notes == []
    assert [row.name for row in found.groups] == ["embed", "blocks.0", "blocks.1", "head"]
    groups = {
        "embed": ["model.embed_tokens.weight"],
        "head": ["model.norm.weight", "lm_head.weight"],
        "all": list(a),
    }
    groups |= {f"blocks.{i}": [name for name in a if f"layers.{i}." in name] for i in range(2)}
    for row in [found.total, *found.groups]:
        names = groups[row.name]
        x, y, origin = (_vector(each, names) for each in (a, b, base))
        assert row.elements == x.size
        assert [row.distance, row.cosine, row.task_a, row.task_b, row.task_cosine] == pytest.approx(
            [
                np.linalg.norm(y - x) / np.linalg.norm(x),
                _cosine(x, y),
                np.linalg.norm(x - origin) / np.linalg.norm(origin),
                np.linalg.norm(y - origin) / np.linalg.norm(origin),
                _cosine(x - origin, y - origin),
            ],
            rel=1e-11,
        )
    plain = diff_models(folder / "a", folder / "b")
    assert plain.total.distance == found.total.distance
    assert (plain.total.task_cosine, plain.base, plain.warning) == (None, None, "")


def test_numbers_worked_out_by_hand(tmp_path):
    """Lengths of 5 at a right angle differ by the root of 2; zeros have no angle; blocks come in
    the order of numbers."""
    same = {"layers.9.w": torch.zeros(2), "lm_head.weight": torch.ones(1)}
    folders = [
        save_tensors(tmp_path / name, {"layers.10.w": torch.tensor(values), **same})
        for name, values in (("a", [3.0, 4.0, 0.0]), ("b", [-4.0, 3.0, 0.0]))
    ]
    found = diff_models(*folders)
    assert {row.name: (row.elements, row.distance, row.cosine) for row in found.groups} == {
        "blocks.9": (2, None, None),
        "blocks.10": (3, pytest.approx(math.sqrt(2)), 0),
        "head": (1, 0, 1),
    }
    assert [row.name for row in found.groups] == ["blocks.9", "blocks.10", "head"]


def test_what_cannot_be_compared_is_named(tmp_path):
    """Missing tensors, other shapes, integers and values that are not finite are notes, and count
    for nothing."""
    shared = {
        "w": torch.ones(2),
        "ids": torch.arange(3),
        "embed.weight": torch.ones(2, 2),
        "bad": torch.tensor([1.0, math.inf]),
    }
    a = save_tensors(tmp_path / "a", {**shared, "mine": torch.ones(1), "new": torch.ones(1)})
    b = save_tensors(
        tmp_path / "b",
        {**shared, "embed.weight": torch.ones(3, 2), "yours": torch.ones(1), "new": torch.ones(1)},
    )
    base = save_tensors(tmp_path / "base", {"w": torch.full((2,), 2.0), "bad": torch.ones(2)})
    found = diff_models(a, b, base=base)
    assert found.notes == [
        "bad: holds values that are not finite numbers",
        "embed.weight: shape [2, 2] in A, [3, 2] in B",
        "ids: I64 in A, I64 in B; only plain floating-point numbers are compared",
        "mine: not in B",
        "task vectors of new: not in the base",
        "yours: not in A",
    ]
    assert found.total.elements == 3
    assert found.total.task_a == pytest.approx(1 / 2)
    json.loads(found.to_json())
    assert "not compared: mine: not in B" in str(found)
    nothing = diff_models(a, save_tensors(tmp_path / "other", {"x": torch.ones(1)}))
    assert nothing.total.elements == 0
    assert nothing.total.distance is None
    json.loads(nothing.to_json())


@pytest.mark.parametrize(("noise", "warned"), [(0.1, False), (10.0, True)])
def test_strangers_are_warned_of(noise, warned, tmp_path):
    """Task vectors as large as the weights bring one line of warning; those of fine-tunes bring
    none."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(400, generator=generator)
    for name, size in (("base", 0.0), ("a", noise), ("b", noise)):
        other = torch.randn(400, generator=generator)
        save_tensors(tmp_path / name, {"w": base + size * other})
    found = diff_models(tmp_path / "a", tmp_path / "b", base=tmp_path / "base")
    assert bool(found.warning) == warned
    assert str(found).count("warning: ") == str(found).count("common ancestor") == warned
