"""A model some parts of which are those of other checkpoints: a vision-language model whose
language model is a merge."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.chat_template import template_warnings
from ..checkpoints.checkpoint import Checkpoint, Parent
from ..checkpoints.compatibility import Tokenizer, tensor_differences
from ..checkpoints.component import Component
from ..checkpoints.ledger import sources_of
from ..checkpoints.model_folder import CODE, copy_files, write_json
from ..errors import SourceError
from ..recipes.recipe import Recipe, SourceRef
from .merged import Merged, result_fields
from .planned import Planned, PlannedCheckpoint

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_IDS = (
    "image_token_id",
    "image_token_index",
    "video_token_id",
    "video_token_index",
    "audio_token_id",
    "audio_token_index",
)


class Composed(PlannedCheckpoint):
    """A merge of one part of the sources, in the model that the first of them is.

    Everything that is not merged is that of the first source, or of the source that ``components``
    names. The result is a plain model of the first source's class.

    Args:
        recipe: The recipe.
        sources: The sources that it uses, by their numbers; those that are merged as `Component`.
        base: Its base, as a `Component`.

    Raises:
        RecipeError: The merge part is wrong.
        SourceError: A source cannot be merged with the others, or a part does not fit the model.

    Example:
        >>> names = ("japanese", "maths", "base")
        >>> host, other, base = (Component(open_source(name), "text") for name in names)
        >>> composed = Composed(Recipe.load("recipe.yaml"), {0: host, 1: other}, base)
        >>> composed.config.model_type  # a plain model is all text
        'llama'
    """

    def __init__(
        self, recipe: Recipe, sources: Mapping[int, Parent], base: Parent | None = None
    ) -> None:
        self.ref = SourceRef(model="merged")
        host = sources[recipe.merge_sources[0]]
        others = [source for source in sources.values() if not source.is_whole]
        if host.is_whole and others:
            raise SourceError(
                f"{host} is all {host.part}, and {others[0]} is more; name first the model "
                "whose class the result has"
            )
        self.recipe = recipe
        self.host = host.whole
        self.chat_template = recipe.chat_template
        self.merged = Merged(recipe, sources, base)
        self.settings = self.merged.settings
        self.tokenizer_source = self.merged.tokenizer_source
        self._sources = sources
        self.planned = {raw: self._copy(self.host, raw) for raw in self.host.tensors}
        self.planned |= {
            host.origin(name).inputs[0][1]: self._copy(self.merged, name) for name in host.tensors
        }
        self._parts: dict[str | None, Checkpoint] = {host.part: self.merged}
        for part, number in (recipe.components or {}).items():
            self._take(part, sources[number].whole)
        check_ids(self.host, self.tokenizer_source, self.merged.plan.sources[0].vocab_size)

    def _take(self, part: str, donor: Parent) -> None:
        """Put a part of another source in the place of the model's own; raises `SourceError` where
        they are not alike."""
        own = Component(self.host, part)
        other = Component(donor, part)
        for complaint in tensor_differences(own, other):
            raise SourceError(f"components.{part}: {complaint}; their parts do not fit")
        self.planned |= {
            raw: self._copy(other, name) for name, raw in own.raw.items() if name in other.raw
        }
        self._parts[part] = other

    def _copy(self, checkpoint: Checkpoint, name: str) -> Planned:
        return Planned.copy(checkpoint, name, self.recipe.dtype)

    @property
    def processor_source(self) -> Parent:
        """The first source, or the one that the recipe names."""
        return (
            self._sources[self.recipe.processor].whole
            if self.recipe.processor is not None
            else self.host
        )

    @property
    def sources(self) -> list[Parent]:
        """The first source, those that are merged with it, and those that parts are copied from."""
        return sources_of(self.host, *self._parts.values())

    def unused(self, source: Parent, name: str) -> str:
        """A tensor is left out where its part is another's in the result."""
        return (
            f"{source.layout.place(name)[0]} of {source.ref.label}, of which the result has "
            "another's"
        )

    @property
    def warnings(self) -> list[str]:
        """Warnings about the sources, about the result's tensors, and about its chat template."""
        found = self.merged.warnings + self.architecture_warnings
        if self.processor_source is not self.tokenizer_source:
            found = found + template_warnings(
                self.processor_source.beside, self.recipe.chat_template
            )
        return list(dict.fromkeys(found))

    def doubts(self) -> list[str]:
        """Return warnings from merging the parts."""
        return self.merged.doubts()

    @cached_property
    def config(self) -> PretrainedConfig:
        """The first source's config, with the result's dtype and vocabulary."""
        return type(self.host.config).from_dict(self._fields())

    def _fields(self) -> dict[str, Any]:
        tokens = self.merged.plan.sources[0].vocab_size  # 0 where a part without words is merged
        size = tokens if tokens not in (0, self.host.vocab_size) else None
        return result_fields(self.host, self.host.read_json("config.json"), self.recipe.dtype, size)

    def write_companions(self, folder: Path) -> None:
        """Write ``config.json``; copy the tokenizer from its source, processor and chat template
        from theirs."""
        write_json(folder / "config.json", self._fields())
        self.processor_source.write_processor(folder)
        self.tokenizer_source.write_tokenizer(folder)
        if self.host.trust_remote_code:
            copy_files(self.host.folder, folder, CODE)

    def __str__(self) -> str:
        part = next(iter(self._parts))
        return str(self.merged) if part is None else f"{self.merged}, as {part} of {self.host}"


def check_ids(host: Parent, tokenizer: Parent, size: int) -> None:
    """Raise `SourceError` where the token that stands for an image is another one in the result, or
    none."""
    fields = host.read_json("config.json")
    ids = {key: fields[key] for key in _IDS if isinstance(fields.get(key), int)}
    here = Tokenizer.of(host)
    there = Tokenizer.of(tokenizer)
    for key, number in ids.items():
        if size and number >= size:
            raise SourceError(
                f"{host}: {key} is {number}, but the result has {size} tokens; name the "
                f"tokenizer of {host}"
            )
        mine, other = (
            None if words is None else words.tokens.get(number) for words in (here, there)
        )
        if there is not None and here is not None and mine != other:
            raise SourceError(
                f"{host}: {key} is {number}, {mine!r} there and {other!r} in the tokenizer "
                f"of {tokenizer}; name that of {host}"
            )
