"""Pictures of segmentations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.data.resampling import resample
from shared.files import atomic_path

__all__ = ["segmentation_figure"]

_SHOWN = 5


def segmentation_figure(sample: dict[str, Any], found: Tensor, reference: Tensor, path: str | Path, title: str) -> None:
    """Draw slices through the labelled part of a volume with the outlines of both label maps.

    The picture shows a patient: it belongs with the evaluation, not into a run folder.

    Args:
        sample: of a ``VolumeDataset``: ``image`` (C, H, W, n) and ``grids``.
        found: label map (1, i, j, k) on the image's own grid, solid lines.
        reference: the true one, dashed.
        path: PNG to write.
        title: heading.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    image, grids = sample["image"].float().cpu(), sample["grids"]
    maps = [resample(label.float(), grids["image"], grids["network"], mode="nearest") for label in (found, reference)]
    labelled = torch.nonzero(torch.stack(maps).flatten(0, 3).any(0)).flatten()
    first, last = (int(labelled[0]), int(labelled[-1])) if len(labelled) else (0, image.shape[-1] - 1)
    places = sorted({round(z) for z in torch.linspace(first, last, _SHOWN).tolist()})
    figure = Figure(figsize=(2.3 * len(places), 2.9), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{title}\nsolid: found, dashed: true", fontsize=9)
    values = [int(v) for v in torch.unique(torch.stack(maps)) if v > 0]
    for axes, z in zip(figure.subplots(1, len(places), squeeze=False)[0], places, strict=True):
        # (H, W) in right-anterior order: anterior up, as readers of images expect it.
        plane = image[..., z].movedim(0, -1).transpose(0, 1).flip(0)
        colour = plane.shape[-1] == 3
        axes.imshow((plane if colour else plane[..., 0]).numpy(), cmap="gray", vmin=0, vmax=1)
        for label, style in zip(maps, ("solid", "dashed"), strict=True):
            for value in values:
                inside = (label[0, ..., z] == value).float().T.flip(0)
                if bool(inside.any()):
                    lines = {"levels": [0.5], "linewidths": 1.0, "linestyles": style}
                    axes.contour(inside.numpy(), colors=[f"C{value}"], **lines)
        axes.set_title(f"slice {z}", fontsize=8)
        axes.set_xticks([])
        axes.set_yticks([])
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=90, format="png")
