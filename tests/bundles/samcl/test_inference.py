"""Where embedded tasks lie, and what registering two files computes."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from bundles.samcl.scripts import inference
from bundles.samcl.scripts.inference import load_pairs, register_files
from bundles.samcl.scripts.network import LKUNet
from bundles.samcl.scripts.objective import VelocityInferer
from shared import evaluation
from shared.data.synthetic import is_current, write_registration_tasks
from shared.files import read_json, save_json
from tests.learn2reg_folder import write_pair

ROOT = Path(__file__).resolve().parents[3]
TASK = "synth_brain_mr"
SMALL = {"size": 8, "counts": {"training": 2, "validation": 1, "test": 1}}


@pytest.fixture(autouse=True)
def _small_tasks(monkeypatch):
    monkeypatch.setattr(inference, "write_registration_tasks", partial(write_registration_tasks, **SMALL))


def stamps(folder) -> dict:
    return {p: p.stat().st_mtime_ns for p in sorted(folder.rglob("*")) if p.is_file()}


def outdate(folder) -> None:
    path = folder / f"{TASK}_dataset.json"
    content = read_json(path)
    save_json(path, {**content, "synthetic": {**content["synthetic"], "version": 0}})


def test_a_missing_task_is_written_once_below_the_data_folder(tmp_path):
    pairs = load_pairs(tmp_path / "data", TASK, "val")
    assert pairs[0]["fixed_image"].startswith(str(tmp_path / "data" / TASK / "images"))
    before = stamps(tmp_path)
    assert load_pairs(tmp_path / "data", TASK, "val") == pairs
    assert stamps(tmp_path) == before


@pytest.mark.parametrize("found", ["a task", "an older task", "nothing"])
def test_the_tasks_own_folder_serves_as_data_folder(tmp_path, found):
    folder = tmp_path / TASK
    if found != "nothing":
        write_registration_tasks(tmp_path, [TASK], **SMALL)
    before = stamps(tmp_path)
    if found == "an older task":
        outdate(folder)
    pairs = load_pairs(folder, TASK, "val")
    assert pairs[0]["fixed_image"].startswith(str(folder / "images"))
    assert is_current(folder)
    assert list(tmp_path.rglob(f"{TASK}_dataset.json")) == [folder / f"{TASK}_dataset.json"]
    if found == "a task":
        assert stamps(tmp_path) == before


def test_the_tasks_own_folder_may_be_the_working_directory(tmp_path, monkeypatch):
    write_registration_tasks(tmp_path, [TASK], **SMALL)
    outdate(tmp_path / TASK)
    monkeypatch.chdir(tmp_path / TASK)
    assert load_pairs(".", TASK, "val")
    assert is_current(tmp_path / TASK)
    assert list(tmp_path.rglob("*_dataset.json")) == [tmp_path / TASK / f"{TASK}_dataset.json"]


def test_nothing_is_written_beside_a_copy_under_another_name(tmp_path):
    write_registration_tasks(tmp_path, [TASK], **SMALL)
    (tmp_path / TASK).rename(tmp_path / "copy")
    before = stamps(tmp_path)
    for root in (tmp_path, tmp_path / "copy"):
        assert load_pairs(root, TASK, "val")[0]["fixed_image"].startswith(str(tmp_path / "copy"))
    assert stamps(tmp_path) == before


def test_the_field_is_carried_to_the_fixed_grid_once(tmp_path, monkeypatch):
    def carry(*args):
        raise AssertionError("the caller had these fields")

    monkeypatch.setattr(evaluation, "to_native", carry)
    network = LKUNet(3, channels=2, depth=1)
    pair = write_pair(tmp_path)
    scores = register_files(network, VelocityInferer(), torch.device("cpu"), tmp_path / "out", (8, 8, 8), **pair)
    assert scores["folds_percent"] == 0.0


def test_two_processes_that_miss_the_same_embedded_data_write_it_once(tmp_path):
    code = "import sys; from bundles.samcl.scripts.inference import load_pairs; "
    code += "print(len(load_pairs(sys.argv[1], 'synth_lung_ct', 'test')))"
    command = [sys.executable, "-c", code, str(tmp_path)]
    both = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in "ab"
    ]
    outputs = [process.communicate() for process in both]
    assert [out.strip() for out, _ in outputs] == ["24", "24"], outputs
    # The progress bar is the writer's.
    assert sum("synth_lung_ct:" in err for _, err in outputs) == 1
