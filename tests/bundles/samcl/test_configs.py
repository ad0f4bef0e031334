"""Every config as people run it."""

from __future__ import annotations

import csv
import json
import random
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from shared.files import load_tensors
from tests.bundles import runs

BUNDLE = "samcl"
CONFIGS = runs.ROOT / "bundles" / BUNDLE / "configs"
run = partial(runs.run, BUNDLE)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def first(tmp_path_factory, data) -> tuple[Path, subprocess.CompletedProcess]:
    """Return a complete smoke run of the first task."""
    run_dir = tmp_path_factory.mktemp("runs") / "first"
    return run_dir, run("training", ("train", "smoke"), dataset_dir=data, run_dir=run_dir)


def test_training_writes_everything_and_prints_the_table(first):
    run_dir, result = first
    names = {p.name for p in run_dir.iterdir()}
    assert {"model.pt", "state.pt", "done.json", "memory", "metrics.csv", "tensorboard"} <= names
    assert {"validation_cases.csv", "validation_summary.json", "validation_example.png"} <= names
    assert list((run_dir / "tensorboard").glob("events*"))
    for heading in ("Dice", "HD95 mm", "TRE mm", "folds %", "SDlogJ", "before", "after"):
        assert heading in result.stdout
    rows = list(csv.DictReader((run_dir / "metrics.csv").open()))
    assert [int(r["iteration"]) for r in rows] == [2, 4]
    assert {"loss", "similarity", "overlap", "landmarks", "bending", "membrane", "replay_loss"} <= set(rows[0])
    cases = list(csv.DictReader((run_dir / "validation_cases.csv").open()))
    assert len(cases) == 8
    assert all(0 < float(c["dice_before"]) < 1 for c in cases)


def test_the_defaults_change_no_tracked_file(data):
    """Write where nobody asked for another place: into the bundle's own ignored folders."""
    # Left from an earlier version, with other settings, it would be refused.
    shutil.rmtree(CONFIGS.parent / "runs" / "smoke_synth_brain_mr", ignore_errors=True)
    before = runs.git_status()
    run("training", ("train", "smoke"), dataset_dir=data)
    run("inference", ("inference",), dataset_dir=data)
    assert runs.git_status() == before


def test_inference_with_the_weights_of_the_bundle_registers(data, tmp_path):
    run("inference", ("inference",), dataset_dir=data, output_dir=tmp_path, task="synth_lung_ct")
    scores = json.loads((tmp_path / "metrics.json").read_text())["scores"]
    assert scores["dice"] > scores["dice_before"] + 0.05
    assert scores["tre_mm"] < 0.6 * scores["tre_mm_before"]


def test_second_task_starts_from_the_first_and_evaluate_looks_back(first, data, tmp_path):
    run_dir, _ = first
    second = tmp_path / "second"
    options = {"dataset_dir": data, "init_from": run_dir, "run_dir": second, "task": "synth_lung_ct"}
    run("training", ("train", "smoke"), **options)
    state = load_tensors(second / "state.pt")
    assert json.loads(next((second / "memory" / "rank0").glob("index_*.json")).read_text())["seen"] == 8
    moments = next(iter(state["optimizer"]["state"].values()))
    assert int(moments["step"]) == 2 * 4 * 2  # both tasks: 4 iterations of 1 + 1 steps
    result = run(
        "evaluating",
        ("train", "smoke", "evaluate"),
        dataset_dir=data,
        model=second / "model.pt",
        output_dir=tmp_path / "scores",
        split="test",
    )
    summary = json.loads((tmp_path / "scores" / "evaluation_summary.json").read_text())
    assert summary["pairs"] >= 20
    assert {"dice", "dice_before", "hd95_mm", "tre_mm", "folds_percent", "sdlogj"} <= set(summary["metrics"])
    assert "synth_brain_mr, test pairs" in result.stdout


def test_inference_registers_files_on_the_fixed_grid(first, data, tmp_path):
    run_dir, _ = first
    image = next((data / "synth_brain_mr" / "imagesTr").glob("*.nii.gz"))
    fixed = nib.load(image)
    cropped = fixed.slicer[4:30, 2:28, 3:27]
    turned = nib.as_closest_canonical(cropped).__class__(
        np.asarray(cropped.dataobj)[::-1].transpose(2, 0, 1), cropped.affine @ _turn(cropped.shape[0])
    )
    nib.save(turned, tmp_path / "moving.nii.gz")
    label = np.asarray(turned.dataobj) > np.asarray(turned.dataobj).mean()
    nib.save(nib.Nifti1Image(label.astype(np.uint8), turned.affine), tmp_path / "moving_label.nii.gz")
    run(
        "inference",
        ("inference",),
        model=run_dir / "model.pt",
        fixed_image=image,
        moving_image=tmp_path / "moving.nii.gz",
        moving_label=tmp_path / "moving_label.nii.gz",
        output_dir=tmp_path / "out",
        **{"network_def#channels": 4, "network_def#depth": 2, "spatial_size": "[16,16,16]"},
    )
    warped, warped_label = (nib.load(tmp_path / "out" / n) for n in ("warped.nii.gz", "warped_label.nii.gz"))
    assert warped.shape == warped_label.shape == fixed.shape
    np.testing.assert_allclose(warped.affine, fixed.affine, atol=1e-5)
    inside = np.zeros(fixed.shape, bool)
    inside[8:26, 6:24, 7:23] = True
    # The moving file shows the same subject in another orientation: an almost untrained network leaves it in place.
    correlation = np.corrcoef(np.asarray(warped.dataobj)[inside], np.asarray(fixed.dataobj)[inside])[0, 1]
    assert correlation > 0.9
    assert set(np.unique(np.asarray(warped_label.dataobj))) == {0, 1}


def _turn(length: int) -> np.ndarray:
    """Affine that undoes flipping axis 0 and moving the last axis to the front."""
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = length - 1
    turn = np.zeros((4, 4))
    turn[[2, 0, 1, 3], [0, 1, 2, 3]] = 1
    return flip @ turn


def test_inference_without_options_takes_a_sample_pair(first, data, tmp_path):
    run_dir, _ = first
    network = {"network_def#channels": 4, "network_def#depth": 2, "spatial_size": "[16,16,16]"}
    run("inference", ("inference",), dataset_dir=data, model=run_dir / "model.pt", output_dir=tmp_path, **network)
    assert {"warped.nii.gz", "warped_label.nii.gz", "displacement.nii.gz", "registration.png", "metrics.json"} <= {
        p.name for p in tmp_path.iterdir()
    }
    scores = json.loads((tmp_path / "metrics.json").read_text())["scores"]
    assert {"dice", "dice_before", "folds_percent"} <= set(scores)


def test_two_ranks_train_one_model(data, tmp_path):
    """Gradients are averaged, so both ranks hold the same weights, each with a memory of its own pairs."""
    configs = ("train", "smoke", "multi_gpu_train")
    result = runs.run_ranks(BUNDLE, "training", configs, dataset_dir=data, run_dir=tmp_path / "run")
    assert result.stdout.count("validation pairs (never trained on)") == 1  # one writer
    indices = [
        json.loads(next((tmp_path / "run" / "memory" / f"rank{rank}").glob("index_*.json")).read_text())
        for rank in (0, 1)
    ]
    assert [i["seen"] for i in indices] == [4, 4]
    contents = [
        {p.name: np.load(p)["fixed_image"].tobytes() for p in (tmp_path / "run" / "memory" / f"rank{r}").glob("*.npz")}
        for r in (0, 1)
    ]
    assert contents[0] != contents[1]
    single = run("training", ("train", "smoke"), dataset_dir=data, run_dir=tmp_path / "single")
    assert single.returncode == 0
    two, one = load_tensors(tmp_path / "run" / "model.pt"), load_tensors(tmp_path / "single" / "model.pt")
    assert two.keys() == one.keys()  # no prefix from the wrapper
    assert any(not torch.equal(two[k], one[k]) for k in one)


@pytest.mark.slow
def test_kill_9_at_several_moments_ends_with_the_same_bits(data, tmp_path):
    options = {"dataset_dir": data, "iterations": 12, "checkpoints": 6}
    run("training", ("train", "smoke"), run_dir=tmp_path / "whole", **options)
    chooser = random.Random(0)
    kills = 0
    for attempt in range(12):
        process = subprocess.Popen(
            runs.command(BUNDLE, "training", ("train", "smoke"), run_dir=tmp_path / "killed", **options),
            cwd=runs.ROOT,
            env=runs.ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if attempt >= 5:
            assert process.wait() == 0
            break
        state = tmp_path / "killed" / "state.pt"
        before = state.stat().st_mtime_ns if state.exists() else 0
        # Two kills before this attempt's first checkpoint, three some time after it.
        while process.poll() is None and attempt >= 2 and (not state.exists() or state.stat().st_mtime_ns == before):
            time.sleep(0.002)
        time.sleep(chooser.uniform(1.0, 4.0) if attempt < 2 else chooser.uniform(0.0, 0.3))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 4
    whole, killed = (load_tensors(tmp_path / name / "model.pt") for name in ("whole", "killed"))
    assert all(torch.equal(whole[k], killed[k]) for k in whole)
    logs = [list(csv.DictReader((tmp_path / n / "metrics.csv").open())) for n in ("whole", "killed")]
    assert [r["loss"] for r in logs[0]] == [r["loss"] for r in logs[1]]
    assert not list((tmp_path / "killed").rglob(".tmp-*"))


def test_paper_config_builds_the_paper_network():
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config([CONFIGS / "train.json", CONFIGS / "paper.json"])
    assert parser["network_def"] == {"_target_": "scripts.LKUNet", "spatial_dims": 3, "channels": 16, "depth": 4}
    assert parser["iterations"] == 25000
    assert parser["spatial_size"] == [112, 96, 112]


def test_the_weights_of_the_bundle_can_be_exported(tmp_path):
    result = run("exporting", ("inference", "export"), output_dir=tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"model.ts", "model.onnx", "model_int8.onnx", "export.json"}
    written = json.loads((tmp_path / "export.json").read_text())["formats"]
    assert written["onnx"]["largest_value"] > 0.5  # voxels: there is something to agree on
    assert written["onnx"]["max_difference"] < 1e-4
    assert "model_int8.onnx" in result.stdout


def test_monai_exports_the_weights_of_the_bundle(tmp_path):
    runs.host_command(BUNDLE, "ckpt_export", "network_def", filepath=tmp_path / "m.ts", ckpt_file="models/model.pt")
    assert torch.jit.load(tmp_path / "m.ts")(torch.rand(1, 2, 24, 24, 24)).shape == (1, 3, 24, 24, 24)
