from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt

from shared.fields import identity
from shared.metrics import assd_per_label, dice_per_label, fold_percent, hd95_per_label, round_trip_mm, sdlogj, tre_mm


def cubes(offset, size=(24, 20, 18), edge=6):
    """Label 1 a cube, label 2 a smaller one away from it; the offset moves label 1 along i."""
    label = torch.zeros(size, dtype=torch.uint8)
    label[(slice(4 + offset, 4 + offset + edge), *[slice(5, 5 + edge)] * (len(size) - 1))] = 1
    label[(slice(18, 22), *[slice(13, 16)] * (len(size) - 1))] = 2
    return label


def peer_distances(a, b, spacing):
    """Both directed sets of surface distances, over the whole volume."""
    edges = [m & ~binary_erosion(m) for m in (a, b)]
    to = [distance_transform_edt(~e, sampling=spacing) for e in edges]
    return to[1][edges[0]], to[0][edges[1]]


def blobs(size, generator, smoothing=5):
    noise = torch.rand(1, 1, *size, generator=generator)
    pool = torch.nn.functional.avg_pool2d if len(size) == 2 else torch.nn.functional.avg_pool3d
    return (pool(noise, smoothing, 1, smoothing // 2)[0, 0] > 0.51).to(torch.uint8)


def test_dice_counts_voxels(device):
    pred, ref = cubes(2).to(device), cubes(0).to(device)
    dice = dice_per_label(pred, ref, [1, 2, 7])
    assert dice[:2].tolist() == pytest.approx([4 / 6, 1.0])
    assert dice[2].isnan()
    ref[ref == 2] = 0
    assert dice_per_label(pred, ref, torch.tensor([2])).tolist() == [0]


@pytest.mark.parametrize("size", [(24, 20), (24, 20, 18)])
def test_shifted_cube_in_mm(size, device):
    spacing = (2.0, 1.0, 0.5)[: len(size)]
    pred, ref = cubes(2, size).to(device), cubes(0, size).to(device)
    hd95 = hd95_per_label(pred, ref, [1, 2], spacing)
    assd = assd_per_label(pred, ref, [1, 2], spacing)
    assert hd95.tolist() == pytest.approx([4.0, 0.0])
    assert 0 < assd[0] < 4
    assert assd[1] == 0


@pytest.mark.parametrize("size", [(22, 25), (18, 16, 15)])
def test_surface_distances_agree_with_scipy(size, generator):
    spacing = (1.5, 0.8, 2.0)[: len(size)]
    pred, ref = blobs(size, generator), blobs(size, generator)
    forth, back = peer_distances(pred.numpy() > 0, ref.numpy() > 0, spacing)
    expected = max(np.percentile(forth, 95), np.percentile(back, 95))
    assert hd95_per_label(pred, ref, [1], spacing).item() == pytest.approx(expected, rel=1e-5)
    expected = np.concatenate([forth, back]).mean()
    assert assd_per_label(pred, ref, [1], spacing).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("measure", [hd95_per_label, assd_per_label])
def test_surface_distances_are_symmetric_and_take_leading_axes(measure, generator):
    pred, ref = blobs((20, 21), generator), blobs((20, 21), generator)
    distance = measure(pred, ref, [1], (1.0, 2.0))
    assert distance.item() > 0
    torch.testing.assert_close(measure(ref, pred, [1], (1.0, 2.0)), distance)
    torch.testing.assert_close(measure(pred[None, None], ref[None, None], [1], (1.0, 2.0)), distance)


@pytest.mark.parametrize("measure", [hd95_per_label, assd_per_label])
def test_absent_labels_are_nan_without_a_warning(measure):
    pred, ref = cubes(1), cubes(0)
    pred[pred == 2] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distances = measure(pred, ref, [1, 2, 3], (1.0, 1.0, 1.0))
    assert distances.isnan().tolist() == [False, True, True]


def test_a_label_that_fills_the_volume():
    full = torch.ones(6, 6, 6, dtype=torch.int64)
    assert hd95_per_label(full, full, [1], (1.0, 1.0, 1.0)).tolist() == [0]
    assert assd_per_label(full, full, [1], (1.0, 1.0, 1.0)).tolist() == [0]


def test_tre_is_a_mean_of_distances(device):
    moving = torch.zeros(2, 3, device=device)
    fixed = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 1.0]], device=device)
    assert tre_mm(fixed, moving) == pytest.approx(3)
    assert math.isnan(tre_mm(torch.zeros(0, 3), torch.zeros(0, 3)))


def half_folded():
    ddf = torch.zeros(2, 12, 4)
    ddf[0] = -3.0 * (torch.arange(12.0) - 6).clamp_min(0)[:, None]
    return ddf  # det J: 6 rows of 1, one of -0.5, 5 of -2


def test_folds_in_percent(device):
    ddf = half_folded().to(device)
    assert fold_percent(ddf) == pytest.approx(50)
    assert fold_percent(ddf[None]) == pytest.approx(50)
    mask = torch.zeros(12, 4)
    mask[5:9] = 1
    assert fold_percent(ddf, mask) == pytest.approx(75)
    assert fold_percent(ddf, mask[None, None].bool()) == pytest.approx(75)
    assert fold_percent(torch.zeros(3, 4, 4, 4, device=device)) == 0
    assert math.isnan(fold_percent(ddf, torch.zeros(12, 4)))


def test_a_collapsed_voxel_counts_as_folded():
    assert fold_percent(-identity((4, 4))) == 100


def test_sdlogj_of_closed_forms(device):
    assert sdlogj(0.5 * identity((5, 6, 7)).to(device)) == pytest.approx(0, abs=1e-6)
    ddf = torch.zeros(2, 8, 6, device=device)
    mask = torch.ones(8, 6)
    ddf[0, 4:] = torch.arange(1, 5, device=device)[:, None]  # 1 on rows 0-2, 2 on rows 5-7
    mask[3:5] = 0  # the kink between
    assert sdlogj(ddf, mask) == pytest.approx(math.log(2) / 2)
    assert math.isnan(sdlogj(ddf, torch.zeros(8, 6)))


def test_sdlogj_clamps_folds():
    assert sdlogj(half_folded()) == pytest.approx(-math.log(1e-9) / 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dice_per_label(torch.zeros(4, 4), torch.zeros(4, 5), [1]), r"same shape, got \(4, 4\) and \(4, 5\)"),
        (lambda: hd95_per_label(torch.zeros(4, 4), torch.zeros(4, 5), [1], (1, 1)), "same shape"),
        (lambda: hd95_per_label(torch.zeros(4, 4), torch.zeros(4, 4), [1], (1, 1, 1)), "pred must have 3 spatial axes"),
        (lambda: assd_per_label(torch.zeros(4, 4, 4), torch.zeros(4, 4, 4), [1], (1, 1)), "pred must have 2 spatial"),
        (lambda: tre_mm(torch.zeros(4, 3), torch.zeros(5, 3)), "same shape"),
        (lambda: tre_mm(torch.zeros(1, 4, 3), torch.zeros(1, 4, 3)), r"landmarks must be \(N, d\), got \(1, 4, 3\)"),
        (lambda: fold_percent(torch.zeros(3, 4, 4)), r"ddf must be \(B, d, \*S\)"),
        (lambda: fold_percent(torch.zeros(2, 4, 4), torch.ones(4)), r"mask must have 2 spatial axes, got \(4,\)"),
        (lambda: sdlogj(torch.zeros(2, 4, 4), torch.ones(4, 5)), r"mask must have sizes \(4, 4\), got \(4, 5\)"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_round_trip_of_a_translation_and_its_reverse_is_zero():
    ddf = torch.zeros(1, 3, 6, 6, 6)
    ddf[:, 1] = 2.0
    assert round_trip_mm(ddf, -ddf, (1.0, 3.0, 2.0)) == pytest.approx(0.0, abs=1e-6)
    assert round_trip_mm(ddf, 0 * ddf, (1.0, 3.0, 2.0)) == pytest.approx(6.0)
    with pytest.raises(ValueError, match="same shape"):
        round_trip_mm(ddf, ddf[..., 1:], (1.0, 1.0, 1.0))
