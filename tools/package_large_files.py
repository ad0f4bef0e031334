"""Files too large for a package: they stay beside the zip, listed in ``large_files.yml`` with the address to get them.

MONAI fetches them into an unpacked bundle: ``python -m monai.bundle download_large_files --bundle_path samcl``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from shared.errors import InputError
from shared.files import atomic_write

__all__ = ["LARGEST", "LIST", "asset_name", "digest", "set_apart"]

LIST = "large_files.yml"
# The zoo keeps larger files elsewhere.
LARGEST = 25 * 2**20


def digest(content: bytes) -> str:
    """Return the SHA-256 of a file's content."""
    return hashlib.sha256(content).hexdigest()


def asset_name(package: str, name: str) -> str:
    """Return the name of a large file beside its package: ``samcl_v0.1.0_models_model.pt``."""
    return f"{package}_{name.replace('/', '_')}"


def set_apart(
    files: Mapping[str, bytes], package: str, out: Path, url: str | None
) -> tuple[dict[str, bytes], dict[str, str]]:
    """Write the large ones of a package's files beside it and return the others, with the list that names them.

    Args:
        files: name -> content.
        package: name of the zip without its suffix.
        out: folder of the zip.
        url: where the large files will be found, as a folder.

    Returns:
        the files of the package, and large file -> SHA-256.

    Raises:
        InputError: a large file and no ``url``.
    """
    large = {name: content for name, content in files.items() if len(content) > LARGEST}
    if not large:
        return dict(files), {}
    if not url:
        name, content = next(iter(large.items()))
        raise InputError(
            f"{name}: found {len(content) / 2**20:.0f} MB, a package takes files of {LARGEST / 2**20:.0f} MB; "
            f"expected --large_files_url FOLDER, the address where it will be found: {LIST} names it"
        )
    kept = {name: content for name, content in files.items() if name not in large}
    lines = [kept[LIST].decode().rstrip("\n")] if LIST in kept else ["large_files:"]
    for name, content in large.items():
        asset = asset_name(package, name)
        atomic_write(out / asset, lambda stream, content=content: stream.write(content))  # type: ignore[misc]
        entry = {"path": name, "url": f"{url.rstrip('/')}/{asset}", "hash_val": digest(content), "hash_type": "sha256"}
        # Strings of JSON are strings of YAML.
        lines += [f"{'  - ' if key == 'path' else '    '}{key}: {json.dumps(value)}" for key, value in entry.items()]
    kept[LIST] = ("\n".join(lines) + "\n").encode()
    return kept, {name: digest(content) for name, content in large.items()}
