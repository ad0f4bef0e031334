"""Local cross-correlation, forward and backward, against MONAI's loss with the same window.

Run from the repository root: OMP_PROC_BIND=true python -m benchmarks.lncc --threads 2
The two differ at the border of a volume, so the images have a margin of zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.losses import LocalNormalizedCrossCorrelationLoss
from torch import Tensor

from shared.losses import LocalNCCLoss

from .side_by_side import Claim, framed, main, ours

SIZES = ((64, 64, 64), (112, 96, 112))
WINDOW = 9


def claims(size: Sequence[int], device: str) -> list[Claim]:
    """Return what is compared at a size."""
    reference, loss = LocalNormalizedCrossCorrelationLoss(3, WINDOW), LocalNCCLoss(WINDOW)
    calls = {"MONAI": lambda x, y: 1 + reference(x, y)}
    calls |= ours(loss, device) if device == "cuda" else {"ours": loss}  # there is no kernel for the CPU
    voxels = torch.Size(size).numel()

    def inputs() -> list[Tensor]:
        target = framed(size, device)
        return [target + 0.3 * framed(size, device), target]

    claim = Claim(f"LNCC {WINDOW}, gradient to one", calls, inputs, (0,), 0.02, 12 * voxels, {"MONAI": 2.0})
    return [claim]


if __name__ == "__main__":
    main(__doc__, claims, SIZES)
