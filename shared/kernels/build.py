"""Building the CPU kernels: once for a machine and a torch version, kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from filelock import FileLock

__all__ = ["BuildError", "cache_dir", "library"]

SOURCES = sorted(Path(__file__).parent.glob("*.cpp"))
HEADERS = sorted(Path(__file__).parent.glob("*.h"))
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math")
# A build takes a minute or two; who waits longer for another process has met a machine in trouble.
PATIENCE_S = 600

_PROGRAM = """
import sys
from torch.utils.cpp_extension import load
folder, *rest = sys.argv[1:]
sources, flags = ([x for x in rest if x.endswith(".cpp") is cpp] for cpp in (True, False))
load("kernels", sources, extra_cflags=flags, build_directory=folder, is_python_module=False)
"""

logger = logging.getLogger(__name__)


class BuildError(RuntimeError):
    """The kernels could not be built; the text says why."""


def cache_dir() -> Path:
    """Return the folder of built kernels: ``REGISTRATION_KERNELS_CACHE``, else one in the user's cache folder."""
    chosen = os.environ.get("REGISTRATION_KERNELS_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "registration_kernels"


def _cpu_flags() -> str:
    """Return what the CPU can do: code built for one is not for another that shares the home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def _key() -> str:
    texts = [path.read_text() for path in (*SOURCES, *HEADERS)]
    parts = (torch.__version__, platform.machine(), _cpu_flags(), " ".join(FLAGS), *texts)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def library() -> Path:
    """Return the built library; builds it where that has not been done, which takes a minute or two.

    Several processes may ask at once: one builds, the others wait. A killed build leaves nothing that is taken for a
    library.

    Raises:
        BuildError: no compiler, a compiler that fails, or a cache folder that cannot be written.
    """
    name = f"kernels_{_key()}.so"
    try:
        folder = cache_dir()
        built = folder / name
        if built.is_file():
            return built
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{name}.lock", timeout=PATIENCE_S):
            if not built.is_file():
                logger.info("building the CPU kernels, once on this machine: a minute or two")
                _build(built)
        return built
    except OSError as error:  # filelock's timeout is one as well
        raise BuildError(f"{error}") from error


def _build(target: Path) -> None:
    """Compile in a folder of its own, then rename: torch's lock files would outlive a kill.

    torch's extension loader also loads what it has built, and operators can be defined only once a process: it gets a
    process of its own.
    """
    from torch.utils.cpp_extension import get_cxx_compiler

    if shutil.which(get_cxx_compiler()) is None:
        raise BuildError(f"no C++ compiler ({get_cxx_compiler()!r}) on the PATH")
    search_path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # ninja from pip
    if shutil.which("ninja", path=search_path) is None:
        raise BuildError("no ninja on the PATH (`pip install ninja`)")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
        command = [sys.executable, "-c", _PROGRAM, folder, *map(str, SOURCES), *FLAGS]
        environment = {**os.environ, "PATH": search_path}
        result = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise BuildError(f"the compiler failed: {_cause(result.stderr + result.stdout)}")
        Path(folder, "kernels.so").replace(target)


def _cause(text: str) -> str:
    """Return the line of a failed build that says most."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "without a word")
