from __future__ import annotations

import pytest
import torch

from shared.fields import compose
from shared.losses import SoftDiceLoss
from shared.optimise.forces import MINDSSC, LocalNCC, MutualInformation, Similarity, slopes
from shared.optimise.terms import LandmarkPull, SoftDice
from shared.smoothing import gaussian_smooth
from tests.shared.optimise.scenes import picture, smooth_field

SIZES = [(60, 56), (32, 30, 28)]


def similarity(kind, size, margin=2):
    fixed, moving = picture(size, seed=3, room=0.3), picture(size, seed=4, room=0.3)
    d = len(size)
    wide = torch.nn.functional.pad(moving, [margin] * (2 * d), mode="replicate")
    weight = torch.nn.functional.pad(torch.ones_like(moving), [margin] * (2 * d))
    # Slopes are central differences, which are those of the linear interpolation where the image is smooth.
    return kind(
        gaussian_smooth(fixed, 2.0), gaussian_smooth(wide, 2.0), torch.ones_like(fixed), weight, margin=[margin] * d
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [LocalNCC, MINDSSC, MutualInformation, SoftDice])
def test_gradient_is_the_slope_of_the_loss_along_a_step(kind, size):
    loss = similarity(kind, size)
    ddf = smooth_field(size, 1.5, seed=5)
    _, gradient = loss(ddf)
    # Uphill, and to the side as well: any other step would change the loss by next to nothing.
    step = gaussian_smooth(gradient, 2.0)
    step = step / torch.linalg.vector_norm(step, dim=1).max() + smooth_field(size, 0.2, seed=6)
    predicted = float((gradient * step).sum())
    eps = 0.02
    ahead, behind = (float(loss(compose(ddf, step * s))[0]) for s in (eps, -eps))
    measured = (ahead - behind) / (2 * eps)
    assert predicted == pytest.approx(measured, rel=0.12)


def test_gradient_of_mutual_information_to_the_image_is_that_of_autograd():
    loss = similarity(MutualInformation, (22, 20, 18))
    image, weight = loss.warped(smooth_field((22, 20, 18), 1.5, seed=5))
    image, loss.fixed_kernel = image.double(), loss.fixed_kernel.double()
    leaf = image.clone().requires_grad_()
    value, _ = loss.information(leaf, weight.double())
    value.backward()
    _, ours = loss.information(image, weight.double())
    torch.testing.assert_close(ours, leaf.grad, rtol=1e-3, atol=1e-9)


def test_soft_dice_is_the_loss_of_the_same_name():
    p, q = torch.rand(1, 3, 8, 7, 6), torch.rand(1, 3, 8, 7, 6)
    q[:, 2] = p[:, 2] = 0  # a label in neither counts for nothing
    one = torch.ones(1, 1, 8, 7, 6)
    value, _ = SoftDice(q, p, one, one, margin=[0, 0, 0])(torch.zeros(1, 3, 8, 7, 6))
    torch.testing.assert_close(value, SoftDiceLoss()(p, q), atol=1e-5, rtol=0)


def test_a_voxel_weighs_what_both_masks_and_the_field_of_view_leave_of_it():
    fixed_weight = torch.zeros(1, 1, 6, 6)
    fixed_weight[..., :4, :] = 1
    moving_weight = torch.ones(1, 1, 8, 8)
    moving_weight[..., 0, :] = 0  # the margin
    image = torch.rand(1, 1, 6, 6)
    loss = Similarity(image, torch.rand(1, 1, 8, 8), fixed_weight, moving_weight, margin=[1, 1])
    shift = torch.zeros(1, 2, 6, 6)
    shift[:, 0] = -1.0
    _, weight = loss.warped(shift)
    assert weight[0, 0, :, 2].tolist() == pytest.approx([0, 1, 1, 1, 0, 0])


def test_surroundings_are_the_moving_image_around_the_fixed_lattice():
    moving = torch.arange(10.0).expand(1, 1, 10, 10)
    loss = Similarity(torch.zeros(1, 1, 6, 6), moving, torch.ones(1, 1, 6, 6), torch.ones(1, 1, 10, 10), margin=[2, 2])
    assert loss.surroundings(1)[0][0, 0, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert loss.surroundings(3)[0][0, 0, 0].tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9]


def test_slopes_are_central_differences():
    image = torch.arange(5.0)[:, None].square().expand(1, 1, 5, 4)
    along, across = slopes(image)
    assert along[0, 0, :, 0].tolist() == [0, 2, 4, 6, 0]
    assert not across.any()


def test_landmarks_are_pulled_to_their_places_and_far_ones_as_strongly():
    fixed = torch.tensor([[5.0, 5.0], [20.3, 21.6], [40.0, 1.0]])
    moving = fixed + torch.tensor([[3.0, 0.0], [0.0, -2.0], [9.0, 9.0]])  # the last lies outside the lattice
    pull = LandmarkPull(fixed, moving, (32, 32), sigma=2.0)
    ddf = torch.zeros(1, 2, 32, 32)
    first = pull(ddf)
    assert first[0, :, 5, 5].tolist() == pytest.approx([3.0, 0.0], abs=0.3)
    assert first[0, :, 20, 22].tolist() == pytest.approx([0.0, -2.0], abs=0.3)
    assert float(first[0, :, 5, 28].abs().max()) == 0.0
    for _ in range(40):
        ddf = ddf + 0.2 * pull(ddf)
    assert float(pull.distance(ddf)[:2].abs().max()) < 0.05
