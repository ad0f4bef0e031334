"""Projections: of gradients in conflict, and of updates out of a layer's old inputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shared.continual import extend_basis, input_columns, project_conflict, project_out


def product(first, second) -> float:
    return float(sum((a * b).sum() for a, b in zip(first, second, strict=True)))


def test_without_conflict_the_gradient_is_untouched(generator):
    gradient = [torch.randn(3, 4, generator=generator), torch.randn(5, generator=generator)]
    agreeing = [g + 0.1 for g in gradient]
    assert product(gradient, agreeing) > 0
    projected = project_conflict(gradient, agreeing)
    assert all(torch.equal(a, b) for a, b in zip(gradient, projected, strict=True))


def test_a_conflict_is_projected_to_the_nearest_harmless_gradient(generator):
    reference = [torch.randn(3, 4, generator=generator).double(), torch.randn(5, generator=generator).double()]
    across = [torch.randn(3, 4, generator=generator).double(), torch.randn(5, generator=generator).double()]
    share = product(across, reference) / product(reference, reference)
    across = [a - share * r for a, r in zip(across, reference, strict=True)]
    gradient = [a - 0.7 * r for a, r in zip(across, reference, strict=True)]
    projected = project_conflict(gradient, reference)
    assert product(gradient, reference) < 0
    assert abs(product(projected, reference)) < 1e-12
    for value, expected in zip(projected, across, strict=True):
        torch.testing.assert_close(value, expected)


def test_a_reference_of_zeros_changes_nothing():
    gradient = [torch.ones(3)]
    assert torch.equal(project_conflict(gradient, [torch.zeros(3)])[0], gradient[0])


CONVOLUTIONS = {
    "2d": nn.Conv2d(3, 4, 3, padding=1, bias=False),
    "3d": nn.Conv3d(2, 3, 3, padding=1, bias=False),
    "strided": nn.Conv3d(2, 3, 3, stride=2, padding=1, bias=False),
    "uneven": nn.Conv2d(2, 3, (5, 3), padding=(2, 1), bias=False),
    "one": nn.Conv3d(2, 3, 1, bias=False),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_columns_are_what_the_kernel_meets(name, generator):
    """Each output of the convolution is the kernel's product with one column, and none is missing."""
    convolution = CONVOLUTIONS[name]
    dims = convolution.weight.ndim - 2
    image = torch.randn(2, convolution.in_channels, *(7, 6, 5)[:dims], generator=generator)
    columns = input_columns(image, convolution, 10**6, generator)
    outputs = convolution.weight.detach().flatten(1) @ columns
    expected = convolution(image).detach().movedim(1, 0).flatten(1)
    assert outputs.shape == expected.shape
    first, second = (x[:, x[0].argsort()] for x in (outputs, expected))
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def test_columns_of_a_transposed_convolution_are_its_voxels(generator):
    convolution = nn.ConvTranspose2d(3, 2, 2, stride=2)
    image = torch.randn(1, 3, 4, 5, generator=generator)
    columns = input_columns(image, convolution, 10**6, generator)
    assert sorted(columns.T.tolist()) == sorted(image[0].flatten(1).T.tolist())


def test_columns_are_a_random_part(generator):
    convolution, image = CONVOLUTIONS["one"], torch.arange(2.0 * 4**3).reshape(1, 2, 4, 4, 4)
    columns = input_columns(image, convolution, 10, generator)
    assert columns.shape == (2, 10)
    assert len(set(columns[0].tolist())) == 10
    assert sorted(columns[0].tolist()) != list(range(10))


@pytest.mark.parametrize(
    "options", [{"groups": 2}, {"dilation": 2}, {"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}], ids=str
)
def test_other_convolutions_are_refused(options, generator):
    with pytest.raises(ValueError, match="without groups and dilation"):
        input_columns(torch.zeros(1, 2, 8, 8), nn.Conv2d(2, 2, 3, **options), 1, generator)


def columns_with_spectrum(generator, rows: int, spectrum: list[float], count: int) -> torch.Tensor:
    left = torch.linalg.qr(torch.randn(rows, rows, generator=generator)).Q[:, : len(spectrum)]
    right = torch.linalg.qr(torch.randn(count, count, generator=generator)).Q[:, : len(spectrum)]
    return left @ torch.diag(torch.tensor(spectrum)) @ right.T


@pytest.mark.parametrize("count", [6, 30])  # fewer columns than rows, and more
@pytest.mark.parametrize(("threshold", "rank"), [(0.5, 1), (0.80, 2), (0.97, 3), (1.0, 4)])
def test_basis_has_the_fewest_directions_that_hold_the_energy(generator, count, threshold, rank):
    columns = columns_with_spectrum(generator, 12, [4.0, 2.0, 1.5, 0.7], count)  # shares 0.70, 0.87, 0.97.., 1
    energy = torch.tensor([16, 4, 2.25, 0.49]).cumsum(0) / 22.74
    assert energy[rank - 1] >= threshold - 1e-6
    assert rank == 1 or energy[rank - 2] < threshold
    basis = extend_basis(None, columns, threshold)
    assert basis.shape == (12, rank)
    torch.testing.assert_close(basis.T @ basis, torch.eye(rank), rtol=0, atol=1e-5)
    held = (basis.T @ columns).square().sum() / columns.square().sum()
    assert float(held) == pytest.approx(float(energy[rank - 1]), abs=1e-5)


def test_extension_keeps_the_old_directions_and_adds_what_is_missing(generator):
    first = extend_basis(None, columns_with_spectrum(generator, 10, [3.0, 2.0], 8), 1.0)
    assert extend_basis(first, first @ torch.randn(2, 5, generator=generator), 1.0).shape == (10, 2)
    new = torch.randn(10, 3, generator=generator)
    both = extend_basis(first, torch.cat([new, first], dim=1), 1.0)
    assert both.shape == (10, 5)
    for old in (first, new):
        torch.testing.assert_close(both @ (both.T @ old), old, rtol=1e-4, atol=1e-5)


def test_a_full_basis_grows_no_further(generator):
    full = extend_basis(None, torch.randn(4, 9, generator=generator), 1.0)
    assert full.shape == (4, 4)
    assert extend_basis(full, torch.randn(4, 9, generator=generator), 1.0).shape == (4, 4)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_projected_update_is_orthogonal_and_the_nearest(generator, transposed):
    update = torch.randn(4, 6, 3, 3, generator=generator)
    inputs = 4 if transposed else 6 * 9
    basis = extend_basis(None, torch.randn(inputs, 3, generator=generator), 1.0)
    projected = project_out(update, basis, transposed)
    assert projected.shape == update.shape
    along = basis.T @ (projected.flatten(1) if transposed else projected.flatten(1).T)
    assert float(along.abs().max()) < 1e-5
    taken = update - projected
    assert float((taken * projected).sum()) == pytest.approx(0, abs=1e-4)
    assert float(taken.norm()) > 0.1


def test_a_transposed_convolution_answers_old_inputs_as_before(generator):
    convolution = nn.ConvTranspose2d(6, 4, 3, stride=2, bias=False)
    old = torch.randn(1, 6, 2, 2, generator=generator)
    basis = extend_basis(None, input_columns(old, convolution, 100, generator), 1.0)
    before = convolution(old).detach()
    with torch.no_grad():
        convolution.weight += project_out(
            torch.randn(convolution.weight.shape, generator=generator), basis, transposed=True
        )
    torch.testing.assert_close(convolution(old).detach(), before, rtol=0, atol=1e-4)
