"""What holds for all strategies: a run that was killed goes on as if nothing had happened, from site to site."""

from __future__ import annotations

import itertools

import pytest
import torch
from ignite.engine import Events

from bundles.smdr.scripts.memory import ExemplarMemory
from bundles.smdr.scripts.replay import ReplayDataset
from bundles.smdr.scripts.strategies import ER, SMDR, LwF
from shared.continual import EWC, SI, Sequential, Strategy
from shared.files import load_tensors
from tests.bundles.smdr.tiny_segmenter import BRIGHT, DARK, make_trainer, write_set
from tests.tiny import Killed, kill_at, same, weights

STRATEGIES = {
    "sequential": lambda sets: Sequential(),
    "ewc": lambda sets: EWC(strength=100.0, decay=0.9, samples=3),
    "si": lambda sets: SI(strength=100.0),
    "lwf": lambda sets: LwF(strength=100.0),
    "real_replay": lambda sets: ER(ExemplarMemory(4)),
    "replay": lambda sets: ER(ReplayDataset(sets)),
    "aligned_real": lambda sets: SMDR(ExemplarMemory(4), step=0.1),
    "smdr": lambda sets: SMDR(ReplayDataset(sets), step=0.1),
    "smdr_first_order": lambda sets: SMDR(ReplayDataset(sets), step=0.1, second_order=False),
    "smdr_no_orientational": lambda sets: SMDR(ReplayDataset(sets), step=0.1, orientational=0.0),
    "smdr_no_arbitrary": lambda sets: SMDR(ReplayDataset(sets), step=0.1, arbitrary=0.0),
}


def flat(state: object, name: str = "") -> dict[str, torch.Tensor]:
    """Return every tensor and number in nested containers, by its place; names count by their characters."""
    if isinstance(state, dict):
        return {k: v for key, value in state.items() for k, v in flat(value, f"{name}.{key}").items()}
    if isinstance(state, list):
        return {name: torch.tensor([ord(c) for c in "+".join(state)])}
    return {name: torch.as_tensor(state)}


def test_every_strategy_is_tried():
    from bundles.smdr import scripts

    known = {n for n in scripts.__all__ if isinstance(c := getattr(scripts, n), type) and issubclass(c, Strategy)}
    assert known == {type(make([])).__name__ for make in STRATEGIES.values()}


@pytest.mark.parametrize("name", STRATEGIES)
def test_two_sites_in_pieces_end_with_the_same_bits(tmp_path, name, monkeypatch):
    """Killed between two checkpoints and at the end of `end_task`, at both sites."""
    sets = [write_set(tmp_path / "set", "site0")]

    def site(folder: str, number: int):
        options = {
            "dataset": (BRIGHT, DARK)[number],
            "task": f"site{number}",
            "init_from": tmp_path / folder / "0" if number else None,
        }
        return make_trainer(tmp_path / folder / str(number), STRATEGIES[name](sets if number else []), **options)

    def in_pieces(number: int):
        kill_at(site("pieces", number), 3)
        trainer = site("pieces", number)
        end_task = trainer.strategy.end_task

        def kill_after_end(*args):
            end_task(*args)
            raise Killed

        monkeypatch.setattr(trainer.strategy, "end_task", kill_after_end)
        with pytest.raises(Killed):
            trainer.run()
        trainer = site("pieces", number)
        trainer.run()
        return trainer

    for number in (0, 1):
        whole = site("whole", number)
        whole.run()
        pieces = in_pieces(number)
        assert same(weights(whole), weights(pieces))
        assert same(flat(whole.strategy.state_dict()), flat(pieces.strategy.state_dict()))
        assert same(flat(whole.optimizer.state_dict()["state"]), flat(pieces.optimizer.state_dict()["state"]))
        assert whole.passes == pieces.passes
    memories = [
        {p.name: p.read_bytes() for p in (tmp_path / folder / "1" / "memory").rglob("*") if p.is_file()}
        for folder in ("whole", "pieces")
    ]
    assert memories[0] == memories[1]
    assert bool(memories[0]) == ("real" in name)
    states = [load_tensors(tmp_path / folder / "1" / "state.pt")["strategy"] for folder in ("whole", "pieces")]
    assert same(*map(flat, states))


@pytest.mark.parametrize("name", STRATEGIES)
def test_frozen_weights_stay_with_every_strategy(tmp_path, name):
    """At the second site, with moments and state of the first that would move them; also those that alignment steps."""
    sets = [write_set(tmp_path / "set", "0")]
    for number in (0, 1):
        history: list[dict[str, torch.Tensor]] = []
        trainer = make_trainer(
            tmp_path / str(number),
            STRATEGIES[name](sets if number else []),
            dataset=(BRIGHT, DARK)[number],
            task=str(number),
            init_from=tmp_path / "0" if number else None,
            frozen=["unet.model.0"] if number else (),
            frozen_iterations=3,
        )
        for event in (Events.STARTED, Events.ITERATION_COMPLETED):
            trainer.add_event_handler(event, lambda engine, history=history: history.append(weights(engine)))
        trainer.run()
    held = {k for k in history[0] if k.startswith("unet.model.0.")}
    assert held
    for before, after in itertools.pairwise(history[:4]):
        changed = {k for k in before if not torch.equal(before[k], after[k])}
        assert changed
        assert not changed & held
    assert {k for k in held if not torch.equal(history[3][k], history[4][k])}
