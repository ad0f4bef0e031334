"""Leak test: is a generated image nearer to an image that the generator was trained on than to one it never saw?

Privacy is the reason to generate instead of to keep; what a generator memorised would undo it. The test is ours. It
finds copies, also dimmed, flipped or blurred ones; it proves nothing about what it does not find.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.layers import GaussianFilter
from torch import Tensor

from shared.errors import InputError

__all__ = ["LeakFilter", "Leakage", "RealImages", "leak_test", "stacked"]

Images = Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True)
class Leakage:
    """For each of N samples the nearest training image and the nearest held-out image.

    Distances are root mean square differences of normalised images: 0 for a copy, about 1.4 for unrelated images.

    Attributes:
        to_training: (N,) distance to the nearest training image.
        to_held_out: (N,) distance to the nearest held-out image.
        training: (N,) its number among the training images.
        held_out: (N,) its number among the held-out images.
        counts: training images and held-out images.
        reference: (H,) distance of each held-out image to the nearest training image: what a stranger's is.
    """

    to_training: Tensor
    to_held_out: Tensor
    training: Tensor
    held_out: Tensor
    counts: tuple[int, int]
    reference: Tensor

    @property
    def ratio(self) -> Tensor:
        """(N,) distance to the nearest training image over that to the nearest held-out one; a copy's is near 0."""
        return _ratio(self.to_training, self.to_held_out)

    def suspects(self, threshold: float = 0.5) -> list[int]:
        """Return the numbers of samples whose ratio lies below ``threshold``, the worst first."""
        order = self.ratio.argsort()
        return [int(i) for i in order if float(self.ratio[i]) < threshold]

    def summary(self, threshold: float = 0.5) -> dict[str, float | int]:
        """Return the figures of a report.

        ``nearer_to_training`` is the share of samples whose nearest image of all is a training image; with a generator
        that knows no single image, ``expected_nearer`` of them would be, as there are more of those.
        """
        training, held_out = self.counts
        return {
            "samples": len(self.ratio),
            "training_images": training,
            "held_out_images": held_out,
            "suspects": len(self.suspects(threshold)),
            "lowest_ratio": round(float(self.ratio.min()), 4),
            "median_ratio": round(float(self.ratio.median()), 4),
            "nearer_to_training": round(float((self.ratio < 1).float().mean()), 4),
            "expected_nearer": round(training / (training + held_out), 4),
            "median_distance": round(float(self.to_training.median()), 4),
            "median_distance_of_held_out": round(float(self.reference.median()), 4),
        }


def leak_test(samples: Tensor, training: Tensor, held_out: Tensor, size: int = 32, sigma: float = 1.0) -> Leakage:
    """Compare samples with the images that a generator was trained on, and with images that it never saw.

    Images are blurred, shrunk and brought to zero mean and unit deviation first, and a sample counts with all its
    flips, so that noise, contrast and a mirror do not hide a copy. Both sets should come from the same site, and no
    patient should be in both.

    Args:
        samples: (N, C, *S), of the replay set.
        training: (M, C, *S), all images that the generator was trained on.
        held_out: (H, C, *S).
        size: most voxels an axis that are compared.
        sigma: of the blur, in voxels of S.

    Raises:
        InputError: an empty set, or images of different sizes.
    """
    for name, images in {"samples": samples, "training images": training, "held-out images": held_out}.items():
        _check(name, images, samples.shape[1:])
    seen, unseen = (_appearance(images, size, sigma) for images in (training, held_out))
    to_training, nearest_training = _nearest(samples, seen, size, sigma)
    to_held_out, nearest_held_out = _nearest(samples, unseen, size, sigma)
    reference, _ = _nearest(held_out, seen, size, sigma)
    counts = (len(training), len(held_out))
    return Leakage(to_training, to_held_out, nearest_training, nearest_held_out, counts, reference)


class LeakFilter:
    """Finds samples too near to a training image while a replay set is drawn, so that none of them is ever written.

    Args:
        training: (M, C, *S) in [0, 1], all images that the generator was trained on.
        held_out: (H, C, *S), of patients that it never saw.
        threshold: a sample is too near whose distance to the nearest training image is less than so many times that
            to the nearest held-out one.
        size: see :func:`leak_test`.
        sigma: see :func:`leak_test`.

    Raises:
        InputError: an empty set, images of different sizes, or a threshold that is no number above 0.
    """

    def __init__(
        self, training: Tensor, held_out: Tensor, threshold: float = 0.5, size: int = 32, sigma: float = 1.0
    ) -> None:
        if not isinstance(threshold, (int, float)) or not threshold > 0:
            raise InputError(f"found leak_threshold {threshold!r}, expected a number above 0, or $None: not compared")
        self._shape = training.shape[1:]
        for name, images in {"training images": training, "held-out images": held_out}.items():
            _check(name, images, self._shape)
        self.threshold, self._size, self._sigma = float(threshold), size, sigma
        self._training, self._held_out = (_appearance(images, size, sigma).cpu() for images in (training, held_out))

    def __call__(self, images: Tensor) -> list[bool]:
        """Return which of the images (N, C, *S) are too near.

        Raises:
            InputError: images of another size than the real ones.
        """
        _check("samples", images, self._shape)
        found = [
            _nearest(images.cpu(), known, self._size, self._sigma)[0] for known in (self._training, self._held_out)
        ]
        return (_ratio(*found) < self.threshold).tolist()


class RealImages:
    """A site's real images to compare samples with, read when they are asked for and once.

    Args:
        dataset: from items to samples with ``image`` (C, *S) in [0, 1].
        training: items that the generator was trained on, or what returns them.
        held_out: items of patients that it never saw, or what returns them.
    """

    def __init__(
        self,
        dataset: Callable[[Any], Images],
        training: Sequence[Any] | Callable[[], Sequence[Any]],
        held_out: Sequence[Any] | Callable[[], Sequence[Any]],
    ) -> None:
        self._dataset, self._items = dataset, (training, held_out)

    def _read(self, items: Sequence[Any] | Callable[[], Sequence[Any]]) -> Images:
        return self._dataset(items() if callable(items) else items)

    @cached_property
    def training(self) -> Images:
        """The samples that the generator was trained on."""
        return self._read(self._items[0])

    @cached_property
    def held_out(self) -> Images:
        """The samples that it never saw."""
        return self._read(self._items[1])

    def leak_filter(self, threshold: float | None = 0.5) -> LeakFilter | None:
        """Return the filter of samples too near to a training image; None for a threshold of None, nothing is read.

        Args:
            threshold: see :class:`LeakFilter`.
        """
        return None if threshold is None else LeakFilter(stacked(self.training), stacked(self.held_out), threshold)


def stacked(samples: Images) -> Tensor:
    """Return the images of samples as one tensor (N, C, *S)."""
    return torch.stack([samples[number]["image"] for number in range(len(samples))]).float()


def _check(name: str, images: Tensor, shape: torch.Size) -> None:
    if not len(images) or images.shape[1:] != shape:
        raise InputError(
            f"found {len(images)} {name} of {tuple(images.shape[1:])}, expected one or more of {tuple(shape)}"
        )


def _ratio(to_training: Tensor, to_held_out: Tensor) -> Tensor:
    return to_training / to_held_out.clamp(min=1e-12)


def _appearance(images: Tensor, size: int, sigma: float) -> Tensor:
    """Return (B, F) rows whose Euclidean distance is the root mean square difference of normalised images."""
    dims = images.ndim - 2
    smooth = images.float()
    if sigma > 0:
        # Around a mean of zero: the filter sees zeros beyond the edge, and a brighter image would have darker edges.
        smooth = GaussianFilter(dims, sigma)(smooth - smooth.flatten(2).mean(2).reshape(*smooth.shape[:2], *[1] * dims))
    shrink = F.adaptive_avg_pool2d if dims == 2 else F.adaptive_avg_pool3d
    small = shrink(smooth, tuple(min(size, n) for n in images.shape[2:])).flatten(2)
    centred = small - small.mean(2, keepdim=True)
    centred = centred / centred.square().mean(2, keepdim=True).sqrt().clamp(min=1e-6)
    rows = centred.flatten(1)
    return rows / rows.shape[1] ** 0.5


def _nearest(images: Tensor, known: Tensor, size: int, sigma: float, chunk: int = 256) -> tuple[Tensor, Tensor]:
    """Return distance and number (N,) of the nearest of ``known`` to each image in any of its flips."""
    axes = range(2, images.ndim)
    flips = [c for count in range(images.ndim - 1) for c in itertools.combinations(axes, count)]
    distances, numbers = [], []
    for part in images.split(chunk):
        rows = torch.stack([_appearance(part.flip(flip) if flip else part, size, sigma) for flip in flips])
        # Differences squared and summed, not by products: those lose the small distances that matter here.
        between = torch.cdist(rows, known.expand(len(flips), -1, -1), compute_mode="donot_use_mm_for_euclid_dist")
        nearest, number = between.amin(0).min(1)
        distances.append(nearest.cpu())
        numbers.append(number.cpu())
    return torch.cat(distances), torch.cat(numbers)
