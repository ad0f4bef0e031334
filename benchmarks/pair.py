"""One iteration of registering a pair: velocity, exponential, warped image, LNCC, gradient; against MONAI's blocks.

Run from the repository root: OMP_PROC_BIND=true python -m benchmarks.pair --threads 2
"""

from __future__ import annotations

from collections.abc import Sequence

from monai.losses import LocalNormalizedCrossCorrelationLoss
from monai.networks.blocks import DVF2DDF, Warp
from torch import Tensor

from shared.fields import exponentiate
from shared.losses import LocalNCCLoss
from shared.warp import warp

from .side_by_side import Claim, framed, main, ours, smooth_field

SIZES = ((64, 64, 64), (112, 96, 112))
STEPS, WINDOW = 7, 9


def claims(size: Sequence[int], device: str) -> list[Claim]:
    """Return what is compared at a size."""
    integrate, resample = DVF2DDF(STEPS, padding_mode="border").to(device), Warp("bilinear", "zeros").to(device)
    reference, loss = LocalNormalizedCrossCorrelationLoss(3, WINDOW), LocalNCCLoss(WINDOW)
    calls = {
        "MONAI": lambda dvf, moving, fixed: 1 + reference(resample(moving, integrate(dvf)), fixed),
        **ours(lambda dvf, moving, fixed: loss(warp(moving, exponentiate(dvf, STEPS)), fixed), device),
    }

    def inputs() -> list[Tensor]:
        return [smooth_field(size, device, 0.75), framed(size, device), framed(size, device)]

    return [Claim("one iteration", calls, inputs, (0,), 0.02, generous={"MONAI": 3.0})]


if __name__ == "__main__":
    main(__doc__, claims, SIZES)
