"""Tiny Learn2Reg folders with the dataset JSONs as released, and the image files that they name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

SIZE = (10, 11, 12)


def affine(spacing_mm=(2.0, 2.0, 2.0), origin_mm=(0.0, 0.0, 0.0), degrees=0.0, order=(0, 1, 2), flip=(1, 1, 1)):
    """Return a RAS affine: axes permuted and flipped, then turned about an oblique axis."""
    axis = np.array([1.0, 2.0, -1.5]) / np.linalg.norm([1.0, 2.0, -1.5])
    cross = np.cross(np.eye(3), axis)
    angle = np.deg2rad(degrees)
    rotation = np.eye(3) - np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    matrix = np.eye(4)
    matrix[:3, :3] = rotation @ (np.eye(3)[:, list(order)] * flip) * spacing_mm
    matrix[:3, 3] = origin_mm
    return matrix


def blobs(shape=SIZE, seed=0) -> np.ndarray:
    """Return a smooth float32 image with contrast, 0..100."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    image = np.zeros(shape)
    for _ in range(4):
        centre, width = rng.uniform(-0.5, 0.5, len(shape)), rng.uniform(0.3, 0.6)
        image += np.exp(-((grid - centre.reshape(-1, *[1] * len(shape))) ** 2).sum(0) / width**2)
    return (100 * image / image.max()).astype(np.float32)


def save(path: Path, array: np.ndarray, matrix: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine() if matrix is None else matrix), path)
    return path


def write_pair(folder: Path) -> dict[str, str]:
    """Write ``fixed.nii.gz`` and ``moving.nii.gz`` on one grid; returns them as a pair of files."""
    sides = enumerate(("fixed", "moving"))
    return {f"{side}_image": str(save(folder / f"{side}.nii.gz", blobs(seed=seed))) for seed, side in sides}


def item(name: str, *roles: str, split: str = "Tr", keypoints: str = ".csv") -> dict[str, str]:
    suffix = {"keypoints": keypoints}
    folders = {"image": "images", "label": "labels", "mask": "masks", "keypoints": "keypoints"}
    return {role: f"./{folders[role]}{split}/{name}{suffix.get(role, '.nii.gz')}" for role in ("image", *roles)}


def pair(fixed: str, moving: str, split: str = "Tr", keys: tuple[str, str] = ("fixed", "moving")) -> dict[str, str]:
    return {key: f"./images{split}/{name}.nii.gz" for key, name in zip(keys, (fixed, moving), strict=True)}


def write_folder(root: Path, content: Mapping[str, Any], missing: tuple[str, ...] = ()) -> Path:
    """Write ``<root>/<name>/`` with the JSON and every file that its training items name, but those in ``missing``."""
    folder = root / content["name"]
    folder.mkdir(parents=True)
    (folder / f"{content['name']}_dataset.json").write_text(json.dumps(content))
    section = content.get("training", [])
    items = section if isinstance(section, list) else [entry for group in section.values() for entry in group]
    for seed, entry in enumerate(items):
        for role, name in entry.items():
            if Path(name).name not in missing:
                _write(folder / name, role, seed)
    return folder


def _write(path: Path, role: str, seed: int) -> None:
    image = blobs(seed=seed)
    if role == "image":
        save(path, image)
    elif role == "label":
        save(path, np.digitize(image, [30, 60]).astype(np.uint8))
    elif role == "mask":
        save(path, (image > 20).astype(np.uint8))
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        points = np.random.default_rng(5).uniform(2, 8, (6, 3))
        np.savetxt(path.with_name(path.name.split(".")[0] + ".csv"), points, delimiter=",", fmt="%.3f")


def oasis() -> dict[str, Any]:
    """OASIS release 1.1: unpaired; the validation pairs are among the training images; .csv in the test list."""
    names = [f"OASIS_{i:04d}_0000" for i in range(1, 7)]
    test = [{k: v.replace(".nii.gz", ".csv") for k, v in item("OASIS_0415_0000", "label", "mask", split="Ts").items()}]
    return {
        "name": "OASIS",
        "pairings": "unpaired",
        "provided_data": {"0": ["image", "label", "mask"]},
        "registration_direction": {"fixed": 0, "moving": 0},
        "modality": {"0": "MR"},
        "labels": {"0": {}},
        "tensorImageSize": {"0": "3D"},
        "numTraining": 6,
        "training": [item(name, "label", "mask") for name in names],
        "test": test,
        "numPairedTraining": 0,
        "training_paired_images": [],
        "registration_val": [pair(names[3], names[4]), pair(names[4], names[5])],
        "registration_test": [pair("OASIS_0415_0000", "OASIS_0416_0000", "Ts")],
    }


def abdomen_ct_ct() -> dict[str, Any]:
    names = [f"AbdomenCTCT_{i:04d}_0000" for i in range(1, 5)]
    return {
        "name": "AbdomenCTCT",
        "pairings": "unpaired",
        "registration_direction": {"fixed": 0, "moving": 0},
        "modality": {"0": "CT"},
        "labels": {"0": {"0": "background", "1": "spleen", "2": "right kidney"}},
        "training": {"0": [item(name, "label", "mask") for name in names]},
        "training_paired_images": [],
        "registration_val": [pair(names[2], names[3])],
    }


def nlst() -> dict[str, Any]:
    """NLST release 0.91: paired, no labels, keypoints under the image's suffix, and one misspelt pair."""
    scans = [(f"NLST_{i:04d}_0000", f"NLST_{i:04d}_0001") for i in range(1, 5)]
    return {
        "name": "NLST",
        "pairings": "paired",
        "registration_direction": {"fixed": 0, "moving": 1},
        "modality": {"0": "CT", "1": "CT"},
        "labels": {},
        "training": [item(name, "mask", "keypoints", keypoints=".nii.gz") for both in scans for name in both],
        "training_paired_images": [pair(*both) for both in scans] + [pair("NLST_00101_0000", "NLST_00101_0001")],
        "registration_val": [pair(*scans[3])],
        "registration_test": [],
    }


def abdomen_mr_ct() -> dict[str, Any]:
    """AbdomenMRCT release 1.1: hybrid; pairs are keyed by modality index, one of them misspelt."""
    roles = ("label", "mask")
    mr = [f"AbdomenMRCT_{i:04d}_0000" for i in (1, 2, 3, 1051)]
    ct = [f"AbdomenMRCT_{i:04d}_0001" for i in (1, 2, 3, 1001, 1002)]
    organs = {"0": "background", "1": "liver", "2": "spleen"}
    return {
        "name": "AbdomenMRCT",
        "pairings": "hybrid",
        "registration_direction": {"fixed": 0, "moving": 1},
        "modality": {"0": "MR T1w", "1": "CT"},
        "labels": {"0": organs, "1": organs},
        "training": {"0": [item(n, *roles) for n in mr], "1": [item(n, *roles) for n in ct]},
        "test": {"0": [], "1": []},
        "training_paired_images": [
            pair(mr[0], ct[0], keys=("0", "1")),
            pair(mr[1], "AbdomenMRCT_A0002_0001", keys=("0", "1")),
            pair(mr[2], ct[2], keys=("0", "1")),
        ],
        "registration_val": [pair(mr[2], ct[2])],
    }
