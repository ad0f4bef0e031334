"""Intensities of a pair of images on one scale, [0, 1], and what kind of images they are."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.intensity import ABDOMEN_WINDOW, looks_like_ct, shows_chest
from ..errors import InputError

__all__ = ["normalise_pair"]

MODALITIES = ("auto", "ct", "mr")
CHEST_WINDOW = (-1024.0, 600.0)
# Percentiles are read off so many voxels, evenly spread.
SAMPLE = 400_000


def normalise_pair(
    fixed: Tensor, moving: Tensor, modalities: tuple[str, str]
) -> tuple[Tensor, Tensor, tuple[str, str]]:
    """Scale two images to [0, 1].

    CT is clipped to [-1024, 600] HU where either image shows a chest, else to [-200, 300] HU, so that both images
    of a pair have one contrast. Anything else counts as MR and is clipped at the 99.5th percentile of its foreground.

    Args:
        fixed: (1, 1, *S).
        moving: (1, 1, *T).
        modalities: of fixed and moving, each "ct", "mr" or "auto".

    Returns:
        Both images, float32, and the modalities found.

    Raises:
        InputError: an unknown modality, or an image that is not finite or has no contrast.
    """
    if unknown := [m for m in modalities if m not in MODALITIES]:
        raise InputError(f"found modality {unknown[0]!r}, expected one of {list(MODALITIES)}")
    images = [fixed, moving]
    samples = [_sample(image, name) for image, name in zip(images, ("fixed", "moving"), strict=True)]
    kinds = [
        ("ct" if looks_like_ct(sample) else "mr") if wanted == "auto" else wanted
        for wanted, sample in zip(modalities, samples, strict=True)
    ]
    chest = any(kind == "ct" and shows_chest(sample) for kind, sample in zip(kinds, samples, strict=True))
    window = CHEST_WINDOW if chest else ABDOMEN_WINDOW
    scaled = [
        _between(image, *(window if kind == "ct" else _mr_range(sample)))
        for image, sample, kind in zip(images, samples, kinds, strict=True)
    ]
    return scaled[0], scaled[1], (kinds[0], kinds[1])


def _sample(image: Tensor, name: str) -> Tensor:
    """Return voxels of the image, a few hundred thousand, on the CPU."""
    values = image.detach().flatten()
    values = values[:: max(1, values.numel() // SAMPLE)].float().cpu()
    if not bool(torch.isfinite(image).all()):
        raise InputError(f"found NaN or infinite voxels in the {name} image, expected finite intensities")
    if bool(image.min() == image.max()):
        raise InputError(f"found one constant value in the {name} image, expected an image with contrast")
    return values


def _mr_range(sample: Tensor) -> tuple[float, float]:
    low, high = float(sample.min()), float(sample.max())
    foreground = sample[sample > low + 0.02 * (high - low)]
    if foreground.numel() > 0:
        high = float(torch.quantile(foreground, 0.995))
    return low, max(high, low + 1e-12)


def _between(image: Tensor, low: float, high: float) -> Tensor:
    return ((image.detach().float() - low) / (high - low)).clamp_(0.0, 1.0)
