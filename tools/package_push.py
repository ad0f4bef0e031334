"""Handing a package on: the commands that upload it to Hugging Face or to a GitHub release."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from shared.errors import InputError, did_you_mean

from .package_check import unpack

__all__ = ["PLACES", "push", "push_commands", "release_url"]

PLACES = {"github": "gh", "hf": "hf"}  # place -> the program that uploads


def release_url(repo: str, package: str) -> str:
    """Return the folder of a package's release on GitHub; the release is named as the package."""
    return f"https://github.com/{repo}/releases/download/{package}"


def push_commands(package: Path, place: str, repo: str | None, assets: list[Path], unpacked: Path) -> list[list[str]]:
    """Return the commands that upload a package.

    GitHub gets a release with the zip. Hugging Face gets the unpacked files and a tag: one repository a bundle, since
    MONAI downloads a whole repository as the bundle's folder.

    Args:
        package: zip.
        place: "github" or "hf".
        repo: OWNER/NAME.
        assets: large files beside the zip.
        unpacked: where the unpacked package lies.

    Raises:
        InputError: another place, or no repository.
    """
    if place not in PLACES:
        raise InputError(f"found --push {place}{did_you_mean(place, PLACES)}, expected one of {', '.join(PLACES)}")
    if not repo or repo.count("/") != 1:
        raise InputError(f"found --repo {repo}, expected OWNER/NAME, the repository that gets {package.name}")
    title = package.stem.replace("_v", " ")
    if place == "github":
        files = [str(path) for path in (package, *assets)]
        return [["gh", "release", "create", package.stem, *files, "--repo", repo, "--title", title, "--notes", title]]
    large = [["hf", "upload", repo, str(path), path.name, "--commit-message", title] for path in assets]
    return [
        ["hf", "upload", repo, str(unpacked), ".", "--commit-message", title],
        *large,
        ["hf", "repo", "tag", "create", repo, package.stem.rpartition("_v")[2]],
    ]


def push(
    package: str | Path, place: str, repo: str | None, yes: bool = False, tell: Callable[[str], None] = print
) -> None:
    """Show the commands that upload a package; run them with ``yes``.

    Args:
        package: zip.
        place: "github" or "hf".
        repo: OWNER/NAME.
        yes: run them.
        tell: shown each command.

    Raises:
        InputError: as :func:`push_commands`; a program that is not there or fails.
    """
    package = Path(package)
    unpacked = package.with_suffix("")
    assets = sorted(path for path in package.parent.glob(f"{package.stem}_*") if path.is_file())
    commands = push_commands(package, place, repo, assets, unpacked / package.stem.rpartition("_v")[0])
    if place == "hf":
        shutil.rmtree(unpacked, ignore_errors=True)
        unpack(package, unpacked)
    for command in commands:
        tell(shlex.join(command))
        if yes:
            _run(command, package)
    if not yes:
        tell("nothing was uploaded; --yes runs this")


def _run(command: list[str], package: Path) -> None:
    program = shutil.which(command[0])
    if program is None:
        raise InputError(f"{package}: found no program '{command[0]}' on the PATH, expected one that is logged in")
    result = subprocess.run([program, *command[1:]], check=False)
    if result.returncode != 0:
        raise InputError(f"{package}: '{shlex.join(command)}' failed with code {result.returncode}")
