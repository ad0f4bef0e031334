"""What ``metrics.json`` says of a registration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..apply import resample
from ..data.intensity import looks_like_ct, normalise
from ..fields import length
from ..quality_check import (
    common_labels,
    correlation,
    covered_share,
    field_scores,
    label_scores,
    mutual_information,
    point_scores,
    round_trip,
    sample_pair,
)
from ..quality_picture import Scene, quality_figure
from ..transform_io import Affine, Grid, Transform
from .inputs import Pair
from .search import Found

__all__ = ["draw", "plain", "remarks", "scored", "scored_labels", "summary"]

# Scores with a value before: key, name, unit; and those of the field.
_CHANGES = (
    ("similarity", "similarity", ""),
    ("dice", "Dice", ""),
    ("hd95_mm", "HD95", " mm"),
    ("tre_mm", "TRE", " mm"),
)
_MEASURES = (
    ("folds_percent", "folds", " %"),
    ("sdlogj", "SDlogJ", ""),
    ("round_trip_mm", "round trip", " mm"),
    ("covered", "covered", "share"),
)

# Images that correlate more than this agree, whatever they started from.
_ALIKE = 0.6
# HU that the picture shows, and from which share of lung on a CT is one of the chest.
_BODY_WINDOW, _LUNG_WINDOW, _CHEST = (-160.0, 240.0), (-1000.0, 300.0), 0.25


def scored(
    pair: Pair, found: Found, inverse: Transform, forth: tuple[Tensor, Tensor, Grid]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the scores of the field and of the images, and those of the points.

    Args:
        pair: files, read.
        found: the registration.
        inverse: of its transform, as it is filed.
        forth: its whole field (1, d, *S), the Jacobian determinants (*S) and their grid.
    """
    fixed, moving = pair.fixed, pair.moving
    ddf, determinant, grid = forth
    scores = _similarity(pair, found.transform)
    mask = fixed.mask[0, 0] if fixed.mask is not None and fixed.mask.shape[2:] == determinant.shape else None
    scores |= field_scores(determinant, mask)
    scores["covered"] = covered_share(found.transform, fixed, moving.grid)
    # A small image lies on a large one wholly, but covers little of it.
    scores["overlap"] = max(scores["covered"], covered_share(inverse, moving, fixed.grid))
    mean, largest = round_trip(found.transform, inverse, grid)
    scores |= {"round_trip_mm": mean, "round_trip_max_mm": largest}
    scores["round_trip_voxels"] = mean / float(np.prod(grid.spacing_mm) ** (1 / len(grid.shape)))
    scores["displacement_mm"], scores["displacement_max_mm"] = _lengths(ddf, grid)
    points: dict[str, Any] = {}
    for name, side in (("fixed", fixed), ("moving", moving)):
        if side.world is not None:
            points[name] = {"count": len(side.world), "outside": side.outside}
    if fixed.world is not None and moving.world is not None:
        scores |= point_scores(found.transform, fixed.world, moving.world)
        scores["tre_gain_mm"] = scores["tre_mm_before"] - scores["tre_mm"]
    return scores, points


def _similarity(pair: Pair, transform: Transform) -> dict[str, float]:
    """Compare the images as they are registered and, where they overlap so, as their headers lay them."""
    still = Transform((Affine(np.eye(transform.dims + 1)),))
    fixed, (moving, before), (seen, seen_before) = sample_pair(pair.fixed, pair.moving, (transform, still))
    comparable = seen_before > 0.1 * seen
    if not comparable:
        fixed, (moving,), _ = sample_pair(pair.fixed, pair.moving, (transform,))
        before = moving[:0]
    scores: dict[str, float] = {}
    for suffix, values in (("", moving), ("_before", before)):
        same = fixed[: len(values)]
        scores[f"similarity{suffix}"] = mutual_information(same, values)
        scores[f"correlation{suffix}"] = correlation(same, values)
    scores["similarity_gain"] = scores["similarity"] - scores["similarity_before"]
    return scores


def _lengths(ddf: Tensor, grid: Grid) -> tuple[float, float]:
    """Return the mean and the largest displacement in mm, some slices at a time."""
    matrix = torch.as_tensor(grid.affine[:-1, :-1], dtype=ddf.dtype)
    total, largest = 0.0, 0.0
    for part in ddf.split(16, dim=2):
        lengths = length(torch.einsum("ij,bj...->bi...", matrix, part))
        total, largest = total + float(lengths.double().sum()), max(largest, float(lengths.max()))
    return total / ddf[0, 0].numel(), largest


def scored_labels(pair: Pair, warped: np.ndarray | None) -> tuple[dict[str, float], dict[int, dict[str, float]]]:
    """Return the mean scores of the labels that both maps have, and those of each; nothing without both label maps.

    Args:
        pair: files, read.
        warped: the moving label map on the fixed grid.
    """
    fixed, moving = pair.fixed, pair.moving
    if fixed.label is None or moving.label is None or warped is None:
        return {}, {}
    # Chosen once: before and after are means over the same labels.
    labels = common_labels(fixed.label, moving.label)
    table = label_scores(warped, fixed.label, fixed.grid.spacing_mm, labels)
    still = Transform((Affine(np.eye(len(fixed.grid.shape) + 1)),)).ddf(fixed.grid, moving.grid)
    unmoved = resample(moving.label, still, "nearest", outside=0)
    before = label_scores(unmoved, fixed.label, fixed.grid.spacing_mm, labels)
    scores: dict[str, float] = {}
    # A label that is in one map alone has no surface distance; both means are over those that have one in both.
    measured = {label for label, row in table.items() if math.isfinite(row["hd95_mm"])}
    measured_before = {label for label, row in before.items() if math.isfinite(row["hd95_mm"])}
    for suffix, rows in (("", table), ("_before", before)):
        dice = [row["dice"] for row in rows.values() if math.isfinite(row["dice"])]
        distances = [rows[label]["hd95_mm"] for label in measured & measured_before]
        scores[f"dice{suffix}"] = float(np.mean(dice)) if dice else math.nan
        scores[f"hd95_mm{suffix}"] = float(np.mean(distances)) if distances else math.nan
    scores["labels_lost"] = len(measured_before - measured)
    scores["dice_gain"] = scores["dice"] - scores["dice_before"]
    return scores, table


def remarks(found: Found, scores: Mapping[str, float]) -> list[str]:
    """Return reasons for doubt that no single score tells."""
    doubts = []
    if found.kept_start:
        doubts.append("the optimisation ended worse than it began: its start was kept")
    if math.isnan(scores["similarity_before"]) and not abs(scores["correlation"]) > _ALIKE:
        doubts.append("the headers do not bring the images together, and a fit may end in a wrong place")
    return doubts


def draw(
    path: Path, pair: Pair, found: Found, determinant: Tensor, grid: Grid, content: Mapping[str, Any], modality: str
) -> None:
    """Draw ``qc.png``.

    Args:
        path: of the picture.
        pair: files, read.
        found: the registration.
        determinant: (*S) Jacobian determinants.
        grid: their lattice.
        content: verdict, reasons and scores.
        modality: as asked for, of both or of each.
    """
    kinds = [word.strip() for word in modality.split(",")]
    sides = [(pair.fixed.image[0], kinds[0]), (pair.moving.image[0], kinds[-1])]
    ct = [kind == "ct" or (kind == "auto" and looks_like_ct(image)) for image, kind in sides]
    lung = any(is_ct and _lung_share(image) > _CHEST for (image, _), is_ct in zip(sides, ct, strict=True))
    window = _LUNG_WINDOW if lung else _BODY_WINDOW
    images = [
        normalise(image, "ct" if is_ct else "mr", window)[None] for (image, _), is_ct in zip(sides, ct, strict=True)
    ]
    scene = Scene(
        images[0], images[1], (pair.fixed.grid, pair.moving.grid), found.transform, determinant, grid, ct[0] == ct[1]
    )
    title = f"{pair.moving.name} registered to {pair.fixed.name}"
    quality_figure(scene, path, title, content["verdict"], [summary(content["scores"]), *content["reasons"]])


def _told(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _lung_share(image: Tensor) -> float:
    """Return the share of lung among what a CT shows of lung and soft tissue."""
    lung = int(((image > -950) & (image < -550)).sum())
    return lung / max(1, lung + int(((image > -300) & (image < 300)).sum()))


def summary(scores: Mapping[str, float | None]) -> str:
    """Return the main scores in one line."""
    words = [
        f"{label} {before:.4g} \N{RIGHTWARDS ARROW} {after:.4g}{unit}"
        for key, label, unit in _CHANGES
        if _told(after := scores.get(key)) and _told(before := scores.get(f"{key}_before"))
    ]
    for key, label, unit in _MEASURES:
        value = scores.get(key)
        if value is not None and math.isfinite(value):
            words.append(f"{label} {100 * value:.0f}%" if unit == "share" else f"{label} {value:.3g}{unit}")
    return ",  ".join(words)


def plain(value: Any) -> Any:
    """Return a value as JSON holds it: no NaN (null instead), six digits, text keys."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
