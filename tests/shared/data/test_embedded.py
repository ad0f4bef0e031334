"""Pairs of one and of several tasks, and where embedded tasks lie."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from shared.data import embedded
from shared.data.embedded import load_pairs, task_name
from shared.data.learn2reg import read_pairs
from shared.data.synthetic import is_current, write_registration_tasks
from shared.errors import InputError
from shared.files import read_json, save_json
from tests.learn2reg_folder import oasis, write_folder

ROOT = Path(__file__).resolve().parents[3]
TASK = "synth_brain_mr"
SMALL = {"size": 8, "counts": {"training": 2, "validation": 1, "test": 1}}


@pytest.fixture(autouse=True)
def _small_tasks(monkeypatch):
    monkeypatch.setattr(embedded, "write_registration_tasks", partial(write_registration_tasks, **SMALL))


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


def test_two_processes_that_miss_the_same_embedded_data_write_it_once(tmp_path):
    code = "import sys; from shared.data.embedded import load_pairs; "
    code += "print(len(load_pairs(sys.argv[1], 'synth_lung_ct', 'test')))"
    command = [sys.executable, "-c", code, str(tmp_path)]
    both = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in "ab"
    ]
    outputs = [process.communicate() for process in both]
    assert [out.strip() for out, _ in outputs] == ["24", "24"], outputs
    # The progress bar is the writer's.
    assert sum("synth_lung_ct:" in err for _, err in outputs) == 1


def test_several_tasks_come_one_after_another_and_each_pair_knows_its_own(tmp_path):
    write_folder(tmp_path, oasis())
    pairs = load_pairs(tmp_path, ["OASIS", TASK], "val")
    assert pairs == [*read_pairs(tmp_path, "OASIS", "val"), *read_pairs(tmp_path, TASK, "val")]
    assert [p["task"] for p in pairs] == ["OASIS"] * (len(pairs) - 1) + [TASK]
    assert load_pairs(tmp_path, [TASK], "val") == load_pairs(tmp_path, TASK, "val")


def test_options_hold_for_every_task(tmp_path):
    write_folder(tmp_path, oasis())
    pairs = load_pairs(tmp_path, ["OASIS", TASK], "train", with_self=True)
    assert {p["task"] for p in pairs if p["fixed_image"] == p["moving_image"]} == {"OASIS", TASK}


def test_an_unknown_task_among_several_is_named(tmp_path):
    write_folder(tmp_path, oasis())
    with pytest.raises(InputError, match=r"no task 'OASSIS' \(did you mean 'OASIS'\?\); known tasks: OASIS, synth_"):
        load_pairs(tmp_path, ["OASIS", "OASSIS"], "val")


@pytest.mark.parametrize("task", [[], ["OASIS", "OASIS"], [["OASIS"]], [1]], ids=str)
def test_tasks_that_are_no_different_names_are_refused(tmp_path, task):
    with pytest.raises(InputError, match=r"found tasks \[.*expected one name or several different ones"):
        load_pairs(tmp_path, task, "val")


def test_several_tasks_have_their_names_joined():
    assert task_name("OASIS") == task_name(["OASIS"]) == "OASIS"
    assert task_name(("OASIS", "NLST")) == "OASIS+NLST"
