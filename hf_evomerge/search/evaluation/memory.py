"""Number of workers of a search, by the cores and the free memory; a worker's memory is estimated
from headers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...machine import cores, free_memory
from ...merging.live import MEMORY_LIMIT
from ..file.config import SearchConfig
from .devices import devices_of
from .evaluator import Evaluator
from .quantization import BITS

if TYPE_CHECKING:
    from ...checkpoints.checkpoint import Checkpoint

PROCESS = 600_000_000  # bytes of a worker without models: Python, torch and transformers
_SHARE = 0.75  # of the free memory; the rest is for what passes through the models


def default_workers(config: SearchConfig, memory: int) -> int:
    """Count the workers of so many bytes that the cores and the free memory take; one beside each
    GPU."""
    devices = devices_of(config)
    if not all(device.startswith("cpu") for device in devices):
        return len(devices)
    return max(1, workers_that_fit(cores(), _SHARE * free_memory(), config.compute.threads, memory))


def workers_that_fit(cpus: int, free: float, threads: int, memory: int) -> int:
    """Count the workers with so many threads and bytes that some cores and bytes of memory take."""
    return min(cpus // threads, int(free // memory))


# With P parameters of b bytes and n sources, one worker holds about
#   parents   P b, the largest of them
#   ps        P b + the task vectors (at most `MEMORY_LIMIT`), and P b for gradients;
#             unmerged LoRAs: base + factors
#   dfs       n P b, and the merged model of a hybrid search
# Task vectors need not be kept: beyond the limit they are computed anew from the mapped files.
def worker_memory(config: SearchConfig, evaluator: Evaluator) -> int:
    """Estimate the bytes of a worker: Python and its libraries, and the most weights that it holds;
    activations and caches of keys come on top.

    A search of weights writes every candidate into one whole model, beside which the float32 task
    vectors are kept as far as `MEMORY_LIMIT` goes, and gradients where they are followed. LoRA
    adapters run on their base with their factors beside it, and no weight of it has a gradient.
    Paths run through the layers of all sources, and those of a hybrid search through the merged
    model's too.
    """
    sources = evaluator.sources
    models = 0
    if config.space != "dfs":
        part = config.merge.part()
        merged = sources.merged(part)
        vectors = _numel(merged) * (len(config.merge_sources) + (sources.base is not None))
        unmerged = sources.runs_unmerged(part)
        if unmerged:
            adapters = [source.adapter for source in merged.plan.sources if source.adapter]
            vectors = sum(info.numel for each in adapters for info in each.tensors.values())
        models = model_memory(merged, evaluator) + min(MEMORY_LIMIT, 4 * vectors)
        if not unmerged and any(step.by == "gradient" for step in config.optimize):
            models += model_memory(merged, evaluator)
    if config.space != "ps":
        models += sum(model_memory(source, evaluator) for source in sources)
    return PROCESS + max(models, largest_model(evaluator))


def largest_model(evaluator: Evaluator) -> int:
    """Bytes of the largest parent of a search."""
    return max(model_memory(source, evaluator) for source in evaluator.sources.all)


def model_memory(source: Checkpoint, evaluator: Evaluator) -> int:
    """Bytes of a whole model as the search holds it: in its dtype, or quantised."""
    bits = BITS.get(evaluator.config.compute.quantization or "")
    width = bits / 8 if bits else evaluator.models.dtype.itemsize  # type: ignore[union-attr]
    return int(_numel(source) * width)


def _numel(source: Checkpoint) -> int:
    return sum(info.numel for info in source.tensors.values() if info.is_float)
