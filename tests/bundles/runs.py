"""Bundles as people run them: `python -m monai.bundle` in a subprocess."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = sorted(path.parents[1].name for path in (ROOT / "bundles").glob("*/configs/train.json"))
# One thread: test machines have few cores, and the tests compare bits.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def flags(options: dict[str, object]) -> list[str]:
    """Return options as a command line has them."""
    return [item for key, value in options.items() for item in (f"--{key}", str(value))]


def command(bundle: str, run_id: str, names: tuple[str, ...], **options: object) -> list[str]:
    """Return the command line of a run with configs of a bundle, by name."""
    files = ",".join(f"'bundles/{bundle}/configs/{name}.json'" for name in names)
    return [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", f"[{files}]", *flags(options)]


def start(arguments: list[str], folder: Path = ROOT) -> subprocess.CompletedProcess:
    """Run a command to its end, however it ends."""
    environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def _succeed(result: subprocess.CompletedProcess) -> subprocess.CompletedProcess:
    assert result.returncode == 0, result.stderr[-3000:]
    return result


def run(bundle: str, run_id: str, names: tuple[str, ...], **options: object) -> subprocess.CompletedProcess:
    """Run a bundle from the repository's root; the run must succeed."""
    return _succeed(start(command(bundle, run_id, names, **options)))


def run_ranks(
    bundle: str, run_id: str, names: tuple[str, ...], count: int = 2, **options: object
) -> subprocess.CompletedProcess:
    """Run a bundle as several processes; the run must succeed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={count}", f"--master_port={port}"]
    return _succeed(start([*launcher, *command(bundle, run_id, names, **options)[1:]]))


def host_command(bundle: str, name: str, *arguments: str, **options: object) -> subprocess.CompletedProcess:
    """Run another command of MONAI on a bundle, from the bundle's folder as its hosts do; it must succeed."""
    files = {"meta_file": "configs/metadata.json", "config_file": "configs/inference.json"}
    line = [sys.executable, "-m", "monai.bundle", name, *arguments, *flags({**files, **options})]
    return _succeed(start(line, ROOT / "bundles" / bundle))


def git_status() -> str:
    """Return what git knows of changed and new files; without git, the test is skipped."""
    status = start(["git", "status", "--porcelain"])
    if status.returncode:
        pytest.skip("not a git checkout")
    return status.stdout
