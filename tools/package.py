"""Packing a bundle into one zip that runs without the collection: ``python -m tools package samcl``.

```
samcl_v0.1.0.zip
  samcl/configs, docs, models, LICENSE    as in the collection
  samcl/scripts/                          with `from shared.x` rewritten to `from ._shared.x`
  samcl/scripts/_shared/                  the part of `shared` that the scripts import
  samcl/package.json                      version, source commit, every file with its SHA-256
```

``shared`` goes below ``scripts``: hosts that unload one bundle's ``scripts`` before the next unload it along. The same
files give the same bytes: names sorted, one date, no extra fields.
"""

from __future__ import annotations

import ast
import io
import json
import re
import subprocess
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from shared.errors import InputError, did_you_mean
from shared.files import atomic_write, read_json, writable_dir

from .package_large_files import LARGEST, digest, set_apart
from .plan import ROOT

__all__ = ["MANIFEST", "bundle_names", "check_bundle", "digest", "pack"]

MANIFEST = "package.json"
NEEDED = ("LICENSE", "configs/metadata.json", "configs/train.json", "configs/inference.json", "docs/README.md")
_DATE = (1980, 1, 1, 0, 0, 0)


def bundle_names(root: Path = ROOT) -> list[str]:
    """Return the bundles that have metadata."""
    return sorted(path.parents[1].name for path in root.glob("bundles/*/configs/metadata.json"))


def check_bundle(bundle: str, root: Path = ROOT) -> None:
    """Raise InputError unless there is such a bundle; the near miss is named."""
    known = bundle_names(root)
    if bundle not in known:
        raise InputError(f"found bundle '{bundle}'{did_you_mean(bundle, known)}; known: {', '.join(known)}")


def pack(
    bundle: str,
    out: str | Path = "dist",
    version: str | None = None,
    allow_dirty: bool = False,
    root: Path = ROOT,
    large_files_url: str | None = None,
) -> Path:
    """Write ``<bundle>_v<version>.zip`` and return its path.

    Args:
        bundle: folder in ``bundles``.
        out: folder of the zip.
        version: expected one; None takes that of the metadata.
        allow_dirty: take the files as they lie there, committed or not.
        root: of the collection.
        large_files_url: where files of more than 25 MB will be found; they are written beside the zip, see
            ``package_large_files.py``.

    Raises:
        InputError: an unknown bundle, a version that the metadata and its changelog do not have, changed files, a
            missing one, or a large one without address.
    """
    check_bundle(bundle, root)
    commit = _commit(root, bundle, allow_dirty)
    files = dict(sorted({**_bundle_files(root, bundle), **_shared_files(root, bundle)}.items()))
    number = _version(root, bundle, version)
    _check(bundle, files)
    target = writable_dir(out) / f"{bundle}_v{number}.zip"
    files, large = set_apart(files, target.stem, target.parent, large_files_url)
    record = {
        "bundle": bundle,
        "version": number,
        "commit": commit,
        "files": {name: digest(content) for name, content in sorted(files.items())},
        **({"large_files": large} if large else {}),
    }
    files[MANIFEST] = (json.dumps(record, indent=2) + "\n").encode()
    atomic_write(target, lambda stream: stream.write(_zipped(bundle, files)))
    return target


def _git(root: Path, *arguments: str) -> str:
    result = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise InputError(f"{root}: git says '{result.stderr.strip()}'; expected a clone of the collection")
    return result.stdout


def _commit(root: Path, bundle: str, allow_dirty: bool) -> str:
    """Return the commit that the files come from."""
    listed = _git(root, "status", "--porcelain", "-uall", "--", f"bundles/{bundle}", "shared").splitlines()
    # Large files are not git's: the package names them by their hash.
    changed = [line for line in listed if not (line.startswith("??") and _is_large(root / line[3:].strip('"')))]
    if changed and not allow_dirty:
        raise InputError(
            f"{root}: found files that are not committed ({changed[0].split()[-1]}, {len(changed)} in all); expected a "
            "clean tree, or --allow_dirty"
        )
    return _git(root, "rev-parse", "HEAD").strip() + ("-dirty" if changed else "")


def _is_large(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > LARGEST


def _listed(root: Path, folder: str) -> Iterator[str]:
    """Yield files of the clone, without what git ignores: data, runs and outputs stay at home."""
    names = _git(root, "ls-files", "-co", "--exclude-standard", "-z", "--", folder).split("\0")
    yield from sorted(name for name in set(names) if name and (root / name).is_file())


def _bundle_files(root: Path, bundle: str) -> dict[str, bytes]:
    found = {}
    for name in _listed(root, f"bundles/{bundle}"):
        inside = name.split("/", 2)[2]
        content = (root / name).read_bytes()
        found[inside] = _rewritten(content, inside.count("/") - 1) if inside.endswith(".py") else content
    return found


def _rewritten(content: bytes, depth: int) -> bytes:
    """Turn ``from shared.x import y`` into an import relative to ``scripts``, the one form that bundles use.

    It then belongs to the group of the siblings' imports, as the zoo's isort wants it.
    """
    inside = b"." * (depth + 1) + b"_shared"
    changed = re.sub(rb"^(\s*from )shared(?=[. ])", rb"\1" + inside, content, flags=re.MULTILINE)
    statement = rb"^(from " + re.escape(inside) + rb"[^\n(]*(?:\([^)]*\))?\n)\n(?=from \.)"
    return re.sub(statement, rb"\1", changed, flags=re.MULTILINE)


def _shared_files(root: Path, bundle: str) -> dict[str, bytes]:
    """Return the modules of ``shared`` that the scripts reach, with what lies beside them that is not Python."""
    waiting = [name for path in root.glob(f"bundles/{bundle}/scripts/**/*.py") for name in _imports(path, ())]
    modules: set[Path] = set()
    while waiting:
        for path in _files_of(root, waiting.pop()):
            if path not in modules:
                modules.add(path)
                waiting += _imports(path, path.relative_to(root).with_suffix("").parts)
    folders = {path.parent for path in modules}
    beside = [root / n for n in _listed(root, "shared") if not n.endswith(".py") and (root / n).parent in folders]
    return {
        f"scripts/_shared/{path.relative_to(root / 'shared').as_posix()}": path.read_bytes()
        for path in [*modules, *beside]
    }


def _imports(path: Path, package: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return what a file imports of ``shared``, also within functions, as dotted names split at the dots.

    Args:
        path: of the file.
        package: its own name for relative imports; empty for scripts, whose relative imports stay among themselves.
    """
    found: list[tuple[str, ...]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level and package:
            # `package` ends with the file itself, `__init__` included: one level up is the folder in either case.
            base = package[: len(package) - node.level]
        elif not node.level and (node.module or "").split(".")[0] == "shared":
            base = ()
        else:
            continue
        name = (*base, *(node.module.split(".") if node.module else ()))
        found += [name, *((*name, alias.name) for alias in node.names)]
    return found


def _files_of(root: Path, name: tuple[str, ...]) -> Iterator[Path]:
    """Yield the file of a dotted name, if it is one of a module, and those of the packages above it."""
    for end in range(1, len(name) + 1):
        folder = root.joinpath(*name[:end])
        if (folder / "__init__.py").is_file():
            yield folder / "__init__.py"
        elif folder.with_suffix(".py").is_file():
            yield folder.with_suffix(".py")


def _version(root: Path, bundle: str, wanted: str | None) -> str:
    path = root / "bundles" / bundle / "configs" / "metadata.json"
    metadata = read_json(path)
    found = str(metadata.get("version"))
    if wanted is not None and wanted != found:
        raise InputError(f"{path}: found version {found}, expected {wanted}")
    if not re.fullmatch(r"\d+\.\d+\.\d+", found):
        raise InputError(f"{path}: found version '{found}', expected three numbers, X.Y.Z")
    if found not in metadata.get("changelog", {}):
        raise InputError(f"{path}: found version {found} and no line for it in the changelog; expected one")
    return found


def _check(bundle: str, files: Mapping[str, bytes]) -> None:
    missing = [name for name in NEEDED if name not in files]
    if missing:
        raise InputError(f"bundles/{bundle}: found no {', '.join(missing)}; expected them in a package")


def _zipped(bundle: str, files: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(f"{bundle}/{name}", _DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            entry.create_system = 3  # the same bytes on every system
            archive.writestr(entry, files[name])
    return stream.getvalue()
