"""The objective and the inferer against fields and losses computed apart."""

from __future__ import annotations

import pytest
import torch

from bundles.samcl.scripts.objective import RegistrationObjective, VelocityInferer, half_deformations
from shared.data.pairs import stack_pairs
from shared.fields import compose, exponentiate
from shared.losses import BendingEnergyLoss, LandmarkLoss, LocalNCCLoss, MembraneEnergyLoss
from shared.warp import warp, warp_points

CPU = torch.device("cpu")


def smooth(seed: int, channels: int, size: int = 12, scale: float = 1.0) -> torch.Tensor:
    knots = torch.randn(1, channels, 4, 4, 4, generator=torch.Generator().manual_seed(seed)) * scale
    return torch.nn.functional.interpolate(knots, size=(size,) * 3, mode="trilinear", align_corners=True)


def sample(seed: int = 0, labelled: bool = True) -> dict:
    image = smooth(seed, 2).sigmoid()[0]
    content = {
        "moving_image": image[:1],
        "fixed_image": image[1:],
        "moving_mask": torch.ones(1, 12, 12, 12, dtype=torch.uint8),
        "fixed_mask": torch.ones(1, 12, 12, 12, dtype=torch.uint8),
        "task": "task",
    }
    if labelled:
        content["moving_label"] = (image[:1] > 0.5).to(torch.int16) * 3
        content["fixed_label"] = (image[1:] > 0.5).to(torch.int16) * 3
        content["labels"] = [3]
        points = torch.rand(5, 3, generator=torch.Generator().manual_seed(seed)) * 8 + 2
        content["fixed_points"], content["moving_points"] = points, points + 0.5
    return content


def test_input_is_moving_then_fixed():
    pair = sample()
    stacked = stack_pairs([pair, sample(1)])
    assert stacked.shape == (2, 2, 12, 12, 12)
    assert torch.equal(stacked[0, 0], pair["moving_image"][0])
    assert torch.equal(stacked[0, 1], pair["fixed_image"][0])


def test_inferer_returns_the_squared_half_deformation_and_its_inverse():
    dvf = smooth(1, 3, scale=0.5)
    fields = VelocityInferer(steps=7)(torch.zeros(1, 2, 12, 12, 12), lambda image: dvf)
    torch.testing.assert_close(fields["ddf"], exponentiate(2 * dvf, 8), rtol=0, atol=1e-4)
    inside = (slice(None), slice(None), *[slice(3, -3)] * 3)
    round_trip = compose(fields["ddf"], fields["inv_ddf"])[inside].abs()
    assert round_trip.mean() < 0.05  # a knot every three voxels: linear interpolation leaves that much
    assert fields["ddf"][inside].abs().mean() > 10 * round_trip.mean()


def test_parts_are_the_losses_at_the_midpoint():
    dvf = smooth(2, 3, scale=0.4)
    pair = sample()
    objective = RegistrationObjective(window=5)
    ready = objective.prepare(pair, CPU)
    loss, parts = objective(dvf, [ready])
    half, half_inv = exponentiate(dvf), exponentiate(-dvf)
    moving, fixed = warp(pair["moving_image"][None], half), warp(pair["fixed_image"][None], half_inv)
    ones = torch.ones(1, 1, 12, 12, 12)
    mask = warp(ones, half, mode="nearest") * warp(ones, half_inv, mode="nearest")
    assert 0 < mask.mean() < 1
    expected = {
        "similarity": LocalNCCLoss(5)(moving, fixed, mask),
        "bending": BendingEnergyLoss()(dvf),
        "membrane": MembraneEnergyLoss()(dvf),
    }
    ddf = compose(half, half)
    whole = LandmarkLoss()(pair["fixed_points"][None], pair["moving_points"][None], ddf)
    for name, value in expected.items():
        torch.testing.assert_close(parts[name], value, msg=name)
    torch.testing.assert_close(parts["landmarks"], whole, rtol=0.02, atol=0.01)  # composed on the grid, not pointwise
    torch.testing.assert_close(loss, sum(parts.values()))


def test_weights_scale_and_zero_weights_leave_out():
    dvf, pair = smooth(2, 3, scale=0.4), sample()
    objective = RegistrationObjective(similarity=2.0, overlap=0, landmarks=0, bending=0, membrane=0.5)
    loss, parts = objective(dvf, [objective.prepare(pair, CPU)])
    assert set(parts) == {"similarity", "membrane"}
    torch.testing.assert_close(loss, 2 * parts["similarity"] + 0.5 * parts["membrane"])


def test_labels_count_only_where_a_pair_has_them():
    dvf = smooth(2, 3, scale=0.4).repeat(2, 1, 1, 1, 1)
    objective = RegistrationObjective()
    mixed = [objective.prepare(sample(0), CPU), objective.prepare(sample(1, labelled=False), CPU)]
    _, both = objective(dvf, mixed)
    _, alone = objective(dvf[:1], mixed[:1])
    torch.testing.assert_close(both["overlap"], alone["overlap"])
    torch.testing.assert_close(both["landmarks"], alone["landmarks"])


def test_batch_is_the_mean_of_its_pairs():
    dvf = torch.cat([smooth(3, 3, scale=0.4), smooth(4, 3, scale=0.4)])
    objective = RegistrationObjective()
    ready = [objective.prepare(sample(i), CPU) for i in (0, 1)]
    both, _ = objective(dvf, ready)
    single = [objective(dvf[i : i + 1], ready[i : i + 1])[0] for i in (0, 1)]
    torch.testing.assert_close(both, torch.stack(single).mean())


@pytest.mark.parametrize("metric", ["lncc", "mind", "mi"])
def test_gradient_descent_on_the_velocity_registers(metric):
    target = smooth(5, 3, scale=0.4)
    pair = sample(labelled=False)
    pair["fixed_image"] = warp(pair["moving_image"][None], exponentiate(target), padding_mode="border")[0]
    objective = RegistrationObjective(metric=metric, window=5, bending=0.01, membrane=0.01)
    ready = objective.prepare(pair, CPU)
    dvf = torch.zeros(1, 3, 12, 12, 12, requires_grad=True)
    optimizer = torch.optim.Adam([dvf], lr=0.05)

    def difference() -> float:
        ddf = VelocityInferer()(torch.zeros(1), lambda image: dvf.detach())["ddf"]
        return float((warp(pair["moving_image"][None], ddf)[0] - pair["fixed_image"]).abs()[:, 2:-2, 2:-2, 2:-2].mean())

    before = difference()
    for _ in range(40):
        optimizer.zero_grad()
        objective(dvf, [ready])[0].backward()
        optimizer.step()
    assert difference() < 0.6 * before


def test_half_precision_velocity_is_integrated_in_float32():
    objective = RegistrationObjective()
    loss, _ = objective(smooth(2, 3).bfloat16(), [objective.prepare(sample(), CPU)])
    assert loss.dtype == torch.float32


def test_points_move_as_by_the_whole_deformation():
    dvf = smooth(6, 3, scale=0.4)
    half = exponentiate(dvf)
    points = torch.full((1, 1, 3), 5.0)
    twice = warp_points(warp_points(points, half), half)
    torch.testing.assert_close(twice, warp_points(points, compose(half, half)), rtol=0, atol=0.05)


def test_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="'ssd'"):
        RegistrationObjective(metric="ssd")


def test_coarse_integration_is_close_for_smooth_velocities():
    dvf = smooth(7, 3, size=24, scale=0.8)
    fine, coarse = half_deformations(dvf, 5), half_deformations(dvf, 5, downsize=2)
    for a, b in zip(fine, coarse, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().mean() < 0.1 * a.abs().mean()
