"""Trying a packed bundle as its users will: unpacked into an empty folder, with the collection out of reach."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from shared.errors import InputError
from shared.files import read_json

from .package import MANIFEST, digest
from .package_large_files import LIST

__all__ = ["check_package", "unpack"]

# Stands in for the collection's own packages, which an editable installation would else offer.
_OUT_OF_REACH = "raise ImportError('found an import of the collection itself, expected a bundle that needs none')\n"


def unpack(package: str | Path, folder: str | Path) -> Path:
    """Unpack a package and return the bundle's folder.

    Raises:
        InputError: no zip, a path or link that leaves the folder, more than one top folder, or files that are not those
            of the manifest.
    """
    path = Path(package)
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                _check_entry(path, entry)
            tops = {PurePosixPath(name).parts[0] for name in archive.namelist()}
            if len(tops) != 1:
                raise InputError(f"{path}: found {len(tops)} top folders, expected one, the bundle's")
            archive.extractall(folder)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not readable ({error}); expected a zip of `python -m tools package`") from error
    bundle = Path(folder) / tops.pop()
    _check_files(path, bundle)
    return bundle


def _check_entry(path: Path, entry: zipfile.ZipInfo) -> None:
    parts = PurePosixPath(entry.filename.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[0]:
        raise InputError(f"{path}: found the path '{entry.filename}', expected none that leaves the folder")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise InputError(f"{path}: found the link '{entry.filename}', expected plain files")


def _check_files(path: Path, bundle: Path) -> None:
    if not (bundle / MANIFEST).is_file():
        raise InputError(f"{path}: found no {MANIFEST} in it, expected a zip of `python -m tools package`")
    manifest = read_json(bundle / MANIFEST)
    found = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()} - {MANIFEST}
    listed = set(manifest.get("files", {}))
    if found != listed:
        raise InputError(f"{path}: found files that differ from its list: {sorted(found ^ listed)[:3]}")
    for name, expected in manifest["files"].items():
        if digest((bundle / name).read_bytes()) != expected:
            raise InputError(f"{path}: found {name} changed since it was packed")


@contextmanager
def _alone(bundle: Path) -> Iterator[dict[str, str]]:
    """Yield an environment in which Python finds the bundle but not the collection."""
    with tempfile.TemporaryDirectory() as blocked:
        for name in ("shared", "tools"):
            Path(blocked, f"{name}.py").write_text(_OUT_OF_REACH)
        yield {**os.environ, "PYTHONPATH": os.pathsep.join([blocked, str(bundle)])}


def _steps(bundle: Path, schema: Path | None) -> Iterator[tuple[str, list[str]]]:
    """Yield what is tried, as arguments of ``python -m monai.bundle``, from within the bundle."""
    metadata = "configs/metadata.json"
    if schema is not None:
        (bundle / "eval").mkdir(exist_ok=True)
        shutil.copy(schema, bundle / "eval" / "schema.json")
    if (bundle / LIST).is_file():
        yield "large files", ["download_large_files", "--bundle_path", "."]
    yield "metadata", ["verify_metadata", "--meta_file", metadata, "--filepath", "eval/schema.json"]
    shape = ["--meta_file", metadata, "--config_file", "configs/inference.json"]
    yield "network", ["verify_net_in_out", "network_def", *shape, "--extra_forward_args", "{}"]
    if (bundle / "models" / "model.pt").is_file():
        files = ["--filepath", "eval/model.ts", "--ckpt_file", "models/model.pt", *shape]
        yield "TorchScript", ["ckpt_export", "network_def", *files]
    smoke = "['configs/train.json','configs/smoke.json']"
    yield "training", ["run", "training", "--config_file", smoke, "--run_dir", "eval/smoke"]
    small = [] if (bundle / "models" / "model.pt").is_file() else ["--model", "eval/smoke/model.pt"]
    files = ["configs/inference.json", *(["configs/smoke.json"] if small else [])]
    yield "inference", ["run", "inference", "--config_file", str(files), "--output_dir", "eval/inference", *small]


def check_package(
    package: str | Path, schema: str | Path | None = None, tell: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Unpack a package and try it: large files, metadata, shapes, TorchScript, a short training, inference on a sample.

    Args:
        package: zip.
        schema: the zoo's metadata schema as a file; None fetches the one that the metadata names.
        tell: called before each step with its name.

    Returns:
        The package's record, see ``tools/package.py``.

    Raises:
        InputError: the zip is not as it should be, or a step failed; with the last lines of what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        bundle = unpack(package, folder)
        with _alone(bundle) as environment:
            for name, arguments in _steps(bundle, None if schema is None else Path(schema)):
                tell(name)
                command = [sys.executable, "-m", "monai.bundle", *arguments]
                result = subprocess.run(
                    command, cwd=bundle, env=environment, capture_output=True, text=True, check=False
                )
                if result.returncode != 0:
                    said = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]
                    raise InputError(f"{package}: {name} failed: {' | '.join(said[-3:])}")
        return read_json(bundle / MANIFEST)
