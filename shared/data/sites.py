"""Embedded segmentation sites: the same anatomy as six MR scanners and four fundus cameras show it.

Each site is a Medical Decathlon folder (Antonelli et al., Nature Communications 2022). Patients are drawn alike at
every site, the images are not: contrast, shading, noise, resolution, coil and field of view are a site's own, so that a
network that was trained at one site does badly at the others and forgets one site while it learns the next.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, did_you_mean
from ..files import read_json, save_json, writable_dir
from ..transform_io import Grid, write_nifti
from .decathlon import DATASET_FILE, split_patients
from .site_patients import SITES, SegmentationSite

__all__ = ["SEGMENTATION_SITES", "is_current_site", "write_sites"]

FORMAT_VERSION = 2
# On a coarser grid the pixels would be larger than the slices are thick.
SMALLEST = 48

SEGMENTATION_SITES = tuple(site.name for site in SITES)


def write_sites(
    root: str | os.PathLike[str],
    sites: Iterable[str] | None = None,
    *,
    size: int = 64,
    patients: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Path]:
    """Write synthetic Decathlon folders, each once: a complete folder of the same settings is left alone.

    ``dataset.json`` is written last and marks a folder as complete; after a kill the next call writes the folder
    anew. Equal arguments give equal bytes. Patients are split into training, validation and test by
    :func:`~shared.data.decathlon.split_patients`; test patients lie in ``imagesTs`` and ``labelsTs``.

    Args:
        root: folder that receives one folder a site.
        sites: some of `SEGMENTATION_SITES`; None for all.
        size: voxels along an edge of a slice (some sites have fewer); the field of view stays the same.
        patients: of each site; None for 20 of the prostate, 60 eyes, of which there is but one slice.
        seed: another seed draws other patients.
        progress: show a progress bar.

    Returns:
        The folder of each site, in the order asked for.

    Raises:
        InputError: an unknown site, a size below 48, fewer than 3 patients, a folder that cannot be written, or one
            that holds a dataset that this function did not write.
    """
    if isinstance(sites, str):
        raise InputError(f"found sites {sites!r}, expected a list of names")
    known = {site.name: site for site in SITES}
    names = SEGMENTATION_SITES if sites is None else tuple(sites)
    for name in names:
        if name not in known:
            raise InputError(f"found no site {name!r}{did_you_mean(name, known)}; embedded sites: {', '.join(known)}")
    if size < SMALLEST:
        raise InputError(f"found size {size}, expected at least {SMALLEST} voxels")
    if patients is not None and patients < 3:
        raise InputError(f"found {patients} patients, expected at least 3: for training, validation and test")
    folders = {name: Path(root) / name for name in names}
    for name, folder in folders.items():
        count = patients or known[name].patients
        settings = {"version": FORMAT_VERSION, "size": size, "seed": seed, "patients": count}
        if not _is_reusable(folder, settings):
            writable_dir(folder)
            _write_site(folder, known[name], settings, progress)
    return folders


def is_current_site(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a site, of any size and seed, as this version of the generator writes it.

    A dataset of the same name that was not written here counts as current: it is the user's own.
    """
    path = Path(folder) / DATASET_FILE
    if not path.is_file():
        return False
    content = read_json(path)
    settings = content.get("synthetic") if isinstance(content, Mapping) else None
    return settings is None or settings.get("version") == FORMAT_VERSION


def _is_reusable(folder: Path, settings: Mapping[str, Any]) -> bool:
    """True where the folder is complete; the file that says so is removed where it speaks of other settings."""
    path = folder / DATASET_FILE
    if not path.exists():
        return False
    content = read_json(path)
    if not isinstance(content, Mapping) or "synthetic" not in content:
        raise InputError(
            f"{path}: found a dataset that was not written here, expected a synthetic one or another folder"
        )
    items = [item for split in ("training", "validation", "test") for item in content[split]]
    files = [file for item in items for file in item.values()]
    if content["synthetic"] == settings and all((folder / file).exists() for file in files):
        return True
    path.unlink()
    return False


def _write_site(folder: Path, site: SegmentationSite, settings: Mapping[str, Any], progress: bool) -> None:
    from tqdm import tqdm

    with tqdm(desc=site.name, disable=not progress, total=settings["patients"]) as bar:
        splits = _write_patients(folder, site, settings, bar.update)
    content = {
        "name": site.name,
        "description": f"{site.description}; synthetic",
        "licence": "Apache-2.0",
        "release": str(FORMAT_VERSION),
        "tensorImageSize": "3D" if len(site.modality) == 1 else "4D",
        "modality": {str(i): name for i, name in enumerate(site.modality)},
        "labels": {str(i): name for i, name in enumerate(("background", *site.labels))},
        "numTraining": len(splits["training"]),
        "numValidation": len(splits["validation"]),
        "numTest": len(splits["test"]),
        **splits,
        "synthetic": dict(settings),
    }
    kept = {folder / file for items in splits.values() for item in items for file in item.values()}
    for stale in {path for kind in ("images", "labels") for path in folder.glob(f"{kind}T[rs]/{site.name}_*")} - kept:
        stale.unlink()  # left by an earlier call with other settings
    save_json(folder / DATASET_FILE, content)


def _write_patients(
    folder: Path, site: SegmentationSite, settings: Mapping[str, Any], tell: Callable[[], object]
) -> dict[str, list[dict[str, str]]]:
    """Write images and labels; returns the items of each split."""
    numbers = [f"{number:03d}" for number in range(1, settings["patients"] + 1)]
    splits: dict[str, list[dict[str, str]]] = {}
    for split, members in split_patients(numbers).items():
        suffix = "Ts" if split == "test" else "Tr"
        splits[split] = []
        for number in members:
            rng = np.random.default_rng((settings["seed"], SEGMENTATION_SITES.index(site.name), int(number)))
            image, label, spacing = site.scan(rng, settings["size"])
            affine = np.diag((*spacing, 1.0))
            affine[:3, 3] = [-s * (n - 1) / 2 for n, s in zip(label.shape, spacing, strict=True)]
            item = {kind: f"./{kind}s{suffix}/{site.name}_{number}.nii.gz" for kind in ("image", "label")}
            for kind, voxels in (("image", image), ("label", label)):
                path = folder / item[kind]
                path.parent.mkdir(parents=True, exist_ok=True)
                write_nifti(path, voxels, Grid(label.shape, affine))
            splits[split].append(item)
            tell()
    return splits
