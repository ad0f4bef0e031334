"""The Triton kernels against grid_sample in float64: on a GPU, elsewhere interpreted on the CPU."""

import pytest
import torch
import torch.nn.functional as F

from shared.fields import identity

pytest.importorskip("triton", reason="no Triton")

from shared.kernels import warp_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [  # image, output, channels, image batch, field batch
    ((5, 6, 7), (5, 6, 7), 1, 1, 1),
    ((4, 3, 5), (6, 2, 9), 2, 1, 2),
    ((7, 9), (8, 6), 2, 2, 1),
    ((2, 2, 2), (3, 3, 3), 1, 1, 1),
]


def make(shape, scale, dtype=torch.float64):
    size, out, channels, image_batch, field_batch = shape
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(image_batch, channels, *size, generator=generator, dtype=torch.float64)
    field = torch.randn(field_batch, len(size), *out, generator=generator, dtype=torch.float64) * scale
    return image.to(DEVICE, dtype), field.to(DEVICE, dtype)


def reference(image, field, mode, padding_mode):
    position = identity(field.shape[2:], dtype=field.dtype, device=field.device) + field
    grid = torch.stack([2 * position[:, a] / (n - 1) - 1 for a, n in enumerate(image.shape[2:])][::-1], -1)
    batch = max(len(image), len(field))
    image, grid = image.expand(batch, *image.shape[1:]), grid.expand(batch, *grid.shape[1:])
    return F.grid_sample(image, grid, mode=mode, padding_mode=padding_mode, align_corners=True)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
@pytest.mark.parametrize("scale", [0.7, 6.0])
def test_linear_sampling_and_both_gradients(shape, padding_mode, scale):
    image, field = (tensor.requires_grad_() for tensor in make(shape, scale))
    border = padding_mode == "border"
    expected = reference(image, field, "bilinear", padding_mode)
    grad = torch.randn_like(expected)
    to_image, to_field = torch.autograd.grad(expected, (image, field), grad)
    image, field = image.detach(), field.detach()
    for found, truth in (
        (warp_triton.sample(image, field, False, border, False), expected.detach()),
        (warp_triton.image_adjoint(grad, image, field, False, border), to_image),
        (warp_triton.field_adjoint(grad, image, field, border), to_field),
    ):
        torch.testing.assert_close(found, truth, rtol=0, atol=1e-11)


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
@pytest.mark.parametrize("shape", SHAPES[1:3])
def test_nearest(shape, padding_mode):
    image, field = make(shape, 3.0)
    found = warp_triton.sample(image, field, True, padding_mode == "border", False)
    assert torch.equal(found, reference(image, field, "nearest", padding_mode))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_images_keep_the_field_s_precision(dtype):
    image, field = make(SHAPES[0], 1.5, torch.float32)
    half = image.to(dtype)
    found = warp_triton.sample(half, field, False, False, False)
    expected = reference(half.double(), field.double(), "bilinear", "zeros")
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected.to(dtype).double(), rtol=torch.finfo(dtype).eps, atol=1e-6)
    grad = torch.ones_like(half)
    assert warp_triton.image_adjoint(grad, half, field, False, False).dtype == dtype


def test_the_field_is_added():
    _, outer = make(((5, 4, 6), (5, 4, 6), 3, 1, 1), 1.0)
    _, inner = make(((5, 4, 6), (5, 4, 6), 3, 1, 1), 0.5)
    found = warp_triton.sample(outer, inner, False, True, True)
    torch.testing.assert_close(found, inner + reference(outer, inner, "bilinear", "border"), rtol=0, atol=1e-12)


def test_positions_that_are_no_numbers_or_far_away_give_padding():
    image, field = torch.ones(1, 1, 4, 4, 4, device=DEVICE), torch.zeros(1, 3, 4, 4, 4, device=DEVICE)
    field[0, 0, 0], field[0, 1, 1], field[0, 2, 2] = float("nan"), float("inf"), -1e30
    found = warp_triton.sample(image, field, False, False, False)
    assert bool((found[0, 0, :3] == 0).all())
    assert bool((found[0, 0, 3] == 1).all())


@pytest.mark.gpu
def test_the_operator_on_cuda():
    from shared.kernels import warp_backend
    from shared.warp import warp

    assert warp_backend("cuda").name == "triton"
    image, field = (tensor.requires_grad_() for tensor in make(SHAPES[1], 1.0))
    torch.library.opcheck(torch.ops.registration.warp.default, (image, field, False, False, False))
    expected = reference(image, field, "bilinear", "zeros")
    torch.testing.assert_close(warp(image, field), expected, rtol=0, atol=1e-11)
