"""Packages of all bundles as they stand, made once a session."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tools.package import bundle_names, pack
from tools.plan import ROOT


def commit_collection(root: Path) -> Path:
    """Copy bundles and shared into a repository of their own, all committed."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z", "bundles", "shared"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            target = root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "All"]):
        subprocess.run(["git", "-C", str(root), *command], check=True)
    return root


def pack_all(root: Path, out: Path) -> dict[str, Path]:
    """Return the packages of a committed collection by name."""
    return {name: pack(name, out, root=root) for name in bundle_names(root)}
