"""passthrough: one source as it is, or scaled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..method import Call
from ..parameters import Parameter
from ..registry import register_method

if TYPE_CHECKING:
    from torch import Tensor

SCALE = Parameter(
    "scale", "number", 1.0, "source", "Factor of the source's tensors.", grouped=True, smooth=True
)


@register_method("passthrough", parameters=[SCALE], count=(1, 1))
def passthrough(base: Tensor | None, sources: list[Tensor], call: Call) -> Tensor:
    """The source itself, times ``scale``. Needs no base.

    Of use in stacks of slices, where layers are taken over unmerged.

    Example:
        >>> import torch
        >>> from hf_evomerge.merging import passthrough
        >>> passthrough([torch.tensor([1.0, -2.0])], scale=0.5)
        tensor([ 0.5000, -1.0000])
    """
    return sources[0].mul(call.sources[0]["scale"])
