"""Intensities of CT and MR as networks take them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError

__all__ = ["ABDOMEN_WINDOW", "find_ct_window", "looks_like_ct", "normalise", "scale_percentiles", "shows_chest"]

# Windows of the SAMCL data preparation, in HU; see `normalise`.
ABDOMEN_WINDOW = (-200.0, 300.0)
LUNG_WINDOW = (-1350.0, 150.0)


def normalise(image: Tensor, modality: str = "auto", ct_window: Sequence[float] | None = None) -> Tensor:
    """Scale intensities to [0, 1].

    CT is clipped to a window in HU, MR at its 99th percentile. Without a window, CT of the chest (lung makes up more
    than 12 % of lung and soft tissue together) gets [-1350, 150] HU, other CT [-200, 300] HU.

    Args:
        image: (1, *S).
        modality: "ct", "mr" or "auto": CT where the darkest percentile lies below -200.
        ct_window: low and high in HU.

    Raises:
        InputError: unknown modality, or a window that is not two rising numbers.
    """
    if modality not in ("ct", "mr", "auto"):
        raise InputError(f"found modality {modality!r}, expected ct, mr or auto")
    if ct_window is not None and (len(ct_window) != 2 or not ct_window[0] < ct_window[1]):
        raise InputError(f"found ct_window {list(ct_window)}, expected two rising numbers in HU")
    if modality == "auto":
        modality = "ct" if looks_like_ct(image) else "mr"
    if modality == "mr":
        # An image that is all background but for a speck has no 99th percentile of its own.
        low, high = float(image.min()), float(np.percentile(image.numpy(), 99))
        high = high if high > low else float(image.max())
    else:
        low, high = ct_window if ct_window is not None else find_ct_window(image)
    return _scaled(image, low, high)


def _scaled(image: Tensor, low: float, high: float) -> Tensor:
    return ((image - low) / max(high - low, np.finfo(np.float32).tiny)).clamp(0, 1).float()


def looks_like_ct(image: Tensor) -> bool:
    """Whether the darkest percentile lies below -200, as only air in HU does."""
    return bool(np.percentile(image.numpy(), 1) < -200)


def find_ct_window(image: Tensor) -> tuple[float, float]:
    """Return the window, low and high in HU, that fits a CT (1, *S): of the chest, or of another part."""
    return LUNG_WINDOW if shows_chest(image) else ABDOMEN_WINDOW


def shows_chest(image: Tensor) -> bool:
    """Whether a CT shows a chest: more than 12 % of lung and soft tissue together is lung."""
    lung = int(((image > -950) & (image < -550)).sum())
    tissue = int(((image > -300) & (image < 300)).sum())
    return lung > 0.12 * (lung + tissue)


def scale_percentiles(image: Tensor, channel_wise: bool = False) -> Tensor:
    """Clip to the 0.5th and 99.5th percentile of the whole image and scale to [0, 1].

    Args:
        image: (C, *S).
        channel_wise: each channel by itself, for channels of different units; colours keep their balance without.
    """
    if channel_wise and len(image) > 1:
        return torch.cat([scale_percentiles(channel[None]) for channel in image])
    low, high = np.percentile(image.numpy(), (0.5, 99.5))
    if low == high:  # all background but for a speck
        low, high = float(image.min()), float(image.max())
    return _scaled(image, low, high)
