"""Runs with a strategy and a memory: killing and going on, the next task."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from bundles.samcl.scripts.memory import ReservoirMemory
from bundles.samcl.scripts.strategies import AGEM, ER, SAMCL, Sequential
from shared.errors import InputError
from shared.files import load_tensors, save_tensors
from shared.handlers import TrainingLog
from shared.trainer_checkpoint import restore
from tests.bundles.samcl.tiny import make_network, make_trainer
from tests.tiny import Killed, TinyPairs, kill_at, same, weights


def test_training_lowers_the_loss(tmp_path):
    network = make_network()
    trainer = make_trainer(
        tmp_path,
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), lr=1e-2),
        max_epochs=10,
        epoch_length=3,
        train_handlers=[TrainingLog(tmp_path, interval=3)],
    )
    trainer.run()
    losses = [row["loss"] for row in trainer.log_rows]
    assert len(losses) == 10
    assert sum(losses[-3:]) < 0.98 * sum(losses[:3])


def test_a_run_in_two_parts_ends_with_the_same_bits(tmp_path):
    whole = make_trainer(tmp_path / "whole", max_epochs=4)
    whole.run()
    part = make_trainer(tmp_path / "parts", max_epochs=4)
    kill_at(part, 5)  # inside the third epoch: one iteration is lost and done again
    again = make_trainer(tmp_path / "parts", max_epochs=4)
    again.run()
    assert same(weights(whole), weights(again))
    assert again.passes == whole.passes
    assert again.strategy.memory.seen == whole.strategy.memory.seen
    model = load_tensors(tmp_path / "parts" / "model.pt")
    assert same(model, weights(whole))


@pytest.mark.parametrize("make", [SAMCL, ER, AGEM])
def test_a_memory_on_disk_trains_alike_and_goes_on(tmp_path, make):
    """What is drawn is read while other steps compute; which pairs, and with what result, stays the same."""
    whole = make_trainer(tmp_path / "ram", make(ReservoirMemory(3)), max_epochs=4)
    whole.run()
    kill_at(make_trainer(tmp_path / "disk", make(ReservoirMemory(3, on_disk=True)), max_epochs=4), 5)
    again = make_trainer(tmp_path / "disk", make(ReservoirMemory(3, on_disk=True)), max_epochs=4)
    again.run()
    assert same(weights(whole), weights(again))
    assert again.strategy.memory.seen == whole.strategy.memory.seen
    assert all(pair is None for _, pair in again.strategy.memory._slots)


def test_a_kill_at_any_write_loses_nothing(tmp_path, monkeypatch):
    """Die right before and right after each rename of a run, then run again."""
    whole = make_trainer(tmp_path / "whole")
    whole.run()
    replace = Path.replace
    writes = 0

    def run_until(limit: int, after: bool, folder: Path) -> bool:
        """Return whether the run died."""
        nonlocal writes
        writes = 0

        def dying(self: Path, target):
            nonlocal writes
            writes += 1
            if writes == limit and not after:
                raise Killed
            result = replace(self, target)
            if writes == limit:
                raise Killed
            return result

        monkeypatch.setattr(Path, "replace", dying)
        try:
            make_trainer(folder).run()
        except Killed:
            return True
        finally:
            monkeypatch.setattr(Path, "replace", replace)
        return False

    assert not run_until(0, False, tmp_path / "count")
    total = writes
    assert total > 10
    for limit, after in itertools.product(range(1, total + 1), (False, True)):
        folder = tmp_path / f"{limit}_{after}"
        assert run_until(limit, after, folder)
        again = make_trainer(folder)
        again.run()
        assert same(weights(whole), weights(again)), (limit, after)
        assert not list(folder.rglob(".tmp-*"))


def test_the_next_task_gets_weights_moments_and_memory(tmp_path):
    first = make_trainer(tmp_path / "first", SAMCL(ReservoirMemory(3)))
    first.run()
    second = make_trainer(
        tmp_path / "second",
        SAMCL(ReservoirMemory(3)),
        optimizer=torch.optim.Adam((network := make_network()).parameters(), lr=5e-4),
        network=network,
        init_from=tmp_path / "first",
        dataset=TinyPairs(seed=1),
        task="next",
    )
    restore(second)
    assert same(weights(first), weights(second))
    moments = [s["exp_avg"] for s in first.optimizer.state_dict()["state"].values()]
    carried = [s["exp_avg"] for s in second.optimizer.state_dict()["state"].values()]
    assert all(torch.equal(a, b) for a, b in zip(moments, carried, strict=True))
    assert second.optimizer.param_groups[0]["lr"] == 5e-4
    assert second.strategy.memory.seen == first.strategy.memory.seen == 8
    files = sorted(p.name for p in (tmp_path / "first").rglob("*"))
    second.run()
    assert second.strategy.memory.seen == 16
    assert sorted(p.name for p in (tmp_path / "first").rglob("*")) == files


def test_a_killed_second_task_goes_on_without_the_first(tmp_path):
    make_trainer(tmp_path / "first").run()
    options = {"init_from": tmp_path / "first", "dataset": TinyPairs(seed=1), "task": "next"}
    whole = make_trainer(tmp_path / "whole", **options)
    whole.run()
    part = make_trainer(tmp_path / "part", **options)
    kill_at(part, 3)
    (tmp_path / "first" / "state.pt").unlink()
    again = make_trainer(tmp_path / "part", **options)
    again.run()
    assert same(weights(whole), weights(again))


def test_bfloat16_trains_close_to_float32(tmp_path):
    results = []
    for autocast in (None, "bfloat16"):
        trainer = make_trainer(tmp_path / str(autocast), Sequential(), autocast=autocast)
        trainer.run()
        assert all(p.dtype == torch.float32 for p in trainer.network.parameters())
        results.append(torch.cat([p.detach().flatten() for p in trainer.network.parameters()]))
    distance = (results[0] - results[1]).norm() / results[0].norm()
    assert 0 < distance < 0.05


def test_a_memory_on_disk_trains_like_one_in_ram(tmp_path):
    runs = []
    for on_disk in (False, True):
        first = make_trainer(tmp_path / f"first{on_disk}", SAMCL(ReservoirMemory(3, on_disk)))
        first.run()
        options = {"init_from": tmp_path / f"first{on_disk}", "dataset": TinyPairs(seed=1), "task": "next"}
        second = make_trainer(tmp_path / f"second{on_disk}", SAMCL(ReservoirMemory(3, on_disk)), **options)
        second.run()
        assert second.strategy.memory.nbytes > 0
        runs.append(weights(second))
    assert same(*runs)


class Counting(Sequential):
    """Counts its verbs; the count of `end_task` is state that a second call would spoil."""

    def __init__(self) -> None:
        self.ended = torch.zeros(1)

    def end_task(self, trainer) -> None:
        self.ended += 1

    def state_dict(self) -> dict:
        return {"ended": self.ended}

    def load_state_dict(self, state: dict) -> None:
        self.ended = state["ended"].clone()


def test_a_task_ends_once_even_if_killed_right_after(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, Counting())

    def die(*args):
        raise Killed

    monkeypatch.setattr(trainer.run_directory, "finish", die)
    with pytest.raises(Killed):
        trainer.run()
    again = make_trainer(tmp_path, Counting())
    again.run()
    assert again.strategy.ended == 1
    assert (tmp_path / "done.json").exists()


@pytest.mark.parametrize("change", ["velocity_scale", "optimizer", "objective"])
def test_every_option_that_decides_the_result_is_a_setting(tmp_path, change):
    make_trainer(tmp_path, Sequential()).run()
    network, options = make_network(), {}
    if change == "velocity_scale":
        network.velocity_scale = 2.0
    elif change == "optimizer":
        options["optimizer"] = torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=0.1)
    else:
        from bundles.samcl.scripts.objective import RegistrationObjective

        options["loss_function"] = RegistrationObjective(window=3, steps=2, downsize=2)
    with pytest.raises(InputError, match="holds a run with other settings"):
        make_trainer(tmp_path, Sequential(), network=network, **options).run()


def test_another_number_of_processes_is_refused(tmp_path):
    trainer = make_trainer(tmp_path / "first")
    trainer.world = 2
    trainer.barrier = lambda: None
    trainer.run()
    with pytest.raises(InputError, match=r"first: found a run of 2 processes.*as many as now, 1"):
        make_trainer(tmp_path / "second", init_from=tmp_path / "first").run()


def test_a_run_of_other_processes_is_refused_for_its_memory_alone(tmp_path):
    """What it learnt itself is the same on all of its processes."""
    for name, strategy in (("without", Sequential()), ("with", SAMCL(ReservoirMemory(3)))):
        make_trainer(tmp_path / name, strategy).run()
        state = load_tensors(tmp_path / name / "state.pt")
        save_tensors(tmp_path / name / "state.pt", {**state, "world": 2})
    options = {"dataset": TinyPairs(seed=1), "task": "next"}
    make_trainer(tmp_path / "next", init_from=tmp_path / "without", **options).run()
    with pytest.raises(InputError, match="found a run of 2 processes, each with a memory of its own"):
        make_trainer(tmp_path / "other", init_from=tmp_path / "with", **options).run()
