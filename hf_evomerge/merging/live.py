"""The live executor: writes merged tensors into the parameters of a resident model, for search.

A candidate costs the arithmetic alone: nothing is loaded, allocated or rebuilt. The tensors are
those that `build_model` writes for the same recipe, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..checkpoints.checkpoint import Parent
from ..checkpoints.compatibility import check_mergeable
from ..checkpoints.headers import tensor_order
from ..errors import SourceError
from ..recipes.recipe import ParameterValue
from .arithmetic import TensorJob, memory_needed
from .checks import complete
from .fused import fused_parts
from .method import Values
from .registry import get_method

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


MEMORY_LIMIT = 2 << 30  # bytes that are spent on task vectors beside a live model


class MergeKind:
    """Merges of the same sources by the same method, which differ in numbers alone.

    Args:
        sources: The merged sources, in the order of the recipe's ``merge.sources``.
        base: The common ancestor, for methods that need one.
        method: Name of the merge method.
        options: Its global options; defaults where absent.
        kept: Tensors that are not merged, each with the source whose the result has.

    Raises:
        RecipeError: The method is unknown, or its options are wrong.
        SourceError: The sources cannot be merged with each other.
    """

    def __init__(
        self,
        sources: list[Parent],
        base: Parent | None,
        method: str,
        options: Values,
        *,
        kept: Mapping[str, Parent] | None = None,
    ) -> None:
        self.method = get_method(method)
        check_mergeable(sources, base)
        self.layer_count = sources[0].layer_count
        self.source_count = len(sources)
        self.has_base = base is not None
        self.kept = kept or {}
        self.names = [name for name in sources[0].tensors if name not in self.kept]
        self.options = dict(options)
        self.complete([])

    def complete(
        self, parameters: Sequence[Mapping[str, ParameterValue]], options: Values | None = None
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The parameters and options of a merge with the defaults filled in; see
        `LiveMerger.apply`."""
        return complete(
            self.method,
            parameters,
            {**self.options, **(options or {})},
            sources=self.source_count,
            has_base=self.has_base,
            layer_count=self.layer_count,
            names=self.names,
        )


class LiveMerger(MergeKind):
    """Merges sources into a model that stays in memory.

    Args:
        sources, base, method, options, kept: As for `MergeKind`.
        seed: The recipe's seed.
        model: A model of the sources' own class; its parameters are overwritten by `apply`.
        memory_limit: Bytes that may be spent on task vectors, sorted magnitudes and random fields.
            What does not fit is computed from the memory-mapped files each time, to the same bits.

    Raises:
        RecipeError: The method is unknown, or its options are wrong.
        SourceError: The sources cannot be merged with each other, or do not fit the model.

    Example:
        >>> japanese, maths, base = [open_source(name) for name in ("japanese", "maths", "base")]
        >>> model = AutoModelForCausalLM.from_pretrained("base")
        >>> merger = LiveMerger([japanese, maths], base, "dare_ties", {}, seed=0, model=model)
        >>> merger.apply([{"weight": 0.9, "density": 0.8}, {"weight": 0.7, "density": 0.4}])
    """

    def __init__(
        self,
        sources: list[Parent],
        base: Parent | None,
        method: str,
        options: Values,
        seed: int,
        model: PreTrainedModel,
        *,
        kept: Mapping[str, Parent] | None = None,
        memory_limit: int = MEMORY_LIMIT,
    ) -> None:
        super().__init__(sources, base, method, options, kept=kept)
        self.jobs: list[tuple[TensorJob, Tensor]] = []
        # Memory is given to tensors in their order until the limit is reached. A tensor that gets
        # none reads its inputs from the mapped files in every merge, which is slower, to the same
        # bits.
        for name, parameter in live_tensors(sources[0], model).items():
            target = parameter.data
            if name in self.kept:
                target.copy_(self.kept[name].read(name, target.dtype))
                continue
            needed = memory_needed(self.method, target.numel(), len(sources), base is not None)
            keep = needed <= memory_limit
            memory_limit -= needed if keep else 0
            job = TensorJob(
                name,
                self.method,
                base.read(name, target.dtype) if base is not None else None,
                [source.read(name, target.dtype) for source in sources],
                seed=seed,
                device=target.device,
                keep=keep,
            )
            self.jobs.append((job, target))

    def apply(
        self, parameters: Sequence[Mapping[str, ParameterValue]], options: Values | None = None
    ) -> None:
        """Overwrite the model's parameters with one merge.

        Args:
            parameters: One mapping per source, as in a recipe: a number, or one per layer group.
                Defaults where absent.
            options: Global options of this merge alone, in place of those given before, such as
                ``{"t": 0.3}``.

        Raises:
            RecipeError: A parameter is unknown, of the wrong type or out of range, or the layer
                groups do not fit; the model is then unchanged.
        """
        import torch

        values, chosen = self.complete(parameters, options)
        with torch.inference_mode():
            for job, target in self.jobs:
                job.run(values, chosen, target)


def write_adapter(source: Parent, model: PreTrainedModel) -> None:
    """Write the weights that the source's adapter changes into a model that was loaded from the
    source's folder.

    Raises:
        SourceError: The adapter changes a tensor that is no parameter of the model under its raw
            name.
    """
    import torch

    if source.adapter is None:
        return
    targets = live_tensors(source, model)
    with torch.inference_mode():
        for name in source.changes:
            targets[name].copy_(source.read(name, targets[name].dtype))


def write_part(part: Parent, host: Parent, model: PreTrainedModel) -> None:
    """Write a part of another checkpoint into a model, in place of its own; of a vocabulary the
    rows that both have.

    Args:
        part: What is written.
        host: The same part of the checkpoint that the model was loaded from.
        model: The model.

    Raises:
        SourceError: The parts do not fit each other.
    """
    import torch

    check_mergeable([host, part], same_vocabulary=False)
    targets = live_tensors(host, model)
    with torch.inference_mode():
        for name, target in targets.items():
            tensor = part.read(name, target.dtype)
            rows = min(len(target), len(tensor)) if target.dim() else None
            target.data[:rows].copy_(tensor[:rows]) if target.dim() else target.data.copy_(tensor)


def live_tensors(source: Parent, model: PreTrainedModel) -> dict[str, Tensor]:
    """The model's parameter or buffer for every tensor of the source that is merged."""
    state: dict[str, Tensor] = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers()),
    }
    prefix = f"{getattr(model, 'base_model_prefix', '')}."  # transformers' models have one
    names = sorted(
        (name for name, info in source.tensors.items() if info.is_float), key=tensor_order
    )

    def find(name: str, moved: bool) -> Tensor | None:
        return next(
            (state[own] for own in source.parameters(name, prefix, moved=moved) if own in state),
            None,
        )

    # Newer versions of transformers rename some modules when they load. Names are looked up as the
    # file has them, and where one is missing all are looked up as the library renames them: never a
    # mix, in which two names could mean one parameter.
    moved = any(find(name, False) is None for name in names)
    parts = fused_parts(model) if moved and any(find(name, True) is None for name in names) else {}
    state |= parts
    targets: dict[str, Tensor] = {}
    for name in names:
        info = source.tensors[name]
        target = find(name, moved)
        if target is None and ".rotary_emb.inv_freq" in name:
            continue
        if target is None or tuple(target.shape) != info.shape or not target.is_contiguous():
            found = "no such parameter" if target is None else f"shape {list(target.shape)}"
            raise SourceError(
                f"{source}: {name} ({info}) does not fit the model, a {type(model).__name__} "
                f"with {found}; "
                "load the model from one of the sources, or merge to disk"
            )
        targets[name] = target
    # The other direction: a parameter that no tensor fills would keep the values of the model that
    # was loaded. Tied parameters share memory, hence addresses rather than names.
    filled = {target.data_ptr() for target in targets.values()}
    for name, parameter in [*model.named_parameters(), *parts.items()]:
        if source.covers(name) and parameter.data_ptr() not in filled:
            raise SourceError(
                f"{source}: has no tensor for the model's parameter {name}; load the model "
                "from one of the sources"
            )
    return targets
