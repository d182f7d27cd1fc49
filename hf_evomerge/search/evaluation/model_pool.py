"""The models of a search in memory: sources that stay, parents that come and go, and recipes
without copying a layer.

Knows neither tasks nor scores.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...checkpoints.headers import read_mapping
from ...errors import SourceError
from ...fitness.text.encoding import FORCED_TOKENS, SPECIAL_TOKENS
from ...recipes.recipe import MergePart, Recipe, SourceRef
from ..file.config import SearchConfig
from .devices import devices_of
from .quantization import Quantization, keep_differentiable, packed
from .sources import SearchSources, Target

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

    from ...checkpoints.checkpoint import Parent
    from ...merging.gradient import MergeGradient, Number
    from ...merging.joined import JoinedAdapters
    from ...merging.live import LiveMerger
    from ...routing.pool import LayerPool


# There are four ways to make a model. What is asked for decides which:
#   a parent (SourceRef)        loaded as it is; a "visitor", let go when another whole model comes
#   a merge, sources as models  weights are written into one resident model (`LiveMerger`)
#   a merge, sources as LoRAs   the base runs with the adapters beside it (`JoinedAdapters`);
#                               `SearchSources.runs_unmerged` tells these from the row above
#   a path (recipe.flow)        a thin model whose layers belong to the sources (`LayerPool`); a
#                               merge in the same recipe is one more source
# Kept invariant: there is one visitor at most, and the weights of the resident merge are those of
# `_applied`, or unknown where it is None. Whatever may leave other weights there sets `_applied` to
# None first, so an error in between does no harm.
class ModelPool:
    """Turns recipes and parents into live models, on the devices of a search.

    Args:
        config: The search: sources, dtype, devices (of the first worker, where there are several)
            and threads.
        sources: Its opened sources.

    Attributes:
        check: Refuses a source that the search's task cannot score, before it is loaded.
        loading: Called when the loading of models begins and ends, whose time is not an
            evaluation's.
        dtype: The dtype of the models.
    """

    def __init__(self, config: SearchConfig, sources: SearchSources) -> None:
        import torch

        torch.set_num_threads(config.compute.threads)
        self.config = config
        self.sources = sources
        self.dtype = (
            getattr(torch, config.output.dtype)
            if config.output.dtype
            else sources[0].config.dtype or torch.float32
        )
        self._resident: dict[SourceRef, PreTrainedModel] = {}
        self._visitor: tuple[SourceRef, PreTrainedModel] | None = None
        self._merged_models: dict[tuple[int, int], PreTrainedModel] = {}
        self._merger: tuple[Hashable, LiveMerger | JoinedAdapters, PreTrainedModel] | None = None
        self._gradient: MergeGradient | None = None
        self._applied: MergePart | None = None
        self._pool: tuple[tuple[int | None, int], LayerPool] | None = None
        self._noise: ModelPool | None = None
        self.check: Callable[[Parent], object] = lambda source: None
        self.loading: Callable[[bool], object] = lambda loading: None

    @cached_property
    def device(self) -> str:
        """Device to evaluate on; the first where models are spread over several."""
        return devices_of(self.config)[0]

    def model(self, target: Target) -> PreTrainedModel:
        """A live model of a recipe or a parent. It shares parameters with others made here: use it
        before the next one."""
        if isinstance(target, SourceRef):
            return self._parent(target)
        if target.flow is None:
            assert target.merge is not None  # a recipe has at least one part
            return self._merged_model(target.merge)
        return self.layer_pool(target).model(target.flow.to_path(), target.flow.scale_target)

    def of(self, recipe: Recipe) -> ModelPool:
        """The models that a recipe is made of: these, or noise in place of the sources, for which
        these are let go."""
        if recipe.sources == self.config.sources:
            self._noise = None
            return self
        if self._noise is None:
            self.forget()
            compute = self.config.compute.model_copy(update={"seed": recipe.seed})
            update = {"sources": recipe.sources, "compute": compute}
            config = self.config.model_copy(update=update)
            trusted = self.sources.trust_remote_code
            self._noise = ModelPool(config, SearchSources(config, trust_remote_code=trusted))
            self._noise.check = self.check
            self._noise.loading = self.loading
        return self._noise

    def merge_gradient(
        self, part: MergePart
    ) -> tuple[Callable[..., dict[Number, float]], PreTrainedModel]:
        """Gradient function of this kind of merges (see `MergeGradient`), and the resident model
        that it leaves merged."""
        from ...merging.gradient import MergeGradient
        from ...merging.joined import JoinedAdapters

        merger, model = self._merger_of(part)
        if isinstance(merger, JoinedAdapters):
            self._applied = None
            return merger.gradient, model
        if self._gradient is None or self._gradient.merger is not merger:
            self._gradient = MergeGradient(merger, model)
        self._applied = None
        return self._gradient, model

    def layer_pool(self, recipe: Recipe) -> LayerPool:
        """The pool of all sources' layers, and the merged model's where the recipe has one."""
        from ...routing.pool import LayerPool

        assert recipe.flow is not None  # the caller has looked
        embeddings = recipe.flow.embedding_source
        merged = [] if recipe.merge is None else [self._merged_model(recipe.merge)]
        # Merges of one kind are written into the same resident model, so a pool stays valid when
        # the merge's numbers change. Another first source, or other embeddings, needs another pool.
        key = (recipe.merge_sources[0] if merged else None, embeddings)
        if self._pool is None or self._pool[0] != key:
            models = [*(self._resident_source(ref) for ref in self.config.sources), *merged]
            self._pool = (key, LayerPool(models, embedding_source=embeddings))
        return self._pool[1]

    def forget(self) -> None:
        """Let go of every model, sources that paths run through among them; what is wanted again is
        loaded again."""
        held = (self._visitor, self._merger, self._pool, self._noise)
        if not any((*held, self._merged_models, self._resident)):
            return
        self._visitor = self._merger = self._gradient = self._applied = self._pool = None
        self._noise = None
        self._merged_models.clear()
        self._resident.clear()
        gc.collect()

    def _parent(self, ref: SourceRef) -> PreTrainedModel:
        """The plain model of a parent. It is let go when another whole model is needed, unless
        paths run through it."""
        if ref in self._resident:
            return self._resident[ref]
        if (model := self._alone(ref)) is not None:
            return model
        if self._visitor is None or self._visitor[0] != ref:
            self._visitor = None
            if (
                self.config.space == "ps"
            ):  # one whole model at a time, where every candidate is written into the same one
                self.forget()
            gc.collect()
            self._visitor = (ref, self._whole(ref))
        return self._visitor[1]

    def _alone(self, ref: SourceRef) -> PreTrainedModel | None:
        """The base of a search over adapters, with one of them or with none; None where other
        models must be loaded."""
        from ...merging.joined import JoinedAdapters

        refs = [self.config.sources[number] for number in self.config.merge_sources]
        if ref not in (*refs, self.config.base) or self.config.space != "ps":
            return None
        if not self.sources.runs_unmerged(part := self.config.merge.part()):
            return None
        merger, model = self._merger_of(part)
        assert isinstance(merger, JoinedAdapters)
        self._applied = None
        merger.run_alone(refs.index(ref) if ref in refs else None)
        return model

    def _whole(self, ref: SourceRef) -> PreTrainedModel:
        """A parent as it is; a plain language model beside one that sees is put into that one, or
        it could not see."""
        from ...merging.live import write_part

        source = next((one for one in self.sources.all if one.ref == ref), None)
        host = self.sources.host
        if source is None or host is None or not source.is_whole:
            return self.load(self.sources.open(ref))
        model = self.load(host.whole)
        source.whole.download()
        write_part(source, host, model)
        return model

    def _resident_source(self, ref: SourceRef) -> PreTrainedModel:
        """The plain model of a source that paths run through; it stays."""
        if ref not in self._resident:
            model = self._parent(ref)
            self._visitor = None
            self._resident[ref] = model
        return self._resident[ref]

    def load(self, source: Parent, quantization: Quantization | None = None) -> Any:
        """Load a plain model of its own, or a pipeline, ready to be scored; quantised where a kind
        is given."""
        import torch
        from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

        from ...checkpoints.architecture import model_class
        from ...fitness.text.embedding import attach_modules
        from ...merging.live import write_adapter
        from ...merging.live_pipeline import load_pipeline

        self.check(source)
        dtype = getattr(torch, self.config.output.dtype) if self.config.output.dtype else None
        if source.entries:
            with self._unmeasured():
                return load_pipeline(source, dtype).to(self.device)
        kind: Any = model_class(source.config, (source.config.architectures or [""])[0])
        spread = self.config.compute.device_map
        places = (
            packed(quantization, self.dtype, self.device)
            if quantization
            else {"device_map": spread}
        )
        with self._unmeasured():
            source.download()
            sees = getattr(source.config, "has_parts", False)  # a merged model says it
            loaded: Any = (
                kind or (AutoModelForImageTextToText if sees else AutoModelForCausalLM)
            ).from_pretrained(
                **_weights_of(source),
                generation_config=_stated_generation(source.folder),
                dtype=self.dtype,
                attn_implementation=self.config.compute.attn_implementation,
                output_loading_info=True,
                use_safetensors=True,
                use_kernels=False,  # code of the Hub, and scores would depend on it
                trust_remote_code=self.sources.trust_remote_code,
                **places,
            )
        model, report = loaded
        if missing := sorted(report["missing_keys"]):  # transformers has made them up at random
            raise SourceError(
                f"{source}: has no tensor {missing[0]} ({len(missing)} are missing); "
                "download it again"
            )
        attach_modules(source, model, dtype)
        write_adapter(source, model)
        if quantization:
            keep_differentiable(model)
        elif spread is None:
            model.to(self.device)
        elif any(
            parameter.is_meta for parameter in model.parameters()
        ):  # accelerate has left it on the processor or on disk
            raise SourceError(
                f"{source}: compute.device_map: the GPUs together have not the memory for "
                "it; take more of them"
            )
        ready: PreTrainedModel = model.eval().requires_grad_(False)
        return ready

    @contextmanager
    def _unmeasured(self) -> Iterator[None]:
        """Say that models are loaded meanwhile."""
        self.loading(True)
        try:
            yield
        finally:
            self.loading(False)

    def _merged_model(self, part: MergePart) -> PreTrainedModel:
        """The resident merged model with these parameters written into it; its config is that of
        the first source."""
        merger, model = self._merger_of(part)
        if self._applied != part:
            self._applied = None
            merger.apply(part.parameters, part.options)
            self._applied = part
        return model

    def _merger_of(self, part: MergePart) -> tuple[LiveMerger | JoinedAdapters, PreTrainedModel]:
        """Merger of this kind, made when it is first asked for, and its resident model."""
        if part.slices is not None:
            raise SourceError(
                "merge.slices: a stack is built on disk and not scored in memory; build it, "
                "and give its folder"
            )
        kind = self.sources.kind_of(part)
        joined = self.sources.runs_unmerged(part)
        key = kind[:-1] if joined else kind  # adapters on their base take any options
        if self._merger is None or self._merger[0] != key:
            self._merger = self._gradient = self._applied = (
                None  # first: task vectors of two kinds are not held at once
            )
            self._merger = (key, *(self._joined(part) if joined else self._live_merger(part)))
        return self._merger[1:]

    def _joined(self, part: MergePart) -> tuple[JoinedAdapters, PreTrainedModel]:
        """Adapters on their base, which is loaded for them alone."""
        from ...merging.joined import JoinedAdapters

        plan = self.sources.merged(part).plan
        self._visitor = None
        self._merged_models.clear()
        assert plan.base is not None  # which the adapters have
        model = self.load(plan.base, self.config.compute.quantization)
        with self._unmeasured():
            for source in plan.sources:
                source.download()
            merger = JoinedAdapters(
                plan.sources,
                plan.base,
                part.method,
                model,
                kept=plan.kept,
                core=plan.core,
                seed=self.config.compute.seed,
            )
        return merger, model

    def _live_merger(self, part: MergePart) -> tuple[LiveMerger, PreTrainedModel]:
        """Merger that writes into a whole model of the first source, and that model."""
        from ...merging.live import LiveMerger

        merged = self.sources.merged(part)
        first = (part.sources or [0])[0]
        rows = merged.vocab_size
        plan = merged.plan
        source = self.sources[first]
        if (first, rows) not in self._merged_models:
            # a search over one source alone has its own; one at a time is in memory
            self._merged_models.clear()
            self._visitor = self._pool = None
            model = self._body(source)
            if rows and model.get_input_embeddings().num_embeddings != rows:
                model.resize_token_embeddings(rows, mean_resizing=False)
            self._merged_models[first, rows] = model
        model = self._merged_models[first, rows]
        with self._unmeasured():
            merger = LiveMerger(
                plan.sources,
                plan.base,
                part.method,
                part.options,
                self.config.compute.seed,
                getattr(model, source.part)
                if source.whole.entries and source.part
                else model,  # of a pipeline the part
                kept=plan.kept,
            )
        return merger, model

    def _body(self, first: Parent) -> Any:
        """The model that merges are written into: the first source, with the parts that others
        give."""
        from ...checkpoints.component import Component
        from ...merging.live import write_part

        model = self.load(first.whole)
        for part, number in (self.config.output.components or {}).items():
            whole = self.sources[number].whole
            if whole.entries:
                model.register_modules(**{part: getattr(self.load(whole), part)})
                continue
            whole.download()
            write_part(Component(whole, part), Component(first.whole, part), model)
        return model


def _weights_of(source: Parent) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` for the weights: the folder, or the tensors as a merge reads
    them where they are quantised, or an adapter moves layers."""
    # transformers would keep them quantised on a GPU, where a merge could not be written into them,
    # and it dequantises no FP8 weight whose last block is a part of one. Parameters are these very
    # tensors, and merges are written into them: plain ones must not be views of the file.
    if source.is_quantized or source.layer_order:
        return {
            "pretrained_model_name_or_path": None,
            "config": source.config,
            "state_dict": {name: source.read(name).clone() for name in source.tensors},
        }
    return {"pretrained_model_name_or_path": source.folder}


def _stated_generation(folder: Path) -> GenerationConfig | None:
    """Generation config of a folder, of which the special tokens alone are read; None without a
    file.

    transformers would read the whole file, and refuse a model for settings that do not count here.
    """
    from transformers import GenerationConfig

    file = folder / "generation_config.json"
    if not file.is_file():
        return None
    stated = read_mapping(file, str(file))
    return GenerationConfig(
        **{name: stated.get(name) for name in (*SPECIAL_TOKENS, *FORCED_TOKENS)}
    )
