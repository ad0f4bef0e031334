"""No training step waits for the GPU: the next one's kernels are queued while it computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ignite.engine import Events

from bundles.samcl.scripts.memory import ReservoirMemory
from bundles.samcl.scripts.objective import RegistrationObjective
from bundles.samcl.scripts.strategies import SAMCL
from shared.handlers import TrainingLog
from tests.bundles.samcl.tiny import make_network, make_trainer
from tests.tiny import SIZE, TinyPairs

pytestmark = pytest.mark.gpu


class WithPoints(TinyPairs):
    """Adds landmarks, so that every term of the objective takes part."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        points = torch.rand(5, 3, generator=torch.Generator().manual_seed(index)) * (SIZE - 1)
        return {**super().__getitem__(index), "fixed_points": points, "moving_points": points + 0.5}


class Waiting(SAMCL):
    """Looks at the loss in every step, as one line too much would do it."""

    def step(self, trainer, samples):
        parts = super().step(trainer, samples)
        self.last = float(parts["loss"])
        return parts


@pytest.fixture
def forbid_waiting():
    """Return handlers that forbid it within an iteration; the first one loads kernels and allocates, and may wait."""

    def begin(engine) -> None:
        if engine.state.iteration > 1:
            torch.cuda.set_sync_debug_mode("error")

    yield begin, lambda engine: torch.cuda.set_sync_debug_mode("default")
    torch.cuda.set_sync_debug_mode("default")


def make(folder, strategy, forbid_waiting, **options):
    device = torch.device("cuda")
    log = TrainingLog(folder, interval=100, tensorboard=False)
    trainer = make_trainer(
        folder,
        strategy,
        device=device,
        network=make_network().to(device),
        dataset=WithPoints(),
        max_epochs=1,
        epoch_length=4,
        train_handlers=[log],
        **options,
    )
    begin, end = forbid_waiting
    trainer.add_event_handler(Events.ITERATION_STARTED, begin)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, end)  # after the log's
    return trainer


@pytest.mark.parametrize("autocast", [None, "bfloat16"])
@pytest.mark.parametrize("metric", ["lncc", "mind"])
def test_a_step_of_samcl_waits_for_nothing(tmp_path, forbid_waiting, metric, autocast):
    objective = RegistrationObjective(window=3, steps=2, folding=1.0, metric=metric)
    strategy = SAMCL(ReservoirMemory(3))  # fewer places than pairs: some are drawn for, some replaced
    trainer = make(tmp_path, strategy, forbid_waiting, loss_function=objective, autocast=autocast)
    trainer.run()
    assert trainer.state.iteration == 4
    assert strategy.memory.seen == 8


def test_one_look_at_the_loss_is_noticed(tmp_path, forbid_waiting):
    trainer = make(tmp_path, Waiting(ReservoirMemory(3)), forbid_waiting)
    with pytest.raises(RuntimeError, match="synchronizing CUDA operation"):
        trainer.run()
    assert trainer.state.iteration == 2
