"""Checks on a result: folds taken out, and a comparison with the start by a measure that was not optimised."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..fields import jacobian_determinant
from ..losses.similarity import LocalNCCLoss
from ..metrics.determinants import determinant_scores
from ..smoothing import gaussian_smooth
from .forces import MutualInformation, Similarity

__all__ = ["alike", "fold_percent", "unfold", "worse_than"]

# Voxels below this determinant are smoothed, not only those at zero: the field is resampled afterwards.
NARROW = 0.1
# Share of the overlap at the start that a result has to keep.
LEAST_SEEN = 0.5


def fold_percent(ddf: Tensor) -> float:
    """Return the share of voxels, in percent, where ``x + ddf(x)`` folds, of a field (1, d, *S)."""
    return determinant_scores(ddf).folds_percent


def unfold(ddf: Tensor, max_percent: float, rounds: int = 50) -> Tensor:
    """Smooth a field (1, d, *S) around its folds until at most ``max_percent`` of the voxels fold."""
    for _ in range(rounds):
        if fold_percent(ddf) <= max_percent:
            break
        narrow = (jacobian_determinant(ddf) < NARROW).to(ddf.dtype)
        # A Gaussian of the map of folds, scaled so that a lone voxel is smoothed in full, its surroundings in part.
        share = (gaussian_smooth(narrow, 1.5) * 60.0).clamp_(0.0, 1.0)
        ddf = torch.lerp(ddf, gaussian_smooth(ddf, 1.0), share)
    return ddf


def alike(pair: Similarity) -> float:
    """Return the share of places with texture where fixed and moving image match as they are.

    A place is a window of 5 voxels with a standard deviation of 0.05 or more in both images; it matches at a
    correlation above 0.95. What does not move between two scans of a patient (spine, chest wall) does; scans of two
    patients match by chance only.
    """
    image, weight = pair.warped(torch.zeros_like(pair.fixed).expand(-1, pair.fixed.ndim - 2, *pair.fixed.shape[2:]))
    x, y = pair.fixed, image
    kernel = [min(5, n - 1 + n % 2) for n in x.shape[2:]]
    pool = F.avg_pool3d if x.ndim == 5 else F.avg_pool2d

    def local(volume: Tensor) -> Tensor:
        return pool(volume, kernel, stride=1)

    mean_x, mean_y, seen = local(x), local(y), local(weight) > 0.99
    var_x, var_y = local(x * x) - mean_x**2, local(y * y) - mean_y**2
    cross = local(x * y) - mean_x * mean_y
    texture = seen & (var_x > 0.0025) & (var_y > 0.0025)
    match = texture & (cross > 0.95 * (var_x * var_y).clamp_min(0).sqrt())
    return float(match.sum()) / max(float(texture.sum()), 1.0)


def worse_than(judge: MutualInformation, ddf: Tensor, start: Tensor, optimised: str) -> tuple[bool, str]:
    """Compare two displacements by a similarity that was not optimised, over the voxels that both can see.

    Mutual information judges LNCC and MIND-SSC, LNCC judges mutual information. A result that sees less than half of
    what the start sees is worse in any case.

    Args:
        judge: holds the images.
        ddf: result (1, d, *S).
        start: (1, d, *S).
        optimised: "lncc", "mind" or "mi".

    Returns:
        Whether the result is worse, and both numbers in words.
    """
    before, weight = judge.warped(start)
    after, other = judge.warped(ddf)
    common = torch.minimum(weight, other)
    share, weight = float(common.sum() / weight.sum().clamp_min(1e-6)), common
    if share < LEAST_SEEN:
        return True, f"{share:.0%} of the overlap is left"
    if optimised == "mi":
        name, loss = "local correlation", LocalNCCLoss(7)
        old, new = (1.0 - float(loss(image, judge.fixed, weight)) for image in (before, after))
    else:
        name = "mutual information"
        old, new = (-float(judge.information(image, weight)[0]) for image in (before, after))
    return new < old, f"{name} {old:.4f} -> {new:.4f}"
