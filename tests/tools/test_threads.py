"""OpenMP's threads of the tools sleep while they wait, unless the user wants them otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.process import run_bundle

ROOT = Path(__file__).resolve().parents[2]
VARIABLE = "OMP_WAIT_POLICY"


@pytest.mark.parametrize(("own", "expected"), [(None, "PASSIVE"), ("active", "active")])
@pytest.mark.parametrize("command", ["register", "apply", "chain"])
def test_it_is_set_when_torch_is_loaded(tmp_path, command, own, expected):
    (tmp_path / "torch.py").write_text(f"import os\nraise SystemExit(os.environ.get({VARIABLE!r}, 'unset'))\n")
    environment = {k: v for k, v in os.environ.items() if k != VARIABLE} | ({VARIABLE: own} if own else {})
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(ROOT)])
    run = subprocess.run(
        [sys.executable, "-m", "tools", command, "--help"], env=environment, capture_output=True, text=True, check=False
    )
    assert run.stderr == f"{expected}\n"


@pytest.mark.parametrize("own", [True, False], ids=["the user's", "the tools'"])
def test_bundles_get_the_users_setting_only(tmp_path, monkeypatch, own):
    monkeypatch.setenv(VARIABLE, "PASSIVE")
    monkeypatch.setattr("tools.process.WAIT_POLICY_IS_THE_USERS", own)
    said = f"$print('policy', __import__('os').environ.get('{VARIABLE}'))"
    config = tmp_path / "train.json"
    config.write_text(f'{{"training": ["{said}"]}}')
    run_bundle("training", [str(config)], {}, tmp_path / "run.log")
    assert f"policy {'PASSIVE' if own else None}\n" in (tmp_path / "run.log").read_text()
