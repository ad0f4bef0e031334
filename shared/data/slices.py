"""From volumes of any spacing to the slices that a network sees, and back to the image's own grid.

The network's grid of a volume is an inside matter: its last axis runs across the slices, the first two lie in their
plane in the order closest to right-anterior-superior.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from torch import Tensor

from ..transform_io import Grid, network_grid
from .resampling import Placement

__all__ = ["adjacent_slices", "label_on_image", "predict_volume", "slice_axis", "slice_grid", "slice_window"]

# Spacings that differ by less are one: headers round.
SAME_SPACING = 0.99


def slice_axis(image: Grid) -> int:
    """Return the axis that runs across the slices: the one with the largest spacing, the last of equal ones.

    Where an axis has a single voxel, the image is one slice and this is the axis across it.
    """
    single = [axis for axis, count in enumerate(image.shape) if count == 1]
    spacing = np.array(image.spacing_mm)
    return max(single or np.flatnonzero(spacing >= SAME_SPACING * spacing.max()).tolist())


def slice_grid(image: Grid, size: Sequence[int], spacing_mm: Sequence[float] | None = None) -> Grid:
    """Return the grid on which a network sees a volume: same centre, slices where the image has them.

    Args:
        image: 3D grid of the image.
        size: rows and columns of a slice.
        spacing_mm: of rows and columns, then the slice is cropped or padded around the centre to ``size``; a third
            value is the distance of new slices. None stretches ``size`` over the field of view.

    Returns:
        a grid of shape (rows, columns, slices).
    """
    box = network_grid(image, size=(1, 1, 1))  # one voxel as large as the image, axes in the closest RAS order
    extent = np.array(box.spacing_mm)
    axis = slice_axis(image)
    across = int(np.argmax(np.abs((box.affine[:3, :3] / extent).T @ image.affine[:3, axis])))
    order = [a for a in range(3) if a != across] + [across]
    own = image.spacing_mm[axis]
    given = extent[order[:2]] / np.array(size[:2]) if spacing_mm is None else np.array(spacing_mm, float)
    voxel = np.array([*given[:2], given[2] if len(given) > 2 else own])
    count = image.shape[axis] if len(given) < 3 else max(1, int(np.ceil(extent[across] / voxel[2] - 1e-6)))
    back = np.argsort(order)
    ras = network_grid(image, np.array([*size[:2], count])[back].tolist(), voxel[back].tolist())
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = ras.affine[:3, order], ras.affine[:3, 3]
    return Grid(tuple(ras.shape[a] for a in order), affine)


def adjacent_slices(volume: Tensor, count: int = 3) -> Tensor:
    """Return every slice with its neighbours as channels; beyond the ends the last slice is repeated.

    Args:
        volume: (C, H, W, n).
        count: slices seen at once, odd.

    Returns:
        (n, count * C, H, W): all channels of the slice below first, those of the slice above last.

    Raises:
        ValueError: an even count, or none.
    """
    if count < 1 or count % 2 == 0:
        raise ValueError(f"found {count} slices at once, expected an odd number")
    n = volume.shape[-1]
    index = (torch.arange(n)[:, None] + torch.arange(count) - count // 2).clamp(0, n - 1)
    return volume.movedim(-1, 0)[index].flatten(1, 2)


def slice_window(volume: Tensor, start: int, depth: int) -> Tensor:
    """Return ``depth`` slices from ``start``: (C, H, W, n) to (C, H, W, depth); the last slice is repeated."""
    return volume[..., torch.arange(start, start + depth).clamp(max=volume.shape[-1] - 1)]


@torch.no_grad()
def predict_volume(
    network: Callable[[Tensor], Tensor], volume: Tensor, slices: int = 3, depth: int | None = None, batch_size: int = 16
) -> Tensor:
    """Segment all slices of a volume.

    Args:
        network: from (B, slices * C, H, W), or from (B, C, H, W, depth), to scores (logits) of K classes.
        volume: (C, H, W, n), on the network's device.
        slices: adjacent slices that a 2D network sees at once.
        depth: slices of a 3D network's patch; None for a 2D network. Patches overlap by half.
        batch_size: slices or patches in one pass.

    Returns:
        probabilities (K, H, W, n).
    """
    if depth is None:
        batches = adjacent_slices(volume, slices).split(batch_size)
        return torch.cat([network(batch).softmax(dim=1) for batch in batches]).movedim(0, -1)
    n = volume.shape[-1]
    patch = slice_window(volume, 0, max(n, depth))[None]
    size = (*volume.shape[1:3], depth)
    return sliding_window_inference(patch, size, batch_size, lambda x: network(x).softmax(dim=1), overlap=0.5)[
        0, ..., :n
    ]


def label_on_image(prediction: Tensor, network: Grid, image: Grid) -> Tensor:
    """Carry a segmentation from the network's grid to the image's own, through the world.

    Args:
        prediction: probabilities (K, *network.shape), which are interpolated linearly before the largest wins, or a
            label map (1, *network.shape) of whole numbers, taken from the nearest voxel.
        network: grid of the prediction.
        image: grid of the image.

    Returns:
        label map (1, *image.shape) int16; 0 where the network has not looked.
    """
    place = Placement(network, image, prediction.device)
    if not prediction.is_floating_point():
        return place(prediction, "nearest").to(torch.int16)
    best = torch.zeros(1, *image.shape, device=prediction.device)
    label = torch.zeros(1, *image.shape, dtype=torch.int16, device=prediction.device)
    for value, score in enumerate(prediction.float()):  # one class at a time: an image may be large
        placed = place(score[None])
        label[placed > best] = value
        best = torch.maximum(best, placed)
    return label
