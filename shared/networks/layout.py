"""Memory layout of volumes: channels last where that makes the convolutions of a large volume quicker."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["in_layout_of", "quick_layout"]


def quick_layout(x: Tensor, large: int = 64**3) -> Tensor:
    """Return ``x`` with channels last in memory where it is a large volume on the CPU, else ``x`` itself.

    Args:
        x: (B, C, *S).
        large: voxels a channel from which oneDNN gains more than the copy costs (up to a third of the time of a
            U-Net with 8 to 64 channels; below, nothing).
    """
    if x.dim() == 5 and not x.is_cuda and x[0, 0].numel() >= large:
        return x.contiguous(memory_format=torch.channels_last_3d)
    return x


def in_layout_of(reference: Tensor, x: Tensor) -> Tensor:
    """Return ``x`` in the memory layout of ``reference``: transposed convolutions do not keep it."""
    if reference.dim() == 5 and reference.is_contiguous(memory_format=torch.channels_last_3d):
        return x.contiguous(memory_format=torch.channels_last_3d)
    return x
