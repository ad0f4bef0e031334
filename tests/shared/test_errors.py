from __future__ import annotations

import pytest

from shared.errors import InputError, check_bools, did_you_mean


@pytest.mark.parametrize(
    ("found", "hint"),
    [("OASSIS", " (did you mean 'OASIS'?)"), ("synth_brain", " (did you mean 'synth_brain_mr'?)"), ("Z", ""), ("", "")],
)
def test_a_near_miss_names_the_nearest(found, hint):
    assert did_you_mean(found, iter(["NLST", "OASIS", "synth_brain_mr"])) == hint
    assert did_you_mean(found, []) == ""


@pytest.mark.parametrize("value", ["false", "true", "", None, 0, 1])
def test_an_option_that_is_neither_on_nor_off_is_refused_by_name(value):
    check_bools(adaptive=True, normalise=False)
    with pytest.raises(InputError, match=rf"^adaptive: found {value!r}, expected True or False$"):
        check_bools(normalise=False, adaptive=value)
