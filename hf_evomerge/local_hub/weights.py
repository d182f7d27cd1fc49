"""How many numbers of which kind a repository's safetensors files hold, read from their headers."""

from __future__ import annotations

import json
import math
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

from .repository import Commit
from .store import Store
from .wire import Refusal

LARGEST_XET = 64 << 20  # bytes; a larger file of the Xet store is not written out to read its header
LARGEST_HEADER = 100 << 20


def parameters(store: Store, commit: Commit) -> dict[str, Any] | None:
    """Numbers per dtype and in all, of the safetensors files at the top; None where there are none that can be read."""
    found: Counter[str] = Counter()
    for path, entry in commit.tree.items():
        if not path.endswith(".safetensors") or "/" in path or path.startswith("adapter_"):
            continue
        if entry.xet and not store.objects.path(entry.sha256).exists() and entry.size > LARGEST_XET:
            return None
        xet = store.objects.xet.find(entry.sha256) if entry.xet else None
        try:
            found.update(_counts(store.objects.open_file(entry.sha256, xet)))
        except (Refusal, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
    return {"parameters": dict(found), "total": found.total()} if found else None


@lru_cache(maxsize=1024)
def _counts(file: Path) -> dict[str, int]:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > LARGEST_HEADER:
            raise ValueError("no safetensors file")
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    counts: Counter[str] = Counter()
    for entry in header.values():
        counts[str(entry["dtype"])] += math.prod(map(int, entry["shape"]))
    return dict(counts)
