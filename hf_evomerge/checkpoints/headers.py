"""The headers of safetensors files: what tensors there are, without reading one. No torch."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SourceError, told
from .inside import check_size

if TYPE_CHECKING:
    import torch

STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
"""safetensors' names of the plain floating-point numbers, by torch's names."""


@dataclass(frozen=True)
class TensorInfo:
    """Dtype and shape of one tensor.

    Attributes:
        dtype: The safetensors name: ``F32``, ``BF16``, ``I64``, ...
        shape: Its shape.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def is_float(self) -> bool:
        """True where the tensor holds plain floating-point numbers, which can be merged."""
        return self.dtype in STORED.values()

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bits(self) -> int:
        """Bits of one element."""
        digits = re.search(r"\d+", self.dtype)
        return int(digits[0]) if digits else 8  # BOOL has no number in its name

    @property
    def bytes(self) -> int:
        """Bytes of all elements."""
        return self.numel * self.bits // 8

    def converted(self, dtype: str | None) -> TensorInfo:
        """The tensor in another dtype, such as ``bfloat16``, where it holds floating-point numbers
        and one is given."""
        return TensorInfo(
            STORED[dtype] if dtype is not None and self.is_float else self.dtype, self.shape
        )

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True)
class StoredTensor(TensorInfo):
    """Tensor as a safetensors header describes it.

    Attributes:
        file: The file that holds it.
        name: Its name there; empty where it is read under the same.
    """

    file: Path
    name: str = ""

    __str__ = TensorInfo.__str__


def torch_dtype(stored: str) -> torch.dtype | None:
    """torch's dtype for safetensors' name of one, such as ``BF16``; None where it is no plain
    floating-point number."""
    import torch

    names = {theirs: name for name, theirs in STORED.items()}
    return getattr(torch, names[stored]) if stored in names else None


def is_of_one_part(folder: str) -> bool:
    """Tell whether a folder holds a model without parts such as towers, which config and headers
    alone can describe."""
    file = Path(folder, "config.json")
    if not file.is_file():
        return False
    config = read_mapping(file, folder)
    parts = any(
        key.endswith("_config") and isinstance(value, dict) and "model_type" in value
        for key, value in config.items()
    )
    return config.get("model_type") == "evo_merged" or not (
        parts or config.get("is_encoder_decoder")
    )


def read_mapping(file: Path, where: str) -> dict[str, Any]:
    """A JSON file that came with a model; raises `SourceError`, naming `where`, unless it is there
    and holds a mapping."""
    with told(SourceError, (OSError, ValueError), f"{where} cannot be read: "):
        check_size(file)
        return parse_mapping(file.read_text(encoding="utf-8"), where)


def parse_mapping(text: str, where: str) -> dict[str, Any]:
    """A mapping in JSON; raises `SourceError`, naming `where`, for any other text."""
    with told(SourceError, (ValueError, RecursionError), f"{where} cannot be read: "):
        data = json.loads(text)
    if not isinstance(data, dict):
        raise SourceError(f"{where} holds {type(data).__name__}, not a mapping of keys to values")
    return data


def read_header(file: Path, owner: str = "") -> dict[str, StoredTensor]:
    """The tensors of one safetensors file, by reading its header only; raises `SourceError` where
    the file is damaged."""
    from safetensors import SafetensorError, safe_open

    where = f"{owner}: {file.name}" if owner else str(file)
    where += ": not a safetensors file, or damaged: "
    damages = (OSError, SafetensorError)
    with (
        told(SourceError, damages, where, "; download it again"),
        safe_open(str(file), framework="np") as opened,
    ):
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        return {
            name: StoredTensor(part.get_dtype(), tuple(part.get_shape()), file)
            for name, part in slices.items()
        }


def tensor_order(name: str) -> list[tuple[int, int | str]]:
    """Sort key of tensor names: layer 2 before layer 10. The same everywhere, whatever the order in
    a checkpoint."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name)]
