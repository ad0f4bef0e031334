from __future__ import annotations

import pytest
import torch

from bundles.dccnn_lstm_reg.scripts.objective import SymmetricObjective
from shared.warp import warp
from tests.tiny import TinyPairs

from .tiny import make_network

CPU = torch.device("cpu")


def weights(**only: float) -> dict[str, float]:
    names = ("similarity", "overlap", "landmarks", "smoothness", "folding", "inverse")
    return {name: only.get(name, 0.0) for name in names}


def output_of(ddf: torch.Tensor, inv_ddf: torch.Tensor, scales: int = 1) -> dict:
    """Return what a cascade would, had it found these fields at the finest scale, and nothing at the others."""
    coarse = [
        {"scale": s, "ddf": 0 * ddf[..., :: 2**s, :: 2**s, :: 2**s], "inv_ddf": 0 * ddf[..., :: 2**s, :: 2**s, :: 2**s]}
        for s in reversed(range(1, scales))
    ]
    fine = {"scale": 0, "ddf": ddf, "inv_ddf": inv_ddf}
    fields = {"ddf": ddf, "inv_ddf": inv_ddf}
    return {**fields, "scales": [*coarse, fine], "increments": [ddf], "padding": [0] * 6}


def shifted_pair(shift: int = 2) -> tuple[dict, dict]:
    """Return a sample whose fixed image is the moving one, moved; and the fields that say so."""
    sample = dict(TinyPairs()[0])
    ddf = torch.zeros(1, 3, 8, 8, 8)
    ddf[:, 0] = shift
    for kind in ("image", "label"):
        moving = sample[f"moving_{kind}"]
        sample[f"fixed_{kind}"] = torch.roll(moving, -shift, dims=1)
    sample["fixed_points"] = torch.tensor([[2.0, 3.0, 4.0]])
    sample["moving_points"] = sample["fixed_points"] + torch.tensor([float(shift), 0.0, 0.0])
    return sample, output_of(ddf, -ddf)


@pytest.mark.parametrize("name", ["similarity", "overlap", "landmarks"])
def test_the_true_fields_cost_less_than_none(name):
    sample, truth = shifted_pair()
    objective = SymmetricObjective(**weights(**{name: 1.0}), windows=(3,), label_sigma=0.0)
    none = output_of(*[torch.zeros(1, 3, 8, 8, 8)] * 2)
    found, missed = (objective(o, [objective.prepare(sample, CPU)])[1][name] for o in (truth, none))
    assert found < 0.35 * missed


def test_landmarks_of_both_directions_are_exact():
    sample, truth = shifted_pair()
    objective = SymmetricObjective(**weights(landmarks=1.0))
    assert objective(truth, [objective.prepare(sample, CPU)])[0] == pytest.approx(0.0, abs=1e-6)
    truth["inv_ddf"] = truth["ddf"]
    assert objective(truth, [objective.prepare(sample, CPU)])[0] == pytest.approx((0 + 4) / 2)


def test_exchanging_images_and_fields_changes_nothing():
    sample, truth = shifted_pair()
    swapped = dict(sample)
    for kind in ("image", "label", "mask", "points"):
        swapped[f"fixed_{kind}"], swapped[f"moving_{kind}"] = sample[f"moving_{kind}"], sample[f"fixed_{kind}"]
    back = output_of(truth["inv_ddf"], truth["ddf"])
    objective = SymmetricObjective(windows=(3,))
    there, again = (objective(o, [objective.prepare(s, CPU)])[0] for o, s in ((truth, sample), (back, swapped)))
    assert there == pytest.approx(float(again), abs=1e-6)


def test_inverse_consistency_is_the_squared_residual():
    sample, truth = shifted_pair()
    objective = SymmetricObjective(**weights(inverse=1.0))
    assert objective(truth, [sample])[0] == pytest.approx(0.0, abs=1e-6)
    truth["inv_ddf"] = torch.zeros_like(truth["ddf"])
    assert objective(truth, [sample])[0] == pytest.approx(4.0)


def test_smoothness_counts_fields_and_increments():
    sample, truth = shifted_pair()
    objective = SymmetricObjective(**weights(smoothness=1.0))
    assert objective(truth, [sample])[0] == 0
    ramp = torch.zeros(1, 3, 8, 8, 8)
    ramp[:, 0] = 0.1 * torch.arange(8.0).view(8, 1, 1)
    assert objective(output_of(ramp, 0 * ramp), [sample])[0] == pytest.approx(0.01 / 3 * (1 / 2 + 1))


def test_folding_is_free_until_the_margin():
    sample, truth = shifted_pair()
    objective = SymmetricObjective(**weights(folding=1.0), margin=0.01)
    assert objective(truth, [sample])[0] == 0
    reflection = torch.zeros(1, 3, 8, 8, 8)
    reflection[:, 0] = -2 * torch.arange(8.0).view(8, 1, 1)
    assert objective(output_of(reflection, 0 * reflection), [sample])[0] == pytest.approx(1.01 / 2)


def test_coarser_scales_weigh_less():
    sample, truth = shifted_pair()
    objective = SymmetricObjective(**weights(similarity=1.0), windows=(3,))
    prepared = [objective.prepare(sample, CPU)]
    one = objective(truth, prepared)[0]
    two = objective(output_of(truth["ddf"], truth["inv_ddf"], scales=2), prepared)[0]
    only_coarse = (3 * two - 2 * one) / 1  # the mean of one part fine and half a part coarse
    assert only_coarse > one


def test_what_a_mask_leaves_out_does_not_count():
    sample, truth = shifted_pair()
    objective = SymmetricObjective(**weights(similarity=1.0), windows=(3,))
    sample["fixed_mask"] = sample["fixed_mask"].clone()
    sample["fixed_mask"][:, :, 4:] = 0
    clean = objective(truth, [objective.prepare(sample, CPU)])[0]
    sample["fixed_image"] = sample["fixed_image"].clone()
    sample["fixed_image"][:, :, 6:] = torch.rand(1, 8, 2, 8)  # a window away from what counts
    assert objective(truth, [objective.prepare(sample, CPU)])[0] == pytest.approx(float(clean), abs=1e-6)


def test_blur_makes_the_images_alike():
    sample, _ = shifted_pair()
    still = output_of(*[torch.zeros(1, 3, 8, 8, 8)] * 2)
    objective = SymmetricObjective(**weights(similarity=1.0), windows=(3,))
    sharp = objective(still, [objective.prepare(sample, CPU)])[0]
    objective.blur_sigma = 2.0
    assert objective(still, [objective.prepare(sample, CPU)])[0] != sharp


@pytest.mark.parametrize("options", [{}, {"symmetric": False}, {"path": "midpoint"}, {"finest": 1}])
@pytest.mark.parametrize("metric", ["lncc", "mind"])
def test_every_kind_of_network_and_metric_gets_a_gradient(options, metric):
    network, pairs = make_network(**options), TinyPairs()
    objective = SymmetricObjective(windows=(3,), metric=metric)
    samples = [objective.prepare(pairs[i], CPU) for i in range(2)]
    image = torch.stack([torch.cat([s["moving_image"], s["fixed_image"]]) for s in samples])
    loss, parts = objective(network.fields(image), samples)
    loss.backward()
    assert torch.isfinite(loss)
    assert {"similarity", "overlap", "smoothness", "folding"} <= set(parts)
    assert ("inverse" in parts) == (options.get("symmetric", True))
    assert all(module.head.conv.weight.grad.any() for module in network.corrections)


def test_terms_without_weight_are_not_computed():
    sample, truth = shifted_pair()
    objective = SymmetricObjective(**weights(smoothness=1.0))
    assert set(objective(truth, [objective.prepare(sample, CPU)])[1]) == {"smoothness"}


def test_an_unknown_metric_is_named():
    with pytest.raises(ValueError, match="found metric 'mi', expected lncc or mind"):
        SymmetricObjective(metric="mi")


def test_two_dimensions_take_the_same_path():
    network = make_network(spatial_dims=2)
    ones = torch.ones(1, 12, 12, dtype=torch.uint8)
    image = torch.rand(1, 12, 12, generator=torch.Generator().manual_seed(0))
    sample = {"moving_image": image, "fixed_image": warp(image[None], torch.full((1, 2, 12, 12), 0.5))[0]}
    sample |= {"moving_mask": ones, "fixed_mask": ones}
    objective = SymmetricObjective(windows=(3,))
    loss, _ = objective(
        network.fields(torch.cat([image, sample["fixed_image"]])[None]), [objective.prepare(sample, CPU)]
    )
    loss.backward()
    assert network.corrections[0].head.conv.weight.grad.any()
