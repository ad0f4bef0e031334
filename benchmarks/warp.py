"""Warping, forward and backward, against grid_sample as usually called and MONAI's Warp.

Run from the repository root: OMP_PROC_BIND=true python -m benchmarks.warp --threads 2
Without binding, both OpenMP threads may share one core for seconds, and every ratio with them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.blocks import Warp
from torch import Tensor, nn

from shared.warp import warp

from .side_by_side import Claim, main, ours, smooth_field

SIZES = ((32, 32, 32), (64, 64, 64), (112, 96, 112))


class UsualWarp(nn.Module):
    """The spatial transformer of most registration code: cached grid, normalise axis by axis, permute, grid_sample."""

    def __init__(self, size: Sequence[int], device: str, padding_mode: str = "zeros") -> None:
        super().__init__()
        axes = [torch.arange(n, dtype=torch.float32, device=device) for n in size]
        self.grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]
        self.size, self.padding_mode = size, padding_mode

    def forward(self, image: Tensor, ddf: Tensor) -> Tensor:
        position = self.grid.to(ddf.dtype) + ddf
        for axis, n in enumerate(self.size):
            position[:, axis] = 2 * (position[:, axis] / (n - 1) - 0.5)
        grid = position.permute(0, 2, 3, 4, 1)[..., [2, 1, 0]]
        return F.grid_sample(image, grid, padding_mode=self.padding_mode, align_corners=True)


def claims(size: Sequence[int], device: str) -> list[Claim]:
    """Return what is compared at a size."""
    calls = {
        "grid_sample": UsualWarp(size, device),
        "MONAI": Warp("bilinear", "zeros").to(device),
        **ours(warp, device),
    }
    voxels = torch.Size(size).numel()

    def inputs(channels: int) -> list[Tensor]:
        return [torch.randn(1, channels, *size, device=device), smooth_field(size, device)]

    def claim(operation: str, wanted: tuple[int, ...], channels: int, numbers: int, least: float) -> Claim:
        generous = {"grid_sample": least, "MONAI": least}
        make = lambda: inputs(channels)  # noqa: E731
        return Claim(operation, calls, make, wanted, bytes=4 * numbers * voxels, generous=generous)

    return [
        claim("warp", (), 1, 5, 3.0),
        claim("warp, gradient to the field", (1,), 1, 5 + 8, 3.0),
        claim("warp, gradient to both", (0, 1), 1, 5 + 9, 2.0),
        claim("warp of three channels", (), 3, 9, 1.5),
    ]


if __name__ == "__main__":
    main(__doc__, claims, SIZES)
