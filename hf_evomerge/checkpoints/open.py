"""Opens the checkpoint that a reference names: a folder, a repository on the Hub, or a diffusion
pipeline."""

from __future__ import annotations

from pathlib import Path

from ..errors import SourceError, told
from ..recipes.names import is_folder
from ..recipes.recipe import SourceRef
from .lora import CONFIG_FILE, Adapter
from .model_folder import INDEX
from .pipeline import Pipeline
from .repository import find_folder
from .source import Source


def open_source(ref: SourceRef | str | Path, *, trust_remote_code: bool = False) -> Source:
    """Find the checkpoint. Of a repository only small files are fetched; the weights follow when
    the first is read.

    Args:
        ref: A reference from a recipe, or just its ``model``: a folder, or the id of a repository
            on the Hub. An adapter by itself is opened with the base that its config names.
        trust_remote_code: Whether the checkpoint's own Python files may be fetched, and run to read
            its config.

    Raises:
        SourceError: There is no such folder or repository, or it holds no config or no safetensors
            file.
    """
    ref = ref if isinstance(ref, SourceRef) else SourceRef(model=str(ref))
    folder, repository = find_folder(ref.model, ref.revision, code=trust_remote_code)
    if ref.adapter is None and is_adapter(folder):
        config = Adapter(folder, str(ref), repository).config
        model = config.get("base_model_name_or_path")
        revision = config.get("revision")
        known = (
            isinstance(model, str)
            and model not in ("", ref.model)
            and isinstance(revision, str | None)
        )
        if not known or (
            repository is not None and is_folder(str(model))
        ):  # a stranger's file names no folder of this machine
            where = "" if repository is None else " on the Hub"
            raise SourceError(
                f"{ref}: a LoRA adapter that names no base{where}; write {{model: ITS BASE, "
                f"adapter: {ref.model}}}"
            )
        named = {**ref.model_dump(), "model": model, "revision": revision}
        named |= {"adapter": ref.model, "adapter_revision": ref.revision}
        own = SourceRef.model_validate(named)
        with told(SourceError, SourceError, f"{ref}: the base that its {CONFIG_FILE} names: "):
            return open_source(own, trust_remote_code=trust_remote_code)
    adapter = Adapter.open(ref.adapter, ref.adapter_revision) if ref.adapter is not None else None
    kind = Pipeline if (folder / INDEX).is_file() else Source
    source = kind(
        folder, ref, repository=repository, adapter=adapter, trust_remote_code=trust_remote_code
    )
    source.check_files()
    return source


def config_name(folder: Path) -> str:
    """The file that says what is in a folder: a pipeline's, a model's or an adapter's; a model's
    where there is none."""
    return next(
        (name for name in (INDEX, "config.json", CONFIG_FILE) if (folder / name).is_file()),
        "config.json",
    )


def is_adapter(folder: Path) -> bool:
    """Tell whether a folder holds a LoRA adapter, and no model."""
    return config_name(folder) == CONFIG_FILE


def open_files(ref: SourceRef) -> Source:
    """The tensors in the files of a model, or of an adapter its own, to compare bits. Raises
    `SourceError`."""
    folder, repository = find_folder(ref.model, ref.revision)
    if not is_adapter(folder):
        return open_source(ref)
    source = Source(folder, ref, repository=repository)
    source.stem = Adapter(folder, str(ref), repository).file.removesuffix(".safetensors")
    return source
