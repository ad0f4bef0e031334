from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import fields
from shared.fields import compose, derivative, exponentiate, identity, invert, jacobian_determinant, length, resize
from shared.warp import warp

pytestmark = pytest.mark.usefixtures("warp_backend")


def linear(matrix, size, dtype=torch.float64):
    """Field of the map that turns and stretches about the middle of the grid."""
    matrix = torch.as_tensor(matrix, dtype=dtype)
    d = len(size)
    centre = torch.tensor([(n - 1) / 2 for n in size], dtype=dtype).view(-1, *[1] * d)
    offset = identity(size, dtype=dtype) - centre
    return (torch.einsum("ab,b...->a...", matrix, offset) - offset)[None]


def smooth(size, generator, amplitude=2.0, batch=1):
    coarse = amplitude * torch.randn(batch, len(size), *[5] * len(size), generator=generator, dtype=torch.float64)
    mode = "bilinear" if len(size) == 2 else "trilinear"
    field = F.interpolate(coarse, size=size, mode=mode, align_corners=True)
    blur = torch.ones(len(size), 1, *[5] * len(size), dtype=torch.float64) / 5 ** len(size)
    conv = F.conv2d if len(size) == 2 else F.conv3d
    return conv(F.pad(field, [2] * (2 * len(size)), mode="replicate"), blur, groups=len(size))


def rotation(degrees):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [[c, -s], [s, c]]


def interior(field, width):
    return field[(..., *[slice(width, -width)] * (field.ndim - 2))]


def longest(field):
    return torch.linalg.vector_norm(field, dim=1).max().item()


SIZES = [(24, 28), (20, 22, 24)]


def test_identity_counts_voxels(device):
    grid = identity((3, 4, 5), device=device)
    assert grid.dtype == torch.get_default_dtype()
    assert grid.shape == (3, 3, 4, 5)
    assert grid[:, 2, 1, 4].tolist() == [2, 1, 4]
    assert identity((3, 4), dtype=torch.float64).dtype == torch.float64


def test_composition_of_translations_adds():
    inner, outer = torch.zeros(2, 1, 3, 6, 7, 8)
    inner[:, 0], outer[:, 2] = 1.5, -0.5
    torch.testing.assert_close(compose(outer, inner), inner + outer)


def test_composition_applies_the_inner_map_first():
    size = (33, 33)
    turn, stretch = torch.tensor(rotation(90.0)).double(), torch.diag(torch.tensor([0.5, 1.0])).double()
    composed = compose(linear(turn, size), linear(stretch, size))
    torch.testing.assert_close(composed, linear(turn @ stretch, size), atol=1e-10, rtol=0)
    assert longest(composed - linear(stretch @ turn, size)) > 1


def test_composition_equals_two_warps(generator):
    size = (40, 44)
    image = smooth(size, generator)[:, :1]
    first, second = smooth(size, generator, 2.0), smooth(size, generator, 2.0)
    twice = warp(warp(image, first, padding_mode="border"), second, padding_mode="border")
    once = warp(image, compose(first, second), padding_mode="border")
    assert (interior(twice - once, 6)).abs().max() < 0.1
    assert (interior(warp(image, first + second) - once, 6)).abs().max() > 0.2


def test_padding_of_the_outer_field():
    shift = torch.zeros(1, 2, 5, 5)
    shift[:, 0] = 1
    assert compose(shift, 4 * shift)[0, 0, -1].tolist() == pytest.approx([5.0] * 5)
    assert compose(shift, 4 * shift, padding_mode="zeros")[0, 0, -1].tolist() == pytest.approx([4.0] * 5)


def test_exponential_of_a_translation_is_itself(device):
    dvf = torch.tensor([0.5, -1.0, 2.0], device=device).view(1, 3, 1, 1, 1).expand(1, 3, 6, 6, 6)
    torch.testing.assert_close(exponentiate(dvf), dvf)


def test_exponential_of_a_rotation_is_the_matrix_exponential():
    size = (41, 41)
    velocity = torch.tensor([[0.0, -0.6], [0.6, 0.0]], dtype=torch.float64)
    dvf = linear(torch.eye(2) + velocity, size)
    expected = linear(torch.matrix_exp(velocity), size)
    assert longest(interior(exponentiate(dvf, steps=10) - expected, 12)) < 0.01


@pytest.mark.parametrize("size", SIZES)
def test_exponentials_of_opposite_velocities_cancel(size, generator):
    dvf = smooth(size, generator, 1.5)
    there, back = exponentiate(dvf), exponentiate(-dvf)
    assert longest(interior(there, 4)) > 1
    assert longest(interior(compose(there, back), 5)) < 0.15


def test_exponential_without_steps_and_in_half_precision():
    dvf = torch.ones(1, 2, 4, 4)
    assert torch.equal(exponentiate(dvf, steps=0), dvf)
    assert exponentiate(dvf.half()).dtype == torch.float32


@pytest.mark.parametrize("size", SIZES)
def test_inverse_undoes_a_diffeomorphism(size, generator):
    ddf = exponentiate(smooth(size, generator, 2.0, batch=2))
    inverse, residual = invert(ddf)
    assert longest(ddf) > 2
    assert residual.shape == (2,)
    assert residual.max() <= 1e-3
    left = torch.linalg.vector_norm(compose(ddf, inverse), dim=1).flatten(1).amax(dim=1)
    torch.testing.assert_close(residual, left)
    assert longest(interior(compose(inverse, ddf), 5)) < 0.3


@pytest.mark.parametrize("size", SIZES)
def test_inverse_is_the_same_from_the_half_size_and_from_nothing(size, generator, monkeypatch):
    ddf = exponentiate(smooth(size, generator, 2.0))
    monkeypatch.setattr(fields, "_SMALL", 8)
    fine, residual = invert(ddf, tolerance=1e-4)
    monkeypatch.setattr(fields, "_SMALL", 10**6)
    assert longest(fine - invert(ddf, tolerance=1e-4)[0]) < 1e-3
    assert float(residual) <= 1e-4
    assert longest(fine) > 2


def test_length_is_the_norm(generator):
    for d in (2, 3):
        field = torch.randn(2, d, *range(4, 4 + d), generator=generator)
        torch.testing.assert_close(length(field), torch.linalg.vector_norm(field, dim=1, keepdim=True))


@pytest.mark.parametrize(
    "matrix", [rotation(65), [[3.0, 0.0], [0.0, 1.0]], [[0.4, 0.0], [0.0, 1.0]], [[1.0, 2.0], [0.0, 1.0]]]
)
def test_inverse_of_strong_linear_maps(matrix):
    size = (31, 31)
    inverse, _ = invert(linear(matrix, size), iterations=200)
    expected = linear(torch.linalg.inv(torch.tensor(matrix, dtype=torch.float64)), size)
    assert longest(interior(inverse - expected, 13)) < 2e-3


def test_inverse_reports_what_it_could_not_do():
    size = (21, 21)
    hard, easy = linear([[3.0, 0.0], [0.0, 1.0]], size), torch.zeros(1, 2, *size, dtype=torch.float64)
    ddf = torch.cat([hard, easy])
    inverse, residual = invert(ddf, iterations=1)
    assert residual[0].item() == pytest.approx(longest(compose(hard, inverse[:1])))
    assert residual[0] > 1
    assert residual[1] == 0


def test_inverse_keeps_the_best_value_where_it_diverges():
    ddf = linear([[9.0, 0.0], [0.0, 1.0]], (21, 21))
    inverse, residual = invert(ddf, iterations=7)
    assert residual.item() == pytest.approx(longest(compose(ddf, inverse)))
    assert residual <= longest(ddf)


def test_inverse_carries_no_gradient():
    ddf = torch.ones(1, 2, 5, 5, requires_grad=True)
    inverse, residual = invert(ddf, iterations=3)
    assert not inverse.requires_grad
    assert not residual.requires_grad


@pytest.mark.parametrize(("old", "new"), [((5, 7), (9, 4)), ((5, 6, 7), (10, 11, 13))])
def test_resizing_keeps_the_map(old, new):
    d = len(old)
    matrix = torch.eye(d, dtype=torch.float64) + 0.1 * torch.arange(d * d).view(d, d)
    step = torch.tensor([(a - 1) / (b - 1) for a, b in zip(old, new, strict=True)], dtype=torch.float64)
    expected = linear(torch.diag(1 / step) @ matrix @ torch.diag(step), new)
    torch.testing.assert_close(resize(linear(matrix, old), new), expected)


def test_resizing_an_axis_of_length_one():
    field = torch.ones(1, 2, 1, 3)
    resized = resize(field, (4, 5))
    assert resized[0, 0].unique().tolist() == [1]
    assert resized[0, 1].unique().tolist() == [2]


def test_derivative_is_central_inside_and_one_sided_at_the_ends(generator):
    field = torch.randn(1, 2, 6, 7, 8, generator=generator, dtype=torch.float64)
    for axis in range(3):
        np.testing.assert_allclose(derivative(field, axis), np.gradient(field.numpy(), axis=axis + 2))
    assert derivative(field[:, :, :1], 0).abs().max() == 0
    assert derivative(field[:, :, :2], 0).shape == (1, 2, 2, 7, 8)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 3).flatmap(lambda d: st.lists(st.floats(-1.5, 1.5), min_size=d * d, max_size=d * d)))
def test_determinant_of_any_linear_map(entries):
    d = math.isqrt(len(entries))
    matrix = torch.tensor(entries, dtype=torch.float64).view(d, d)
    determinant = jacobian_determinant(linear(matrix, (5, 6, 4)[:d]))
    assert determinant.shape == (1, 1, *(5, 6, 4)[:d])
    torch.testing.assert_close(determinant, torch.linalg.det(matrix).expand_as(determinant), atol=1e-9, rtol=0)


def test_determinant_of_an_analytic_field():
    size = (48, 40)
    x, y = identity(size, dtype=torch.float64)
    ddf = torch.stack([3 * torch.sin(0.2 * y), 2 * torch.cos(0.3 * x)])[None]
    expected = 1 - (3 * 0.2 * torch.cos(0.2 * y)) * (-2 * 0.3 * torch.sin(0.3 * x))
    assert (jacobian_determinant(ddf)[0, 0] - expected)[1:-1, 1:-1].abs().max() < 0.02


def test_determinant_sees_a_fold():
    ddf = torch.zeros(1, 3, 12, 5, 5, dtype=torch.float64)
    x = identity((12, 5, 5), dtype=torch.float64)[0]
    ddf[:, 0] = torch.where(x >= 6, -3.0 * (x - 6), 0.0)
    determinant = jacobian_determinant(ddf)[0, 0]
    torch.testing.assert_close(determinant[:6], torch.ones(6, 5, 5, dtype=torch.float64))
    torch.testing.assert_close(determinant[6], torch.full((5, 5), -0.5, dtype=torch.float64))
    torch.testing.assert_close(determinant[7:], torch.full((5, 5, 5), -2.0, dtype=torch.float64))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (compose, r"outer must be \(B, d, \*S\)"),
        (lambda bad, good: compose(good, bad), r"inner must be \(B, d, \*S\)"),
        (lambda bad, good: exponentiate(bad), r"dvf must be \(B, d, \*S\)"),
        (lambda bad, good: exponentiate(good, steps=-1), "steps must be 0 or more, got -1"),
        (lambda bad, good: invert(bad), r"ddf must be \(B, d, \*S\)"),
        (lambda bad, good: invert(good, iterations=0), "iterations must be 1 or more, got 0"),
        (lambda bad, good: resize(bad, (4, 4)), r"field must be \(B, d, \*S\)"),
        (lambda bad, good: resize(good, (4, 4, 4)), r"size must have 2 entries for this field, got \(4, 4, 4\)"),
        (lambda bad, good: jacobian_determinant(bad), r"ddf must be \(B, d, \*S\)"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(1, 3, 5, 5), torch.zeros(1, 2, 5, 5))
