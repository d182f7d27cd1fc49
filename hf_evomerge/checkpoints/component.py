"""A part of a checkpoint as a checkpoint: the language model inside a vision-language model, its
vision tower, its projector.

Its tensors have the name that they have in the part; see ``part_layout.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..errors import SourceError
from ..recipes.layer_groups import classify
from .checkpoint import Origin, Parent, View
from .headers import StoredTensor, tensor_order
from .part_layout import TEXT

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig


class Component(View):
    """Part of a checkpoint, with the names that its tensors have in the part.

    Args:
        whole: The checkpoint.
        part: Which part: ``text``, ``vision``, ``projector``, ``encoder``, ...

    Raises:
        SourceError: The checkpoint has no such part.

    Example:
        >>> sorted(Component(open_source("base"), "text").tensors)[0]
        'lm_head.weight'
    """

    def __init__(self, whole: Parent, part: str) -> None:
        super().__init__(whole)
        self.part: str = part
        self.raw: dict[str, str] = {}
        for raw in whole.tensors:
            found, name = self.layout.place(raw)
            if found != part or (name == "lm_head.weight" and whole.is_tied):
                continue
            if name in self.raw:
                raise SourceError(
                    f"{whole}: {raw} and {self.raw[name]} are both {name} of its {part} "
                    "part; keep one"
                )
            self.raw[name] = raw
        if not self.raw:
            known = ", ".join(self.layout.count())
            raise SourceError(f"{whole}: has no component {part!r}; it has {known}")

    @property
    def whole(self) -> Parent:
        """The checkpoint that the part is of."""
        return self.inner

    @property
    def is_whole(self) -> bool:
        """True where the checkpoint has no other part."""
        return len(self.raw) == len(self.whole.tensors)

    @cached_property
    def config(self) -> PretrainedConfig:
        """The config of the part: that of the whole where it has none of its own."""
        whole = self.whole.config
        config = (
            whole.get_text_config()
            if self.part == "text"
            else getattr(whole, f"{self.part}_config", whole)
        )
        if getattr(config, "dtype", None) is None and config is not whole:
            config = copy.deepcopy(config)
            config.dtype = whole.dtype
        return config

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """The part's tensors by their names there."""
        return {
            name: self.whole.tensors[self.raw[name]] for name in sorted(self.raw, key=tensor_order)
        }

    @cached_property
    def changes(self) -> dict[str, Any]:
        """Changes that the adapter makes to the part; raises `SourceError` where it does not fit
        the whole."""
        changes = self.whole.changes
        return {name: changes[raw] for name, raw in self.raw.items() if raw in changes}

    @property
    def architecture_warnings(self) -> list[str]:
        """Warnings about the tensors of the whole."""
        return self.whole.architecture_warnings

    @property
    def is_tied(self) -> bool:
        """True where the output head is the embedding matrix."""
        return self.part in TEXT and self.whole.is_tied

    @property
    def layer_count(self) -> int:
        """Number of blocks: as the config says, else as the tensors are numbered."""
        if self.part == "text":
            return super().layer_count
        blocks = (classify(name)[1] for name in self.tensors)
        return 1 + max((block for block in blocks if block is not None), default=0)

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Read one tensor; see `Parent.read`."""
        self.check_name(name)
        return self.whole.read(self.raw[name], dtype)

    def origin(self, name: str) -> Origin:
        """A tensor of the whole."""
        return Origin("copied", ((self.whole, self.raw[name]),))

    def parameters(self, name: str, prefix: str = "", *, moved: bool = False) -> tuple[str, ...]:
        """Return the tensor's names in a live model of the whole: the one in the module, and the
        one in the files."""
        return self.layout.modules[self.raw[name]], self.raw[name]

    def covers(self, parameter: str) -> bool:
        """Tell whether a parameter of a live model belongs to the part."""
        path = self.layout.parts.get(self.part)
        if path is None:
            return parameter in {self.layout.modules[raw] for raw in self.raw.values()}
        head = self.layout.head if self.part in TEXT else None
        starts = tuple(f"{start}." for start in (path, head) if start is not None)
        return path == "" or parameter.startswith(starts)

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the model; for ``config.json``, the part's config."""
        return self.config.to_dict() if name == "config.json" else self.whole.read_json(name)


def as_parts(sources: Sequence[Parent]) -> list[Parent]:
    """The sources as the parts that one of them names; as they are where none names a part.

    A source that names none, beside one that does, takes part with the same: a plain language model
    is all ``text``.

    Raises:
        SourceError: Two sources name different parts, or a source has none of that name.
    """
    named = {source.ref.component: source for source in sources if source.ref.component is not None}
    if not named:
        return list(sources)
    if len(named) > 1:
        (part, first), (other, second) = list(named.items())[:2]
        raise SourceError(
            f"component: {part} of {first}, but {other} of {second}; what is merged is one "
            "part of each"
        )
    part = next(iter(named))
    return [source if source.part is not None else Component(source, part) for source in sources]
