"""The command line of ``python -m tools register``."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from typing import Any

import torch

from shared.errors import InputError
from shared.register import register as register_files
from shared.register import summary

from .flags import literal_flags, plain_warnings

__all__ = ["register", "register_flags"]

_PATHS = (
    "fixed",
    "moving",
    "out",
    "model",
    "fixed_label",
    "moving_label",
    "fixed_mask",
    "moving_mask",
    "fixed_points",
    "moving_points",
    "init",
    "device",
)


def register_flags(arguments: list[str]) -> list[str]:
    """Return the arguments with files as literals."""
    return literal_flags(arguments, _PATHS)


def _say(message: str) -> None:
    sys.stderr.write(f"{message}\n")


def _keep_freed_memory() -> None:
    """Let glibc keep what one tensor leaves for the next: to hand it back and fetch it anew takes a tenth of the time.

    Other systems have no such call, and go without.
    """
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    with suppress(OSError, TypeError, AttributeError):
        allocator = ctypes.CDLL(None)
        allocator.mallopt(trim_threshold, 2**31 - 1)
        allocator.mallopt(mmap_threshold, 1 << 25)


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"found the device '{name}', expected auto, cpu or a device that torch can use") from error
    return name


def _frames(frame: Any) -> tuple[int | None, int | None]:
    both = tuple(frame) if isinstance(frame, tuple | list) else (frame, frame)
    if len(both) != 2 or any(not (f is None or (isinstance(f, int) and not isinstance(f, bool))) for f in both):
        raise InputError(f"found frame {frame}, expected a number from 0, or two of them: fixed,moving")
    return both[0], both[1]


def _number(name: str, value: Any, whole: bool = False) -> None:
    kinds = int if whole else int | float
    if value is not None and (isinstance(value, bool) or not isinstance(value, kinds) or value < 0):
        raise InputError(f"found --{name} {value}, expected a {'whole ' if whole else ''}number of 0 or more")


def register(
    *,
    fixed: str,
    moving: str,
    out: str,
    bundle: str = "none",
    model: str | None = None,
    fixed_label: str | None = None,
    moving_label: str | None = None,
    fixed_mask: str | None = None,
    moving_mask: str | None = None,
    fixed_points: str | None = None,
    moving_points: str | None = None,
    init: str = "auto",
    motion: str = "auto",
    optimise: int | None = None,
    time_limit: float | None = None,
    guide: str = "none",
    modality: str = "auto",
    frame: Any = None,
    memory_gb: float | None = None,
    device: str = "auto",
    strict: bool = False,
) -> None:
    """Register a moving to a fixed image: warped image, transforms, scores, a picture and a verdict.

    Images of any size, spacing and orientation, 2D or 3D. OUT gets warped.nii.gz on the fixed grid, transform.h5 and
    transform.nii.gz (ITK, ANTs, 3D Slicer; the affine included), inverse_transform.h5 and .nii.gz, affine.txt,
    warped_label.nii.gz, warped_points.csv (moving points in the fixed image), fixed_points_in_moving.csv, metrics.json
    and qc.png. The exit code is 0 for a result that was made, whatever the verdict; see --strict.

    Args:
        fixed: NIfTI, NRRD, MHA, or a folder with one DICOM series; the result gets its grid.
        moving: image to bring there.
        out: folder for the results.
        bundle: samcl or dccnn_lstm_reg lets that network make a first field; none does without.
        model: weights of the network; by default the bundle's own.
        fixed_label: label map; with moving_label Dice and HD95 are told.
        moving_label: label map; it is warped.
        fixed_mask: the fixed image counts where it is above zero.
        moving_mask: the moving image counts where it is above zero.
        fixed_points: .csv without header (voxels), .csv with x,y,z (LPS mm), .pts (elastix), .fcsv (3D Slicer).
        moving_points: likewise, line by line the same places: the TRE is told; they are warped.
        init: auto (headers where the images share a frame, else a fit), affine, rigid, centre, none, or a transform
            file.
        motion: within one patient (stiffer), between patients, or auto.
        optimise: most iterations a level; 0 leaves the optimisation out.
        time_limit: seconds after which the start and the optimisation take no further step; the log says so.
        guide: labels, points or both pull at the registration too; by default they are only scored.
        modality: ct, mr or auto; or of each: fixed,moving.
        frame: of a time series, from 0; or of each: fixed,moving.
        memory_gb: what the work may take, by default what is free; larger pairs get coarser fields, with a message.
        device: auto, cpu, cuda, cuda:1.
        strict: end with exit code 2 where the verdict is failed.
    """
    _number("optimise", optimise, whole=True)
    _number("time_limit", time_limit)
    _number("memory_gb", memory_gb)
    chosen = _device(device)
    _keep_freed_memory()
    network = None
    if bundle != "none":
        from .networks import load_network

        network = load_network(bundle, model, chosen)
    elif model is not None:
        raise InputError(f"found --model {model} without a bundle, expected --bundle samcl or dccnn_lstm_reg as well")
    with plain_warnings():
        result = register_files(
            fixed,
            moving,
            out,
            fixed_label=fixed_label,
            moving_label=moving_label,
            fixed_mask=fixed_mask,
            moving_mask=moving_mask,
            fixed_points=fixed_points,
            moving_points=moving_points,
            init=init,
            motion=motion,
            optimise=optimise,
            time_limit=time_limit,
            guide=guide,
            modality=",".join(modality) if isinstance(modality, tuple | list) else str(modality),
            network=network,
            frames=_frames(frame),
            memory_gb=memory_gb,
            device=chosen,
            say=_say,
            progress=True,
        )
    reasons = "".join(f"\n  {reason}" for reason in result["reasons"])
    print(f"{summary(result['scores'])}\nverdict: {result['verdict']}{reasons}\nwritten to {out}")
    if strict and result["verdict"] == "failed":
        sys.exit(2)
