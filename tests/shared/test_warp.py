from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.networks.blocks import Warp
from scipy.ndimage import map_coordinates
from torch.autograd import gradcheck

from shared.fields import identity
from shared.warp import MANY_POINTS, warp, warp_points

pytestmark = pytest.mark.usefixtures("warp_backend")

SIZES = [(7, 9), (8, 10), (5, 7, 9), (6, 7, 8)]


def random_pair(size, generator, batch=1, channels=2, spread=3.0, dtype=torch.float64):
    image = torch.randn(batch, channels, *size, generator=generator, dtype=dtype)
    ddf = spread * torch.randn(batch, len(size), *size, generator=generator, dtype=dtype)
    return image, ddf


def reference(image, ddf, mode, padding_mode):
    position = identity(ddf.shape[2:], dtype=ddf.dtype) + ddf
    grid = [2 * position[:, a] / (n - 1) - 1 for a, n in enumerate(image.shape[2:])]
    return F.grid_sample(image, torch.stack(grid[::-1], -1), mode=mode, padding_mode=padding_mode, align_corners=True)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
@pytest.mark.parametrize("batch", [1, 2])
def test_agrees_with_grid_sample_and_monai(size, mode, padding_mode, batch, generator):
    image, ddf = random_pair(size, generator, batch)
    warped = warp(image, ddf, mode, padding_mode)
    torch.testing.assert_close(warped, reference(image, ddf, mode, padding_mode), rtol=0, atol=1e-12)
    torch.testing.assert_close(warped, Warp(mode, padding_mode)(image, ddf), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_border_agrees_with_scipy(size, generator):
    image, ddf = random_pair(size, generator, channels=1)
    position = (identity(size, dtype=torch.float64) + ddf[0]).numpy()
    expected = map_coordinates(image[0, 0].numpy(), position, order=1, mode="nearest")
    np.testing.assert_allclose(warp(image, ddf, padding_mode="border")[0, 0], expected, atol=1e-12)


def test_pulls_back_along_the_right_axis_and_sign(device):
    image = torch.arange(4.0 * 5 * 6).view(1, 1, 4, 5, 6).to(device)
    ddf = torch.zeros(1, 3, 4, 5, 6, device=device)
    ddf[:, 0] = 1  # the value one voxel further along i is pulled here
    warped = warp(image, ddf)
    torch.testing.assert_close(warped[:, :, :-1], image[:, :, 1:], rtol=0, atol=1e-4)
    assert warped[:, :, -1].abs().max() < 1e-4


def test_zeros_fade_within_one_voxel():
    image = torch.ones(1, 1, 5, 5)
    ddf = torch.zeros(1, 2, 5, 5)
    ddf[:, 1, :, 4] = 0.25
    torch.testing.assert_close(warp(image, ddf)[0, 0, :, 4], torch.full((5,), 0.75))
    torch.testing.assert_close(warp(image, ddf, padding_mode="border"), image)


def test_output_takes_the_fields_size(generator):
    image = torch.randn(1, 2, 5, 6, 7, generator=generator)
    ddf = torch.zeros(1, 3, 8, 3, 4)
    ddf[:, 0] = -2
    warped = warp(image, ddf)
    assert warped.shape == (1, 2, 8, 3, 4)
    torch.testing.assert_close(warped[:, :, 2:7], image[:, :, :, :3, :4], rtol=0, atol=1e-5)
    assert warped[:, :, 7].abs().max() < 1e-5


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("threads", [1, 2])
def test_splitting_over_threads_changes_nothing(size, threads, generator, monkeypatch):
    image, ddf = random_pair(size, generator, dtype=torch.float32)
    results = []
    for count in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count * threads)
        leaves = [t.clone().requires_grad_() for t in (image, ddf)]
        out = warp(*leaves)
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for other in results[1:]:
        assert torch.equal(other[0], results[0][0])
        assert torch.equal(other[2], results[0][2])
        # The image gradient is summed over the parts, in another order.
        torch.testing.assert_close(other[1], results[0][1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(5, 4), (4, 3, 5)])
@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_gradients(size, padding_mode, generator):
    image, ddf = random_pair(size, generator, spread=0.8)
    assert gradcheck(lambda i, u: warp(i, u, padding_mode=padding_mode), (image.requires_grad_(), ddf.requires_grad_()))


@pytest.mark.parametrize("batches", [(1, 3), (3, 1)])
def test_a_batch_of_one_serves_all(batches, generator):
    image = torch.randn(batches[0], 1, 6, 7, generator=generator)
    ddf = torch.randn(batches[1], 2, 6, 7, generator=generator)
    expected = warp(image.expand(3, -1, -1, -1), ddf.expand(3, -1, -1, -1))
    torch.testing.assert_close(warp(image, ddf), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_images_are_warped_in_float32(dtype, device, generator):
    image, ddf = random_pair((6, 40, 8), generator, dtype=torch.float32)
    image, ddf = image.to(device, dtype), ddf.to(device)
    warped = warp(image, ddf)
    assert warped.dtype == dtype
    assert torch.equal(warped, warp(image.float(), ddf).to(dtype))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.int32, torch.int64])
def test_labels_keep_dtype_and_values(dtype, device):
    top = 1 if dtype == torch.bool else min(torch.iinfo(dtype).max, 2**31 - 1)
    label = torch.tensor([[0, top], [top, 0], [top, top]]).to(dtype)[None, None].to(device)
    ddf = torch.zeros(1, 2, 3, 2, device=device)
    ddf[:, 1] = 1
    warped = warp(label, ddf, mode="nearest", padding_mode="border")
    assert warped.dtype == dtype
    assert torch.equal(warped, label[..., 1:].expand(-1, -1, -1, 2))


@pytest.mark.parametrize(("padding_mode", "expected"), [("zeros", 0.75), ("border", 1.0)])
@pytest.mark.parametrize("shift", [-0.25, 0.25])
def test_axis_of_length_one(padding_mode, expected, shift):
    image = torch.ones(1, 1, 1, 4, 5)
    ddf = torch.zeros(1, 3, 1, 4, 5)
    ddf[:, 0] = shift
    torch.testing.assert_close(warp(image, ddf, padding_mode=padding_mode), expected * image)


def test_cuda_agrees_with_cpu(device, generator):
    image, ddf = random_pair((9, 10, 11), generator, dtype=torch.float32)
    here = [t.clone().requires_grad_() for t in (image, ddf)]
    there = [t.to(device).requires_grad_() for t in (image, ddf)]
    a, b = warp(*here), warp(*there)
    torch.testing.assert_close(b.cpu(), a, rtol=1e-4, atol=1e-4)
    for x, y in zip(
        torch.autograd.grad(a.square().sum(), here), torch.autograd.grad(b.square().sum(), there), strict=True
    ):
        torch.testing.assert_close(y.cpu(), x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [(6, 7), (6, 7, 8)])
def test_points_follow_a_linear_field_exactly(size, device, generator):
    d = len(size)
    matrix = 0.1 * torch.randn(d, d, generator=generator, dtype=torch.float64)
    shift = torch.randn(d, generator=generator, dtype=torch.float64)
    ddf = torch.einsum("ab,b...->a...", matrix, identity(size, dtype=torch.float64))
    ddf = (ddf + shift.view(-1, *[1] * d))[None].to(device)
    points = 5 * torch.rand(1, 20, d, generator=generator, dtype=torch.float64)
    moved = warp_points(points.to(device), ddf).cpu()
    torch.testing.assert_close(moved, points + points @ matrix.T + shift)


def test_points_and_image_move_opposite_ways():
    moving = torch.zeros(1, 1, 9, 9, 9)
    moving[..., 6, 4, 3] = 1
    ddf = torch.zeros(1, 3, 9, 9, 9)
    ddf[:, 0], ddf[:, 2] = 2, -1
    fixed_point = (warp(moving, ddf)[0, 0] > 0.5).nonzero().float()[None]
    assert fixed_point.tolist() == [[[4, 4, 4]]]
    torch.testing.assert_close(warp_points(fixed_point, ddf), torch.tensor([[[6.0, 4.0, 3.0]]]))


def test_points_outside_move_with_the_edge():
    ddf = torch.zeros(1, 2, 4, 4)
    ddf[:, 0, -1] = 3
    torch.testing.assert_close(warp_points(torch.tensor([[[10.0, 1.0]]]), ddf), torch.tensor([[[13.0, 1.0]]]))


def test_points_gradients_and_batch(generator):
    ddf = torch.randn(2, 3, 4, 5, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    points = 0.2 + 2.6 * torch.rand(2, 7, 3, generator=generator, dtype=torch.float64)
    assert gradcheck(warp_points, (points.requires_grad_(), ddf), fast_mode=True)
    both = warp_points(points, ddf)
    for b in range(2):
        torch.testing.assert_close(warp_points(points[b : b + 1], ddf[b : b + 1])[0], both[b])


@pytest.mark.parametrize("size", [(6, 7), (6, 7, 8), (1, 7, 8)])
def test_many_points_move_as_each_alone(size, generator):
    d = len(size)
    ddf = torch.randn(1, d, *size, generator=generator)
    points = 12 * torch.rand(1, MANY_POINTS + 5, d, generator=generator) - 2  # some outside
    few = torch.cat([warp_points(part, ddf) for part in points.split(5000, dim=1)], dim=1)
    torch.testing.assert_close(warp_points(points, ddf), few, rtol=0, atol=1e-4)


def test_no_points():
    assert warp_points(torch.zeros(1, 0, 3), torch.zeros(1, 3, 4, 4, 4)).shape == (1, 0, 3)


@pytest.mark.parametrize(
    ("image", "ddf", "options", "message"),
    [
        ((1, 1, 4, 4), (1, 3, 4, 4), {}, r"ddf must be \(B, d, \*S\)"),
        ((1, 1, 4), (1, 1, 4), {}, r"ddf must be \(B, d, \*S\)"),
        ((1, 4, 4), (1, 2, 4, 4), {}, r"image must be \(B, C, \*S\) with 2 spatial dims"),
        ((2, 1, 4, 4), (3, 2, 4, 4), {}, "same batch size or one of them 1, got 2 and 3"),
        ((1, 1, 4, 4), (1, 2, 4, 4), {"mode": "bicubic"}, "mode must be one of"),
        ((1, 1, 4, 4), (1, 2, 4, 4), {"padding_mode": "reflection"}, "padding_mode must be one of"),
    ],
)
def test_errors(image, ddf, options, message):
    with pytest.raises(ValueError, match=message):
        warp(torch.zeros(image), torch.zeros(ddf), **options)


def test_errors_of_dtype():
    with pytest.raises(ValueError, match="ddf must be floating point"):
        warp(torch.zeros(1, 1, 4, 4), torch.zeros(1, 2, 4, 4, dtype=torch.int32))
    with pytest.raises(ValueError, match="can only be warped with mode 'nearest'"):
        warp(torch.zeros(1, 1, 4, 4, dtype=torch.int32), torch.zeros(1, 2, 4, 4))


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (torch.zeros(1, 5, 2), r"shape \(B, N, 3\)"),
        (torch.zeros(5, 3), r"shape \(B, N, 3\)"),
        (torch.zeros(1, 5, 3, dtype=torch.int64), "points must be floating point"),
        (torch.zeros(3, 5, 3), "same batch size or one of them 1, got 3 and 2"),
    ],
)
def test_errors_of_points(points, message):
    with pytest.raises(ValueError, match=message):
        warp_points(points, torch.zeros(2, 3, 4, 4, 4))
