"""Every config as people run it."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from shared.files import load_tensors
from tests.bundles import runs

BUNDLE = "dccnn_lstm_reg"
CONFIGS = runs.ROOT / "bundles" / BUNDLE / "configs"
run = partial(runs.run, BUNDLE)
TINY = {f"network_def#{name}": 4 for name in ("widths", "hidden")} | {
    "network_def#levels": 3,
    "network_def#steps_per_level": 1,
    "spatial_size": "[16,16,16]",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def first(tmp_path_factory, data) -> tuple[Path, subprocess.CompletedProcess]:
    """Return a complete smoke run of two tasks."""
    run_dir = tmp_path_factory.mktemp("runs") / "first"
    tasks = "['synth_brain_mr','synth_lung_ct']"
    return run_dir, run("training", ("train", "smoke"), dataset_dir=data, run_dir=run_dir, task=tasks)


def test_training_writes_everything_and_prints_a_table_of_the_tasks(first):
    run_dir, result = first
    names = {p.name for p in run_dir.iterdir()}
    assert {"model.pt", "state.pt", "done.json", "metrics.csv", "tensorboard"} <= names
    assert {"validation_cases.csv", "validation_summary.json", "validation_example.png"} <= names
    for heading in ("Dice", "HD95 mm", "TRE mm", "folds %", "SDlogJ", "before", "after", "synth_lung_ct"):
        assert heading in result.stdout
    rows = list(csv.DictReader((run_dir / "metrics.csv").open()))
    assert [int(r["iteration"]) for r in rows] == [2, 4]
    assert {"loss", "similarity", "overlap", "landmarks", "smoothness", "folding", "inverse"} <= set(rows[0])
    assert {row["task"] for row in csv.DictReader((run_dir / "validation_cases.csv").open())} == {
        "synth_brain_mr",
        "synth_lung_ct",
    }


def test_evaluate_scores_any_task_with_any_model(first, data, tmp_path):
    options = {"dataset_dir": data, "model": first[0] / "model.pt", "output_dir": tmp_path, "split": "test"}
    result = run("evaluating", ("train", "smoke", "evaluate"), **options)
    metrics = json.loads((tmp_path / "evaluation_summary.json").read_text())["metrics"]
    assert {"dice", "dice_before", "hd95_mm", "tre_mm", "folds_percent", "sdlogj"} <= set(metrics)
    assert "synth_brain_mr, test pairs" in result.stdout


def test_evaluate_tasks_gives_each_a_folder(first, data, tmp_path):
    tasks = f"[['{data}','synth_brain_mr'],['{data}','synth_lung_ct']]"
    options = {"dataset_dir": data, "model": first[0] / "model.pt", "output_dir": tmp_path, "split": "val"}
    run("evaluating", ("train", "smoke", "evaluate_tasks"), tasks=tasks, **options)
    assert {p.name for p in tmp_path.iterdir()} >= {"synth_brain_mr", "synth_lung_ct"}


def test_finetuning_starts_from_weights_and_lets_the_pyramid_rest(first, data, tmp_path):
    options = {"dataset_dir": data, "init_from": first[0] / "model.pt", "run_dir": tmp_path / "run"}
    run("training", ("train", "smoke", "finetune"), iterations=4, frozen_iterations=4, **options)
    before, after = load_tensors(first[0] / "model.pt"), load_tensors(tmp_path / "run" / "model.pt")
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed
    assert not [k for k in changed if k.startswith("pyramid")]
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert "PairAugmentation" in settings["augmentation"]


def test_inference_registers_files_on_the_fixed_grid(first, data, tmp_path):
    image, other = sorted((data / "synth_brain_mr" / "imagesTr").glob("*.nii.gz"))[:2]
    fixed = nib.load(image).slicer[2:30, :, 3:]
    nib.save(fixed, tmp_path / "fixed.nii.gz")
    options = {"fixed_image": tmp_path / "fixed.nii.gz", "moving_image": other, "output_dir": tmp_path / "out"}
    run("inference", ("inference",), model=first[0] / "model.pt", **options, **TINY)
    warped = nib.load(tmp_path / "out" / "warped.nii.gz")
    assert warped.shape == fixed.shape
    np.testing.assert_allclose(warped.affine, fixed.affine, atol=1e-5)


def test_inference_with_the_weights_of_the_bundle_registers(data, tmp_path):
    run("inference", ("inference",), dataset_dir=data, output_dir=tmp_path, task="synth_lung_ct")
    scores = json.loads((tmp_path / "metrics.json").read_text())["scores"]
    assert scores["dice"] > scores["dice_before"] + 0.05
    assert scores["tre_mm"] < 0.6 * scores["tre_mm_before"]
    assert scores["folds_percent"] == 0


def test_the_defaults_change_no_tracked_file(data):
    """Write where nobody asked for another place: into the bundle's own ignored folders."""
    before = runs.git_status()
    shutil.rmtree(CONFIGS.parent / "runs" / "smoke_synth_brain_mr", ignore_errors=True)
    run("training", ("train", "smoke"), dataset_dir=data)
    run("inference", ("inference",), dataset_dir=data)
    assert runs.git_status() == before


def test_two_ranks_train_one_model(data, tmp_path):
    configs = ("train", "smoke", "multi_gpu_train")
    result = runs.run_ranks(BUNDLE, "training", configs, dataset_dir=data, run_dir=tmp_path / "two")
    assert result.stdout.count("validation pairs (never trained on)") == 1  # one writer
    run("training", ("train", "smoke"), dataset_dir=data, run_dir=tmp_path / "one")
    two, one = (load_tensors(tmp_path / name / "model.pt") for name in ("two", "one"))
    assert two.keys() == one.keys()  # no prefix from the wrapper
    assert any(not torch.equal(two[k], one[k]) for k in one)


def test_paper_config_builds_the_full_network():
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config([CONFIGS / "train.json", CONFIGS / "paper.json"])
    assert parser["network_def"]["levels"] == 5
    assert parser["network_def"]["finest"] == 0
    assert parser["train"]["handlers"][1]["_disabled_"] is False
    network = {k: v for k, v in parser["network_def"].items() if k != "_target_"}
    from shared.networks import SymmetricCascade

    assert sum(p.numel() for p in SymmetricCascade(**network).parameters()) < 2_000_000


def test_the_weights_fit_both_training_and_inference():
    from monai.bundle import ConfigParser

    networks = []
    for name in ("train", "inference"):
        parser = ConfigParser()
        parser.read_config(CONFIGS / f"{name}.json")
        networks.append({k: v for k, v in parser["network_def"].items() if k != "repair_folds"})
    assert networks[0] == networks[1]


def test_trained_weights_can_be_exported(first, tmp_path):
    result = run("exporting", ("inference", "export"), model=first[0] / "model.pt", output_dir=tmp_path, **TINY)
    assert {p.name for p in tmp_path.iterdir()} == {"model.ts", "model.onnx", "model_int8.onnx", "export.json"}
    written = json.loads((tmp_path / "export.json").read_text())["formats"]
    assert written["onnx"]["largest_value"] > 0
    assert written["onnx"]["spatial_size"] == [16, 16, 16]
    assert "model_int8.onnx" in result.stdout


def test_exporting_with_repair_folds_says_which_format_can(first, tmp_path):
    options = {"model": first[0] / "model.pt", "output_dir": tmp_path, **TINY, "network_def#repair_folds": True}
    result = runs.start(runs.command(BUNDLE, "exporting", ("inference", "export"), **options))
    assert result.returncode == 1
    assert "expected repair_folds false, or torchscript alone" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: format 'onnx'")
    run("exporting", ("inference", "export"), formats="['torchscript']", **options)
    assert {p.name for p in tmp_path.iterdir()} == {"model.ts", "export.json"}


def test_monai_exports_trained_weights(first, tmp_path):
    options = {"filepath": tmp_path / "m.ts", "ckpt_file": first[0] / "model.pt", **TINY}
    runs.host_command(BUNDLE, "ckpt_export", "network_def", **options)
    assert torch.jit.load(tmp_path / "m.ts")(torch.rand(1, 2, 24, 20, 24)).shape == (1, 3, 24, 20, 24)
