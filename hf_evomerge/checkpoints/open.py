"""Opens the checkpoint that a reference names: a folder, a repository on the Hub, a GGUF file, or a diffusion pipeline."""

from __future__ import annotations

import os

from ..recipes.names import named_folder
from ..recipes.recipe import SourceRef
from .gguf import GgufFile
from .lora import Adapter
from .pipeline import INDEX, Pipeline
from .repository import find_folder
from .source import Source


def open_source(ref: SourceRef | str, *, trust_remote_code: bool = False) -> Source:
    """Find the checkpoint. Of a repository only small files are fetched; the weights follow when the first is read.

    Args:
        ref: A reference from a recipe, or just its ``model``: a folder, the id of a repository on the Hub, or a GGUF file.
        trust_remote_code: Whether the checkpoint's own Python files may be fetched, and run to read its config.

    Raises:
        SourceError: There is no such folder or repository, or it holds no config or no safetensors file, or the GGUF file
            cannot be read.
    """
    ref = SourceRef(model=ref) if isinstance(ref, str) else ref
    gguf, repository = None if ref.gguf is None else GgufFile.find(ref), None
    if gguf is not None:
        folder = gguf.dequantised(str(ref))
    else:
        folder, repository = find_folder(ref.model, ref.revision, code=trust_remote_code)
    adapter = Adapter.open(ref.adapter, ref.adapter_revision) if ref.adapter is not None else None
    kind = Pipeline if (folder / INDEX).is_file() else Source
    source = kind(folder, ref, repository=repository, gguf=gguf, adapter=adapter, trust_remote_code=trust_remote_code)
    source.check_files()
    return source


def pin_source(ref: SourceRef, *, trust_remote_code: bool = False) -> SourceRef:
    """`Source.pinned` of a reference; a folder's has nothing to pin, and is not opened.

    Raises:
        SourceError: As `open_source`.
    """
    names = [name for name in (ref.model, ref.adapter) if name is not None]
    if ref.gguf is None and all(os.path.isdir(named_folder(name)) for name in names):
        return ref
    return open_source(ref, trust_remote_code=trust_remote_code).pinned
