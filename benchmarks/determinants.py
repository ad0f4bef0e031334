"""Share of folds and SDlogJ of a displacement field: one pass over it, or a map of Jacobian determinants first.

Run from the repository root: python -m benchmarks.determinants --threads 1 --cpu-time
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shared.fields import jacobian_determinant
from shared.metrics.determinants import determinant_scores, scores_of

from .side_by_side import Claim, main, ours, smooth_field


def by_map(field: Tensor) -> Tensor:
    return torch.tensor(scores_of(jacobian_determinant(field)), dtype=torch.float64)


def by_us(field: Tensor) -> Tensor:
    return torch.tensor(determinant_scores(field), dtype=torch.float64)


def claims(size: Sequence[int], device: str) -> list[Claim]:
    """Return what is compared at a size."""

    def inputs() -> list[Tensor]:
        return [smooth_field(size, device, length=6.0)]

    return [
        Claim(
            "folds and SDlogJ",
            {"whole map": by_map, **ours(by_us, device)},
            inputs,
            bytes=12 * torch.Size(size).numel(),
            generous={"whole map": 3.0},
        )
    ]


if __name__ == "__main__":
    main(__doc__, claims, [(64, 64, 64), (112, 96, 112), (160, 192, 224)])
