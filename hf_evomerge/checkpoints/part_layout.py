"""Layout of a model's parts: its language model, its vision tower, its projector.

Parts are found from the config and the module tree that transformers makes of it, on the meta
device. Tensors have the name that they have in the part, by transformers' own conversion of the
names in the files, so that the language part of one model and a plain language model call the same
tensor the same, whatever the age of their files.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..errors import SourceError, told
from .architecture import model_class

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

TEXT = ("text", "decoder")  # the part that has the output head


@dataclass(frozen=True)
class PartLayout:
    """Layout of a model's parts.

    Attributes:
        parts: The path of the module of each part; ``""``: the whole model.
        rest: Name of everything outside of these: ``projector`` beside towers, else ``rest``.
        head: The path of the output head, which belongs to the language part.
        modules: The name in the model of each tensor in the files.
        linear: The linear layers by their paths, and whether each stores its inputs as rows.
        embeddings: The tensor in the files that has a row for each token of the input.
    """

    parts: dict[str, str]
    rest: str
    head: str | None
    modules: dict[str, str]
    linear: dict[str, bool] = field(default_factory=dict)
    embeddings: str | None = None

    @classmethod
    def of_names(cls, config: PretrainedConfig, names: Iterable[str], called: str) -> PartLayout:
        """Lay out the model of a config, with tensors of these names in its files."""
        import torch
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key
        from transformers.pytorch_utils import Conv1D

        name = (config.architectures or [""])[0]
        kind = model_class(config, name)
        if kind is None:
            raise SourceError(
                f"{called}: its parts are not known, as transformers has no class called "
                f"{name!r} for it"
            )
        where = f"{called}: its parts are not known: {kind.__name__}: "
        # anything: a class may need a library that is not installed
        with told(SourceError, Exception, where), torch.device("meta"):
            model: Any = kind(copy.deepcopy(config))
        conversions: Any = get_model_conversion_mapping(model)
        # Only renamings are asked, not the conversions that merge or split tensors: a raw name must
        # have one name in the model.
        renamings = [step for step in conversions if isinstance(step, WeightRenaming)]
        state = model.state_dict()
        modules = {
            raw: raw.replace("/", ".")
            if "/" in raw
            else rename_source_key(raw, renamings, [], model.base_model_prefix, state)[0]
            for raw in names
        }
        paths = {id(module): path for path, module in model.named_modules(remove_duplicate=False)}
        parts = _parts(model)
        head = model.get_output_embeddings()
        inputs = ""
        with suppress(NotImplementedError):  # as of a model without words
            inputs = f"{paths.get(id(model.get_input_embeddings()))}.weight"
        towers = len(parts) > 1 and ("vision" in parts or "audio" in parts)
        return cls(
            {part: paths[id(module)] for part, module in parts.items()},
            "projector" if towers else "rest",
            paths.get(id(head)) if head is not None else None,
            modules,
            {
                path: type(one) is Conv1D
                for path, one in model.named_modules()
                if type(one) in (torch.nn.Linear, Conv1D)
            },
            next((raw for raw, module in modules.items() if module == inputs), None),
        )

    def place(self, raw: str) -> tuple[str, str]:
        """The part that a tensor of the files belongs to, and its name there."""
        module = self.modules[raw]
        text = next((part for part in TEXT if part in self.parts), None)
        if text is not None and self.head is not None and module.startswith(f"{self.head}."):
            return text, "lm_head" + module.removeprefix(self.head)
        for part, path in self.parts.items():
            if path == "" or module.startswith(f"{path}."):
                name = module.removeprefix(f"{path}.") if path else module
                return part, f"model.{name}" if part in TEXT else name
        return self.rest, module

    @cached_property
    def other_names(self) -> list[tuple[str, str]]:
        """Pairs of a tensor's name in the files and its name in the model.

        The language part has a second pair for each tensor, with a plain language model's name.
        """
        placed = [(raw, *self.place(raw)) for raw in self.modules]
        plain = [(raw, name) for raw, part, name in placed if part in TEXT]
        return list(dict.fromkeys([*self.modules.items(), *plain]))

    def count(self) -> dict[str, int]:
        """Count the tensors of each part."""
        return dict(Counter(self.place(raw)[0] for raw in self.modules))


def _parts(model: PreTrainedModel) -> dict[str, Any]:
    """The module of each part that the model itself can name."""
    found: dict[str, Any] = {}
    config: Any = model.config
    for part, modality in (("vision", "image"), ("audio", "audio")):
        if (
            tower := model.get_encoder(modality=modality)
        ) is not model and tower is not model.base_model:
            found[part] = tower
    if getattr(config, "is_encoder_decoder", False):
        return {**found, "encoder": model.get_encoder(), "decoder": model.get_decoder()}
    if model.main_input_name == "pixel_values" and not found:
        return {"vision": model.base_model}
    if hasattr(config.get_text_config(), "vocab_size"):
        found["text"] = model.get_decoder()
    return found
