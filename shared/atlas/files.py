"""Atlases as files: pairs ``NAME.nii.gz`` and ``NAME_label.nii.gz`` in a folder, or as a request names them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError, did_you_mean
from ..transform_io import IMAGE_SUFFIXES, image_name

__all__ = ["ALL", "SAMPLE", "Atlas", "atlas_choices", "choose_atlases", "find_atlases"]

ALL = "all"
# The pair that ships with a bundle: it steps back where there are others.
SAMPLE = "synthetic"
_LABEL = "_label"


@dataclass(frozen=True)
class Atlas:
    """An image and its label map; ``label`` is None where a folder holds none for it."""

    name: str
    image: Path
    label: Path | None


def _stem(path: Path) -> str | None:
    return image_name(path) if path.name.lower().endswith(IMAGE_SUFFIXES) else None


def find_atlases(folder: str | Path) -> dict[str, Atlas]:
    """Return the atlases of a folder by name, in alphabetical order; an empty table where there is no folder."""
    found = Path(folder).iterdir() if Path(folder).is_dir() else ()
    files = {stem: path for path in sorted(found) if (stem := _stem(path)) is not None}
    names = [name for name in files if not (name.endswith(_LABEL) and name.removesuffix(_LABEL) in files)]
    return {name: Atlas(name, files[name], files.get(name + _LABEL)) for name in names}


def atlas_choices(folder: str | Path) -> list[str]:
    """Return what a user can choose from: "all", and each atlas of the folder."""
    return [ALL, *find_atlases(folder)]


def choose_atlases(
    folder: str | Path, choice: str = ALL, images: Sequence[str | Path] = (), labels: Sequence[str | Path] = ()
) -> list[Atlas]:
    """Return the atlases to use.

    Args:
        folder: of pairs.
        choice: "all", or names separated by commas. "all" leaves out the sample that ships with the bundle where the
            folder holds others.
        images: files that take the place of the folder's.
        labels: as many.

    Raises:
        InputError: no such atlas, none at all, or one without a label map.
    """
    if images or labels:
        if len(images) != len(labels):
            raise InputError(
                f"found {len(images)} atlas images and {len(labels)} label maps, expected as many of both: atlas_image "
                "and atlas_label belong together"
            )
        return [Atlas(_stem(Path(i)) or Path(i).name, Path(i), Path(k)) for i, k in zip(images, labels, strict=True)]
    known = find_atlases(folder)
    if not known:
        raise InputError(
            f"{folder}: found no atlas, expected NAME.nii.gz with NAME{_LABEL}.nii.gz there, or atlas_image and "
            "atlas_label in the request"
        )
    if choice == ALL:
        chosen = [atlas for name, atlas in known.items() if name != SAMPLE] or list(known.values())
    else:
        names = [name.strip() for name in choice.split(",")]
        if unknown := [name for name in names if name not in known]:
            raise InputError(
                f"{folder}: found no atlas {unknown[0]!r}{did_you_mean(unknown[0], list(known))}, expected {ALL} or "
                f"some of {', '.join(known)}"
            )
        chosen = [known[name] for name in dict.fromkeys(names)]
    for atlas in chosen:
        if atlas.label is None:
            raise InputError(
                f"{atlas.image}: found no label map to this atlas, expected {atlas.name}{_LABEL}.nii.gz beside it"
            )
    return chosen
