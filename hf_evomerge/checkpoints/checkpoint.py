"""What every checkpoint answers, on disk, on the Hub or only planned: a config, named tensors, and what lies beside them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import SourceError, one_line
from ..recipes.recipe import SourceRef
from .headers import TensorInfo

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from .source import Source

PIECE = 1 << 20  # elements of a tensor that is only copied or converted, read at a time


@dataclass(frozen=True, slots=True)
class Origin:
    """Where one tensor of a checkpoint comes from.

    Attributes:
        kind: ``copied`` (perhaps to another dtype), ``merged``, or ``scaled``: a copy that a factor was multiplied into.
        inputs: The tensors of the sources that it is made from: source and raw name.
    """

    kind: Literal["copied", "merged", "scaled"]
    inputs: tuple[tuple[Source, str], ...]


@dataclass
class Findings:
    """What was noticed while tensors were read.

    Attributes:
        notes: Lines worth knowing.
        warnings: Lines that say that something may be wrong.
    """

    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, other: Findings) -> None:
        """Take another's lines in, each once."""
        self.notes += [line for line in other.notes if line not in self.notes]
        self.warnings += [line for line in other.warnings if line not in self.warnings]


class Checkpoint(ABC):
    """Anything that has a config and named tensors that can be read.

    `Source` reads files, `Merged` merges while it is read, `Routed` follows a path over other checkpoints, `Folded` multiplies
    scales into weights. Nothing is computed before it is read, and `write_checkpoint` writes any.

    Attributes:
        ref: What it is called where others name their sources.
        tokenizer_source: The source whose tokenizer, chat template and generation settings go with it.
        chat_template: A Jinja template in place of that source's.
    """

    ref: SourceRef
    tokenizer_source: Source
    chat_template: str | None = None

    @property
    @abstractmethod
    def config(self) -> PretrainedConfig:
        """The config of the model that these tensors are of."""

    @property
    @abstractmethod
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Dtype and shape of every tensor, by its raw name, in the order in which they are written."""

    @abstractmethod
    def stream(self, name: str) -> Iterator[torch.Tensor]:
        """One tensor as flat pieces, from the first element to the last, in the dtype that `tensors` states.

        Pieces may be views of a file that is mapped into memory: do not write to them.
        """

    def place(self, name: str) -> tuple[str, str, str]:
        """Where a tensor is written: the folder in the model's folder, what files there begin with, and its name there."""
        return "", "model", name

    @abstractmethod
    def origin(self, name: str) -> Origin:
        """Where a tensor comes from."""

    @property
    @abstractmethod
    def sources(self) -> list[Source]:
        """The checkpoints on disk or on the Hub that it reads, each once."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A text that is another one when the tensors are."""

    @abstractmethod
    def write_companions(self, folder: Path) -> None:
        """Write what lies beside the weights: ``config.json``, code, tokenizer, generation settings, chat template."""

    def tokenizer(self) -> Any:
        """The tokenizer that goes with it, loaded anew. Raises `SourceError`."""
        tokenizer = self.tokenizer_source.tokenizer()
        if self.chat_template is not None:
            tokenizer.chat_template = self.chat_template
        return tokenizer

    @property
    def processor_source(self) -> Source:
        """The source whose processor goes with it."""
        return self.tokenizer_source

    def processor(self) -> Any:
        """What makes its inputs of texts and pictures, loaded anew. Raises `SourceError`."""
        processor = self.processor_source.processor()
        if self.chat_template is not None:
            processor.chat_template = self.chat_template
        return processor

    def read(self, name: str) -> torch.Tensor:
        """One whole tensor. Do not write to it. Raises `SourceError` where there is no such tensor."""
        import torch

        self._check_name(name)
        return torch.cat(list(self.stream(name))).reshape(self.tensors[name].shape)

    @property
    def warnings(self) -> list[str]:
        """What a user should know before it is built, from configs and headers alone; one line each."""
        return []

    @cached_property
    def architecture_warnings(self) -> list[str]:
        """What is doubtful about names and shapes of its tensors; raises `SourceError` where the model cannot be whole."""
        from .architecture import check_architecture

        return check_architecture(self.config, self.tensors, str(self))

    def findings(self) -> Findings:
        """What was noticed while its tensors were read."""
        return Findings()

    def unused(self, source: Source, name: str) -> str:
        """Why this checkpoint does without a tensor of one of its sources."""
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
        """Whether the output head is the embedding matrix."""
        return bool(getattr(self.config, "tie_word_embeddings", False))

    def download(self, *, progress: bool = True) -> None:
        """Fetch the weights that are on the Hub and not in the cache; raises `SourceError`."""
        for source in self.sources:
            source.download(progress=progress)

    def close(self) -> None:
        """Let go of the open files; tensors already handed out stay valid."""
        for source in self.sources:
            source.close()

    def _check_name(self, name: str) -> None:
        if name not in self.tensors:
            close = get_close_matches(str(name), self.tensors, 1)
            raise SourceError(f"{self}: no tensor called {name}" + (f"; did you mean {close[0]}?" if close else ""))

    def _count(self, key: str) -> int:
        """A number of the config; raises `SourceError` where it is none, as transformers checks only some of its configs."""
        value = getattr(self.text_config, key, None)
        if type(value) is not int or value < 0:
            raise SourceError(f"{self.ref}: config.json: {key} is {one_line(repr(value))}, not a whole number")
        return value


def pieces_of(tensor: Any, size: int = PIECE) -> Iterator[torch.Tensor]:
    """A tensor as flat pieces of at most `size` elements."""
    flat = tensor.contiguous().reshape(-1)
    for start in range(0, flat.numel(), size):
        yield flat[start : start + size]
