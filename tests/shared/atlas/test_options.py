"""What a request may choose, as servers and clients hand it over."""

from __future__ import annotations

import re

import pytest

from shared.atlas import PropagationOptions
from shared.errors import InputError


def test_a_request_without_options_gets_the_defaults():
    assert PropagationOptions.of_request({"image": "x"}) == PropagationOptions()


def test_of_a_list_of_choices_the_first_counts():
    data = {"atlases": ["all", "a"], "fusion": ["majority", "similarity"], "init": ["auto"], "optimise": [7, 8]}
    assert PropagationOptions.of_request(data) == PropagationOptions("all", "majority", 7, "auto")


def test_clients_send_numbers_as_text_and_files_alone_or_in_lists():
    found = PropagationOptions.of_request({"optimise": "12", "atlas_image": "a", "atlas_label": ["b"], "init": ""})
    assert (found.optimise, found.atlas_image, found.atlas_label, found.init) == (12, ("a",), ("b",), "none")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"optimise": "lots"}, "found optimise 'lots', expected a number of steps, 0 or more"),
        ({"optimise": -1}, "found optimise -1"),
        ({"optimise": None}, "found optimise None"),
        ({"fusion": "similar"}, "found fusion 'similar' (did you mean 'similarity'?)"),
        ({"init": "/etc/passwd"}, "found init '/etc/passwd', expected one of auto, affine, rigid, centre, none"),
    ],
)
def test_what_cannot_be_is_said(data, message):
    with pytest.raises(InputError, match=re.escape(message)):
        PropagationOptions.of_request(data)
