"""Digests (sha256) of a checkpoint's files: they show whether it is still the one that was
measured. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from hashlib import file_digest
from pathlib import Path
from typing import Any

from ..errors import SourceError
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
    if source.repository is not None:
        found = {"commit": [source.repository.commit]}
    else:
        whole = source.whole
        matches = (
            file for pattern in whole.companions for file in sorted(source.folder.glob(pattern))
        )
        beside = list(dict.fromkeys(file for file in matches if file.is_file()))
        weights = sorted(
            {
                info.file
                for info in whole.tensors.values()
                if info.file.is_relative_to(source.folder)
            }
        )
        found = _digests(source.folder, [*beside, *weights], known)
    if source.adapter is not None:
        found |= {
            f"adapter {name}": digest for name, digest in _adapter(source.adapter, known).items()
        }
    return found


def _adapter(adapter: Adapter, known: Mapping[str, Digest]) -> dict[str, Digest]:
    if adapter.repository is not None:
        return {"commit": [adapter.repository.commit]}
    own = {
        name.removeprefix("adapter "): digest
        for name, digest in known.items()
        if name.startswith("adapter ")
    }
    files = [
        adapter.folder / name for name in ([CONFIG_FILE] if adapter.config else []) + [adapter.file]
    ]
    files += [
        file
        for pattern in COMPANIONS
        for file in sorted(adapter.folder.glob(pattern))
        if file.is_file()
    ]
    return _digests(adapter.folder, files, own)


def _digests(folder: Path, files: Iterable[Path], known: Mapping[str, Digest]) -> dict[str, Digest]:
    found: dict[str, Digest] = {}
    for file in files:
        name = str(file.relative_to(folder))
        try:
            # Hashing weights takes minutes, so a digest is taken over if nothing says that the file
            # was touched. Size and mtime may be set by anybody; the inode changes with a replaced
            # file, and ctime with any write or change of times, and no call sets it.
            facts = os.stat(file)
            seen = [facts.st_size, facts.st_mtime_ns, facts.st_ino, facts.st_ctime_ns]
            before = known.get(name, [])
            if file.suffix == ".safetensors" and before[1:] == seen:
                found[name] = before
                continue
            with file.open("rb") as stream:
                found[name] = [file_digest(stream, "sha256").hexdigest(), *seen]
        except OSError as cause:
            raise SourceError(f"{file}: cannot be read: {cause}") from cause
    return found
