"""Writes small Medical Decathlon folders for tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.learn2reg_folder import affine, blobs, save

SHAPE = (12, 10, 6)
WORLD = affine((2.0, 2.5, 4.0))


def write_site(
    folder: Path,
    count: int = 5,
    channels: int = 1,
    labels: tuple[str, ...] = ("background", "gland"),
    shape: tuple[int, int, int] = SHAPE,
    world: np.ndarray = WORLD,
    **changes: Any,
) -> Path:
    """Write ``count`` labelled training images and an unlabelled test image, as the Decathlon hands them out."""
    training = []
    for number in range(count):
        image = np.stack([blobs(shape, seed=10 * number + c) for c in range(channels)], axis=-1)
        names = {kind: f"./{kind}sTr/case_{number:03d}.nii.gz" for kind in ("image", "label")}
        values = np.digitize(image[..., 0], np.linspace(50, 90, len(labels) - 1)).astype(np.uint8)
        for name, voxels in ((names["image"], image if channels > 1 else image[..., 0]), (names["label"], values)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            save(folder / name, voxels, world)
        training.append(names)
    (folder / "imagesTs").mkdir(exist_ok=True)
    save(folder / "imagesTs/case_900.nii.gz", blobs(shape), world)
    content = {
        "name": "test",
        "modality": {str(c): f"channel {c}" for c in range(channels)},
        "labels": {str(v): name for v, name in enumerate(labels)},
        "training": training,
        "test": ["./imagesTs/case_900.nii.gz"],
    }
    return rewrite(folder, {**content, **changes})


def rewrite(folder: Path, content: Mapping[str, Any]) -> Path:
    """Replace ``dataset.json``; entries of None are left out."""
    (folder / "dataset.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return folder


def content_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "dataset.json").read_text())
