"""Setting up and taking down the processes of `torchrun`."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

__all__ = ["local_device", "start_processes", "stop_processes"]


def local_device() -> torch.device:
    """Return this process's GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def start_processes() -> None:
    """Join the process group that `torchrun` describes: nccl with one GPU a process, gloo on CPUs."""
    device = local_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # else the first barrier takes GPU 0 on every rank
        dist.init_process_group("nccl", device_id=device)
    else:
        dist.init_process_group("gloo")


def stop_processes() -> None:
    """Leave the process group."""
    dist.destroy_process_group()
