"""Slices and patches of Decathlon sites, and every message about images that do not fit the network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shared.data.decathlon import read_site
from shared.data.resampling import resample
from shared.data.slice_dataset import SliceDataset, VolumeDataset
from shared.data.slices import label_on_image
from shared.data.volumes import read_volume_label
from shared.errors import InputError
from tests.decathlon_folder import SHAPE, WORLD, write_site
from tests.learn2reg_folder import affine, blobs, save


@pytest.fixture
def items(tmp_path):
    write_site(tmp_path / "hospital", 5)
    return read_site(tmp_path, "hospital", "train")


def test_volumes_hold_image_label_and_both_grids(items):
    sample = VolumeDataset(items, (16, 14))[0]
    assert sample["image"].shape == sample["label"].shape == (1, 16, 14, SHAPE[2])
    assert sample["label"].dtype == torch.int16
    assert 0 <= sample["image"].min() < 0.05
    assert 0.95 < sample["image"].max() <= 1
    assert sample["grids"]["image"].shape == SHAPE
    assert sample["grids"]["network"].shape == (16, 14, SHAPE[2])
    assert (sample["site"], sample["item"]) == ("hospital", items[0])
    reference = read_volume_label(items[0]["label"], sample["grids"]["image"])
    back = label_on_image(sample["label"], sample["grids"]["network"], sample["grids"]["image"])
    assert (back == reference).float().mean() > 0.98


@pytest.mark.parametrize("slices", [1, 3, 5])
def test_slices_hold_their_neighbours(items, slices):
    dataset = SliceDataset(items, (16, 14), slices)
    assert len(dataset) == len(items) * SHAPE[2]
    volume = dataset.volumes[1]
    for z in range(SHAPE[2]):
        sample = dataset[SHAPE[2] + z]
        assert sample["image"].shape == (slices, 16, 14)
        assert (sample["slice"], sample["site"], sample["item"]) == (z, "hospital", items[1])
        for channel in range(slices):
            other = min(max(z + channel - slices // 2, 0), SHAPE[2] - 1)
            assert torch.equal(sample["image"][channel], volume["image"][0, ..., other])
        assert torch.equal(sample["label"], volume["label"][..., z])


@pytest.mark.parametrize(("depth", "starts"), [(4, 3), (6, 1), (9, 1)])
def test_patches_hold_whole_slices(items, depth, starts):
    dataset = SliceDataset(items, (16, 14, depth))
    assert len(dataset) == len(items) * starts
    volume, sample = dataset.volumes[0], dataset[starts - 1]
    assert sample["image"].shape == sample["label"].shape == (1, 16, 14, depth)
    kept = min(depth, SHAPE[2])
    assert torch.equal(sample["image"][..., :kept], volume["image"][..., starts - 1 : starts - 1 + kept])


def test_photographs_are_single_slices_of_three_channels(tmp_path):
    folder = write_site(tmp_path / "eyes", 4, channels=3, labels=("background", "disc", "cup"), shape=(20, 18, 1))
    dataset = SliceDataset(read_site(folder, "eyes"), (16, 16), slices=1, channels=3, classes=3)
    assert len(dataset) == len(dataset.volumes) == 2
    assert dataset[0]["image"].shape == (3, 16, 16)
    assert dataset[0]["label"].unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize(("margin", "expected"), [(None, 6), (0, 2), (1, 4), (9, 6)])
def test_slices_far_from_any_label_are_left_out(tmp_path, margin, expected):
    label = np.zeros(SHAPE, np.uint8)
    label[4:8, 3:7, 2:4] = 1
    item = {"image": str(save(tmp_path / "image.nii.gz", blobs(SHAPE), WORLD))}
    item["label"] = str(save(tmp_path / "label.nii.gz", label, WORLD))
    dataset = SliceDataset([item], (12, 12), margin=margin)
    assert len(dataset) == expected
    assert all(2 - (margin or 9) <= dataset[i]["slice"] <= 3 + (margin or 9) for i in range(len(dataset)))
    assert dataset[0]["site"] == "images"


def test_no_labelled_slice_at_all_is_named(tmp_path):
    item = {"image": str(save(tmp_path / "image.nii.gz", blobs(SHAPE), WORLD))}
    assert "label" not in SliceDataset([item], (12, 12))[0]
    with pytest.raises(InputError, match=r"image\.nii\.gz: found no labelled slice in it nor in the other images"):
        SliceDataset([item], (12, 12), margin=2)


def test_a_label_map_of_more_classes_can_be_merged(tmp_path):
    folder = write_site(tmp_path / "zones", 4, labels=("background", "peripheral zone", "central gland"))
    items = read_site(folder, "zones")
    merged = VolumeDataset(items, (12, 12), label_map={"1": 1, "2": 1})[0]["label"]
    plain = VolumeDataset(items, (12, 12), classes=3)[0]["label"]
    assert plain.unique().tolist() == [0, 1, 2]
    assert torch.equal(merged, (plain > 0).to(torch.int16))


def test_unknown_label_values_are_named(tmp_path):
    folder = write_site(tmp_path / "zones", 4, labels=("background", "gland", "tumour"))
    items = read_site(folder, "zones")
    with pytest.raises(InputError, match=r"label values 2 \(tumour\), unknown to the network; expected 0\.\.1"):
        VolumeDataset(items, (12, 12))
    with pytest.raises(InputError, match=r"label values 2 \(tumour\), unknown to the network; expected 0, 1"):
        VolumeDataset(items, (12, 12), label_map={1: 1})
    with pytest.raises(InputError, match=r"label values 2, unknown"):
        VolumeDataset([{k: i[k] for k in ("image", "label")} for i in items], (12, 12))


@pytest.mark.parametrize("cached", [True, False])
def test_bad_files_are_named_at_the_door_or_at_the_latest_when_checked(tmp_path, items, cached):
    options = {"cache_num": 256 if cached else 0}
    save(tmp_path / "hospital" / "imagesTr" / "two.nii.gz", np.stack([blobs(SHAPE)] * 2, -1), WORLD)
    two = {"image": str(tmp_path / "hospital" / "imagesTr" / "two.nii.gz")}
    flipped = {**items[0], "label": str(tmp_path / "label.nii.gz")}
    save(
        tmp_path / "label.nii.gz",
        np.digitize(blobs(SHAPE), [50]).astype(np.uint8),
        affine((2.0, 2.5, 4.0), flip=(1, -1, 1)),
    )
    for bad, message in (
        (two, r"two\.nii\.gz: found 2 channels, expected 1"),
        (flipped, r"label\.nii\.gz: found a label that lies elsewhere in the world"),
    ):
        with pytest.raises(InputError, match=message):
            SliceDataset([items[1], bad], (12, 12), **options).check()


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ([], {}, "found a data list without images"),
        ([{"label": "x"}], {}, "found a data list without images"),
        (None, {"spatial_size": (8,)}, r"found spatial_size \[8\], expected two or three"),
        (None, {"spatial_size": (8, 0)}, r"found spatial_size \[8, 0\]"),
        (None, {"spacing_mm": (1.0,)}, r"found spacing_mm \[1\.0\]"),
        (None, {"spacing_mm": (1.0, -1.0)}, r"found spacing_mm \[1\.0, -1\.0\]"),
        (None, {"slices": 2}, "found slices 2, expected an odd number"),
    ],
)
def test_bad_options_are_named(items, data, options, message):
    with pytest.raises(InputError, match=message):
        SliceDataset(items if data is None else data, **{"spatial_size": (12, 12), **options})


def test_settings_tell_datasets_apart(items):
    plain = SliceDataset(items, (12, 12)).settings()
    assert SliceDataset(items, (12, 12)).settings() == plain
    for other in (
        SliceDataset(items[:-1], (12, 12)),
        SliceDataset(items, (12, 14)),
        SliceDataset(items, (12, 12), slices=1),
        SliceDataset(items, (12, 12), margin=1),
        SliceDataset(items, (12, 12), spacing_mm=(2.0, 2.0)),
        SliceDataset(items, (12, 12), label_map={1: 1}),
    ):
        assert other.settings() != plain


def test_images_are_blurred_before_they_are_made_smaller(items):
    fine, coarse = VolumeDataset(items, SHAPE[:2])[0], VolumeDataset(items, (3, 3))[0]
    assert fine["image"].std() > coarse["image"].std()
    noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    grids = VolumeDataset(items, (3, 3))[0]["grids"]
    assert resample(noise, grids["image"], grids["network"]).std() < 0.5 * noise.std()
