"""The Python of a package in the style that the model zoo's own checks ask for."""

import subprocess
import sys

import pytest

from tools.package import bundle_names
from tools.package_check import unpack

# The zoo: black at 120 columns without magic trailing commas, isort in black's profile, flake8 with these codes.
CONFIG = """
line-length = 120
target-version = "py310"
[format]
skip-magic-trailing-comma = true
[lint]
select = ["B", "C4", "E", "F", "I", "N", "W"]
ignore = ["E203", "E501", "E741", "C408", "N812", "B023"]
[lint.isort]
split-on-trailing-comma = false
[lint.per-file-ignores]
"__init__.py" = ["F401"]
"""


@pytest.mark.parametrize("bundle", bundle_names())
def test_a_package_is_in_the_zoos_style(bundle, zips, tmp_path):
    folder = unpack(zips[bundle], tmp_path)
    config = tmp_path / "zoo.toml"
    config.write_text(CONFIG)
    for arguments in (["format", "--check"], ["check"]):
        command = [sys.executable, "-m", "ruff", *arguments, "--no-cache", "--config", str(config), str(folder)]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stdout + found.stderr
