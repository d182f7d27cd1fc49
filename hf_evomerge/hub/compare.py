"""Comparison of a model that was built again with another of the same recipe: tensors, config and
code."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..checkpoints.hashes import file_sha256
from ..checkpoints.model_folder import INDEX
from ..checkpoints.open import config_name
from ..checkpoints.source import Source
from ..errors import one_line
from .card import read_json

# How the sources are called, which the recipe says, and who wrote the file.
_UNCOMPARED = ("sources", "transformers_version", "_name_or_path", "_diffusers_version")
PACKAGE = "hf-evomerge"


@dataclass(frozen=True)
class TensorDifference:
    """A tensor that came out otherwise: its name, how it differs in words, and the largest absolute
    difference.

    The last is None where the two cannot be subtracted.
    """

    name: str
    what: str
    largest: float | None = None


def compare_tensors(built: Source, other: Source) -> tuple[int, list[TensorDifference]]:
    """Count the tensors, and list those that differ. `other` is called the published one."""
    names = list(dict.fromkeys([*other.stored, *built.stored]))
    found = [_difference(name, built, other) for name in names]
    return len(names), [difference for difference in found if difference is not None]


def _difference(name: str, built: Source, published: Source) -> TensorDifference | None:
    import torch

    here = built.stored.get(name)
    there = published.stored.get(name)
    if here is None or there is None:
        return TensorDifference(
            name, "only in the published model" if here is None else "only in the rebuilt model"
        )
    if (here.dtype, here.shape) != (there.dtype, there.shape):
        return TensorDifference(name, f"{there} is published, {here} was rebuilt")
    a = built.read_stored(here, name)
    b = published.read_stored(there, name)
    bits = [
        tensor.contiguous().reshape(-1).view(torch.uint8).reshape(tensor.numel(), -1)
        for tensor in (a, b)
    ]
    count = int((bits[0] != bits[1]).any(dim=1).sum()) if a.numel() else 0
    if count == 0:
        return None
    distance = (a.double() - b.double()).abs()
    return TensorDifference(name, f"{count} of {a.numel()} numbers differ", float(distance.max()))


def config_files(folder: Path) -> list[str]:
    """``config.json``, or an adapter's; of a diffusion pipeline ``model_index.json``, and that of
    each component."""
    if (name := config_name(folder)) != INDEX:
        return [name]
    return [
        INDEX,
        *(file.relative_to(folder).as_posix() for file in sorted(folder.glob("*/*config.json"))),
    ]


def compare_configs(
    built: Path, published: Path, versions: Mapping[str, tuple[str, str]]
) -> list[str]:
    """List how one of the `config_files` differs. Another transformers writes more keys or fewer;
    that is no difference."""
    here = _compared(built)
    there = _compared(published)
    both = here.keys() & there.keys()
    keys = [key for key in {**here, **there} if key in both or "transformers" not in versions]
    return [
        f"{key}: {_json(there.get(key))} is published, the recipe gives {_json(here.get(key))}"
        for key in keys
        if here.get(key) != there.get(key)
    ]


def _compared(file: Path) -> dict[str, Any]:
    """The keys of a config that are compared."""
    flat = _flat(read_json(file))
    return {key: value for key, value in flat.items() if key.rpartition(".")[2] not in _UNCOMPARED}


def compare_code(
    built: Path, published: Mapping[str, Path], versions: Mapping[str, tuple[str, str]]
) -> tuple[list[str], list[str]]:
    """Compare the Python files of a published model, by their names, with those of a model that was
    built again.

    `versions` are those that were others when the model was built: ``{library: (then, now)}``.
    Gives what differs, and what could not be compared, one line each.
    """
    then, now = versions.get(PACKAGE, ("", ""))
    differ = []
    unknown = []
    for name, file in sorted(published.items()):
        if not (built / name).is_file():
            unknown.append(
                f"{name} is not part of {PACKAGE}; trust_remote_code may run it, so read it first"
            )
        elif file_sha256(file) == file_sha256(built / name):
            continue
        elif then:
            unknown.append(
                f"{name} is from {PACKAGE} {then}, and this is {now}; read it, or install "
                "that version"
            )
        else:
            differ.append(
                f"{name} is not that of {PACKAGE} {version(PACKAGE)}; trust_remote_code "
                "would run it"
            )
    return differ, unknown


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found.update(
            _flat(value, f"{prefix}{key}.")
            if isinstance(value, dict) and value
            else {f"{prefix}{key}": value}
        )
    return found


def _json(value: Any) -> str:
    return one_line(json.dumps(value, ensure_ascii=False), 80)
