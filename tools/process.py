"""Running one bundle in a process of its own, which never outlives the tool that started it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from shared.errors import InputError
from shared.files import save_json

from . import WAIT_POLICY_IS_THE_USERS
from .plan import ROOT

__all__ = ["run_bundle"]

# Asks Linux to kill the process when its parent dies, then becomes the command: ``exec`` keeps the request. Elsewhere
# the lock on the run_dir keeps order. Not a ``preexec_fn``: that may deadlock where threads start processes.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    sys.exit("the tool that started this is gone")
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def _command(arguments: Path) -> list[str]:
    command = ["-m", "monai.bundle", "run", "--args_file", str(arguments)]
    if sys.platform == "linux":
        command = ["-c", _DIE_WITH_PARENT, str(os.getpid()), *command]
    return [sys.executable, *command]


def _reason(text: str) -> str:
    """Return why a run failed: its ``error:`` line, or the first cause of its traceback, or the last lines."""
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    causes = [before for before, line in pairwise(lines) if line.startswith("The above exception was the direct cause")]
    return errors[-1] if errors else causes[0] if causes else " | ".join(lines[-3:])


def run_bundle(
    run_id: str,
    config_files: Sequence[str],
    options: Mapping[str, Any],
    log: str | Path,
    threads: int | None = None,
    watch: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Call ``python -m monai.bundle run``, with its output in ``log`` and its arguments in a JSON file beside that.

    Args:
        run_id: list of the config to run.
        config_files: config and overlays.
        options: ids that win over the files.
        log: text file; a second call appends.
        threads: CPU threads of the process; None leaves it to torch.
        watch: called twice a second while the process runs.

    Returns:
        ``seconds`` and ``peak_memory_bytes`` (resident) of the process.

    Raises:
        InputError: the run failed; its own message, and where the log is.
    """
    log = Path(log)
    arguments = log.with_suffix(".json")
    save_json(arguments, {"run_id": run_id, "config_file": list(config_files), **options})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    if not WAIT_POLICY_IS_THE_USERS:
        environment.pop("OMP_WAIT_POLICY", None)
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    begin = time.monotonic()
    with log.open("ab") as stream:
        earlier = stream.tell()
        process = subprocess.Popen(
            _command(arguments), stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, env=environment
        )
        try:
            usage = _wait(process, watch)
        except BaseException:
            process.kill()
            process.wait()
            raise
    if process.returncode != 0:
        text = log.read_bytes()[earlier:].decode(errors="replace")
        raise InputError(f"{_reason(text)} (exit code {process.returncode}; log: {log})")
    unit = 1 if sys.platform == "darwin" else 1024
    return {"seconds": round(time.monotonic() - begin, 2), "peak_memory_bytes": usage.ru_maxrss * unit}


def _wait(process: subprocess.Popen, watch: Callable[[], None] | None) -> Any:
    """Wait for the process; return its resource usage, which ``Popen.wait`` throws away."""
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return usage
        if watch is not None:
            watch()
        time.sleep(0.5)
