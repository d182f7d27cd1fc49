"""The merge methods once more, in float64 numpy and without regard to speed: what the tests compare with.

Written from the formulas alone; shares no code with the package.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np


def random_field(seed: int, source: int, name: str, count: int) -> np.ndarray:
    """DARE's 16-bit random numbers, all of them, from the beginning."""
    key = int.from_bytes(hashlib.sha256(f"{seed}\0{source}\0{name}".encode()).digest()[:16], "little")
    words = np.random.Philox(key=key, counter=0).random_raw(math.ceil(count / 4))
    out = []
    for word in words.tolist():
        out += [(word >> shift) & 0xFFFF for shift in (0, 16, 32, 48)]
    return np.array(out[:count])


def linear(sources, weights, normalize=True):
    """The weighted mean or sum."""
    total = sum(w * x for w, x in zip(weights, sources, strict=True))
    return total / sum(weights) if normalize else total


def slerp(first, second, t):
    """Spherical interpolation."""
    cosine = (first * second).sum() / np.sqrt((first**2).sum() * (second**2).sum())
    if abs(cosine) > 0.9995:
        return (1 - t) * first + t * second
    theta = np.arccos(cosine)
    return (np.sin((1 - t) * theta) * first + np.sin(t * theta) * second) / np.sin(theta)


def task_arithmetic(base, sources, weights, normalize=False, lam=1.0):
    """Base plus weighted differences."""
    mixed = sum(w * (x - base) for w, x in zip(weights, sources, strict=True))
    if normalize:
        mixed = mixed / (sum(weights) if abs(sum(weights)) > 1e-8 else 1)
    return base + lam * mixed


def trim(delta, density, rescale="none"):
    """The k largest; of equal ones the first."""
    k = delta.size if density >= 1 else 0 if density <= 0 else max(1, int(density * delta.size))
    order = np.argsort(-np.abs(delta), kind="stable")[:k]
    kept = np.zeros_like(delta)
    kept[order] = delta[order]
    return rescaled(delta, kept, rescale, density)


def drop(delta, density, field, rescale="l1"):
    """DARE with its random numbers handed in."""
    kept = np.where(field < round(density * 65536), delta, 0.0)
    return rescaled(delta, kept, rescale, density)


def rescaled(delta, kept, rescale, density):
    """Make up for what is gone."""
    if rescale == "l1" and np.abs(kept).sum() > 0:
        return kept * (np.abs(delta).sum() / np.abs(kept).sum())
    return kept / density if rescale == "expected" and density > 0 else kept


def vote(base, kept, weights, normalize, lam=1.0):
    """TIES' election, element by element."""
    out = np.array(base)
    for position in range(out.size):
        parts = [w * delta[position] for w, delta in zip(weights, kept, strict=True)]
        positive = sum(parts) >= 0
        agree = [i for i, part in enumerate(parts) if part != 0 and (part > 0) == positive]
        share = sum(weights[i] for i in agree)
        mixed = sum(parts[i] for i in agree)
        out[position] += lam * (mixed / (share if share != 0 else 1) if normalize else mixed)
    return out


def ties_paper(bases, sources, weights, densities, normalize=True, lam=1.0):
    """TIES as arXiv:2306.01708 has it: one vector per model, the mean a plain one, ties to the majority.

    Args:
        bases: The base's tensors, flat.
        sources: Per source, its tensors.
    """
    kept = [
        w * trim(np.concatenate([x - b for x, b in zip(source, bases, strict=True)]), density)
        for source, w, density in zip(sources, weights, densities, strict=True)
    ]
    total = sum(kept)
    majority = 1.0 if np.sign(total).sum() >= 0 else -1.0
    sign = np.where(total == 0, majority, np.sign(total))
    agree = [(np.sign(part) == sign) for part in kept]
    mixed = sum(part * keep for part, keep in zip(kept, agree, strict=True))
    mixed = mixed / np.maximum(sum(agree), 1) if normalize else mixed
    ends = np.cumsum([base.size for base in bases])[:-1]
    return [base + lam * part for base, part in zip(bases, np.split(mixed, ends), strict=True)]
