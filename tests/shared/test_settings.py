"""Settings, compared."""

from __future__ import annotations

from shared.settings import differences, digest, flatten

SETTINGS = {"task": "a", "network": {"channels": 8, "layers": [1, 2]}}


def test_flatten_names_nested_values_by_their_path():
    assert flatten(SETTINGS) == {"task": "a", "network.channels": "8", "network.layers": "[1, 2]"}


def test_digest_depends_on_values_and_not_on_order():
    assert digest(SETTINGS) == digest(dict(reversed(SETTINGS.items())))
    assert digest(SETTINGS) != digest({**SETTINGS, "task": "b"})


def test_differences_in_words():
    asked = {"task": "a", "network": {"channels": 9, "layers": (1, 2)}, "seed": 1}
    found = differences(SETTINGS, asked)
    assert found == "network.channels: found 8, asked for 9; seed: found None, asked for 1"
    assert differences(SETTINGS, {"task": "a", "network": {"channels": 8, "layers": (1, 2)}}) == ""


def test_a_long_list_of_differences_is_cut():
    assert differences({}, {f"k{i}": i for i in range(9)}).endswith("and 3 more")
