"""Where a registration starts from: an alignment, a given affine, a field, and the kind of motion it expects."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shared.errors import InputError
from shared.optimise import Guides, OptimiseSettings, optimise
from shared.transform_io import Grid, to_native
from tests.shared.optimise.scenes import displaced_pair, error, grid_of, picture, smooth_field

QUICK = OptimiseSettings(discrete="never")


def shifted(grid: Grid, shift) -> tuple[Grid, np.ndarray]:
    """Return the same lattice elsewhere in the world, and the map that leads there."""
    matrix = np.eye(len(grid.affine))
    matrix[:-1, -1] = shift
    return Grid(grid.shape, matrix @ grid.affine), matrix


def test_a_field_to_start_from_is_kept_and_improved():
    fixed, moving, truth = displaced_pair((96, 80), 9.0, seed=2)
    grid = grid_of((96, 80))
    start = truth + smooth_field((96, 80), 2.0, seed=7)
    nothing = optimise(
        fixed, moving, grid, grid, settings=OptimiseSettings(time_limit=0.0), guides=Guides(start_ddf=start)
    )
    torch.testing.assert_close(nothing.ddf, start, atol=1e-4, rtol=0)
    result = optimise(fixed, moving, grid, grid, guides=Guides(start_ddf=start))
    inside = fixed > 0.1
    assert error(result.ddf, truth, inside) < 0.65 * error(start, truth, inside)
    assert error(result.ddf, result.deformation, inside) < 0.2


@pytest.mark.parametrize("size", [(80, 72), (48, 44, 40)])
def test_a_given_affine_is_taken_as_it_is(size):
    d = len(size)
    fixed, moving, truth = displaced_pair(size, 3.0, seed=2)
    grid = grid_of(size)
    elsewhere, matrix = shifted(grid, [150.0, -70.0, 30.0][:d])
    result = optimise(fixed, moving, grid, elsewhere, settings=QUICK, guides=Guides(start_affine=matrix))
    assert result.alignment.kind == "given"
    assert np.array_equal(result.alignment.matrix, matrix)
    total = to_native(result.ddf, grid, grid, elsewhere)[1]
    inside = fixed > 0.1
    assert error(total, truth, inside) < 0.5 * error(torch.zeros_like(truth), truth, inside)


def test_a_field_comes_before_a_given_affine():
    fixed, moving, truth = displaced_pair((80, 72), 5.0, seed=2)
    grid = grid_of((80, 72))
    elsewhere, matrix = shifted(grid, [150.0, -70.0])
    guides = Guides(start_ddf=truth, start_affine=matrix)
    still = optimise(fixed, moving, grid, elsewhere, settings=OptimiseSettings(time_limit=0.0), guides=guides)
    torch.testing.assert_close(to_native(still.ddf, grid, grid, elsewhere)[1], truth, atol=1e-3, rtol=0)
    moved = optimise(fixed, moving, grid, elsewhere, settings=QUICK, guides=guides)
    assert error(to_native(moved.ddf, grid, grid, elsewhere)[1], truth, fixed > 0.1) < 0.3


def test_centres_are_laid_on_each_other_and_nothing_is_turned():
    fixed, moving, truth = displaced_pair((80, 72), 2.0, seed=2)
    grid = grid_of((80, 72))
    elsewhere, matrix = shifted(grid, [150.0, -70.0])
    settings = OptimiseSettings(alignment="centre", discrete="never")
    result = optimise(fixed, moving, grid, elsewhere, settings=settings)
    assert result.alignment.kind == "centre"
    assert np.array_equal(result.alignment.matrix[:2, :2], np.eye(2))
    assert np.abs(result.alignment.matrix - matrix).max() < 3.0
    assert error(to_native(result.ddf, grid, grid, elsewhere)[1], truth, fixed > 0.1) < 0.6


def test_motion_is_told_from_the_images_unless_asked_for():
    grid = grid_of((96, 80))
    fixed, moving, _ = displaced_pair((96, 80), 3.0, seed=2)

    def motion(other, **options):
        messages = optimise(fixed, other, grid, grid, settings=OptimiseSettings(iterations=1, **options)).messages
        return next(message for message in messages if message.startswith("motion"))

    assert "within one patient" in motion(moving)
    assert "between patients" in motion(picture((96, 80), seed=31))
    assert motion(moving, motion="between") == "motion: between patients (as asked for)"


def test_motion_within_a_patient_gives_a_smoother_field():
    fixed, moving, _ = displaced_pair((96, 80), 6.0, seed=2)
    grid = grid_of((96, 80))
    rough = []
    for motion in ("within", "between"):
        ddf = optimise(fixed, moving, grid, grid, settings=OptimiseSettings(motion=motion, discrete="never")).ddf
        rough.append(float(sum(torch.diff(ddf, n=2, dim=dim).square().mean() for dim in (2, 3))))
    assert rough[0] < 0.9 * rough[1]


@pytest.mark.parametrize("matrix", [np.eye(4), np.diag([1.0, -1.0, 1.0]), np.diag([1.0, np.nan, 1.0])])
def test_an_affine_that_cannot_be(matrix):
    image, grid = picture((20, 20)), grid_of((20, 20))
    with pytest.raises(InputError, match="initial affine"):
        optimise(image, image, grid, grid, guides=Guides(start_affine=matrix))
