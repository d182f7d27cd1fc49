"""Predicts, from headers alone, how much memory the models of a search take in each phase, and how
many workers that allows."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ...merging.arithmetic import memory_needed
from ...merging.live import MEMORY_LIMIT
from ...merging.registry import get_method
from ...recipes.layer_groups import classify
from ..file.config import SearchConfig
from .devices import device_memory, devices_of
from .evaluator import Evaluator
from .quantization import BITS

if TYPE_CHECKING:
    from ...checkpoints.checkpoint import Checkpoint, Parent


PROCESS = 600_000_000  # bytes of a worker without models: Python, torch and transformers
_SHARE = 0.75  # of a machine's memory


def default_workers(config: SearchConfig, memory: Mapping[str, int]) -> int:
    """Count the workers that the cores take with their threads, and the memory with their models;
    one beside each GPU.

    Args:
        config: The search.
        memory: What `memory_of_models` gives.
    """
    devices = devices_of(config)
    if not all(device.startswith("cpu") for device in devices):
        return len(devices)
    return max(
        1,
        workers_that_fit(
            cores(), _SHARE * device_memory("cpu"), config.compute.threads, max(memory.values())
        ),
    )


def workers_that_fit(cpus: int, there: float, threads: int, models: int) -> int:
    """Count the workers with so many threads, and models of so many bytes, that some cores and
    bytes of memory take."""
    return min(cpus // threads, int(there // (PROCESS + models)))


def cores() -> int:
    """The cores that this process may use: those that it is bound to, as far as its container's
    share of time goes."""
    count = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return min(count, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no Linux, or no limit
        return count


# With P parameters of b bytes and n sources, one worker holds about
#   parents   P b, the largest of them
#   ps        P b + the task vectors (at most `MEMORY_LIMIT`); unmerged LoRAs: base + factors
#   dfs       n P b, and the merged model of a hybrid search
# Task vectors need not be kept: beyond the limit they are computed anew from the mapped files.
def memory_of_models(config: SearchConfig, evaluator: Evaluator) -> dict[str, int]:
    """Bytes that one worker holds for whole models and task vectors, per phase; activations and
    caches of keys come on top.

    Parents are scored one at a time. A search of weights writes every candidate into one whole
    model, beside which the task vectors are kept as far as `MEMORY_LIMIT` goes; the sources stay in
    their memory-mapped files. LoRA adapters run on their base, quantised or not, with their factors
    beside it. Paths run through the layers of all sources, which are then whole in memory; a hybrid
    search has the merged model beside them.

    Args:
        config: The search.
        evaluator: Its evaluator, which has opened the sources.

    Returns:
        Bytes by ``parents``, ``ps`` and ``dfs``, as far as the search has these phases.
    """
    sources = evaluator.sources
    itemsize = evaluator.models.dtype.itemsize  # type: ignore[union-attr]
    sizes = [_model(source, itemsize) for source in sources]
    found = {"parents": max(_model(source, itemsize) for source in sources.all)}
    merged = sources.merged(config.merge_part()) if config.space != "dfs" else None
    kept = 0
    if merged is not None and sources.runs_unmerged(config.merge_part()):
        base = _model(
            merged,
            itemsize,
            BITS[config.compute.quantization] / 8 if config.compute.quantization else None,
        )
        found["parents"] = kept = base + sum(
            _factors(source, itemsize) for source in merged.plan.sources
        )
    elif merged is not None:
        kept = _model(merged, itemsize) + _task_vectors(config, merged, sources.base is not None)
    for space in config.spaces:
        found[space] = kept + (0 if space == "ps" else sum(sizes))
    return found


def _model(source: Checkpoint, itemsize: int, packed: float | None = None) -> int:
    """Bytes of a whole model in the dtype of the search; where linear layers are packed, `packed`
    for each of their weights."""
    sizes = {name: math.prod(info.shape) for name, info in source.tensors.items() if info.is_float}
    inside = {
        name
        for name in sizes
        if packed and len(source.tensors[name].shape) == 2 and classify(name)[1] is not None
    }
    return int(
        sum(
            size * (packed if packed and name in inside else itemsize)
            for name, size in sizes.items()
        )
    )


def _factors(source: Parent, itemsize: int) -> int:
    """Bytes of an adapter beside its base: its factors, and of those that are multiplied by weights
    a float32 copy."""
    assert source.adapter is not None
    sizes = {key: math.prod(info.shape) for key, info in source.adapter.tensors.items()}
    return sum(
        sizes[change.a] * itemsize + sizes[change.b] * (itemsize + 4)
        for change in source.changes.values()
    )


def _task_vectors(config: SearchConfig, merged: Checkpoint, has_base: bool) -> int:
    method = get_method(config.merge.method)
    count = len(config.merge_sources)
    sizes = [math.prod(info.shape) for info in merged.tensors.values() if info.is_float]
    return min(MEMORY_LIMIT, sum(memory_needed(method, size, count, has_base) for size in sizes))
