"""A path over checkpoints as a checkpoint: the layers that it runs, each once, read from where they
are.

The checkpoints are whole language models, or the language parts of models of which one gives all
else.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints.chat_template import template_warnings
from ..checkpoints.checkpoint import Checkpoint, Parent
from ..checkpoints.compatibility import find_warnings
from ..checkpoints.ledger import sources_of
from ..checkpoints.part_layout import PartLayout
from ..errors import SourceError, told
from ..recipes.layer_groups import classify, renumbered
from ..recipes.recipe import FlowPart, SourceRef, with_optional
from ..routing.config import check_configs, path_config
from .composed import Composed, check_ids
from .merged import Merged
from .planned import Planned, PlannedCheckpoint

if TYPE_CHECKING:
    from ..modeling import EvoMergedConfig


class Routed(PlannedCheckpoint):
    """The model of a path, `EvoMergedForCausalLM` or `EvoMergedForImageTextToText`; of a merge only
    its layers are computed.

    Args:
        parents: Checkpoints on the path, by the numbers that it gives them; the result's config
            calls them by their ``ref``. Of language parts the model of the embeddings gives
            whatever is not language.
        flow: The path, its scales, and the source of the embeddings.
        merge: Merge that the path may run through beside them, with the number after theirs.
        dtype: The dtype of the floating-point tensors, such as ``bfloat16``; that of the first
            checkpoint's config by default.
        tokenizer: Source whose tokenizer, chat template and generation settings go with it; that of
            the embeddings by default.
        processor: Source whose processor goes with it; the body's by default.
        chat_template: A Jinja template in place of the tokenizer's own.

    Raises:
        PathError: The path names a layer that is not there, or cannot run as asked.
        SourceError: The checkpoints do not fit together, or a tensor is missing.

    Example:
        >>> sources = [open_source("japanese"), open_source("maths")]
        >>> routed = Routed(sources, FlowPart(path="0:0-1, 1:1"))
        >>> routed.config.path
        ['0:0', '0:1', '1:1']
    """

    def __init__(
        self,
        parents: Sequence[Parent],
        flow: FlowPart,
        merge: Merged | Composed | None = None,
        *,
        dtype: str | None = None,
        tokenizer: Parent | None = None,
        processor: Parent | None = None,
        chat_template: str | None = None,
    ) -> None:
        self.ref = SourceRef(model="routed")
        self.parents = list(parents)
        self.merge = merge
        self.flow = flow
        self.chat_template = chat_template
        self.checkpoints: list[Checkpoint] = with_optional(
            parents, None if merge is None else merge.merged
        )
        self._processor = processor
        wholes: list[Checkpoint] = with_optional((parent.whole for parent in parents), merge)
        self.body = None if parents[0].part is None else wholes[flow.embedding_source]
        self._config = self._checked_config(dtype)
        self.planned = self._plan()
        embedding = self.body or self.checkpoints[flow.embedding_source]
        self.tokenizer_source = tokenizer or embedding.tokenizer_source
        given = (
            flow,
            self._config.dtype,
            chat_template,
            self.tokenizer_source,
            self.processor_source,
        )
        self.settings = (*given, *(merge.merged.settings if merge is not None else ()))
        if self.body is not None:
            check_ids(
                self.body.sources[0],
                self.tokenizer_source.whole,
                self._config.get_text_config().vocab_size,
            )
        if self.tokenizer_source.vocab_size != embedding.vocab_size:
            raise SourceError(
                f"tokenizer: {self.tokenizer_source} has a vocabulary of "
                f"{self.tokenizer_source.vocab_size}, the embeddings of "
                f"{embedding} one of {embedding.vocab_size}; name another source"
            )

    @property
    def config(self) -> EvoMergedConfig:
        """The config of the model that takes the path."""
        return self._config

    @property
    def sources(self) -> list[Parent]:
        """Sources that the checkpoints read, and the body's."""
        return sources_of(*self.checkpoints, self.body)

    @property
    def processor_source(self) -> Parent:
        """The body's, or the one that is named."""
        inherited = self.tokenizer_source if self.body is None else self.body.processor_source
        return inherited if self._processor is None else self._processor

    def unused(self, source: Parent, name: str) -> str:
        """A layer may be off the path; embeddings, final norm and head are those of one
        checkpoint."""
        if self.body is not None and (part := source.layout.place(name)[0]) != "text":
            return f"{part} of {source.ref.label}, of which the result has another's"
        return (
            "layer not on the path"
            if classify(name)[0] == "block"
            else "embeddings, norm and head come from another source"
        )

    @property
    def warnings(self) -> list[str]:
        """Warnings about the merge, where there is one, or about the sources."""
        if self.merge is None:
            found = find_warnings(self.parents, None, self.tokenizer_source)
            return found + template_warnings(self.tokenizer_source.beside, self.chat_template)
        number = len(self.parents)
        found = self.merge.merged.warnings
        if number in {
            self.flow.embedding_source,
            *(source for source, _ in self.flow.to_path().unique_layers),
        }:
            return found
        return [
            f"no hop of the path runs a layer of the merge, source {number}, which is of no use",
            *found,
        ]

    def doubts(self) -> list[str]:
        """Return warnings from the merge, where there is one."""
        return [] if self.merge is None else self.merge.doubts()

    def write_companions(self, folder: Path) -> None:
        """Write config and code, and copy what else lies beside the weights."""
        from ..modeling import blocks_evo_merged, modeling_evo_merged

        self._config.save_pretrained(folder)
        for module in (
            blocks_evo_merged,
            modeling_evo_merged,
        ):  # the config has written what it imports itself
            code = Path(str(module.__file__))
            shutil.copyfile(code, folder / code.name)
        if self.body is not None:
            self.processor_source.write_processor(folder)
        self.tokenizer_source.write_tokenizer(folder)

    def __str__(self) -> str:
        merged = [str(self.merge.merged)] if self.merge is not None else []
        hops = len(self._config.path)
        distinct = len(set(self._config.slots))
        return ", then ".join([*merged, f"a path of {hops} hops over {distinct} distinct layers"])

    def _checked_config(self, dtype: str | None) -> EvoMergedConfig:
        """Make the config, and check everything about path and checkpoints."""
        import torch

        from ..modeling.modeling_evo_merged import merged_class

        configs = [checkpoint.config for checkpoint in self.checkpoints]
        if self.body is not None:
            configs[self.flow.embedding_source] = self.body.config
        for checkpoint, given in zip(self.checkpoints, configs, strict=True):
            if (
                self.body is None
                and given.model_type != "evo_merged"
                and given.get_text_config() is not given
            ):
                raise SourceError(
                    f"{checkpoint}: {given.model_type!r} is more than a language model; "
                    "write component: text"
                )
        check_configs(configs, self.flow.embedding_source, names=self.checkpoints)
        config = path_config(
            configs,
            self.flow,
            sources=[
                checkpoint.ref.model_dump(exclude_none=True) for checkpoint in self.checkpoints
            ],
        )
        config.dtype = getattr(torch, dtype) if dtype is not None else configs[0].dtype
        config.text_config.dtype = config.dtype
        config.architectures = [merged_class(config).__name__]
        return config

    def _plan(self) -> dict[str, Planned]:
        """Find every tensor of the result among those of the checkpoints."""
        import torch
        import transformers

        from ..modeling.layers_evo_merged import source_class
        from ..modeling.origins import is_kept_in_float32, plan_tensors

        kind = source_class(self._config.text_config)
        wanted = (
            str(self._config.dtype).removeprefix("torch.")
            if isinstance(self._config.dtype, torch.dtype)
            else None
        )
        plan = {}
        with told(SourceError, ValueError):
            origins = plan_tensors(self._config)
        placed = self._placed(origins) if self.body is not None else {}
        for target, ((index, name), shape) in origins.items():
            checkpoint, name = placed.get(target, (self.checkpoints[index], name))
            short = name.removeprefix(f"{kind.base_model_prefix}.")
            if name not in checkpoint.tensors and short in checkpoint.tensors:
                name = short  # saved from the architecture's base model
            info = checkpoint.tensors.get(name)
            if info is None:
                saved = (checkpoint.config.architectures or ["an unknown class"])[0]
                known = saved == kind.__name__ or not hasattr(transformers, saved)
                advice = (
                    "save all of it with the installed transformers"
                    if known
                    else f"a path needs a {kind.__name__}"
                )
                raise SourceError(
                    f"{checkpoint}: no tensor called {name}; it was saved from {saved}: {advice}"
                )
            if not info.is_float and info.dtype not in ("BOOL", "I64", "I32"):
                raise SourceError(
                    f"{checkpoint}: {name} is {info.dtype}, quantised; give the model in "
                    "bfloat16 or float32"
                )
            if info.shape != shape:
                raise SourceError(
                    f"{checkpoint}: {name} has shape {list(info.shape)}, the merged model "
                    f"needs {list(shape)}"
                )
            own = None if is_kept_in_float32(kind, target) else wanted
            plan[target] = Planned.copy(checkpoint, name, own)
        self._check_layers(plan.values())
        return plan

    def _placed(self, targets: Iterable[str]) -> Mapping[str, tuple[Checkpoint, str]]:
        """Find each tensor of a model with parts: in the language part of a checkpoint, or in the
        body."""
        assert self.body is not None  # the caller has looked
        own = {target: target.removeprefix("model.") for target in targets}
        layout = PartLayout.of_names(self._config.text_config, own.values(), str(self.body))
        host = self.body.sources[0].layout  # of the model itself, or of the first that is merged
        raw = {}
        for name in self.body.tensors:
            if place := host.place(name):
                raw[place] = name
        found: dict[str, tuple[Checkpoint, str]] = {}
        # Names meet in the middle: the target's name gives its part and its place there, the host's
        # layout gives the raw name in that place. Of the language part the slot says source and
        # layer, and its number is exchanged for the layer's.
        for target, name in own.items():
            part, inside = layout.place(name)
            if part != "text":
                found[target] = self.body, raw.get((part, inside), name)
                continue
            source = self.flow.embedding_source
            slot = classify(inside)[1]
            if slot is not None:
                source, layer = self._config.slots[slot]
                inside = renumbered(inside, layer)
            found[target] = self.checkpoints[source], inside
        return found

    def _check_layers(self, planned: Iterable[Planned]) -> None:
        """Raise `SourceError` where a layer on the path has a tensor that the result's class has no
        place for."""
        used = {(id(checkpoint), name) for each in planned for checkpoint, name in each.inputs}
        for source, layer in dict.fromkeys(self._config.slots if self.body is not None else []):
            checkpoint = self.checkpoints[source]
            for name, info in checkpoint.tensors.items():
                extra = (
                    classify(name)[1] == layer
                    and info.is_float
                    and ".rotary_emb.inv_freq" not in name
                )
                if extra and (id(checkpoint), name) not in used:
                    raise SourceError(
                        f"{checkpoint}: the layers of {self.body} have no place for its "
                        f"{name}; they do not fit"
                    )
