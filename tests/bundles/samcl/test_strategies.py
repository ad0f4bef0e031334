"""Each strategy's defining property."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

from bundles.samcl.scripts.memory import ReservoirMemory
from bundles.samcl.scripts.strategies import AGEM, ER, MER, SAMCL, Sequential, SharpnessAware
from bundles.samcl.scripts.two_level import TwoLevelSAMCL
from shared.data.pairs import stack_pairs
from shared.errors import InputError
from tests.bundles.samcl.tiny import make_network, make_trainer
from tests.tiny import TinyPairs, same, weights


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


def test_replay_ratio_draws_so_many_pairs_for_each(tmp_path):
    trainer = make_trainer(tmp_path, SAMCL(ReservoirMemory(10), replay_ratio=3))
    one_iteration(trainer, TinyPairs(), [0, 1])  # the memory holds two pairs and is drawn from without repetition
    before = trainer.passes
    trainer.strategy.step(trainer, [TinyPairs()[2], TinyPairs()[3]])
    assert trainer.passes - before == 2 * (2 + 4)
    before = trainer.passes
    trainer.strategy.step(trainer, [TinyPairs()[4]])
    assert trainer.passes - before == 2 * (1 + 3)


@pytest.mark.parametrize("strategy", [MER, SAMCL])
def test_replay_ratio_below_one_is_refused(strategy):
    with pytest.raises(ValueError, match="replay_ratio 0"):
        strategy(ReservoirMemory(10), replay_ratio=0)


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


def test_mer_that_goes_the_whole_way_is_replay_with_single_steps(tmp_path):
    mer = make_trainer(tmp_path / "mer", MER(ReservoirMemory(3), beta=1.0))
    er = make_trainer(tmp_path / "er", ER(ReservoirMemory(3), steps="each"))
    for trainer in (mer, er):
        trainer.run()
    assert same(weights(mer), weights(er))


def test_samcl_without_a_radius_is_mer(tmp_path):
    samcl = make_trainer(tmp_path / "samcl", SAMCL(ReservoirMemory(3), rho=0.0, beta=0.4))
    mer = make_trainer(tmp_path / "mer", MER(ReservoirMemory(3), beta=0.4))
    for trainer in (samcl, mer):
        trainer.run()
    assert same(weights(samcl), weights(mer))
    assert samcl.passes == mer.passes


def test_sharpness_aware_without_a_radius_is_plain_training(tmp_path):
    flat = make_trainer(tmp_path / "flat", SharpnessAware(rho=0.0))
    plain = make_trainer(tmp_path / "plain", Sequential())
    for trainer in (flat, plain):
        trainer.run()
    assert same(weights(flat), weights(plain))


def gradient_at(state: dict[str, torch.Tensor], samples: list[dict]) -> dict[str, torch.Tensor]:
    """Return the gradient of the mean loss of samples at given weights, by autograd."""
    network, objective = make_network(), make_trainer_objective()
    network.load_state_dict(state)
    ready = [objective.prepare(s, torch.device("cpu")) for s in samples]
    named = dict(network.named_parameters())
    loss, _ = objective(network(stack_pairs(ready)), ready)
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def sgd_trainer(folder, strategy):
    network = make_network()
    return make_trainer(folder, strategy, network=network, optimizer=torch.optim.SGD(network.parameters(), lr=0.1))


def assert_step(trainer, start: dict[str, torch.Tensor], gradient: dict[str, torch.Tensor]) -> None:
    for name, value in weights(trainer).items():
        torch.testing.assert_close(value, start[name] - 0.1 * gradient[name], rtol=1e-4, atol=1e-7, msg=name)


def test_sharpness_aware_steps_with_the_gradient_of_the_climbed_point(tmp_path):
    pairs, trainer = TinyPairs(), sgd_trainer(tmp_path, SharpnessAware(rho=0.5, adaptive=False))
    batch, start = [pairs[1], pairs[3]], weights(trainer)
    uphill = gradient_at(start, batch)
    norm = torch.sqrt(sum((g**2).sum() for g in uphill.values()))
    climbed = {k: v + 0.5 * uphill[k] / norm for k, v in start.items()}
    one_iteration(trainer, pairs, [1, 3])
    assert_step(trainer, start, gradient_at(climbed, batch))
    assert trainer.passes == 4


def test_joint_replay_is_one_step_on_the_mean_of_both_losses(tmp_path):
    pairs, trainer = TinyPairs(), sgd_trainer(tmp_path, ER(ReservoirMemory(3)))
    trainer.strategy.memory.offer(pairs[5], trainer.generator)
    old = trainer.strategy.memory.draw(1, trainer.generator)
    start = weights(trainer)
    parts = one_iteration(trainer, pairs, [0, 2])
    current, replayed = gradient_at(start, [pairs[0], pairs[2]]), gradient_at(start, old)
    assert_step(trainer, start, {k: (current[k] + replayed[k]) / 2 for k in start})
    assert trainer.strategy.memory.seen == 3  # offered after the draw
    assert trainer.passes == 2 + 1  # no more replayed than there was
    assert parts["replay_loss"] != parts["loss"]


def test_joint_replay_with_an_empty_memory_is_plain(tmp_path):
    pairs, replay = TinyPairs(), make_trainer(tmp_path / "a", ER(ReservoirMemory(3)))
    plain = make_trainer(tmp_path / "b", Sequential())
    for trainer in (replay, plain):
        one_iteration(trainer, pairs, [0, 2])
    assert same(weights(replay), weights(plain))


def test_agem_steps_never_against_the_memory(tmp_path):
    """Over all couples of pairs: in conflict the part against the memory is gone, else the gradient is untouched."""
    pairs, met = TinyPairs(), {True: 0, False: 0}
    for current, past in itertools.permutations(range(6), 2):
        trainer = sgd_trainer(tmp_path / f"{current}{past}", AGEM(ReservoirMemory(3)))
        strategy, start = trainer.strategy, weights(trainer)
        strategy.memory.offer(pairs[past], trainer.generator)
        strategy.begin_task(trainer)
        gradient = gradient_at(start, [pairs[current]])
        reference = gradient_at(start, strategy.memory.draw(1, trainer.generator))
        one_iteration(trainer, pairs, [current])
        product = sum((gradient[k] * reference[k]).sum() for k in start)
        share = min(product, 0.0) / sum((r**2).sum() for r in reference.values())
        assert_step(trainer, start, {k: gradient[k] - share * reference[k] for k in start})
        met[bool(product < 0)] += 1
    assert min(met.values()) > 0, met


def test_agem_refers_to_earlier_tasks_only(tmp_path):
    first = make_trainer(tmp_path / "first", AGEM(ReservoirMemory(50)))
    first.run()
    assert first.passes == 8  # nothing to refer to
    second = make_trainer(
        tmp_path / "second",
        AGEM(ReservoirMemory(50)),
        init_from=tmp_path / "first",
        dataset=TinyPairs(seed=1),
        task="next",
    )
    drawn = []
    prepare = second.prepare
    second.prepare = lambda sample: drawn.append(sample) or prepare(sample)
    second.run()
    assert second.passes == 16
    replayed = [s for s in drawn if "pair" not in s]  # the memory keeps no file names
    old = [TinyPairs(seed=0)[i]["fixed_image"].half().float() for i in range(6)]
    assert len(replayed) == 8
    assert all(any(torch.equal(s["fixed_image"], image) for image in old) for s in replayed)


def test_agem_whose_memory_lost_the_past_trains_on(tmp_path):
    trainer = make_trainer(tmp_path, AGEM(ReservoirMemory(1)))
    pairs = TinyPairs()
    trainer.strategy.memory.offer(pairs[0], trainer.generator)
    trainer.strategy.begin_task(trainer)
    for seed in range(100):
        trainer.strategy.memory.offer(pairs[1], trainer.generator.manual_seed(seed))
    parts = one_iteration(trainer, pairs, [2])
    assert "replay_loss" not in parts
    assert trainer.passes == 1


def test_unknown_steps_are_refused():
    with pytest.raises(ValueError, match="'both', expected joint or each"):
        ER(ReservoirMemory(1), steps="both")


def test_settings_hold_the_options_and_no_state():
    assert SAMCL(ReservoirMemory(3)).settings() == {
        "name": "SAMCL",
        "beta": 0.25,
        "replay_ratio": 1,
        "rho": 0.05,
        "adaptive": True,
        "memory": "ReservoirMemory(capacity=3)",
    }
    assert AGEM(ReservoirMemory(3)).settings() == {"name": "AGEM", "memory": "ReservoirMemory(capacity=3)"}


@pytest.mark.parametrize("kind", [SharpnessAware, SAMCL, TwoLevelSAMCL])
def test_an_adaptive_that_is_text_is_refused(kind):
    memory = {} if kind is SharpnessAware else {"memory": ReservoirMemory(3)}
    with pytest.raises(InputError, match="adaptive: found 'false', expected True or False"):
        kind(adaptive="false", **memory)
