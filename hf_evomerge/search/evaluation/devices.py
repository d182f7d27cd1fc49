"""The devices that candidates are evaluated on: whether they are there, how fast they are, and of
which kind; each kind has its own last bits."""

from __future__ import annotations

import logging
import platform
import time
from typing import Any

from ...errors import SearchError
from ...machine import free_memory
from ..file.config import SearchConfig
from ..study.study import Study

logger = logging.getLogger(__name__)

DEVICES = "devices"  # the study's note of the kinds that its scores are from


def devices_of(config: SearchConfig) -> list[str]:
    """The devices of a search on this machine, one for each worker.

    ``auto`` is every GPU, or the processor where there is none; the first GPU where models are
    spread over all.
    """
    if (device := config.compute.device) != "auto":
        return [device] if isinstance(device, str) else list(device)
    import torch

    devices = [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cpu"]
    return devices if config.compute.device_map is None else devices[:1]


def on_device(config: SearchConfig, device: str) -> SearchConfig:
    """The search on the device of one worker."""
    compute = config.compute.model_copy(update={"device": device})
    return config.model_copy(update={"compute": compute})


def device_memory(device: str) -> float:
    """Bytes of memory that a GPU has, or that are free beside the processor."""
    import torch

    if torch.device(device).type == "cuda":
        return float(torch.cuda.mem_get_info(device)[1])
    return free_memory()


def check_devices(config: SearchConfig) -> None:
    """Raise `SearchError` where a device of a search is not there."""
    import torch

    for device in devices_of(config):
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as cause:
            raise SearchError(
                f"compute.device: {device!r} cannot be used here: {cause}; auto is what there is"
            ) from cause


def device_kind(device: str) -> str:
    """Name what a device's last bits depend on: a GPU's name; a processor's kind, and
    the instructions that torch uses."""
    import torch

    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.get_device_name(device)
    if kind != "cpu":
        return f"{kind} of {platform.platform()}"
    return f"CPU {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def product_seconds(dtype: Any) -> float:
    """Measure a product on the processor: 64 vectors through a layer of 512 by 512 weights.

    Args:
        dtype: Dtype of torch, or its name.

    Returns:
        Seconds of the quickest of three; some ten milliseconds where there are no units for it.
    """
    import torch

    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    vectors = torch.ones(64, 512, dtype=dtype)
    weights = torch.ones(512, 512, dtype=dtype)
    seconds = []
    for _ in range(4):
        begin = time.perf_counter()
        torch.nn.functional.linear(vectors, weights)
        seconds.append(time.perf_counter() - begin)
    return min(seconds[1:])  # the first one warms up


def note_kind(study: Study, kind: str, where: str = "") -> None:
    """Note that a study has scores from a kind of device; warn where it has them from another too.

    Args:
        study: The study.
        kind: What `device_kind` gives.
        where: The machine that it is in, for the warning.
    """
    known = study.meta(DEVICES) or []
    if kind in known:
        return
    if known:
        logger.warning(
            f"{where and f'{where}: '}{kind} is not what the study's scores are from "
            f"({', '.join(known)}); its scores have other last bits"
        )
    study.set_meta(DEVICES, [*known, kind])
