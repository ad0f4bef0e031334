"""Strategies that hold weights, outputs or directions of the earlier tasks: each one's defining property."""

from __future__ import annotations

import copy

import pytest
import torch

from bundles.samcl.scripts.consolidation import EWC, SI, LwF
from bundles.samcl.scripts.gradient_projection import GPM
from bundles.samcl.scripts.memory import ReservoirMemory
from bundles.samcl.scripts.strategies import AGEM, Sequential
from shared.data.pairs import stack_pairs
from shared.files import load_tensors
from shared.trainer_checkpoint import restore
from tests.bundles.samcl.tiny import make_network, make_trainer
from tests.tiny import TinyPairs, kill_at, same, weights

ALL_PLACES = 10**6


def batch(seed: int, *indices: int) -> list[dict]:
    pairs = TinyPairs(seed=seed)
    return [pairs[i] for i in indices]


def sgd(**options):
    network = make_network()
    return {"network": network, "optimizer": torch.optim.SGD(network.parameters(), lr=0.1, **options)}


def learnt(folder, strategy, **options):
    """Return a trainer that has learnt the first task."""
    trainer = make_trainer(folder, strategy, **options)
    trainer.run()
    return trainer


def second_task(trainer, folder, strategy, **options):
    """Return a trainer at the start of the second task, with what the first one left."""
    new = {"dataset": TinyPairs(seed=1), "task": "next", "init_from": trainer.run_directory.path, **options}
    second = make_trainer(folder, strategy, **new)
    restore(second)
    second.strategy.begin_task(second)
    return second


def loss_gradient(trainer, samples) -> dict[str, torch.Tensor]:
    """Return the gradient of the objective alone, by autograd."""
    ready = [trainer.prepare(s) for s in samples]
    loss, _ = trainer.loss_function(trainer.network(stack_pairs(ready)), ready)
    named = dict(trainer.network.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


@pytest.mark.parametrize(
    "strategy", [EWC(samples=2), SI(), LwF(), GPM(samples=2), AGEM(ReservoirMemory(3))], ids=lambda s: type(s).__name__
)
def test_the_first_task_is_plain_training(tmp_path, strategy):
    plain, first = learnt(tmp_path / "plain", Sequential()), learnt(tmp_path / "first", strategy)
    assert same(weights(plain), weights(first))


# -- EWC ---------------------------------------------------------------------------------------------------------------


def squared_gradients(trainer) -> dict[str, torch.Tensor]:
    """Return the mean over all pairs of the squared gradient of one pair's loss, written out."""
    dataset = trainer.data_loader.dataset
    single = [loss_gradient(trainer, [dataset[i]]) for i in range(len(dataset))]
    return {k: torch.stack([g[k] ** 2 for g in single]).mean(0) for k in single[0]}


def test_fisher_is_the_mean_squared_gradient_of_single_pairs(tmp_path):
    trainer = learnt(tmp_path, EWC(samples=100, normalise=False))
    for name, expected in squared_gradients(trainer).items():
        torch.testing.assert_close(trainer.strategy.importance[name], expected, rtol=1e-3, atol=1e-9, msg=name)
    assert same(trainer.strategy.anchor, dict(trainer.network.named_parameters()))


def test_fisher_is_taken_over_so_many_pairs(tmp_path):
    trainer = learnt(tmp_path, EWC(samples=3))
    assert trainer.passes == 4 * 2 + 3


def test_normalised_importance_has_mean_one_and_the_shape_of_the_fisher(tmp_path):
    trainer = learnt(tmp_path, EWC(samples=100))
    importance = torch.cat([v.flatten() for v in trainer.strategy.importance.values()])
    fisher = torch.cat([v.flatten() for v in squared_gradients(trainer).values()])
    assert float(importance.mean()) == pytest.approx(1.0, rel=1e-5)
    torch.testing.assert_close(importance, fisher / fisher.mean(), rtol=1e-3, atol=1e-6)


def test_a_weight_without_gradient_has_no_importance(tmp_path):
    network = make_network()
    network.unused = torch.nn.Parameter(torch.ones(3))
    trainer = learnt(
        tmp_path, EWC(samples=2), network=network, optimizer=torch.optim.Adam(network.parameters(), lr=1e-3)
    )
    assert trainer.strategy.importance["unused"].tolist() == [0, 0, 0]


def test_penalty_is_zero_at_the_old_weights_and_pulls_back_by_importance(tmp_path):
    first = learnt(tmp_path / "first", EWC(samples=6, normalise=False), **sgd())
    trainer = second_task(first, tmp_path / "second", EWC(strength=1e5), **sgd())
    strategy = trainer.strategy
    start, gradient = weights(trainer), loss_gradient(trainer, batch(1, 0, 1))
    assert strategy.step(trainer, batch(1, 0, 1))["penalty"] == 0
    for name, value in weights(trainer).items():
        torch.testing.assert_close(value, start[name] - 0.1 * gradient[name], rtol=1e-4, atol=1e-7, msg=name)
    away, gradient = weights(trainer), loss_gradient(trainer, batch(1, 2, 3))
    penalty = strategy.step(trainer, batch(1, 2, 3))["penalty"]
    pulls = {k: 1e5 * strategy.importance[k] * (away[k] - start[k]) for k in away}
    assert float(penalty) == pytest.approx(float(sum((pulls[k] * (away[k] - start[k])).sum() for k in away)) / 2)
    assert max(float(p.abs().max()) for p in pulls.values()) > 1e-3
    for name, value in weights(trainer).items():
        expected = away[name] - 0.1 * (gradient[name] + pulls[name])
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6, msg=name)


def test_importance_of_the_past_decays_and_the_anchor_moves_on(tmp_path):
    first = learnt(tmp_path / "first", EWC(samples=100))
    second = second_task(first, tmp_path / "second", EWC(decay=0.5, samples=100, normalise=False))
    second.strategy.end_task(second)  # the weights are still those of the first task
    new = squared_gradients(second)
    for name, old in first.strategy.importance.items():
        expected = 0.5 * old + new[name]
        torch.testing.assert_close(second.strategy.importance[name], expected, rtol=1e-3, atol=1e-7, msg=name)


@pytest.mark.parametrize("make", [lambda s: EWC(strength=s, samples=4), lambda s: SI(strength=s)], ids=["EWC", "SI"])
def test_strength_keeps_important_weights_near(tmp_path, make):
    first = learnt(tmp_path / "first", make(0.0))
    distances = []
    for strength in (0.0, 1e4):
        second = second_task(first, tmp_path / str(strength), make(strength))
        second.run()
        moved = {k: (w - weights(first)[k]) ** 2 for k, w in weights(second).items()}
        importance = first.strategy.importance
        distances.append(float(sum((importance[k] * moved[k]).sum() for k in moved)))
    assert 0 < distances[1] < 0.2 * distances[0]


# -- SI ----------------------------------------------------------------------------------------------------------------


def test_the_path_follows_the_gradient_without_the_penalty(tmp_path):
    first = learnt(tmp_path / "first", SI(), **sgd())
    trainer = second_task(first, tmp_path / "second", SI(strength=20.0), **sgd())
    expected, penalties = {}, []
    for i in (0, 2, 4):
        before, gradient = weights(trainer), loss_gradient(trainer, batch(1, i, i + 1))
        penalties.append(float(trainer.strategy.step(trainer, batch(1, i, i + 1))["penalty"]))
        for name, value in weights(trainer).items():
            expected[name] = expected.get(name, 0) - gradient[name] * (value - before[name])
    assert penalties[0] == 0
    assert min(penalties[1:]) > 0
    for name, value in expected.items():
        torch.testing.assert_close(trainer.strategy.path[name], value, rtol=1e-3, atol=1e-8, msg=name)


def test_the_path_is_the_loss_that_training_took_off(tmp_path):
    """Many small steps on one pair: the paths of all weights add up to the decrease of the loss."""
    network = make_network()
    trainer = make_trainer(
        tmp_path, SI(), network=network, optimizer=torch.optim.SGD(network.parameters(), lr=0.2), epoch_length=1
    )
    trainer.strategy.begin_task(trainer)
    pair = [TinyPairs()[0]]
    losses = [float(trainer.strategy.step(trainer, pair)["loss"]) for _ in range(41)]
    path = sum(float(p.sum()) for p in trainer.strategy.path.values())
    assert losses[0] - losses[-1] > 0.003
    assert path == pytest.approx(losses[0] - losses[-1], rel=0.1)


def test_importance_is_the_path_over_the_way_and_sums_over_tasks(tmp_path):
    start = make_network().state_dict()
    trainer = make_trainer(tmp_path, SI(damping=0.01))
    trainer.strategy.begin_task(trainer)
    trainer.strategy.step(trainer, batch(0, 0, 1))
    path, importance = dict(trainer.strategy.path), {}
    for _ in range(2):
        trainer.strategy.end_task(trainer)
        for name, value in weights(trainer).items():
            way = (value - start[name]) ** 2
            importance[name] = importance.get(name, path[name].clamp_min(0) / (way + 0.01))
            torch.testing.assert_close(trainer.strategy.importance[name], importance[name], msg=name)
        assert all(float(p.abs().max()) == 0 for p in trainer.strategy.path.values())  # the second time adds nothing


# -- starting from weights of another strategy, or of a file -----------------------------------------------------------


def started_from(tmp_path, strategy, source):
    """Return a trainer that has learnt a task from the weights of a sequential run, or from their file alone."""
    if not (tmp_path / "plain").exists():
        learnt(tmp_path / "plain", Sequential())
    start = tmp_path / "plain" if source == "run" else tmp_path / "plain" / "model.pt"
    new = {"dataset": TinyPairs(seed=1), "task": "next", "init_from": start}
    return learnt(tmp_path / f"{type(strategy).__name__}_{source}", strategy, **new)


@pytest.mark.parametrize("source", ["run", "file"])
@pytest.mark.parametrize("strategy", [EWC(samples=2), SI(), GPM(samples=2)], ids=lambda s: type(s).__name__)
def test_who_knows_nothing_of_the_weights_it_starts_from_says_so(tmp_path, capsys, strategy, source):
    said = {"run": "a run of Sequential", "file": "weights alone"}[source]
    strategy = copy.deepcopy(strategy)
    trainer = started_from(tmp_path, strategy, source)
    name = type(strategy).__name__
    assert (
        capsys.readouterr().out.count(f"{said}: {name} knows nothing of what these weights learnt; this task is") == 1
    )
    assert same(weights(trainer), weights(started_from(tmp_path, Sequential(), source)))
    capsys.readouterr()
    second_task(trainer, tmp_path / "after", copy.deepcopy(strategy))
    assert "knows nothing" not in capsys.readouterr().out


@pytest.mark.parametrize("source", ["run", "file"])
def test_lwf_holds_to_the_weights_it_starts_from(tmp_path, capsys, source):
    held = started_from(tmp_path, LwF(), source)
    assert "knows nothing" not in capsys.readouterr().out
    assert not same(weights(held), weights(started_from(tmp_path, Sequential(), source)))
    options = {"dataset": TinyPairs(seed=1), "task": "next", "init_from": tmp_path / "plain" / "model.pt"}
    fresh = make_trainer(tmp_path / "fresh", LwF(), **options)
    restore(fresh)
    assert same(fresh.strategy.state_dict()["teacher"], load_tensors(tmp_path / "plain" / "model.pt"))


def test_a_killed_run_keeps_the_teacher_it_started_from(tmp_path):
    learnt(tmp_path / "plain", Sequential())
    options = {"dataset": TinyPairs(seed=1), "task": "next", "init_from": tmp_path / "plain" / "model.pt"}
    whole = learnt(tmp_path / "whole", LwF(), **options)
    kill_at(make_trainer(tmp_path / "part", LwF(), **options), 3)
    again = learnt(tmp_path / "part", LwF(), **options)
    assert same(weights(whole), weights(again))


# -- LwF ---------------------------------------------------------------------------------------------------------------


def test_distillation_is_nothing_while_the_student_is_the_teacher(tmp_path):
    first = learnt(tmp_path / "first", LwF())
    held = second_task(first, tmp_path / "held", LwF(strength=100.0))
    free = second_task(first, tmp_path / "free", Sequential())
    assert held.strategy.step(held, batch(1, 0, 1))["distillation"] == 0
    free.strategy.step(free, batch(1, 0, 1))
    assert same(weights(held), weights(free))
    parts = held.strategy.step(held, batch(1, 2, 3))
    free.strategy.step(free, batch(1, 2, 3))
    assert parts["distillation"] > 0
    assert not same(weights(held), weights(free))


def test_distillation_is_the_mean_squared_difference_of_velocities(tmp_path):
    first = learnt(tmp_path / "first", LwF())
    trainer = second_task(first, tmp_path / "second", LwF(strength=3.0))
    trainer.strategy.step(trainer, batch(1, 0, 1))
    image = stack_pairs(batch(1, 2, 3))
    with torch.no_grad():
        difference = trainer.network(image) - first.network(image)
    parts = trainer.strategy.step(trainer, batch(1, 2, 3))
    assert float(parts["distillation"]) == pytest.approx(3.0 * float((difference**2).mean()), rel=1e-5)
    plain = trainer.loss_function.extra_repr()
    assert "distillation" not in plain
    assert trainer.passes == 4  # the teacher's forward pass is none of training


def test_distillation_keeps_the_old_velocities(tmp_path):
    first = learnt(tmp_path / "first", LwF())
    image = stack_pairs(batch(1, *range(6)))
    differences = []
    for strength in (0.0, 1e4):
        second = second_task(first, tmp_path / str(strength), LwF(strength))
        second.run()
        with torch.no_grad():
            differences.append(float((second.network(image) - first.network(image)).square().mean()))
    assert 0 < differences[1] < 0.5 * differences[0]


# -- GPM ---------------------------------------------------------------------------------------------------------------


def adam() -> dict:
    """Return what breaks orthogonality when only the gradient is projected: Adam's scaling, and weight decay."""
    network = make_network()
    return {"network": network, "optimizer": torch.optim.Adam(network.parameters(), lr=1e-2, weight_decay=0.1)}


def test_updates_are_orthogonal_to_the_bases_and_the_rest_is_frozen(tmp_path):
    first = learnt(tmp_path / "first", GPM(threshold=0.9, samples=6, patches=100), **adam())
    second = second_task(first, tmp_path / "second", GPM(threshold=0.9, samples=2), **adam())
    bases = dict(second.strategy.bases)
    convolutions = [k for k, w in second.network.named_parameters() if w.ndim > 1]
    assert set(bases) == set(convolutions)
    second.run()
    moved = 0
    for name, value in weights(second).items():
        update = value - weights(first)[name]
        if name not in bases:
            assert torch.equal(value, weights(first)[name]), name
            continue
        rows = update.flatten(1).T if ".enlarge." in name else update.flatten(1)
        assert float((rows @ bases[name]).norm()) <= 1e-4 * float(rows.norm()) + 1e-6, name
        moved += float(update.norm()) > 1e-3
    assert moved >= 5


def first_pairs(seed: int, count: int) -> TinyPairs:
    dataset = TinyPairs(seed)
    dataset.pairs = dataset.pairs[:count]
    return dataset


def test_a_full_basis_keeps_the_old_outputs(tmp_path):
    """One pair leaves the large kernel directions to learn in: old outputs stay, new ones do not."""
    old = {"dataset": first_pairs(0, 1), "batch_size": 1}
    first = learnt(tmp_path / "first", GPM(threshold=1.0, samples=1, patches=ALL_PLACES), **adam(), **old)
    assert first.strategy.bases["down.0.large.conv5.weight"].shape == (250, 64)
    second = second_task(first, tmp_path / "second", GPM(samples=1), max_epochs=6, **adam())
    second.run()
    plain = learnt(tmp_path / "plain", Sequential(), **adam(), **old)
    free = second_task(plain, tmp_path / "free", Sequential(), **adam())
    free.run()
    changes = {}
    for name, trainer in (("gpm", second), ("free", free)):
        for task in (0, 1):
            image = stack_pairs(batch(task, 0))
            with torch.no_grad():
                changes[name, task] = float((trainer.network(image) - first.network(image)).abs().max())
    assert changes["gpm", 0] < 1e-7
    assert changes["gpm", 1] > 1e-4
    assert changes["free", 0] > 1e-3


def test_bases_grow_with_the_tasks_and_hold_the_earlier_ones(tmp_path):
    first = learnt(tmp_path / "first", GPM(threshold=0.9, threshold_step=0.1, samples=6, patches=50))
    second = second_task(first, tmp_path / "second", GPM(threshold=0.9, threshold_step=0.1, samples=6, patches=50))
    second.run()
    grown = 0
    for name, old in first.strategy.bases.items():
        new = second.strategy.bases[name]
        torch.testing.assert_close(new @ (new.T @ old), old, rtol=0, atol=1e-4, msg=name)
        grown += new.shape[1] > old.shape[1]
        # The threshold is now 1: the basis is full, or spans all that was seen.
        assert new.shape[1] >= min(len(new), 6 * 50), name
    assert grown > 5


def test_a_network_with_other_weights_is_refused(tmp_path):
    network = make_network()
    network.linear = torch.nn.Linear(2, 2)
    trainer = make_trainer(tmp_path, GPM(), network=network, optimizer=torch.optim.Adam(network.parameters(), lr=1e-3))
    with pytest.raises(ValueError, match=r"\['linear.weight'\], expected a network of convolutions"):
        trainer.run()


@pytest.mark.parametrize("option", [{"groups": 2}, {"dilation": 2}, {"padding_mode": "reflect", "padding": 1}])
def test_a_convolution_that_has_no_columns_is_refused_before_the_task(tmp_path, option):
    network = torch.nn.Sequential(torch.nn.Conv3d(2, 4, 3, **option), torch.nn.Conv3d(4, 3, 1))
    trainer = make_trainer(tmp_path, GPM(), network=network, optimizer=torch.optim.Adam(network.parameters(), lr=1e-3))
    with pytest.raises(ValueError, match="expected a convolution without groups and dilation, padded with zeros"):
        trainer.run()
    assert trainer.passes == 0


def test_plain_convolutions_have_bases_too(tmp_path):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv3d(2, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(4, 3, 1))
    trainer = learnt(
        tmp_path, GPM(samples=2), network=network, optimizer=torch.optim.Adam(network.parameters(), lr=1e-3)
    )
    assert {k: len(v) for k, v in trainer.strategy.bases.items()} == {"0.weight": 54, "2.weight": 4}
