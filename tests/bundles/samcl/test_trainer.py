"""Runs: order of pairs, checkpoints, killing and going on, the next task."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from ignite.engine import Events

from bundles.samcl.scripts.checkpoint import restore
from bundles.samcl.scripts.memory import ReservoirMemory
from bundles.samcl.scripts.strategies import SAMCL, Sequential
from bundles.samcl.scripts.trainer import load_weights
from shared.errors import InputError
from shared.files import load_tensors, save_tensors
from shared.handlers import TrainingLog
from tests.bundles.samcl.tiny import TinyPairs, make_network, make_trainer, same, weights


class Killed(BaseException):
    """Like a kill, nothing in the code may catch it."""


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

    def stop(engine):
        if engine.state.iteration == 5:  # inside the third epoch: one iteration is lost and done again
            raise Killed

    part.add_event_handler(Events.ITERATION_COMPLETED, stop)
    with pytest.raises(Killed):
        part.run()
    again = make_trainer(tmp_path / "parts", max_epochs=4)
    again.run()
    assert same(weights(whole), weights(again))
    assert again.passes == whole.passes
    assert again.strategy.memory.seen == whole.strategy.memory.seen
    model = load_tensors(tmp_path / "parts" / "model.pt")
    assert same(model, weights(whole))


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


def test_a_complete_run_is_not_trained_again(tmp_path):
    first = make_trainer(tmp_path)
    first.run()
    stamp = (tmp_path / "state.pt").stat().st_mtime_ns
    second = make_trainer(tmp_path, network=make_network())
    second.run()
    assert second.passes == 0
    assert same(weights(first), weights(second))
    assert (tmp_path / "state.pt").stat().st_mtime_ns == stamp


def test_other_settings_are_refused_and_nothing_is_touched(tmp_path):
    def stamps() -> dict:
        # The lock is empty; whether taking it counts as a change depends on filelock's version.
        return {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file() and p.name != ".lock"}

    make_trainer(tmp_path).run()
    before = stamps()
    with pytest.raises(InputError, match=r"iterations: found 4, asked for 6.*--run_dir"):
        make_trainer(tmp_path, max_epochs=3).run()
    assert stamps() == before


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

    def stop(engine):
        if engine.state.iteration == 3:
            raise Killed

    part.add_event_handler(Events.ITERATION_COMPLETED, stop)
    with pytest.raises(Killed):
        part.run()
    (tmp_path / "first" / "state.pt").unlink()
    again = make_trainer(tmp_path / "part", **options)
    again.run()
    assert same(weights(whole), weights(again))


def test_a_weights_file_starts_a_run(tmp_path):
    network = make_network()
    torch.nn.init.ones_(network.head.conv.weight)
    save_tensors(tmp_path / "pretrained.pt", network.state_dict())
    trainer = make_trainer(tmp_path / "run", Sequential(), init_from=tmp_path / "pretrained.pt")
    restore(trainer)
    assert same(weights(trainer), network.state_dict())


@pytest.mark.parametrize("found", ["nothing", "unfinished"])
def test_init_from_without_a_model_is_refused(tmp_path, found):
    source = tmp_path / "previous"
    if found == "unfinished":
        source.mkdir()
        (source / "state.pt").write_bytes(b"")
    with pytest.raises(InputError, match=r"previous: found no complete run .*expected a run_dir or weights"):
        make_trainer(tmp_path / "run", init_from=source).run()
    assert not (tmp_path / "run" / "state.pt").exists()


def test_a_model_of_another_architecture_is_refused(tmp_path):
    make_trainer(tmp_path / "first").run()
    network = make_network(channels=4)
    with pytest.raises(InputError, match=r"model.pt: holds a model of another architecture.*found \(.*expected \("):
        make_trainer(tmp_path / "second", network=network, init_from=tmp_path / "first").run()
    (tmp_path / "broken.pt").write_bytes(b"PK not a torch file")
    with pytest.raises(InputError, match="not readable as weights"):
        load_weights(network, tmp_path / "broken.pt")


def test_bfloat16_trains_close_to_float32(tmp_path):
    results = []
    for autocast in (None, "bfloat16"):
        trainer = make_trainer(tmp_path / str(autocast), Sequential(), autocast=autocast)
        trainer.run()
        assert all(p.dtype == torch.float32 for p in trainer.network.parameters())
        results.append(torch.cat([p.detach().flatten() for p in trainer.network.parameters()]))
    distance = (results[0] - results[1]).norm() / results[0].norm()
    assert 0 < distance < 0.05


def test_unknown_autocast_is_refused(tmp_path):
    with pytest.raises(ValueError, match="int8"):
        make_trainer(tmp_path, autocast="int8")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    network = make_network()
    with torch.no_grad():
        network.head.conv.weight.fill_(float("nan"))
    trainer = make_trainer(tmp_path, Sequential(), network=network, train_handlers=[TrainingLog(tmp_path, interval=1)])
    with pytest.raises(FloatingPointError, match="iteration 1: the loss is nan"):
        trainer.run()
    assert not (tmp_path / "model.pt").exists()


def test_scheduler_steps_with_the_iterations_and_resumes(tmp_path):
    def trainer(folder: str, epochs: int):
        network = make_network()
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return make_trainer(
            tmp_path / folder,
            Sequential(),
            network=network,
            optimizer=optimizer,
            scheduler=scheduler,
            max_epochs=epochs,
        )

    made = trainer("a", 2)
    made.run()
    assert made.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * 0.5**4)
    assert load_tensors(tmp_path / "a" / "state.pt")["scheduler"]["last_epoch"] == 4


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


def test_a_loader_that_a_host_adds_does_not_spoil_a_resumed_run(tmp_path):
    from monai.handlers import CheckpointLoader

    whole = make_trainer(tmp_path / "whole", Sequential(), max_epochs=3)
    whole.run()
    save_tensors(tmp_path / "other.pt", make_network().state_dict())

    def trainer():
        network = make_network()
        loader = CheckpointLoader(str(tmp_path / "other.pt"), {"model": network})
        return make_trainer(tmp_path / "part", Sequential(), network=network, max_epochs=3, train_handlers=[loader])

    part = trainer()

    def stop(engine):
        if engine.state.iteration == 3:
            raise Killed

    part.add_event_handler(Events.ITERATION_COMPLETED, stop)
    with pytest.raises(Killed):
        part.run()
    again = trainer()
    again.run()
    assert same(weights(whole), weights(again))


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


def test_handlers_of_every_event_are_called(tmp_path):
    from monai.engines.utils import IterationEvents

    trainer = make_trainer(tmp_path, Sequential(), max_epochs=1)
    called = []
    events = ["FORWARD_COMPLETED", "LOSS_COMPLETED", "BACKWARD_COMPLETED", "MODEL_COMPLETED"]
    for name in events:
        trainer.add_event_handler(getattr(IterationEvents, name), lambda engine, n: called.append(n), name)
    trainer.run()
    assert called == events * 2


def test_another_number_of_processes_is_refused(tmp_path):
    trainer = make_trainer(tmp_path / "first")
    trainer.world = 2
    trainer.barrier = lambda: None
    trainer.run()
    with pytest.raises(InputError, match=r"first: found a run of 2 processes.*as many as now, 1"):
        make_trainer(tmp_path / "second", init_from=tmp_path / "first").run()


def test_loss_scaling_is_refused(tmp_path):
    with pytest.raises(ValueError, match="amp"):
        make_trainer(tmp_path, amp=True)


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    trainer = make_trainer(tmp_path, Sequential(), max_epochs=2)

    def spoil(engine):
        if engine.state.iteration == 3:
            next(engine.network.parameters()).data.fill_(float("nan"))

    trainer.add_event_handler(Events.ITERATION_COMPLETED, spoil)
    with pytest.raises(FloatingPointError, match="weights are not finite"):
        trainer.run()
    state = load_tensors(tmp_path / "state.pt")
    assert state["iteration"] == 2
    assert all(torch.isfinite(v).all() for v in state["network"].values())
