"""Checkpoints of one training run as sources: the folders of a folder, or the revisions of a
repository."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import Field

from ..errors import RecipeError, one_line, told
from .names import is_folder, named_folder
from .strict_yaml import StrictModel, validate

_LAST = re.compile(r"last +([1-9]\d{0,5})")


class Run(StrictModel):
    """Checkpoints of a training run, in place of a list of sources; they become that list when the
    file is read."""

    run: str = Field(min_length=1)
    """A folder of checkpoints, such as ``checkpoint-500`` of transformers' Trainer; or a repository
    on the Hub, whose branches and tags they are. Their order is that of the last number in their
    names."""
    checkpoints: str | list[str] = "all"
    """``all`` and ``last 12`` of those with a number in their names, a pattern such as ``step-*``,
    or a list of names."""


def expanded(sources: Any) -> Any:
    """Turn a run into references to its checkpoints; a list stays a list. Raises `ValueError`."""
    if not isinstance(sources, Mapping):
        return sources
    with told(ValueError, RecipeError):
        run = validate(Run, dict(sources), RecipeError)
    names = run.checkpoints
    wanted = run.checkpoints
    if isinstance(wanted, str):
        there = sorted(_names(run.run), key=_step)
        last = _LAST.fullmatch(wanted)
        numbered = [name for name in there if _step(name)[0] >= 0]  # `final` has no place
        # `last 5` counts by step, and only what has one; a pattern goes by name.
        if last:
            names = numbered[-int(last[1]) :]
        elif wanted == "all":
            names = numbered
        else:
            names = [name for name in there if fnmatchcase(name, wanted)]
        if len(names) < 2:
            found = ", ".join(there[:4]) or "none"
            if len(there) > 4:
                found += ", ..."
            raise ValueError(
                f"{run.run}: {len(names)} of its checkpoints are {wanted!r}, and a merge "
                f"takes 2; it has {found}"
            )
    if is_folder(run.run):
        home = named_folder(run.run).resolve()
        for name in names:
            if home not in Path(os.path.realpath(home / name)).parents:
                raise ValueError(
                    f"{run.run}: {one_line(name)} is not in it; list checkpoints as sources"
                )
        return [{"model": os.path.join(run.run, name)} for name in names]
    return [{"model": run.run, "revision": name} for name in names]


def _names(run: str) -> list[str]:
    if is_folder(run):
        folder = named_folder(run)
        files = ("config.json", "adapter_config.json")
        if not folder.is_dir():
            raise ValueError(f"{run}: no such folder of checkpoints")
        there = []
        for each in folder.iterdir():
            if not any((each / file).is_file() for file in files):
                continue
            if each.resolve().parent != folder.resolve():
                raise ValueError(
                    f"{each}: a link to {each.resolve()}, which is not in {run}; list "
                    "checkpoints as sources"
                )
            if not each.is_symlink():  # `latest` would count twice
                there.append(each.name)
        return there
    from huggingface_hub import list_repo_refs

    # the network has many kinds
    with told(ValueError, Exception, f"{run}: its branches and tags cannot be listed: "):
        refs = list_repo_refs(run)
    return [ref.name for ref in (*refs.branches, *refs.tags) if ref.name != "main"]


def _step(name: str) -> tuple[int, str]:
    """Sort key of a checkpoint: the last number of its name."""
    numbers = re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else -1, name
