"""Weights that stay as they are at first, and train like all others then."""

from __future__ import annotations

import itertools

import pytest
import torch
from ignite.engine import Events
from monai.engines.utils import IterationEvents

from shared.errors import InputError
from shared.frozen import FrozenPhase
from shared.trainer import RegistrationTrainer
from tests.tiny import kill_at, make_network, make_trainer, same, weights

FROZEN = {"frozen": ["encoder", "fine.bias"], "frozen_iterations": 3}


def is_frozen(name: str) -> bool:
    return name.startswith("encoder.") or name == "fine.bias"


def trainer(folder, kind=RegistrationTrainer, **options):
    """Weight decay moves every weight that the optimizer is given a gradient of, be it zero."""
    network = make_network()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2, weight_decay=0.1)
    return make_trainer(folder, kind, network=network, optimizer=optimizer, **{**FROZEN, "max_epochs": 3, **options})


class ZeroGradients(RegistrationTrainer):
    """Hands the optimizer a gradient of every weight, as methods do that compute with gradients."""

    def learn(self, samples):
        parts = self.backward([self.prepare(s) for s in samples])
        for weight in self.network.parameters():
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        self.optimizer.step()
        return parts


@pytest.mark.parametrize("kind", [RegistrationTrainer, ZeroGradients])
@pytest.mark.parametrize("max_norm", [None, 1e-2])
def test_frozen_weights_move_from_the_first_iteration_after_the_phase(tmp_path, kind, max_norm):
    made = trainer(tmp_path, kind, max_norm=max_norm)
    history = [weights(made)]
    made.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: history.append(weights(engine)))
    made.run()
    for iteration, (before, after) in enumerate(itertools.pairwise(history), start=1):
        for name in before:
            stays = is_frozen(name) and iteration <= 3
            assert torch.equal(before[name], after[name]) == stays, (iteration, name)
    assert len(history) == 7


def test_moments_that_were_handed_on_do_not_move_frozen_weights(tmp_path):
    trainer(tmp_path / "first", frozen=()).run()
    second = trainer(tmp_path / "second", max_epochs=1, task="next", init_from=tmp_path / "first")
    start = []
    second.add_event_handler(Events.STARTED, lambda engine: start.append(weights(engine)))
    second.run()
    moments = second.optimizer.state[second.network.fine.bias]["exp_avg"]
    assert moments.abs().max() > 0
    for name, value in weights(second).items():
        assert torch.equal(value, start[0][name]) == is_frozen(name), name


def test_the_gradient_of_frozen_weights_is_not_computed(tmp_path):
    made, seen = trainer(tmp_path), []

    def look(engine):
        seen.append({k for k, p in engine.network.named_parameters() if p.grad is not None})

    made.add_event_handler(IterationEvents.BACKWARD_COMPLETED, look)
    made.run()
    names = {k for k, _ in made.network.named_parameters()}
    assert seen[:3] == [{n for n in names if not is_frozen(n)}] * 3
    assert seen[3:] == [names] * 3


@pytest.mark.parametrize("stop", [3, 4, 5])
def test_a_killed_run_goes_on_in_its_phase(tmp_path, stop):
    """Killed within the phase, right after it, and in an epoch without it."""
    whole = trainer(tmp_path / "whole")
    whole.run()
    kill_at(trainer(tmp_path / "part"), stop)
    again = trainer(tmp_path / "part")
    again.run()
    assert same(weights(whole), weights(again))


def test_all_weights_train_again_after_a_run_that_died_or_was_shorter_than_the_phase(tmp_path):
    for name, last in (("dies", 2), ("short", None)):
        made = trainer(tmp_path / name, frozen_iterations=100)
        kill_at(made, last) if last else made.run()
        assert all(p.requires_grad for p in made.network.parameters())


def test_the_hook_at_the_end_sees_all_weights_trainable(tmp_path):
    class Ending(RegistrationTrainer):
        def end(self) -> None:
            self.seen = [p.requires_grad for p in self.network.parameters()]

    made = trainer(tmp_path, Ending, frozen_iterations=100)
    made.run()
    assert all(made.seen)


def test_weights_that_are_never_trained_stay_so(tmp_path):
    made = trainer(tmp_path / "run", frozen_iterations=1)
    made.network.encoder[0].requires_grad_(False)
    made = make_trainer(tmp_path / "again", network=made.network, optimizer=made.optimizer, **FROZEN)
    made.run()
    assert not made.network.encoder[0].weight.requires_grad
    assert made.network.encoder[1].weight.requires_grad


def test_names_and_length_are_settings(tmp_path):
    assert trainer(tmp_path).settings()["frozen"] == {"names": ["encoder", "fine.bias"], "iterations": 3}
    assert FrozenPhase(make_network(), "encoder.", 2).settings()["frozen"]["names"] == ["encoder"]


@pytest.mark.parametrize(
    ("names", "iterations", "message"),
    [
        ("encodr", 1, r"found frozen 'encodr' \(did you mean 'encoder'\?\), expected names of trained parameters"),
        (["encoder", "fine.wait"], 1, r"'fine\.wait' \(did you mean 'fine\.weight'\?\)"),
        ("enc", 1, r"found frozen 'enc'"),  # whole names: layers.1 is not layers.10
        ("nothing", 0, "found frozen 'nothing', expected"),
        (["encoder", "coarse", "fine"], 1, "all parameters, expected some that are left to train"),
        ("encoder", -1, "found frozen_iterations -1, expected at least 0"),
    ],
)
def test_what_cannot_be_frozen_is_named(tmp_path, names, iterations, message):
    with pytest.raises(InputError, match=message):
        make_trainer(tmp_path / "run", frozen=names, frozen_iterations=iterations)
    assert not (tmp_path / "run").exists()
