"""Bad images and dataset files stop at the door: the message names the file, what was found and what is expected."""

from __future__ import annotations

import json

import pytest

from shared.data.embedded import load_pairs
from shared.data.learn2reg import read_pairs
from shared.data.pairs import PairDataset
from shared.errors import InputError
from tests.bad_files import BAD_IMAGES, BAD_LABELS, LABEL, truncated
from tests.learn2reg_folder import affine, blobs, nlst, oasis, save, write_folder, write_pair

NETWORK_SIZE = (8, 8, 8)


@pytest.fixture
def pair(tmp_path) -> dict[str, str]:
    return write_pair(tmp_path)


def read(data, size=NETWORK_SIZE) -> None:
    dataset = PairDataset(data, size)
    for i in range(len(dataset)):
        dataset[i]


@pytest.mark.parametrize("side", ["fixed", "moving"])
@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images_are_named(tmp_path, pair, side, name):
    write, message = BAD_IMAGES[name]
    pair[f"{side}_image"] = str(tmp_path / "bad.nii.gz")
    write(tmp_path / "bad.nii.gz")
    with pytest.raises(InputError, match=r"bad\.nii\.gz: .*" + message):
        read([pair])


def test_a_3d_image_where_2d_is_asked(pair):
    with pytest.raises(InputError, match=r"fixed\.nii\.gz: found a 3D image of shape \(10, 11, 12\), expected 2D"):
        read([pair], (8, 8))


@pytest.mark.parametrize("suffix", ["mha", "nrrd", "png"])
@pytest.mark.parametrize("content", [b"", b"not an image"])
def test_other_formats_that_are_no_images(tmp_path, pair, suffix, content):
    (tmp_path / f"bad.{suffix}").write_bytes(content)
    with pytest.raises(InputError, match=rf"bad\.{suffix}: its voxels cannot be read"):
        read([{**pair, "moving_image": str(tmp_path / f"bad.{suffix}")}])


def test_a_file_read_beyond_the_cache_is_named_as_well(tmp_path, pair):
    truncated(tmp_path / "bad.nii.gz")
    bad = {**pair, "moving_image": str(tmp_path / "bad.nii.gz")}
    dataset = PairDataset([bad], NETWORK_SIZE, ct_window=(-200, 300), cache_num=0)
    with pytest.raises(InputError, match=r"bad\.nii\.gz: its voxels cannot be read"):
        dataset[0]


def test_images_apart_in_the_world(tmp_path, pair):
    save(tmp_path / "far.nii.gz", blobs(), affine(origin_mm=(500, 0, 0)))
    message = (
        r"far\.nii\.gz: does not overlap with .*fixed\.nii\.gz: found the boxes \(x:499\.\.519 mm.*"
        r"and \(x:-1\.\.19 mm.*expected images in one world frame"
    )
    with pytest.raises(InputError, match=message):
        read([{**pair, "moving_image": str(tmp_path / "far.nii.gz")}])


@pytest.mark.parametrize("role", ["label", "mask"])
@pytest.mark.parametrize("name", BAD_LABELS)
def test_bad_labels_and_masks_are_named(tmp_path, pair, role, name):
    write, message = BAD_LABELS[name]
    write(tmp_path / "bad.nii.gz", role)
    with pytest.raises(InputError, match=r"bad\.nii\.gz: .*" + message.replace("{role}", role)):
        read([{**pair, f"moving_{role}": str(tmp_path / "bad.nii.gz")}])


def test_an_empty_mask_is_not_taken_for_images_apart(tmp_path, pair):
    save(tmp_path / "bad.nii.gz", LABEL * 0)
    with pytest.raises(InputError, match=r"bad\.nii\.gz: found an empty mask"):
        read([{**pair, "moving_mask": str(tmp_path / "bad.nii.gz")}])


def test_points_must_match_line_by_line(tmp_path, pair):
    (tmp_path / "fixed.csv").write_text("1,2,3\n4,5,6\n")
    (tmp_path / "moving.csv").write_text("1,2,3\n")
    points = {f"{side}_points": str(tmp_path / f"{side}.csv") for side in ("fixed", "moving")}
    with pytest.raises(InputError, match=r"fixed\.csv.*moving\.csv: found \[2, 1\] points, expected as many in both"):
        read([{**pair, **points}])
    del points["moving_points"]
    with pytest.raises(InputError, match=r"found \[2\] points, expected as many in both"):
        read([{**pair, **points}])


# -- dataset files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["labels", "masks", "images"])
def test_a_file_that_the_json_names_is_missing(tmp_path, role):
    folder = write_folder(tmp_path, oasis())
    (folder / f"{role}Tr" / "OASIS_0002_0000.nii.gz").unlink()
    with pytest.raises(
        InputError, match=rf"{role}Tr/OASIS_0002_0000\.nii\.gz: no such file; .*json names it as {role[:-1]}"
    ):
        read_pairs(tmp_path, "OASIS")


@pytest.mark.filterwarnings("ignore:.*00101")
def test_keypoints_that_the_json_names_are_missing(tmp_path):
    folder = write_folder(tmp_path, nlst())
    (folder / "keypointsTr" / "NLST_0002_0001.csv").unlink()
    with pytest.raises(InputError, match=r"keypointsTr/NLST_0002_0001\.csv: no such file; .*names it as keypoints"):
        read_pairs(tmp_path, "NLST")


@pytest.mark.parametrize(
    ("change", "split", "message"),
    [
        ({"training": []}, "train", "found no 'training' items, expected a Learn2Reg dataset with at least one image"),
        ({"training": {"0": []}}, "train", "found no 'training' items"),
        ({"training": None}, "train", "'training' is not a list"),
        ({"training": ["a.nii.gz"]}, "train", r"'training' is not a list of {'image'"),
        ({"training": [{"label": "a.nii.gz"}]}, "train", r"'training' is not a list of {'image'"),
        ({"training": [{"image": 5}]}, "train", r"'training' is not a list of {'image'"),
        ({"training": {"0": None}}, "train", r"'training' is not a list of {'image'"),
        ({"registration_val": ["a"]}, "train", r"'registration_val' holds 'a', expected {'fixed'"),
        ({"registration_val": [{"fixed": "a"}]}, "val", r"'registration_val' holds {'fixed': 'a'}, expected"),
        ({"registration_val": []}, "val", "found no val pairs, expected pairs under 'registration_val'"),
        ({"training_paired_images": "a"}, "train", "'training_paired_images' holds 'a', expected"),
        ({"pairings": "paired"}, "train", "found no train pairs, expected at least two images"),
        ({"modality": ["MR"]}, "train", r"'modality' is \['MR'\], expected names by index"),
        ({"registration_direction": "fixed"}, "train", "'registration_direction' is 'fixed', expected"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*every training image")
def test_unusable_dataset_files_are_named(tmp_path, change, split, message):
    folder = write_folder(tmp_path, oasis())
    (folder / "OASIS_dataset.json").write_text(json.dumps({**oasis(), **change}))
    with pytest.raises(InputError, match=r"OASIS_dataset\.json: " + message):
        read_pairs(tmp_path, "OASIS", split)


@pytest.mark.parametrize("text", ['{"training": [}', "", "[1, 2]", "3"])
def test_malformed_dataset_files_are_named(tmp_path, text):
    folder = write_folder(tmp_path, oasis())
    (folder / "OASIS_dataset.json").write_text(text)
    with pytest.raises(InputError, match=r"OASIS_dataset\.json: (malformed JSON|found no 'training' items)"):
        read_pairs(tmp_path, "OASIS")


def test_unknown_tasks_and_splits_list_the_known_ones(tmp_path):
    write_folder(tmp_path, oasis())
    write_folder(tmp_path, nlst())
    with pytest.raises(InputError, match=r"no task 'OASSIS' \(did you mean 'OASIS'\?\); known tasks: NLST, OASIS"):
        load_pairs(tmp_path, "OASSIS", "train")
    with pytest.raises(InputError, match="found split 'valid', expected one of train, val, test"):
        load_pairs(tmp_path, "OASIS", "valid")
    with pytest.raises(InputError, match=r"nowhere: found no task.*synth_brain_mr"):
        load_pairs(tmp_path / "nowhere", "OASIS", "train")
