"""Protocol of every checkpoint, on disk, on the Hub or only planned: a config, named tensors, and
companion files.

`Parent` is what a recipe names, in files or a view of such; what is merged or run through asks a
parent, never its class.
"""

from __future__ import annotations

import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import SourceError, one_line, told
from ..recipes.recipe import SourceRef
from .headers import StoredTensor, TensorInfo, read_mapping
from .inside import check_folder
from .model_folder import CODE, COMPANIONS, PROCESSOR, copy_files
from .quantized import QuantizedTensor
from .sentence import Sentence

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from .lora import Adapter
    from .part_layout import PartLayout
    from .repository import Repository

_COMMIT = re.compile("@([0-9a-f]{12})[0-9a-f]{28}")  # people are shown the first digits
PIECE = 1 << 20  # elements of a tensor that is only copied or converted, read at a time


@dataclass(frozen=True, slots=True)
class Origin:
    """Origin of one tensor of a checkpoint.

    Attributes:
        kind: ``copied`` (perhaps to another dtype), ``merged``, ``scaled``: a copy that a factor
            was multiplied into, or ``zero``.
        inputs: The tensors of the sources that it is made from: source and raw name.
    """

    kind: Literal["copied", "merged", "scaled", "zero"]
    inputs: tuple[tuple[Parent, str], ...]


class Checkpoint(ABC):
    """Readable config and named tensors: a source, a merge, a path, a fold.

    `Source` reads files, `Merged` merges while it is read, `Routed` follows a path over other
    checkpoints, `Folded` multiplies scales into weights. Nothing is computed before it is read, and
    `write_checkpoint` writes any.

    Attributes:
        ref: Reference by which others name it as a source.
        tokenizer_source: The source whose tokenizer, chat template and generation settings go with
            it.
        chat_template: A Jinja template in place of that source's.
        settings: Everything that tells it from others of the same sources, such as the recipe.
        is_stored: Whether its tensors are in files, and nothing is merged to read one.
    """

    ref: SourceRef
    tokenizer_source: Parent
    chat_template: str | None = None
    settings: tuple[Any, ...] = ()
    is_stored: bool = False

    @property
    @abstractmethod
    def config(self) -> PretrainedConfig:
        """The config of the model that these tensors are of."""

    @property
    @abstractmethod
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Dtype and shape of every tensor, by its raw name, in the order in which they are
        written."""

    @abstractmethod
    def stream(self, name: str) -> Iterator[torch.Tensor]:
        """Yield one tensor in flat pieces, from the first element to the last, in the dtype that
        `tensors` states.

        Pieces may be views of a file that is mapped into memory: do not write to them.
        """

    def place(self, name: str) -> tuple[str, str, str]:
        """Return where to write a tensor: the folder in the model's folder, the start of file
        names, its name there."""
        folder, _, own = name.rpartition("/")
        return folder, "model", own

    @property
    def metadata(self) -> Mapping[str, str]:
        """Texts that stand in the headers of its files."""
        return {}

    @abstractmethod
    def origin(self, name: str) -> Origin:
        """Return where a tensor comes from."""

    @property
    @abstractmethod
    def sources(self) -> list[Parent]:
        """The checkpoints on disk or on the Hub that it reads, each once."""

    def fingerprint(self) -> str:
        """Key that changes whenever the tensors would: what is computed, and the files of the
        sources."""
        return "\0".join(
            [
                type(self).__name__,
                str(self.settings),
                *(source.fingerprint() for source in self.sources),
            ]
        )

    @abstractmethod
    def write_companions(self, folder: Path) -> None:
        """Write what lies beside the weights: ``config.json``, code, tokenizer, generation
        settings, chat template."""

    def tokenizer(self) -> Any:
        """The tokenizer that goes with it, loaded anew. Raises `SourceError`."""
        tokenizer = self.tokenizer_source.tokenizer()
        if self.chat_template is not None:
            tokenizer.chat_template = self.chat_template
        return tokenizer

    @property
    def processor_source(self) -> Parent:
        """The source whose processor goes with it."""
        return self.tokenizer_source

    def processor(self) -> Any:
        """Load the processor of its texts and pictures anew. Raises `SourceError`."""
        processor = self.processor_source.processor()
        if self.chat_template is not None:
            processor.chat_template = self.chat_template
        return processor

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Read one whole tensor. Do not write to it.

        Args:
            name: Its raw name.
            dtype: Dtype that it will be converted to. Where it is not stored in that dtype, what an
                adapter changes is given in float32, so that it is rounded once.

        Raises:
            SourceError: There is no such tensor, or it cannot be read.
        """
        import torch

        self.check_name(name)
        return torch.cat(list(self.stream(name))).reshape(self.tensors[name].shape)

    @property
    def warnings(self) -> list[str]:
        """Warnings for the user before it is built, from configs and headers alone; one line
        each."""
        return []

    @cached_property
    def architecture_warnings(self) -> list[str]:
        """Warnings about names and shapes of its tensors; raises `SourceError` where the model
        cannot be whole."""
        from .architecture import check_architecture

        own = {
            name: info for name, info in self.tensors.items() if "/" not in name
        }  # without modules after it
        return check_architecture(self.config, own, str(self))

    def doubts(self) -> list[str]:
        """Return warnings from reading its tensors; one line each."""
        return []

    def remark(self) -> str:
        """Say what is worth knowing of it once it is written; empty where nothing is."""
        return ""

    def unused(self, source: Parent, name: str) -> str:
        """Say why this checkpoint leaves out a tensor of one of its sources."""
        return "not part of the result"

    @property
    def text_config(self) -> PretrainedConfig:
        """The part of the config that describes the language model."""
        return self.config.get_text_config()

    @property
    def layer_count(self) -> int:
        """Number of transformer blocks."""
        return self._count("num_hidden_layers")

    @property
    def vocab_size(self) -> int:
        """Number of rows of the embeddings; 0 for a model without words."""
        return self._count("vocab_size") if hasattr(self.text_config, "vocab_size") else 0

    @property
    def is_tied(self) -> bool:
        """True where the output head is the embedding matrix."""
        return bool(getattr(self.config, "tie_word_embeddings", False))

    def download(self) -> None:
        """Fetch the weights that are on the Hub and not in the cache; raises `SourceError`."""
        for source in self.sources:
            source.download()

    def close(self) -> None:
        """Let go of the open files; tensors already handed out stay valid."""
        for source in self.sources:
            source.close()

    def check_name(self, name: str) -> None:
        """Raise `SourceError` where there is no such tensor."""
        if name not in self.tensors:
            raise SourceError(f"{self}: no tensor called {name}")

    def _count(self, key: str) -> int:
        """A number of the config; raises `SourceError` where it is none, as transformers checks
        only some of its configs."""
        value = getattr(self.text_config, key, None)
        if type(value) is not int or value < 0:
            raise SourceError(
                f"{self.ref}: config.json: {key} is {one_line(repr(value))}, not a whole number"
            )
        return value


class Parent(Checkpoint):
    """A checkpoint that a recipe names: `Source` reads its files, a `View` is a part of it, or has
    other rows.

    Attributes:
        folder: Folder of ``config.json`` and the ``.safetensors`` files, now or later.
        beside: Folder of the tokenizer: the same, or that of an adapter which has its own.
        repository: Repository of the weights if they are not in the folder.
        adapter: A LoRA adapter that is merged into each tensor when it is read.
        trust_remote_code: Whether the checkpoint's own Python files may be run to read its config.
        sentence: What sentence-transformers does with it; asking raises `SourceError` where a
            module cannot be read.
        part: Part of the model that these tensors are; None: all of it.
        stem: Start of the names of its files of weights.
    """

    is_stored = True
    folder: Path
    beside: Path
    repository: Repository | None
    adapter: Adapter | None
    trust_remote_code: bool
    sentence: Sentence
    part: str | None = None
    stem: str = "model"

    @property
    @abstractmethod
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Tensors by their raw names, from the headers alone."""

    @property
    @abstractmethod
    def changes(self) -> dict[str, Any]:
        """Changes that the adapter makes, by tensor; raises `SourceError` where it does not fit the
        checkpoint."""

    @property
    @abstractmethod
    def layout(self) -> PartLayout:
        """Layout of the parts of the whole; raises `SourceError` where transformers has no class
        for it."""

    @abstractmethod
    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Read one whole tensor; see `Checkpoint.read`."""

    @property
    def whole(self) -> Parent:
        """The checkpoint that this is a part of; itself where it is no part."""
        return self

    @property
    def is_whole(self) -> bool:
        """True where the whole has no other part."""
        return True

    @property
    def entries(self) -> Mapping[str, tuple[str, str]]:
        """Library and class of each component of a diffusion pipeline; empty for one model."""
        return {}

    @property
    def parts(self) -> Mapping[str, Parent]:
        """Components of a diffusion pipeline that have weights; empty for one model."""
        return {}

    @property
    def companions(self) -> list[str]:
        """Patterns of the files beside the weights that it is loaded from."""
        return ["config.json", *COMPANIONS]

    @property
    def tied(self) -> Mapping[str, StoredTensor]:
        """Heads that are stored although they are the embedding matrix."""
        return {}

    @property
    def is_quantized(self) -> bool:
        """True where some of its tensors are dequantised while they are read."""
        return any(isinstance(info, QuantizedTensor) for info in self.tensors.values())

    @property
    def layer_order(self) -> list[int]:
        """Layers in the files, in the order in which the adapter runs them; empty where that is
        theirs. Raises `SourceError`."""
        return [] if self.adapter is None else self.adapter.layer_order

    @property
    def pinned(self) -> SourceRef:
        """The reference, for these very bits: repositories at their commits."""
        adapter = self.adapter.repository if self.adapter is not None else None
        pins = {
            "revision": self.repository.commit if self.repository else None,
            "adapter_revision": adapter.commit if adapter is not None else None,
        }
        return self.ref.model_copy(
            update={key: value for key, value in pins.items() if value is not None}
        )

    def parameters(self, name: str, prefix: str = "", *, moved: bool = False) -> tuple[str, ...]:
        """Return the names that a tensor may have in a live model.

        Args:
            name: Its raw name.
            prefix: Prefix of the base model's names in the model.
            moved: Whether transformers is asked for its modules' names of today, which makes a
                model on the meta device.
        """
        return (
            name.replace("/", "."),
            prefix + name,
            *([self.layout.modules.get(name, name)] if moved else []),
        )

    def covers(self, parameter: str) -> bool:
        """Tell whether a parameter of a live model is one of its tensors."""
        return True

    def stream(self, name: str) -> Iterator[torch.Tensor]:
        """Yield one tensor in flat pieces, from the first element to the last."""
        return pieces_of(self.read(name))

    def __str__(self) -> str:
        return _COMMIT.sub(r"@\1", str(self.ref))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def processor(self) -> Any:
        """Load the processor of its texts and pictures anew, without the model's own code. Raises
        `SourceError`."""
        from transformers import AutoProcessor

        # anything, as for the config
        with told(SourceError, Exception, f"{self}: its processor cannot be read: "):
            return AutoProcessor.from_pretrained(self.beside, trust_remote_code=False)

    def write_companions(self, folder: Path) -> None:
        """Copy the config and what else lies beside the weights; the code that comes with it only
        where it is trusted."""
        check_folder(self.folder)
        shutil.copyfile(self.folder / "config.json", folder / "config.json")
        self.write_tokenizer(folder)
        if self.trust_remote_code:
            copy_files(self.folder, folder, CODE)

    def write_tokenizer(self, folder: Path) -> None:
        """Copy generation settings, tokenizer, chat templates and processors, except what `folder`
        has already."""
        copy_files(self.beside, folder)

    def write_processor(self, folder: Path) -> None:
        """Copy processors and chat templates, except what `folder` has already."""
        copy_files(self.beside, folder, PROCESSOR)

    def same_folder(self, other: Parent) -> bool:
        """Tell whether both are read from one folder, whatever it is called; their adapters may
        differ, but must leave the layers as they are."""
        rearranged = self.layer_order or other.layer_order
        return not rearranged and self.folder.resolve() == other.folder.resolve()

    @property
    def folders(self) -> list[Path]:
        """Folders of its files, and of its adapter's."""
        return [self.folder, *([self.adapter.folder] if self.adapter is not None else [])]

    def read_json(self, name: str) -> dict[str, Any]:
        """Read one of the checkpoint's JSON files; raises `SourceError` where it cannot be read or
        holds no mapping."""
        return read_mapping(
            (self.folder if name == "config.json" else self.beside) / name, f"{self}: {name}"
        )


class View(Parent):
    """A parent as something else than it is; what a view does not say is as the parent beneath it
    has it.

    Args:
        inner: The parent beneath it.
    """

    def __init__(self, inner: Parent) -> None:
        self.inner = inner
        self.ref = inner.ref
        self.part = inner.part
        self.tokenizer_source = self
        self.folder = inner.folder
        self.beside = inner.beside
        self.repository = inner.repository
        self.adapter = inner.adapter
        self.trust_remote_code = inner.trust_remote_code
        self.sentence = inner.sentence

    @property
    def sources(self) -> list[Parent]:
        """The checkpoint whose tensors are read."""
        return self.inner.sources

    @property
    def layout(self) -> PartLayout:
        """Layout of the parts of the whole."""
        return self.inner.layout

    def parameters(self, name: str, prefix: str = "", *, moved: bool = False) -> tuple[str, ...]:
        """Return the names that a tensor may have in a live model; see `Parent.parameters`."""
        return self.inner.parameters(name, prefix, moved=moved)

    def covers(self, parameter: str) -> bool:
        """Tell whether a parameter of a live model is one of its tensors."""
        return self.inner.covers(parameter)

    def tokenizer(self) -> Any:
        """The tokenizer of the parent beneath, loaded anew."""
        return self.inner.tokenizer()


def pieces_of(tensor: Any) -> Iterator[torch.Tensor]:
    """A tensor as flat pieces of at most `PIECE` elements."""
    flat = tensor.contiguous().reshape(-1)
    for start in range(0, flat.numel(), PIECE):
        yield flat[start : start + PIECE]
