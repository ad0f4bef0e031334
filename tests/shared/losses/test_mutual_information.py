"""Mutual information against MONAI's loss, by every kernel and without them."""

import pytest
import torch
from monai.losses import GlobalMutualInformationLoss

from shared.losses import MutualInformationLoss
from shared.losses.mutual_information import _kernels_take, joint_histogram

pytestmark = pytest.mark.usefixtures("every_backend")


def pair(generator, shape=(2, 1, 9, 10, 11), dtype=torch.float64):
    x = torch.rand(shape, generator=generator, dtype=torch.float64)
    y = (1.0 - x).square() + 0.05 * torch.randn(shape, generator=generator, dtype=torch.float64)  # also outside [0, 1]
    return x.to(dtype).requires_grad_(), y.to(dtype).requires_grad_()


@pytest.mark.parametrize("bins", [8, 23, 32])
@pytest.mark.parametrize("shape", [(2, 1, 9, 10, 11), (1, 1, 40, 37)])
def test_value_and_both_gradients_are_monai_s(generator, every_backend, bins, shape):
    if every_backend == "triton":
        shape = (*shape[:2], *[min(n, 7) for n in shape[2:]])  # interpreted
    x, y = pair(generator, shape)
    assert _kernels_take(x, 2.0) == (every_backend != "torch")
    expected = GlobalMutualInformationLoss("gaussian", bins)(x, y)
    found = MutualInformationLoss(bins)(x, y)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    wanted = torch.autograd.grad(expected, (x, y))
    for value, truth in zip(torch.autograd.grad(found, (x, y)), wanted, strict=True):
        # MONAI's bin centres are rounded to single precision.
        torch.testing.assert_close(value, truth, rtol=1e-5, atol=1e-5 * float(truth.abs().max()))


def test_single_precision(generator, every_backend):
    x, y = pair(generator, (1, 1, 8, 9, 10) if every_backend == "triton" else (1, 1, 30, 31, 32))
    expected = MutualInformationLoss()(x, y)
    wanted = torch.autograd.grad(expected, (x, y))
    a, b = (image.detach().float().requires_grad_() for image in (x, y))
    found = MutualInformationLoss()(a, b)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    for value, truth in zip(torch.autograd.grad(found, (a, b)), wanted, strict=True):
        torch.testing.assert_close(value.double(), truth, rtol=1e-3, atol=1e-3 * float(truth.abs().max()))


@pytest.mark.parametrize("sigma_ratio", [0.2, 0.5, 1.5])
def test_gradient_by_differences(generator, every_backend, sigma_ratio):
    if every_backend == "triton":
        pytest.skip("too many calls to interpret: MONAI's gradients have been met")
    x, y = (image.detach()[:1, :, :2, :3, :4].clamp(0.01, 0.99).requires_grad_() for image in pair(generator))
    assert torch.autograd.gradcheck(lambda a, b: joint_histogram(a, b, 6, sigma_ratio), (x, y), atol=1e-5)


def test_a_histogram_sums_to_one_and_an_image_tells_most_about_itself(generator):
    x, y = (image.detach() for image in pair(generator))
    torch.testing.assert_close(joint_histogram(x, y).sum(dim=(1, 2)), torch.ones(2, dtype=torch.float64))
    loss = MutualInformationLoss()
    assert float(loss(x, x)) < float(loss(x, y)) < float(loss(x, torch.rand_like(x))) < 0.0


def test_values_that_are_no_numbers_count_as_the_lowest(generator, every_backend):
    if every_backend == "torch":
        pytest.skip("without kernels NaN stays NaN, as in MONAI")
    x, y = (image.detach() for image in pair(generator, (1, 1, 20, 20)))
    x[0, 0, 3] = float("nan")
    assert bool(torch.isfinite(joint_histogram(x, y)).all())


def test_sums_are_the_same_bits_for_any_number_of_threads(generator, every_backend):
    if every_backend != "compiled":
        pytest.skip("a property of the compiled kernels")
    x, y = (image.detach().flatten(1) for image in pair(generator, (2, 1, 50, 50, 40), torch.float32))
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(torch.ops.registration.joint_histogram(x, y, 32, 2.0))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_programs_add_up_to_the_whole_in_several_blocks_of_bins(generator, every_backend, monkeypatch):
    if every_backend != "triton":
        pytest.skip("a property of the Triton kernels")
    from shared.kernels import histogram_triton

    monkeypatch.setattr(histogram_triton, "STRETCH", 32)
    monkeypatch.setattr(histogram_triton, "ROOM", 2 * 70 * 70 * 3)  # asks for twice the stretch
    x, y = (image.detach().flatten(1) for image in pair(generator, (2, 1, 11, 15)))
    found = histogram_triton.joint_histogram(x, y, 70, 2.0)
    assert torch.equal(found, histogram_triton.joint_histogram(x, y, 70, 2.0))
    monkeypatch.setenv("WARP_BACKEND", "torch")
    expected = joint_histogram(x.unsqueeze(1), y.unsqueeze(1), 70) * x.shape[1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


@pytest.mark.gpu
def test_cuda_gives_the_same_and_the_same_bits(generator):
    x, y = pair(generator)
    expected = MutualInformationLoss()(x, y)
    wanted = torch.autograd.grad(expected, (x, y))
    moved = [image.detach().cuda().float().requires_grad_() for image in (x, y)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARP_BACKEND", "compiled")
        assert _kernels_take(moved[0], 2.0)
        found = [MutualInformationLoss()(*moved) for _ in range(2)]
        gradients = torch.autograd.grad(found[0], moved)
    assert torch.equal(*found)
    torch.testing.assert_close(found[0].cpu().double(), expected, rtol=1e-4, atol=1e-6)
    for value, truth in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(value.cpu().double(), truth, rtol=1e-3, atol=1e-3 * float(truth.abs().max()))


def test_misuse_is_told():
    with pytest.raises(ValueError, match="bins must be 2 or more"):
        MutualInformationLoss(1)
    with pytest.raises(ValueError, match="two images of one shape"):
        MutualInformationLoss()(torch.rand(1, 1, 4, 4), torch.rand(1, 1, 4, 5))
