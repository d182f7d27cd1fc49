"""The merge methods once more, in float64 numpy and without regard to speed: what the tests compare
with.

Written from the formulas alone; shares no code with the package.
"""

import hashlib
import math
from itertools import combinations

import numpy as np


def random_field(seed, source, name, count):
    """DARE's 16-bit random numbers, all of them, from the beginning."""
    key = int.from_bytes(
        hashlib.sha256(f"{seed}\0{source}\0{name}".encode()).digest()[:16], "little"
    )
    words = np.random.Philox(key=key, counter=0).random_raw(math.ceil(count / 4))
    return words.view("<u2")[:count].astype(int)


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


def breadcrumbs(delta, density, gamma, rescale="none"):
    """Without the largest and the smallest; of equal magnitudes the first counts as larger."""
    if density >= 1:
        return delta
    target = int(density * delta.size)
    top = int(gamma * delta.size)
    bottom = max(0, delta.size - target - top)
    order = np.argsort(-np.abs(delta), kind="stable")[::-1]
    kept = np.zeros_like(delta)
    chosen = order[bottom : bottom + target]
    kept[chosen] = delta[chosen]
    return rescaled(delta, kept, rescale, density)


def della(delta, density, epsilon, field, rescale="l1"):
    """DELLA's MagPrune on a matrix, with its random numbers handed in; of equal magnitudes the
    first counts as smaller."""
    if density >= 1 or density <= 0:
        return delta * density
    rows = delta if delta.ndim > 1 else delta[None]
    kept = np.zeros_like(rows)
    numbers = np.reshape(field, rows.shape)
    for row in range(rows.shape[0]):
        for rank, column in enumerate(np.argsort(np.abs(rows[row]), kind="stable")):
            relative = rank / (rows.shape[1] - 1) if rows.shape[1] > 1 else 0.5
            probability = np.clip(density + epsilon * (2 * relative - 1), 0, 1)
            limit = round(probability * 65536)
            if numbers[row, column] < limit:
                factor = 65536 / limit if rescale == "expected" else 1
                kept[row, column] = rows[row, column] * factor
    return rescaled(delta, kept.reshape(delta.shape), "l1" if rescale == "l1" else "none", density)


def model_stock(base, sources, filter_wise=False):
    """Between the base and the mean, by the mean cosine of the angles."""
    if filter_wise and base.ndim > 1:
        rows = [model_stock(base[i], [x[i] for x in sources]) for i in range(base.shape[0])]
        return np.stack(rows)
    vectors = [(x - base).ravel() for x in sources]
    cosines = [
        (left @ right) / max(np.linalg.norm(left) * np.linalg.norm(right), 1e-6)
        for left, right in combinations(vectors, 2)
    ]
    cosine = np.mean(cosines)
    denominator = (len(sources) - 1) * cosine + 1
    t = len(sources) * cosine / denominator if abs(denominator) >= 1e-6 else 0.0
    return (1 - t) * base + t * np.mean(sources, axis=0)


def sce(base, sources, select_topk=1.0, floor=1e-6):
    """Select by variance, weigh by squares, erase the minority's signs."""
    deltas = np.stack([x - base for x in sources])
    if select_topk < 1:
        variances = ((deltas - deltas.mean(axis=0)) ** 2).mean(axis=0)
        k = int((variances != 0).sum() * select_topk)
        keep = np.zeros(base.size, bool)
        keep[np.argsort(-variances.ravel(), kind="stable")[:k]] = True
        deltas = deltas * keep.reshape(base.shape)
    energies = (deltas**2).mean(axis=tuple(range(1, deltas.ndim)))
    small = energies.sum() <= floor
    weights = np.full(len(sources), 1 / len(sources)) if small else energies / energies.sum()
    out = np.array(base)
    for position in np.ndindex(base.shape):
        column = deltas[(slice(None), *position)]
        positive = column.sum() >= 0
        agree = (column != 0) & ((column > 0) == positive)
        if agree.any():
            out[position] += np.average(column[agree], weights=weights[agree])
    return out


def arc(first, second, t):
    """Spherical interpolation of two vectors; straight only where they are all but parallel."""
    lengths = max(np.linalg.norm(first), 1e-7) * max(np.linalg.norm(second), 1e-7)
    cosine = np.clip(np.sum(first * second) / lengths, -1, 1)
    if 1 - cosine * cosine <= 1e-16:
        return first + t * (second - first)
    theta = np.arccos(cosine)
    return (np.sin(theta - t * theta) * first + np.sin(t * theta) * second) / np.sin(theta)


def nuslerp(base, first, second, weights, flatten=True, row_wise=False):
    """Along the arc between two tensors, or two differences to a base."""
    if base is not None:
        return base + nuslerp(None, first - base, second - base, weights, flatten, row_wise)
    t = weights[1] / sum(weights) if abs(sum(weights)) > 1e-6 else 0.5
    if flatten or first.ndim == 1:
        return arc(first, second, t)
    if row_wise:
        return np.stack([arc(first[:, j], second[:, j], t) for j in range(first.shape[1])], axis=1)
    return np.stack([arc(first[i], second[i], t) for i in range(first.shape[0])])


def multislerp(base, sources, weights, normalize=True):
    """The method step by step: the mean, the tangent space there, and back to the sphere."""
    if base is not None:
        return base + multislerp(None, [x - base for x in sources], weights, normalize)
    if len(sources) == 1:
        return sources[0]
    if normalize:
        weights = [w / sum(weights) for w in weights]
    lengths = [np.linalg.norm(x) for x in sources]
    units = [x / (length + 1e-8) for x, length in zip(sources, lengths, strict=True)]
    centre = sum(w * u for w, u in zip(weights, units, strict=True))
    if np.linalg.norm(centre) < 1e-7:
        return sum(w * x for w, x in zip(weights, sources, strict=True))
    centre = centre / np.linalg.norm(centre)
    step = sum(w * (u - np.sum(u * centre) * centre) for w, u in zip(weights, units, strict=True))
    size = np.linalg.norm(step) + 1e-8
    there = np.cos(size) * centre + np.sin(size) / size * step
    return there * sum(w * length for w, length in zip(weights, lengths, strict=True))


def karcher(sources, weights, max_iter=10, tol=1e-5):
    """Riemannian gradient descent on the sphere, with whole vectors."""
    if len(sources) == 1:
        return sources[0]
    alphas = np.array(weights) / sum(weights)
    lengths = np.array([np.linalg.norm(x) for x in sources])
    there = [i for i in range(len(sources)) if lengths[i] > tol and alphas[i] > 0]
    if not there:
        return np.zeros_like(sources[0])
    units = [sources[i].ravel() / lengths[i] for i in there]
    shares = [alphas[i] / alphas[there].sum() for i in there]
    point = sum(share * unit for share, unit in zip(shares, units, strict=True))
    point = point / np.linalg.norm(point) if np.linalg.norm(point) >= tol else units[0]
    for _ in range(max_iter):
        step = np.zeros_like(point)
        for share, unit in zip(shares, units, strict=True):
            cosine = np.clip(point @ unit, -1, 1)
            angle = np.arccos(cosine)
            if angle >= tol:
                step = step + share * angle / np.sin(angle) * (unit - cosine * point)
        size = np.linalg.norm(step)
        if size < tol:
            break
        point = np.cos(size) * point + np.sin(size) * step / size
        point = point / np.linalg.norm(point)
    return (alphas @ lengths) * point.reshape(sources[0].shape)


def nearswap(base, source, t):
    """Towards the source, the more the nearer it is."""
    share = np.clip(t / np.maximum(np.abs(source - base), 1e-6), 0, 1)
    return share * source + (1 - share) * base


def ram(base, sources, epsilon=1e-5):
    """The mean over the sources that change an element, one element at a time."""
    out = np.array(base)
    for place in range(base.size):
        steps = [source.flat[place] - base.flat[place] for source in sources]
        steps = [step for step in steps if abs(step) > epsilon]
        out.flat[place] += sum(steps) / max(len(steps), 1)
    return out
