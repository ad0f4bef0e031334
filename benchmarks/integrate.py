"""Scaling and squaring, 7 steps, against grid_sample as usually called and MONAI's DVF2DDF.

Run from the repository root: OMP_PROC_BIND=true python -m benchmarks.integrate --threads 2
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks import DVF2DDF
from torch import Tensor, nn

from shared.fields import exponentiate

from .side_by_side import Claim, main, ours, smooth_field
from .warp import UsualWarp

SIZES = ((64, 64, 64), (112, 96, 112))
STEPS = 7


class UsualIntegration(nn.Module):
    """Scaling and squaring with :class:`~benchmarks.warp.UsualWarp`."""

    def __init__(self, size: Sequence[int], device: str) -> None:
        super().__init__()
        self.warp = UsualWarp(size, device, "border")

    def forward(self, dvf: Tensor) -> Tensor:
        ddf = dvf / 2**STEPS
        for _ in range(STEPS):
            ddf = ddf + self.warp(ddf, ddf)
        return ddf


def claims(size: Sequence[int], device: str) -> list[Claim]:
    """Return what is compared at a size."""
    calls = {
        "MONAI": DVF2DDF(STEPS, padding_mode="border").to(device),
        "grid_sample": UsualIntegration(size, device),
        **ours(lambda dvf: exponentiate(dvf, STEPS), device),
    }
    voxels = torch.Size(size).numel()
    generous = {"MONAI": 3.0, "grid_sample": 3.0}

    def inputs() -> list[Tensor]:
        return [smooth_field(size, device, 0.75)]

    return [
        Claim(f"{STEPS} steps", calls, inputs, bytes=24 * STEPS * voxels, generous=generous),
        Claim(f"{STEPS} steps, gradient", calls, inputs, (0,), bytes=(24 + 36) * STEPS * voxels, generous=generous),
    ]


if __name__ == "__main__":
    main(__doc__, claims, SIZES)
