from __future__ import annotations

import itertools
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from shared.errors import InputError
from shared.fields import compose, jacobian_determinant
from shared.optimise import Guides, OptimiseSettings, optimise
from shared.optimise.descent import Trace
from shared.transform_io import Grid, to_native
from shared.warp import warp, warp_points
from tests.shared.optimise.scenes import displaced_pair, error, grid_of, picture

QUICK = OptimiseSettings(alignment="identity", discrete="never")


@pytest.mark.parametrize(
    ("size", "spacing", "amplitude"),
    [((96, 80), (1.0, 1.0), 6.0), ((56, 52, 48), (1.0, 1.0, 1.0), 5.0), ((60, 56, 20), (1.0, 1.0, 3.0), 3.0)],
)
def test_a_known_smooth_field_is_undone_without_folds(size, spacing, amplitude):
    fixed, moving, truth = displaced_pair(size, amplitude, seed=2)
    grid = grid_of(size, spacing)
    result = optimise(fixed, moving, grid, grid)
    inside = fixed > 0.1
    before, after = error(torch.zeros_like(truth), truth, inside), error(result.ddf, truth, inside)
    assert after < 0.35 * before
    assert result.fold_percent <= 0.01
    assert float(jacobian_determinant(result.ddf).min()) > 0
    assert result.alignment.kind == "identity"
    assert not result.kept_start


def test_another_contrast_is_no_obstacle():
    fixed, moving, truth = displaced_pair((56, 52, 48), 4.0, seed=2)
    grid = grid_of((56, 52, 48))
    settings = OptimiseSettings(similarity="mind", discrete="never")
    result = optimise(fixed, 1.1 - moving, grid, grid, settings=settings)
    inside = fixed > 0.1
    assert error(result.ddf, truth, inside) < 0.6 * error(torch.zeros_like(truth), truth, inside)


def test_mutual_information_on_request():
    fixed, moving, truth = displaced_pair((96, 80), 4.0, seed=2)
    grid = grid_of((96, 80))
    result = optimise(fixed, (1.1 - moving) * (moving > 0.02), grid, grid, settings=OptimiseSettings(similarity="mi"))
    inside = fixed > 0.1
    assert error(result.ddf, truth, inside) < 0.7 * error(torch.zeros_like(truth), truth, inside)
    assert {level.similarity for level in result.levels} == {"mi"}


@pytest.mark.parametrize("size", [(64, 60), (40, 36, 32)])
def test_equal_images_stay_where_they_are(size):
    grid = grid_of(size)
    image = picture(size) + 0.02 * torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0))
    result = optimise(image, image, grid, grid)
    middle = (slice(None), slice(None), *[slice(n // 8, -(n // 8)) for n in size])
    assert float(result.ddf[middle].abs().mean()) < 0.1


def test_masks_keep_a_corrupted_region_out():
    fixed, moving, truth = displaced_pair((96, 80), 5.0, seed=2)
    spoilt = moving.clone()
    spoilt[..., 20:44, 26:50] = picture((24, 24), seed=8, room=0.0)
    mask = torch.ones_like(moving)
    mask[..., 16:48, 22:54] = 0
    grid = grid_of((96, 80))
    good = (warp(mask, truth, mode="nearest") > 0) & (fixed > 0.1)
    plain = optimise(fixed, spoilt, grid, grid, settings=QUICK)
    masked = optimise(fixed, spoilt, grid, grid, settings=QUICK, guides=Guides(moving_mask=mask))
    clean = optimise(fixed, moving, grid, grid, settings=QUICK)
    errors = [error(r.ddf, truth, good) for r in (clean, masked, plain)]
    assert errors[1] < errors[2]
    assert errors[1] < errors[0] + 0.3
    # What lies under the mask does not matter at all, but for what windows see over its edge.
    mask[..., 12:52, 18:58] = 0
    other = spoilt.clone()
    other[..., 24:40, 30:46] = 1 - other[..., 24:40, 30:46]
    one, two = (
        optimise(fixed, m, grid, grid, settings=QUICK, guides=Guides(moving_mask=mask)) for m in (spoilt, other)
    )
    far = torch.ones_like(fixed, dtype=torch.bool)
    far[..., 8:56, 14:62] = False
    assert error(one.ddf, two.ddf, far) < 0.05


def test_nothing_worse_than_the_start_is_returned(monkeypatch):
    fixed, moving, _ = displaced_pair((64, 60), 4.0)
    grid = grid_of((64, 60))
    assert not optimise(fixed, moving, grid, grid, settings=QUICK).kept_start
    # The judge's own test tells which way it decides; here it finds everything worse.
    monkeypatch.setattr("shared.optimise.register.worse_than", lambda *_: (True, "judged"))
    result = optimise(fixed, moving, grid, grid, settings=QUICK)
    assert result.kept_start
    assert not result.ddf.any()
    assert any("worse than the start" in message for message in result.messages)
    # Landmarks may ask for what the images do not, so they are not overruled.
    points = torch.tensor([[20.0, 20.0], [40.0, 35.0]])
    guides = Guides(fixed_points=points, moving_points=points + 3.0)
    assert optimise(fixed, moving, grid, grid, settings=QUICK, guides=guides).ddf.any()
    # Unless they end no nearer to their places than they began.
    there = Guides(fixed_points=points, moving_points=points)
    assert optimise(fixed, moving, grid, grid, settings=QUICK, guides=there).kept_start


def test_a_level_stops_early_where_nothing_is_gained_and_is_undone_where_it_lost(monkeypatch):
    fixed, moving, _ = displaced_pair((64, 60), 3.0)
    grid = grid_of((64, 60))
    long = OptimiseSettings(alignment="identity", discrete="never", iterations=500)
    levels = optimise(fixed, moving, grid, grid, settings=long).levels
    assert "converged" in {level.stopped for level in levels}
    assert all(level.iterations < 500 for level in levels if level.stopped == "converged")
    worse = Trace(iterations=5, first=0.1, last=0.2)
    monkeypatch.setattr("shared.optimise.register.descend", lambda _, ddf, *args, **kwargs: (ddf + 1.0, worse))
    result = optimise(fixed, moving, grid, grid, settings=QUICK)
    assert all(level.stopped.startswith("undone") for level in result.levels)
    assert not result.ddf.any()


def test_a_time_limit_is_kept_and_said():
    fixed, moving, _ = displaced_pair((56, 52, 48), 4.0)
    grid = grid_of((56, 52, 48))
    began = time.monotonic()
    result = optimise(fixed, moving, grid, grid, settings=OptimiseSettings(time_limit=0.0))
    assert not result.ddf.any()
    assert result.stopped == "time limit"
    full = time.monotonic() - began
    assert full < 20
    settings = OptimiseSettings(alignment="identity", iterations=100_000, time_limit=1.0)
    began = time.monotonic()
    assert optimise(fixed, moving, grid, grid, settings=settings).ddf.shape == (1, 3, 56, 52, 48)
    assert time.monotonic() - began < 1.0 + full + 3.0


def test_a_run_that_the_time_limit_cuts_anywhere_says_so(monkeypatch):
    fixed, moving, _ = displaced_pair((48, 44), 3.0)
    grid = grid_of((48, 44))
    clock = itertools.count()
    monkeypatch.setattr("shared.optimise.register.time", SimpleNamespace(monotonic=lambda: next(clock)))

    def run(limit: float) -> tuple[str, int]:
        settings = OptimiseSettings(time_limit=limit, alignment="rigid", levels_mm=[2, 1], iterations=5)
        result = optimise(fixed, moving, grid, grid, settings=settings)
        return result.stopped, sum(level.iterations for level in result.levels)

    before = next(clock)
    whole = run(1e9)
    steps = next(clock) - before
    assert whole[0] != "time limit"
    # The clock goes on by one whenever it is asked; the last questions are those of the log.
    cut = [run(limit) for limit in range(1, steps - 8, 2)]
    assert len(cut) > 10
    assert [stopped for stopped, _ in cut] == ["time limit"] * len(cut)
    assert {count for _, count in cut} > {0, 5}


def test_the_same_input_gives_the_same_result_bit_for_bit():
    fixed, moving, _ = displaced_pair((40, 36, 32), 3.0)
    grid = grid_of((40, 36, 32))
    one, two = (optimise(fixed, moving, grid, grid).ddf for _ in range(2))
    assert torch.equal(one, two)


def test_inverse_undoes_the_map():
    fixed, moving, _ = displaced_pair((56, 52, 48), 5.0, seed=2)
    grid = grid_of((56, 52, 48))
    result = optimise(fixed, moving, grid, grid, settings=QUICK)
    back, residual = result.inverse()
    assert residual < 0.05
    inner = (slice(None), slice(None), *[slice(10, -10)] * 3)
    assert float(compose(back, result.ddf)[inner].abs().max()) < 0.3


def test_images_of_other_size_spacing_and_orientation():
    fixed, moving, truth = displaced_pair((56, 52, 48), 4.0, seed=2)
    fixed_grid = grid_of((56, 52, 48))
    # The moving image, axes permuted and one flipped, the world unchanged.
    turned = moving.permute(0, 1, 4, 2, 3).flip(3)
    affine = np.eye(4)
    affine[:3, :3] = [[0, -1, 0], [0, 0, 1], [1, 0, 0]]
    affine[:3, 3] = [55, 0, 0]
    moving_grid = Grid((48, 56, 52), affine)
    result = optimise(fixed, turned, fixed_grid, moving_grid, settings=QUICK)
    plain = optimise(fixed, moving, fixed_grid, fixed_grid, settings=QUICK)
    torch.testing.assert_close(result.ddf, plain.ddf, atol=2e-2, rtol=0)
    inside = fixed > 0.1
    assert error(result.ddf, truth, inside) < 0.4 * error(torch.zeros_like(truth), truth, inside)
    # And the inverse lives on the moving lattice: there and back again.
    back, _ = result.inverse()
    assert back.shape == (1, 3, 48, 56, 52)
    voxel = torch.tensor([[[20.0, 30.0, 24.0]]])
    there = warp_points(voxel, to_native(result.ddf, fixed_grid, fixed_grid, moving_grid)[1])
    fixed_again = warp_points(there, back)  # in moving voxels, of the same world
    world = affine[:3, :3] @ fixed_again[0, 0].numpy() + affine[:3, 3]
    assert np.abs(world - voxel[0, 0].numpy()).max() < 0.3


def test_an_alignment_is_part_of_the_map_and_of_its_inverse():
    fixed, moving, truth = displaced_pair((56, 52, 48), 3.0, seed=2)
    grid = grid_of((56, 52, 48))
    elsewhere = Grid(grid.shape, grid.affine.copy())
    elsewhere.affine[:3, 3] = [200.0, -90.0, 40.0]
    result = optimise(fixed, moving, grid, elsewhere)
    assert result.alignment.kind == "affine"
    total = to_native(result.ddf, grid, grid, elsewhere)[1]
    assert error(total, truth, fixed > 0.1) < 0.5
    back, _ = result.inverse()
    voxel = torch.tensor([[[25.0, 30.0, 24.0]]])
    there = warp_points(voxel, total)
    again = warp_points(there, back) + torch.tensor([200.0, -90.0, 40.0])
    torch.testing.assert_close(again, voxel, atol=0.3, rtol=0)


def test_landmarks_pull():
    fixed, grid = picture((64, 60)), grid_of((64, 60))
    points = torch.tensor([[20.0, 20.0], [40.0, 35.0]])
    aim = points + torch.tensor([[3.0, 0.0], [0.0, -3.0]])
    guides = Guides(fixed_points=points, moving_points=aim)
    result = optimise(fixed, fixed, grid, grid, settings=QUICK, guides=guides)
    left = torch.linalg.vector_norm(warp_points(points[None], result.ddf)[0] - aim, dim=1)
    assert float(left.max()) < 1.2  # of 3, though the images say stay
    assert result.fold_percent == 0


def test_labels_pull_where_images_say_nothing():
    size = (64, 60)
    grid = grid_of(size)
    rim = picture(size, seed=3)
    fixed_label, moving_label = torch.zeros(1, 1, *size), torch.zeros(1, 1, *size)
    fixed_label[..., 22:40, 20:38] = 4
    moving_label[..., 25:43, 23:41] = 4
    hidden = rim.clone()
    hidden[..., 16:50, 14:48] = 0.5
    guides = Guides(fixed_label=fixed_label, moving_label=moving_label)
    result = optimise(hidden, hidden, grid, grid, settings=QUICK, guides=guides)
    warped = warp(moving_label, result.ddf, mode="nearest") == 4

    def dice(a):
        return float(2 * (a & (fixed_label == 4)).sum() / (a.sum() + (fixed_label == 4).sum()))

    assert dice(moving_label == 4) < 0.75
    assert dice(warped) > 0.93


def test_too_little_memory_gives_a_coarser_level_and_a_message():
    fixed, moving, _ = displaced_pair((40, 36, 32), 3.0)
    grid = grid_of((40, 36, 32))
    result = optimise(fixed, moving, grid, grid, settings=OptimiseSettings(memory_gb=0.005))
    assert min(result.level_grid.spacing_mm) > 1.2
    assert any("finest level is" in message for message in result.messages)


@pytest.mark.parametrize(
    ("guides", "words"),
    [
        (Guides(fixed_mask=torch.zeros(1, 1, 20, 20)), "empty fixed mask"),
        (Guides(moving_mask=torch.ones(1, 1, 20, 21)), "moving mask of shape"),
        (Guides(fixed_label=torch.ones(1, 1, 20, 20)), "one label map"),
        (
            Guides(fixed_label=torch.ones(1, 1, 20, 20), moving_label=2 * torch.ones(1, 1, 20, 20)),
            r"labels \[1\] and \[2\]",
        ),
        (Guides(fixed_points=torch.ones(3, 2)), "landmarks of shapes"),
        (Guides(start_ddf=torch.zeros(1, 2, 10, 10)), "start field of shape"),
    ],
)
def test_guides_that_do_not_fit(guides, words):
    image, grid = picture((20, 20)), grid_of((20, 20))
    with pytest.raises(InputError, match=words):
        optimise(image, image, grid, grid, guides=guides)


def test_images_that_cannot_be_registered():
    image, grid = picture((20, 20)), grid_of((20, 20))
    with pytest.raises(InputError, match="constant value in the moving"):
        optimise(image, torch.ones_like(image), grid, grid)
    spoilt = image.clone()
    spoilt[..., 3, 3] = float("nan")
    with pytest.raises(InputError, match="NaN or infinite voxels in the fixed"):
        optimise(spoilt, image, grid, grid)
    with pytest.raises(InputError, match="fixed image of shape"):
        optimise(image, image, grid_of((20, 21)), grid)
