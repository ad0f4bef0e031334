"""A killed run whose learning rate is scheduled by handlers ends with the bits of an unbroken one."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from ignite.engine import Events
from ignite.handlers.param_scheduler import LinearCyclicalScheduler, LRScheduler, ReduceLROnPlateauScheduler
from monai.handlers import LrScheduleHandler
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR, ReduceLROnPlateau, StepLR

from shared.files import load_tensors
from tests.tiny import kill_at, make_network, make_trainer, same, weights

# Every epoch but the first counts as bad: the rate falls after the third, in the epoch that is killed.
PLATEAU = {"patience": 1, "factor": 0.1, "threshold": 1e9, "threshold_mode": "abs"}


def loss_metric(engine) -> None:
    engine.state.metrics["loss"] = float(engine.state.output["loss"])


def by_step(optimizer):
    return [LrScheduleHandler(StepLR(optimizer, step_size=3, gamma=0.1), print_lr=False, epoch_level=False)], []


def by_milestones(optimizer):
    return [LrScheduleHandler(MultiStepLR(optimizer, [3]), print_lr=False)], []


def by_numpy(optimizer):
    return [LrScheduleHandler(LambdaLR(optimizer, lambda n: np.cos(n / 10)), print_lr=False, epoch_level=False)], []


def by_plateau(optimizer):
    scheduler = ReduceLROnPlateau(optimizer, **PLATEAU)
    step_transform = lambda engine: engine.state.output["loss"]  # noqa: E731 - as configs write it
    return [LrScheduleHandler(scheduler, print_lr=False, step_transform=step_transform)], []


def by_two_of_a_kind(optimizer):
    first = StepLR(optimizer, step_size=3, gamma=0.1)
    second = StepLR(optimizer, step_size=4, gamma=0.5)
    return [LrScheduleHandler(s, print_lr=False, epoch_level=False) for s in (first, second)], []


def by_ignite(optimizer):
    return [], [(Events.ITERATION_STARTED, LinearCyclicalScheduler(optimizer, "lr", 1e-3, 1e-2, cycle_size=6))]


def by_ignite_every_other_iteration(optimizer):
    scheduler = LinearCyclicalScheduler(optimizer, "lr", 1e-3, 1e-2, cycle_size=6)
    return [], [(Events.ITERATION_STARTED(every=2) | Events.EPOCH_STARTED, scheduler)]


def by_ignite_around_torch(optimizer):
    # Attached late to the event that saves: the checkpoint must hold what it did.
    return [], [(Events.EPOCH_COMPLETED, LRScheduler(StepLR(optimizer, step_size=2, gamma=0.1)))]


def by_ignite_plateau(optimizer):
    scheduler = ReduceLROnPlateauScheduler(optimizer, "loss", **PLATEAU)
    return [], [(Events.EPOCH_COMPLETED, loss_metric), (Events.EPOCH_COMPLETED, scheduler)]


CASES = [
    by_step,
    by_milestones,
    by_numpy,
    by_plateau,
    by_two_of_a_kind,
    by_ignite,
    by_ignite_every_other_iteration,
    by_ignite_around_torch,
    by_ignite_plateau,
]


def make(make_handlers, folder):
    network = make_network()
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    handlers, added = make_handlers(optimizer)
    options = {"network": network, "optimizer": optimizer, "max_epochs": 4, "train_handlers": handlers}
    trainer = make_trainer(folder, **options)
    for event, handler in added:
        trainer.add_event_handler(event, handler)
    return trainer


@pytest.mark.filterwarnings("error:.*its state holds more")
@pytest.mark.parametrize("case", CASES)
def test_scheduling_handlers_go_on(tmp_path, case):
    whole = make(case, tmp_path / "whole")
    rates = []
    whole.add_event_handler(
        Events.ITERATION_COMPLETED, lambda e: rates.append(float(e.optimizer.param_groups[0]["lr"]))
    )
    whole.run()
    assert len(set(rates)) > 1
    kill_at(make(case, tmp_path / "part"), 5)  # inside the third epoch: one iteration is lost and done again
    again = make(case, tmp_path / "part")
    again.run()
    assert again.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]
    assert same(weights(whole), weights(again))


def test_the_trainers_own_scheduler_may_compute_with_numpy(tmp_path):
    def trainer(folder):
        network = make_network()
        optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
        scheduler = LambdaLR(optimizer, lambda n: np.cos(n / 10))
        return make_trainer(folder, network=network, optimizer=optimizer, scheduler=scheduler, max_epochs=4)

    whole = trainer(tmp_path / "whole")
    whole.run()
    kill_at(trainer(tmp_path / "part"), 5)
    again = trainer(tmp_path / "part")
    again.run()
    assert same(weights(whole), weights(again))


def test_handlers_that_come_or_go_leave_the_others_their_states(tmp_path):
    handlers = partial(make, by_step)
    whole = handlers(tmp_path / "whole")
    whole.run()
    kill_at(handlers(tmp_path / "part"), 5)

    def with_another_first(optimizer):
        own, _ = by_step(optimizer)
        return [Idle(), *own], []

    again = make(with_another_first, tmp_path / "part")
    again.run()
    assert same(weights(whole), weights(again))


class Idle:
    """Keeps a state that the checkpoint lacks."""

    def attach(self, engine) -> None:
        pass

    def state_dict(self) -> dict:
        return {"value": 1}

    def load_state_dict(self, state: dict) -> None:
        raise AssertionError("there was no state of this handler")


def test_the_next_task_schedules_afresh(tmp_path):
    first = make(by_step, tmp_path / "first")
    first.run()
    assert load_tensors(tmp_path / "first" / "state.pt")["handlers"]["LrScheduleHandler 0"]["last_epoch"] == 8
    network = make_network()
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    handlers, _ = by_step(optimizer)
    options = {"network": network, "optimizer": optimizer, "max_epochs": 1, "train_handlers": handlers, "task": "next"}
    second = make_trainer(tmp_path / "second", init_from=tmp_path / "first", **options)
    second.run()
    assert handlers[0].lr_scheduler.last_epoch == 2
    assert optimizer.param_groups[0]["lr"] == 2e-3
