"""Each strategy's defining property."""

from __future__ import annotations

import copy

import pytest
import torch

from bundles.samcl.scripts.memory import ReservoirMemory
from bundles.samcl.scripts.strategies import SAMCL, Sequential
from shared.data.pairs import stack_pairs
from tests.bundles.samcl.tiny import TinyPairs, make_network, make_trainer, same, weights


def one_iteration(trainer, pairs: TinyPairs, indices: list[int]) -> dict[str, torch.Tensor]:
    trainer.generator.manual_seed(3)
    return trainer.strategy.step(trainer, [pairs[i] for i in indices])


def by_hand(pairs: TinyPairs, indices: list[int], rho: float, beta: float) -> dict[str, torch.Tensor]:
    """SAMCL's update written out with autograd, one tensor at a time, for a memory that never rejects."""
    network = make_network()
    objective = make_trainer_objective()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    parameters = list(network.parameters())
    start = copy.deepcopy(network.state_dict())

    def gradient(samples: list[dict]) -> tuple[torch.Tensor, ...]:
        ready = [objective.prepare(s, torch.device("cpu")) for s in samples]
        return torch.autograd.grad(objective(network(stack_pairs(ready)), ready)[0], parameters)

    def sam_step(samples: list[dict]) -> None:
        g = gradient(samples)
        before = [p.detach().clone() for p in parameters]
        norm = torch.sqrt(sum(((p.detach().abs() * x) ** 2).sum() for p, x in zip(parameters, g, strict=True)))
        with torch.no_grad():
            for p, x in zip(parameters, g, strict=True):
                p.add_(rho * p**2 * x / norm)
        climbed = gradient(samples)
        with torch.no_grad():
            for p, old in zip(parameters, before, strict=True):
                p.copy_(old)
        for p, x in zip(parameters, climbed, strict=True):
            p.grad = x
        optimizer.step()

    for i in indices:
        sam_step([pairs[i]])
    memory, generator = ReservoirMemory(10), torch.Generator().manual_seed(3)
    for i in indices:
        memory.offer(pairs[i], generator)
    sam_step(memory.draw(len(indices), generator))
    return {k: start[k] + beta * (v - start[k]) for k, v in network.state_dict().items()}


def make_trainer_objective():
    from bundles.samcl.scripts.objective import RegistrationObjective

    return RegistrationObjective(window=3, steps=2)


def test_samcl_does_the_update_of_the_paper(tmp_path):
    pairs = TinyPairs()
    trainer = make_trainer(tmp_path, SAMCL(ReservoirMemory(10), rho=0.5, adaptive=True, beta=0.25))
    one_iteration(trainer, pairs, [0, 4])
    expected = by_hand(pairs, [0, 4], rho=0.5, beta=0.25)
    for name, value in weights(trainer).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7, msg=name)


def test_samcl_makes_four_passes_a_sample(tmp_path):
    trainer = make_trainer(tmp_path, SAMCL(ReservoirMemory(10)))
    one_iteration(trainer, TinyPairs(), [0, 1])
    assert trainer.passes == 2 * (2 + 2)
    assert trainer.strategy.memory.seen == 2


def test_beta_zero_learns_nothing(tmp_path):
    trainer = make_trainer(tmp_path, SAMCL(ReservoirMemory(10), beta=0.0))
    before = weights(trainer)
    one_iteration(trainer, TinyPairs(), [0, 1])
    assert same(before, weights(trainer))


def test_beta_is_the_share_of_the_way(tmp_path):
    pairs, moved = TinyPairs(), {}
    for beta in (0.25, 1.0):
        trainer = make_trainer(tmp_path / str(beta), SAMCL(ReservoirMemory(10), beta=beta))
        before = weights(trainer)
        one_iteration(trainer, pairs, [0, 1])
        moved[beta] = {k: v - before[k] for k, v in weights(trainer).items()}
    for name, whole in moved[1.0].items():
        torch.testing.assert_close(moved[0.25][name], 0.25 * whole, rtol=1e-3, atol=1e-7)


def test_rho_zero_beta_one_is_plain_optimisation_with_replay(tmp_path):
    """With both ingredients off: Adam on each sample, then on the replayed batch."""
    pairs = TinyPairs()
    trainer = make_trainer(tmp_path / "a", SAMCL(ReservoirMemory(10), rho=0.0, beta=1.0))
    one_iteration(trainer, pairs, [2])
    plain = make_trainer(tmp_path / "b", Sequential())
    one_iteration(plain, pairs, [2])
    stored = ReservoirMemory(1)
    stored.offer(pairs[2], plain.generator)
    plain.strategy.step(plain, stored.draw(1, plain.generator))
    assert same(weights(trainer), weights(plain))


def test_rho_changes_the_step(tmp_path):
    results = []
    for rho in (0.0, 0.5):
        trainer = make_trainer(tmp_path / str(rho), SAMCL(ReservoirMemory(10), rho=rho))
        one_iteration(trainer, TinyPairs(), [0, 1])
        results.append(weights(trainer))
    assert not same(*results)


def test_replay_draws_no_more_than_was_seen(tmp_path):
    trainer = make_trainer(tmp_path, SAMCL(ReservoirMemory(1)))
    parts = one_iteration(trainer, TinyPairs(), [0, 1, 2])
    assert trainer.passes == 2 * (3 + 1)
    assert torch.isfinite(parts["replay_loss"])


def test_sequential_is_one_optimizer_step_on_the_batch(tmp_path):
    pairs, network, objective = TinyPairs(), make_network(), make_trainer_objective()
    trainer = make_trainer(tmp_path, Sequential())
    parts = one_iteration(trainer, pairs, [1, 3])
    assert trainer.passes == 2
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    ready = [objective.prepare(pairs[i], torch.device("cpu")) for i in (1, 3)]
    loss, _ = objective(network(stack_pairs(ready)), ready)
    loss.backward()
    optimizer.step()
    assert parts["loss"].item() == pytest.approx(loss.item())
    assert same(weights(trainer), network.state_dict())


@pytest.mark.parametrize("beta", [-0.1, 1.1])
def test_beta_outside_its_range_is_refused(beta):
    with pytest.raises(ValueError, match="beta"):
        SAMCL(ReservoirMemory(1), beta=beta)
