"""A diffusion pipeline as a source: ``model_index.json``, and a folder for each component, read as
a checkpoint of its own.

A tensor is called ``unet/conv_in.weight``: the component, and its name in the component's files. In
the part that is merged (`Component`) the blocks of U-Nets and transformers are numbered, so that
groups of blocks and gradients mean what they mean elsewhere:
``blocks.3.up_blocks.0.resnets.1.conv1.weight``.
"""

from __future__ import annotations

import re
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SourceError, one_line
from .headers import StoredTensor, torch_dtype
from .inside import check_folder, held_instead
from .model_folder import INDEX
from .part_layout import PartLayout
from .repository import SMALL_FILES
from .source import Source

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

MODEL_TYPE = "diffusion_pipeline"
_BLOCK = re.compile(r"(\w*?)blocks?(?:\.(\d+))?\.")
_ORDER = (
    "down_",
    "mid_",
    "up_",
    "",
    "transformer_",
    "single_transformer_",
)  # as a picture passes through them


class Pipeline(Source):
    """A diffusion pipeline: see `Source` for the arguments. It takes part by one of its components.

    Attributes:
        index: Content of ``model_index.json``.
        entries: Library and class of each component.
        parts: The components that have weights.
    """

    @cached_property
    def index(self) -> dict[str, Any]:
        """Content of ``model_index.json``."""
        return super().read_json(INDEX)

    @cached_property
    def entries(self) -> dict[str, tuple[str, str]]:
        """Library and class of each component; raises `SourceError` where one is code that comes
        with the pipeline."""
        if not isinstance(self.index.get("_class_name"), str):
            raise SourceError(
                f"{self}: {INDEX}: _class_name is {one_line(self.index.get('_class_name'))}: "
                f"{_OWN_CODE}"
            )
        found = {}
        for part, entry in self.index.items():
            if part.startswith("_") or not isinstance(entry, list) or entry == [None, None]:
                continue
            if (
                len(entry) != 2
                or not all(isinstance(name, str) for name in entry)
                or not part.isidentifier()
            ):
                raise SourceError(
                    f"{self}: {INDEX}: {one_line(part)} is {one_line(entry)}, not a library "
                    "and a class"
                )
            if not _is_known(entry[0]):
                raise SourceError(
                    f"{self}: {INDEX}: {part} is of {one_line(entry[0])}: {_OWN_CODE}"
                )
            found[part] = (entry[0], entry[1])
        return found

    @property
    def companions(self) -> list[str]:
        """Patterns of the files beside the weights, in all components."""
        return [INDEX, *(f"{part}/{pattern}" for part in self.entries for pattern in SMALL_FILES)]

    @cached_property
    def parts(self) -> dict[str, Source]:
        """The components that have weights."""
        found: dict[str, Source] = {}
        for part, (library, _) in self.entries.items():
            folder = self.folder / part
            if (folder / "config.json").is_file():
                repository = self.repository.at(part) if self.repository is not None else None
                stem = "model" if library == "transformers" else "diffusion_pytorch_model"
                found[part] = _Folder(
                    folder,
                    self.ref.model_copy(update={"adapter": None}),
                    repository=repository,
                    stem=stem,
                )
                found[part].part = part
        return found

    def check_files(self) -> None:
        """Raise `SourceError` unless the files of every component are there."""
        check_folder(self.folder)
        if self.repository is not None:
            self.repository.fetch_small(list(self.entries))
        for part in self.entries:
            folder = self.folder / part
            if not folder.is_dir():
                raise SourceError(
                    f"{self}: {INDEX} names {part}, and there is no such folder; download it again"
                )
            check_folder(folder, self.folder)
        for source in self.parts.values():
            source.check_files()

    @cached_property
    def config(self) -> PretrainedConfig:
        """A config of the whole: the pipeline's class, and the dtype of its weights where all have
        one."""
        from transformers import PretrainedConfig

        dtypes = {info.dtype for info in self.stored.values() if info.is_float}
        config = PretrainedConfig(architectures=[self.index["_class_name"]])
        config.model_type = MODEL_TYPE  # type: ignore[misc]
        config.dtype = torch_dtype(dtypes.pop()) if len(dtypes) == 1 else None
        return config

    @cached_property
    def stored(self) -> dict[str, StoredTensor]:
        """Tensors of all components, by ``part/name``."""
        return {
            f"{part}/{name}": info
            for part, source in self.parts.items()
            for name, info in source.stored.items()
        }

    @property
    def is_tied(self) -> bool:
        """False: the tensors in its files belong to its components."""
        return False

    @property
    def layer_count(self) -> int:
        """Raises `SourceError`: a whole pipeline has no layers that could be merged with
        another's."""
        raise SourceError(
            f"{self}: a diffusion pipeline takes part by a component; write component: with "
            f"one of {', '.join(self.parts)}"
        )

    @cached_property
    def changes(self) -> dict[str, Any]:
        """Changes that the adapter makes to tensors, which it calls ``unet.conv_in.weight``."""
        if self.adapter is None:
            return {}
        # CLIP's text encoder has a name around its modules in some releases of transformers alone.
        names = {_with_inner(raw): raw for raw in self.tensors if raw.startswith("text_encoder")}
        names |= {raw.replace("/", ".", 1): raw for raw in self.tensors}
        found = self.adapter.changes({name: self.tensors[raw] for name, raw in names.items()})
        return {names[name]: change for name, change in found.items()}

    def read_stored(self, info: StoredTensor, name: str) -> torch.Tensor:
        """Read the stored tensor from its file. Raises `SourceError`."""
        part, _, own = name.partition("/")
        return self.parts[part].read_stored(info, own)

    def read_json(self, name: str) -> dict[str, Any]:
        """Read one of the JSON files; ``{}`` for ``config.json``, which it has not."""
        return {} if name == "config.json" else super().read_json(name)

    @cached_property
    def layout(self) -> PartLayout:
        """Layout of its components."""
        modules = {raw: raw.partition("/")[2] for raw in self.tensors}
        return PipelineLayout(dict.fromkeys(self.parts, ""), "rest", None, modules)

    @property
    def architecture_warnings(self) -> list[str]:
        """Nothing: diffusers says what is missing when it loads the result."""
        return []

    def tokenizer(self) -> None:
        """None: it has its own, and gives its models texts itself."""

    def fingerprint(self) -> str:
        """Key that changes whenever a component does."""
        parts = [
            str(self),
            (self.folder / INDEX).read_text(encoding="utf-8"),
            *(part.fingerprint() for part in self.parts.values()),
        ]
        return "\n".join(
            [*parts, *([self.adapter.fingerprint()] if self.adapter is not None else [])]
        )

    @property
    def folders(self) -> list[Path]:
        """Folders that hold its files."""
        return [*super().folders, *(source.folder for source in self.parts.values())]

    def download(self) -> None:
        """Fetch the weights of all components."""
        for source in self.parts.values():
            source.download()
        if self.adapter is not None:
            self.adapter.download()

    def close(self) -> None:
        """Let go of the open files."""
        super().close()
        for source in self.parts.values():
            source.close()


class _Folder(Source):
    """The files of one component."""

    def __init__(self, *arguments: Any, stem: str, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._plain = stem

    @cached_property
    def stem(self) -> str:  # type: ignore[override]
        """Start of the names of its files; with ``.fp16``, where there are only such files."""
        names = self._names
        plain = any(
            re.fullmatch(rf"{self._plain}(-\d+-of-\d+)?\.safetensors", name) for name in names
        )
        return (
            self._plain
            if plain or not any(".fp16" in name for name in names)
            else f"{self._plain}.fp16"
        )

    @cached_property
    def _names(self) -> list[str]:
        if self.repository is not None:
            return self.repository.weight_files()
        return sorted(file.name for file in self.folder.glob("*.safetensors"))

    def __str__(self) -> str:
        return f"{self.ref}: {self.part}"

    @property
    def is_tied(self) -> bool:
        """False: all tensors in its files belong to the component."""
        return False

    def check_files(self) -> None:
        """Raise `SourceError` unless there are weights."""
        if not self._names:
            held = held_instead(self.folder)
            raise SourceError(
                f"{self}: no .safetensors file ({held}); save the pipeline again with "
                "save_pretrained"
            )


class PipelineLayout(PartLayout):
    """Layout of a pipeline's components; ``modules`` has the name of each tensor in its
    component."""

    @cached_property
    def _blocks(self) -> dict[str, dict[tuple[str, int], int]]:
        found: dict[str, set[tuple[str, int]]] = {part: set() for part in self.parts}
        for raw, own in self.modules.items():
            if block := _BLOCK.match(own):
                found[raw.partition("/")[0]].add((block[1], int(block[2] or 0)))
        numbers = {}
        for part, blocks in found.items():
            # The blocks of a U-Net are numbered anew within down, mid and up. Numbered through, in
            # the order in which they run, they are layers 0 to n - 1, and every kind of layer group
            # does for pictures too.
            ordered = sorted(blocks, key=_place)
            numbers[part] = {block: n for n, block in enumerate(ordered)}
        return numbers

    def place(self, raw: str) -> tuple[str, str]:
        """The component that a tensor belongs to, and its name there with the number of its block
        before it."""
        part = raw.partition("/")[0]
        own = self.modules[raw]
        block = _BLOCK.match(own)
        return (
            part,
            own
            if block is None
            else f"blocks.{self._blocks[part][block[1], int(block[2] or 0)]}.{own}",
        )


_OWN_CODE = (
    "code that comes with the pipeline, and none is run; give a pipeline whose classes are "
    "diffusers' and transformers'"
)


def _with_inner(raw: str) -> str:
    """The other name of a text encoder's tensor."""
    part, _, own = raw.partition("/")
    inner = "text_model."
    return f"{part}.{own.removeprefix(inner) if own.startswith(inner) else inner + own}"


def _place(block: tuple[str, int]) -> tuple[int, str, int]:
    name, number = block
    return _ORDER.index(name) if name in _ORDER else len(_ORDER), name, number


def _is_known(library: str) -> bool:
    """Say whether classes are looked for in a library that is installed, or in one of diffusers'
    own pipelines."""
    if library in ("diffusers", "transformers"):
        return True
    if not library.isidentifier() or find_spec("diffusers") is None:
        return False
    import diffusers

    return (Path(str(diffusers.__file__)).parent / "pipelines" / library / "__init__.py").is_file()
