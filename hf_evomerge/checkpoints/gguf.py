"""A GGUF file as a source: transformers dequantises it once, into a model folder in the cache that its sha256 names.

From then on it is a model folder like any other. torch and transformers are imported when a file is dequantised.
"""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..errors import SourceError, one_line
from ..recipes.recipe import SourceRef
from .hashes import file_sha256
from .inside import check_inside
from .model_folder import make_readable
from .repository import find_folder

logger = logging.getLogger(__name__)

_MAX_KEYS = 10_000  # of the metadata; models have some dozens
_MAX_READS = 1 << 22  # of numbers and texts in metadata and headers; a vocabulary of 262,144 tokens takes two million


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file on disk.

    Attributes:
        file: Where it is, by its absolute name.
        sha256: Its sha256.
        commit: The commit of the repository that it comes from, if it does.
    """

    file: Path
    sha256: str
    commit: str | None = None

    @classmethod
    def find(cls, ref: SourceRef) -> GgufFile:
        """The file of a reference; one on the Hub is fetched whole, because the config is in it.

        Raises:
            SourceError: There is no such file, or it is not the one that `SourceRef.gguf_sha256` tells of.
        """
        assert ref.gguf is not None
        folder, repository = find_folder(ref.model, ref.revision)
        if repository is not None:
            repository.fetch([ref.gguf])
        file = folder / ref.gguf
        if not os.path.isfile(file):
            there = ", ".join(sorted(one.name for one in folder.glob("*.gguf"))[:5]) or "no GGUF file at all"
            raise SourceError(f"{ref}: no such file; there is {there}")
        check_inside(folder, file)
        try:
            found = file_sha256(file)
        except OSError as cause:
            raise SourceError(f"{ref}: cannot be read: {one_line(cause)}") from cause
        if ref.gguf_sha256 is not None and ref.gguf_sha256 != found:
            raise SourceError(
                f"{ref}: its sha256 is {found[:12]}..., not {ref.gguf_sha256[:12]}... as it should; get that file"
            )
        return cls(Path(os.path.abspath(file)), found, repository.commit if repository is not None else None)

    def dequantised(self, name: str) -> Path:
        """The model folder in the cache; it is made where it is not there, and is there only when it is whole.

        It belongs to one version of transformers, whose reading of a file may be another in the next. It may be removed.

        Args:
            name: Name of the file in messages.

        Raises:
            SourceError: The file cannot be read as a model, or the cache cannot be written.
        """
        from huggingface_hub import constants

        cache = Path(constants.HF_HOME) / "hf_evomerge" / "gguf"
        folder = cache / f"{self.sha256}-{version('transformers')}"
        if folder.is_dir():
            return folder
        if missing := [package for package in ("gguf", "accelerate") if find_spec(package) is None]:
            raise SourceError(f"{name}: GGUF files are read with {missing[0]}; pip install 'hf-evomerge[quantization]'")
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_name(f"{folder.name}.lock")):
                if not folder.is_dir():
                    scratch = folder.with_name(f"{folder.name}.partial")
                    shutil.rmtree(scratch, ignore_errors=True)
                    try:
                        _dequantise(self.file, scratch, name)
                    except Exception as cause:  # anything: the libraries read a stranger's bytes without asking
                        if isinstance(cause, SourceError) or (isinstance(cause, OSError) and cause.errno is not None):
                            raise  # the last is the disk's error
                        raise SourceError(f"{name}: cannot be read as a GGUF model: {one_line(cause)}") from cause
                    make_readable(scratch)
                    os.replace(scratch, folder)
        except OSError as cause:
            raise SourceError(f"{name}: cannot be dequantised into {cache}: {one_line(cause)}; HF_HOME moves it") from cause
        return folder


def _dequantise(file: Path, folder: Path, name: str) -> None:
    import torch
    import transformers
    from gguf import GGMLQuantizationType as Kind
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tensors = _tensors(file, name)
    kinds = {tensor.tensor_type for tensor in tensors} - {Kind.F32}
    half = {Kind.F16: torch.float16, Kind.BF16: torch.bfloat16}
    dtype = half.get(kinds.pop(), torch.float32) if len(kinds) == 1 else torch.float32
    where: dict[str, Any] = {"gguf_file": str(file)}  # by its absolute name: the working directory would come first
    config = AutoConfig.from_pretrained(file.parent, trust_remote_code=False, **where)
    with torch.device("meta"):
        wanted = sum(value.numel() for value in AutoModelForCausalLM.from_config(config, trust_remote_code=False).parameters())
    held = sum(int(tensor.n_elements) for tensor in tensors)
    if held < wanted:
        raise SourceError(
            f"{name}: holds {held} numbers, a {config.model_type!r} of its sizes has {wanted}; it is not a whole model"
        )
    packed = getattr(transformers, "GgufConfig", None)  # without it, older releases dequantise
    whole = {"quantization_config": packed(dequantize=True)} if packed else {}
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        file.parent, dtype=dtype, output_loading_info=True, trust_remote_code=False, **where, **whole
    )
    model, found = loaded
    if lacking := sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}):
        raise SourceError(f"{name}: gives no {lacking[0]} that a {config.model_type!r} of its sizes has")
    if held > wanted:
        logger.warning("%s: transformers has no use for %d of its numbers; %s", name, held - wanted, _HINT)
    vars(model.config).pop("quantization_config", None)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, trust_remote_code=False, **where).save_pretrained(folder)
    logger.info("%s: dequantised as %s into the cache", name, str(dtype).removeprefix("torch."))


_HINT = "it may answer otherwise than in llama.cpp (rope_freqs.weight is the scaling of Llama 3.1, which is then missing)"


def _tensors(file: Path, name: str) -> list[Any]:
    """The tensors of a file that is whole, and a whole model."""
    from gguf import GGUFReader

    class Reader(GGUFReader):
        """GGUF reader that stops where the file ends, even inside a list that claims to be endless, and at its limits."""

        reads = 0

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            self.reads += 1
            if self.reads > _MAX_READS or len(getattr(self, "fields", ())) > _MAX_KEYS:
                raise ValueError(f"more than {_MAX_KEYS} keys, or {_MAX_READS} values of them")
            found = super()._get(offset, dtype, count, override_order)
            if len(found) != int(count):
                raise ValueError(f"it ends at byte {len(self.data)}")
            return found

    try:
        reader = Reader(file)
    except Exception as cause:  # anything: it trusts every number in the file
        raise SourceError(f"{name}: not a GGUF file, or cut short ({one_line(cause)}); download it again") from cause
    numbers = {key: field.contents() for key, field in reader.fields.items() if key.endswith((".block_count", "split.count"))}
    if (parts := numbers.pop("split.count", 1)) > 1:
        raise SourceError(f"{name}: one of {parts} parts; join them with llama.cpp's llama-gguf-split --merge")
    for key, layers in numbers.items():
        if not isinstance(layers, int) or layers > len(reader.tensors):
            raise SourceError(f"{name}: {key} is {one_line(layers)}, but it holds {len(reader.tensors)} tensors")
    return list(reader.tensors)
