from __future__ import annotations

import sys

import pytest

from tests.bundles import runs


@pytest.fixture
def scripts(monkeypatch):
    """Let configs find ``scripts``, and forget it afterwards: another bundle has modules of the same name."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(runs.ROOT / "bundles" / "smdr"))
    import scripts

    yield scripts
    for name in {n for n in sys.modules if n.split(".")[0] == "scripts"} - before:
        del sys.modules[name]
