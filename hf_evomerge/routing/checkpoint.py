"""Write the merged model of a path: tensors stream from the sources' safetensors files into those of the result.

Knows files. Never holds more than one shard, never unpickles, and leaves nothing half-written behind.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import NamedTuple

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.torch import save_file
from tqdm import tqdm

from ..errors import PathError, SourceError
from ..folders import copy_companions, new_folder
from ..modeling import EvoMergedConfig, EvoMergedForCausalLM
from ..modeling import modeling_evo_merged as modeling_file
from ..modeling.modeling_evo_merged import check_scale_target, source_class
from ..modeling.origins import check_rearrangeable, plan_tensors
from ..recipe import FlowPart, SourceRef
from ..sources import Source

_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "F16": 2, "BF16": 2, "I32": 4, "F32": 4, "I64": 8, "F64": 8}


class _Planned(NamedTuple):
    """One tensor of the result: where it comes from and how it is written."""

    source: Source
    name: str
    dtype: torch.dtype | None  # None: as it is stored
    size: int  # bytes

    def read(self) -> torch.Tensor:
        tensor = self.source.get(self.name)
        return (tensor if self.dtype is None else tensor.to(self.dtype)).contiguous()


def build_flow(
    folders: Sequence[FilePath],
    flow: FlowPart,
    out: FilePath,
    *,
    sources: Sequence[SourceRef],
    dtype: str | None = None,
    max_shard_size: str = "4GB",
    progress: bool = True,
) -> FilePath:
    """Write the merged model of a path into a folder that `from_pretrained` loads.

    Args:
        folders: The checkpoint folder of each source.
        flow: The path, its scales, and the source of the embeddings and the tokenizer.
        out: The folder to make; it must not exist, or be empty.
        sources: What the sources are called in the result's configuration.
        dtype: The dtype of the floating-point tensors, such as ``bfloat16``; the first source's by default.
        max_shard_size: The size that no file of weights exceeds, unless a single tensor does.
        progress: Whether to show a progress bar.

    Returns:
        The folder.

    Raises:
        PathError: The path names a layer that is not there, or cannot run as asked.
        SourceError: The sources do not fit together, or a tensor is missing.
        EvoMergeError: There is something under the folder's name already.
    """
    opened = [Source(folder, ref) for folder, ref in zip(folders, sources, strict=True)]
    config = _configuration(opened, flow, dtype)
    plan = _plan(opened, config)
    try:
        with new_folder(out) as folder:
            _write_weights(plan, folder, max_shard_size, progress)
            config.save_pretrained(folder)
            shutil.copyfile(str(modeling_file.__file__), folder / FilePath(str(modeling_file.__file__)).name)
            copy_companions(opened[flow.embedding_source].folder, folder)
    finally:
        for source in opened:
            source.close()
    return FilePath(out)


def _configuration(sources: Sequence[Source], flow: FlowPart, dtype: str | None) -> EvoMergedConfig:
    """The configuration of the merged model; everything about path and sources is checked here."""
    path = flow.to_path()
    for source in sources:
        if source.text_config is not source.config:
            raise SourceError(f"{source}: {source.config.model_type!r} is more than a language model; give a text-only source")
    path.check([source.layer_count for source in sources])
    configs = [source.config for source in sources]
    try:
        check_rearrangeable(configs)
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
        size = info.numel * (_BYTES.get(info.dtype, 1) if dtype is None else dtype.itemsize)
        plan[target] = _Planned(source, name, dtype, size)
    return plan


def _write_weights(plan: dict[str, _Planned], folder: FilePath, max_shard_size: str, progress: bool) -> None:
    shards = split_state_dict_into_shards_factory(
        plan,
        get_storage_size=lambda planned: planned.size,
        get_storage_id=lambda planned: None,
        max_shard_size=max_shard_size,
        filename_pattern="model{suffix}.safetensors",
    )
    with tqdm(total=len(plan), unit="tensor", desc="Writing", disable=None if progress else True) as bar:
        for file, names in shards.filename_to_tensors.items():
            tensors = {}
            for name in names:
                tensors[name] = plan[name].read()
                bar.update()
            save_file(tensors, folder / file, metadata={"format": "pt"})
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(
            json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )
