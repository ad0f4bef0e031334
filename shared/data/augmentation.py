"""Random changes to training pairs that leave what corresponds to what as it was."""

from __future__ import annotations

import numpy as np
import torch
from monai.transforms import RandAdjustContrast, RandBiasField, RandGaussianNoise
from torch import Tensor

from ..warp import warp
from .pairs import Sample

__all__ = ["PairAugmentation"]

SIDES = ("fixed", "moving")


class PairAugmentation:
    """Flip a pair, move each image by a small affine map of its own, change intensities.

    Images, masks, labels and points of a side move together, so that supervision stays right; the pair gets a new
    deformation to find. Intensities change by MONAI's transforms, each image by itself.

    Args:
        flip: probability of a flip along each axis, both images alike.
        rotation: largest angle in radians, scaling and shear alike as a share of 1: entries of the affine matrix.
        shift: largest translation, as a share of the image's size.
        noise: largest standard deviation of Gaussian noise, for intensities in [0, 1].
        gamma: range of exponents of a power law.
        bias: largest coefficient of a smooth multiplicative field.
    """

    def __init__(
        self,
        flip: float = 0.5,
        rotation: float = 0.1,
        shift: float = 0.03,
        noise: float = 0.03,
        gamma: tuple[float, float] = (0.7, 1.5),
        bias: float = 0.2,
    ) -> None:
        self.flip, self.rotation, self.shift = flip, rotation, shift
        self.noise, self.gamma, self.bias = noise, tuple(gamma), bias
        self._intensity = [
            RandBiasField(degree=3, coeff_range=(0.0, bias), prob=0.5),
            RandAdjustContrast(prob=0.5, gamma=gamma),
            RandGaussianNoise(prob=0.5, std=noise, sample_std=True),
        ]

    def __repr__(self) -> str:
        return (
            f"PairAugmentation(flip={self.flip}, rotation={self.rotation}, shift={self.shift}, noise={self.noise}, "
            f"gamma={self.gamma}, bias={self.bias})"
        )

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return a changed copy of a sample of :class:`~shared.data.pairs.PairDataset`.

        Args:
            sample: stays as it is.
            generator: decides everything.
        """
        changed = dict(sample)
        size = sample["fixed_image"].shape[1:]
        flips = torch.rand(len(size), generator=generator) < self.flip
        for side in SIDES:
            self._move(changed, side, self._affine(size, generator, flips))
            changed[f"{side}_image"] = self._recolour(changed[f"{side}_image"], generator)
        return changed

    def _affine(self, size: torch.Size, generator: torch.Generator, flips: Tensor) -> tuple[Tensor, Tensor]:
        """Return (matrix, offset): voxel x of the new image shows voxel ``matrix x + offset`` of the old one."""
        d = len(size)
        centre = (torch.tensor(size, dtype=torch.float32) - 1) / 2
        matrix = torch.eye(d) + self.rotation * (2 * torch.rand(d, d, generator=generator) - 1)
        shift = self.shift * torch.tensor(size) * (2 * torch.rand(d, generator=generator) - 1)
        matrix = matrix * torch.where(flips, -1.0, 1.0)  # a flip first, by columns
        return matrix, centre + shift - matrix @ centre

    @staticmethod
    def _move(sample: Sample, side: str, affine: tuple[Tensor, Tensor]) -> None:
        matrix, offset = affine
        d = len(offset)
        axes = [torch.arange(n, dtype=torch.float32) for n in sample[f"{side}_image"].shape[1:]]
        position = torch.stack(torch.meshgrid(*axes, indexing="ij"))
        shown = torch.einsum("ab,b...->a...", matrix, position) + offset.view(-1, *[1] * d)
        ddf = (shown - position)[None]
        for kind, mode in (("image", "bilinear"), ("mask", "nearest"), ("label", "nearest")):
            if f"{side}_{kind}" in sample:
                sample[f"{side}_{kind}"] = warp(sample[f"{side}_{kind}"][None], ddf, mode=mode)[0]
        if f"{side}_points" in sample:
            points = sample[f"{side}_points"]
            back = torch.linalg.inv(matrix)
            sample[f"{side}_points"] = (points.to(back) - offset) @ back.T

    def _recolour(self, image: Tensor, generator: torch.Generator) -> Tensor:
        seed = int(torch.randint(2**31, (1,), generator=generator))
        for transform in self._intensity:
            transform.set_random_state(state=np.random.RandomState(seed))
            image = transform(image)
            seed += 1
        return torch.as_tensor(np.asarray(image), dtype=torch.float32).clamp(0, 1)
