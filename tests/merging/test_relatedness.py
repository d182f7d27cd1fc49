"""A merge says how its sources are related, and asks about a base that looks like one of them."""

import pytest
import torch

from hf_evomerge.merging.relatedness import Relatedness


@pytest.mark.parametrize(("base", "asks"), [("the base", False), ("a source", True)])
def test_a_base_that_was_swapped_with_a_source(base, asks):
    """Task vectors to the real base differ in direction; to a source in its place they share that
    source's own difference."""
    torch.manual_seed(0)
    root = torch.randn(10_000)
    japanese, maths = (root + 0.1 * torch.randn(10_000) for _ in range(2))
    start, ends = (root, (japanese, maths)) if base == "the base" else (japanese, (root, maths))
    related = Relatedness(["first", "second"], task_vectors=True)
    related.add(start, [end - start for end in ends])
    asked = "first and second differ from the base in the same direction"
    assert any(asked in line for line in related.warnings()) is asks
