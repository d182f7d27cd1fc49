"""A source: one parent checkpoint, on disk or on the Hub, read lazily by its raw safetensors names.
Never pickle.

Knows the checkpoint's files, config, headers and adapter. Does not know what a merge is. torch is
imported when the first tensor is read, transformers when the config is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from ..errors import SourceError, one_line, told
from ..recipes.layer_groups import TIED_HEAD
from ..recipes.recipe import SourceRef
from .checkpoint import Origin, Parent
from .headers import StoredTensor, read_header, read_mapping
from .inside import check_folder, held_instead, inner_adapter
from .lora import WEIGHTS_FILE, Adapter
from .mapped import MappedFile, map_file
from .model_folder import MODULES
from .part_layout import PartLayout
from .quantized import QuantizedTensor, dequantized, is_dequantized, plain_config, quantization_of
from .replication import rearrange, rearranged_tensors
from .repository import Repository
from .sentence import Sentence

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

# layers, or labels of a classifier: transformers makes a list or a table of as many
MAX_COUNT = 1 << 16


class Source(Parent):
    """Parent checkpoint in files. The arguments are the attributes of `Parent`; ``ref`` is the
    folder by default."""

    def __init__(
        self,
        folder: str | Path,
        ref: SourceRef | None = None,
        *,
        repository: Repository | None = None,
        adapter: Adapter | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.folder = Path(folder)
        own = (
            []
            if adapter is None
            else [adapter.folder / name for name in ("tokenizer.json", "tokenizer.model")]
        )
        self.beside = next((file.parent for file in own if file.is_file()), self.folder)
        self.ref = ref if ref is not None else SourceRef(model=str(folder))
        self.tokenizer_source = self
        self.repository = repository
        self.adapter = adapter
        self.trust_remote_code = trust_remote_code
        self._mapped: dict[Path, MappedFile] = {}
        self._lock = Lock()

    @cached_property
    def config(self) -> PretrainedConfig:
        """The checkpoint's config; its own code is run with consent only."""
        from transformers import AutoConfig

        fields = self._read_file("config.json")
        for complaint in _complaints(fields, self.trust_remote_code):
            raise SourceError(f"{self}: config.json: {complaint}")
        try:
            config = AutoConfig.from_pretrained(
                self.folder, trust_remote_code=self.trust_remote_code
            )
            if isinstance(config.get_text_config(), dict):
                raise ValueError(f"a {config.model_type} has no text_config; take it out")
            if is_dequantized(self.quantization):
                config = type(config).from_dict(fields)
        except (
            Exception
        ) as cause:  # anything: transformers' config classes trip over values that cannot be
            if (
                not self.trust_remote_code
                and isinstance(cause, ValueError)
                and fields.get("auto_map")
            ):
                raise SourceError(
                    f"{self}: its config needs Python code that comes with the model; read "
                    "it, and pass --trust-remote-code"
                ) from cause
            raise SourceError(f"{self}: config.json cannot be read: {one_line(cause)}") from cause
        if self.layer_order:
            rearrange(config, self.layer_order, str(self))
        return config

    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer, loaded anew; its own code is run with consent only. Raises
        `SourceError`."""
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(
                self.beside, trust_remote_code=self.trust_remote_code
            )
        except Exception as cause:  # anything, as for the config
            vocabularies = ("tokenizer.json", "*.model", "*.tiktoken", "*.py")
            if not any(file for name in vocabularies for file in self.beside.glob(name)):
                raise SourceError(
                    f"{self}: has no tokenizer.json; copy tokenizer.json and tokenizer_config.json "
                    "of its base beside the weights"
                ) from cause
            raise SourceError(f"{self}: its tokenizer cannot be read: {one_line(cause)}") from cause

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """Tensors by their raw names, from the headers alone, quantised ones as they are read; a
        tied head that is stored all the same is left out."""
        tied = self.tied
        found = dequantized(self.stored, self.quantization, str(self))
        own = {name: info for name, info in found.items() if name not in tied}
        return rearranged_tensors(own, self.layer_order) if self.layer_order else own

    @property
    def tied(self) -> dict[str, StoredTensor]:
        """Heads that are stored although they are the embedding matrix."""
        return (
            {TIED_HEAD: self.stored[TIED_HEAD]} if self.is_tied and TIED_HEAD in self.stored else {}
        )

    @cached_property
    def stored(self) -> dict[str, StoredTensor]:
        """Tensors in the files by their raw names; raises `SourceError` where two files have one
        of a name."""
        found: dict[str, StoredTensor] = {}
        for header in self._headers():
            for name, info in header.items():
                if name in found:
                    raise SourceError(
                        f"{self}: tensor {name} is in {found[name].file.name} and in "
                        f"{info.file.name}; keep one"
                    )
                found[name] = info
        for module in self.sentence.modules:
            found |= {
                f"{module.folder}/{name}": info for name, info in module.header(str(self)).items()
            }
        return found

    @cached_property
    def sentence(self) -> Sentence:  # type: ignore[override]
        """Modules of sentence-transformers, as an adapter's folder says, else the model's; raises
        `SourceError`."""
        return Sentence.read(
            self.beside if (self.beside / "modules.json").is_file() else self.folder, str(self)
        )

    @cached_property
    def changes(self) -> dict[str, Any]:
        """Changes that the adapter makes, by tensor; raises `SourceError` where it does not fit the
        checkpoint."""
        if self.adapter is None:
            return {}
        found = self.adapter.changes(
            self.tensors, tied=self.is_tied, names=lambda: self.layout.other_names
        )
        # peft saves a head or embeddings whole beside a LoRA of them. Where they are the base's
        # own, the product is the change; files on the Hub are compared once they are here.
        for name, change in list(found.items()):
            files = [self.tensors[name].file, self.adapter.folder / self.adapter.file]
            if not change.whole or not all(file.is_file() for file in files):
                continue
            if self.adapter.is_copy(change, self.read_stored(self.tensors[name], name)):
                change.whole = ""
                if not change.a:
                    del found[name]
        return found

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return one tensor, memory-mapped, so that nothing is read before its values are used; see
        `Checkpoint.read`."""
        self.check_name(name)
        tensor = self.read_stored(self.tensors[name], name)
        if self.adapter is not None and name in self.changes:
            import torch

            exact = dtype is not None and dtype != tensor.dtype
            return self.adapter.apply(
                self.changes[name], tensor, torch.float32 if exact else tensor.dtype
            )
        return tensor

    def read_stored(self, info: StoredTensor, name: str) -> torch.Tensor:
        """Read a tensor from its file, dequantised where it is quantised. Raises `SourceError`."""
        from safetensors import SafetensorError

        if isinstance(info, QuantizedTensor):
            return info.dequantize(self.read_stored)
        damages = (OSError, KeyError, ValueError, SafetensorError)
        where = f"{info.file}: cannot be read: "
        with told(SourceError, damages, where, "; download it again"), self._lock:
            if info.file not in self._mapped:
                if (
                    self.repository is not None and info.file.parent == self.folder
                ):  # modules are there already
                    self.repository.fetch([info.file.name])
                self._mapped[info.file] = map_file(info.file)
            return self._mapped[info.file].get_tensor((info.name or name).rpartition("/")[2])

    @cached_property
    def layout(self) -> PartLayout:
        """Layout of its parts; raises `SourceError` where transformers has no class for it."""
        return PartLayout.of_names(self.config, [*self.tensors, *self.tied], str(self))

    def origin(self, name: str) -> Origin:
        """Return the tensor as a copy of itself."""
        return Origin("copied", ((self, name),))

    @property
    def sources(self) -> list[Parent]:
        """Itself."""
        return [self]

    def download(self) -> None:
        """Fetch the weights if they are on the Hub and not in the cache; raises `SourceError`."""
        if self.repository is not None:
            own = {
                info.file.name for info in self.stored.values() if info.file.parent == self.folder
            }
            self.repository.fetch(sorted(own))
        if self.adapter is not None:
            self.adapter.download()

    def read_json(self, name: str) -> dict[str, Any]:
        """Read one of its JSON files; of weights or layers that are not read as they are stored,
        what their model's would say."""
        if name == "config.json" and self.layer_order:
            return self.config.to_dict()
        return self._read_file(name)

    def _read_file(self, name: str) -> dict[str, Any]:
        fields = super().read_json(name)
        if name == "config.json" and is_dequantized(self.quantization):
            plain_config(fields)
        return fields

    @cached_property
    def quantization(self) -> dict[str, Any]:
        """Settings of the quantisation of its weights in ``config.json``; empty where there are
        none."""
        is_model = (self.folder / "config.json").is_file()
        return quantization_of(super().read_json("config.json")) if is_model else {}

    def fingerprint(self) -> str:
        """Key that changes whenever the checkpoint's weights, config or tokenizer do."""
        parts = [str(self), json.dumps(self.read_json("config.json"))]
        if self.repository is not None:
            parts.append(self.repository.commit)
        else:
            beside = [*self.beside.glob("tokenizer.json"), *sorted(self.beside.glob(MODULES[-1]))]
            files = [(file.name, file.stat()) for file in (*self._files(), *beside)]
            parts += [f"{name} {found.st_size} {found.st_mtime_ns}" for name, found in files]
        return "\n".join(
            [*parts, *([self.adapter.fingerprint()] if self.adapter is not None else [])]
        )

    def close(self) -> None:
        """Let go of the open files; tensors already handed out stay valid."""
        with self._lock:
            self._mapped.clear()
        if self.adapter is not None:
            self.adapter.close()

    def _index(self) -> dict[str, str]:
        file = self.folder / f"{self.stem}.safetensors.index.json"
        if not file.is_file():
            return {}
        names = read_mapping(file, str(file)).get("weight_map")
        if not isinstance(names, dict) or not all(
            isinstance(target, str) for target in names.values()
        ):
            raise SourceError(f"{file}: not an index of safetensors files; download it again")
        return names

    def _headers(self) -> list[dict[str, StoredTensor]]:
        """The headers of all files: from the disk, or where they are not fetched yet from the
        Hub."""
        # Headers are enough for every check before a merge, and small beside the weights. So
        # those of a repository are read over the network, and its files are fetched when the first
        # tensor is read.
        names = list(dict.fromkeys(self._index().values())) or [f"{self.stem}.safetensors"]
        for name in names:
            self._check_inside(name)
        if self.repository is None or all(os.path.isfile(self.folder / name) for name in names):
            return [read_header(file, str(self)) for file in self._files()]
        files = names if self._index() or self.repository.prefix else self.repository.weight_files()
        if not files:
            raise SourceError(f"{self}: no .safetensors file; ask its author for safetensors")
        return list(self.repository.headers(files).values())

    def _files(self) -> list[Path]:
        single = self.folder / f"{self.stem}.safetensors"
        if index := self._index():
            for name in dict.fromkeys(index.values()):
                self._check_inside(name)
                if not os.path.isfile(self.folder / name):  # Path.is_file raises at a long name
                    raise SourceError(
                        f"{self}: the index lists {name}, which is not there; download it again"
                    )
            return [self.folder / name for name in dict.fromkeys(index.values())]
        if single.is_file():
            return [single]
        return [
            file for file in sorted(self.folder.glob("*.safetensors")) if file.name != WEIGHTS_FILE
        ]

    def _check_inside(self, name: str) -> None:
        if Path(name).name != name:
            raise SourceError(f"{self}: the index names a file outside the folder: {name!r}")

    def check_files(self) -> None:
        """Raise `SourceError` unless the files of a model are there, the weights among them."""
        check_folder(self.folder)
        is_model = (self.folder / "config.json").is_file()
        weights = self.repository is not None or bool(self._files())
        if (self.folder / "adapter_config.json").is_file() and not weights:
            raise SourceError(
                f"{self}: a LoRA adapter, not a model; write {{model: ITS BASE, adapter: "
                f"{self.ref.model}}}"
            )
        if not is_model:
            hint = (
                inner_adapter(self.folder)
                or "give the folder or repository of a transformers model"
            )
            if any(self.folder.glob("*.gguf")):
                hint = (
                    "transformers makes one of a GGUF file (from_pretrained with gguf_file, "
                    "save_pretrained)"
                )
            raise SourceError(f"{self}: no config.json in {self.folder}; {hint}")
        if weights:
            return
        held = f"no .safetensors file ({held_instead(self.folder)})"
        raise SourceError(
            f"{self}: {held}; save it again with save_pretrained, or ask its author for safetensors"
        )


def _complaints(config: Any, trusted: bool) -> Iterator[str]:
    """Yield what makes a config unusable here, or would keep transformers busy for good if it got
    to see it."""
    for key, value in config.items() if isinstance(config, dict) else ():
        if key.endswith("_implementation") and "/" in str(value) and not trusted:
            yield (
                f"{one_line(key)} is {one_line(value)!r}, code on the Hub that would be fetched "
                "and run; take it out"
            )
        if (
            ("layer" in key or key == "num_labels")
            and isinstance(value, int | float)
            and value > MAX_COUNT
        ):
            yield f"{one_line(key)} is {one_line(value)}; at most {MAX_COUNT} are read"
        if (
            key == "architectures"
            and value is not None
            and not (isinstance(value, list) and all(isinstance(name, str) for name in value))
        ):
            yield f"architectures is {one_line(value)}, not a list of names"
        yield from _complaints(value, trusted)
