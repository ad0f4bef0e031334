"""Dice of 36 smoothed classes, both maps pulled back by fields, with the gradient to both fields.

Run from the repository root: OMP_PROC_BIND=true python -m benchmarks.overlap --threads 2
Against warping the maps with grid_sample or MONAI's Warp; all on the same smoothed maps, made beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from monai.networks.blocks import Warp
from torch import Tensor

from shared.losses import SoftDiceLoss, label_probabilities

from .side_by_side import Claim, main, ours, smooth_field
from .warp import UsualWarp

SIZES = ((64, 64, 64),)
CLASSES = 36


def labels(size: Sequence[int], device: str) -> Tensor:
    """Return a map (1, 1, *S) of compact regions, a third of it background."""
    seeds = torch.randint(-CLASSES // 2, CLASSES + 1, (1, 1, 8, 8, 8), device=device).clamp_min(0).float()
    return F.interpolate(seeds, size=tuple(size), mode="nearest")


def claims(size: Sequence[int], device: str) -> list[Claim]:
    """Return what is compared at a size."""
    dice = SoftDiceLoss()

    def by(warp: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
        def loss(p: Tensor, u: Tensor, q: Tensor, v: Tensor) -> Tensor:
            x, y = warp(p, u), warp(q, v)
            dims = (2, 3, 4)
            squares = x.square().sum(dims) + y.square().sum(dims)
            present = (squares.detach() > 0).to(squares.dtype)
            return (present * (1 - 2 * (x * y).sum(dims) / (squares + dice.eps))).sum() / present.sum()

        return loss

    calls = {
        "grid_sample": by(UsualWarp(size, device)),
        "MONAI": by(Warp("bilinear", "zeros").to(device)),
        **ours(dice.warped, device),
    }

    def inputs() -> list[Tensor]:
        maps = [label_probabilities(labels(size, device), range(1, CLASSES + 1)) for _ in range(2)]
        return [maps[0], smooth_field(size, device), maps[1], smooth_field(size, device)]

    generous = {"grid_sample": 3.0, "MONAI": 3.0}
    return [Claim(f"Dice of {CLASSES} warped classes, gradient", calls, inputs, (1, 3), generous=generous)]


if __name__ == "__main__":
    main(__doc__, claims, SIZES)
