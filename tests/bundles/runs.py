"""Bundles as people run them: `python -m monai.bundle run` in a subprocess, from the repository's root."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# One thread: test machines have few cores, and the tests compare bits.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def command(bundle: str, run_id: str, names: tuple[str, ...], **options: object) -> list[str]:
    """Return the command line of a run with configs of a bundle, by name."""
    files = ",".join(f"'bundles/{bundle}/configs/{name}.json'" for name in names)
    flags = [item for key, value in options.items() for item in (f"--{key}", str(value))]
    return [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", f"[{files}]", *flags]


def start(arguments: list[str]) -> subprocess.CompletedProcess:
    """Run a command to its end, however it ends."""
    return subprocess.run(arguments, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def run(bundle: str, run_id: str, names: tuple[str, ...], **options: object) -> subprocess.CompletedProcess:
    """Run a bundle; the run must succeed."""
    result = start(command(bundle, run_id, names, **options))
    assert result.returncode == 0, result.stderr[-3000:]
    return result
