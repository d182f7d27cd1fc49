"""Trains a family of specialists into a folder: what is there is not trained again."""

from __future__ import annotations

from pathlib import Path

import torch
from specialists.sight import add_sight
from specialists.train import family, save


def train_family(folder: Path, seed: int, *, sight: bool) -> None:
    """Train the models of a family that its folder lacks, on one core."""
    torch.set_num_threads(1)
    if not (folder / "japanese" / "config.json").exists():  # trained last
        for name, model in family(seed):
            save(model, folder / name)
    if sight and not (folder / "sight" / "config.json").exists():
        add_sight(folder, seed)
