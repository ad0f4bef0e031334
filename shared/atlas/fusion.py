"""One label map out of several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import uniform_filter

__all__ = ["fuse_labels", "local_similarity"]

_ROWS = 16
# Every atlas keeps this much of a vote, so that where none is alike the majority decides.
_LEAST = 1e-3
# Votes closer than this are equal: the last digits must not decide.
_EQUAL = 1e-6


def local_similarity(fixed: np.ndarray, warped: np.ndarray, window: int = 7) -> np.ndarray:
    """Return the squared correlation of two images around every voxel, 0 to 1.

    Args:
        fixed: (*S).
        warped: (*S).
        window: odd edge of the neighbourhood in voxels.

    Returns:
        (*S) float32.
    """
    result = np.empty(fixed.shape, np.float32)
    # Variances below these are rounding.
    least = [1e-9 * float(image.var(dtype=np.float64)) for image in (fixed, warped)]
    means = [float(image.mean(dtype=np.float64)) for image in (fixed, warped)]
    margin = window // 2
    for first in range(0, len(fixed), _ROWS):  # some slices at a time, to save memory
        low = max(0, first - margin)
        rows = slice(low, first + _ROWS + margin)
        x, y = (image[rows].astype(np.float64) - mean for image, mean in zip((fixed, warped), means, strict=True))
        result[first : first + _ROWS] = _squared_correlation(x, y, window, least)[first - low :][:_ROWS]
    return result


def _squared_correlation(x: np.ndarray, y: np.ndarray, window: int, least: Sequence[float]) -> np.ndarray:
    def mean(values: np.ndarray) -> np.ndarray:
        return uniform_filter(values, window, mode="nearest")

    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    flat = (var_x <= least[0]) | (var_y <= least[1])
    share = (mean(x * y) - mean_x * mean_y) ** 2 / np.where(flat, 1.0, var_x * var_y)
    return np.where(flat, 0.0, np.clip(share, 0.0, 1.0))


def fuse_labels(labels: Sequence[np.ndarray], weights: Sequence[np.ndarray] | None = None) -> np.ndarray:
    """Return the label that has most of the votes at every voxel; equal votes go to the lowest label.

    With `local_similarity` as weights this is local weighted voting (Artaechevarria, Munoz-Barrutia,
    Ortiz-de-Solorzano, IEEE TMI 2009); without weights it is majority voting.

    Args:
        labels: (*S) each, whole numbers.
        weights: (*S) each, the vote of each map; None is one vote each.

    Returns:
        (*S) in the type that holds all maps' values.
    """
    kind = np.result_type(*labels)
    result = np.empty(labels[0].shape, kind)
    for first in range(0, len(result), _ROWS):
        rows = slice(first, first + _ROWS)
        stack = np.stack([label[rows] for label in labels])
        votes = np.ones(stack.shape, np.float32) if weights is None else np.stack([w[rows] for w in weights]) + _LEAST
        best = np.full(stack.shape[1:], -1.0)
        for value in np.unique(stack):
            total = np.where(stack == value, votes, 0).sum(0)
            ahead = total > best + _EQUAL
            best = np.where(ahead, total, best)
            result[rows][ahead] = value
    return result
