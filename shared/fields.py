"""Operations on displacement and velocity fields, in voxels and tensor order (i, j, k).

A field ``ddf`` of shape (B, d, *S) stands for the map ``x -> x + ddf(x)`` on the grid it lives on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .warp import add_warped, check_field, compiled_takes, warp_points

__all__ = ["compose", "derivative", "exponentiate", "identity", "invert", "jacobian_determinant", "length", "resize"]

# An inverse of a field with an axis shorter than this starts from nothing, else from that at half its size.
_SMALL = 32
# Smallest and largest step of an inversion, and what a squared change of its error counts at least.
_STEPS, _TINY = (0.1, 1.5), 1e-12
# Voxels that have arrived leave when there are more of them than this leaves: to part with a few costs as much.
_CROWDED = 0.85


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


def length(field: Tensor) -> Tensor:
    """Return the Euclidean length (B, 1, *S) of the vectors of a field (B, d, *S).

    ``torch.linalg.vector_norm`` across an axis that is not the last takes a hundred times as long on the CPU.
    """
    squared = field[:, :1].square()
    for axis in range(1, field.shape[1]):
        squared = torch.addcmul(squared, field[:, axis : axis + 1], field[:, axis : axis + 1])
    return squared.sqrt()


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
    start = identity(ddf.shape[2:], dtype=ddf.dtype, device=ddf.device).flatten(1).T.contiguous()
    # Where the map shrinks, a voxel that misses by little may be further from its place.
    arrived = 0.5 * tolerance
    best, wrong = _guess(ddf, iterations, tolerance)
    found, found_length = best, torch.linalg.vector_norm(wrong, dim=1)
    left = (found_length > arrived).nonzero()[:, 0]
    start, best, wrong, shortest = (kept.index_select(0, left) for kept in (start, best, wrong, found_length))
    value, step = best, torch.ones_like(best[:, :1])
    for iteration in range(iterations):
        if not bool((shortest > arrived).any()):
            break
        if iteration in (iterations // 2, iterations * 3 // 4):
            value = best
            wrong = warp_points((start + value)[None], ddf)[0] - start
        if iteration >= iterations // 2:
            step = torch.full_like(step, 0.5 if iteration < iterations * 3 // 4 else 0.25)
        change, before = -step * wrong, wrong
        value = value + change
        wrong = warp_points((start + value)[None], ddf)[0] - start
        step = _next_step(change, wrong - before)
        missed = torch.linalg.vector_norm(wrong, dim=1)
        best = torch.where((missed < shortest)[:, None], value, best)
        shortest = torch.minimum(missed, shortest)
        more = (shortest > arrived).nonzero()[:, 0]
        if len(more) < _CROWDED * len(left):
            found[left], found_length[left] = best, shortest
            left, start, best, shortest, value, wrong, step = (
                kept.index_select(0, more) for kept in (left, start, best, shortest, value, wrong, step)
            )
    found[left], found_length[left] = best, shortest
    return found.T.reshape(ddf.shape), found_length.amax()


def _next_step(change: Tensor, turned: Tensor) -> Tensor:
    """Return the step (N, 1) that would have suited the last one best, by how the error (N, d) answered to it."""
    step = (change * turned).sum(1, keepdim=True) / turned.square().sum(1, keepdim=True).clamp(min=_TINY)
    return step.clamp(*_STEPS)


def _guess(ddf: Tensor, iterations: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """Return a first inverse (N, d) and by how much it misses: that of the field at half its size, or none."""
    size = ddf.shape[2:]
    if min(size) < _SMALL:
        return torch.zeros_like(ddf[0]).flatten(1).T.contiguous(), ddf[0].flatten(1).T.contiguous()
    coarse = _invert_one(resize(ddf, [(n + 1) // 2 for n in size]), iterations, tolerance)[0]
    guess = resize(coarse, list(size))
    wrong = add_warped(ddf, guess)
    nearer = length(wrong) < length(ddf)
    pair = (torch.where(nearer, guess, 0.0), torch.where(nearer, wrong, ddf))
    first, miss = (field[0].flatten(1).T.contiguous() for field in pair)
    return first, miss


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
