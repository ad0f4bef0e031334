"""A replay set as people judge it: one picture of its samples, and its figures against the site's real images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from shared.errors import InputError
from shared.files import atomic_path, save_json

from .leakage import leak_test, stacked
from .quality import RandomFeatures, sample_quality
from .replay import ReplayDataset, read_index

__all__ = ["ASSESSMENT", "assess_replay", "sample_sheet"]

ASSESSMENT = "assessment.json"
_WIDTHS = (4, 8, 8)  # of the features: no more than a small site's images can tell the covariance of


def assess_replay(
    folder: str | Path, training: Sequence[Mapping[str, Tensor]], held_out: Sequence[Mapping[str, Tensor]]
) -> dict[str, Any]:
    """Compare a replay set with the real images of its site, and write the figures beside its index.

    To be called while the site's images are at hand; of those nothing but figures is kept.

    Args:
        folder: of ``make_replay``; gets ``assessment.json``.
        training: samples that the generator was trained on, with ``image`` (C, *S) in [0, 1].
        held_out: samples of patients that it never saw.

    Returns:
        ``quality`` (see ``sample_quality``; its one entry ``missing`` says why there is none), ``leakage`` (see
        ``Leakage.summary``), and ``suspect_samples``, the numbers of samples that may be copies, the worst first:
        what ``exclude`` of ``make_replay`` takes.

    Raises:
        InputError: the set is not complete, its files were changed, or the images are of another size.
    """
    index = read_index(folder)
    samples, seen, unseen = (stacked(dataset) for dataset in (ReplayDataset(folder), training, held_out))
    try:
        features = RandomFeatures(samples.shape[1], samples.ndim - 2, _WIDTHS)
        quality: dict[str, Any] = sample_quality(samples, unseen, features)
    except InputError as error:  # very few images have no figures of quality, which is no reason to stop
        quality = {"missing": str(error)}
    leakage = leak_test(samples, seen, unseen)
    found = {
        "site": index["settings"]["site"],
        "drawn": index["drawn"],
        "dropped": index["dropped"],
        "quality": quality,
        "leakage": leakage.summary(),
        "suspect_samples": [index["samples"][place]["number"] for place in leakage.suspects()],
    }
    save_json(Path(folder) / ASSESSMENT, found)
    return found


def sample_sheet(folder: str | Path, path: str | Path, count: int = 40, columns: int = 10) -> None:
    """Draw the first samples of a replay set with the outline of their labels, middle channel, mid slice.

    Args:
        folder: of ``make_replay``.
        path: PNG to write.
        count: samples shown, at most.
        columns: samples a row.

    Raises:
        InputError: the set is not complete, or its files were changed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    dataset = ReplayDataset(folder)
    count = min(count, len(dataset))
    rows = -(-count // columns)
    figure = Figure(figsize=(1.1 * columns, 1.1 * rows + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{dataset[0]['site']}: {count} of {len(dataset)} generated images", fontsize=9)
    grid = figure.subplots(rows, columns, squeeze=False)
    for number, axes in enumerate(grid.flat):
        axes.axis("off")
        if number < count:
            image, label = dataset[number]["image"], dataset[number]["label"][0]
            axes.imshow(_plane(image[len(image) // 2]), cmap="gray", vmin=0, vmax=1)
            if bool((label > 0).any()):
                axes.contour(_plane(label.float()), levels=[0.5], colors="tab:orange", linewidths=0.8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _plane(image: Tensor) -> Any:
    """Return (H, W), or the middle of (H, W, D), with the first axis to the right and the second up."""
    image = image[..., image.shape[-1] // 2] if image.ndim == 3 else image
    return image.T.flip(0).numpy()
