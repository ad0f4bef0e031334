"""Registration by optimisation, beside ANTs' SyN where antspyx can be imported.

Run from the repository root, each pair as key=value words:

    python -m benchmarks.instance_optimisation --pair fixed=a.nii.gz moving=b.nii.gz fixed_label=al.nii.gz \
        moving_label=bl.nii.gz --pair fixed=ct.nii.gz moving=mr.nii.gz --undo_mm 8

A pair may name fixed_label and moving_label (scored by Dice), fixed_points and moving_points (scored by TRE),
fixed_mask and moving_mask (used in the optimisation; the others are never shown to it). ``--undo_mm`` warps the
moving image of every pair by a known smooth field first and scores what is left of it, for pairs that lie on each
other as they are. Seconds are CPU seconds of this process.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from shared.data.images import read_image, read_label, read_points
from shared.fields import invert
from shared.metrics import dice_per_label, fold_percent
from shared.optimise import Guides, OptimiseSettings, optimise
from shared.smoothing import gaussian_smooth
from shared.transform_io import Grid, points_to_grid, to_native
from shared.warp import warp, warp_points

KEYS = {f"{side}{role}" for side in ("fixed", "moving") for role in ("", "_label", "_points", "_mask")}
SYN = {
    "SyN MI": {"syn_metric": "mattes", "syn_sampling": 32},
    "SyN CC": {"syn_metric": "CC", "syn_sampling": 4},
}


class Case:
    """One pair, read, with what it is scored by."""

    def __init__(self, files: Mapping[str, str], undo_mm: float, seed: int) -> None:
        if unknown := set(files) - KEYS:
            raise SystemExit(f"found {sorted(unknown)} in a pair, expected keys of {sorted(KEYS)}")
        self.images, self.grids, self.labels, self.points, self.masks = {}, {}, {}, {}, {}
        for side in ("fixed", "moving"):
            image, grid = read_image(files[side])
            self.images[side], self.grids[side] = image[None], grid
            if label := files.get(f"{side}_label"):
                self.labels[side] = read_label(label, grid)[None]
            if mask := files.get(f"{side}_mask"):
                self.masks[side] = read_label(mask, grid, role="mask")[None]
            if points := files.get(f"{side}_points"):
                self.points[side] = read_points(points)
        self.truth = self._hide(undo_mm, seed) if undo_mm > 0 else None

    def _hide(self, amplitude_mm: float, seed: int) -> Tensor:
        """Warp the moving image by a smooth field; returns the field that undoes it, in fixed voxels."""
        grid, fixed = self.grids["moving"], self.grids["fixed"]
        field = smooth_field(grid, amplitude_mm, seed)
        self.images["moving"] = warp(self.images["moving"], field, padding_mode="border")
        if "moving" in self.labels:
            self.labels["moving"] = warp(self.labels["moving"].float(), field, mode="nearest").to(torch.int16)
        return to_native(invert(field)[0], grid, fixed, grid)[0]

    def score(self, ddf: Tensor) -> dict[str, float]:
        """Score a map (1, 3, *S) in fixed voxels; ``inside`` is where the moving image is seen."""
        fixed, moving = self.grids["fixed"], self.grids["moving"]
        total = to_native(ddf, fixed, fixed, moving)[1]
        scores = {}
        if len(self.labels) == 2:
            labels = [int(v) for v in torch.unique(self.labels["fixed"]) if v > 0]
            warped = warp(self.labels["moving"].float(), total, mode="nearest")
            scores["dice"] = float(dice_per_label(warped, self.labels["fixed"].float(), labels).nanmean())
        if len(self.points) == 2:
            reached = warp_points(self.points["fixed"][None], ddf)[0]
            aim = points_to_grid(self.points["moving"], moving, fixed)
            spacing = torch.tensor(fixed.spacing_mm)
            scores["tre_mm"] = float(torch.linalg.vector_norm((reached - aim) * spacing, dim=1).mean())
        if self.truth is not None:
            still = to_native(torch.zeros_like(ddf), fixed, fixed, moving)[1]
            inside = warp(torch.ones_like(self.images["moving"]), still) > 0.99
            spacing = torch.tensor(fixed.spacing_mm).view(1, 3, 1, 1, 1)
            error = torch.linalg.vector_norm((ddf - self.truth) * spacing, dim=1, keepdim=True)
            scores["error_mm"] = float(error[inside].mean())
        scores["folds_%"] = fold_percent(ddf)
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


def ours(case: Case, verbose: bool) -> Tensor:
    guides = Guides(fixed_mask=case.masks.get("fixed"), moving_mask=case.masks.get("moving"))
    pair = (case.images["fixed"], case.images["moving"], case.grids["fixed"], case.grids["moving"])
    result = optimise(*pair, settings=OptimiseSettings(), guides=guides)
    for line in [*result.messages, *map(str, result.levels)] if verbose else []:
        print(f"      {line}")
    return result.ddf


def syn(case: Case, options: Mapping[str, object]) -> Tensor:
    """Run SyN from the identity, half resolution the finest, and return its map in fixed voxels."""
    import ants

    with tempfile.TemporaryDirectory() as folder:
        images = []
        for side in ("fixed", "moving"):
            path = str(Path(folder) / f"{side}.nii.gz")
            nib.save(nib.Nifti1Image(case.images[side][0, 0].numpy(), case.grids[side].affine), path)
            images.append(ants.image_read(path))
        done = ants.registration(
            *images,
            type_of_transform="SyNOnly",
            initial_transform="Identity",
            reg_iterations=(60, 40, 0),
            outprefix=f"{folder}/syn",
            **options,
        )
        composed = ants.apply_transforms(*images, done["fwdtransforms"], compose=f"{folder}/whole")
        lps = np.asarray(nib.load(composed).dataobj)[:, :, :, 0]
    matrix = np.linalg.inv(case.grids["fixed"].affine[:3, :3]) @ np.diag([-1.0, -1.0, 1.0])
    return torch.from_numpy(np.einsum("ij,xyzj->ixyz", matrix, lps).astype(np.float32))[None]


def report(name: str, case: Case, method: Callable[[], Tensor]) -> None:
    began = time.process_time()
    ddf = method()
    seconds = time.process_time() - began
    numbers = "  ".join(f"{key} {value:.4f}" for key, value in case.score(ddf).items())
    print(f"   {name:<10} {numbers}  CPU seconds {seconds:.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", nargs="+", action="append", required=True, metavar="KEY=FILE")
    parser.add_argument("--undo_mm", type=float, default=0.0, help="amplitude of a known smooth field to undo")
    parser.add_argument("--seed", type=int, default=0, help="of that field")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--syn", nargs="*", default=list(SYN), choices=list(SYN), help="SyN settings to run beside")
    parser.add_argument("--verbose", action="store_true", help="print the log of the optimisation")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_ITK_THREADS"] = str(options.threads)
    try:
        import ants  # noqa: F401 - optional
    except ImportError:
        print("antspyx is not installed: SyN is left out")
        options.syn = []
    for words in options.pair:
        files = dict(word.split("=", 1) for word in words)
        case = Case(files, options.undo_mm, options.seed)
        print(f"{files['fixed']} <- {files['moving']}")
        report("start", case, lambda case=case: torch.zeros(1, 3, *case.grids["fixed"].shape))
        report("optimise", case, lambda case=case: ours(case, options.verbose))
        for name in options.syn:
            report(name, case, lambda case=case, name=name: syn(case, SYN[name]))


if __name__ == "__main__":
    main()
