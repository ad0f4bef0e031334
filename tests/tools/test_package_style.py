"""The Python of a package in the style that the model zoo's own checks ask for."""

import subprocess
import sys

import pytest

from tools.package import bundle_names
from tools.package_check import unpack

# The zoo: black at 120 columns without magic trailing commas and isort in black's profile, both by ruff's own reading.
RUFF = """
line-length = 120
target-version = "py310"
[format]
skip-magic-trailing-comma = true
[lint]
select = ["I"]
[lint.isort]
split-on-trailing-comma = false
"""
# flake8 itself, with bugbear, comprehensions and naming, and the codes that the zoo selects.
FLAKE8 = """
[flake8]
select = B,C,E,F,N,P,T4,W,B9
max_line_length = 120
ignore = E203,E501,E741,W503,W504,C408,N812,B023
per_file_ignores = __init__.py: F401, __main__.py: F401
"""


def _check(folder, *command):
    found = subprocess.run([sys.executable, "-m", *command, str(folder)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("bundle", bundle_names())
def test_a_package_is_in_the_zoos_style(bundle, zips, tmp_path):
    folder = unpack(zips[bundle], tmp_path)
    config = tmp_path / "zoo.toml"
    config.write_text(RUFF)
    for arguments in (["format", "--check"], ["check"]):
        _check(folder, "ruff", *arguments, "--no-cache", "--config", str(config))
    rules = tmp_path / "setup.cfg"
    rules.write_text(FLAKE8)
    _check(folder, "flake8", "--jobs", "1", "--config", str(rules))


def test_the_check_sees_what_the_zoo_refuses(tmp_path):
    (tmp_path / "setup.cfg").write_text(FLAKE8)
    (tmp_path / "bad.py").write_text("def f(x=[]):\n    return dict([(k, k) for k in x])\n")
    with pytest.raises(AssertionError) as refused:
        _check(tmp_path / "bad.py", "flake8", "--config", str(tmp_path / "setup.cfg"))
    assert "B006" in str(refused.value)
    assert "C404" in str(refused.value)
