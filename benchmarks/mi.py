"""Mutual information with 32 bins, forward and backward, against MONAI's loss with the same windows.

Run from the repository root: OMP_PROC_BIND=true python -m benchmarks.mi --threads 2
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.losses import GlobalMutualInformationLoss
from torch import Tensor

from shared.losses import MutualInformationLoss

from .side_by_side import Claim, main, ours

SIZES = ((64, 64, 64), (112, 96, 112))
BINS = 32


def claims(size: Sequence[int], device: str) -> list[Claim]:
    """Return what is compared at a size."""
    calls = {
        "MONAI": GlobalMutualInformationLoss("gaussian", BINS).to(device),
        **ours(MutualInformationLoss(BINS), device),
    }
    voxels = torch.Size(size).numel()

    def inputs() -> list[Tensor]:
        target = torch.rand(1, 1, *size, device=device)
        return [0.9 * (1 - target).square() + 0.1 * torch.rand_like(target), target]

    return [Claim(f"MI {BINS}, gradient to one", calls, inputs, (0,), bytes=12 * voxels, generous={"MONAI": 5.0})]


if __name__ == "__main__":
    main(__doc__, claims, SIZES)
