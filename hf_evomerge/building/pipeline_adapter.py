"""A merge of LoRAs of one diffusion pipeline as one LoRA, in the file that diffusers'
``load_lora_weights`` reads.

Nothing new is computed: modules are those of all components, and each is merged as a language
model's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from ..checkpoints.checkpoint import Parent
from ..checkpoints.lora import METADATA, PICTURE_FILE, Change
from ..errors import SourceError
from ..recipes.recipe import Recipe
from .adapter import MergedAdapter, Summand, ranks_of
from .composed_pipeline import ComposedPipeline


class PipelineAdapter(MergedAdapter):
    """The merge of LoRAs of one pipeline, as a LoRA of it.

    Components that are not merged have the LoRA that they would have in the whole pipeline.

    Args:
        recipe: As for `MergedAdapter`.
        composed: The recipe as a pipeline.

    Raises:
        SourceError: It is no LoRA; the message ends with the reason.
    """

    file = PICTURE_FILE
    prefix = ""

    def __init__(self, recipe: Recipe, composed: ComposedPipeline) -> None:
        self.composed = composed
        super().__init__(recipe, composed.merged)
        self._raw_ranks = {self._raw(name): module.rank for name, module in self.modules.items()}
        self._parts = list(dict.fromkeys(raw.partition("/")[0] for raw in self._raw_ranks))
        pipeline = composed.host.read_json("model_index.json")["_class_name"]
        for part in self._parts:
            if not _is_loaded(pipeline, part):
                raise SourceError(f"diffusers loads no LoRA into the {part} of a {pipeline}")

    def _find_terms(self) -> Iterator[tuple[str, list[Summand]]]:
        """The merged component's terms, and the changes of the others."""
        yield from super()._find_terms()
        for raw, planned in self.composed.planned.items():
            source = planned.inputs[0][0]
            if source is self.merged or not isinstance(source, Parent):
                continue
            part = raw.partition("/")[0]
            if not source.same_folder(self.composed.host):
                raise SourceError(f"{part} is that of another pipeline, {source}")
            if (change := source.changes.get(raw)) is not None:
                if change.beyond:
                    raise SourceError(f"{source} changes {raw} by more ({change.beyond})")
                rows = source.tensors[raw].shape[0]
                yield raw, [Summand(source, change, [(0, rows, 1.0)])]

    def _raw(self, name: str) -> str:
        """The name of a weight in the pipeline."""
        if "/" in name:
            return name
        return self.merged.plan.sources[0].origin(name).inputs[0][1]

    def _module_name(self, name: str, change: Change) -> str:
        """Name of a module as the adapter has it, with its component before it."""
        raw = self._raw(name)
        if change.module.startswith(f"{raw.partition('/')[0]}."):
            return change.module
        return raw.removesuffix(".weight").replace("/", ".", 1)

    @property
    def metadata(self) -> dict[str, str]:
        """Ranks and modules of each component, as diffusers reads them."""
        fields: dict[str, Any] = {}
        for part in self._parts:
            ranks = {}
            for raw, info in self.composed.tensors.items():
                if raw.startswith(f"{part}/") and len(info.shape) > 1:
                    # CLIP's text encoder has this name around it in some releases alone
                    own = raw.removeprefix(f"{part}/").removeprefix("text_model.")
                    ranks[own.removesuffix(".weight")] = self._raw_ranks.get(raw, 0)
            fields |= {f"{part}.{key}": value for key, value in ranks_of(ranks).items()}
        return {METADATA: json.dumps(fields, indent=2)}

    def adapter_config(self) -> dict[str, Any]:
        """The base, which diffusers' file does not name."""
        return {
            "library_name": "diffusers",
            "_class_name": self.composed.host.read_json("model_index.json")["_class_name"],
            "base_model_name_or_path": self.base.model,
            "revision": self.base.revision,
        }

    @property
    def sources(self) -> list[Parent]:
        """The LoRAs with their pipeline."""
        return self.composed.sources

    def __str__(self) -> str:
        return f"{self.composed}, as one LoRA of rank {self._rank} ({PICTURE_FILE})"


def _is_loaded(pipeline: str, part: str) -> bool:
    """Tell whether diffusers loads LoRAs into a component; True where it is not installed."""
    if find_spec("diffusers") is None:
        return True
    import diffusers

    return part in getattr(getattr(diffusers, pipeline, None), "_lora_loadable_modules", [])
