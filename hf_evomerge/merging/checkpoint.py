"""The checkpoint executor: executes the merge part of a recipe, tensor by tensor, from memory-mapped files to a new folder.

The result is a plain model of the parents' own class. What it holds in memory does not grow with the model: one slice of each
input and output, where elements are chosen by size the magnitudes of one tensor that are close to the threshold, and where rows
count a few numbers for each row of one tensor.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ..errors import RecipeError, SourceError
from ..folders import copy_companions, new_folder
from ..recipe import Recipe
from ..sources import Source, check_mergeable
from .arithmetic import SLICE, ModelJob, TensorJob, tensor_order
from .registry import Call, MergeMethod, check_part, complete_options, complete_parameters
from .writer import Entry, header, parse_size, plan_shards, shard_names, write_index

if TYPE_CHECKING:
    from torch import Tensor

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def merge_checkpoint(
    recipe: Recipe,
    out: str | Path,
    *,
    sources: list[Source] | None = None,
    base: Source | None = None,
    max_shard_size: str | int = "4GB",
    progress: bool = True,
) -> Path:
    """Build the model of a recipe's merge part in a new folder.

    Config, generation config, tokenizer and chat template are those of the first source that takes part.

    Args:
        recipe: The recipe; its flow part, if any, is left to the caller.
        out: The folder to make; it must not exist, or be empty. It appears when the model is complete, never before.
        sources: All sources of the recipe in its order, if they are open already.
        base: The recipe's base, if it is open already.
        max_shard_size: The largest file, such as ``"4GB"``.
        progress: Whether to show a progress bar.

    Returns:
        The folder.

    Raises:
        RecipeError: The merge part is wrong; nothing was read or written.
        SourceError: A source cannot be opened, or cannot be merged with the others.
    """
    if recipe.merge is None:
        raise RecipeError("merge: the recipe has no merge part; there is nothing to merge")
    limit = parse_size(max_shard_size)
    taking_part = recipe.merge_sources
    check_part(recipe.merge, sources=len(taking_part), has_base=recipe.base is not None)
    opened = [sources[index] if sources is not None else Source.open(recipe.sources[index]) for index in taking_part]
    if base is None and recipe.base is not None:
        base = Source.open(recipe.base)
    check_mergeable(opened, base)
    method = check_part(recipe.merge, sources=len(opened), has_base=base is not None, layer_count=opened[0].layer_count)
    with new_folder(out) as folder:
        _write_weights(recipe, method, opened, base, folder, limit, progress)
        _write_config(opened[0], folder, recipe.dtype)
        copy_companions(opened[0].folder, folder)
    return Path(out)


def _write_weights(
    recipe: Recipe, method: MergeMethod, sources: list[Source], base: Source | None, folder: Path, limit: int, progress: bool
) -> None:
    import torch
    from tqdm import tqdm

    assert recipe.merge is not None
    options = complete_options(method, recipe.merge.options)
    values = complete_parameters(method, recipe.merge.parameters, len(sources))
    entries = []
    for name in sorted(sources[0].tensors, key=tensor_order):
        info = sources[0].tensors[name]
        dtype = DTYPES[recipe.dtype] if recipe.dtype is not None and info.is_float else info.dtype
        entries.append(Entry(name, dtype, info.shape))
    shards = plan_shards(entries, limit)
    files = dict(zip(shard_names(len(shards)), shards, strict=True))
    total = sum(entry.size for entry in entries)
    jobs: dict[str, TensorJob] = {}
    for entry in entries:
        if sources[0].tensors[entry.name].is_float:
            tensors = [source.get(entry.name) for source in sources]
            origin = base.get(entry.name) if base is not None else None
            jobs[entry.name] = TensorJob(entry.name, method, origin, tensors, seed=recipe.seed)
    with tqdm(total=total, unit="B", unit_scale=True, desc="merging", disable=not progress) as bar, torch.inference_mode():
        model = ModelJob(list(jobs.values())).survey(values, options)
        for file, shard in files.items():
            with (folder / file).open("wb") as stream:
                stream.write(header(shard))
                for entry in shard:
                    if entry.name in jobs:
                        job = jobs.pop(entry.name)  # and with it what it knows of the tensor
                        _stream(job, job.call(values, options, model), entry, stream)
                    else:
                        _write(sources[0].get(entry.name), stream)  # a mask or a table of positions: not a weight
                    bar.update(entry.size)
    if len(files) > 1:
        write_index(folder, files)


def _stream(job: TensorJob, call: Call, entry: Entry, stream: BinaryIO) -> None:
    """Merge one tensor and write it, slice by slice."""
    import torch

    dtypes = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    for start in range(0, job.numel, SLICE):
        _write(job.merge_slice(call, start, min(start + SLICE, job.numel)).to(dtypes[entry.dtype]), stream)


def _write(tensor: Tensor, stream: BinaryIO) -> None:
    import torch

    stream.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _write_config(source: Source, folder: Path, dtype: str | None) -> None:
    """Copy config.json, with the dtype of the result."""
    file = source.folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise SourceError(f"{file}: cannot be read: {cause}") from cause
    config.pop("_name_or_path", None)
    if dtype is not None:
        for part in (config, config.get("text_config")):
            if isinstance(part, dict):
                old = part.pop("torch_dtype", None)
                if part is config or old is not None or "dtype" in part:
                    part["dtype"] = dtype
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
