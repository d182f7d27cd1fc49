"""Write the merged model of a path: tensors stream from the sources' safetensors files into those of the result.

Knows files. Holds one slice of a tensor, never unpickles, and leaves nothing half-written behind under the result's name.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from ..checkpoints.headers import STORED
from ..checkpoints.model_folder import check_free, copy_companions, put_in_place, scratch_folder
from ..checkpoints.shards import Entry, Write, parse_size, write_shards
from ..checkpoints.source import Source
from ..errors import PathError, SourceError
from ..modeling import EvoMergedConfig, EvoMergedForCausalLM
from ..modeling import modeling_evo_merged as modeling_file
from ..modeling.modeling_evo_merged import check_scale_target, source_class
from ..modeling.origins import plan_tensors
from ..recipes.recipe import FlowPart

SLICE = 1 << 20  # elements that are converted and written at a time


class _Planned(NamedTuple):
    """One tensor of the result: where it comes from and how it is written."""

    source: Source
    name: str
    dtype: torch.dtype | None  # None: as it is stored
    entry: Entry

    def write(self, write: Write) -> None:
        flat = self.source.get(self.name).contiguous().reshape(-1)
        for start in range(0, len(flat), SLICE):
            piece = flat[start : start + SLICE]
            piece = piece if self.dtype is None else piece.to(self.dtype)
            write(piece.view(torch.uint8).numpy().data)


def build_flow(
    sources: Sequence[Source],
    flow: FlowPart,
    out: Path,
    *,
    dtype: str | None = None,
    tokenizer: Source | None = None,
    max_shard_size: str | int = "4GB",
    progress: bool = True,
) -> Path:
    """Write the merged model of a path into a folder that `from_pretrained` loads.

    Args:
        sources: The sources, by the numbers that the path gives them; the result's configuration calls them by their ``ref``.
        flow: The path, its scales, and the source of the embeddings.
        out: The folder to make; it must not exist, or be empty.
        dtype: The dtype of the floating-point tensors, such as ``bfloat16``; the first source's by default.
        tokenizer: Whose tokenizer, chat template and generation settings to copy; those of the embeddings' source by default.
        max_shard_size: The size that no file of weights exceeds, unless a single tensor does.
        progress: Whether to show a progress bar.

    Returns:
        The folder.

    Raises:
        PathError: The path names a layer that is not there, or cannot run as asked.
        SourceError: The sources do not fit together, or a tensor is missing.
        EvoMergeError: There is something under the folder's name already.
    """
    out, limit = Path(out), parse_size(max_shard_size)
    config = _configuration(sources, flow, dtype)
    plan = _plan(sources, config)
    check_free(out)
    facts = [flow.model_dump_json(), str(config.dtype), str(limit), *(source.fingerprint() for source in sources)]
    try:
        with scratch_folder(out, sha256("\0".join(facts).encode()).hexdigest()[:16]) as scratch:
            for source in sources:
                source.download(progress=progress)
            folder = scratch / "model"
            folder.mkdir(exist_ok=True)
            _write_weights(plan, folder, limit, progress)
            config.save_pretrained(folder)
            shutil.copyfile(str(modeling_file.__file__), folder / Path(str(modeling_file.__file__)).name)
            copy_companions((tokenizer or sources[flow.embedding_source]).folder, folder)
            put_in_place(folder, out)
    finally:
        for source in sources:
            source.close()
    return out


def _configuration(sources: Sequence[Source], flow: FlowPart, dtype: str | None) -> EvoMergedConfig:
    """The configuration of the merged model; everything about path and sources is checked here."""
    path = flow.to_path()
    for source in sources:
        if source.text_config is not source.config:
            raise SourceError(f"{source}: {source.config.model_type!r} is more than a language model; give a text-only source")
    path.check([source.layer_count for source in sources])
    configs = [source.config for source in sources]
    try:
        config = EvoMergedConfig.from_sources(
            configs,
            path.as_text(),
            path.scales,
            scale_target=flow.scale_target,
            embedding_source=flow.embedding_source,
            sources=[source.ref.model_dump(exclude_none=True) for source in sources],
        )
    except ValueError as cause:
        raise SourceError(str(cause)) from cause
    try:
        check_scale_target(config)
    except ValueError as cause:
        raise PathError(str(cause)) from cause
    config.dtype = getattr(torch, dtype) if dtype is not None else configs[0].dtype
    config.text_config.dtype = config.dtype
    config.architectures = [EvoMergedForCausalLM.__name__]
    return config


def _plan(sources: Sequence[Source], config: EvoMergedConfig) -> dict[str, _Planned]:
    """Find every tensor of the result in the headers of the sources."""
    kind = source_class(config.text_config)
    wanted = config.dtype if isinstance(config.dtype, torch.dtype) else None
    kept_in_float32 = {*(kind._keep_in_fp32_modules or ()), *(kind._keep_in_fp32_modules_strict or ())}
    plan = {}
    for target, ((index, name), shape) in plan_tensors(config).items():
        source = sources[index]
        info = source.tensors.get(name)
        if info is None:  # perhaps saved from the architecture's base model
            short = name.removeprefix(f"{kind.base_model_prefix}.")
            name, info = (short, source.tensors[short]) if short in source.tensors else (name, None)
        if info is None:
            raise SourceError(f"{source}: no tensor called {name}; save the source again with the installed transformers")
        if info.shape != shape:
            raise SourceError(f"{source}: {name} has shape {list(info.shape)}, the merged model needs {list(shape)}")
        dtype = wanted if info.is_float and not kept_in_float32 & set(target.split(".")) else None
        stored = info.dtype if dtype is None else STORED[str(dtype).removeprefix("torch.")]
        plan[target] = _Planned(source, name, dtype, Entry(target, stored, info.shape))
    return plan


def _write_weights(plan: dict[str, _Planned], folder: Path, limit: int, progress: bool) -> None:
    entries = [planned.entry for planned in plan.values()]
    total = sum(entry.size for entry in entries)
    with tqdm(total=total, unit="B", unit_scale=True, desc="writing", disable=not progress) as bar:
        write_shards(folder, entries, lambda entry, write: plan[entry.name].write(write), max_size=limit, done=bar.update)
