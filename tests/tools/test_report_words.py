from __future__ import annotations

import math

import pytest

from shared.metrics import METRICS as SCORED
from tools.report_words import METRICS, amount, bytes_text, count_text, seconds_text, spread


def test_metrics_are_those_of_the_scores():
    assert {key: metric.larger_is_better for key, metric in METRICS.items()} == {k: v for k, (_, v) in SCORED.items()}


@pytest.mark.parametrize(
    ("value", "digits", "sign", "text"),
    [
        (0.69049, 3, False, "0.690"),
        (0.0, 2, False, "0.00"),
        (0.001, 2, False, "<0.01"),
        (0.001, 2, True, "0.00"),
        (-0.5, 1, False, "\N{MINUS SIGN}0.5"),
        (0.5, 1, True, "+0.5"),
        (math.nan, 3, False, "\N{EN DASH}"),
        (math.inf, 3, True, "\N{EN DASH}"),
    ],
)
def test_amount(value, digits, sign, text):
    assert amount(value, digits, sign) == text


def test_spread():
    assert spread([1.0, 3.0, math.nan], 2) == ("2.00", f"{math.sqrt(2):.2f}")
    assert spread([1.0], 1) == ("1.0", "")
    assert spread([1.0, 1.0], 1) == ("1.0", "")
    assert spread([math.nan], 1) == ("\N{EN DASH}", "")


def test_times_sizes_and_counts():
    assert [seconds_text(v) for v in (3.14159, 59.7, 380, 7260)] == ["3.14 s", "59.7 s", "6 min 20 s", "2 h 1 min"]
    assert [bytes_text(v) for v in (0, 999, 6.3e6, 1.25e9)] == ["0 B", "999 B", "6.3 MB", "1.25 GB"]
    assert count_text(1234567) == "1\N{NARROW NO-BREAK SPACE}234\N{NARROW NO-BREAK SPACE}567"
