"""Finds the common ancestor of fine-tunes in what their cards and configs say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import yaml

from ...checkpoints.checkpoint import Parent
from ...checkpoints.headers import read_mapping
from ...errors import SourceError
from ...recipes.names import is_folder
from ...recipes.recipe import SourceRef, labels_of


def named_base(sources: Sequence[Parent]) -> tuple[SourceRef | None, str]:
    """Read which base the cards and configs of some fine-tunes name.

    Args:
        sources: The fine-tunes. Of a repository the card is fetched.

    Returns:
        The base that all of them name that name one, None where there is none or they disagree; and
        who names what, in words.
    """
    named: dict[str, list[str]] = {}
    for label, source in zip(labels_of([each.ref for each in sources]), sources, strict=True):
        for name in _stated(source):
            named.setdefault(name, []).append(label)
    words = "; ".join(f"{' and '.join(by)}: {name}" for name, by in named.items())
    return SourceRef(model=next(iter(named))) if len(named) == 1 else None, words


def _stated(source: Parent) -> Iterator[str]:
    """The base that a model names: in its card (``base_model``), else in its config."""
    config: dict[str, Any] = {}
    with suppress(SourceError):
        config = read_mapping(source.folder / "config.json", str(source))
    keys = ("base_model", "_name_or_path")
    for name in (_card(source).get("base_model"), *(config.get(key) for key in keys)):
        name = name[0] if isinstance(name, list) and len(name) == 1 else name
        # a stranger's file names no folder of this machine
        is_strange = source.repository is not None and is_folder(str(name))
        if isinstance(name, str) and name not in ("", source.ref.model) and not is_strange:
            yield name
            return


def _card(source: Parent) -> dict[str, Any]:
    """Metadata of a model's card; empty where it has none that can be read."""
    from huggingface_hub import metadata_load

    file = source.folder / "README.md"
    try:
        if source.repository is not None:
            source.repository.fetch([file.name])
        return metadata_load(file) or {}
    except (OSError, ValueError, yaml.YAMLError, SourceError):
        return {}
