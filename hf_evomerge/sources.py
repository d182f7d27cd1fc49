"""A source: one parent checkpoint, on disk or on the Hub, read lazily by its raw safetensors names. Never pickle.

Knows the checkpoint's files, config and headers. Does not know what a merge is. torch is imported when the first tensor is
read, transformers when the config is.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import SourceError
from .recipe import SourceRef

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

ALLOWED_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.jinja", "*.model", "*.tiktoken"]
IGNORED_FILES = ["*/*.safetensors", "*/*.json", "*/*.txt", "*/*.model", "consolidated*.safetensors"]
FLOAT_DTYPES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}
_MAX_HEADER = 100_000_000  # bytes; the safetensors format's own limit
_SAME_SETTINGS = ("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "num_experts_per_tok")


@dataclass(frozen=True)
class TensorInfo:
    """What a safetensors header says of one tensor.

    Attributes:
        dtype: The safetensors name: ``F32``, ``BF16``, ``I64``, ...
        shape: Its shape.
        file: The file that holds it.
    """

    dtype: str
    shape: tuple[int, ...]
    file: Path

    @property
    def is_float(self) -> bool:
        """Whether the tensor holds plain floating-point numbers, which can be merged."""
        return self.dtype in FLOAT_DTYPES

    @property
    def numel(self) -> int:
        """Number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


class Source:
    """One parent checkpoint in a local folder.

    Args:
        folder: Where ``config.json`` and the ``.safetensors`` files are.
        ref: How the recipe names it; the folder itself by default.
    """

    def __init__(self, folder: str | Path, ref: SourceRef | None = None) -> None:
        self.folder = Path(folder)
        self.ref = ref if ref is not None else SourceRef(model=str(folder))
        self._handles: dict[Path, Any] = {}

    @classmethod
    def open(cls, ref: SourceRef | str) -> Source:
        """Find the checkpoint; download it (without pickle files or code) if it is not a folder.

        Args:
            ref: A reference from a recipe, or just its ``model``: a folder or the id of a repository on the Hub.

        Raises:
            SourceError: There is no such folder or repository, or it holds no config or no safetensors file.
        """
        ref = SourceRef(model=ref) if isinstance(ref, str) else ref
        folder = Path(ref.model).expanduser()
        if folder.is_dir():
            if ref.revision is not None:
                raise SourceError(f"{ref.model}: a folder has no revision (found {ref.revision!r}); leave it out")
        else:
            folder = _download(ref)
        source = cls(folder, ref)
        source._check_files()
        return source

    def __str__(self) -> str:
        return self.ref.model if self.ref.revision is None else f"{self.ref.model}@{self.ref.revision}"

    def __repr__(self) -> str:
        return f"Source({str(self)!r})"

    @cached_property
    def config(self) -> PretrainedConfig:
        """The checkpoint's config; custom code is never run."""
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(self.folder, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as cause:
            raise SourceError(f"{self}: config.json cannot be read: {_one_line(cause)}") from cause

    @property
    def text_config(self) -> PretrainedConfig:
        """The part of the config that describes the language model."""
        return self.config.get_text_config()

    @property
    def layer_count(self) -> int:
        """Number of transformer blocks."""
        return int(self.text_config.num_hidden_layers)

    @property
    def is_tied(self) -> bool:
        """Whether the output head is the embedding matrix."""
        return bool(getattr(self.config, "tie_word_embeddings", False))

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor by its raw name, from the headers alone; a tied head that is stored all the same is left out."""
        found: dict[str, TensorInfo] = {}
        for file in self._files():
            for name, info in read_header(file, str(self)).items():
                if name in found:
                    raise SourceError(f"{self}: tensor {name} is in {found[name].file.name} and in {file.name}; keep one")
                found[name] = info
        for missing in (name for name in self._index() if name not in found):
            raise SourceError(f"{self}: the index lists {missing}, which is in none of the files; download it again")
        if self.is_tied:
            found.pop("lm_head.weight", None)
        return found

    def get(self, name: str) -> torch.Tensor:
        """One tensor, memory-mapped: nothing is read before its values are used. Do not write to it."""
        from safetensors import SafetensorError, safe_open

        info = self.tensors.get(name)
        if info is None:
            raise SourceError(f"{self}: no tensor called {name}")
        try:
            if info.file not in self._handles:
                self._handles[info.file] = safe_open(str(info.file), framework="pt")
            return self._handles[info.file].get_tensor(name)
        except (OSError, SafetensorError) as cause:
            raise SourceError(f"{info.file}: cannot be read: {_one_line(cause)}; download it again") from cause

    def close(self) -> None:
        """Let go of the open files; tensors already handed out stay valid."""
        self._handles.clear()

    def _index(self) -> dict[str, str]:
        file = self.folder / "model.safetensors.index.json"
        if not file.is_file():
            return {}
        try:
            names = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
            return {str(name): str(target) for name, target in names.items()}
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as cause:
            raise SourceError(f"{file}: not an index of safetensors files; download it again") from cause

    def _files(self) -> list[Path]:
        single = self.folder / "model.safetensors"
        if index := self._index():
            return [self._inside(name) for name in dict.fromkeys(index.values())]
        return [single] if single.is_file() else sorted(self.folder.glob("*.safetensors"))

    def _inside(self, name: str) -> Path:
        if Path(name).name != name:
            raise SourceError(f"{self}: the index names a file outside the folder: {name!r}")
        file = self.folder / name
        if not file.is_file():
            raise SourceError(f"{self}: the index lists {name}, which is not there; download it again")
        return file

    def _check_files(self) -> None:
        if not (self.folder / "config.json").is_file():
            raise SourceError(f"{self}: no config.json in {self.folder}; give the folder or repository of a transformers model")
        if self._files():
            return
        if (self.folder / "adapter_config.json").is_file():
            raise SourceError(f"{self}: a LoRA adapter, not a model; merge it into its base first (peft: merge_and_unload)")
        pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in self.folder.glob(pattern))
        held = f"only {pickles[0]}, a pickle, which can run code when read" if pickles else "no weights"
        raise SourceError(
            f"{self}: no .safetensors file ({held}); save it again with save_pretrained, or ask its author for safetensors"
        )


def read_header(file: Path, owner: str = "") -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, by reading its header only; raises `SourceError` where the file is damaged."""
    where = f"{owner}: {file.name}" if owner else str(file)
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            first = stream.read(8)
            length = struct.unpack("<Q", first)[0] if len(first) == 8 else _MAX_HEADER + 1
            if length > min(_MAX_HEADER, size - 8):
                raise SourceError(f"{where}: not a safetensors file, or cut short ({size} bytes); download it again")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        tensors = {
            name: TensorInfo(str(entry["dtype"]), tuple(int(n) for n in entry["shape"]), file) for name, entry in header.items()
        }
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as cause:
        raise SourceError(f"{where}: the safetensors header cannot be read ({_one_line(cause)}); download it again") from cause
    if end != size - 8 - length:
        raise SourceError(f"{where}: holds {size - 8 - length} bytes of tensors, the header says {end}; download it again")
    return tensors


def check_mergeable(sources: Sequence[Source], base: Source | None = None) -> None:
    """Raise `SourceError` unless the checkpoints can be merged tensor by tensor. Reads configs and headers, no weights.

    Checked against the first source: architecture, number of layers, heads, vocabulary, tied head, the names of the tensors,
    their shapes, and that all weights are plain floating-point numbers (float16 and bfloat16 may be mixed).
    """
    if not sources:
        raise SourceError("no sources to merge; give at least one")
    first = sources[0]
    for source in [*sources, *([base] if base is not None else [])]:
        if getattr(source.config, "quantization_config", None) is not None:
            raise SourceError(f"{source}: quantised weights cannot be merged; give the unquantised model")
        if source is not first:
            for complaint in _differences(first, source):
                raise SourceError(f"{complaint}; sources must be fine-tunes of one base")
    for name, info in first.tensors.items():
        if not info.is_float and info.dtype not in ("BOOL", "I64", "I32", "U8"):
            raise SourceError(f"{first}: {name} is {info.dtype}, which cannot be merged; give the model in bfloat16 or float32")


def _differences(first: Source, other: Source) -> Iterator[str]:
    pairs: list[tuple[str, Any, Any]] = [
        ("architecture", first.config.model_type, other.config.model_type),
        ("number of layers", first.layer_count, other.layer_count),
        ("vocabulary size", first.text_config.vocab_size, other.text_config.vocab_size),
        ("tie_word_embeddings", first.is_tied, other.is_tied),
    ]
    pairs += [(key, getattr(first.text_config, key, None), getattr(other.text_config, key, None)) for key in _SAME_SETTINGS]
    for what, here, there in pairs:
        if here != there:
            yield f"{what} differs: {here} in {first}, {there} in {other}"
    for name, info in first.tensors.items():
        match = other.tensors.get(name)
        if match is None:
            yield f"tensor {name} of {first} is missing in {other}"
        elif info.shape != match.shape:
            yield f"{name}: shape {list(info.shape)} in {first}, {list(match.shape)} in {other}"
        elif info.is_float != match.is_float:
            yield f"{name}: {info.dtype} in {first}, {match.dtype} in {other}"
    for name in other.tensors:
        if name not in first.tensors:
            yield f"tensor {name} of {other} is missing in {first}"


def _download(ref: SourceRef) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    looks_like_folder = ref.model.startswith((".", "/", "~")) or ref.model.count("/") > 1
    if looks_like_folder:
        raise SourceError(f"{ref.model}: no such folder; give a folder that exists or the id of a repository on the Hub")
    try:
        return Path(
            snapshot_download(ref.model, revision=ref.revision, allow_patterns=ALLOWED_FILES, ignore_patterns=IGNORED_FILES)
        )
    except LocalEntryNotFoundError as cause:
        raise SourceError(
            f"{ref.model}: neither a folder nor in the Hub cache, and the Hub cannot be reached; check the name and "
            "HF_HUB_OFFLINE"
        ) from cause
    except (HfHubHTTPError, HFValidationError, OSError) as cause:
        raise SourceError(f"{ref.model}: cannot be downloaded: {_one_line(cause)}") from cause


def _one_line(cause: BaseException) -> str:
    text = " ".join(str(cause).split()) or type(cause).__name__
    return text if len(text) <= 300 else text[:300] + "..."
