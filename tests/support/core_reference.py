"""Merges in core space computed by hand, in float64."""

import merge_reference as reference
import numpy as np


def ties(cores, weights):
    """TIES at density .5, of small matrices."""
    kept = [reference.trim(core.ravel(), 0.5) for core in cores]
    shape = cores[0].shape
    return reference.vote(np.zeros(cores[0].size), kept, weights, True).reshape(shape)


def basis(vectors):
    """Left singular vectors, the largest entry of each positive."""
    u = np.linalg.svd(vectors, full_matrices=False)[0]
    return u * np.sign(u[np.abs(u).argmax(0), range(u.shape[1])])


def by_hand(pairs, numbers, count, merge):
    """The change of one weight, in float64."""
    left = basis(np.hstack([b for b, _ in pairs.values()]))
    right = basis(np.vstack([a for _, a in pairs.values()]).T).T
    cores = [np.zeros((left.shape[1], len(right)))] * count
    for number, (b, a) in pairs.items():
        cores[number] = left.T @ b @ a @ right.T
    rows = []
    for row, vector in enumerate(left):
        of_row = [own[row * len(own) // len(left)] for own in numbers]
        rows.append(vector @ merge(cores, of_row) @ right)
    return np.stack(rows)
