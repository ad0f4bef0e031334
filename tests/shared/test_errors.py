from __future__ import annotations

import pytest

from shared.errors import did_you_mean


@pytest.mark.parametrize(
    ("found", "hint"),
    [("OASSIS", " (did you mean 'OASIS'?)"), ("synth_brain", " (did you mean 'synth_brain_mr'?)"), ("Z", ""), ("", "")],
)
def test_a_near_miss_names_the_nearest(found, hint):
    assert did_you_mean(found, iter(["NLST", "OASIS", "synth_brain_mr"])) == hint
    assert did_you_mean(found, []) == ""
