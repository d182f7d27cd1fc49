"""Digests (sha256) of a checkpoint's files: they show whether it is still the one that was
measured. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from hashlib import file_digest
from pathlib import Path
from typing import Any

from ..errors import SourceError, told
from .checkpoint import Parent
from .lora import CONFIG_FILE, Adapter
from .model_folder import COMPANIONS

Digest = list[Any]
"""The sha256 of a file, and its size, times and inode when it was taken; of a repository the commit
alone."""


def digest_source(source: Parent, known: Mapping[str, Digest]) -> dict[str, Digest]:
    """The digests of everything that a source is loaded from: config, weights, tokenizer,
    templates, its adapter.

    Args:
        source: The source. Of a repository it is the commit, which stands for all its files.
        known: Digests from before. Weights of the same size, times and inode are not read again.
            The time of the last change (ctime) is among them: the one that tools set back or copy
            along says nothing. All other files are read.

    Raises:
        SourceError: A file cannot be read.
    """
    whole = source.whole
    weights = {info.file for info in whole.tensors.values()}
    own = sorted(file for file in weights if file.is_relative_to(source.folder))
    found = _digests(source, "", whole.companions, own, known)
    if (adapter := source.adapter) is not None:
        patterns = [CONFIG_FILE, *COMPANIONS]
        weight = [adapter.folder / adapter.file]
        found |= _digests(adapter, "adapter ", patterns, weight, known)
    return found


def _digests(
    of: Parent | Adapter,
    prefix: str,
    patterns: Iterable[str],
    weights: Iterable[Path],
    known: Mapping[str, Digest],
) -> dict[str, Digest]:
    """The digests of a folder's files, or the commit of a repository, by names with a prefix."""
    if of.repository is not None:
        return {f"{prefix}commit": [of.repository.commit]}
    matches = (file for pattern in patterns for file in sorted(of.folder.glob(pattern)))
    beside = [file for file in matches if file.is_file()]
    found: dict[str, Digest] = {}
    for file in dict.fromkeys([*beside, *weights]):
        name = f"{prefix}{file.relative_to(of.folder)}"
        with told(SourceError, OSError, f"{file}: cannot be read: "):
            # Hashing weights takes minutes, so a digest is taken over if nothing says that the file
            # was touched. Size and mtime may be set by anybody; the inode changes with a replaced
            # file, and ctime with any write or change of times, and no call sets it.
            facts = os.stat(file)
            seen = [facts.st_size, facts.st_mtime_ns, facts.st_ino, facts.st_ctime_ns]
            found[name] = known.get(name, [])
            if file.suffix != ".safetensors" or found[name][1:] != seen:
                with file.open("rb") as stream:
                    found[name] = [file_digest(stream, "sha256").hexdigest(), *seen]
    return found
