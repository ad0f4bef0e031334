"""Scores of determinants: one pass of the kernel against the map in double precision, on any size, mask and dtype."""

from __future__ import annotations

import math

import pytest
import torch

from shared.fields import jacobian_determinant
from shared.kernels import warp_backend
from shared.metrics.determinants import determinant_scores, determinants, scores_of

SIZES = [(9, 7), (1, 5), (33, 40), (5, 6, 7), (4, 1, 3), (1, 1, 1), (70, 5, 17), (3, 4, 16), (2, 3, 35)]


@pytest.fixture(params=["torch", "compiled"])
def backend(request, monkeypatch):
    if request.param == "compiled" and warp_backend().name != "cpp":
        pytest.skip(f"no compiled kernels: {warp_backend().reason}")
    monkeypatch.setenv("WARP_BACKEND", request.param)
    return request.param


def rough(size, dtype=torch.float32, strength=0.7) -> torch.Tensor:
    """A field with folds, no determinant so near zero that rounding decides on it."""
    generator = torch.Generator().manual_seed(sum(size))
    field = strength * torch.randn(1, len(size), *size, generator=generator, dtype=torch.float64)
    assert float(jacobian_determinant(field).abs().min()) > 1e-5
    return field.to(dtype)


def reference(field: torch.Tensor, mask: torch.Tensor | None = None):
    found = jacobian_determinant(field.double())[0, 0]
    return scores_of(found if mask is None else found[mask != 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
def test_scores_are_those_of_the_map_in_double_precision(backend, size, dtype):
    field = rough(size, dtype)
    truth, found = reference(field), determinant_scores(field)
    assert found.folds_percent == truth.folds_percent
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    assert found.sdlogj == pytest.approx(truth.sdlogj, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("size", [(33, 40), (12, 6, 37)])
@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.float32])
def test_masks_choose_the_voxels_that_count(backend, size, kind):
    field = rough(size, torch.float64)
    mask = (torch.rand(size, generator=torch.Generator().manual_seed(1)) > 0.7).to(kind)
    truth, found = reference(field, mask), determinant_scores(field, mask)
    assert found == pytest.approx(truth, rel=1e-10)
    assert reference(field).folds_percent != pytest.approx(truth.folds_percent)
    assert all(math.isnan(v) for v in determinant_scores(field, torch.zeros(size)))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("factor", [1e-4, 0.5, 1.0, 3.0, 1e4])
def test_a_uniform_stretch_has_no_spread(backend, dims, factor):
    axes = torch.meshgrid(*[torch.arange(9, dtype=torch.float64)] * dims, indexing="ij")
    field = (factor - 1) * torch.stack(axes)[None]
    assert determinant_scores(field) == pytest.approx((0.0, 0.0), abs=1e-9)


def test_a_fold_counts_and_is_clamped(backend):
    """Two halves, one turned over: its log is that of 1e-9."""
    line = torch.arange(40.0, dtype=torch.float64)
    slope = torch.where(line < 20, torch.zeros(40), -2 * (line - 19.5)).to(torch.float64)
    field = torch.zeros(1, 2, 40, 8, dtype=torch.float64)
    field[0, 0] = slope[:, None]
    truth = reference(field)
    assert 45 < truth.folds_percent < 55
    assert truth.sdlogj > 9
    assert determinant_scores(field) == pytest.approx(truth, rel=1e-10)


def test_what_is_no_number_is_not_hidden(backend):
    field = rough((6, 7, 8))
    field[0, 1, 3, 3, 3] = math.nan
    assert math.isnan(determinant_scores(field).sdlogj)


def test_views_are_read_as_they_are(backend):
    field = rough((12, 6, 14), torch.float64).transpose(2, 4)
    assert determinant_scores(field) == pytest.approx(reference(field), rel=1e-10)


def test_threads_change_nothing():
    if warp_backend().name != "cpp":
        pytest.skip(f"no compiled kernels: {warp_backend().reason}")
    field, before = rough((40, 30, 20)), torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(determinant_scores(field))
    finally:
        torch.set_num_threads(before)
    assert len(set(found)) == 1


@pytest.mark.parametrize("size", [(70, 9), (70, 5, 6)])
def test_the_map_in_slabs_is_the_map(size):
    field = rough(size)
    assert torch.equal(determinants(field), jacobian_determinant(field)[0, 0])
