"""Where a registration starts: the headers' frame, a fit, a file, and a network's field on top."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.intensity import find_ct_window, looks_like_ct, normalise
from ..data.resampling import resample
from ..errors import InputError, did_you_mean
from ..optimise import Guides, OptimiseSettings, optimise
from ..transform_io import Affine, Displacement, Transform, network_grid, read_between
from .inputs import Pair

__all__ = ["INITS", "GivenField", "NetworkField", "Start", "find_start", "network_displacement", "network_input"]

INITS = ("auto", "affine", "rigid", "centre", "none")


@dataclass(frozen=True)
class NetworkField:
    """A trained network, as registration needs it.

    Attributes:
        predict: takes (1, 2, *spatial_size), channel 0 moving and 1 fixed in [0, 1], to the ``ddf``
            (1, d, *spatial_size) in voxels of that grid.
        spatial_size: voxels of its grid.
        spacing_mm: voxel length of its grid; None stretches it over the fixed image.
        ct_window: HU window for CT.
        name: for messages.
    """

    predict: Callable[[Tensor], Tensor]
    spatial_size: Sequence[int]
    spacing_mm: Sequence[float] | None = None
    ct_window: Sequence[float] | None = None
    name: str = "network"


@dataclass(frozen=True, eq=False)
class GivenField:
    """A network's field that is there already, in the fixed image's frame, and the network's name."""

    field: Displacement
    name: str = "network"


@dataclass(frozen=True, eq=False)
class Start:
    """An initial map: a fixed point meets the field, then the matrix.

    Attributes:
        matrix: (d+1, d+1), RAS millimetres of the fixed image's frame to those of the moving image.
        field: in the fixed image's frame, or None.
        note: in words.
    """

    matrix: np.ndarray
    field: Transform | None
    note: str


def find_start(
    pair: Pair, init: str | Path, settings: OptimiseSettings, device: torch.device | str, fit: bool
) -> Start | None:
    """Return the initial map, or None where the optimisation is to find it by itself.

    Args:
        pair: both images.
        init: one of :data:`INITS`, or a transform file.
        settings: of the optimisation.
        device: to work on.
        fit: whether "auto", "rigid", "affine" and "centre" are needed before the optimisation, or without it.

    Raises:
        InputError: neither a known word nor a file.
    """
    if str(init) == "none":
        return Start(np.eye(len(pair.fixed.grid.shape) + 1), None, "none: the headers' frame, as asked for")
    if str(init) not in INITS:
        return _from_file(Path(init), pair)
    return _fitted(pair, settings, device) if fit else None


def _fitted(pair: Pair, settings: OptimiseSettings, device: torch.device | str) -> Start:
    """Return the alignment alone, of an optimisation without a single iteration."""
    images = (pair.fixed.image.to(device), pair.moving.image.to(device))
    masks = Guides(*(side.mask.to(device) if side.mask is not None else None for side in (pair.fixed, pair.moving)))
    result = optimise(*images, pair.fixed.grid, pair.moving.grid, settings=settings, guides=masks)
    alignment, cut = result.alignment, "; stopped by the time limit" if result.stopped == "time limit" else ""
    return Start(alignment.matrix, None, f"{alignment.kind} ({alignment.note}{cut})")


def _from_file(path: Path, pair: Pair) -> Start:
    if not path.exists():
        raise InputError(
            f"{path}: found neither a start of this name{did_you_mean(str(path), INITS)} nor such a file; expected "
            f"one of {', '.join(INITS)}, or a transform file"
        )
    grids = pair.fixed.grid, pair.moving.grid
    parts = list(read_between(path, *grids).parts)
    matrix = np.eye(len(grids[0].shape) + 1)
    # Linear parts at the end act as one; what is left of the chain is a field in the fixed image's frame.
    while parts and isinstance(last := parts[-1], Affine):
        matrix = matrix @ last.matrix
        parts.pop()
    return Start(matrix, Transform(tuple(parts)) if parts else None, f"read from {path.name}")


@torch.no_grad()
def network_displacement(
    network: NetworkField, pair: Pair, matrix: np.ndarray, modality: str, device: torch.device | str
) -> Displacement:
    """Return a network's field in the fixed image's frame, after ``matrix`` has brought the moving image there.

    Raises:
        InputError: a network for other dimensions.
    """
    images = network_input(network, pair, matrix, modality)
    target = network_grid(pair.fixed.grid, network.spatial_size, network.spacing_mm)
    ddf = network.predict(images[None].to(device))
    return Displacement(target, ddf.float().cpu())


def network_input(network: NetworkField, pair: Pair, matrix: np.ndarray, modality: str) -> Tensor:
    """Return moving and fixed image (2, *spatial_size) in [0, 1] as a network takes them; see above.

    Raises:
        InputError: a network for other dimensions.
    """
    d = len(pair.fixed.grid.shape)
    if len(network.spatial_size) != d:
        raise InputError(f"found {d}D images, expected {len(network.spatial_size)}D for the network {network.name}")
    target = network_grid(pair.fixed.grid, network.spatial_size, network.spacing_mm)
    volumes = [side.image[0].float() for side in (pair.moving.placed(matrix), pair.fixed)]
    window = network.ct_window
    if window is None:
        ct = [v for v in reversed(volumes) if modality == "ct" or (modality == "auto" and looks_like_ct(v))]
        window = find_ct_window(ct[0]) if ct else None
    grids = (pair.moving.placed(matrix).grid, pair.fixed.grid)
    channels = [
        resample(normalise(volume, modality, window), grid, target) for volume, grid in zip(volumes, grids, strict=True)
    ]
    return torch.cat(channels)
