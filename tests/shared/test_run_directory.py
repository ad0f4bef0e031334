from __future__ import annotations

import os

import pytest
import torch

from shared.errors import InputError
from shared.files import read_json
from shared.run_directory import RunDirectory, checkpoint_count

SETTINGS = {"task": "a", "rates": {"lr": 1e-3, "betas": (0.9, 0.999)}, "init_from": None, "size": [8, 8, 8]}


def test_a_run_goes_through_its_states(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.check_settings(SETTINGS)
    assert not run.is_done()
    assert run.load_state() is None
    run.save_state({"iteration": 3, "w": torch.ones(2)})
    assert not run.is_done()
    assert run.load_state()["iteration"] == 3
    run.finish({"w": torch.ones(2)}, {"passes": 7})
    assert RunDirectory(tmp_path / "run").is_done()
    assert read_json(run.done) == {"passes": 7}


@pytest.mark.parametrize("missing", ["model.pt", "done.json"])
def test_half_a_finish_is_not_done(tmp_path, missing):
    run = RunDirectory(tmp_path)
    run.finish({}, {})
    (tmp_path / missing).unlink()
    assert not run.is_done()


def test_equal_settings_go_on_after_their_way_through_json(tmp_path):
    run = RunDirectory(tmp_path)
    run.check_settings(SETTINGS)
    run.save_state({})
    RunDirectory(tmp_path).check_settings(SETTINGS)


def test_other_settings_are_refused_and_named(tmp_path):
    run = RunDirectory(tmp_path)
    run.check_settings(SETTINGS)
    run.save_state({})
    before = (tmp_path / "settings.json").read_bytes()
    changed = {**SETTINGS, "rates": {"lr": 0.1, "betas": (0.9, 0.999)}, "extra": 1}
    with pytest.raises(InputError, match=r"extra: found None, asked for 1; rates\.lr: found 0\.001, asked for 0\.1"):
        run.check_settings(changed)
    assert (tmp_path / "settings.json").read_bytes() == before


def test_settings_of_a_run_that_never_saved_are_replaced(tmp_path):
    RunDirectory(tmp_path).check_settings(SETTINGS)
    RunDirectory(tmp_path).check_settings({**SETTINGS, "task": "b"})
    assert read_json(tmp_path / "settings.json")["task"] == "b"


def test_leftovers_of_a_kill_are_cleared_by_rank_zero_alone(tmp_path):
    leftover = tmp_path / "memory" / ".tmp-1-x"
    leftover.parent.mkdir()
    leftover.touch()
    RunDirectory(tmp_path, rank=1)
    assert leftover.exists()
    RunDirectory(tmp_path, rank=0)
    assert not leftover.exists()


def test_only_rank_zero_writes_what_all_share(tmp_path):
    run = RunDirectory(tmp_path, rank=1)
    run.check_settings(SETTINGS)
    run.save_state({})
    run.finish({}, {})
    assert [p.name for p in tmp_path.iterdir()] == []


def test_a_checkpoint_finds_its_own_memory_index_and_prunes_the_others(tmp_path):
    run, other = RunDirectory(tmp_path), RunDirectory(tmp_path, rank=1)
    for folder in (run.memory, other.memory):
        folder.mkdir(parents=True)
    for iteration in (5, 10):
        run.save_memory_index(iteration, {"at": iteration})
        other.save_memory_index(iteration, {"at": -iteration})
    run.prune_memory_indices(10)
    assert run.memory_index(10) == {"at": 10}
    assert other.memory_index(5) == {"at": -5}
    with pytest.raises(InputError, match=r"index_0000005\.json: no such file"):
        run.memory_index(5)


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path):
    run = RunDirectory(tmp_path)
    run.save_state({"iteration": 1})
    (tmp_path / f".tmp-{os.getpid()}-state.pt").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"state\.pt: cannot be written \(No space left on device\)"):
        run.save_state({"iteration": 2, "w": torch.zeros(5000)})
    assert run.load_state() == {"iteration": 1}


def test_a_run_dir_below_a_file_is_refused(tmp_path):
    (tmp_path / "plain").write_text("x")
    with pytest.raises(InputError, match="plain/run: cannot be written"):
        RunDirectory(tmp_path / "plain" / "run")


@pytest.mark.parametrize(
    ("iterations", "interval", "count"),
    [(300, 25, 12), (600, 25, 24), (1200, 25, 48), (25000, 25, 1000), (1200, 50, 24), (1500, 50, 30), (600, 100, 6)],
)
def test_round_numbers_of_iterations_get_a_checkpoint_each_interval(iterations, interval, count):
    assert checkpoint_count(iterations, interval) == count == round(iterations / interval)


@pytest.mark.parametrize(("iterations", "count"), [(480, 20), (150, 6), (75, 3), (1, 1), (4, 1), (20, 1), (200, 8)])
def test_no_iteration_is_left_out_where_a_divisor_is_near(iterations, count):
    assert checkpoint_count(iterations, 25) == count
    assert iterations % count == 0


def test_without_a_divisor_near_the_number_is_rounded():
    assert checkpoint_count(997, 25) == 40  # a prime
    assert checkpoint_count(7, 25) == 1
