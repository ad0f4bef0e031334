"""Learn2Reg folders as released -> pairs of files."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

from shared.data.learn2reg import find_task, known_tasks, label_names, pairs_of_items, read_pairs
from shared.errors import InputError
from tests.learn2reg_folder import abdomen_ct_ct, abdomen_mr_ct, blobs, item, nlst, oasis, pair, save, write_folder


def stems(pairs) -> list[tuple[str, str]]:
    return [tuple(Path(p[f"{side}_image"]).name.split(".")[0] for side in ("fixed", "moving")) for p in pairs]


def test_oasis_trains_on_ordered_pairs_without_validation_images(tmp_path):
    write_folder(tmp_path, oasis())
    free = [f"OASIS_{i:04d}_0000" for i in (1, 2, 3)]
    train, val = read_pairs(tmp_path, "OASIS"), read_pairs(tmp_path, "OASIS", "val")
    assert sorted(stems(train)) == sorted((f, m) for f in free for m in free if f != m)
    assert stems(val) == [("OASIS_0004_0000", "OASIS_0005_0000"), ("OASIS_0005_0000", "OASIS_0006_0000")]
    folder = tmp_path / "OASIS"
    assert train[0] == {
        "fixed_image": str(folder / "imagesTr" / f"{free[0]}.nii.gz"),
        "fixed_modality": "mr",
        "fixed_label": str(folder / "labelsTr" / f"{free[0]}.nii.gz"),
        "fixed_mask": str(folder / "masksTr" / f"{free[0]}.nii.gz"),
        "moving_image": str(folder / "imagesTr" / f"{free[1]}.nii.gz"),
        "moving_modality": "mr",
        "moving_label": str(folder / "labelsTr" / f"{free[1]}.nii.gz"),
        "moving_mask": str(folder / "masksTr" / f"{free[1]}.nii.gz"),
        "task": "OASIS",
    }
    assert label_names(tmp_path, "OASIS") == {}


def test_with_self_adds_each_training_image_with_itself(tmp_path):
    write_folder(tmp_path, oasis())
    pairs = stems(read_pairs(tmp_path, "OASIS", with_self=True))
    assert len(pairs) == 9
    assert ("OASIS_0002_0000", "OASIS_0002_0000") in pairs


def test_abdomen_ct_ct_labels_are_named_by_modality_index(tmp_path):
    write_folder(tmp_path, abdomen_ct_ct())
    pairs = read_pairs(tmp_path, "AbdomenCTCT")
    assert len(pairs) == 2
    assert {p["fixed_modality"] for p in pairs} == {"ct"}
    assert label_names(tmp_path, "AbdomenCTCT") == {1: "spleen", 2: "right kidney"}


def test_nlst_uses_listed_pairs_with_masks_and_keypoints_and_drops_the_misspelt_one(tmp_path):
    write_folder(tmp_path, nlst())
    with pytest.warns(UserWarning, match="NLST_00101_0000"):
        train = read_pairs(tmp_path, "NLST")
    assert stems(train) == [(f"NLST_{i:04d}_0000", f"NLST_{i:04d}_0001") for i in (1, 2, 3)]
    assert train[0]["moving_points"] == str(tmp_path / "NLST" / "keypointsTr" / "NLST_0001_0001.csv")
    assert train[0]["moving_mask"].endswith("masksTr/NLST_0001_0001.nii.gz")
    assert "fixed_label" not in train[0]
    assert train[0]["moving_modality"] == "ct"
    assert stems(read_pairs(tmp_path, "NLST", "val")) == [("NLST_0004_0000", "NLST_0004_0001")]
    assert label_names(tmp_path, "NLST") == {}


def test_abdomen_mr_ct_joins_listed_pairs_and_the_product_each_once(tmp_path):
    write_folder(tmp_path, abdomen_mr_ct())
    with pytest.warns(UserWarning, match="AbdomenMRCT_A0002_0001"):
        train = read_pairs(tmp_path, "AbdomenMRCT")
    mr = [f"AbdomenMRCT_{i:04d}_0000" for i in (1, 2, 1051)]
    ct = [f"AbdomenMRCT_{i:04d}_0001" for i in (1, 2, 1001, 1002)]
    assert stems(train)[0] == (mr[0], ct[0])
    assert sorted(stems(train)) == sorted((f, m) for f in mr for m in ct)
    assert {(p["fixed_modality"], p["moving_modality"]) for p in train} == {("mr", "ct")}
    assert label_names(tmp_path, "AbdomenMRCT") == {1: "liver", 2: "spleen"}


def test_registration_direction_decides_the_fixed_modality(tmp_path):
    write_folder(tmp_path, {**abdomen_mr_ct(), "registration_direction": {"fixed": 1, "moving": 0}})
    with pytest.warns(UserWarning, match="A0002"):
        train = read_pairs(tmp_path, "AbdomenMRCT")
    assert len(train) == 12
    assert {(p["fixed_modality"], p["moving_modality"]) for p in train} == {("ct", "mr")}


def test_only_validation_images_are_trained_on_with_a_warning(tmp_path):
    names = ["A_0001_0000", "A_0002_0000"]
    write_folder(tmp_path, {"name": "A", "training": [item(n) for n in names], "registration_val": [pair(*names)]})
    with pytest.warns(UserWarning, match=r"A_dataset\.json.*not what the network learnt"):
        train = read_pairs(tmp_path, "A")
    assert stems(train) == [(names[0], names[1]), (names[1], names[0])]


def test_training_pairs_of_a_clean_folder_do_not_warn(tmp_path):
    write_folder(tmp_path, oasis())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_pairs(tmp_path, "OASIS")


def test_test_pairs_are_found_where_the_list_of_items_is_misspelt(tmp_path):
    write_folder(tmp_path, oasis())
    for name in ("OASIS_0415_0000", "OASIS_0416_0000"):
        save(tmp_path / "OASIS" / "imagesTs" / f"{name}.nii.gz", blobs())
    assert stems(read_pairs(tmp_path, "OASIS", "test")) == [("OASIS_0415_0000", "OASIS_0416_0000")]


def test_truth_of_a_validation_pair_is_kept(tmp_path):
    content = oasis()
    content["registration_val"][0]["truth"] = "./truthTr/disp.nii.gz"
    folder = write_folder(tmp_path, content)
    with pytest.raises(InputError, match=r"disp\.nii\.gz: no such file; .*OASIS_dataset\.json names it as truth"):
        read_pairs(tmp_path, "OASIS", "val")
    (folder / "truthTr").mkdir()
    (folder / "truthTr" / "disp.nii.gz").touch()
    first, second = read_pairs(tmp_path, "OASIS", "val")
    assert first["truth"] == str(folder / "truthTr" / "disp.nii.gz")
    assert "truth" not in second


@pytest.mark.parametrize("inside", [False, True])
def test_tasks_are_found_in_a_folder_of_folders_and_in_the_folder_itself(tmp_path, inside):
    folder = write_folder(tmp_path, oasis())
    root = folder if inside else tmp_path
    assert known_tasks(root) == {"OASIS": folder / "OASIS_dataset.json"}
    assert find_task(root, "OASIS") == folder / "OASIS_dataset.json"


def test_a_task_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"gone: no such folder; expected a folder of Learn2Reg datasets"):
        find_task(tmp_path / "gone", "OASIS")
    with pytest.raises(InputError, match=r"found no task 'OASIS'; known tasks: none: no \*_dataset\.json there"):
        find_task(tmp_path, "OASIS")
    write_folder(tmp_path, oasis())
    with pytest.raises(InputError, match=r"no task 'OASSIS' \(did you mean 'OASIS'\?\); known tasks: OASIS$"):
        find_task(tmp_path, "OASSIS")
    message = r"no task 'synth_brain' \(did you mean 'synth_brain_mr'\?\); known tasks: OASIS, synth_brain_mr$"
    with pytest.raises(InputError, match=message):
        find_task(tmp_path, "synth_brain", ["OASIS", "synth_brain_mr"])
    with pytest.raises(InputError, match=r"gone: found no task 'OASIS'; known tasks: synth_brain_mr$"):
        find_task(tmp_path / "gone", "OASIS", ["synth_brain_mr"])


def test_json_with_a_byte_order_mark_is_read(tmp_path):
    folder = write_folder(tmp_path, oasis())
    (folder / "OASIS_dataset.json").write_text(json.dumps(oasis()), encoding="utf-8-sig")
    assert len(read_pairs(tmp_path, "OASIS")) == 6


def test_many_images_are_paired_quickly(tmp_path, monkeypatch):
    names = [f"A_{i:04d}_0000" for i in range(60)]
    folder = write_folder(tmp_path, {"name": "A", "training": []})
    content = {"name": "A", "training": [item(n) for n in names], "registration_val": []}
    (folder / "A_dataset.json").write_text(json.dumps(content))
    (folder / "imagesTr").mkdir()
    for name in names:
        (folder / "imagesTr" / f"{name}.nii.gz").touch()
    looked_at, is_file = [], Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda path: looked_at.append(path) or is_file(path))
    assert len(read_pairs(tmp_path, "A")) == 60 * 59
    assert len(looked_at) <= 2 * 60


def test_plain_items_become_all_ordered_pairs():
    data = [{"image": f"{n}.nii.gz", "label": f"{n}_label.nii.gz"} for n in "abc"]
    pairs = pairs_of_items(data)
    assert len(pairs) == 6
    assert pairs[0] == {
        "fixed_image": "a.nii.gz",
        "fixed_label": "a_label.nii.gz",
        "moving_image": "b.nii.gz",
        "moving_label": "b_label.nii.gz",
        "fixed_modality": "auto",
        "moving_modality": "auto",
        "task": "images",
    }


def test_pairs_pass_as_they_are():
    data = [{"fixed_image": "a", "moving_image": "b", "note": 1}]
    assert pairs_of_items(data) == data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], r"without pairs or images, expected \{image, label\}"),
        ([{"label": "a"}], r"without pairs or images"),
        ([{"image": "a.nii.gz"}], r"a\.nii\.gz: found a single image, expected at least two"),
    ],
)
def test_unusable_lists_are_named(data, message):
    with pytest.raises(InputError, match=message):
        pairs_of_items(data)
