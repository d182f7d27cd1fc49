"""nearswap: towards the source where it is near the base
(https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..method import Call
from ..parameters import Parameter
from ..registry import register_method

if TYPE_CHECKING:
    from torch import Tensor

T = Parameter(
    "t", "number", 1e-4, "global", "The largest change of an element.", low=0.0, grouped=True
)


@register_method("nearswap", parameters=[T], task_vectors=True, count=(1, 1))
def nearswap(base: Tensor, vectors: list[Tensor], call: Call) -> Tensor:
    """The source where it differs from the base by at most t, else the base moved by t: ``base +
    min(1, t / abs(d)) d``.

    Example:
        >>> import torch
        >>> from hf_evomerge.merging import nearswap
        >>> nearswap(torch.zeros(2), [torch.tensor([0.5, -3.0])], t=1.0)
        tensor([ 0.5000, -1.0000])
    """
    t = call.options["t"]
    return vectors[0].clamp(-t, t).add_(base)
