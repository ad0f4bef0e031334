"""Slices of embedded registration tasks as 2D Learn2Reg folders: what is dear in 3D is measured on them in minutes.

    python -m benchmarks.slices --out DIR --tasks synth_brain_mr synth_lung_ct

writes ``DIR/slice_brain_mr`` and ``DIR/slice_lung_ct``: of each image, label map and mask the middle axial slice.
Keypoints and true fields are left out.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from tqdm import tqdm

from shared.data.synthetic import REGISTRATION_TASKS, write_registration_tasks
from shared.files import read_json, save_json

FILES = ("image", "label", "mask", "fixed", "moving")


def cut(source: Path, target: Path) -> None:
    volume = nib.load(source)
    data = np.asarray(volume.dataobj)
    target.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data[:, :, data.shape[2] // 2], volume.affine), target)


def write_slices(volumes: Path, out: Path, task: str) -> None:
    content = read_json(volumes / f"{task}_dataset.json")
    name = task.replace("synth", "slice")
    written: set[str] = set()

    def item(entry: dict[str, str]) -> dict[str, str]:
        kept = {key: path for key, path in entry.items() if key in FILES}
        for path in set(kept.values()) - written:
            cut(volumes / path, out / name / path)
            written.add(path)
        return kept

    lists = [key for key, value in content.items() if isinstance(value, list)]
    record: dict[str, Any] = {k: v for k, v in content.items() if k not in ("synthetic", "tensorImageShape")}
    record.update(name=name, tensorImageSize="2D")
    for key in lists:
        record[key] = [item(entry) for entry in tqdm(content[key], desc=f"{name} {key}", leave=False)]
    save_json(out / name / f"{name}_dataset.json", record)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the 2D tasks")
    parser.add_argument("--tasks", nargs="+", default=["synth_brain_mr", "synth_lung_ct"], choices=REGISTRATION_TASKS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for task, volumes in zip(options.tasks, write_registration_tasks(folder, options.tasks).values(), strict=True):
            write_slices(volumes, options.out, task)


if __name__ == "__main__":
    main()
