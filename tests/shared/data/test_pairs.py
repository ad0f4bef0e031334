"""Pairs of files -> tensors on the network's grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import shared.data.pairs
from shared.data.intensity import normalise
from shared.data.learn2reg import read_pairs
from shared.data.pairs import PairDataset
from shared.errors import InputError
from shared.transform_io import network_grid
from tests.learn2reg_folder import SIZE, affine, blobs, nlst, oasis, save, write_folder


def files(tmp_path, fixed_affine=None, moving_affine=None, shape=SIZE, **extra) -> dict[str, str]:
    return {
        "fixed_image": str(save(tmp_path / "fixed.nii.gz", blobs(shape, 1), fixed_affine)),
        "moving_image": str(save(tmp_path / "moving.nii.gz", blobs(shape, 2), moving_affine)),
        **{k: str(v) for k, v in extra.items()},
    }


def ct_scan(path, lung: float) -> str:
    """Write a body with so much of it lung, and a little air."""
    volume = np.full((10, 10, 10), 40.0, dtype=np.float32)
    volume.reshape(-1)[: int(lung * volume.size)] = -800
    volume[0, 0, :5] = -1000
    return str(save(path, volume))


def test_a_pair_on_its_own_grid_is_not_resampled(tmp_path):
    sample = PairDataset([files(tmp_path)], SIZE)[0]
    for side, seed in (("fixed", 1), ("moving", 2)):
        expected = normalise(torch.from_numpy(blobs(SIZE, seed))[None], "mr")
        torch.testing.assert_close(sample[f"{side}_image"], expected, atol=0, rtol=0)
        assert sample[f"{side}_mask"].dtype == torch.uint8
        assert sample[f"{side}_mask"].min() == 1
    assert sample["task"] == "images"
    assert sample["grids"]["network"].key == sample["grids"]["fixed"].key


def test_axes_come_in_ras_order_and_both_images_share_the_fixed_grid(tmp_path):
    turned = affine((2, 2, 2), order=(2, 0, 1), flip=(1, -1, 1))
    # The same array under a permuted, flipped header: i runs to z, j to -x, k to y.
    sample = PairDataset([files(tmp_path, turned, turned)], (SIZE[1], SIZE[2], SIZE[0]))[0]
    expected = normalise(torch.from_numpy(blobs(SIZE, 2))[None], "mr")[0].permute(1, 2, 0).flip(0)
    torch.testing.assert_close(sample["moving_image"][0], expected, atol=1e-5, rtol=0)


def test_mask_is_zero_where_the_moving_image_does_not_reach(tmp_path):
    # The moving image lies 4 voxels further along x and 2 voxels back along y.
    shifted = affine((2, 2, 2), origin_mm=(8, -4, 0))
    sample = PairDataset([files(tmp_path, affine((2, 2, 2)), shifted)], SIZE)[0]
    expected = torch.zeros(SIZE, dtype=torch.uint8)
    expected[4:, :-2] = 1
    assert torch.equal(sample["moving_mask"][0], expected)
    assert sample["fixed_mask"].all()
    assert sample["moving_image"][0][expected == 0].abs().max() < 1e-6


def test_masks_of_the_files_and_the_field_of_view_are_joined(tmp_path):
    half = np.zeros(SIZE, np.uint8)
    half[:, :, :5] = 3
    masks = {f"{side}_mask": save(tmp_path / f"{side}_mask.nii.gz", half) for side in ("fixed", "moving")}
    sample = PairDataset([files(tmp_path, **masks)], SIZE)[0]
    for side in ("fixed", "moving"):
        assert torch.equal(sample[f"{side}_mask"][0], torch.from_numpy((half > 0).astype(np.uint8)))
    assert sample["labels"] == [3]
    assert "labels" not in PairDataset([files(tmp_path, **masks)], SIZE, mask_as_label=False)[0]


def test_a_mask_never_meets_a_label(tmp_path):
    mask = save(tmp_path / "mask.nii.gz", np.ones(SIZE, np.uint8))
    label = save(tmp_path / "label.nii.gz", np.full(SIZE, 2, np.uint8))
    sample = PairDataset([files(tmp_path, fixed_label=label, fixed_mask=mask, moving_mask=mask)], SIZE)[0]
    assert "moving_label" not in sample
    assert "labels" not in sample


def test_labels_list_what_either_image_shows_without_background(tmp_path):
    values = np.zeros(SIZE, np.uint8)
    values[0] = 7
    fixed = save(tmp_path / "f.nii.gz", values)
    values[1] = 2
    moving = save(tmp_path / "m.nii.gz", values)
    sample = PairDataset([files(tmp_path, fixed_label=fixed, moving_label=moving)], SIZE)[0]
    assert sample["labels"] == [2, 7]
    assert sample["moving_label"].dtype == torch.int16
    assert torch.equal(sample["moving_label"][0], torch.from_numpy(values.astype(np.int16)))


def test_points_are_carried_to_the_network_grid(tmp_path):
    turned = affine((1, 2, 3), (4, 5, 6), degrees=20, order=(1, 0, 2), flip=(1, -1, 1))
    points = np.array([[1.0, 2.0, 3.0], [4.0, 4.0, 4.0]])
    for side in ("fixed", "moving"):
        np.savetxt(tmp_path / f"{side}.csv", points, delimiter=",")
    named = {f"{side}_points": tmp_path / f"{side}.csv" for side in ("fixed", "moving")}
    sample = PairDataset([files(tmp_path, affine(), turned, **named)], (8, 8, 8))[0]
    network = sample["grids"]["network"].affine
    for side, own in (("fixed", affine()), ("moving", turned)):
        found = sample[f"{side}_points"].numpy() @ network[:3, :3].T + network[:3, 3]
        np.testing.assert_allclose(found, points @ own[:3, :3].T + own[:3, 3], atol=1e-4)


def test_down_sampling_blurs_what_the_grid_cannot_hold(tmp_path):
    checks = (np.indices((24, 24, 24)).sum(0) % 2).astype(np.float32)
    pair = {f"{side}_image": str(save(tmp_path / f"{side}.nii.gz", checks)) for side in ("fixed", "moving")}
    sample = PairDataset([pair], (7, 7, 7))[0]
    inner = sample["fixed_image"][0, 1:-1, 1:-1, 1:-1]
    assert (inner - 0.5).abs().max() < 0.1


@pytest.mark.parametrize("shape", [(12, 10), (9, 9)])
def test_two_dimensions(tmp_path, shape):
    sample = PairDataset([files(tmp_path, shape=shape)], (8, 8))[0]
    assert sample["fixed_image"].shape == sample["moving_mask"].shape == (1, 8, 8)


def test_a_released_folder_reads_whole(tmp_path):
    write_folder(tmp_path, nlst())
    with pytest.warns(UserWarning, match="00101"):
        pairs = read_pairs(tmp_path, "NLST")
    sample = PairDataset(pairs, (8, 8, 8), ct_window=(-200, 300))[0]
    assert sample["task"] == "NLST"
    assert sample["labels"] == [1]  # the lung masks stand in for labels
    assert sample["fixed_points"].shape == (6, 3)
    assert sample["pair"]["moving_image"].endswith("NLST_0001_0001.nii.gz")


@pytest.fixture
def reads(monkeypatch):
    """Names of the images that were read, in order."""
    names: list[str] = []
    original = shared.data.pairs.read_image

    def counted(path, dims):
        names.append(str(path).rsplit("/", 1)[-1])
        return original(path, dims)

    monkeypatch.setattr(shared.data.pairs, "read_image", counted)
    return names


def test_each_image_is_read_once(tmp_path, reads):
    write_folder(tmp_path, oasis())
    dataset = PairDataset(read_pairs(tmp_path, "OASIS"), (8, 8, 8))
    for _ in range(2):
        for i in range(len(dataset)):
            dataset[i]
    assert sorted(reads) == [f"OASIS_{i:04d}_0000.nii.gz" for i in (1, 2, 3)]


def test_cache_num_bounds_what_is_kept(tmp_path, reads):
    write_folder(tmp_path, oasis())
    dataset = PairDataset(read_pairs(tmp_path, "OASIS"), (8, 8, 8), cache_num=1)
    assert len(reads) == 1
    for i in range(len(dataset)):
        dataset[i]
    # Six ordered pairs look at each image four times; one of the three is kept.
    assert len(reads) == 1 + 8


def test_images_of_another_grid_are_read_for_it(tmp_path, reads):
    pair = files(tmp_path, affine((2, 2, 2)), affine((2.5, 2, 2)))
    back = {"fixed_image": pair["moving_image"], "moving_image": pair["fixed_image"]}
    dataset = PairDataset([pair, back], (8, 8, 8), ct_window=(-200, 300))
    assert sorted(reads) == ["fixed.nii.gz"] * 2 + ["moving.nii.gz"] * 2
    assert dataset[0]["grids"]["network"].key == network_grid(dataset[0]["grids"]["fixed"], (8, 8, 8)).key
    assert dataset[1]["grids"]["network"].key != dataset[0]["grids"]["network"].key


def test_spacing_sets_the_network_grid(tmp_path):
    sample = PairDataset([files(tmp_path)], (8, 8, 8), spacing_mm=(3, 4, 5))[0]
    assert sample["grids"]["network"].spacing_mm == pytest.approx((3, 4, 5))


@pytest.mark.parametrize(
    ("size", "spacing", "message"),
    [
        ((8,), None, r"spatial_size \[8\], expected two or three"),
        ((8, 8, 0), None, r"spatial_size \[8, 8, 0\]"),
        ((8, 8, 8.5), None, "whole numbers above zero"),
        ((8, 8, 8), (1, 1), r"spacing_mm \[1, 1\], expected 3 numbers above zero"),
        ((8, 8), (1, 0), "expected 2 numbers above zero"),
    ],
)
def test_impossible_lattices_are_named(tmp_path, size, spacing, message):
    with pytest.raises(InputError, match=message):
        PairDataset([files(tmp_path)], size, spacing)


def test_a_switch_that_is_text_is_refused(tmp_path):
    with pytest.raises(InputError, match="mask_images: found 'false', expected True or False"):
        PairDataset([files(tmp_path)], (8, 8, 8), mask_images="false")


def test_one_ct_window_serves_all_pairs(tmp_path):
    """An abdomen with more lung than its partner must not get another contrast."""
    scans = [ct_scan(tmp_path / f"{name}.nii.gz", lung) for name, lung in (("little", 0.05), ("much", 0.3))]
    pair = {"fixed_image": scans[0], "moving_image": scans[1], "fixed_modality": "ct", "moving_modality": "ct"}
    dataset = PairDataset([pair], (10, 10, 10))
    assert dataset.ct_windows == {"images": (-200.0, 300.0)}
    sample = dataset[0]
    assert sample["fixed_image"].max() == sample["moving_image"].max() == pytest.approx((40 + 200) / 500)
    assert dataset.settings()["ct_window"] == "(-200.0, 300.0)"


def test_each_task_has_the_ct_window_of_its_own_first_ct(tmp_path):
    shared_scan = ct_scan(tmp_path / "shared.nii.gz", 0.05)
    pairs = []
    for task, lung in (("abdomen", 0.05), ("chest", 0.3), ("brain", None)):
        scan = ct_scan(tmp_path / f"{task}.nii.gz", lung) if lung else str(save(tmp_path / "mr.nii.gz", blobs(SIZE, 1)))
        modality = "ct" if lung else "mr"
        pair = {"fixed_image": scan, "moving_image": shared_scan if lung else scan, "task": task}
        pairs.append({**pair, "fixed_modality": modality, "moving_modality": modality})
    dataset = PairDataset(pairs, (10, 10, 10))
    assert dataset.ct_windows == {"abdomen": (-200.0, 300.0), "chest": (-1350.0, 150.0), "brain": None}
    # The same image, seen by two tasks.
    body = [float(dataset[i]["moving_image"].max()) for i in (0, 1)]
    assert body == pytest.approx([240 / 500, 1390 / 1500])
    for index, pair in enumerate(pairs):
        alone = PairDataset([pair], (10, 10, 10))[0]
        for side in ("fixed", "moving"):
            assert torch.equal(dataset[index][f"{side}_image"], alone[f"{side}_image"])
    windows = {"abdomen": "(-200.0, 300.0)", "chest": "(-1350.0, 150.0)", "brain": "None"}
    assert dataset.settings()["ct_window"] == windows


def test_a_given_ct_window_holds_for_all_tasks(tmp_path):
    pairs = [{**files(tmp_path), "task": task} for task in ("a", "b")]
    dataset = PairDataset(pairs, SIZE, ct_window=[-100, 100])
    assert dataset.ct_windows == {"a": [-100, 100], "b": [-100, 100]}
    assert dataset.settings()["ct_window"] == "[-100, 100]"
