"""slerp: along the great circle between two models (Shoemake 1985, "Animating rotation with
quaternion curves")."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..method import Call
from ..parameters import Parameter
from ..registry import register_method
from .common import weighted_sum

if TYPE_CHECKING:
    from torch import Tensor

    from ..arithmetic import TensorJob

T = Parameter(
    "t",
    "number",
    0.5,
    "global",
    "How far along the way: 0 is the first model, 1 the second.",
    low=0.0,
    high=1.0,
    search=(0.0, 1.0),
    grouped=True,
    smooth=True,
)
_PARALLEL = 0.9995  # |cos| above which the angle is too small to divide by its sine


# Shoemake 1985: the great circle through two unit vectors at an angle theta is
#
#   sin((1 - t) theta) / sin(theta) u_0 + sin(t theta) / sin(theta) u_1   (1)
#
# As in mergekit the coefficients multiply the raw tensors, not their unit vectors, so the length
# goes from |x_0| to |x_1|. For a small angle both quotients are 0 / 0 and the arc is a line: 1 - t
# and t.
def coefficients(inputs: TensorJob, call: Call) -> list[float]:
    """The factors of the two tensors, from the angle between them as flat vectors."""
    t = call.options["t"]
    dot = inputs.product(0, 1)
    first = inputs.product(0, 0)
    second = inputs.product(1, 1)
    cosine = dot / math.sqrt(first * second) if min(first, second) > 1e-16 else 1.0
    if abs(cosine) > _PARALLEL:
        return [1 - t, t]
    angle = math.acos(cosine)
    return [math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)]


@register_method("slerp", parameters=[T], prepare=coefficients, count=(2, 2))
def slerp(base: Tensor | None, models: list[Tensor], call: Call) -> Tensor:
    """Spherical interpolation between two models, per tensor: two sources, or the base (t = 0) and
    one source (t = 1).

    Coefficients ``sin((1-t) theta) / sin theta`` and ``sin(t theta) / sin theta`` on the raw
    tensors, theta being the angle between the whole flattened tensors; linear interpolation where
    they are nearly parallel (|cos| > 0.9995).

    Example:
        >>> import torch
        >>> from hf_evomerge.merging import slerp
        >>> slerp([torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])], t=0.5)
        tensor([0.7071, 0.7071])
    """
    return weighted_sum(models, call.prepared, call.owns)
