from __future__ import annotations

import numpy as np
import pytest
import torch

from shared.optimise import Guides, OptimiseSettings
from shared.optimise.align import _score, align, moved
from shared.optimise.level import Scene
from shared.transform_io import Grid, affine_ddf
from shared.warp import warp
from tests.shared.optimise.scenes import grid_of, picture


def rigid(d, angle, shift, centre) -> np.ndarray:
    turn = np.eye(d)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix = np.eye(d + 1)
    matrix[:d, :d], matrix[:d, d] = turn, centre + shift - turn @ centre
    return matrix


def turned_pair(size, angle, shift, spacing):
    """A picture, and the same with what is in it moved by a rigid map in the world; same header."""
    grid = grid_of(size, spacing)
    d = len(size)
    fixed = picture(size, seed=1, room=0.3)
    centre = (np.array(size) - 1) / 2 * np.array(spacing)
    matrix = rigid(d, angle, np.array(shift, float), centre)
    # moving(matrix p) = fixed(p)
    moving = warp(fixed, affine_ddf(grid, moved(grid, np.linalg.inv(matrix))))
    return fixed, moving, grid, matrix


def scene(fixed, moving, fixed_grid, moving_grid) -> Scene:
    return Scene.build((fixed, moving), (fixed_grid, moving_grid), Guides(), [], OptimiseSettings(), 1.0)


def distance(found, truth, grid) -> float:
    """Largest distance in millimetres between two maps within the field of view's middle half."""
    d = len(grid.shape)
    corners = np.stack(np.meshgrid(*[(0.25 * n, 0.75 * n) for n in grid.shape], indexing="ij")).reshape(d, -1)
    world = np.vstack([grid.affine[:d, :d] @ corners + grid.affine[:d, d:], np.ones(corners.shape[1])])
    return float(np.linalg.norm(((found - truth) @ world)[:d], axis=0).max())


@pytest.mark.parametrize(
    ("size", "angle", "shift", "spacing"),
    [
        ((90, 80), 0.6, (14, -9), (1.0, 1.0)),
        ((48, 48, 40), 0.0, (12, -9, 6), (1.0, 1.0, 1.0)),
        ((48, 48, 20), -0.55, (5, 3, 0), (1.0, 1.0, 2.0)),
    ],
)
def test_large_turn_and_shift_are_found_though_the_header_is_shared(size, angle, shift, spacing):
    fixed, moving, grid, truth = turned_pair(size, angle, shift, spacing)
    found = align(scene(fixed, moving, grid, grid), "auto", multimodal=False)
    assert found.kind in ("rigid", "affine")
    assert distance(np.eye(len(truth)), truth, grid) > 8
    assert distance(found.matrix, truth, grid) < 1.5


def test_frames_that_do_not_meet_are_brought_together():
    fixed, moving, grid, truth = turned_pair((48, 48, 40), 0.2, (3, 2, 1), (1.0, 1.0, 1.0))
    offset = np.eye(4)
    offset[:3, 3] = [300.0, -200.0, 90.0]
    elsewhere = Grid(grid.shape, offset @ grid.affine)
    found = align(scene(fixed, moving, grid, elsewhere), "auto", multimodal=False)
    assert found.kind == "affine"
    assert distance(found.matrix, offset @ truth, grid) < 2.5


def test_a_shared_frame_is_kept():
    fixed = picture((48, 48, 40), seed=1)
    grid = grid_of((48, 48, 40))
    moving = picture((48, 48, 40), seed=2)
    assert align(scene(fixed, fixed, grid, grid), "auto", multimodal=False).kind == "identity"
    found = align(scene(fixed.clamp_min(0.2), 1 - moving.clamp_max(0.7), grid, grid), "auto", multimodal=True)
    assert np.array_equal(found.matrix, np.eye(4))


def test_asked_for_kinds():
    fixed, moving, grid, truth = turned_pair((90, 80), 0.1, (4, -3), (1.0, 1.0))
    pair = scene(fixed, moving, grid, grid)
    assert align(pair, "identity", False).kind == "identity"
    for kind in ("rigid", "affine"):
        found = align(pair, kind, False)
        assert found.kind == kind
        assert distance(found.matrix, truth, grid) < 1.0
    linear = align(pair, "rigid", False).matrix[:2, :2]
    torch.testing.assert_close(
        torch.from_numpy(linear @ linear.T), torch.eye(2, dtype=torch.float64), atol=1e-4, rtol=0
    )


def test_a_fit_is_no_worse_than_the_frame_it_began_with():
    grid = grid_of((60, 56))
    noise = torch.rand(1, 1, 60, 56, generator=torch.Generator().manual_seed(0))
    pair = scene(picture((60, 56), seed=1), noise, grid, grid)
    for mode in ("rigid", "affine"):
        found = align(pair, mode, multimodal=False).matrix
        assert _score(pair, found) >= 0.99 * _score(pair, np.eye(3))
        # The frames are shared: noise may move the image a little, not turn it over or send it away.
        assert distance(found, np.eye(3), grid) < 20
