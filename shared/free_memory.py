"""How much memory is free, on the host or on a device."""

from __future__ import annotations

import os
from pathlib import Path

import torch

__all__ = ["free_bytes"]


def free_bytes(device: torch.device | None = None) -> float:
    """Return what a CUDA device, or for None and the CPU the host, has free: all of a host that does not say."""
    if device is not None and device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")
