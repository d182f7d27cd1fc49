"""A part of a checkpoint as a checkpoint: the language model inside a vision-language model, its vision tower, its projector.

Parts are found from the config and the module tree that transformers makes of it, on the meta device. Tensors have the name
that they have in the part, by transformers' own conversion of the names in the files, so that the language part of one model
and a plain language model call the same tensor the same, whatever the age of their files.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..errors import SourceError, one_line
from ..recipes.layer_groups import classify
from .architecture import model_class
from .checkpoint import Origin
from .headers import StoredTensor, tensor_order
from .source import Source

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

_TEXT = ("text", "decoder")  # the part that has the output head


@dataclass(frozen=True)
class Layout:
    """Where the parts of a model are.

    Attributes:
        parts: The path of the module of each part; ``""``: the whole model.
        rest: What everything outside of these is called: ``projector`` beside towers, else ``rest``.
        head: The path of the output head, which belongs to the language part.
        modules: The name in the model of each tensor in the files.
    """

    parts: dict[str, str]
    rest: str
    head: str | None
    modules: dict[str, str]

    @classmethod
    def of_names(cls, config: PretrainedConfig, names: Iterable[str], called: str) -> Layout:
        """Lay out the model of a config, with tensors of these names in its files."""
        import torch
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key

        name = (config.architectures or [""])[0]
        kind = model_class(config, name)
        if kind is None:
            raise SourceError(f"{called}: its parts are not known, as transformers has no class called {name!r} for it")
        try:
            with torch.device("meta"):
                model: Any = kind(copy.deepcopy(config))
        except Exception as cause:  # anything: a class may need a library that is not installed
            raise SourceError(f"{called}: its parts are not known: {kind.__name__}: {one_line(cause)}") from cause
        conversions: Any = get_model_conversion_mapping(model)
        renamings = [step for step in conversions if isinstance(step, WeightRenaming)]
        state = model.state_dict()
        modules = {raw: rename_source_key(raw, renamings, [], model.base_model_prefix, state)[0] for raw in names}
        paths = {id(module): path for path, module in model.named_modules(remove_duplicate=False)}
        parts, head = _parts(model), model.get_output_embeddings()
        towers = len(parts) > 1 and ("vision" in parts or "audio" in parts)
        return cls(
            {part: paths[id(module)] for part, module in parts.items()},
            "projector" if towers else "rest",
            paths.get(id(head)) if head is not None else None,
            modules,
        )

    def place(self, raw: str) -> tuple[str, str]:
        """The part that a tensor of the files belongs to, and its name there."""
        module = self.modules[raw]
        text = next((part for part in _TEXT if part in self.parts), None)
        if text is not None and self.head is not None and module.startswith(f"{self.head}."):
            return text, "lm_head" + module.removeprefix(self.head)
        for part, path in self.parts.items():
            if path == "" or module.startswith(f"{path}."):
                name = module.removeprefix(f"{path}.") if path else module
                return part, f"model.{name}" if part in _TEXT else name
        return self.rest, module

    def count(self) -> dict[str, int]:
        """How many tensors each part has."""
        return dict(Counter(self.place(raw)[0] for raw in self.modules))


class Component(Source):
    """One part of a checkpoint, with the names that its tensors have in the part.

    Args:
        whole: The checkpoint.
        part: Which part: ``text``, ``vision``, ``projector``, ``encoder``, ...

    Raises:
        SourceError: The checkpoint has no such part.

    Example:
        >>> sorted(Component(Source.open("base"), "text").tensors)[0]
        'lm_head.weight'
    """

    def __init__(self, whole: Source, part: str) -> None:
        super().__init__(
            whole.folder,
            whole.ref,
            repository=whole.repository,
            adapter=whole.adapter,
            trust_remote_code=whole.trust_remote_code,
        )
        self.whole = whole
        self.part: str = part
        self.layout = whole.layout
        self.raw: dict[str, str] = {}
        for raw in whole.tensors:
            found, name = self.layout.place(raw)
            if found != part or (name == "lm_head.weight" and whole.is_tied):
                continue
            if name in self.raw:
                raise SourceError(f"{whole}: {raw} and {self.raw[name]} are both {name} of its {part} part; keep one")
            self.raw[name] = raw
        if not self.raw:
            known = ", ".join(self.layout.count())
            raise SourceError(f"{whole}: has no component {part!r}; it has {known}")

    def __str__(self) -> str:
        return str(self.whole)

    @property
    def is_whole(self) -> bool:
        """Whether the checkpoint has no other part."""
        return len(self.raw) == len(self.whole.tensors)

    @cached_property
    def config(self) -> PretrainedConfig:
        """The config of the part: that of the whole where it has none of its own."""
        whole = self.whole.config
        config = whole.get_text_config() if self.part == "text" else getattr(whole, f"{self.part}_config", whole)
        if getattr(config, "dtype", None) is None and config is not whole:
            config = copy.deepcopy(config)
            config.dtype = whole.dtype
        return config

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """The part's tensors by their names there."""
        return {name: self.whole.tensors[self.raw[name]] for name in sorted(self.raw, key=tensor_order)}

    @cached_property
    def changes(self) -> dict[str, Any]:
        """What the adapter does to the part; raises `SourceError` where it does not fit the whole."""
        changes = self.whole.changes
        return {name: changes[raw] for name, raw in self.raw.items() if raw in changes}

    @property
    def architecture_warnings(self) -> list[str]:
        """What is doubtful about the tensors of the whole."""
        return self.whole.architecture_warnings

    @property
    def is_tied(self) -> bool:
        """Whether the output head is the embedding matrix."""
        return self.part in _TEXT and self.whole.is_tied

    @property
    def layer_count(self) -> int:
        """Number of blocks: as the config says, else as the tensors are numbered."""
        if self.part == "text":
            return super().layer_count
        return 1 + max((block for name in self.tensors if (block := classify(name)[1]) is not None), default=0)

    @property
    def sources(self) -> list[Source]:
        """The whole."""
        return [self.whole]

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """One tensor; see `Source.read`."""
        self._check_name(name)
        return self.whole.read(self.raw[name], dtype)

    def origin(self, name: str) -> Origin:
        """A tensor of the whole."""
        return Origin("copied", ((self.whole, self.raw[name]),))

    def parameters(self, name: str) -> tuple[str, ...]:
        """What the tensor may be called in a live model of the whole: as the module has it, and as the files do."""
        return self.layout.modules[self.raw[name]], self.raw[name]

    def covers(self, parameter: str) -> bool:
        """Whether a parameter of a live model belongs to the part."""
        path, head = self.layout.parts.get(self.part), self.layout.head if self.part in _TEXT else None
        if path is None:
            return parameter in {self.layout.modules[raw] for raw in self.raw.values()}
        return path == "" or parameter.startswith(f"{path}.") or (head is not None and parameter.startswith(f"{head}."))

    def tokenizer(self) -> Any:
        """The tokenizer of the whole."""
        return self.whole.tokenizer()

    def read_json(self, name: str) -> dict[str, Any]:
        """One of the JSON files; ``config.json`` is that of the part."""
        return self.config.to_dict() if name == "config.json" else self.whole.read_json(name)

    def fingerprint(self) -> str:
        """The whole's, and which part."""
        return f"{self.whole.fingerprint()}\n{self.part}"

    def close(self) -> None:
        """Let go of the whole's open files."""
        self.whole.close()


def whole_of(source: Source) -> Source:
    """The checkpoint that a part is of."""
    return source.whole if isinstance(source, Component) else source


def as_parts(sources: Sequence[Source]) -> list[Source]:
    """The sources as the parts that one of them names; as they are where none names a part.

    A source that names none, beside one that does, takes part with the same: a plain language model is all ``text``.

    Raises:
        SourceError: Two sources name different parts, or a source has none of that name.
    """
    named = {source.ref.component: source for source in sources if source.ref.component is not None}
    if not named:
        return list(sources)
    if len(named) > 1:
        (part, first), (other, second) = list(named.items())[:2]
        raise SourceError(f"component: {part} of {first}, but {other} of {second}; what is merged is one part of each")
    part = next(iter(named))
    return [source if isinstance(source, Component) else Component(source, part) for source in sources]


def _parts(model: PreTrainedModel) -> dict[str, Any]:
    """The module of each part that the model itself can name."""
    found: dict[str, Any] = {}
    config: Any = model.config
    for part, modality in (("vision", "image"), ("audio", "audio")):
        if (tower := model.get_encoder(modality=modality)) is not model and tower is not model.base_model:
            found[part] = tower
    if getattr(config, "is_encoder_decoder", False):
        return {**found, "encoder": model.get_encoder(), "decoder": model.get_decoder()}
    if model.main_input_name == "pixel_values" and not found:
        return {"vision": model.base_model}
    if hasattr(config.get_text_config(), "vocab_size"):
        found["text"] = model.get_decoder()
    return found
