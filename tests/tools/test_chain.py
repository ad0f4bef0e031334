"""Chains: real subprocesses on tiny data."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from shared.errors import InputError
from shared.files import load_tensors
from tools.chain import Chain
from tools.plan import Plan, load_plan
from tools.results import read_rows

ROOT = Path(__file__).resolve().parents[2]
TASKS = ["synth_brain_mr", "synth_lung_ct"]
# What must be equal in every bit however often a chain was killed; the rest holds times and paths.
RESULTS = ("R.csv", "cases.csv")


def plan_of(data: Path, **changes) -> Plan:
    return load_plan(**{"configs": ["smoke"], "tasks": TASKS, "dataset_dir": str(data), "iterations": 2, **changes})


def command(data: Path, out: Path, *flags: str) -> list[str]:
    tasks = "[" + ",".join(TASKS) + "]"
    options = ["--configs", "smoke", "--tasks", tasks, "--dataset_dir", str(data), "--iterations", "2"]
    return [sys.executable, "-m", "tools", "chain", *options, "--threads", "1", "--out", str(out), *flags]


def call(data: Path, out: Path, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(data, out, *flags), cwd=ROOT, capture_output=True, text=True, check=False)


def same_results(first: Path, second: Path) -> None:
    for name in RESULTS:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    stages = sorted(p.parent.name for p in first.glob("*/stage.json"))
    assert stages == sorted(p.parent.name for p in second.glob("*/stage.json"))
    for stage in stages:
        one, two = (load_tensors(folder / stage / "run" / "model.pt") for folder in (first, second))
        assert all(torch.equal(one[k], two[k]) for k in one), stage
        one, two = (json.loads((folder / stage / "stage.json").read_text()) for folder in (first, second))
        assert (one["passes"], one["sharpness"]) == (two["passes"], two["sharpness"])


@pytest.fixture(scope="module")
def whole(tiny_data, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """Return an unbroken chain of two tasks."""
    out = tmp_path_factory.mktemp("chains") / "whole"
    result = call(tiny_data, out)
    assert result.returncode == 0, result.stderr[-3000:]
    return out, result


def test_a_chain_writes_its_results(whole):
    out, result = whole
    assert "final average" in result.stdout
    rows = [r for r in read_rows(out / "R.csv") if r["metric"] == "dice"]
    assert [r["after"] for r in rows] == ["before registration", "01_synth_brain_mr", "02_synth_lung_ct"]
    assert all(0 < float(r[task]) < 1 for r in rows for task in TASKS)
    assert {r["metric"] for r in read_rows(out / "R.csv")} >= {"dice", "hd95_mm", "tre_mm", "folds_percent"}
    assert len(read_rows(out / "cases.csv")) == 2 * 2 * 2  # stages, tasks, pairs
    summary = json.loads((out / "summary.json").read_text())
    assert summary["stages_finished"] == 2
    assert set(summary["metrics"]["dice"]) >= {"final_average", "backward_transfer", "forward_transfer", "forgetting"}
    assert summary["passes"] == 2 * 2 * 4  # tasks, iterations, SAMCL's passes on one pair
    assert summary["seconds"] > 0
    assert summary["peak_memory_bytes"] > 1e8
    assert summary["memory_bytes"] > 1000
    assert set(summary["sharpness"]) == set(TASKS)
    assert "<svg" in (out / "report.html").read_text() or "<img" in (out / "report.html").read_text()
    record = json.loads((out / "chain.json").read_text())
    assert record["versions"]["torch"] == torch.__version__
    assert record["seed"] == 0


def test_the_cascade_is_a_network_for_a_chain_too(tiny_data, tmp_path):
    options = ["--configs", "cascade", "--spatial_size", "[16,16,16]", "--checkpoints", "1", "--batch_size", "1"]
    result = call(tiny_data, tmp_path / "chain", *options)
    assert result.returncode == 0, result.stderr[-3000:]
    summary = json.loads((tmp_path / "chain" / "summary.json").read_text())
    assert 0 < summary["metrics"]["dice"]["final_average"] < 1
    weights = load_tensors(tmp_path / "chain" / "02_synth_lung_ct" / "run" / "model.pt")
    assert any(name.startswith("corrections") for name in weights)


def test_the_matrix_is_the_mean_of_the_cases(whole):
    out, _ = whole
    cases = [r for r in read_rows(out / "cases.csv") if r["stage"] == "02_synth_lung_ct" and r["task"] == TASKS[0]]
    row = next(r for r in read_rows(out / "R.csv") if r["metric"] == "dice" and r["after"] == "02_synth_lung_ct")
    assert float(row[TASKS[0]]) == pytest.approx(sum(float(c["dice"]) for c in cases) / 2, abs=1e-6)


def test_each_stage_starts_from_the_one_before(whole):
    out, _ = whole
    moments = load_tensors(out / "02_synth_lung_ct" / "run" / "state.pt")["optimizer"]["state"]
    assert int(next(iter(moments.values()))["step"]) == 2 * 2 * 2  # two tasks, 2 iterations of 1 + 1 steps
    arguments = json.loads((out / "02_synth_lung_ct" / "training.json").read_text())
    assert arguments["init_from"] == str(out / "01_synth_brain_mr" / "run")


def test_a_finished_chain_is_not_run_again(whole, tiny_data):
    out, _ = whole
    before = {p: p.stat().st_mtime_ns for p in out.rglob("model.pt")}
    assert Chain(plan_of(tiny_data), out).run()["stages_finished"] == 2
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("model.pt")}


def test_a_folder_of_another_plan_is_refused(whole, tiny_data):
    out, _ = whole
    with pytest.raises(InputError, match=r"holds another chain \(options.iterations: found 2, asked for 3\)"):
        Chain(plan_of(tiny_data, iterations=3), out).run()
    with pytest.raises(InputError, match="strategy: found samcl, asked for sequential"):
        Chain(plan_of(tiny_data, strategy="sequential"), out).run()


def test_a_second_chain_in_the_same_folder_is_refused(tiny_data, tmp_path):
    code = "import sys, time; from filelock import FileLock; lock = FileLock(sys.argv[1]); lock.acquire(); "
    code += "print(1, flush=True); time.sleep(60)"
    owner = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / ".lock")], stdout=subprocess.PIPE)
    try:
        owner.stdout.readline()
        with pytest.raises(InputError, match="another chain at work"):
            Chain(plan_of(tiny_data), tmp_path).run()
    finally:
        owner.kill()
        owner.wait()
    assert FileLock(tmp_path / ".lock").acquire(timeout=5)  # the system lets go when the owner dies


def test_two_trainings_in_one_run_dir_are_refused(tmp_path):
    from shared.run_directory import RunDirectory

    with (
        RunDirectory(tmp_path).lock(),
        pytest.raises(InputError, match="another training at work"),
        RunDirectory(tmp_path).lock(),
    ):
        pass


def test_data_that_vanishes_between_two_tasks_stops_the_chain_and_its_return_continues_it(
    tiny_data, tmp_path, monkeypatch
):
    data = tmp_path / "data"
    data.mkdir()
    for name, task in (("AA", TASKS[0]), ("BB", TASKS[1])):
        copy_as(tiny_data / task, data / name, task, name)
    plan = plan_of(data, tasks=["AA", "BB"])
    real = Chain._run_stage

    def lose_data_after(self, number, stage):
        real(self, number, stage)
        if number == 0:
            data.rename(tmp_path / "gone")

    monkeypatch.setattr(Chain, "_run_stage", lose_data_after)
    with pytest.raises(InputError, match="data: no such folder"):
        Chain(plan, tmp_path / "out").run()
    monkeypatch.undo()
    (tmp_path / "gone").rename(data)
    model = tmp_path / "out" / "01_AA" / "run" / "model.pt"
    before = model.stat().st_mtime_ns
    assert Chain(plan, tmp_path / "out").run()["stages_finished"] == 2
    assert model.stat().st_mtime_ns == before


def copy_as(source: Path, target: Path, old: str, new: str) -> None:
    """Copy a Learn2Reg folder under another name, as a user's own."""
    shutil.copytree(source, target)
    content = json.loads((source / f"{old}_dataset.json").read_text())
    content.pop("synthetic")
    (target / f"{old}_dataset.json").unlink()
    (target / f"{new}_dataset.json").write_text(json.dumps(content))


def test_a_stage_that_fails_tells_the_bundles_own_message(tiny_data, tmp_path):
    plan = plan_of(tiny_data, spatial_size=[16, 16, 0])
    with pytest.raises(InputError, match=r"spatial_size \[16, 16, 0\].*log: .*training.log"):
        Chain(plan, tmp_path).run()


def test_a_full_disk_stops_the_chain_and_space_continues_it(whole, tiny_data, tmp_path):
    """A real ENOSPC: files may not grow beyond a limit (as a full disk says it), then they may."""
    limit = "import resource, signal, sys, runpy; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (60000, resource.RLIM_INFINITY)); "
    limit += "sys.argv = sys.argv[1:]; runpy.run_module('tools', run_name='__main__')"
    out = tmp_path / "out"
    flags = command(tiny_data, out)[3:]
    result = subprocess.run(
        [sys.executable, "-c", limit, "tools", *flags], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "cannot be written" in result.stderr
    assert not (out / "01_synth_brain_mr" / "stage.json").exists()
    assert call(tiny_data, out).returncode == 0
    same_results(whole[0], out)


def test_bad_input_on_the_command_line_ends_with_its_message(tiny_data, tmp_path):
    result = call(tiny_data, tmp_path, "--strategy", "samlc")
    assert result.returncode == 1
    assert result.stderr.strip().startswith("error: ")
    assert "did you mean 'samcl'" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_no_bit(whole, tiny_data, tmp_path):
    """As a power cut does: the chain dies at once, and the bundle that it runs with it."""
    chooser = random.Random(4)
    out = tmp_path / "out"
    for _ in range(20):
        process = subprocess.Popen(
            command(tiny_data, out), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(chooser.uniform(0.5, 9.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
    result = call(tiny_data, out)
    assert result.returncode == 0, result.stderr[-3000:]
    same_results(whole[0], out)


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel to end the child")
def test_the_bundle_dies_with_the_chain(tiny_data, tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen(command(tiny_data, out), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    mark = str(out / "01_synth_brain_mr" / "training.json").encode()

    def children() -> list[int]:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if mark in path.read_bytes():
                    found.append(int(path.parent.name))
            except OSError:
                continue  # it ended while we looked
        return found

    deadline = time.monotonic() + 60
    while not children() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert children()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while children() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not children()
