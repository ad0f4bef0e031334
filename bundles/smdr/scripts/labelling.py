"""Labels of generated images, and which of them are fit for training.

How Xu et al. (arXiv 2406.18037, 2024) label replayed images is not in their abstract. Our choice: ``pseudo``, the
segmenter as it was after the previous site labels them; or ``joint``, the label is generated along with the image. In
both, an image goes whose label is unsure, or larger or smaller than the site's labels are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from shared.errors import InputError, did_you_mean
from shared.weights import load_weights

from .denoising import from_channels
from .diffusion import SiteDiffusion
from .hashes import hash_of_weights

__all__ = ["JointLabels", "Labeller", "PseudoLabels", "SampleFilter", "choose_labels", "judge", "site_statistics"]


class Labeller(Protocol):
    """What labels generated samples: :class:`PseudoLabels` or :class:`JointLabels`."""

    def settings(self) -> dict[str, Any]:
        """Return what decides the labels, in plain words."""

    def __call__(self, generator: SiteDiffusion, channels: Tensor) -> tuple[Tensor, Tensor]:
        """Return images (B, channels, *S) in [0, 1] and probabilities (B, classes, *S), background first."""


class PseudoLabels:
    """``labels: pseudo``: a segmenter's own output.

    Args:
        segmenter: takes images (B, channels, *S) in [0, 1], returns logits (B, classes, *S), or (B, 1, *S) for
            foreground alone; on the generator's device. It is called in eval mode and left as it was.
    """

    def __init__(self, segmenter: nn.Module) -> None:
        self.segmenter = segmenter

    def settings(self) -> dict[str, Any]:
        """Return the choice and the segmenter's hash."""
        return {"labels": "pseudo", "segmenter": hash_of_weights(self.segmenter.state_dict())}

    @torch.no_grad()
    def __call__(self, generator: SiteDiffusion, channels: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Labeller`."""
        images, _ = from_channels(generator, channels)
        training = self.segmenter.training
        self.segmenter.eval()
        logits = self.segmenter(images).float()
        self.segmenter.train(training)
        if logits.shape[1] > 1:
            return images, logits.softmax(1)
        inside = logits.sigmoid()
        return images, torch.cat([1 - inside, inside], dim=1)


class JointLabels:
    """``labels: joint``: the label channels that the generator drew."""

    def settings(self) -> dict[str, Any]:
        """Return the choice."""
        return {"labels": "joint"}

    def __call__(self, generator: SiteDiffusion, channels: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Labeller`.

        Raises:
            InputError: the generator draws no labels.
        """
        images, probabilities = from_channels(generator, channels)
        if probabilities is None:
            raise InputError("found labels joint with a generator of images alone, expected label_channels, or pseudo")
        return images, probabilities


def choose_labels(labels: str, segmenter: nn.Module, weights: str | Path) -> Labeller:
    """Return who labels.

    Args:
        labels: "pseudo" or "joint".
        segmenter: see :class:`PseudoLabels`; without a part in "joint".
        weights: its ``model.pt``, which "pseudo" loads.

    Raises:
        InputError: another choice, or weights that do not fit.
    """
    if labels not in ("pseudo", "joint"):
        raise InputError(
            f"found labels {labels!r}{did_you_mean(labels, ['pseudo', 'joint'])}, expected pseudo or joint"
        )
    if labels == "joint":
        return JointLabels()
    load_weights(segmenter, weights)
    return PseudoLabels(segmenter)


def judge(probabilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return labels, how sure they are, and how large.

    Args:
        probabilities: (B, classes, *S), background first.

    Returns:
        labels (B, 1, *S) uint8; confidence (B,), the mean probability of the label over the foreground, or over
        everything where there is none; area (B,), the share of voxels that are foreground.
    """
    sure, labels = probabilities.max(dim=1, keepdim=True)
    inside = (labels > 0).flatten(1)
    counted = inside | ~inside.any(dim=1, keepdim=True)
    confidence = (sure.flatten(1) * counted).sum(1) / counted.sum(1)
    return labels.to(torch.uint8), confidence, inside.float().mean(1)


def site_statistics(dataset: Sequence[Mapping[str, Tensor]], name: str = "site") -> dict[str, Any]:
    """Return what is kept of a site's training images beside weights: a few numbers over all of them.

    Args:
        dataset: with ``image`` (C, *S) in [0, 1] and ``label`` (1, *S) in each item.
        name: for the progress bar.

    Returns:
        ``images``, their number; ``empty``, the share without foreground; ``area``, the 1st and 99th percentile of the
        foreground's share of those that have some; ``intensity``, mean and standard deviation over all voxels.

    Raises:
        InputError: no image, an image without label, or no foreground in any.
    """
    areas, means, squares = [], [], []
    for index in tqdm(range(len(dataset)), desc=f"statistics of {name}", unit="image", dynamic_ncols=True, leave=False):
        sample = dataset[index]
        if "label" not in sample:
            raise InputError(f"{name}: found an image without label, expected labels of all: they bound the areas")
        areas.append(float((sample["label"] > 0).float().mean()))
        means.append(float(sample["image"].double().mean()))
        squares.append(float(sample["image"].double().square().mean()))
    filled = torch.tensor([area for area in areas if area > 0], dtype=torch.float64)
    if not len(filled):
        raise InputError(f"{name}: found {len(areas)} images without any foreground, expected labels above 0")
    mean = sum(means) / len(means)
    deviation = max(0.0, sum(squares) / len(squares) - mean**2) ** 0.5
    return {
        "images": len(areas),
        "empty": round(1 - len(filled) / len(areas), 6),
        "area": [round(float(torch.quantile(filled, q)), 6) for q in (0.01, 0.99)],
        "intensity": [round(mean, 6), round(deviation, 6)],
    }


class SampleFilter:
    """Which generated images are fit for training.

    Args:
        min_confidence: least confidence of a label; see :func:`judge`.
        slack: how far the area may lie outside the site's own range, as a share of its bounds.

    Raises:
        ValueError: a confidence outside [0, 1], or a slack below 0.
    """

    def __init__(self, min_confidence: float = 0.8, slack: float = 0.25) -> None:
        if not 0 <= min_confidence <= 1 or slack < 0:
            raise ValueError(
                f"found min_confidence {min_confidence}, slack {slack}; expected one in [0, 1] and one of at least 0"
            )
        self.min_confidence, self.slack = min_confidence, slack

    def settings(self) -> dict[str, Any]:
        """Return the options."""
        return {"min_confidence": self.min_confidence, "slack": self.slack}

    def fault(self, confidence: float, area: float, statistics: Mapping[str, Any]) -> str | None:
        """Return what is wrong with a sample, or None.

        Args:
            confidence: of :func:`judge`.
            area: of :func:`judge`.
            statistics: of :func:`site_statistics`.
        """
        if confidence < self.min_confidence:
            return "unsure"
        if area == 0:
            return None if statistics["empty"] > 0 else "empty"
        low, high = statistics["area"]
        if area < low * (1 - self.slack):
            return "too small"
        return "too large" if area > high * (1 + self.slack) else None
