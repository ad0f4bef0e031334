"""Leak test: is a generated image nearer to an image that the generator was trained on than to one it never saw?

Privacy is the reason to generate instead of to keep; what a generator memorised would undo it. The test is ours. It
finds copies, also dimmed, flipped or blurred ones; it proves nothing about what it does not find.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from monai.networks.layers import GaussianFilter
from torch import Tensor

from shared.errors import InputError
from shared.files import atomic_path

__all__ = ["Leakage", "leak_figure", "leak_test"]


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
        return self.to_training / self.to_held_out.clamp(min=1e-12)

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
    sets = {"samples": samples, "training images": training, "held-out images": held_out}
    for name, images in sets.items():
        if not len(images) or images.shape[1:] != samples.shape[1:]:
            raise InputError(
                f"found {len(images)} {name} of {tuple(images.shape[1:])}, expected one or more of "
                f"{tuple(samples.shape[1:])}"
            )
    seen, unseen = (_appearance(images, size, sigma) for images in (training, held_out))
    to_training, nearest_training = _nearest(samples, seen, size, sigma)
    to_held_out, nearest_held_out = _nearest(samples, unseen, size, sigma)
    reference, _ = _nearest(held_out, seen, size, sigma)
    counts = (len(training), len(held_out))
    return Leakage(to_training, to_held_out, nearest_training, nearest_held_out, counts, reference)


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


def leak_figure(
    found: Leakage, samples: Tensor, training: Tensor, held_out: Tensor, path: str | Path, worst: int = 6
) -> None:
    """Draw the samples of the lowest ratio beside their nearest training and held-out image, first channel, mid slice.

    The picture shows real patients. It belongs beside the data, not in a run folder: there
    ``privacy.foreign_files`` would report it.

    Args:
        found: of :func:`leak_test`, for these very images.
        samples: (N, C, *S) in [0, 1].
        training: (M, C, *S).
        held_out: (H, C, *S).
        path: PNG to write.
        worst: samples shown.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    numbers = found.ratio.argsort()[:worst].tolist()
    figure = Figure(figsize=(6.6, 2.2 * len(numbers) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(numbers), 3, squeeze=False)
    for row, number in enumerate(numbers):
        nearest_training, nearest_held_out = int(found.training[number]), int(found.held_out[number])
        cells = [
            (samples[number], f"sample {number}, ratio {float(found.ratio[number]):.2f}"),
            (training[nearest_training], f"training, distance {float(found.to_training[number]):.2f}"),
            (held_out[nearest_held_out], f"held out, distance {float(found.to_held_out[number]):.2f}"),
        ]
        for axes, (image, title) in zip(grid[row], cells, strict=True):
            plane = image[0].float().cpu()
            plane = plane[..., plane.shape[-1] // 2] if plane.ndim == 3 else plane
            axes.imshow(plane.T.flip(0).numpy(), cmap="gray", vmin=0, vmax=1)
            axes.set_title(title, fontsize=8)
            axes.set_xticks([])
            axes.set_yticks([])
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=90, format="png")
