"""Cores and memory that this process may use, of the machine and its container."""

import math
import os
from pathlib import Path

_CONTAINER = Path("/sys/fs/cgroup")


def cores() -> int:
    """The cores that this process may use: those that it is bound to, as far as its container's
    share of time goes."""
    count = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        quota, period = (_CONTAINER / "cpu.max").read_text(encoding="ascii").split()
        return min(count, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no Linux, or no limit
        return count


def free_memory() -> float:
    """The memory that is left, in bytes: of the machine, and of the container where that is less;
    all that the machine has where nobody says what is left."""
    free = math.inf
    if hasattr(os, "sysconf"):
        free = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(
            1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")
        )
        limit = (_CONTAINER / "memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            used = int((_CONTAINER / "memory.current").read_text(encoding="ascii"))
            stat = (_CONTAINER / "memory.stat").read_text(encoding="ascii").split()
            # what the kernel gives back when it is needed
            cached = int(stat[stat.index("inactive_file") + 1])
            free = min(free, max(int(limit) - used + cached, 0))
    except (OSError, StopIteration, ValueError):
        pass
    return free
