"""What holds for all strategies: a run that was killed goes on as if nothing had happened, from task to task."""

from __future__ import annotations

import itertools

import pytest
import torch
from ignite.engine import Events

from bundles.samcl.scripts.consolidation import EWC, SI, LwF
from bundles.samcl.scripts.gradient_projection import GPM
from bundles.samcl.scripts.memory import ReservoirMemory
from bundles.samcl.scripts.strategies import AGEM, ER, MER, SAMCL, Sequential, SharpnessAware, Strategy
from bundles.samcl.scripts.two_level import TwoLevelSAMCL
from shared.files import load_tensors
from tests.bundles.samcl.tiny import make_trainer
from tests.tiny import Killed, TinyPairs, kill_at, same, weights

STRATEGIES = {
    "sequential": Sequential,
    "sam": lambda: SharpnessAware(rho=0.5),
    "er": lambda: ER(ReservoirMemory(3)),
    "er_each": lambda: ER(ReservoirMemory(3), steps="each"),
    "mer": lambda: MER(ReservoirMemory(3)),
    "samcl": lambda: SAMCL(ReservoirMemory(3), rho=0.5),
    "samcl_two_level": lambda: TwoLevelSAMCL(ReservoirMemory(3), rho=0.5, every=2),
    "agem": lambda: AGEM(ReservoirMemory(8)),
    "ewc": lambda: EWC(strength=100.0, decay=0.9, samples=3),
    "si": lambda: SI(strength=100.0),
    "lwf": lambda: LwF(strength=100.0),
    "gpm": lambda: GPM(threshold=0.9, samples=3, patches=20),
}


def flat(state: object, name: str = "") -> dict[str, torch.Tensor]:
    """Return every tensor and number in nested containers, by its place."""
    if isinstance(state, dict):
        return {k: v for key, value in state.items() for k, v in flat(value, f"{name}.{key}").items()}
    return {name: torch.as_tensor(state)}


def test_every_strategy_is_tried():
    from bundles.samcl import scripts

    known = {n for n in scripts.__all__ if isinstance(c := getattr(scripts, n), type) and issubclass(c, Strategy)}
    assert known == {type(make()).__name__ for make in STRATEGIES.values()}


@pytest.mark.parametrize("name", STRATEGIES)
def test_two_tasks_in_pieces_end_with_the_same_bits(tmp_path, name, monkeypatch):
    """Killed between two checkpoints and at the end of `end_task`, in both tasks."""
    make = STRATEGIES[name]

    def task(folder: str, number: int):
        previous = tmp_path / folder / str(number - 1) if number else None
        options = {"dataset": TinyPairs(seed=number), "task": f"task{number}", "init_from": previous}
        return make_trainer(tmp_path / folder / str(number), make(), **options)

    def in_pieces(number: int):
        kill_at(task("pieces", number), 3)
        trainer = task("pieces", number)
        end_task = trainer.strategy.end_task

        def kill_after_end(*args):
            end_task(*args)
            raise Killed

        monkeypatch.setattr(trainer.strategy, "end_task", kill_after_end)
        with pytest.raises(Killed):
            trainer.run()
        trainer = task("pieces", number)
        trainer.run()
        return trainer

    for number in (0, 1):
        whole = task("whole", number)
        whole.run()
        pieces = in_pieces(number)
        assert same(weights(whole), weights(pieces))
        assert same(flat(whole.strategy.state_dict()), flat(pieces.strategy.state_dict()))
        assert same(flat(whole.optimizer.state_dict()["state"]), flat(pieces.optimizer.state_dict()["state"]))
        assert whole.passes == pieces.passes
    # The checkpoint on disk is what the next task would take up.
    states = [load_tensors(tmp_path / folder / "1" / "state.pt")["strategy"] for folder in ("whole", "pieces")]
    assert same(*map(flat, states))
    assert same(flat(states[0]), flat(whole.strategy.state_dict()))


@pytest.mark.parametrize("name", STRATEGIES)
def test_frozen_weights_stay_with_every_strategy(tmp_path, name):
    """In the second task, with moments and state of the first that would move them."""
    for number in (0, 1):
        history = []
        trainer = make_trainer(
            tmp_path / str(number),
            STRATEGIES[name](),
            dataset=TinyPairs(seed=number),
            task=str(number),
            init_from=tmp_path / "0" if number else None,
            frozen=["stem", "head"] if number else (),
            frozen_iterations=3,
        )
        trainer.add_event_handler(Events.STARTED, lambda engine, history=history: history.append(weights(engine)))
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED, lambda engine, history=history: history.append(weights(engine))
        )
        trainer.run()
    held = {k for k in history[0] if k.startswith(("stem.", "head."))}
    for before, after in itertools.pairwise(history[:4]):
        changed = {k for k in before if not torch.equal(before[k], after[k])}
        assert changed
        assert not changed & held
    # GPM itself freezes activations and biases after the first task.
    assert {k for k in held if not torch.equal(history[3][k], history[4][k])}
