from __future__ import annotations

import torch

from shared.metrics import fold_percent as plain_fold_percent
from shared.optimise.check import alike, fold_percent, unfold, worse_than
from shared.optimise.forces import LocalNCC, MutualInformation
from tests.shared.optimise.scenes import displaced_pair, picture, smooth_field


def test_folds_are_counted_in_slabs_as_in_the_whole():
    field = smooth_field((75, 20, 18), 25.0, sigma=3.0)
    whole = plain_fold_percent(field)
    assert whole > 1.0
    assert abs(fold_percent(field) - whole) < 1e-6


def test_folds_are_smoothed_away_and_the_rest_is_left_alone():
    for size in ((60, 50), (40, 36, 30)):
        d = len(size)
        field = smooth_field(size, 3.0)
        folded = field.clone()
        middle = (slice(None), slice(None), *[slice(n // 2 - 1, n // 2 + 2) for n in size])
        folded[middle] += 4.0 * torch.randn(folded[middle].shape, generator=torch.Generator().manual_seed(0))
        assert fold_percent(folded) > 0.01
        mended = unfold(folded, 0.0)
        assert fold_percent(mended) == 0.0
        corner = (slice(None), slice(None), *[slice(0, n // 4) for n in size])
        assert torch.equal(mended[corner], folded[corner])
        assert mended.shape == (1, d, *size)


def judge(fixed, moving):
    pad = torch.nn.functional.pad
    one = torch.ones_like(fixed)
    return MutualInformation(fixed, pad(moving, [1] * 4, mode="replicate"), one, pad(one, [1] * 4), margin=[1, 1])


def test_a_worse_field_is_told_from_a_better_one():
    fixed, moving, truth = displaced_pair((70, 60), 4.0)
    still = torch.zeros_like(truth)
    for optimised in ("lncc", "mi"):
        assert not worse_than(judge(fixed, moving), truth, still, optimised)[0]
        assert worse_than(judge(fixed, moving), -truth, still, optimised)[0]


def test_a_field_that_leaves_the_moving_image_is_worse_whatever_it_shows():
    fixed, moving, truth = displaced_pair((70, 60), 4.0)
    away = torch.zeros_like(truth)
    away[:, 0] = 60.0
    worse, words = worse_than(judge(fixed, moving), away, torch.zeros_like(truth), "lncc")
    assert worse
    assert "of the overlap is left" in words


def test_scans_of_one_patient_match_in_places_and_those_of_two_do_not():
    fixed, moving, _ = displaced_pair((70, 60), 6.0)
    other = picture((70, 60), seed=9)
    pad = torch.nn.functional.pad
    shares = []
    for image in (fixed, moving, other):
        one = torch.ones_like(fixed)
        shares.append(alike(LocalNCC(fixed, pad(image, [1] * 4), one, pad(one, [1] * 4), margin=[1, 1])))
    assert shares[0] == 1.0
    assert shares[1] > 0.15 > shares[2]
