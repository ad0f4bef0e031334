"""The objectives against closed forms on quadratics, finite differences, and the Taylor expansion they come from."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bundles.smdr.scripts.alignment import ParallelAlignment, gradient_product, meta_objective, mixed_halves
from bundles.smdr.scripts.network import SliceUNet

DIMS = 5


class Point(nn.Module):
    """A network that is its weights: ``x * w``."""

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(values.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.w


def quadratic(network, batch) -> torch.Tensor:
    """1/2 (w - c)' H (w - c) for batch (H, c)."""
    hessian, centre = batch
    offset = network(torch.ones_like(centre)) - centre
    return 0.5 * offset @ hessian @ offset


def bowl(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    root = torch.randn(DIMS, DIMS, generator=generator, dtype=torch.float64)
    return root @ root.T / DIMS, torch.randn(DIMS, generator=generator, dtype=torch.float64)


@pytest.fixture
def toy(generator):
    values = torch.randn(DIMS, generator=generator, dtype=torch.float64)
    return Point(values), bowl(generator), bowl(generator)


def slope(batch, at: torch.Tensor) -> torch.Tensor:
    return batch[0] @ (at - batch[1])


def gradient_of(objective: torch.Tensor, network: nn.Module) -> torch.Tensor:
    network.zero_grad()
    objective.backward()
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


@pytest.mark.parametrize("second_order", [False, True])
def test_error_of_the_taylor_expansion_falls_fourfold_when_the_step_halves(toy, second_order):
    network, first, second = toy
    product, _ = gradient_product(quadratic, network, first, second)
    errors = []
    for step in (0.1, 0.05, 0.025):
        _, stepped = meta_objective(quadratic, network, first, second, step, second_order)
        errors.append(float(stepped.detach() - (quadratic(network, second).detach() - step * product)))
    assert abs(errors[0]) > 1e-4
    assert errors[0] / errors[1] == pytest.approx(4, rel=1e-6)
    assert errors[1] / errors[2] == pytest.approx(4, rel=1e-6)


@pytest.mark.parametrize("opposed", [True, False])
def test_opposed_losses_raise_the_objective_and_allied_ones_lower_it(opposed):
    network = Point(torch.zeros(DIMS))
    goal = torch.arange(1.0, DIMS + 1)
    first, second = (torch.eye(DIMS), goal), (torch.eye(DIMS), -goal if opposed else goal)
    plain = quadratic(network, first) + quadratic(network, second)
    aligned = sum(meta_objective(quadratic, network, first, second, 1e-2))
    product, cosine = gradient_product(quadratic, network, first, second)
    assert (aligned > plain) == opposed
    assert (product < 0) == opposed
    assert float(cosine) == pytest.approx(-1.0 if opposed else 1.0)


def test_descent_finds_the_point_where_the_gradients_agree():
    # Two losses that share a valley of minima: only along it do the gradients differ in how they agree.
    first = (torch.diag(torch.tensor([1.0, 0.0])), torch.zeros(2))
    second = (torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), torch.zeros(2))
    found = {}
    for step in (0.0, 0.3):
        network = Point(torch.tensor([1.0, 3.0]))
        loss = sum(meta_objective(quadratic, network, first, second, step))
        moved = network.w.detach() - 0.05 * gradient_of(loss, network)
        network.w.data.copy_(moved)
        found[step] = float(gradient_product(quadratic, network, first, second)[0])
    assert found[0.3] > found[0.0]


@pytest.mark.parametrize("step", [0.0, 0.03, 0.3])
def test_gradients_are_the_documented_formulas(toy, step):
    network, first, second = toy
    at = network.w.detach()
    there = at - step * slope(first, at)
    near, far = slope(first, at), slope(second, there)
    exact = near + far - step * first[0] @ far
    for second_order, expected in ((True, exact), (False, near + far)):
        objective = sum(meta_objective(quadratic, network, first, second, step, second_order))
        torch.testing.assert_close(gradient_of(objective, network), expected)
    assert torch.equal(network.w.detach(), at)


def small_network() -> SliceUNet:
    torch.manual_seed(0)
    return SliceUNet(2, slices=1, widths=(2, 4), residual_units=1).double()


def cross_entropy(network, batch) -> torch.Tensor:
    return nn.functional.cross_entropy(network(batch["image"]), batch["label"])


def image_batch(generator: torch.Generator, count: int = 2) -> dict[str, torch.Tensor]:
    image = torch.rand(count, 1, 8, 8, generator=generator, dtype=torch.float64)
    return {"image": image, "label": (image[:, 0] > 0.6).long()}


def arithmetic(work) -> int:
    """Return the operations of matrix products and convolutions, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def test_no_batch_is_sent_backward_twice(generator):
    network = small_network()
    first, second = image_batch(generator), image_batch(generator)

    def plain() -> None:
        (cross_entropy(network, first) + cross_entropy(network, second)).backward()

    def aligned(second_order: bool) -> None:
        sum(meta_objective(cross_entropy, network, first, second, 0.1, second_order)).backward()

    assert arithmetic(lambda: aligned(False)) == arithmetic(plain)
    assert 1.5 < arithmetic(lambda: aligned(True)) / arithmetic(plain) < 2.2


def test_gradient_of_the_first_loss_is_that_of_the_loss_itself(generator):
    network = small_network()
    first, second = image_batch(generator), image_batch(generator)
    expected = gradient_of(cross_entropy(network, first), network)
    for second_order in (False, True):
        value, _ = meta_objective(cross_entropy, network, first, second, 0.1, second_order)
        assert float(value.detach()) == float(cross_entropy(network, first).detach())
        torch.testing.assert_close(gradient_of(3 * value, network), 3 * expected, rtol=1e-12, atol=1e-15)


def test_second_order_gradient_of_a_network_agrees_with_finite_differences(generator):
    network = small_network()
    first, second = image_batch(generator), image_batch(generator)

    def objective(second_order: bool) -> torch.Tensor:
        return sum(meta_objective(cross_entropy, network, first, second, 0.5, second_order))

    exact, cheap = (gradient_of(objective(order), network) for order in (True, False))
    parameters = list(network.parameters())
    direction = torch.randn(len(exact), generator=generator, dtype=torch.float64)
    values = []
    start = nn.utils.parameters_to_vector(parameters).detach()
    for sign in (1, -1):
        nn.utils.vector_to_parameters(start + sign * 1e-5 * direction, parameters)
        values.append(float(objective(True)))
    difference = (values[0] - values[1]) / 2e-5
    assert float(exact @ direction) == pytest.approx(difference, rel=1e-5)
    assert float(cheap @ direction) != pytest.approx(difference, rel=1e-3)


@pytest.mark.parametrize("second_order", [False, True])
def test_frozen_and_unused_parameters_neither_move_nor_matter(generator, second_order):
    network = small_network()
    network.register_parameter("unused", nn.Parameter(torch.ones(1, dtype=torch.float64)))
    frozen = next(network.parameters())
    frozen.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    batches = image_batch(generator), image_batch(generator)
    sum(meta_objective(cross_entropy, network, *batches, 0.1, second_order)).backward()
    assert frozen.grad is None
    assert network.unused.grad is None
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad and p is not network.unused)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("second_order", [False, True])
def test_every_pass_updates_running_statistics_of_the_module(generator, second_order):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3, padding=2)).double()
    first, second = image_batch(generator), image_batch(generator)
    twin = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).double()
    twin.load_state_dict({k: v for k, v in network.state_dict().items() if k[0] in "01"})
    objective = sum(meta_objective(cross_entropy, network, first, second, 1e-9, second_order))
    objective.backward()
    for batch in (first, second):
        twin(batch["image"])
    torch.testing.assert_close(dict(network[1].named_buffers()), dict(twin[1].named_buffers()))
    assert network[1].num_batches_tracked == 2
    assert torch.isfinite(network[0].weight.grad).all()


def test_a_network_in_evaluation_keeps_its_running_statistics(generator):
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).double().eval()
    sum(meta_objective(cross_entropy, network, image_batch(generator), image_batch(generator), 0.1)).backward()
    assert network[1].num_batches_tracked == 0
    assert network[1].running_mean.eq(0).all()


@pytest.mark.parametrize(("current", "replay"), [(4, 4), (3, 3), (1, 1), (2, 5), (1, 2)])
def test_halves_hold_the_pool_once_and_half_of_either_batch(generator, current, replay):
    pool = (
        {"x": torch.arange(current), "site": ["now"] * current},
        {"x": torch.arange(100, 100 + replay), "site": ["then"] * replay},
    )
    splits = set()
    for _ in range(20):
        halves = mixed_halves(*pool, generator)
        values = [half["x"].tolist() for half in halves]
        assert sorted(values[0] + values[1]) == [*range(current), *range(100, 100 + replay)]
        for half, numbers in zip(halves, values, strict=True):
            assert half["site"] == ["then" if n >= 100 else "now" for n in numbers]
            assert sum(n < 100 for n in numbers) in (current // 2, (current + 1) // 2)
            assert sum(n >= 100 for n in numbers) in (replay // 2, (replay + 1) // 2)
        assert abs(len(values[0]) - len(values[1])) <= 1
        splits.add(tuple(sorted(values[0])))
    assert len(splits) > 1


@pytest.mark.parametrize("form", ["tensor", "list", "tuple"])
def test_batches_of_every_form_are_split(generator, form):
    x = torch.arange(4.0)
    batch = {"tensor": x, "list": [{"x": v} for v in x], "tuple": (x, x + 1)}[form]
    first, second = mixed_halves(batch, None, generator)
    parts = [first, second] if form == "tensor" else [first[0], second[0]] if form == "tuple" else None
    if parts is None:
        parts = [torch.stack([s["x"] for s in half]) for half in (first, second)]
    if form == "tuple":
        assert torch.equal(first[1], first[0] + 1)
    assert torch.cat(parts).sort().values.equal(x)


def test_the_same_generator_gives_the_same_halves():
    batch = torch.arange(10)
    first, again = (mixed_halves(batch, batch + 10, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_single_sample_cannot_be_split():
    with pytest.raises(ValueError, match="found a single sample, expected at least two"):
        mixed_halves(torch.ones(1), None)


def test_parallel_objective_is_the_weighted_sum_of_its_parts(generator):
    network = small_network()
    current, replay = image_batch(generator, 4), image_batch(generator, 4)
    alignment = ParallelAlignment(step=0.2, orientational=0.5, arbitrary=2.0)
    total, parts = alignment(cross_entropy, network, current, replay, torch.Generator().manual_seed(1))
    halves = mixed_halves(current, replay, torch.Generator().manual_seed(1))
    oriented = meta_objective(cross_entropy, network, current, replay, 0.2)
    arbitrary = meta_objective(cross_entropy, network, *halves, 0.2)
    torch.testing.assert_close(total, 0.5 * sum(oriented) + 2.0 * sum(arbitrary))
    assert list(parts) == ["current", "replay", "first", "second"]
    assert not any(value.requires_grad for value in parts.values())
    torch.testing.assert_close(list(parts.values()), [v.detach() for v in (*oriented, *arbitrary)])


@pytest.mark.parametrize("exact", ["orientational", "arbitrary"])
def test_each_part_has_its_own_order(generator, exact):
    network = small_network()
    current, replay = image_batch(generator, 4), image_batch(generator, 4)
    orders = {f"second_order_{part}": part == exact for part in ("orientational", "arbitrary")}

    def gradient(**weights: float) -> torch.Tensor:
        alignment = ParallelAlignment(0.5, **orders, **weights)
        total, _ = alignment(cross_entropy, network, current, replay, torch.Generator().manual_seed(1))
        return gradient_of(total, network)

    halves = mixed_halves(current, replay, torch.Generator().manual_seed(1))
    for part, batches in (("orientational", (current, replay)), ("arbitrary", halves)):
        other = "arbitrary" if part == "orientational" else "orientational"
        expected = gradient_of(sum(meta_objective(cross_entropy, network, *batches, 0.5, part == exact)), network)
        torch.testing.assert_close(gradient(**{part: 1.0, other: 0.0}), expected)


def test_without_replay_the_orientational_part_is_the_current_loss(generator):
    network = small_network()
    current = image_batch(generator, 4)
    total, parts = ParallelAlignment(arbitrary=0.0)(cross_entropy, network, current)
    torch.testing.assert_close(total, cross_entropy(network, current))
    assert list(parts) == ["current"]
    _, parts = ParallelAlignment()(cross_entropy, network, current, None, generator)
    assert list(parts) == ["current", "first", "second"]


def test_step_zero_is_replay_without_alignment(generator):
    network = small_network()
    current, replay = image_batch(generator), image_batch(generator)
    total, _ = ParallelAlignment(step=0.0, arbitrary=0.0)(cross_entropy, network, current, replay)
    plain = cross_entropy(network, current) + cross_entropy(network, replay)
    torch.testing.assert_close(gradient_of(total, network), gradient_of(plain, network))


@pytest.mark.parametrize(
    "options", [{"step": -1.0}, {"orientational": -1.0}, {"arbitrary": -0.5}, {"orientational": 0.0, "arbitrary": 0.0}]
)
def test_bad_weights_are_named(options):
    with pytest.raises(ValueError, match=r"found step .*, expected none below 0 and one of the weights above"):
        ParallelAlignment(**options)


def test_a_network_with_nothing_to_learn_is_refused(generator):
    network = small_network().requires_grad_(False)
    with pytest.raises(ValueError, match="without a parameter that requires a gradient"):
        meta_objective(cross_entropy, network, image_batch(generator), image_batch(generator), 0.1)
    with pytest.raises(ValueError, match="found step -1"):
        meta_objective(cross_entropy, network, image_batch(generator), image_batch(generator), -1)
