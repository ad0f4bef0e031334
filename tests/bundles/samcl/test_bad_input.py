"""Bad input stops at the door: the message names the file, what was found and what is expected."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bundles.samcl.scripts.inference import load_pairs, register_files
from bundles.samcl.scripts.network import LKUNet
from bundles.samcl.scripts.objective import RegistrationObjective, VelocityInferer
from bundles.samcl.scripts.strategies import Sequential
from bundles.samcl.scripts.trainer import ContinualTrainer, load_weights
from shared.data.learn2reg import read_pairs
from shared.data.pairs import PairDataset
from shared.errors import InputError
from shared.files import save_tensors
from tests.learn2reg_folder import SIZE, affine, blobs, nlst, oasis, save, write_folder

ROOT = Path(__file__).resolve().parents[3]
NETWORK_SIZE = (8, 8, 8)


# -- images ------------------------------------------------------------------------------------------------------------


def truncated(path: Path) -> None:
    save(path, blobs())
    path.write_bytes(path.read_bytes()[:-200])


def patched(path: Path, offset: int, *values: float) -> None:
    """Overwrite floats of a NIfTI header: nibabel itself writes no impossible ones."""
    plain = save(path.with_name("plain.nii"), blobs())
    content = bytearray(plain.read_bytes())
    content[offset : offset + 4 * len(values)] = struct.pack(f"<{len(values)}f", *values)
    plain.write_bytes(bytes(content))
    with nib.openers.Opener(str(path), "wb") as stream:
        stream.write(plain.read_bytes())


def holding(value: float):
    def write(path: Path) -> None:
        image = blobs()
        image[3, 3, 3] = value
        save(path, image)

    return write


BAD_IMAGES = {
    "missing": (lambda path: None, "no such image file; expected an existing NIfTI"),
    "truncated": (truncated, r"voxels cannot be read \(.*expected a complete image file"),
    "empty file": (lambda path: path.touch(), r"not readable as an image \(.*expected a NIfTI file"),
    "text": (lambda path: path.write_text("not an image"), r"not readable as an image \(.*expected a NIfTI file"),
    "2D": (lambda path: save(path, blobs((9, 9))), r"found a 2D image of shape \(9, 9\), expected 3D"),
    "one slice": (lambda path: save(path, blobs((9, 9, 1))), r"found a 2D image \(shape \(9, 9, 1\)\), expected 3D"),
    "4D": (
        lambda path: save(path, np.stack([blobs(), blobs(seed=1)], -1)),
        r"found a 4D image of shape \(10, 11, 12, 2\), expected 3D; pick one time frame or channel",
    ),
    "NaN": (holding(np.nan), "found 1 NaN or infinite voxels, expected finite"),
    "infinite": (holding(np.inf), "found 1 NaN or infinite voxels, expected finite"),
    "complex": (lambda path: save(path, blobs().astype(np.complex64)), "complex64 voxels .* expected one real channel"),
    "constant": (
        lambda path: save(path, np.full(SIZE, 7, np.float32)),
        "found the constant value 7, expected an image with contrast",
    ),
    "zero spacing": (
        lambda path: patched(path, 84, 0.0),
        r"found voxel spacing \[2\.0, 0\.0, 2\.0\] mm, expected every spacing above zero",
    ),
    "singular affine": (
        lambda path: patched(path, 296, 2.0, 0.0, 0.0, 0.0),
        r"found a singular affine \[\[2\.0, 0\.0, 0\.0, 0\.0\], \[2\.0.*expected an invertible one",
    ),
    "affine of NaN": (lambda path: patched(path, 280, np.nan), "found a singular affine"),
}


@pytest.fixture
def pair(tmp_path) -> dict[str, str]:
    return {
        side + "_image": str(save(tmp_path / f"{side}.nii.gz", blobs(seed=i)))
        for i, side in enumerate(("fixed", "moving"))
    }


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
    dataset = PairDataset([{**pair, "moving_image": str(tmp_path / "bad.nii.gz")}], NETWORK_SIZE, cache_num=0)
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


LABEL = np.digitize(blobs(), [50]).astype(np.uint8)
BAD_LABELS = {
    "missing": (lambda path, role: None, "no such {role} file"),
    "another size": (
        lambda path, role: save(path, LABEL[:-1]),
        r"found a {role} of size \(9, 11, 12\), expected its image's size \(10, 11, 12\)",
    ),
    "fractional": (lambda path, role: save(path, LABEL * 0.5), "found fractional values in .* expected whole numbers"),
    "negative": (
        lambda path, role: save(path, -LABEL.astype(np.int16)),
        r"found {role} values -1\.\.0, expected 0\.\.",
    ),
    "truncated": (lambda path, role: truncated(path), "voxels cannot be read"),
}


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
    with pytest.raises(InputError, match=r"nowhere: no such folder.*synth_brain_mr"):
        load_pairs(tmp_path / "nowhere", "OASIS", "train")


# -- registration of files ---------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def network(channels: int = 2) -> LKUNet:
    return LKUNet(spatial_dims=3, channels=channels, depth=1)


def register(output: Path, **files) -> None:
    register_files(network(), VelocityInferer(), torch.device("cpu"), output, NETWORK_SIZE, **files)


@pytest.fixture
def registered(tmp_path, pair) -> Path:
    """Folder with the results of an earlier, good registration."""
    register(tmp_path / "output", **pair)
    return tmp_path / "output"


@pytest.mark.parametrize("name", ["truncated", "4D", "NaN", "zero spacing"])
def test_earlier_results_survive_a_bad_image(tmp_path, pair, registered, name):
    BAD_IMAGES[name][0](tmp_path / "bad.nii.gz")
    before = contents(registered)
    assert {"warped.nii.gz", "displacement.nii.gz", "metrics.json"} <= set(before)
    with pytest.raises(InputError, match=r"bad\.nii\.gz: .*" + BAD_IMAGES[name][1]):
        register(registered, fixed_image=pair["fixed_image"], moving_image=tmp_path / "bad.nii.gz")
    assert contents(registered) == before


@pytest.mark.parametrize("name", BAD_LABELS)
@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_earlier_results_survive_a_bad_label(tmp_path, pair, registered, name, side):
    BAD_LABELS[name][0](tmp_path / "bad.nii.gz", "label")
    before = contents(registered)
    with pytest.raises(InputError, match=r"bad\.nii\.gz: "):
        register(registered, **pair, **{f"{side}_label": tmp_path / "bad.nii.gz"})
    assert contents(registered) == before


@pytest.mark.parametrize("missing", ["fixed_image", "moving_image"])
def test_one_image_alone(tmp_path, pair, missing):
    del pair[missing]
    with pytest.raises(InputError, match="found only one of fixed_image and moving_image, expected both"):
        register(tmp_path / "output", **pair)
    assert not (tmp_path / "output").exists()


def test_an_output_folder_below_a_file(tmp_path, pair):
    (tmp_path / "plain").write_text("x")
    with pytest.raises(InputError, match=r"plain/output: cannot be written \(Not a directory\); expected a writable"):
        register(tmp_path / "plain" / "output", **pair)
    assert (tmp_path / "plain").read_text() == "x"


@pytest.mark.parametrize("name", ["warped.nii.gz", "displacement.nii.gz", "metrics.json", "registration.png"])
def test_a_full_disk_keeps_the_earlier_file_whole(pair, registered, name):
    before = contents(registered)
    (registered / f".tmp-{os.getpid()}-{name}").symlink_to("/dev/full")
    with pytest.raises(InputError, match=rf"{name}: cannot be written \(No space left on device\)"):
        register(registered, fixed_image=pair["moving_image"], moving_image=pair["fixed_image"])
    assert contents(registered)[name] == before[name]
    assert set(contents(registered)) == set(before)


# -- training ----------------------------------------------------------------------------------------------------------


def trainer(run_dir: Path, pair: dict[str, str], init_from: Path | None = None, channels: int = 2) -> ContinualTrainer:
    model = network(channels)
    return ContinualTrainer(
        device=torch.device("cpu"),
        network=model,
        optimizer=torch.optim.Adam(model.parameters()),
        loss_function=RegistrationObjective(),
        dataset=PairDataset([pair], NETWORK_SIZE),
        strategy=Sequential(),
        run_dir=run_dir,
        init_from=init_from,
    )


@pytest.mark.parametrize("content", ["nothing", "an empty folder", "a folder without model.pt"])
def test_init_from_without_a_model(tmp_path, pair, content):
    previous = tmp_path / "previous"
    if content != "nothing":
        previous.mkdir()
    if content == "a folder without model.pt":
        (previous / "done.json").write_text("{}")
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"previous: found no complete run \(model\.pt with done\.json\); expected"):
        trainer(tmp_path / "run", pair, previous).run()
    after = contents(tmp_path)
    assert {k: after[k] for k in before} == before
    assert "run/model.pt" not in after


def test_init_from_a_model_of_another_architecture(tmp_path, pair):
    trainer(tmp_path / "first", pair).run()
    before = contents(tmp_path / "first")
    message = r"first/model\.pt: holds a model of another architecture \(\d+ tensors differ; .*found \(.*expected \("
    with pytest.raises(InputError, match=message):
        trainer(tmp_path / "second", pair, tmp_path / "first", channels=4).run()
    assert contents(tmp_path / "first") == before
    assert not (tmp_path / "second" / "model.pt").exists()


@pytest.mark.xfail(reason="load_weights expects a dict of tensors", raises=(AttributeError, TypeError), strict=True)
@pytest.mark.parametrize("content", [{"state": {"a": 1}}, [1, 2], {"weight": "text"}])
def test_weights_of_another_kind(tmp_path, content):
    save_tensors(tmp_path / "model.pt", content)
    with pytest.raises(InputError, match=r"model\.pt: holds "):
        load_weights(network(), tmp_path / "model.pt")


def test_a_full_disk_while_training_keeps_the_checkpoint(tmp_path, pair):
    run = trainer(tmp_path / "run", pair)
    (tmp_path / "run" / f".tmp-{os.getpid()}-state.pt").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"state\.pt: cannot be written \(No space left on device\)"):
        run.run()
    assert not (tmp_path / "run" / "model.pt").exists()
    trainer(tmp_path / "run", pair).run()
    assert (tmp_path / "run" / "model.pt").exists()


# -- command line ------------------------------------------------------------------------------------------------------


def command(config: str, **overrides) -> subprocess.CompletedProcess:
    """Run a config of the bundle from the repository's root, as a user does."""
    files = [str(ROOT / "bundles/samcl/configs" / f"{name}.json") for name in config.split("+")]
    arguments = [f"--{key}={value}" for key, value in overrides.items()]
    return subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(files), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def tiny(folder: Path) -> dict[str, object]:
    """Overrides for a run of seconds on an OASIS folder."""
    write_folder(folder / "data", oasis())
    return {"dataset_dir": folder / "data", "task": "OASIS", "run_dir": folder / "run"}


def in_training_unknown_task(folder: Path):
    return "train+smoke", {**tiny(folder), "task": "OASSIS"}, "no task 'OASSIS' (did you mean 'OASIS'?)"


def in_training_a_run_dir_below_a_file(folder: Path):
    (folder / "plain").touch()
    overrides = {**tiny(folder), "run_dir": folder / "plain" / "run"}
    return "train+smoke", overrides, f"{folder}/plain/run: cannot be written (Not a directory)"


def in_training_init_from_nothing(folder: Path):
    return "train+smoke", {**tiny(folder), "init_from": folder / "gone"}, f"{folder}/gone: found no complete run"


def in_inference_a_truncated_image(folder: Path):
    truncated(folder / "bad.nii.gz")
    save(folder / "fixed.nii.gz", blobs())
    save_tensors(folder / "model.pt", LKUNet(3, 2, 1, half_resolution=True).state_dict())
    overrides = {
        "fixed_image": folder / "fixed.nii.gz",
        "moving_image": folder / "bad.nii.gz",
        "model": folder / "model.pt",
        "output_dir": folder / "output",
        "network_def#channels": 2,
        "network_def#depth": 1,
    }
    return "inference", overrides, f"{folder}/bad.nii.gz: its voxels cannot be read"


@pytest.mark.parametrize(
    "case",
    [
        in_training_unknown_task,
        in_training_a_run_dir_below_a_file,
        in_training_init_from_nothing,
        in_inference_a_truncated_image,
    ],
)
def test_the_command_line_ends_with_the_message_and_exit_code_1(tmp_path, case):
    config, overrides, message = case(tmp_path)
    done = command(config, **overrides)
    assert done.returncode == 1, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "output").exists()
