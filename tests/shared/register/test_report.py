"""Scores of a registration without a network."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from shared.register.report import scored_labels
from tests.shared.register.pairs import plain_grid


def test_the_labels_of_both_maps_are_scored_before_and_after():
    """Label 1 fits, 2 vanished under the warp, 3 and 4 are in one map each."""
    grid = plain_grid((6, 6, 6))
    fixed, moving = np.zeros((2, 6, 6, 6), np.uint8)
    fixed[0], fixed[2], fixed[4] = 1, 2, 3
    moving[1], moving[2], moving[5] = 1, 2, 4
    warped = np.zeros_like(fixed)
    warped[0], warped[5] = 1, 4
    pair = SimpleNamespace(
        fixed=SimpleNamespace(label=fixed, grid=grid), moving=SimpleNamespace(label=moving, grid=grid)
    )
    scores, table = scored_labels(pair, warped)
    assert set(table) == {1, 2}
    assert (table[1]["dice"], table[2]["dice"]) == (1.0, 0.0)
    assert math.isnan(table[2]["hd95_mm"])
    assert (scores["dice"], scores["dice_before"]) == (pytest.approx(0.5), pytest.approx(0.5))
    # Of label 1 alone: 2 has no distance any more.
    assert (scores["hd95_mm"], scores["hd95_mm_before"]) == (0.0, pytest.approx(2.0))


def test_maps_without_a_common_label_have_no_overlap():
    grid = plain_grid((6, 6, 6))
    fixed, moving = np.full((6, 6, 6), 1, np.uint8), np.full((6, 6, 6), 2, np.uint8)
    pair = SimpleNamespace(
        fixed=SimpleNamespace(label=fixed, grid=grid), moving=SimpleNamespace(label=moving, grid=grid)
    )
    scores, table = scored_labels(pair, moving)
    assert table == {}
    assert math.isnan(scores["dice"])
