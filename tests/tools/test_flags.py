"""Words of the command line that fire reads otherwise than they are meant."""

from __future__ import annotations

import sys

import pytest

import tools.plan
from shared.errors import InputError
from tools.__main__ import main
from tools.flags import json_words


@pytest.mark.parametrize("command", ["chain", "compare"])
def test_options_may_be_spelt_as_in_json(monkeypatch, command):
    found = {}

    def taken(plan, **changes):
        found.update(changes)
        raise InputError("enough")

    monkeypatch.setattr(tools.plan, "load_plan", taken)
    words = ["--adaptive", "false", "--scheduler=null", "--phases", "{diffusion: {a: true, b: [null, x]}}"]
    monkeypatch.setattr(sys, "argv", ["tools", command, *words])
    with pytest.raises(SystemExit):
        main()
    found.pop("seeds", None)
    assert found == {"adaptive": False, "scheduler": None, "phases": {"diffusion": {"a": True, "b": [None, "x"]}}}


def test_other_words_stay_as_they_are():
    values = {"task": "nullify", "count": 0, "size": (1, 2), "flag": True}
    assert json_words(values) == {**values, "size": [1, 2]}
