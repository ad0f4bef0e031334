"""How much memory is free, on the host or on a device."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

__all__ = ["free_bytes"]

CONTROL_GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def free_bytes(device: torch.device | None = None) -> float:
    """Return what a CUDA device, or for None and the CPU the host, has free: all of a host that does not say.

    Of a container, or a job of a scheduler, it is what its limit leaves (Linux control groups).
    """
    if device is not None and device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return min(_host_bytes(), _group_bytes())


def _host_bytes() -> float:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")


def _group_bytes() -> float:
    """Return what the limits on this process's control groups leave; infinity where there is none."""
    try:
        entries = [line.split(":", 2) for line in OWN_GROUPS.read_text().splitlines()]
    except OSError:
        return math.inf
    least = math.inf
    for number, kinds, path in entries:
        old = "memory" in kinds.split(",")
        if not old and number != "0":
            continue
        root = CONTROL_GROUPS / "memory" if old else CONTROL_GROUPS
        own = root / path.lstrip("/")
        # The limit may lie further up. A container sees its own group as the root, under whatever path it has outside.
        for folder in [own, *own.parents]:
            if folder == root or root in folder.parents:
                least = min(least, _left(folder, old))
    return least


def _left(folder: Path, old: bool) -> float:
    """Return what a control group may still take; files that the system keeps in memory make room."""
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if old else ("memory.max", "memory.current")
    cached = "total_inactive_file" if old else "inactive_file"
    try:
        limit, used = (float((folder / name).read_text()) for name in names)  # "max" is no number: no limit
        stat = dict(line.split(maxsplit=1) for line in (folder / "memory.stat").read_text().splitlines())
        return max(0.0, limit - used + float(stat.get(cached, 0)))
    except (OSError, ValueError):
        return math.inf
