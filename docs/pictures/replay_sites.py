"""Draw ``replay_sites.png``: for each site of a finished ``smdr`` chain, real slices beside generated ones.

Run from the root of the repository: ``python docs/pictures/replay_sites.py output/smdr_embedded``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bundles.smdr.scripts.replay import ReplayDataset  # noqa: E402
from shared.data.decathlon import read_site  # noqa: E402
from shared.data.slice_dataset import SliceDataset  # noqa: E402

mpl.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

REAL, GENERATED, SIZE, SLICES = 3, 8, (64, 64), 3


def show(axes: plt.Axes, image: torch.Tensor, label: torch.Tensor) -> None:
    """Draw the middle one of the adjacent slices, with the outline of its label."""
    axes.imshow(image[len(image) // 2].T.flip(0), cmap="gray", vmin=0, vmax=1)
    if bool(label.any()):
        axes.contour(label[0].T.flip(0) > 0, [0.5], colors="tab:orange", linewidths=0.8)
    axes.set_xticks([])
    axes.set_yticks([])


def main(chain: str) -> None:
    """Draw the sites of a chain's folder, in the order learnt."""
    tasks = json.loads((Path(chain) / "chain.json").read_text())["tasks"]
    figure, rows = plt.subplots(len(tasks), REAL + GENERATED, figsize=(REAL + GENERATED, len(tasks) + 0.3))
    for number, (task, row) in enumerate(zip(tasks, rows, strict=True), 1):
        real = SliceDataset(read_site(task["dataset_dir"], task["task"], "test"), SIZE, slices=SLICES)
        drawn = ReplayDataset([next(Path(chain).glob(f"{number:02d}_*/replay"))])
        generator = torch.Generator().manual_seed(number)
        for axes, index in zip(row[:REAL], torch.randperm(len(real), generator=generator).tolist(), strict=False):
            show(axes, real[index]["image"], real[index]["label"])
        for axes, index in zip(row[REAL:], torch.randperm(len(drawn), generator=generator).tolist(), strict=False):
            show(axes, drawn[index]["image"], drawn[index]["label"])
        row[0].set_ylabel(f"site {number}", fontsize=8)
    figure.subplots_adjust(0.03, 0.01, 0.99, 0.95, 0.04, 0.04)
    for axes, title in ((rows[0][0], "real, test patients"), (rows[0][REAL], "generated, labelled by the segmenter")):
        axes.set_title(title, fontsize=9, loc="left")
    # A gap between real and generated ones.
    for row in rows:
        for axes in row[:REAL]:
            box = axes.get_position()
            axes.set_position((box.x0 - 0.008, box.y0, box.width, box.height))
    path = Path(__file__).with_suffix(".png")
    figure.savefig(path, dpi=100)
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1])
