"""Registration of two files: reading, searching, writing, judging."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..errors import InputError, did_you_mean
from ..files import save_json, writable_dir
from ..metrics.determinants import determinants
from ..optimise import OptimiseSettings
from ..quality_check import verdict
from ..transform_io import Transform, in_space, write_nifti, write_transform
from .inputs import Files, Pair, read_pair
from .memory import check_memory, thinned
from .report import draw, plain, remarks, scored, scored_labels
from .search import Found, search
from .start import NetworkField
from .write import pulled, remove_earlier, storable_inverse, storable_label, write_points, write_whole

__all__ = ["GUIDES", "register"]

GUIDES = ("none", "labels", "points", "both")
_GUIDING = {"none": (), "labels": ("labels",), "points": ("points",), "both": ("labels", "points")}


def _settings(
    motion: str, modality: str, steps: int | None, limit: float | None, init: str | Path, memory_gb: float | None
) -> OptimiseSettings:
    alignment = str(init) if str(init) in ("auto", "centre", "rigid", "affine") else "identity"
    kinds = [word.strip() for word in modality.split(",")]
    if len(kinds) > 2 or not set(kinds) <= {"ct", "mr", "auto"}:
        raise InputError(f"found modality {modality!r}, expected ct, mr or auto, or two of them: fixed,moving")
    return OptimiseSettings(
        motion=motion,
        alignment=alignment,
        iterations=steps,
        time_limit=limit,
        memory_gb=memory_gb * 1e9 / 2**30 if memory_gb is not None else None,
        fixed_modality=kinds[0],
        moving_modality=kinds[-1],
    )


def _check_guide(guide: str, labels: tuple[Any, Any], points: tuple[Any, Any]) -> None:
    """Raise InputError unless the guide is known and the files that it takes are there, of the fixed and the moving."""
    if guide not in GUIDES:
        raise InputError(f"found guide {guide!r}{did_you_mean(guide, GUIDES)}, expected one of {', '.join(GUIDES)}")
    for word, role, both in (("labels", "label", labels), ("points", "points", points)):
        if word in _GUIDING[guide] and None in both:
            raise InputError(
                f"found guide {guide!r} without both {word}, expected --fixed_{role} and --moving_{role} as well"
            )


@contextmanager
def _noted(log: list[str]) -> Iterator[None]:
    """Note warnings for the user in ``log``, and pass them on."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            log.append(f"warning: {warning.message}")
        warnings.warn(warning.message, warning.category, stacklevel=4)


def _read(fixed: Files, moving: Files, memory_gb: float | None, log: list[str]) -> tuple[Pair, Pair, list[str], float]:
    """Return the pair, the one to search on, which fits into the memory, messages, and the seconds of reading.

    Warnings go to the log.
    """
    began = time.monotonic()
    with _noted(log):
        pair = read_pair(fixed, moving)
    seconds = round(time.monotonic() - began, 2)
    thin, message = check_memory(pair, memory_gb)
    small = Pair(thinned(pair.fixed, thin), thinned(pair.moving, thin))
    return pair, small, [*pair.messages(), *([message] if message else [])], seconds


def register(
    fixed: str | Path,
    moving: str | Path,
    out: str | Path,
    *,
    fixed_label: str | Path | None = None,
    moving_label: str | Path | None = None,
    fixed_mask: str | Path | None = None,
    moving_mask: str | Path | None = None,
    fixed_points: str | Path | None = None,
    moving_points: str | Path | None = None,
    init: str | Path = "auto",
    motion: str = "auto",
    optimise: int | None = None,
    time_limit: float | None = None,
    guide: str = "none",
    modality: str = "auto",
    network: NetworkField | None = None,
    frames: Sequence[int | None] = (None, None),
    memory_gb: float | None = None,
    device: torch.device | str = "cpu",
    say: Callable[[str], None] = lambda _: None,
    progress: bool = False,
) -> dict[str, Any]:
    """Register a moving to a fixed image file of any size, spacing and orientation, in 2D or 3D.

    Written to ``out``: ``warped.nii.gz`` on the fixed grid; ``transform.h5`` (an ITK composite: displacement, then
    affine) and ``transform.nii.gz`` (both as one displacement field on the fixed grid, LPS mm), both from fixed to
    moving points as in ITK and ANTs; ``inverse_transform.h5`` and ``.nii.gz`` (on the moving grid); ``affine.txt``;
    ``warped_label.nii.gz`` in the label map's own type; ``warped_points.csv``, the moving points where they land in
    the fixed image; ``fixed_points_in_moving.csv``; ``metrics.json``; ``qc.png``.

    Args:
        fixed: NIfTI, NRRD, MetaImage, or a folder that holds one DICOM series.
        moving: likewise.
        out: folder, made where it is not there.
        fixed_label: label map; scored with ``moving_label``.
        moving_label: label map; warped.
        fixed_mask: not zero where the fixed image counts.
        moving_mask: likewise.
        fixed_points: `.csv`, `.pts` or `.fcsv`; scored with ``moving_points``, line by line the same places.
        moving_points: likewise; warped.
        init: "auto", "affine", "rigid", "centre", "none" (the headers' frame), or a transform file.
        motion: "within" one patient (stiffer), "between" patients, or "auto".
        optimise: most iterations a level; None takes the default of each level, 0 leaves the optimisation out.
        time_limit: seconds after which the optimisation begins no further step.
        guide: what pulls at the optimisation beside the images: "none" (labels and points are only scored), "labels",
            "points" or "both".
        modality: "ct", "mr" or "auto"; or of each, "mr,ct".
        network: gives a field that the optimisation starts from.
        frames: of the fixed and of the moving file, where they hold several.
        memory_gb: what the work may take; a pair that takes more is registered on coarser fields. None is what is free.
        device: to work on.
        say: takes messages for the user.
        progress: show a bar.

    Returns:
        What ``metrics.json`` holds: ``verdict`` ("ok", "suspect", "failed") with ``reasons``, ``scores``, ``labels``,
        ``points``, ``options``, ``log``, ``seconds``.

    Raises:
        InputError: files or options that cannot be used.
    """
    _check_guide(guide, (fixed_label, moving_label), (fixed_points, moving_points))
    settings = _settings(motion, modality, optimise, time_limit, init, memory_gb)
    folder = writable_dir(out)
    warned: list[str] = []
    pair, small, messages, seconds = _read(
        Files(fixed, fixed_label, fixed_mask, fixed_points, frames[0]),
        Files(moving, moving_label, moving_mask, moving_points, frames[1]),
        memory_gb,
        warned,
    )
    for message in messages:
        say(message)
    found = search(small, init, settings, frozenset(_GUIDING[guide]), network, device, say, progress)
    found.messages[:0] = [*warned, *messages]
    found.seconds = {"reading": seconds, **found.seconds}
    options = {
        "init": str(init),
        "motion": motion,
        "optimise": optimise,
        "time_limit": time_limit,
        "guide": guide,
        "modality": modality,
        "network": network.name if network is not None else None,
        "device": str(device),
    }
    files = {"fixed": str(fixed), "moving": str(moving)}
    return _write(folder, (pair, small), found, {"files": files, "options": options}, progress)


def _write(
    folder: Path, pairs: tuple[Pair, Pair], found: Found, about: dict[str, Any], progress: bool
) -> dict[str, Any]:
    """Write all files, ``metrics.json`` last, in the place of an earlier run's; returns its content.

    Args:
        folder: where.
        pairs: as read, and as searched: fields are kept on the grids of the second.
        found: the registration.
        about: files and options.
        progress: show a bar.
    """
    pair, (grid, back) = pairs[0], (side.grid for side in (pairs[1].fixed, pairs[1].moving))
    fixed, moving, transform = pair.fixed, pair.moving, found.transform
    began = time.monotonic()
    remove_earlier(folder)
    form = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"
    with tqdm(desc="write", total=5, disable=not progress, bar_format=form) as bar:
        warped = pulled(moving.image[0, 0].numpy(), transform, fixed.grid, moving.grid, "linear")
        write_nifti(folder / "warped.nii.gz", warped, fixed.grid)
        bar.update()
        forth = transform.ddf(grid, grid)
        determinant = determinants(forth)
        planes = fixed.grid.plane, moving.grid.plane
        write_transform(folder / "transform.h5", in_space(transform, *planes))
        write_transform(folder / "affine.txt", in_space(Transform((found.start,)), *planes))
        write_whole(folder / "transform.nii.gz", transform, forth, grid, *planes)
        bar.update()
        inverse, residual = transform.inverse()
        filed = storable_inverse(inverse)
        write_transform(folder / "inverse_transform.h5", in_space(filed, *reversed(planes)))
        write_whole(folder / "inverse_transform.nii.gz", filed, filed.ddf(back, back), back, *reversed(planes))
        bar.update()
        scores, points = scored(pair, found, filed, (forth, determinant, grid))
        scores["inverse_residual_mm"] = residual
        more, labels = scored_labels(pair, _write_label(folder, pair, transform))
        scores |= more
        points |= write_points(folder, transform, inverse, fixed, moving)
        bar.update()
        word, reasons = verdict(scores, remarks(found, scores))
        content = {"verdict": word, "reasons": reasons, "scores": scores, "labels": labels, "points": points, **about}
        draw(folder / "qc.png", pair, found, determinant, grid, content, about["options"]["modality"])
        found.seconds["writing"] = round(time.monotonic() - began, 2)
        content = plain({**content, "log": found.messages, "seconds": found.seconds})
        save_json(folder / "metrics.json", content)
        bar.update()
    return content


def _write_label(folder: Path, pair: Pair, transform: Transform) -> np.ndarray | None:
    """Write the moving label map on the fixed grid, and return it."""
    fixed, moving = pair.fixed, pair.moving
    if moving.label is None:
        return None
    warped = storable_label(pulled(moving.label, transform, fixed.grid, moving.grid, "label"))
    write_nifti(folder / "warped_label.nii.gz", warped, fixed.grid)
    return warped
