"""Operations on displacement and velocity fields, in voxels and tensor order (i, j, k).

A field ``ddf`` of shape (B, d, *S) stands for the map ``x -> x + ddf(x)`` on the grid it lives on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .warp import add_warped, check_field, compiled_takes, warp_points

__all__ = ["compose", "derivative", "exponentiate", "identity", "invert", "jacobian_determinant", "resize"]


def identity(
    size: Sequence[int], *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Tensor:
    """Return the voxel coordinates of a grid.

    Args:
        size: the d spatial sizes.
        dtype: floating by default (torch's default dtype).
        device: torch's default device if None.

    Returns:
        (d, *S); component a holds the index along axis a.
    """
    dtype = dtype or torch.get_default_dtype()
    axes = [torch.arange(n, dtype=dtype, device=device) for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def compose(outer: Tensor, inner: Tensor, padding_mode: str = "border") -> Tensor:
    """Return the field of ``x -> outer_map(inner_map(x))``, that is ``inner(x) + outer(x + inner(x))``.

    Warping an image first with ``outer`` and the result with ``inner`` equals one warp with the
    composition, up to interpolation.

    Args:
        outer: (B, d, *T) in voxels of the grid that ``inner`` leads into.
        inner: (B, d, *S) in voxels.
        padding_mode: what ``outer`` is outside its grid: ``border`` (its edge value) or ``zeros``.

    Returns:
        (B, d, *S).

    Raises:
        ValueError: when a field is not (B, d, *S) or the two do not fit.
    """
    if not torch.jit.is_scripting():
        check_field(outer, "outer")
        check_field(inner, "inner")
    return add_warped(outer, inner, padding_mode)


def exponentiate(dvf: Tensor, steps: int = 7) -> Tensor:
    """Integrate a stationary velocity over unit time by scaling and squaring.

    Arsigny et al., MICCAI 2006: ``dvf / 2^steps`` is composed with itself ``steps`` times. The result is
    float32 at least, as a half-precision field would lose its digits step by step.

    Args:
        dvf: (B, d, *S) velocity in voxels.
        steps: number of squarings; 0 returns the velocity as it is.

    Returns:
        (B, d, *S) displacement in voxels.

    Raises:
        ValueError: when ``dvf`` is not (B, d, *S) or ``steps`` is negative.
    """
    if not torch.jit.is_scripting():
        check_field(dvf, "dvf")
        if steps < 0:
            raise ValueError(f"steps must be 0 or more, got {steps}")
    dvf = dvf.to(torch.float64 if dvf.dtype == torch.float64 else torch.float32)
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript leaves out a branch of this condition alone
        if steps > 0 and compiled_takes(dvf, dvf):
            return _exponentiate_compiled(dvf, steps)
    ddf = dvf * 0.5**steps
    for _ in range(steps):
        ddf = compose(ddf, ddf)
    return ddf


@torch.jit.unused
def _exponentiate_compiled(dvf: Tensor, steps: int) -> Tensor:
    differentiate = dvf.requires_grad and torch.is_grad_enabled()
    ddf: Tensor = torch.ops.registration.integrate(dvf.contiguous(), steps, differentiate)[0]
    return ddf


@torch.no_grad()
def invert(ddf: Tensor, iterations: int = 100, tolerance: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Return ``inv_ddf`` with ``(id + ddf) o (id + inv_ddf) = id``, and how well that holds.

    Fixed point ``inv <- inv - step * (inv + ddf(x + inv))``, which is Chen et al., Med. Phys. 2008, at
    step 1. That step diverges where the map stretches to twice the length or more or turns by 60 degrees
    or more, so each voxel that has not arrived goes on from the best value it has had with 1/2, and with
    1/4 in the second half. Outside its grid the field counts as its edge value. No gradient flows.

    Args:
        ddf: (B, d, *S) in voxels.
        iterations: most evaluations of the field.
        tolerance: stop early once every residual is at most this many voxels.

    Returns:
        ``inv_ddf`` (B, d, *S), and the residual (B,): the largest length in voxels of
        ``ddf(x + inv_ddf(x)) + inv_ddf(x)``. A field that folds has no inverse: the residual may stay
        large, or ``inv_ddf`` be one answer of several; `jacobian_determinant` tells.

    Raises:
        ValueError: when ``ddf`` is not (B, d, *S) or ``iterations`` is below 1.
    """
    check_field(ddf)
    if iterations < 1:
        raise ValueError(f"iterations must be 1 or more, got {iterations}")
    fields, lengths = zip(*[_invert_one(one[None], iterations, tolerance) for one in ddf], strict=True)
    return torch.cat(fields), torch.stack(lengths)


def _invert_one(ddf: Tensor, iterations: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """Invert one field (1, d, *S); only the voxels that have not arrived are worked on."""
    start = identity(ddf.shape[2:], dtype=ddf.dtype, device=ddf.device).flatten(1).T
    # Where the map shrinks, a voxel that misses by little may be further from its place.
    arrived = 0.5 * tolerance
    best = torch.zeros_like(start)
    best_length = torch.linalg.vector_norm(ddf[0].flatten(1), dim=0)
    left = (best_length > arrived).nonzero()[:, 0]
    value, wrong = best[left], ddf[0].flatten(1).T[left]
    last = 1.0
    for iteration in range(iterations):
        if len(left) == 0:
            break
        step = 1.0 if iteration < min(12, iterations / 4) else 0.5 if iteration < iterations / 2 else 0.25
        if step != last:
            last, value = step, best[left]
            wrong = warp_points((start[left] + value)[None], ddf)[0] - start[left]
        value = value - step * wrong
        wrong = warp_points((start[left] + value)[None], ddf)[0] - start[left]
        length = torch.linalg.vector_norm(wrong, dim=1)
        better = length < best_length[left]
        best[left[better]], best_length[left[better]] = value[better], length[better]
        more = best_length[left] > arrived
        left, value, wrong = left[more], value[more], wrong[more]
    return best.T.reshape(ddf.shape), best_length.amax()


def resize(field: Tensor, size: list[int]) -> Tensor:
    """Resample a field onto a grid of another size over the same extent, vectors in the new voxels.

    Corner voxels stay corner voxels, so lengths along an axis scale by ``(new - 1) / (old - 1)``.

    Args:
        field: (B, d, *S) in voxels of its grid.
        size: the d new sizes.

    Returns:
        (B, d, *size) in voxels of the new grid. Along an axis of length 1 the vectors stay as they are.

    Raises:
        ValueError: when ``field`` is not (B, d, *S) or ``size`` does not have d entries.
    """
    if not torch.jit.is_scripting():
        check_field(field, "field")
        if len(size) != field.shape[1]:
            raise ValueError(f"size must have {field.shape[1]} entries for this field, got {tuple(size)}")
    mode = "bilinear" if field.shape[1] == 2 else "trilinear"
    resampled = F.interpolate(field, size=size, mode=mode, align_corners=True)
    # Python numbers instead of a tensor of factors: nothing is copied to the device.
    scaled: list[Tensor] = []
    for axis, component in enumerate(resampled.unbind(1)):
        old = field.shape[2 + axis]
        scaled.append(component * ((size[axis] - 1) / (old - 1) if old > 1 else 1.0))
    return torch.stack(scaled, dim=1)


def derivative(field: Tensor, axis: int) -> Tensor:
    """Differentiate along spatial ``axis`` (0 is i): central inside, one-sided at the two ends.

    Args:
        field: (B, C, *S).
        axis: 0 to d - 1.

    Returns:
        (B, C, *S), per voxel; zero along an axis of length 1.
    """
    dim = axis + 2
    n = field.shape[dim]
    if n == 1:
        return torch.zeros_like(field)
    step = field.diff(dim=dim)
    inner = (step.narrow(dim, 0, n - 2) + step.narrow(dim, 1, n - 2)) * 0.5
    return torch.cat([step.narrow(dim, 0, 1), inner, step.narrow(dim, n - 2, 1)], dim=dim)


def jacobian_determinant(ddf: Tensor) -> Tensor:
    """Return ``det(I + d(ddf)/dx)``, the local change of volume under ``x -> x + ddf(x)``.

    Args:
        ddf: (B, d, *S) in voxels.

    Returns:
        (B, 1, *S); 1 where nothing stretches, zero or negative where the map folds.

    Raises:
        ValueError: when ``ddf`` is not (B, d, *S).
    """
    if not torch.jit.is_scripting():
        check_field(ddf)
    d = ddf.shape[1]
    columns = [derivative(ddf, axis) for axis in range(d)]
    # entry[a][b] = d(component a) / d(axis b)
    entry = [[columns[b][:, a : a + 1] + float(a == b) for b in range(d)] for a in range(d)]
    if d == 2:
        return entry[0][0] * entry[1][1] - entry[0][1] * entry[1][0]
    minors = [entry[1][b] * entry[2][c] - entry[1][c] * entry[2][b] for b, c in ((1, 2), (2, 0), (0, 1))]
    return entry[0][0] * minors[0] + entry[0][1] * minors[1] + entry[0][2] * minors[2]
