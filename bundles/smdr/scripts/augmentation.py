"""Random changes to slices that leave the label map right: a simulated shift of patient and scanner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.transforms import (
    Compose,
    RandAdjustContrast,
    RandAffined,
    RandBiasField,
    RandFlipd,
    RandGaussianNoise,
    RandGaussianSmooth,
)
from monai.utils import convert_to_tensor

__all__ = ["SliceAugmentation"]


class SliceAugmentation:
    """Flip, turn, scale and shift a slice or patch with its label map; change the image's intensities.

    All by MONAI's transforms. In 3D, slices turn and scale in their own plane, all alike.

    Args:
        flip: probability of a flip along the first axis, left and right in a transverse slice.
        rotation: largest angle in radians.
        scaling: largest change of size, as a share of 1.
        shift: largest translation, as a share of the slice's size.
        bias: largest coefficient of a smooth multiplicative field.
        gamma: range of exponents of a power law.
        noise: largest standard deviation of Gaussian noise, for intensities in [0, 1].
        blur: largest standard deviation of Gaussian smoothing, in voxels.

    Raises:
        ValueError: a number below 0, or a range of gamma that does not rise above 0.
    """

    def __init__(
        self,
        flip: float = 0.5,
        rotation: float = 0.15,
        scaling: float = 0.1,
        shift: float = 0.05,
        bias: float = 0.2,
        gamma: Sequence[float] = (0.7, 1.5),
        noise: float = 0.03,
        blur: float = 0.8,
    ) -> None:
        if min(flip, rotation, scaling, shift, bias, noise, blur) < 0 or not 0 < gamma[0] <= gamma[1]:
            raise ValueError(
                f"found {flip=}, {rotation=}, {scaling=}, {shift=}, {bias=}, {noise=}, {blur=}, {gamma=}; expected "
                "none below 0 and a rising range of gamma above 0"
            )
        self.flip, self.rotation, self.scaling, self.shift = flip, rotation, scaling, shift
        self.bias, self.gamma, self.noise, self.blur = bias, tuple(gamma), noise, blur
        self._place: dict[tuple[int, ...], Compose] = {}  # by size: a shift is given in voxels
        self._intensity = Compose(
            [
                RandBiasField(degree=3, coeff_range=(0.0, bias), prob=0.5),
                RandAdjustContrast(prob=0.5, gamma=self.gamma),
                RandGaussianSmooth(sigma_x=(0.0, blur), sigma_y=(0.0, blur), sigma_z=(0.0, 0.0), prob=0.25),
                RandGaussianNoise(prob=0.5, std=noise, sample_std=True),
            ]
        )

    def __repr__(self) -> str:
        return (
            f"SliceAugmentation(flip={self.flip}, rotation={self.rotation}, scaling={self.scaling}, "
            f"shift={self.shift}, bias={self.bias}, gamma={self.gamma}, noise={self.noise}, blur={self.blur})"
        )

    def __call__(self, sample: Mapping[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """Return a changed copy of a sample.

        Args:
            sample: ``image`` (C, *S) in [0, 1] and ``label`` (1, *S); stays as it is.
            generator: decides everything.
        """
        place = self._placement(tuple(sample["image"].shape[1:]))
        for transform in (place, self._intensity):
            transform.set_random_state(seed=int(torch.randint(2**31, (1,), generator=generator)))
        pair = {"image": sample["image"].float(), "label": sample["label"].float()}
        moved = place(pair)
        image = convert_to_tensor(self._intensity(moved["image"]), track_meta=False)
        label = convert_to_tensor(moved["label"], track_meta=False)
        return {**sample, "image": image.clamp(0, 1), "label": label.to(sample["label"].dtype)}

    def _placement(self, size: tuple[int, ...]) -> Compose:
        if size not in self._place:
            keys, plane = ("image", "label"), len(size) - 2  # axes beyond the first two do not move
            self._place[size] = Compose(
                [
                    RandFlipd(keys, prob=self.flip, spatial_axis=0),
                    RandAffined(
                        keys,
                        prob=1.0,
                        rotate_range=[*[0.0] * (2 * plane), self.rotation],
                        scale_range=[self.scaling, self.scaling, *[0.0] * plane],
                        translate_range=[*(self.shift * n for n in size[:2]), *[0.0] * plane],
                        mode=("bilinear", "nearest"),
                        padding_mode="border",
                    ),
                ]
            )
        return self._place[size]
