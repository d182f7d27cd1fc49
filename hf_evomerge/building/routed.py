"""A path over checkpoints as a checkpoint: the layers that it runs, each once, read from where they are.

The checkpoints are whole language models, or the language parts of models of which one gives all else.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..checkpoints.chat_template import template_warnings
from ..checkpoints.checkpoint import Checkpoint, Findings, Origin, pieces_of
from ..checkpoints.compatibility import find_warnings
from ..checkpoints.component import Component, Layout, whole_of
from ..checkpoints.headers import STORED, TensorInfo
from ..checkpoints.ledger import sources_of
from ..checkpoints.model_folder import write_chat_template
from ..checkpoints.source import Source
from ..errors import SourceError, one_line
from ..recipes.layer_groups import classify
from ..recipes.recipe import FlowPart, SourceRef
from ..routing.config import check_configs, path_config
from .composed import Composed, check_ids

if TYPE_CHECKING:
    import torch

    from ..modeling import EvoMergedConfig


class _Planned(NamedTuple):
    """One tensor of the result: where it comes from, and the dtype that it is converted to (None: as it is stored)."""

    checkpoint: Checkpoint
    name: str
    dtype: torch.dtype | None
    info: TensorInfo


class Routed(Checkpoint):
    """The model of a path, `EvoMergedForCausalLM` or `EvoMergedForImageTextToText`; of a merge only its layers are computed.

    Args:
        checkpoints: What the path runs through, by the numbers that it gives them; the result's config calls them by their
            ``ref``.
        flow: The path, its scales, and the source of the embeddings.
        body: Where the checkpoints are language parts, the model of the embeddings: whatever is not language is its own.
        dtype: The dtype of the floating-point tensors, such as ``bfloat16``; that of the first checkpoint's config by default.
        tokenizer: Whose tokenizer, chat template and generation settings go with it; those of the embeddings by default.
        processor: Whose processor goes with it; the body's by default.
        chat_template: A Jinja template in place of the tokenizer's own.

    Raises:
        PathError: The path names a layer that is not there, or cannot run as asked.
        SourceError: The checkpoints do not fit together, or a tensor is missing.

    Example:
        >>> sources = [Source.open("japanese"), Source.open("maths")]
        >>> routed = Routed(sources, FlowPart(path="0:0-1, 1:1"))
        >>> routed.config.path
        ['0:0', '0:1', '1:1']
    """

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        flow: FlowPart,
        body: Source | Composed | None = None,
        *,
        dtype: str | None = None,
        tokenizer: Source | None = None,
        processor: Source | None = None,
        chat_template: str | None = None,
    ) -> None:
        self.ref = SourceRef(model="routed")
        self.checkpoints, self.flow, self.chat_template = list(checkpoints), flow, chat_template
        self.body, self._processor = body, processor
        self._config = self._checked_config(dtype)
        self._planned = self._plan()
        embedding = body or self.checkpoints[flow.embedding_source]
        self.tokenizer_source = tokenizer or embedding.tokenizer_source
        if body is not None:
            check_ids(_host(body), whole_of(self.tokenizer_source), self._config.get_text_config().vocab_size)
        if self.tokenizer_source.vocab_size != embedding.vocab_size:
            raise SourceError(
                f"tokenizer: {self.tokenizer_source} has a vocabulary of {self.tokenizer_source.vocab_size}, the embeddings of "
                f"{embedding} one of {embedding.vocab_size}; name another source"
            )

    @property
    def config(self) -> EvoMergedConfig:
        """The config of the model that takes the path."""
        return self._config

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Dtype and shape of every tensor; a layer that runs several times is there once, under its first slot."""
        return {name: planned.info for name, planned in self._planned.items()}

    @property
    def sources(self) -> list[Source]:
        """Those that the checkpoints read, and the body's."""
        return sources_of(*self.checkpoints, self.body)

    @property
    def processor_source(self) -> Source:
        """The body's, or the one that is named."""
        inherited = self.tokenizer_source if self.body is None else self.body.processor_source
        return inherited if self._processor is None else self._processor

    def fingerprint(self) -> str:
        """Another text for another path, dtype or other checkpoints."""
        parts = [self.flow.model_dump_json(), str(self._config.dtype), str(self.chat_template), str(self.tokenizer_source)]
        inputs = [*self.checkpoints, *([self.body] if self.body is not None else [])]
        return "\0".join([*parts, str(self.processor_source), *(checkpoint.fingerprint() for checkpoint in inputs)])

    def origin(self, name: str) -> Origin:
        """Where the layer's own tensor comes from."""
        planned = self._planned[name]
        return planned.checkpoint.origin(planned.name)

    def unused(self, source: Source, name: str) -> str:
        """A layer may be off the path; embeddings, final norm and head are those of one checkpoint."""
        for part in self.checkpoints:
            if isinstance(part, Component) and part.whole is source and (place := part.layout.place(name))[0] != part.part:
                return f"{place[0]} of {source.ref.label}, of which the result has another's"
        return "layer not on the path" if classify(name)[0] == "block" else "embeddings, norm and head come from another source"

    def stream(self, name: str) -> Iterator[torch.Tensor]:
        """Read one tensor, and convert it where the dtype differs."""
        checkpoint, own, dtype, _ = self._planned[name]
        pieces = pieces_of(checkpoint.read(own, dtype)) if isinstance(checkpoint, Source) else checkpoint.stream(own)
        for piece in pieces:
            yield piece if dtype is None else piece.to(dtype)

    @property
    def warnings(self) -> list[str]:
        """What is doubtful about the merge, where there is one, or about the sources."""
        sources = [checkpoint for checkpoint in self.checkpoints if isinstance(checkpoint, Source)]
        if len(sources) == len(self.checkpoints):
            found = find_warnings(sources, None, self.tokenizer_source)
            return found + template_warnings(self.tokenizer_source.folder, self.chat_template)
        used = {self.flow.embedding_source, *(source for source, _ in self.flow.to_path().unique_layers)}
        idle = [str(n) for n, checkpoint in enumerate(self.checkpoints) if n not in used and not isinstance(checkpoint, Source)]
        found = [f"no hop of the path runs a layer of the merge, source {n}, which is of no use" for n in idle]
        return found + [line for checkpoint in self.checkpoints for line in checkpoint.warnings]

    def findings(self) -> Findings:
        """What the checkpoints noticed."""
        found = Findings()
        for checkpoint in self.checkpoints:
            found.add(checkpoint.findings())
        return found

    def write_companions(self, folder: Path) -> None:
        """Write config and code, and copy what else lies beside the weights."""
        from ..modeling import modeling_evo_merged

        self._config.save_pretrained(folder)
        code = Path(str(modeling_evo_merged.__file__))
        shutil.copyfile(code, folder / code.name)
        if self.body is not None:
            self.processor_source.write_processor(folder)
        self.tokenizer_source.write_tokenizer(folder)
        if self.chat_template is not None:
            write_chat_template(folder, self.chat_template)

    def __str__(self) -> str:
        planned = [str(checkpoint) for checkpoint in self.checkpoints if not isinstance(checkpoint, Source)]
        hops, distinct = len(self._config.path), len(set(self._config.slots))
        return ", then ".join([*planned, f"a path of {hops} hops over {distinct} distinct layers"])

    def _checked_config(self, dtype: str | None) -> EvoMergedConfig:
        """Everything about path and checkpoints is checked here."""
        import torch

        from ..modeling.modeling_evo_merged import merged_class

        configs = [checkpoint.config for checkpoint in self.checkpoints]
        if self.body is not None:
            configs[self.flow.embedding_source] = self.body.config
        for checkpoint, given in zip(self.checkpoints, configs, strict=True):
            if self.body is None and given.model_type != "evo_merged" and given.get_text_config() is not given:
                raise SourceError(f"{checkpoint}: {given.model_type!r} is more than a language model; write component: text")
        check_configs(configs, self.flow.embedding_source, names=self.checkpoints)
        config = path_config(
            configs, self.flow, sources=[checkpoint.ref.model_dump(exclude_none=True) for checkpoint in self.checkpoints]
        )
        config.dtype = getattr(torch, dtype) if dtype is not None else configs[0].dtype
        config.text_config.dtype = config.dtype
        config.architectures = [merged_class(config).__name__]
        return config

    def _plan(self) -> dict[str, _Planned]:
        """Find every tensor of the result among those of the checkpoints."""
        import torch

        from ..modeling.modeling_evo_merged import source_class
        from ..modeling.origins import plan_tensors

        kind = source_class(self._config.text_config)
        wanted = self._config.dtype if isinstance(self._config.dtype, torch.dtype) else None
        kept_in_float32 = {*(kind._keep_in_fp32_modules or ()), *(kind._keep_in_fp32_modules_strict or ())}
        plan = {}
        try:
            origins = plan_tensors(self._config)
        except ValueError as cause:
            raise SourceError(one_line(cause)) from cause
        placed = self._placed(origins) if self.body is not None else {}
        for target, ((index, name), shape) in origins.items():
            checkpoint, name = placed.get(target, (self.checkpoints[index], name))
            info = checkpoint.tensors.get(name)
            if info is None:  # perhaps saved from the architecture's base model
                short = name.removeprefix(f"{kind.base_model_prefix}.")
                name, info = (short, checkpoint.tensors[short]) if short in checkpoint.tensors else (name, None)
            if info is None:
                saved = (checkpoint.config.architectures or ["an unknown class"])[0]
                raise SourceError(
                    f"{checkpoint}: no tensor called {name}; it was saved from {saved}: save all of it with the "
                    "installed transformers"
                )
            if not info.is_float and info.dtype not in ("BOOL", "I64", "I32"):
                raise SourceError(f"{checkpoint}: {name} is {info.dtype}, quantised; give the model in bfloat16 or float32")
            if info.shape != shape:
                raise SourceError(f"{checkpoint}: {name} has shape {list(info.shape)}, the merged model needs {list(shape)}")
            dtype = wanted if info.is_float and not kept_in_float32 & set(target.split(".")) else None
            stored = info.dtype if dtype is None else STORED[str(dtype).removeprefix("torch.")]
            plan[target] = _Planned(checkpoint, name, dtype, TensorInfo(stored, info.shape))
        self._check_layers(plan.values())
        return plan

    def _placed(self, targets: Iterable[str]) -> Mapping[str, tuple[Checkpoint, str]]:
        """Where each tensor of a model with parts is: in the language part of a checkpoint, or in the body."""
        assert self.body is not None  # the caller has looked
        own = {target: target.removeprefix("model.") for target in targets}
        layout = Layout.of_names(self._config.text_config, own.values(), str(self.body))
        raw = {place: name for name in _host(self.body).tensors if (place := self._host_layout.place(name))}
        found: dict[str, tuple[Checkpoint, str]] = {}
        for target, name in own.items():
            part, inside = layout.place(name)
            if part != "text":
                found[target] = self.body, raw.get((part, inside), name)
                continue
            source, slot = self.flow.embedding_source, classify(inside)[1]
            if slot is not None:
                source, layer = self._config.slots[slot]
                inside = re.sub(rf"\.{slot}\.", f".{layer}.", inside, count=1)
            found[target] = self.checkpoints[source], inside
        return found

    @property
    def _host_layout(self) -> Layout:
        if isinstance(self.body, Source):
            return next(part.layout for part in self.checkpoints if isinstance(part, Component) and part.whole is self.body)
        assert self.body is not None  # the caller has looked
        return self.body.layout

    def _check_layers(self, planned: Iterable[_Planned]) -> None:
        """Raise `SourceError` where a layer on the path has a tensor that the result's class has no place for."""
        used = {(id(each.checkpoint), each.name) for each in planned}
        for source, layer in dict.fromkeys(self._config.slots if self.body is not None else []):
            checkpoint = self.checkpoints[source]
            for name, info in checkpoint.tensors.items():
                extra = classify(name)[1] == layer and info.is_float and ".rotary_emb.inv_freq" not in name
                if extra and (id(checkpoint), name) not in used:
                    raise SourceError(f"{checkpoint}: the layers of {self.body} have no place for its {name}; they do not fit")


def _host(body: Source | Composed) -> Source:
    return body if isinstance(body, Source) else body.host
