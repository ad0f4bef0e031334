"""Pull-back warping in voxel units: ``warped(x) = moving(x + ddf(x))``.

Positions, displacements and points are in tensor order (i, j, k), in voxels, with voxel centres at whole
numbers. The [-1, 1] coordinates of ``grid_sample`` exist in this file only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernels.backend import usable

__all__ = ["add_warped", "check_field", "compiled_takes", "warp", "warp_points"]

MODES = ("bilinear", "nearest")
PADDING_MODES = ("zeros", "border")
# Every part brings an image gradient of its own, so the split stops here however many threads there are.
MAX_PARTS = 8
# Points from which the kernels read a field quicker, for all the copies, than `grid_sample` does.
MANY_POINTS = 20_000


def check_field(field: Tensor, name: str = "ddf") -> None:
    """Raise ValueError unless ``field`` has shape (B, d, *S) with d = 2 or 3 spatial dims."""
    if field.ndim not in (4, 5) or field.shape[1] != field.ndim - 2:
        raise ValueError(f"{name} must be (B, d, *S) with d = 2 or 3 spatial dims, got {tuple(field.shape)}")
    if not field.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {field.dtype}")


def warp(image: Tensor, ddf: Tensor, mode: str = "bilinear", padding_mode: str = "zeros") -> Tensor:
    """Sample ``image`` at ``x + ddf(x)``, x running over the voxels of the field's grid.

    The arithmetic runs in float32 or wider whatever the inputs are, and the result has the image's dtype:
    a displacement in voxels survives half precision, a normalised coordinate does not.

    Args:
        image: (B, C, *S). Integer and boolean images go with mode ``nearest`` only.
        ddf: (B, d, *T) displacement in voxels of the image's grid; T may differ from S. Either batch may
            be 1, which then serves the whole batch of the other.
        mode: ``bilinear`` (linear in 2D and 3D) or ``nearest``.
        padding_mode: ``zeros`` fades to zero within one voxel outside the image, ``border`` repeats the edge.

    Returns:
        (B, C, *T), differentiable with respect to both inputs (to the image only with ``nearest``).

    Raises:
        ValueError: on a wrong number of dimensions or components, batches that do not fit, an unknown mode
            or padding mode, or an integer image with ``bilinear``.
    """
    if not torch.jit.is_scripting():
        _check_warp(image, ddf, mode, padding_mode)
    dtype = _compute_dtype(image.dtype, ddf.dtype)
    return _warp(image.to(dtype), ddf.to(dtype), mode, padding_mode, False).to(image.dtype)


def add_warped(outer: Tensor, inner: Tensor, padding_mode: str = "border") -> Tensor:
    """Return ``inner(x) + outer(x + inner(x))`` in one pass where the compiled kernels run.

    Args:
        outer: (B, d, *T) in voxels of the grid that ``inner`` leads into.
        inner: (B, d, *S) in voxels.
        padding_mode: as for :func:`warp`.

    Returns:
        (B, d, *S).
    """
    dtype = _compute_dtype(outer.dtype, inner.dtype)
    summed = _warp(outer.to(dtype), inner.to(dtype), "bilinear", padding_mode, True)
    return summed.to(torch.promote_types(outer.dtype, inner.dtype))


def _warp(image: Tensor, field: Tensor, mode: str, padding_mode: str, add: bool) -> Tensor:
    """Sample ``image`` at the field, and ``add`` the field; both of one floating dtype."""
    source = _thicken(image, padding_mode)
    if not torch.jit.is_scripting():
        if compiled_takes(source, field):
            return _warp_compiled(source, field, mode, padding_mode, add)
    axes: list[Tensor] = []
    for axis in range(field.ndim - 2):
        n_out, scale = field.shape[2 + axis], 2.0 / (source.shape[2 + axis] - 1)
        start = torch.linspace(-1.0, (n_out - 1) * scale - 1.0, n_out, dtype=field.dtype, device=field.device)
        start = start.view([-1] + [1] * (field.ndim - 3 - axis))
        axes.append(torch.add(start, field[:, axis], alpha=scale))
    warped = _sample(source, axes, mode, padding_mode)
    return field + warped if add else warped


def warp_points(points: Tensor, ddf: Tensor) -> Tensor:
    """Move points of the fixed image into moving space: ``p + ddf(p)``, the field read linearly.

    A warp that pulls the moving image back onto the fixed grid carries points the other way. Outside the
    grid the field's edge is repeated.

    Args:
        points: (B, N, d) voxel coordinates on the field's (fixed) grid, not necessarily whole numbers.
        ddf: (B, d, *S) in voxels; either batch may be 1.

    Returns:
        (B, N, d) voxel coordinates in moving space, differentiable with respect to both inputs.

    Raises:
        ValueError: when the shapes do not fit.
    """
    check_field(ddf)
    d = ddf.shape[1]
    if points.ndim != 3 or points.shape[-1] != d or not points.is_floating_point():
        raise ValueError(
            f"points must be floating point of shape (B, N, {d}) for a {d}D field, "
            f"got {points.dtype} {tuple(points.shape)}"
        )
    _check_batches("points", points.shape[0], ddf.shape[0])
    dtype = _compute_dtype(points.dtype, ddf.dtype)
    source = _thicken(ddf.to(dtype), "border")
    if not torch.jit.is_scripting():
        if _many(points, source):
            return points + _sample_many(points[0].to(dtype), source)[None].to(points.dtype)
    position = points.to(dtype).view(points.shape[0], *[1] * (d - 1), *points.shape[1:])
    axes = [position[..., a] * (2.0 / (n - 1)) - 1.0 for a, n in enumerate(source.shape[2:])]
    displacement = _sample(source, axes, "bilinear", "border").flatten(2)
    return points + displacement.transpose(1, 2).to(torch.promote_types(points.dtype, ddf.dtype))


@torch.jit.unused
def compiled_takes(source: Tensor, field: Tensor) -> bool:
    """Whether the compiled kernels take this call: not where a graph is recorded that must do without them."""
    return not torch.jit.is_tracing() and not torch.compiler.is_compiling() and usable(source, field)


@torch.jit.unused
def _many(points: Tensor, source: Tensor) -> bool:
    """Whether points are read by the compiled kernels: so many, of one field, that bringing them there pays."""
    if points.shape[0] != 1 or source.shape[0] != 1 or points.shape[1] < MANY_POINTS or points.dtype != source.dtype:
        return False
    wanted = torch.is_grad_enabled() and (points.requires_grad or source.requires_grad)
    return not wanted and points.device.type == "cpu" and compiled_takes(source, points)


@torch.jit.unused
def _sample_many(points: Tensor, source: Tensor) -> Tensor:
    """Read ``source`` (1, d, *S) at ``points`` (N, d) by a warp of an image into which the points are dealt row by row.

    Its axes are short, so that what the kernel adds to a displacement, the voxel's own place, costs no digits.
    """
    (count, d), side = points.shape, 128
    rows = -(-count // side ** (d - 1))
    shape = (rows, *[side] * (d - 1))
    field = torch.zeros(1, d, rows * side ** (d - 1), dtype=points.dtype)
    field[0, :, :count] = points.T
    field = field.view(1, d, *shape)
    for axis, n in enumerate(shape):
        field[0, axis] -= torch.arange(n, dtype=points.dtype).view([-1] + [1] * (d - 1 - axis))
    return _warp_compiled(source, field, "bilinear", "border", False).flatten(2)[0, :, :count].T


@torch.jit.unused
def _warp_compiled(source: Tensor, field: Tensor, mode: str, padding_mode: str, add: bool) -> Tensor:
    return torch.ops.registration.warp(
        source.contiguous(), field.contiguous(), mode == "nearest", padding_mode == "border", add
    )


def _sample(source: Tensor, axes: list[Tensor], mode: str, padding_mode: str) -> Tensor:
    """Sample ``source`` (B, C, *S) at normalised ``axes``, d tensors (B, *T) in ij order -> (B, C, *T)."""
    grid = torch.stack(axes[::-1], dim=-1)  # grid_sample wants the last axis first
    if not torch.jit.is_scripting():
        parts = min(torch.get_num_threads(), MAX_PARTS)
        if grid.device.type == "cpu" and source.shape[0] == 1 and grid.shape[0] == 1 and parts > 1:
            return _sample_in_parts(source, grid, mode, padding_mode, parts)
    batch = max(source.shape[0], grid.shape[0])
    source = source.expand([batch] + list(source.shape[1:]))
    grid = grid.expand([batch] + list(grid.shape[1:]))
    return F.grid_sample(source, grid, mode=mode, padding_mode=padding_mode, align_corners=True)


def _sample_in_parts(source: Tensor, grid: Tensor, mode: str, padding_mode: str, parts: int) -> Tensor:
    """Sample a batch of one with its positions dealt out over a batch of ``parts``.

    On the CPU grid_sample runs one thread per batch element, so a single image would leave the other
    threads idle. Each position is computed by the same arithmetic as without the split.
    """
    size, d = grid.shape[1:-1], grid.shape[-1]
    count = size.numel()
    share = -(-count // parts)
    flat = grid.reshape(count, d)
    if share * parts != count:
        flat = F.pad(flat, (0, 0, 0, share * parts - count))
    dealt = flat.view(parts, *[1] * (d - 1), share, d)
    copies = source.expand(parts, *source.shape[1:])
    sampled = F.grid_sample(copies, dealt, mode=mode, padding_mode=padding_mode, align_corners=True)
    channels = source.shape[1]
    joined = sampled.reshape(parts, channels, share).transpose(0, 1).reshape(1, channels, parts * share)
    return joined[..., :count].reshape(1, channels, *size)


def _thicken(source: Tensor, padding_mode: str) -> Tensor:
    """Append one voxel of padding to axes of length 1, on which normalised coordinates are undefined."""
    for axis in range(2, source.ndim):
        if source.shape[axis] == 1:
            beyond = source if padding_mode == "border" else torch.zeros_like(source)
            source = torch.cat([source, beyond], dim=axis)
    return source


def _compute_dtype(first: torch.dtype, second: torch.dtype) -> torch.dtype:
    # float32 counts exactly to 2^24 only, less than an int32 label may hold.
    wide = (torch.int32, torch.int64, torch.float64)
    return torch.float64 if first in wide or second in wide else torch.float32


def _check_warp(image: Tensor, ddf: Tensor, mode: str, padding_mode: str) -> None:
    check_field(ddf)
    if image.ndim != ddf.ndim:
        raise ValueError(
            f"image must be (B, C, *S) with {ddf.ndim - 2} spatial dims as ddf has, got {tuple(image.shape)}"
        )
    _check_batches("image", image.shape[0], ddf.shape[0])
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"padding_mode must be one of {PADDING_MODES}, got {padding_mode!r}")
    if mode != "nearest" and not image.is_floating_point():
        raise ValueError(f"an image of dtype {image.dtype} can only be warped with mode 'nearest', got {mode!r}")


def _check_batches(name: str, batch: int, field_batch: int) -> None:
    if batch != field_batch and 1 not in (batch, field_batch):
        raise ValueError(
            f"{name} and ddf must have the same batch size or one of them 1, got {batch} and {field_batch}"
        )
