"""Draw ``synthetic_tasks.png``: one row for each embedded registration task, the first test pair,
twice as fine as the default size.

Run from the root of the repository: ``python docs/pictures/synthetic_tasks.py``.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
import nibabel as nib
import numpy as np
from PIL import Image
from scipy.ndimage import map_coordinates

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from shared.data.synthetic import write_registration_tasks  # noqa: E402

mpl.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

# Task: title, axis and position of the slice (0 to 1), grey window of CT.
ROWS: dict[str, tuple[str, int, float, tuple[float, float]]] = {
    "synth_brain_mr": ("brain MR\nbetween patients", 2, 0.56, (0, 0)),
    "synth_abdomen_ct": ("abdomen CT\nbetween patients", 2, 0.6, (-160, 240)),
    "synth_lung_ct": ("chest CT\nbreathing", 1, 0.5, (-1000, 300)),
    "synth_abdomen_mrct": ("abdomen MR-CT\nsame patient", 1, 0.46, (-160, 240)),
}
COLUMNS = (
    *("fixed", "moving", "fixed labels", "moving labels"),
    *("fixed, moving outlines", "after the true warp", "true field"),
)


def load(folder: Path) -> dict[str, np.ndarray]:
    """Read images, labels and the true field of the first test pair."""
    content = json.loads(next(folder.glob("*_dataset.json")).read_text())
    items = {item["image"]: item for item in content["test"]}
    pair = content["registration_test"][0]
    paths = {"truth": pair["truth"]}
    for role in ("fixed", "moving"):
        paths[role] = pair[role]
        paths[f"{role}_label"] = items[pair[role]]["label"]
    return {key: np.asanyarray(nib.load(folder / path).dataobj).astype(np.float32) for key, path in paths.items()}


def warped(volume: np.ndarray, ddf: np.ndarray, order: int) -> np.ndarray:
    """Pull ``volume`` (*S) back through ``ddf`` (*S, 3), voxels."""
    voxels = np.moveaxis(np.moveaxis(np.indices(volume.shape), 0, -1) + ddf, -1, 0)
    return map_coordinates(volume, voxels, order=order, mode="nearest")


def draw_row(axes: np.ndarray, name: str, data: dict[str, np.ndarray]) -> None:
    """Draw one task: images, label overlays, outlines before and after, and the field."""
    title, axis, height, window = ROWS[name]
    index = int(height * data["fixed"].shape[axis])

    def cut(volume: np.ndarray) -> np.ndarray:
        # Right of the patient on the left of the picture, as radiologists look at it.
        return np.take(volume, index, axis=axis).T[::-1, ::-1]

    def grey(image: np.ndarray) -> dict[str, Any]:
        low, high = window if image.min() < 0 else (0.0, float(np.percentile(image, 99.7)))
        return {"X": cut(image), "cmap": "gray", "vmin": low, "vmax": high, "interpolation": "bicubic"}

    label_map = warped(data["moving_label"], data["truth"], order=0)
    count = int(data["fixed_label"].max())
    for column, role in enumerate(("fixed", "moving")):
        axes[column].imshow(**grey(data[role]))
        axes[column + 2].imshow(**grey(data[role]))
        overlay = cut(data[f"{role}_label"])
        axes[column + 2].imshow(
            np.ma.masked_equal(overlay, 0), cmap="Set1", vmin=1, vmax=max(count, 9), alpha=0.65, interpolation="nearest"
        )
    for column, labels in ((4, data["moving_label"]), (5, label_map)):
        axes[column].imshow(**grey(data["fixed"]))
        for number in range(1, count + 1):
            for source, colour in ((data["fixed_label"], "#40c4ff"), (labels, "#ffab00")):
                region = cut(source) == number
                if region.any():
                    axes[column].contour(region, levels=[0.5], colors=colour, linewidths=1.1)
    draw_field(axes[6], data["truth"], axis, index)
    axes[0].set_ylabel(title, fontsize=11)


def draw_field(axes: Any, ddf: np.ndarray, axis: int, index: int) -> None:
    """Draw where the true field sends every second line of the fixed grid, in the plane of the slice."""
    size = ddf.shape[0]
    field = np.take(ddf, index, axis=axis)
    across, up = (component for component in range(3) if component != axis)
    rows, columns = np.indices(field.shape[:2])
    x, y = rows + field[..., across], columns + field[..., up]
    for k in range(0, size, 2):
        axes.plot(x[k], y[k], color="#37474f", linewidth=0.8)
        axes.plot(x[:, k], y[:, k], color="#37474f", linewidth=0.8)
    axes.set(xlim=(size, -1), ylim=(-1, size), aspect="equal")


def main() -> None:
    """Write the picture beside this script."""
    counts = {"training": 0, "validation": 0, "test": 1}
    figure, axes = plt.subplots(len(ROWS), len(COLUMNS), figsize=(14, 8.3), layout="constrained", dpi=75)
    with tempfile.TemporaryDirectory() as folder:
        for row, (name, path) in enumerate(write_registration_tasks(folder, ROWS, size=64, counts=counts).items()):
            draw_row(axes[row], name, load(path))
    for column, title in enumerate(COLUMNS):
        axes[0, column].set_title(title, fontsize=11)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.canvas.draw()
    # Six bits a colour look the same and halve the file.
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3] | 3
    Image.fromarray(pixels).save(Path(__file__).with_suffix(".png"), optimize=True)


if __name__ == "__main__":
    main()
