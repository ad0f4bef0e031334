"""Runs: checkpoints, killing and going on, starting from another run or from a file."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from monai.handlers import CheckpointLoader

from shared.errors import InputError
from shared.files import load_tensors, read_json, save_tensors
from shared.trainer_checkpoint import restore
from tests.tiny import Killed, TinyPairs, kill_at, make_network, make_trainer, same, weights


def test_a_run_in_two_parts_ends_with_the_same_bits(tmp_path):
    whole = make_trainer(tmp_path / "whole", max_epochs=4)
    whole.run()
    kill_at(make_trainer(tmp_path / "parts", max_epochs=4), 5)  # inside the third epoch: one iteration is lost
    again = make_trainer(tmp_path / "parts", max_epochs=4)
    again.run()
    assert same(weights(whole), weights(again))
    assert again.passes == whole.passes == 16
    assert same(load_tensors(tmp_path / "parts" / "model.pt"), weights(whole))


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
    assert total >= 6  # settings, two epochs, the end, model, record
    for limit, after in itertools.product(range(1, total + 1), (False, True)):
        folder = tmp_path / f"{limit}_{after}"
        assert run_until(limit, after, folder)
        again = make_trainer(folder)
        again.run()
        assert same(weights(whole), weights(again)), (limit, after)
        assert not list(folder.rglob(".tmp-*"))


def test_the_next_run_gets_weights_and_moments_but_its_own_rate(tmp_path):
    first = make_trainer(tmp_path / "first")
    first.run()
    network = make_network()
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-4)
    options = {"init_from": tmp_path / "first", "dataset": TinyPairs(seed=1), "task": "next"}
    second = make_trainer(tmp_path / "second", network=network, optimizer=optimizer, **options)
    restore(second)
    assert same(weights(first), weights(second))
    moments = [s["exp_avg"] for s in first.optimizer.state_dict()["state"].values()]
    carried = [s["exp_avg"] for s in second.optimizer.state_dict()["state"].values()]
    assert all(torch.equal(a, b) for a, b in zip(moments, carried, strict=True))
    assert second.optimizer.param_groups[0]["lr"] == 5e-4


def test_a_killed_second_run_goes_on_without_the_first(tmp_path):
    make_trainer(tmp_path / "first").run()
    options = {"init_from": tmp_path / "first", "dataset": TinyPairs(seed=1), "task": "next"}
    whole = make_trainer(tmp_path / "whole", **options)
    whole.run()
    kill_at(make_trainer(tmp_path / "part", **options), 3)
    (tmp_path / "first" / "state.pt").unlink()
    again = make_trainer(tmp_path / "part", **options)
    again.run()
    assert same(weights(whole), weights(again))


def scheduled(folder: Path, gamma: float, **options):
    network = make_network()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma)
    return make_trainer(folder, network=network, optimizer=optimizer, scheduler=scheduler, max_epochs=3, **options)


def test_a_killed_run_goes_on_with_its_schedule_and_with_no_other(tmp_path):
    whole = scheduled(tmp_path / "whole", 0.5)
    whole.run()
    kill_at(scheduled(tmp_path / "part", 0.5), 3)
    with pytest.raises(InputError, match=r"scheduler\.gamma: found 0\.5, asked for 1\.0"):
        scheduled(tmp_path / "part", 1.0).run()
    again = scheduled(tmp_path / "part", 0.5)
    again.run()
    assert same(weights(whole), weights(again))
    scheduled(tmp_path / "part", 0.5).run()  # complete
    with pytest.raises(InputError, match=r"scheduler\.gamma"):
        scheduled(tmp_path / "part", 1.0).run()


@pytest.mark.parametrize("start", ["a run", "a file"])
def test_a_run_whose_start_was_trained_anew_is_refused(tmp_path, start):
    make_trainer(tmp_path / "first").run()
    source = tmp_path / "first" if start == "a run" else tmp_path / "first" / "model.pt"
    options = {"init_from": source, "dataset": TinyPairs(seed=1), "task": "next"}
    make_trainer(tmp_path / "second", **options).run()
    make_trainer(tmp_path / "second", **options).run()  # complete
    shutil.rmtree(tmp_path / "first")
    make_trainer(tmp_path / "second", **options).run()  # what is complete needs its start no more
    make_trainer(tmp_path / "first", seed=1).run()
    with pytest.raises(InputError, match=r"second: .*weights_of_init_from: found sha256 \w+, asked for sha256 \w+"):
        make_trainer(tmp_path / "second", **options).run()


def test_a_start_trained_anew_to_the_same_bits_is_the_same(tmp_path):
    options = {"init_from": tmp_path / "first", "dataset": TinyPairs(seed=1), "task": "next"}
    for _ in range(2):
        make_trainer(tmp_path / "first").run()
        make_trainer(tmp_path / "second", **options).run()
        shutil.rmtree(tmp_path / "first")


def test_the_record_says_what_a_run_took(tmp_path):
    make_trainer(tmp_path).run()
    record = read_json(tmp_path / "done.json")
    assert set(record) == {"settings", "passes", "seconds", "wait_share", "memory_bytes", "peak_gpu_bytes"}
    assert record["passes"] == 8
    assert record["seconds"] > 0
    assert 0 <= record["wait_share"] < 1
    assert (record["memory_bytes"], record["peak_gpu_bytes"]) == (0, None)


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


def test_a_weights_file_starts_a_run(tmp_path):
    network = make_network()
    torch.nn.init.ones_(network.fine.weight)
    save_tensors(tmp_path / "pretrained.pt", network.state_dict())
    trainer = make_trainer(tmp_path / "run", init_from=tmp_path / "pretrained.pt")
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
    assert not (tmp_path / "second" / "state.pt").exists()


def test_scheduler_steps_with_the_iterations_and_resumes(tmp_path):
    def trainer(folder: str):
        network = make_network()
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return make_trainer(tmp_path / folder, network=network, optimizer=optimizer, scheduler=scheduler)

    whole = trainer("whole")
    whole.run()
    assert whole.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * 0.5**4)
    assert load_tensors(tmp_path / "whole" / "state.pt")["scheduler"]["last_epoch"] == 4
    kill_at(trainer("part"), 3)
    again = trainer("part")
    again.run()
    assert again.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]
    assert same(weights(whole), weights(again))


def test_a_loader_that_a_host_adds_does_not_spoil_a_resumed_run(tmp_path):
    whole = make_trainer(tmp_path / "whole", max_epochs=3)
    whole.run()
    save_tensors(tmp_path / "other.pt", make_network().state_dict())

    def trainer():
        network = make_network()
        loader = CheckpointLoader(str(tmp_path / "other.pt"), {"model": network})
        return make_trainer(tmp_path / "part", network=network, max_epochs=3, train_handlers=[loader])

    kill_at(trainer(), 3)
    again = trainer()
    again.run()
    assert same(weights(whole), weights(again))


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    trainer = make_trainer(tmp_path, max_epochs=2)

    def spoil(engine):
        if engine.state.iteration == 3:
            next(engine.network.parameters()).data.fill_(float("nan"))

    trainer.add_event_handler(Events.ITERATION_COMPLETED, spoil)
    with pytest.raises(FloatingPointError, match="weights are not finite"):
        trainer.run()
    state = load_tensors(tmp_path / "state.pt")
    assert state["iteration"] == 2
    assert all(torch.isfinite(v).all() for v in state["network"].values())
