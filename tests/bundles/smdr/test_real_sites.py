"""Real prostate MR and ultrasound as two sites: files to slices, a network, and back to the files' own grids."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss

from bundles.smdr.scripts.augmentation import SliceAugmentation
from bundles.smdr.scripts.evaluation import evaluate_tasks
from bundles.smdr.scripts.inference import SliceInferer
from bundles.smdr.scripts.memory import ExemplarMemory
from bundles.smdr.scripts.network import SliceUNet
from bundles.smdr.scripts.strategies import SMDR
from bundles.smdr.scripts.trainer import SegmenterTrainer
from shared.data.decathlon import read_site
from shared.data.slice_dataset import SliceDataset, VolumeDataset
from shared.data.slices import label_on_image, predict_volume
from shared.data.volumes import read_volume_label
from shared.metrics.registration import dice_per_label
from shared.transform_io import write_nifti

IMAGES = Path(__file__).resolve().parents[4] / "shared" / "data" / "prostate_mr_us"
SITES = ("mr", "us")

pytestmark = pytest.mark.skipif(not IMAGES.is_dir(), reason=f"no real images at {IMAGES}")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two Decathlon folders that point to the images where they lie."""
    root = tmp_path_factory.mktemp("prostate")
    for site in SITES:
        names = sorted(path.name for path in IMAGES.glob(f"*_{site}.nii.gz"))
        training = []
        for kind in ("image", "label"):
            (root / site / f"{kind}sTr").mkdir(parents=True)
        for name in names:
            (root / site / "imagesTr" / name).symlink_to(IMAGES / name)
            (root / site / "labelsTr" / name).symlink_to(IMAGES / name.replace(f"_{site}", f"_{site}_label"))
            training.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
        content = {"labels": {"0": "background", "1": "prostate"}, "modality": {"0": site}, "training": training}
        (root / site / "dataset.json").write_text(json.dumps(content))
    return root


def test_eight_patients_are_split_alike_at_both_sites(root):
    counts = [[len(read_site(root, site, split)) for split in ("train", "val", "test")] for site in SITES]
    assert counts == [[5, 1, 2], [5, 1, 2]]


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("turned", [False, True])
def test_the_gland_survives_the_way_to_the_network_and_back(root, tmp_path, site, turned):
    item = read_site(root, site, "test")[0]
    if turned:  # the same patient in world space, stored with flipped and permuted axes
        for kind in ("image", "label"):
            image = nib.load(item[kind])
            start = nib.orientations.io_orientation(image.affine)
            wanted = nib.orientations.axcodes2ornt(("S", "R", "P"))
            item[kind] = str(tmp_path / f"{kind}.nii.gz")
            nib.save(image.as_reoriented(nib.orientations.ornt_transform(start, wanted)), item[kind])
    # Isotropic: the last axis of the file counts as the one across the slices.
    sample = VolumeDataset([item], (96, 96))[0]
    grids = sample["grids"]
    label = label_on_image(sample["label"], grids["network"], grids["image"])
    reference = np.asarray(nib.load(item["label"]).dataobj)
    assert label.shape[1:] == reference.shape
    assert dice_per_label(label[0], torch.from_numpy(reference.astype(np.int16)), [1]).item() > 0.99


def test_a_network_learns_both_sites_and_answers_on_the_images_own_grids(root, tmp_path):
    items = {split: [i for site in SITES for i in read_site(root, site, split)] for split in ("train", "test")}
    slices = SliceDataset(items["train"], (32, 32), margin=0)
    torch.manual_seed(0)
    network = SliceUNet(widths=(8, 16, 32))
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    for _ in range(40):
        batch = [slices[int(i)] for i in torch.randperm(len(slices))[:8]]
        optimizer.zero_grad()
        loss(network(torch.stack([s["image"] for s in batch])), torch.stack([s["label"] for s in batch])).backward()
        optimizer.step()
    volumes = VolumeDataset(items["test"], (32, 32))
    for index, item in enumerate(items["test"]):
        sample = volumes[index]
        grids = sample["grids"]
        found = label_on_image(predict_volume(network.eval(), sample["image"]), grids["network"], grids["image"])
        write_nifti(tmp_path / "answer.nii.gz", found[0].numpy().astype(np.uint8), grids["image"])
        answer, image = nib.load(tmp_path / "answer.nii.gz"), nib.load(item["image"])
        assert answer.shape == image.shape
        np.testing.assert_allclose(answer.affine, image.affine, atol=1e-5)
        assert dice_per_label(found, read_volume_label(item["label"], grids["image"]), [1]).item() > 0.4


def test_both_sites_are_learnt_one_after_the_other(root, tmp_path):
    """MR first, then US with kept slices and alignment, by the trainer; both are scored on the files' own grids."""
    for number, site in enumerate(SITES):
        torch.manual_seed(0)
        network = SliceUNet(widths=(8, 16, 32))
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
        SegmenterTrainer(
            device=torch.device("cpu"),
            network=network,
            optimizer=optimizer,
            loss_function=DiceCELoss(to_onehot_y=True, softmax=True),
            dataset=SliceDataset(read_site(root, site, "train"), (32, 32), margin=0),
            strategy=SMDR(ExemplarMemory(40)),
            augmentation=SliceAugmentation(),
            run_dir=tmp_path / site,
            init_from=tmp_path / SITES[number - 1] if number else None,
            task=site,
            epoch_length=40,
        ).run()
    tasks = [[root, site] for site in SITES]
    found = evaluate_tasks(network, SliceInferer(), torch.device("cpu"), tasks, "test", tmp_path / "scores", (32, 32))
    assert all(found[site]["metrics"]["dice"]["mean"] > 0.4 for site in SITES)
