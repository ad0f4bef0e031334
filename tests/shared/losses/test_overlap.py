from __future__ import annotations

import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.autograd import gradcheck

from shared.losses import SoftDiceLoss, label_probabilities, soft_dice

SIZES = [(12, 14), (10, 11, 12)]


def label_map(size, generator, batch=1, top=4):
    return torch.randint(0, top, (batch, 1, *size), generator=generator)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_one_channel_for_each_label_asked(size, dtype, device, generator):
    label = label_map(size, generator, batch=2).to(device, dtype)
    maps = label_probabilities(label, [3, 1], sigma=0)
    assert maps.dtype == torch.float32
    assert torch.equal(maps, torch.cat([label == 3, label == 1], dim=1).float())
    assert torch.equal(label_probabilities(label, torch.tensor([3, 1]), sigma=0), maps)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sigma", [0.6, 1.0, 1.5])
def test_smoothing_agrees_with_scipy(size, sigma, generator):
    label = label_map(size, generator)
    radius = -int(-3 * sigma // 1)
    maps = label_probabilities(label, [2], sigma)
    expected = gaussian_filter((label == 2)[0, 0].double().numpy(), sigma, radius=radius, mode="nearest")
    torch.testing.assert_close(maps[0, 0].double(), torch.from_numpy(expected), rtol=0, atol=1e-6)


def test_all_labels_together_sum_to_one(generator):
    maps = label_probabilities(label_map((9, 9, 9), generator), range(4))
    torch.testing.assert_close(maps.sum(dim=1), torch.ones(1, 9, 9, 9))


@pytest.mark.parametrize("size", SIZES)
def test_dice_of_equal_and_of_disjoint_maps(size, device, generator):
    p = label_probabilities(label_map(size, generator).to(device), [1, 2, 9])
    assert soft_dice(p, p)[0].tolist() == pytest.approx([1, 1, 0], abs=1e-5)
    maps = label_probabilities(label_map(size, generator).to(device), [1, 2], sigma=0)
    assert soft_dice(maps, maps.flip(1))[0].tolist() == [0, 0]


def test_dice_of_half_overlap():
    p, q = torch.zeros(2, 1, 1, 8, 8)
    p[..., :4], q[..., 2:6] = 1, 1
    assert soft_dice(p, q).item() == pytest.approx(0.5)
    # Soft values: 2 * 0.5 / (0.25 + 1)
    assert soft_dice(0.5 * torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4)).item() == pytest.approx(0.8)


def test_every_sample_counts_its_own_labels():
    p, q = torch.zeros(2, 2, 3, 8, 8)
    p[0, 0, :, :4] = q[0, 0, :, :4] = 1  # sample 0: label 0 perfect
    p[0, 1, :, :4], q[0, 1, :, 2:6] = 1, 1  # and label 1 half
    p[1, 2] = 1  # sample 1: label 2 in p only
    assert SoftDiceLoss()(p, q).item() == pytest.approx(((0 + 0.5) / 2 + 1) / 2, abs=1e-5)


def test_pooling_over_the_batch_counts_all_channels():
    p, q = torch.zeros(2, 2, 3, 8, 8)
    p[0, 0] = q[0, 0] = 1
    p[1, 0] = 1  # label 0 pooled: 2 * 64 / (128 + 64) = 2/3; labels 1 and 2 are absent
    assert SoftDiceLoss(pooled=True)(p, q).item() == pytest.approx(1 - (2 / 3) / 3, abs=1e-5)
    assert SoftDiceLoss()(p, q).item() == pytest.approx(0.5, abs=1e-5)


def test_no_label_at_all_costs_nothing_and_has_no_gradient():
    p = torch.zeros(1, 2, 4, 4, requires_grad=True)
    loss = SoftDiceLoss()(p, torch.zeros(1, 2, 4, 4))
    assert loss.item() == 0
    assert torch.autograd.grad(loss, p)[0].abs().max() == 0


@pytest.mark.parametrize("pooled", [False, True])
def test_gradients(pooled, generator):
    p, q = torch.rand(2, 2, 2, 4, 5, generator=generator, dtype=torch.float64)
    assert gradcheck(SoftDiceLoss(pooled), (p.requires_grad_(), q.requires_grad_()))


@pytest.mark.parametrize(
    ("shape", "labels", "sigma", "message"),
    [
        ((1, 2, 5, 5), [1], 1.0, r"label must be \(B, 1, \*S\)"),
        ((1, 1, 5), [1], 1.0, r"label must be \(B, 1, \*S\)"),
        ((1, 1, 5, 5), [], 1.0, "labels must be a 1-D list of at least one value"),
        ((1, 1, 5, 5), [[1, 2]], 1.0, r"labels must be a 1-D list.*got shape \(1, 2\)"),
        ((1, 1, 5, 5), [1], -1.0, "sigma must be 0 or more"),
    ],
)
def test_errors_of_probabilities(shape, labels, sigma, message):
    with pytest.raises(ValueError, match=message):
        label_probabilities(torch.zeros(shape, dtype=torch.int64), labels, sigma)


@pytest.mark.parametrize("call", [soft_dice, SoftDiceLoss(), SoftDiceLoss(pooled=True)])
def test_error_of_shapes(call):
    with pytest.raises(ValueError, match=r"p and q must have one shape \(B, L, \*S\)"):
        call(torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4))
