"""From two image files to a registered image on the fixed image's own grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .data.embedded import load_pairs
from .data.images import read_image, read_label
from .data.pairs import PairDataset
from .errors import InputError
from .evaluation import predict, score_pair
from .files import save_json, writable_dir
from .plots import pair_figure
from .register import NetworkField, register, summary
from .transform_io import Grid, to_native, write_itk_displacement, write_nifti
from .warp import warp

__all__ = ["register_files"]


def _field(network: nn.Module, inferer: Callable, images: Tensor) -> Tensor:
    network.eval()
    return inferer(images, network)["ddf"]


def _go_on(
    field: NetworkField, pair: Mapping[str, Any], out: str | Path, optimise: int, init: str, device: torch.device
) -> dict[str, Any]:
    """Register with alignment, network and optimisation; returns the scores."""
    result = register(
        pair["fixed_image"],
        pair["moving_image"],
        out,
        fixed_label=pair.get("fixed_label"),
        moving_label=pair.get("moving_label"),
        init=init,
        optimise=optimise,
        network=field,
        device=device,
        say=print,
        progress=True,
    )
    print(f"{summary(result['scores'])}\nverdict: {result['verdict']}; written to {out}", flush=True)
    return result["scores"]


def register_files(
    network: nn.Module,
    inferer: Callable,
    device: torch.device,
    output_dir: str | Path,
    spatial_size: Sequence[int],
    fixed_image: str | Path | None = None,
    moving_image: str | Path | None = None,
    fixed_label: str | Path | None = None,
    moving_label: str | Path | None = None,
    spacing_mm: Sequence[float] | None = None,
    ct_window: Sequence[float] | None = None,
    sample_from: tuple[str | Path, str | Sequence[str]] | None = None,
    optimise: int = 0,
    init: str = "none",
) -> dict[str, Any]:
    """Register a moving to a fixed image file; results lie on the fixed image's grid, with its affine.

    Writes ``warped.nii.gz``, ``warped_label.nii.gz`` (with a moving label), ``displacement.nii.gz`` (LPS mm on the
    fixed grid, as ITK, ANTs and 3D Slicer read it), ``metrics.json`` and ``registration.png``.

    Args:
        network: trained, on ``device``.
        inferer: returns a dict with ``ddf``.
        device: where the network runs.
        output_dir: where the files go.
        spatial_size: voxels of the network's grid.
        fixed_image: any size, spacing and orientation; together with ``moving_image``.
        moving_image: in the same world frame as the fixed image.
        fixed_label: only scored.
        moving_label: warped with nearest neighbour, and scored with ``fixed_label``.
        spacing_mm: voxel size of the network's grid; None stretches it over the fixed image.
        ct_window: HU window for CT.
        sample_from: (dataset_dir, task) of the pair that is taken when no image is given: the first for validation.
        optimise: iterations a level that go on from the network's field; 0 leaves the field as it is.
        init: alignment before the network; see :func:`shared.register.register`, which does the work, and writes its
            files, where one of these two options is used.

    Returns:
        the scores: folds, SDlogJ, and Dice, HD95, ASSD with both labels.

    Raises:
        InputError: unusable files, images that do not overlap, or only one image given.
    """
    pair = _pair((fixed_image, moving_image), (fixed_label, moving_label), sample_from)
    if optimise or init != "none":
        field = NetworkField(lambda images: _field(network, inferer, images), spatial_size, spacing_mm, ct_window)
        return _go_on(field, pair, output_dir, optimise, init, device)
    sample = PairDataset([pair], spatial_size, spacing_mm, ct_window)[0]
    folder = writable_dir(output_dir)
    fields = predict(network, inferer, sample, device)
    grids = sample["grids"]
    native = to_native(fields["ddf"], grids["network"], grids["fixed"], grids["moving"])
    _write_images(folder, pair, native, grids["fixed"], grids["moving"])
    scores = score_pair(sample, fields["ddf"], native, fields.get("inv_ddf"))
    save_json(folder / "metrics.json", {"pair": {k: str(v) for k, v in pair.items()}, "scores": scores})
    pair_figure(sample, fields["ddf"], folder / "registration.png", title=Path(pair["moving_image"]).name)
    print(f"{Path(pair['moving_image']).name} registered to {Path(pair['fixed_image']).name}: written to {folder}")
    print(", ".join(f"{k} {v:.3f}" for k, v in scores.items()), flush=True)
    return scores


def _pair(
    images: tuple[str | Path | None, str | Path | None],
    labels: tuple[str | Path | None, str | Path | None],
    sample_from: tuple[str | Path, str | Sequence[str]] | None,
) -> dict[str, Any]:
    """Return the pair that is asked for: of a fixed and a moving file, or the first for validation of a task."""
    if (images[0] is None) != (images[1] is None):
        raise InputError("found only one of fixed_image and moving_image, expected both or none")
    if images[0] is None:
        if sample_from is None:
            raise InputError("found neither fixed_image nor moving_image, expected both")
        return load_pairs(*sample_from, "val")[0]
    pair = {"fixed_image": str(images[0]), "moving_image": str(images[1]), "task": "images"}
    return pair | {f"{side}_label": str(v) for side, v in zip(("fixed", "moving"), labels, strict=True) if v}


def _write_images(
    folder: Path, pair: Mapping[str, Any], native: tuple[Tensor, Tensor], fixed: Grid, moving: Grid
) -> None:
    """Write the warped image, the warped label map where there is one, and the displacement.

    Args:
        folder: where.
        pair: its files.
        native: what :func:`~shared.transform_io.to_native` returns.
        fixed: grid of the fixed image.
        moving: grid of the moving image.
    """
    fixed_ddf, total = native
    voxels, _ = read_image(pair["moving_image"], len(fixed.shape))
    # Outside the moving image lies its darkest value: in CT that is air, where a plain 0 would be water.
    floor = voxels.min()
    write_nifti(folder / "warped.nii.gz", (warp(voxels[None] - floor, total)[0, 0] + floor).numpy(), fixed)
    if pair.get("moving_label"):
        label = read_label(pair["moving_label"], moving, len(fixed.shape))
        warped_label = warp(label[None].float(), total, mode="nearest")[0, 0].numpy()
        kind = np.uint8 if int(label.max()) <= np.iinfo(np.uint8).max else np.int16
        write_nifti(folder / "warped_label.nii.gz", warped_label.astype(kind), fixed)
    write_itk_displacement(folder / "displacement.nii.gz", fixed_ddf, fixed)
