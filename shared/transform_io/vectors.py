"""Fields between our voxels and the millimetres of files: LPS for ITK, RAS for NiftyReg."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .grid import Grid, lps
from .transform import Displacement

__all__ = ["field_in_voxels", "vectors_in_mm"]


def field_in_voxels(path: Path, vectors: np.ndarray, grid: Grid, from_lps: bool) -> Displacement:
    """Turn vectors (*S, d) in millimetres into a field in voxels.

    Raises:
        InputError: NaN or infinite vectors.
    """
    bad = int((~np.isfinite(vectors)).any(-1).sum())
    if bad:
        raise InputError(f"{path}: found NaN or infinite displacements in {bad} voxels, expected finite ones")
    d = len(grid.shape)
    frame = lps(d)[:d, :d] if from_lps else np.eye(d)
    to_voxels = np.linalg.inv(grid.affine[:d, :d]) @ frame
    ddf = np.einsum("ij,...j->i...", to_voxels, vectors).astype(np.float32)
    return Displacement(grid, torch.from_numpy(np.ascontiguousarray(ddf))[None])


def vectors_in_mm(ddf: Tensor, grid: Grid, to_lps: bool) -> np.ndarray:
    """Turn a field (1, d, *S) in voxels into vectors (*S, d) in millimetres, float32, the first axis fastest in memory.

    That is the order of NIfTI's and ITK's files but for the components.
    """
    d = len(grid.shape)
    frame = lps(d)[:d, :d] if to_lps else np.eye(d)
    field = ddf[0].float().cpu().permute(0, *reversed(range(1, d + 1))).flatten(1)
    matrix = torch.as_tensor(frame @ grid.affine[:d, :d]).to(field)
    return (matrix @ field).reshape(d, *reversed(grid.shape)).permute(*reversed(range(d + 1))).numpy()
