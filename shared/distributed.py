"""The processes of `torchrun`: setting up, agreeing, taking down."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from .weights import unwrap

__all__ = [
    "call_method",
    "from_first_rank",
    "is_first_rank",
    "local_device",
    "on_all_ranks",
    "process_count",
    "start_processes",
    "stop_processes",
]

Result = TypeVar("Result")


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def is_first_rank() -> bool:
    """Whether this is rank 0, or the one process."""
    return not _several() or dist.get_rank() == 0


def process_count() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if _several() else 1


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


def from_first_rank(compute: Callable[[], Result]) -> Result:
    """Let rank 0 compute tensors (on the CPU) and plain containers, and hand them to all; one process computes."""
    if not _several():
        return compute()
    content = [compute() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(content, src=0)
    return content[0]  # type: ignore[return-value]


def on_all_ranks(condition: bool, device: torch.device | str) -> bool:
    """Whether the condition holds on every rank: all must make the same passes, or the first waits for ever."""
    if not _several():
        return condition
    answer = torch.tensor(int(condition), device=device)
    dist.all_reduce(answer, dist.ReduceOp.MIN)
    return bool(answer)


def call_method(network: nn.Module, method: str, *inputs: Any) -> Any:
    """Call a network's method through ``DistributedDataParallel``, which averages gradients of ``forward`` alone.

    Without that wrapper it is the plain call.

    Args:
        network: may be wrapped.
        method: name of a method of the network inside.
        inputs: of the method.

    Returns:
        what the method returns; tensors in lists, tuples and dicts of any depth take part in the averaging.
    """
    inner = unwrap(network)
    if inner is network:
        return getattr(inner, method)(*inputs)
    # The wrapper prepares its averaging in its own forward, which calls that of the network inside.
    vars(inner)["forward"] = getattr(inner, method)
    try:
        return network(*inputs)
    finally:
        del vars(inner)["forward"]
