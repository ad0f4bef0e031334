from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from shared.fields import jacobian_determinant
from shared.metrics import fold_percent, sdlogj
from shared.metrics.determinants import determinants
from shared.quality_check import (
    LIMITS,
    correlation,
    covered_share,
    field_scores,
    mutual_information,
    round_trip,
    sample_pair,
    verdict,
)
from shared.register.inputs import Side
from shared.transform_io import Affine, Grid, Transform


def side(image: np.ndarray, spacing: float = 2.0, mask: np.ndarray | None = None) -> Side:
    grid = Grid(image.shape, np.diag([spacing] * image.ndim + [1.0]))
    held = torch.from_numpy(mask.astype(np.int16))[None, None] if mask is not None else None
    return Side("image", torch.from_numpy(image.astype(np.float32))[None, None], grid, mask=held)


def shift(*mm: float) -> Transform:
    matrix = np.eye(len(mm) + 1)
    matrix[:-1, -1] = mm
    return Transform((Affine(matrix),))


def test_mutual_information_from_nothing_to_everything():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 20_000))
    assert mutual_information(x, x) == pytest.approx(2.0)
    assert mutual_information(x, -3 * x + 5) == pytest.approx(2.0, abs=0.05)
    assert mutual_information(x, y) < 1.03
    assert math.isnan(mutual_information(x[:50], x[:50]))
    assert mutual_information(np.ones(1000), y[:1000]) == pytest.approx(1.0)


def test_correlation():
    x = np.arange(200.0)
    assert correlation(x, 2 * x + 1) == pytest.approx(1.0)
    assert correlation(x, -x) == pytest.approx(-1.0)
    assert math.isnan(correlation(x, np.ones(200)))


def test_pairs_are_compared_where_every_transform_sees():
    image = np.random.default_rng(1).uniform(size=(30, 30))
    fixed = moving = side(image)
    values, (still, moved), shares = sample_pair(fixed, moving, (shift(0, 0), shift(20, 0)))
    # Ten of thirty rows look beyond the moving image.
    assert len(values) == len(still) == len(moved) == 20 * 30
    np.testing.assert_allclose(values, still, atol=1e-5)
    np.testing.assert_allclose(moved, image[10:].ravel(), atol=1e-5)
    assert shares == [1.0, pytest.approx(2 / 3)]


def test_masks_decide_what_is_compared():
    image = np.random.default_rng(1).uniform(size=(30, 30))
    mask = np.zeros((30, 30))
    mask[:10] = 1
    values, _, shares = sample_pair(side(image, mask=mask), side(image), (shift(0, 0),))
    assert len(values) == 300
    assert shares == [1.0]
    assert len(sample_pair(side(image), side(image, mask=mask), (shift(0, 0),))[0]) == 300


def test_determinants_in_slabs_are_those_of_the_whole():
    ddf = torch.randn(1, 3, 37, 6, 7, generator=torch.Generator().manual_seed(0))
    whole = jacobian_determinant(ddf)[0, 0]
    torch.testing.assert_close(determinants(ddf), whole)
    scores = field_scores(determinants(ddf))
    assert scores["folds_percent"] == pytest.approx(fold_percent(ddf))
    assert scores["folds_percent"] > 10
    assert scores["sdlogj"] == pytest.approx(sdlogj(ddf))
    mask = torch.zeros(37, 6, 7)
    mask[:5] = 1
    assert field_scores(determinants(ddf), mask)["sdlogj"] == pytest.approx(sdlogj(ddf, mask))


def test_covered_share():
    image = np.random.default_rng(1).uniform(size=(30, 30))
    assert covered_share(shift(20, 0), side(image), side(image).grid) == pytest.approx(2 / 3)
    mask = np.zeros((30, 30))
    mask[25:] = 1
    assert covered_share(shift(20, 0), side(image, mask=mask), side(image).grid) == 0


def test_round_trip_in_mm():
    mean, largest = round_trip(shift(3, 0), shift(-3, 0.5), side(np.zeros((10, 10))).grid)
    assert mean == pytest.approx(0.5)
    assert largest == pytest.approx(0.5)


GOOD = {
    "overlap": 0.9,
    "folds_percent": 0.0,
    "sdlogj": 0.2,
    "round_trip_voxels": 0.01,
    "similarity": 1.3,
    "similarity_gain": 0.1,
    "dice": 0.8,
    "dice_gain": 0.2,
    "tre_gain_mm": 3.0,
}


def test_every_limit_is_judged():
    assert set(GOOD) == set(LIMITS)
    assert verdict(GOOD) == ("ok", [])
    assert verdict({}) == ("ok", [])
    assert verdict({**GOOD, "dice": math.nan}) == ("ok", [])


@pytest.mark.parametrize("name", LIMITS)
def test_either_side_of_every_limit(name):
    suspect, failed, text = LIMITS[name]
    between = {**GOOD, name: (suspect + failed) / 2}
    word, reasons = verdict(between)
    assert word == "suspect"
    assert len(reasons) == 1
    assert reasons[0].startswith(name)
    assert text in reasons[0]
    beyond = {**GOOD, name: failed + (failed - suspect) * 0.1}
    assert verdict(beyond)[0] == "failed"
    assert verdict({**GOOD, name: suspect})[0] == "ok"


def test_remarks_make_a_result_suspect_and_the_worst_counts():
    assert verdict(GOOD, ["the start was kept"]) == ("suspect", ["the start was kept"])
    word, reasons = verdict({**GOOD, "overlap": 0.0, "folds_percent": 0.5}, ["a remark"])
    assert word == "failed"
    assert len(reasons) == 3
