"""Reads one hop of a path, such as ``0:3`` or ``0:3*0.5 + 1:4*0.5``."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache

from texts import SpaceError

_NUMBER = r"-?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_TERM = re.compile(r"\s*(\d{1,9}):(\d{1,9})(?:\s*\*\s*(" + _NUMBER + r"))?\s*", re.ASCII)
_RANGE = re.compile(r"\s*(\d{1,9}):(\d{1,9})(?:-(\d{1,9}))?(?:\s+x(\d{1,6}))?\s*", re.ASCII)
MAX_HOP_TEXT = 400
MAX_TERMS = 8

Term = tuple[int, int, float]  # source, layer, weight


def terms(hop: str) -> list[Term]:
    """The terms of a hop; raises `SpaceError` where it cannot be read."""
    if not isinstance(hop, str) or len(hop) > MAX_HOP_TEXT:
        raise SpaceError(f"A hop is a short text such as 0:3, not {hop!r:.40}.")
    found: list[Term] = []
    for part in re.split(r"(?<![eE])\+", hop):
        match = _TERM.fullmatch(part)
        if not match:
            raise SpaceError(f"The hop {hop!r:.60} cannot be read; write SOURCE:LAYER, such as 0:3.")
        weight = float(match[3] or 1)
        if not math.isfinite(weight) or abs(weight) >= 1e300:
            raise SpaceError(f"A weight in the hop {hop!r:.60} is not a finite number.")
        found.append((int(match[1]), int(match[2]), weight))
    if len(found) > MAX_TERMS:
        raise SpaceError(f"The hop {hop!r:.60} has {len(found)} terms; here it may have {MAX_TERMS}.")
    return found


def added(hops: Sequence[str], scales: Sequence[float], *, gated: bool) -> list[list[float]]:
    """How much each term adds to the stream, 1 being all that its layer would: its gate, or without gates its weight and scale.

    Hop k makes ``h <- sum_i w_i Layer_i(s h)``. A layer with a norm in front does not see the size of what it reads, so beside
    the embeddings term i of hop k counts ``w_i / m_k``, where m_k is the product of ``s`` and ``sum_i w_i`` up to it.

    Args:
        hops: The hops of a path.
        scales: A number for each.
        gated: Whether the layers have a norm in front and the scales multiply the stream.
    """
    found, size = [], 1.0
    for hop, scale in zip(hops, scales, strict=True):
        weights = [weight for _, _, weight in terms(hop)]
        size *= scale * sum(weights)
        gated = gated and 1e-9 < abs(size) < 1e9  # a scale of 0 leaves nothing of what was before
        found.append([abs(weight / size if gated else weight * scale) for weight in weights])
    return found


def expanded(hops: Sequence[str], most: int) -> list[str]:
    """A path with its ranges, such as ``0:0-7`` and ``1:4-7 x2``, written out as recipes read them; cut beyond `most` hops."""
    found: list[str] = []
    for hop in hops:
        match = _RANGE.fullmatch(hop) if isinstance(hop, str) else None
        if match is None or match[3] is match[4] is None:
            found.append(hop)
            continue
        first, last = int(match[2]), int(match[3] or match[2])
        layers = range(first, last + 1) if first <= last else range(first, last - 1, -1)
        for _ in range(min(int(match[4] or 1), most + 1)):
            found += [f"{int(match[1])}:{layer}" for layer in layers[: most + 1]]
            if len(found) > most:
                return found
    return found


def readable(path: object) -> tuple[str, ...]:
    """The hops of a path as a repository has it; none where one of them cannot be read."""
    if isinstance(path, list) and all(isinstance(hop, str) and _is_readable(hop) for hop in path):
        return tuple(path)
    return ()


@lru_cache(10_000)  # thousands of trials share the hops of a few layers
def _is_readable(hop: str) -> bool:
    try:
        return bool(terms(hop))
    except SpaceError:
        return False
