"""Registration of single pairs: an affine fit, optimisation, bundles' networks, ANTs' SyN; one row a pair and method.

Run from the repository root, with the folder that holds the pairs named in ``PAIRS``; pairs that are not there are
named and left out, and so is SyN where antspyx cannot be imported (install it in an environment for benchmarks):

    python -m benchmarks.instance_optimisation --data FOLDER

Everything runs with its defaults; labels only score. CT and MR of a limb are registered after the MR has been warped
by a known smooth field (``hidden_mm``), and scored by what is left of that field. Those scans lie several millimetres
off each other to begin with, so "error mm", which takes them to be aligned, punishes who aligns them. "undone mm" does
not: it compares with the method's own result without the hidden field.
Seconds are those of the CPU, all threads together.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from shared.data.images import read_image, read_label
from shared.fields import compose, invert
from shared.files import save_json
from shared.metrics import dice_per_label, fold_percent, sdlogj
from shared.optimise import OptimiseSettings, optimise
from shared.smoothing import gaussian_smooth
from shared.transform_io import Grid, to_native
from shared.warp import warp
from tools.register import register


@dataclass(frozen=True)
class Pair:
    """Files of a pair under the data folder, and SyN as the pair's notes report it (mutual information)."""

    fixed: str
    moving: str
    labels: tuple[str, str] | None = None
    hidden_mm: float = 0.0
    seed: int = 0
    syn: str = "SyNOnly"
    iterations: tuple[int, ...] = (60, 40, 0)
    clip: tuple[float, float] | None = None


def slab(first: int, second: int) -> Pair:
    """Return a pair of slabs."""
    files = [f"brain_mr_ptbp_slab/child_{n}_{kind}.nii.gz" for kind in ("t1", "label") for n in (first, second)]
    return Pair(files[0], files[1], (files[2], files[3]), syn="SyN", iterations=(80, 50, 0))


def limb(patient: str, seed: int) -> Pair:
    """Return the CT and the warped MR of a limb."""
    return Pair(f"limb_mr_ct/{patient}_ct.nii.gz", f"limb_mr_ct/{patient}_mr.nii.gz", hidden_mm=8.0, seed=seed)


PAIRS = {
    "brain MR": Pair(
        "brain_mr_oasis/subject_a_t1.nii.gz",
        "brain_mr_oasis/subject_b_t1.nii.gz",
        ("brain_mr_oasis/subject_a_label.nii.gz", "brain_mr_oasis/subject_b_label.nii.gz"),
    ),
    "brain MR slab 1-3": slab(1, 3),
    "brain MR slab 3-4": slab(3, 4),
    "abdomen MR-CT": Pair(
        "abdomen_mr_ct/mr.nii.gz",
        "abdomen_mr_ct/ct.nii.gz",
        ("abdomen_mr_ct/mr_label.nii.gz", "abdomen_mr_ct/ct_label.nii.gz"),
        syn="SyN",
        iterations=(60, 40, 20),
        clip=(-200.0, 500.0),
    ),
    **{f"limb CT-MR {p} field {s}": limb(p, s) for p, seeds in (("sts008", (0, 1)), ("sts025", (0, 1))) for s in seeds},
}
BUNDLES = ("samcl", "dccnn_lstm_reg")
SCORES = {
    "dice": "Dice",
    "error_mm": "error mm",
    "undone_mm": "undone mm",
    "folds": "folds %",
    "sdlogj": "SDlogJ",
    "seconds": "CPU s",
}


class Case:
    """One pair, read, with what it is scored by."""

    def __init__(self, pair: Pair, folder: Path) -> None:
        self.pair = pair
        self.images: dict[str, Tensor] = {}
        self.grids: dict[str, Grid] = {}
        self.labels: dict[str, Tensor] = {}
        for index, side in enumerate(("fixed", "moving")):
            image, grid = read_image(folder / getattr(pair, side))
            self.images[side], self.grids[side] = image[None], grid
            if pair.labels is not None:
                self.labels[side] = read_label(folder / pair.labels[index], grid)[None]
        self.truth = self._hide() if pair.hidden_mm > 0 else None

    def _hide(self) -> Tensor:
        """Warp the moving image by a smooth field; returns the field that undoes it, in fixed voxels."""
        grid, fixed = self.grids["moving"], self.grids["fixed"]
        field = smooth_field(grid, self.pair.hidden_mm, self.pair.seed)
        self.images["moving"] = warp(self.images["moving"], field, padding_mode="border")
        return to_native(invert(field)[0], grid, fixed, grid)[0]

    def start(self) -> Tensor:
        """Return no displacement."""
        return torch.zeros(1, 3, *self.grids["fixed"].shape)

    def score(self, ddf: Tensor, plain: Tensor | None) -> dict[str, float]:
        """Score a map (1, 3, *S) in fixed voxels; ``plain`` is the same method's without the hidden field."""
        fixed, moving = self.grids["fixed"], self.grids["moving"]
        scores = {"folds": fold_percent(ddf), "sdlogj": sdlogj(ddf)}
        if self.labels:
            labels = [int(v) for v in torch.unique(self.labels["fixed"]) if v > 0]
            total = to_native(ddf, fixed, fixed, moving)[1]
            warped = warp(self.labels["moving"].float(), total, mode="nearest")
            scores["dice"] = float(dice_per_label(warped, self.labels["fixed"].float(), labels).nanmean())
        if self.truth is not None and plain is not None:
            # Where the moving image is seen, the background included: all of it moves.
            still = to_native(self.start(), fixed, fixed, moving)[1]
            inside = warp(torch.ones_like(self.images["moving"]), still) > 0.99
            spacing = torch.tensor(fixed.spacing_mm).view(1, 3, 1, 1, 1)
            for name, truth in (("error_mm", self.truth), ("undone_mm", compose(self.truth, plain))):
                error = torch.linalg.vector_norm((ddf - truth) * spacing, dim=1, keepdim=True)
                scores[name] = float(error[inside].mean())
        return scores


def smooth_field(grid: Grid, amplitude_mm: float, seed: int, scale_mm: float = 60.0) -> Tensor:
    """Draw a smooth field (1, 3, *S) in voxels whose longest vector is ``amplitude_mm``."""
    spacing = np.array(grid.spacing_mm)
    knots = [max(4, int(np.ceil(n * s / scale_mm)) + 3) for n, s in zip(grid.shape, spacing, strict=True)]
    noise = torch.randn(1, 3, *knots, generator=torch.Generator().manual_seed(seed))
    field = torch.nn.functional.interpolate(noise, size=grid.shape, mode="trilinear", align_corners=True)
    field = gaussian_smooth(field, scale_mm / 4 / float(spacing.max()))
    field = field * (amplitude_mm / torch.linalg.vector_norm(field, dim=1).max())
    return field / torch.as_tensor(spacing, dtype=field.dtype).view(1, 3, 1, 1, 1)


def optimised(case: Case, settings: OptimiseSettings, verbose: bool = False) -> Tensor:
    """Return our map in fixed voxels."""
    images, grids = case.images, case.grids
    result = optimise(images["fixed"], images["moving"], grids["fixed"], grids["moving"], settings=settings)
    for line in [*result.messages, *map(str, result.levels)] if verbose else []:
        print(f"    {line}")
    return result.ddf


def write_images(case: Case, folder: Path) -> list[str]:
    """Write fixed and moving image, as they are to be registered; return their files."""
    files = []
    for side in ("fixed", "moving"):
        image = case.images[side][0, 0].numpy()
        files.append(str(folder / f"{side}.nii.gz"))
        nib.save(nib.Nifti1Image(image, case.grids[side].affine), files[-1])
    return files


def read_field(file: str | Path, grid: Grid) -> Tensor:
    """Return a displacement field file (LPS, mm) on the fixed grid in fixed voxels."""
    lps = np.asarray(nib.load(file).dataobj)[:, :, :, 0]
    matrix = np.linalg.inv(grid.affine[:3, :3]) @ np.diag([-1.0, -1.0, 1.0])
    return torch.from_numpy(np.einsum("ij,xyzj->ixyz", matrix, lps).astype(np.float32))[None]


def command(case: Case, bundle: str, **options: Any) -> Tensor:
    """Return the map of ``python -m tools register --bundle BUNDLE``, from file to file."""
    with tempfile.TemporaryDirectory() as folder:
        fixed, moving = write_images(case, Path(folder))
        register(fixed=fixed, moving=moving, out=f"{folder}/out", bundle=bundle, device="cpu", **options)
        return read_field(f"{folder}/out/transform.nii.gz", case.grids["fixed"])


def syn(case: Case, kind: str, iterations: tuple[int, ...], metric: str) -> Tensor:
    """Return SyN's map in fixed voxels."""
    import ants

    with tempfile.TemporaryDirectory() as folder:
        images = [ants.image_read(file) for file in write_images(case, Path(folder))]
        if case.pair.clip is not None:
            images = [image.new_image_like(image.numpy().clip(*case.pair.clip)) for image in images]
        done = ants.registration(
            *images,
            type_of_transform=kind,
            reg_iterations=iterations,
            syn_metric=metric,
            syn_sampling=32 if metric == "mattes" else 4,  # bins; radius in voxels
            outprefix=f"{folder}/syn",
            random_seed=0,
            **({"initial_transform": "Identity"} if kind == "SyNOnly" else {}),
        )
        composed = ants.apply_transforms(*images, done["fwdtransforms"], compose=f"{folder}/whole")
        return read_field(composed, case.grids["fixed"])


METHODS: dict[str, Callable[[Case, bool], Tensor]] = {
    "start": lambda case, _: case.start(),
    "affine": lambda case, _: optimised(case, OptimiseSettings(alignment="affine", iterations=0, discrete="never")),
    "optimisation": lambda case, verbose: optimised(case, OptimiseSettings(), verbose),
    **{name: lambda case, _, bundle=name: command(case, bundle, optimise=0) for name in BUNDLES},
    **{f"{name} + optimisation": lambda case, _, bundle=name: command(case, bundle) for name in BUNDLES},
    "SyN": lambda case, _: syn(case, case.pair.syn, case.pair.iterations, "mattes"),
    "SyN CC": lambda case, _: syn(case, "SyNOnly", case.pair.iterations, "CC"),
}


def measure(case: Case, plain: Case | None, method: str, verbose: bool) -> dict[str, float]:
    """Register and score; the pair without its hidden field as well where there is one."""
    began = time.process_time()
    ddf = METHODS[method](case, verbose)
    seconds = time.process_time() - began
    return {**case.score(ddf, None if plain is None else METHODS[method](plain, False)), "seconds": seconds}


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print Markdown."""
    digits = {"folds": 4, "error_mm": 2, "undone_mm": 2, "seconds": 1}
    print("| pair | method | " + " | ".join(SCORES.values()) + " |")
    print("|---" * (len(SCORES) + 2) + "|")
    for row in rows:
        cells = [f"{row[key]:.{digits.get(key, 3)}f}" if key in row else "" for key in SCORES]
        print(f"| {row['pair']} | {row['method']} | " + " | ".join(cells) + " |")


def main(
    data: str,
    pairs: str = "MR",
    methods: str = ",".join(METHODS),
    threads: int = 1,
    out: str | None = None,
    verbose: bool = False,
) -> None:
    """Register every pair by every method and print a Markdown table.

    Args:
        data: folder that holds the pairs' folders.
        pairs: words with commas between; pairs whose name holds one of them are taken.
        methods: of "start", "affine", "optimisation", "SyN", "SyN CC"; a bundle's name for its network alone, by the
            command line, and "NAME + optimisation".
        threads: for torch and ITK.
        out: JSON file for the rows.
        verbose: print the log of each optimisation.
    """
    torch.set_num_threads(threads)
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_ITK_THREADS"] = str(threads)
    wanted = {name: pair for name, pair in PAIRS.items() if any(word in name for word in _words(pairs))}
    asked = _words(methods)
    if unknown := [name for name in asked if name not in METHODS]:
        raise SystemExit(f"found methods {unknown}, expected some of {list(METHODS)}")
    if not wanted:
        raise SystemExit(f"found no pair named like {pairs!r}, expected words of {list(PAIRS)}")
    if any(name.startswith("SyN") for name in asked) and importlib.util.find_spec("ants") is None:
        print("SyN is left out: antspyx cannot be imported")
        asked = [name for name in asked if not name.startswith("SyN")]
    rows = []
    for name, pair in wanted.items():
        files = [pair.fixed, pair.moving, *(pair.labels or ())]
        if absent := [file for file in files if not (Path(data) / file).is_file()]:
            print(f"{name} is left out: no {', '.join(absent)} in {data}")
            continue
        case = Case(pair, Path(data))
        plain = Case(replace(pair, hidden_mm=0.0), Path(data)) if pair.hidden_mm > 0 else None
        for method in asked:
            print(f"{name}: {method} ...", flush=True)
            rows.append({"pair": name, "method": method, **measure(case, plain, method, verbose)})
    print_table(rows)
    if out is not None:
        save_json(Path(out), {"torch": torch.__version__, "threads": threads, "rows": rows})


def _words(text: str | tuple[str, ...]) -> list[str]:
    """Return the words of a list as fire hands it over."""
    return [word.strip() for word in (text.split(",") if isinstance(text, str) else text)]


if __name__ == "__main__":
    fire.Fire(main)
