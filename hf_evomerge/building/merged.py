"""The checkpoint executor: executes the merge part of a recipe, tensor by tensor, from memory-mapped files to a new folder.

The result is a plain model of the parents' own class. What it holds in memory does not grow with the model: for each thread one
slice of each input and output, where elements are chosen by size the magnitudes of one tensor that are close to the threshold,
and where rows count a few numbers for each row of one tensor.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from ..checkpoints.compatibility import check_mergeable
from ..checkpoints.headers import tensor_order, torch_dtype
from ..checkpoints.model_folder import check_free, copy_code, copy_companions, put_in_place, scratch_folder, write_chat_template
from ..checkpoints.shards import Entry, Write, parse_size, write_shards
from ..checkpoints.source import Source, build_key
from ..errors import RecipeError, SourceError
from ..merging.arithmetic import SLICE, ModelJob, TensorJob
from ..merging.registry import Call, check_part, check_sources, get_method
from ..merging.relatedness import Relatedness
from ..recipes.recipe import Recipe
from .merge_plan import MergePlan, Planned, plan_merge

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

__all__ = ["merge_checkpoint", "merged_config", "plan_recipe"]
Report = Callable[[str], None]
Sources = Sequence[Source] | Mapping[int, Source]  # by their numbers in the recipe


def merge_checkpoint(
    recipe: Recipe,
    out: str | Path,
    *,
    sources: Sources | None = None,
    base: Source | None = None,
    max_shard_size: str | int = "4GB",
    progress: bool = True,
    report: Report | None = None,
) -> Path:
    """Build the model of a recipe's merge part in a new folder.

    As many tensors are merged at a time as torch is allowed threads; the bits do not depend on it. The config is that of the
    first source that takes part; generation config, tokenizer and chat template too, unless the recipe says otherwise. A build
    that was interrupted, even killed, goes on with the files of weights that it had finished.

    Args:
        recipe: The recipe; its flow part, if any, is left to the caller.
        out: The folder to make; it must not exist, or be empty. It appears when the model is complete, never before.
        sources: All sources of the recipe in its order, if they are open already.
        base: The recipe's base, if it is open already.
        max_shard_size: The largest file, such as ``"4GB"``.
        progress: Whether to show a progress bar.
        report: Called at the end with lines for the user: how long the task vectors are, and whether the sources are related.

    Returns:
        The folder.

    Raises:
        RecipeError: The merge part is wrong; nothing was read or written.
        SourceError: A source cannot be opened, or cannot be merged with the others.
        EvoMergeError: There is something under the folder's name already, or another process is building it.
    """
    out, limit = Path(out), parse_size(max_shard_size)
    plan, donor = plan_recipe(recipe, sources, base)
    everyone = [*plan.sources, *([plan.base] if plan.base is not None else [])]
    check_free(out)
    with scratch_folder(out, build_key(recipe, everyone, str(limit))) as scratch:
        for source in everyone:
            source.download(progress=progress)
        folder = scratch / "model"
        folder.mkdir(exist_ok=True)
        relatedness, strange = _write_weights(plan, folder, limit, recipe.seed, progress)
        _write_config(plan, folder, recipe.dtype)
        copy_companions(donor.folder, folder)
        for source in (plan.sources[0], donor):
            if source.trust_remote_code:
                copy_code(source.folder, folder)
        if recipe.chat_template is not None:
            write_chat_template(folder, recipe.chat_template)
        put_in_place(folder, out)
    if report is not None:
        for line in [*relatedness.summary(), *_not_finite(strange)]:
            report(line)
    return out


def plan_recipe(recipe: Recipe, sources: Sources | None = None, base: Source | None = None) -> tuple[MergePlan, Source]:
    """Open and check what a recipe's merge part needs; returns the plan, and the source of the tokenizer.

    Args:
        recipe: The recipe.
        sources: All sources of the recipe in its order, if they are open already.
        base: The recipe's base, if it is open already.

    Raises:
        RecipeError: The merge part is wrong.
        SourceError: A source cannot be opened, or cannot be merged with the others.
    """
    part = recipe.merge
    if part is None:
        raise RecipeError("merge: the recipe has no merge part; there is nothing to merge")
    numbers = recipe.merge_sources
    if part.slices is None:
        check_part(part, sources=len(numbers), has_base=recipe.base is not None)
    else:
        for piece in part.slices:
            check_sources(get_method(part.method), len(piece.layers), recipe.base is not None)
    opened = [sources[number] if sources is not None else Source.open(recipe.sources[number]) for number in numbers]
    if base is None and recipe.base is not None:
        base = Source.open(recipe.base)
    check_mergeable(opened, base, same_depth=part.slices is None, same_vocabulary=recipe.vocabulary in (None, "refuse"))
    plan = plan_merge(recipe, opened, base)
    return plan, _tokenizer_owner(recipe, plan, sources)


def _tokenizer_owner(recipe: Recipe, plan: MergePlan, sources: Sources | None) -> Source:
    """The source whose tokenizer goes with the result; it must have as many tokens as the result has rows."""
    size = plan.vocabulary.size if plan.vocabulary is not None else plan.sources[0].vocab_size
    if recipe.tokenizer == "base":
        assert plan.base is not None  # the recipe was checked
        owner = plan.base
    elif recipe.tokenizer is not None:
        number = recipe.tokenizer
        owner = sources[number] if sources is not None else Source.open(recipe.sources[number])
    else:
        everyone = [*plan.sources, *([plan.base] if plan.base is not None else [])]
        owner = next(source for source in everyone if source.vocab_size == size)
    if owner.vocab_size != size:
        raise SourceError(
            f"tokenizer: {owner} has a vocabulary of {owner.vocab_size}, the merged model one of {size}; name another source"
        )
    return owner


def _write_weights(plan: MergePlan, folder: Path, limit: int, seed: int, progress: bool) -> tuple[Relatedness, dict[str, None]]:
    """Merge all tensors; returns how the sources are related, and the tensors whose numbers are not all finite."""
    import torch

    tensors = {planned.entry.name: planned for planned in plan.tensors}
    jobs: dict[str, TensorJob] = {}

    def all_jobs() -> list[TensorJob]:
        """For methods that look at the whole model before the first tensor is merged; what they find out is kept."""
        jobs.update({name: _job(plan, planned, seed) for name, planned in tensors.items() if planned.is_weight})
        return list(jobs.values())

    strange: dict[str, None] = {}
    method = plan.method
    relatedness = Relatedness(_labels(plan), task_vectors=plan.base is not None and method.task_vectors)
    with _bar(sum(planned.entry.size for planned in plan.tensors), progress) as done, torch.inference_mode():
        model = None
        if method.survey is not None and plan.values:
            model = method.survey(ModelJob(all_jobs), plan.values, plan.options)

        def produce(entry: Entry, write: Write) -> None:
            planned = tensors[entry.name]
            with torch.inference_mode():  # a setting of the thread
                if not planned.is_weight:
                    _put(planned.inputs[0].source.get(planned.inputs[0].name), write)
                    return
                job = jobs.pop(entry.name, None) or _job(plan, planned, seed)
                if not _merge(job, job.call(planned.values, planned.options, model), entry, write, relatedness):
                    strange[entry.name] = None
                _append_rows(plan, planned, write)

        with _single_threaded() as threads:
            write_shards(
                folder, [planned.entry for planned in plan.tensors], produce, max_size=limit, threads=threads, done=done
            )
    return relatedness, strange


def _not_finite(names: Iterable[str]) -> list[str]:
    """A warning where merged tensors hold NaN or infinite numbers."""
    found = sorted(names, key=tensor_order)
    if not found:
        return []
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return [
        f"warning: not all numbers are finite in {', '.join(found[:3])}{more}: a source has NaN or infinite ones (hf-evomerge "
        "diff names them), or they are too large for the dtype"
    ]


def _job(plan: MergePlan, planned: Planned, seed: int) -> TensorJob:
    def read(source: Source, name: str) -> Tensor:
        tensor = source.get(name)
        return tensor[: plan.vocabulary.shared] if planned.vocabulary and plan.vocabulary is not None else tensor

    tensors = [read(item.source, item.name) for item in planned.inputs]
    origin = read(planned.base.source, planned.base.name) if planned.base is not None else None
    return TensorJob(planned.entry.name, plan.method, origin, tensors, seed=seed)


def _merge(job: TensorJob, call: Call, entry: Entry, write: Write, relatedness: Relatedness) -> bool:
    """Merge one tensor and write it, slice by slice; returns whether all its numbers are finite."""
    import torch

    dtype, finite = torch_dtype(entry.dtype), True
    for start in range(0, job.numel, SLICE):
        base, vectors = job.parts(start, min(start + SLICE, job.numel))
        if start // SLICE % 4 == 0:  # a quarter of a large tensor says enough, and costs a quarter
            relatedness.add(base, vectors)
        call.start = start
        merged = job.method.function(base, vectors, call).to(dtype)
        finite = finite and math.isfinite(float(merged.sum(dtype=torch.float32)))
        _put(merged, write)
    return finite


def _append_rows(plan: MergePlan, planned: Planned, write: Write) -> None:
    """Write the rows that only the donor of the vocabulary has."""
    if planned.vocabulary and plan.vocabulary is not None and plan.vocabulary.donor is not None:
        rows = plan.vocabulary.donor.get(planned.inputs[0].name)[plan.vocabulary.shared :]
        _put(rows.to(torch_dtype(planned.entry.dtype)), write)


def _put(tensor: Tensor, write: Write) -> None:
    import torch

    write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


@contextmanager
def _single_threaded() -> Iterator[int]:
    """One thread per tensor rather than several for each operation; yields how many torch is allowed."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _bar(total: int, progress: bool) -> Iterator[Callable[[int], object]]:
    """A progress bar in bytes that may be moved from several threads."""
    from tqdm import tqdm

    lock = Lock()
    with tqdm(total=total, unit="B", unit_scale=True, desc="merging", disable=not progress) as bar:

        def done(size: int) -> None:
            with lock:
                bar.update(size)

        yield done


def _labels(plan: MergePlan) -> list[str]:
    """What the merged vectors are called: the ends of the sources' names, numbered where two are alike."""
    everyone = list(plan.sources)
    if plan.base is not None and plan.method.takes_base_as_first(len(everyone)):
        everyone.insert(0, plan.base)
    names = [source.ref.model.rstrip("/").rpartition("/")[2] for source in everyone]
    return names if len(set(names)) == len(names) else [f"{number}:{name}" for number, name in enumerate(names)]


def _write_config(plan: MergePlan, folder: Path, dtype: str | None) -> None:
    """Write config.json: the first source's, with the result's dtype, vocabulary and layers."""
    if plan.stack is None:
        config = plan.sources[0].read_json("config.json")
    else:
        config = json.loads(merged_config(plan).to_json_string())
    config.pop("_name_or_path", None)
    if not plan.sources[0].trust_remote_code:
        config.pop("auto_map", None)  # the code that it names is not copied
    for part in (config, config.get("text_config")):
        if not isinstance(part, dict):
            continue
        if dtype is not None:
            old = part.pop("torch_dtype", None)
            if part is config or old is not None or "dtype" in part:
                part["dtype"] = dtype
        if plan.vocabulary is not None and "vocab_size" in part:
            part["vocab_size"] = plan.vocabulary.size
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def merged_config(plan: MergePlan) -> PretrainedConfig:
    """The first source's config with the layers of the stack.

    Raises:
        SourceError: A layer would compute something else in its new place, or the layers of the sources do not go together.
    """
    from ..modeling import EvoMergedConfig

    if plan.stack is None:
        return plan.sources[0].config
    configs = [source.config for source in plan.sources]
    for source in plan.sources:
        if source.text_config is not source.config:
            raise SourceError(f"{source}: {source.config.model_type!r} is more than a language model; give a text-only source")
    try:
        stacked = EvoMergedConfig.from_sources(configs, [f"{source}:{layer}" for source, layer in plan.stack]).text_config
    except ValueError as cause:
        raise SourceError(" ".join(str(cause).split())) from cause
    stacked.architectures = configs[0].architectures
    stacked.dtype = configs[0].dtype
    return stacked
