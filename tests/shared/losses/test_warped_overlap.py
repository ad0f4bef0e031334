"""Dice sums of warped maps against warping them with grid_sample, by every kernel and without."""

import pytest
import torch

from shared.losses import SoftDiceLoss, label_probabilities
from shared.losses.warped_overlap import _kernels_take, warped_sums
from shared.warp import warp

pytestmark = pytest.mark.usefixtures("every_backend")


def make(generator, size, out, channels, batch, scale, sigma):
    coarse = torch.randint(0, 2 * channels, (batch, 1, *[-(-n // 4) for n in size]), generator=generator)
    for axis, n in enumerate(size, start=2):
        coarse = coarse.repeat_interleave(4, dim=axis).narrow(axis, 0, n)
    maps = label_probabilities(coarse, range(1, channels + 1), sigma).double()
    field = torch.randn(batch, len(size), *out, generator=generator, dtype=torch.float64) * scale
    return maps, field


def plain(p, p_ddf, q, q_ddf):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARP_BACKEND", "torch")
        p = p if p_ddf is None else warp(p, p_ddf)
        q = q if q_ddf is None else warp(q, q_ddf)
    dims = tuple(range(2, p.ndim))
    return torch.stack([(p * q).sum(dims), p.square().sum(dims) + q.square().sum(dims)])


CASES = [
    # maps, grid, channels, batch
    ((12, 18, 35), (12, 18, 35), 3, 1),
    ((9, 10, 11), (17, 8, 20), 70, 2),
    ((20, 37), (20, 37), 5, 2),
    ((2, 2, 2), (3, 3, 3), 1, 1),
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scale", [0.8, 9.0])
@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_sums_and_gradients_are_those_of_warped_maps(generator, every_backend, case, scale, sigma):
    size, out, channels, batch = case
    if every_backend == "triton":
        if (scale > 1) == (sigma > 0):
            pytest.skip("interpreted voxel by voxel: the other two will do")
        out = tuple(min(n, 6) for n in out)
    (p, u), (q, v) = (make(generator, size, out, channels, batch, scale, sigma) for _ in range(2))
    assert _kernels_take(p, u) == (every_backend != "torch")
    fields = [u.requires_grad_(), v.requires_grad_()]
    expected, found = plain(p, u, q, v), torch.stack(warped_sums(p, u, q, v))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-9)
    upstream = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    wanted = torch.autograd.grad(expected, fields, upstream)
    for value, truth in zip(torch.autograd.grad(found, fields, upstream), wanted, strict=True):
        torch.testing.assert_close(value, truth, rtol=0, atol=1e-11)


@pytest.mark.parametrize("size", [(6, 5, 9), (11, 33)])
def test_maps_that_stand_still(generator, size):
    (p, u), (q, v) = (make(generator, size, size, 4, 2, 1.5, 1.0) for _ in range(2))
    for arguments in ((p, u, q, None), (p, None, q, v), (p, None, q, None)):
        fields = [field.requires_grad_() for field in arguments[1::2] if field is not None]
        expected, found = plain(*arguments), torch.stack(warped_sums(*arguments))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-9)
        if fields:
            truth = torch.autograd.grad(expected[0].sum() - expected[1].sum(), fields)[0]
            value = torch.autograd.grad(found[0].sum() - found[1].sum(), fields)[0]
            torch.testing.assert_close(value, truth, rtol=0, atol=1e-11)


def test_loss_is_that_of_warped_maps_in_single_precision(generator):
    (p, u), (q, v) = (make(generator, (10, 9, 20), (10, 9, 20), 6, 1, 1.0, 1.0) for _ in range(2))
    expected = SoftDiceLoss()(warp(p, u), warp(q, v))
    found = SoftDiceLoss().warped(p.float(), u.float(), q.float(), v.float())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_maps_with_a_gradient_are_warped(generator):
    p, u = make(generator, (6, 7, 8), (6, 7, 8), 2, 1, 1.0, 1.0)
    p.requires_grad_()
    SoftDiceLoss().warped(p, u, p.detach().flip(1), None).backward()
    assert float(p.grad.abs().sum()) > 0


def test_misfits_are_told():
    p = torch.rand(1, 2, 4, 5, 6)
    with pytest.raises(ValueError, match="must have one shape"):
        warped_sums(p, None, p[:, :1], None)


def test_sums_are_the_same_bits_for_any_number_of_threads(generator, every_backend):
    if every_backend != "compiled":
        pytest.skip("a property of the compiled kernels")
    (p, u), (q, v) = (make(generator, (24, 30, 33), (24, 30, 33), 5, 1, 2.0, 1.0) for _ in range(2))
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(torch.stack(warped_sums(p.float(), u.float(), q.float(), v.float())))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_cuda_gives_the_same(generator, case):
    size, out, channels, batch = case
    (p, u), (q, v) = (make(generator, size, out, channels, batch, 2.0, 1.0) for _ in range(2))
    upstream = torch.randn(2, batch, channels, generator=generator, dtype=torch.float64)
    expected = plain(p, u.requires_grad_(), q, v.requires_grad_())
    wanted = torch.autograd.grad(expected, (u, v), upstream)
    moved = [tensor.detach().cuda().requires_grad_(tensor.requires_grad) for tensor in (p, u, q, v)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARP_BACKEND", "compiled")
        assert _kernels_take(*moved[:2])
        first, found = (torch.stack(warped_sums(*moved)) for _ in range(2))
        assert torch.equal(first, found)
        gradients = torch.autograd.grad(found, (moved[1], moved[3]), upstream.cuda())
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-12, atol=1e-9)
    for value, truth in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(value.cpu(), truth, rtol=0, atol=1e-11)
