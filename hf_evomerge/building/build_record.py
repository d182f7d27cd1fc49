"""Record of a build, in a file beside the model: hashes that show later whether anything was
changed, and versions."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

from ..checkpoints.hashes import file_sha256
from ..errors import EvoMergeError
from ..recipes.recipe import RECIPE_FILE, Built

BUILD_FILE = "build.json"
_RECORDED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "adapter_config.json",
    RECIPE_FILE,
    "*.py",
    "model_index.json",
    "*/*.safetensors",
    "*/*.safetensors.index.json",
    "*/config.json",  # of components
)
_LIBRARIES = ("hf-evomerge", "huggingface_hub", "safetensors", "torch", "transformers")


def write_build_record(
    folder: Path, tensors: str | None = None, energy: dict[str, float] | None = None
) -> Built:
    """Hash the weights, the config, the recipe and the code of a model that has just been built,
    and keep it beside them.

    Reads everything once, several files at a time: about a second per gigabyte.

    Args:
        folder: The model.
        tensors: Account of every tensor of its sources.
        energy: Share that an adapter of a given rank keeps; see `Built`.

    Returns:
        What the record says.
    """
    built = Built(
        versions={name: version(name) for name in _LIBRARIES},
        sha256=_hashes(folder),
        tensors=tensors,
        energy=energy,
    )
    (folder / BUILD_FILE).write_text(
        built.model_dump_json(indent=2, exclude_none=True) + "\n", encoding="utf-8"
    )
    return built


def read_build_record(folder: Path) -> Built | None:
    """Read the record of a model folder's build; None where there is none.

    Raises:
        EvoMergeError: The record cannot be read.
    """
    file = folder / BUILD_FILE
    if not file.is_file():
        return None
    try:
        return Built.model_validate_json(file.read_bytes())
    except (OSError, ValueError) as cause:
        raise EvoMergeError(f"{file}: cannot be read; build the model again") from cause


def changed_since(folder: Path, built: Built) -> list[str]:
    """The names of the recorded files that are not what they were, are gone, or were added."""
    now = _hashes(folder)
    return sorted(
        name for name in now.keys() | built.sha256.keys() if now.get(name) != built.sha256.get(name)
    )


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(file for pattern in _RECORDED for file in folder.glob(pattern) if file.is_file())
    with ThreadPoolExecutor() as pool:
        return {
            file.relative_to(folder).as_posix(): sha
            for file, sha in zip(files, pool.map(file_sha256, files), strict=True)
        }
