"""How different the embedded segmentation sites are: trained on one, scored on all; one after another; all at once.

Prints Dice over the labels on the images' own grids, a row a training: ``alone`` (that site only), ``after`` (the sites
up to it, one after another) and ``joint``. A site's plain U-Net, no augmentation, no continual method.

    python -m benchmarks.sites --kind prostate --iterations 300 --seeds 1
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator

import numpy as np
import torch
from monai.losses import DiceCELoss
from tqdm import tqdm

from bundles.smdr.scripts.network import SliceUNet
from shared.data.decathlon import read_site
from shared.data.sampler import ResumableSampler
from shared.data.sites import SEGMENTATION_SITES, write_sites
from shared.data.slice_dataset import SliceDataset, VolumeDataset
from shared.data.slices import label_on_image, predict_volume
from shared.data.volumes import read_volume_label
from shared.metrics.registration import dice_per_label

SHAPES = {"prostate": {"channels": 1, "classes": 2, "slices": 3}, "fundus": {"channels": 3, "classes": 3, "slices": 1}}


def batches(dataset: SliceDataset, size: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    indices = iter(ResumableSampler(len(dataset), seed))
    while True:
        samples = [dataset[next(indices)] for _ in range(size)]
        yield torch.stack([s["image"] for s in samples]), torch.stack([s["label"] for s in samples])


def train(network: SliceUNet, dataset: SliceDataset, iterations: int, seed: int, title: str) -> None:
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    network.train()
    stream = batches(dataset, 8, seed)
    for _ in tqdm(range(iterations), desc=title, leave=False):
        image, label = next(stream)
        optimizer.zero_grad()
        loss(network(image), label).backward()
        optimizer.step()


def score(network: SliceUNet, volumes: VolumeDataset, slices: int, classes: int) -> float:
    network.eval()
    dice = []
    for sample in (volumes[i] for i in range(len(volumes))):
        probabilities = predict_volume(network, sample["image"], slices)
        label = label_on_image(probabilities, sample["grids"]["network"], sample["grids"]["image"])
        reference = read_volume_label(sample["item"]["label"], sample["grids"]["image"])
        dice.append(dice_per_label(label, reference, range(1, classes)).nanmean().item())
    return float(np.mean(dice))


def run(folder: str, kind: str, iterations: int, seed: int, size: int) -> None:
    shape = SHAPES[kind]
    names = [name for name in SEGMENTATION_SITES if kind in name]
    options = {"channels": shape["channels"], "classes": shape["classes"]}
    write_sites(folder, names, size=size, seed=seed)
    items = {s: {n: read_site(folder, n, s) for n in names} for s in ("train", "test")}
    data = {n: SliceDataset(items["train"][n], (size, size), shape["slices"], margin=2, **options) for n in names}
    pooled = [item for n in names for item in items["train"][n]]
    everything = SliceDataset(pooled, (size, size), shape["slices"], margin=2, **options)
    volumes = {n: VolumeDataset(items["test"][n], (size, size), **options) for n in names}

    def fresh() -> SliceUNet:
        torch.manual_seed(seed)
        return SliceUNet(2, **shape, widths=(16, 32, 64, 128))

    def report(title: str, network: SliceUNet) -> None:
        scores = [score(network, volumes[n], shape["slices"], shape["classes"]) for n in names]
        print(f"{title:>22} " + " ".join(f"{s:6.3f}" for s in scores) + f"   mean {np.mean(scores):.3f}", flush=True)

    print(f"seed {seed}, {iterations} iterations a site; columns: {', '.join(names)}")
    for name in names:
        network = fresh()
        train(network, data[name], iterations, seed, name)
        report(f"alone {name[5:]}", network)
    network = fresh()
    for name in names:
        train(network, data[name], iterations, seed, name)
        report(f"after {name[5:]}", network)
    network = fresh()
    train(network, everything, len(names) * iterations, seed, "joint")
    report("joint", network)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=list(SHAPES), default="prostate", help="prostate MR or fundus photographs")
    parser.add_argument("--iterations", type=int, default=300, help="of 8 slices, for each site")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, each with data of its own")
    parser.add_argument("--size", type=int, default=64, help="voxels along an edge of a slice")
    arguments = parser.parse_args()
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            run(folder, arguments.kind, arguments.iterations, seed, arguments.size)


if __name__ == "__main__":
    main()
