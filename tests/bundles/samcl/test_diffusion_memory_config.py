"""Generated replay as people run it: the overlay on train.json, two tasks, a kill -9 while the generator learns."""

from __future__ import annotations

import signal
import subprocess
import time
from functools import partial

import pytest
import torch

from bundles.samcl.scripts.pair_files import read_pair
from shared.data.synthetic import write_registration_tasks
from shared.files import load_tensors
from tests.bundles import runs

CONFIGS = ("train", "smoke", "diffusion_memory")
OPTIONS = {
    "iterations": 2,
    "buffer_size": 4,
    "generator_iterations": 300,
    "generator_batch_size": 1,
    "sampling_steps": 2,
    "generator_def#features": "[8,8]",
    "generator_def#head_channels": 8,
    "generator_def#token_size": 8,
}
run = partial(runs.run, "samcl")


@pytest.mark.slow
def test_two_tasks_with_a_kill_in_the_generators_training(tmp_path):
    tasks = ("synth_brain_mr", "synth_lung_ct")
    write_registration_tasks(tmp_path / "data", tasks, size=16, counts={"training": 3, "validation": 1, "test": 1})
    common = {"dataset_dir": tmp_path / "data", **OPTIONS}
    first = {"task": tasks[0], **common}
    run("training", CONFIGS, run_dir=tmp_path / "1", **first)

    line = runs.command("samcl", "training", CONFIGS, run_dir=tmp_path / "killed", **first)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(line, cwd=runs.ROOT, env=runs.ENVIRONMENT, **quiet)
    generator = tmp_path / "killed" / "memory" / "rank0" / "generator"
    while process.poll() is None and not (generator / "state.pt").exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert (generator / "state.pt").exists()
    assert not (generator / "model.pt").exists()
    run("training", CONFIGS, run_dir=tmp_path / "killed", **first)
    for name in ("model.pt", "memory/rank0/generator/model.pt"):
        whole, killed = (load_tensors(tmp_path / folder / name) for folder in ("1", "killed"))
        assert all(torch.equal(whole[k], killed[k]) for k in whole), name
    pairs = [sorted((tmp_path / folder / "memory" / "rank0").glob("*.npz")) for folder in ("1", "killed")]
    assert len(pairs[0]) == 4
    assert [p.read_bytes() for p in pairs[0]] == [p.read_bytes() for p in pairs[1]]

    run("training", CONFIGS, run_dir=tmp_path / "2", task=tasks[1], init_from=tmp_path / "killed", **common)
    kept = [read_pair(path)["task"] for path in sorted((tmp_path / "2" / "memory" / "rank0").glob("*.npz"))]
    assert kept == [tasks[0]] * 2 + [tasks[1]] * 2
