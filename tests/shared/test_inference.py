"""What registering two files computes and writes, and bad input that must harm nothing written before."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from shared import evaluation
from shared.data.synthetic import write_registration_tasks
from shared.errors import InputError
from shared.files import read_json
from shared.inference import register_files
from tests.bad_files import BAD_IMAGES, BAD_LABELS
from tests.learn2reg_folder import SIZE, blobs, save, write_pair
from tests.shared.register.pairs import known_pair

NETWORK_SIZE = (8, 8, 8)


def inferer(image, network):
    """Move everything by one voxel of the network's grid, along the first axis."""
    ddf = torch.zeros(1, 3, *NETWORK_SIZE)
    ddf[:, 0] = 1.0
    return {"ddf": ddf}


@pytest.fixture
def pair(tmp_path) -> dict[str, str]:
    return write_pair(tmp_path)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def register(output: Path, **files) -> dict[str, float]:
    return register_files(torch.nn.Identity(), inferer, torch.device("cpu"), output, NETWORK_SIZE, **files)


@pytest.fixture
def registered(tmp_path, pair) -> Path:
    """Folder with the results of an earlier, good registration."""
    register(tmp_path / "output", **pair)
    return tmp_path / "output"


def test_options_of_registration_go_on_from_the_network(tmp_path):
    known_pair(tmp_path)
    files = {f"{side}_image": tmp_path / f"{side}.nii.gz" for side in ("fixed", "moving")}
    scores = register(tmp_path / "output", **files, optimise=3, init="centre")
    assert {"warped.nii.gz", "transform.h5", "metrics.json", "qc.png"} <= set(contents(tmp_path / "output"))
    content = read_json(tmp_path / "output" / "metrics.json")
    assert content["scores"] == scores
    assert content["options"] | {"init": "centre", "optimise": 3, "network": "network"} == content["options"]
    assert any(line.startswith("network: ") for line in content["log"])


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


def test_results_lie_on_the_fixed_grid(tmp_path, pair):
    label = save(tmp_path / "label.nii.gz", (blobs(seed=1) > 50).astype(np.uint8))
    scores = register(tmp_path / "out", **pair, fixed_label=label, moving_label=label)
    fixed, moving = nib.load(pair["fixed_image"]), np.asarray(nib.load(pair["moving_image"]).dataobj)
    results = {p.name: p for p in (tmp_path / "out").iterdir()}
    names = {"warped.nii.gz", "warped_label.nii.gz", "displacement.nii.gz", "metrics.json", "registration.png"}
    assert set(results) == names
    for name in ("warped.nii.gz", "warped_label.nii.gz"):
        assert nib.load(results[name]).shape == fixed.shape
        np.testing.assert_allclose(nib.load(results[name]).affine, fixed.affine)
    # The network's voxel is SIZE / 8 voxels of the image.
    shift = SIZE[0] / NETWORK_SIZE[0]
    low, high = int(np.floor(3 + shift)), int(np.ceil(3 + shift))
    expected = moving[low] + (3 + shift - low) * (moving[high] - moving[low])
    np.testing.assert_allclose(np.asarray(nib.load(results["warped.nii.gz"]).dataobj)[3], expected, atol=1e-3)
    assert read_json(results["metrics.json"])["scores"] == scores
    assert scores["dice"] < scores["dice_before"] == 1.0


def test_without_images_a_pair_of_the_task_is_taken(tmp_path):
    counts = {"training": 2, "validation": 1, "test": 1}
    write_registration_tasks(tmp_path / "data", ["synth_brain_mr"], size=8, counts=counts)
    register(tmp_path / "out", sample_from=(tmp_path / "data", "synth_brain_mr"))
    assert read_json(tmp_path / "out" / "metrics.json")["pair"]["task"] == "synth_brain_mr"
    with pytest.raises(InputError, match="found neither fixed_image nor moving_image, expected both"):
        register(tmp_path / "out")


def test_the_field_is_carried_to_the_fixed_grid_once(tmp_path, monkeypatch):
    def carry(*args):
        raise AssertionError("the caller had these fields")

    monkeypatch.setattr(evaluation, "to_native", carry)
    assert register(tmp_path / "out", **write_pair(tmp_path))["folds_percent"] == 0.0
