"""Draw ``label_propagation.png``: the sample atlas, and its labels on another synthetic brain before and after.

Runs the steps of a bundle's ``inference.json`` as a MONAI Label server does. From the root of the repository:
``python docs/pictures/label_propagation.py``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import matplotlib as mpl
import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundles" / "dccnn_lstm_reg"
sys.path[:0] = [str(ROOT), str(BUNDLE)]

from shared.apply import resample_labels  # noqa: E402
from shared.data.images import read_voxels  # noqa: E402
from shared.data.synthetic import write_registration_tasks  # noqa: E402
from shared.transform_io import affine_ddf  # noqa: E402

mpl.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


def propagated(image: Path) -> np.ndarray:
    """Return the label map (*S) that the bundle propagates to an image."""
    parser = ConfigParser()
    parser.read_config(BUNDLE / "configs" / "inference.json")
    parser.update({"bundle_root": str(BUNDLE), "device": "cpu"})
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(BUNDLE / "models" / "model.pt", weights_only=True))
    data = {"image": str(image), **parser.get_parsed_content("displayable_configs")}
    for transform in parser.get_parsed_content("preprocessing").transforms:
        data = transform(data)
    with torch.no_grad():
        data["pred"] = parser.get_parsed_content("inferer")(data["image"][None], network)[0]
    for transform in parser.get_parsed_content("postprocessing").transforms:
        data = transform(data)
    return data["pred"][0].numpy()


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Return the mean over the labels of the second map."""
    values = np.unique(other)[1:]
    return float(
        np.mean([2 * ((one == v) & (other == v)).sum() / ((one == v).sum() + (other == v).sum()) for v in values])
    )


def draw(axis: plt.Axes, image: np.ndarray, label: np.ndarray, title: str) -> None:
    """Draw the middle slice with its labels."""
    middle = round(0.56 * image.shape[2])
    shown = np.ma.masked_equal(label[..., middle].T, 0)
    axis.imshow(image[..., middle].T, cmap="gray", origin="lower")
    axis.imshow(shown, cmap="Set1", origin="lower", alpha=0.45, vmin=1, vmax=9, interpolation="nearest")
    axis.set_title(title, fontsize=9)
    axis.axis("off")


def main() -> None:
    """Write the picture beside this file."""
    atlas, grid = read_voxels(BUNDLE / "atlas" / "synthetic.nii.gz")
    atlas_label, _ = read_voxels(BUNDLE / "atlas" / "synthetic_label.nii.gz")
    with tempfile.TemporaryDirectory() as folder:
        counts = {"training": 0, "validation": 1, "test": 0}
        task = write_registration_tasks(folder, ["synth_brain_mr"], size=64, seed=11, counts=counts)["synth_brain_mr"]
        path = sorted((task / "imagesTr").iterdir())[0]
        image, own = read_voxels(path)
        truth = np.asarray(nib.load(task / "labelsTr" / path.name).dataobj)
        after = propagated(path)
    before = resample_labels(atlas_label, affine_ddf(own, grid))
    figure, axes = plt.subplots(1, 3, figsize=(8.4, 3.2), dpi=110, layout="constrained")
    draw(axes[0], atlas, atlas_label, "the atlas")
    draw(axes[1], image, before, f"the image, the atlas' labels as they lie\nDice {dice(before, truth):.2f}")
    draw(axes[2], image, after, f"the server's answer\nDice {dice(after, truth):.2f}")
    figure.savefig(Path(__file__).with_suffix(".png"))


if __name__ == "__main__":
    main()
