"""Directions that a step must not take: against a reference gradient (A-GEM), inside a layer's old inputs (GPM)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["check_convolution", "extend_basis", "input_columns", "project_conflict", "project_out"]

# Directions with less than this share of the inputs' energy are rounding noise of float32 values.
NOISE = 1e-12


@torch.no_grad()
def project_conflict(gradients: Sequence[Tensor], reference: Sequence[Tensor]) -> list[Tensor]:
    """Return ``g - (g.r / r.r) r`` where ``g.r < 0``, else ``g`` (A-GEM; Chaudhry et al., ICLR 2019, eq. 11).

    ``g`` and ``r`` are all weights' gradients as one vector. Nothing waits for the device.
    """
    product = torch.stack([(g * r).sum() for g, r in zip(gradients, reference, strict=True)]).sum()
    square = torch.stack([r.square().sum() for r in reference]).sum()
    factor = product.clamp_max(0) / square.clamp_min(torch.finfo(square.dtype).tiny)
    return list(torch._foreach_sub(list(gradients), torch._foreach_mul(list(reference), factor)))


def check_convolution(convolution: nn.Module) -> None:
    """Raise ValueError unless :func:`input_columns` can tell what a convolution's kernel meets."""
    conv: nn.modules.conv._ConvNd = convolution  # type: ignore[assignment]
    if conv.groups != 1 or set(conv.dilation) != {1} or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        raise ValueError(f"found {conv}, expected a convolution without groups and dilation, padded with zeros")


@torch.no_grad()
def input_columns(image: Tensor, convolution: nn.Module, count: int, generator: torch.Generator) -> Tensor:
    """Return what a convolution's kernel meets: ``count`` random patches of its input as columns (n, P).

    The convolution's output at a place is ``W.flatten(1) @ column``, n being input channels times kernel voxels. Of a
    transposed convolution the columns are single voxels, n being its input channels.

    Args:
        image: (B, C, *S), the input.
        convolution: a torch convolution of this input.
        count: patches at most; fewer where the output has fewer places.
        generator: on the CPU.

    Raises:
        ValueError: groups, dilation, or padding other than zeros.
    """
    conv: nn.modules.conv._ConvNd = convolution  # type: ignore[assignment]
    check_convolution(conv)
    dims = image.ndim - 2
    patches = image.float().movedim(1, 0)  # (C, B, *S)
    if not conv.transposed:
        patches = F.pad(patches, [n for width in reversed(conv.padding) for n in (width, width)])
        for axis in range(dims):
            patches = patches.unfold(2 + axis, conv.kernel_size[axis], conv.stride[axis])
    places = patches.shape[1 : 2 + dims]
    chosen = torch.randperm(places.numel(), generator=generator)[:count].to(image.device)
    index = (slice(None), *torch.unravel_index(chosen, places))
    picked = patches[index]  # (C, P, *kernel)
    return picked.movedim(1, -1).flatten(0, -2)


@torch.no_grad()
def extend_basis(basis: Tensor | None, columns: Tensor, threshold: float) -> Tensor:
    """Add the fewest orthonormal directions with which the basis holds ``threshold`` of the columns' energy.

    Gradient projection memory (Saha, Garg & Roy, ICLR 2021). The singular vectors come from the
    eigenvectors of the smaller of the two products of the columns with themselves, in double precision.

    Args:
        basis: (n, r) orthonormal, or None.
        columns: (n, P).
        threshold: share of the squared norm, 0 to 1; at 1 the basis spans the columns.

    Returns:
        (n, r + k), k >= 0, in the precision of ``columns``.
    """
    exact = columns.double()
    old = exact.new_zeros(len(exact), 0) if basis is None else basis.double()
    rest = exact - old @ (old.T @ exact)
    total = exact.square().sum()
    wide = rest.shape[1] > rest.shape[0]
    values, vectors = torch.linalg.eigh(rest @ rest.T if wide else rest.T @ rest)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    # Direction j is needed while those before it leave energy missing.
    missing = threshold * total - (total - rest.square().sum()) - (values.cumsum(0) - values)
    needed = (missing > 0) & (values > NOISE * total)
    count = min(int(needed.sum()), old.shape[0] - old.shape[1])
    vectors = vectors[:, :count]
    added = vectors if wide else rest @ vectors / values[:count].sqrt()
    # The orthogonal factor spans the same and repairs what rounding took from the weakest directions.
    return torch.linalg.qr(torch.cat([old, added], dim=1)).Q.to(columns.dtype)


@torch.no_grad()
def project_out(update: Tensor, basis: Tensor, transposed: bool = False) -> Tensor:
    """Return an update of a convolution's weight without its part in the basis: old inputs then give old outputs.

    Args:
        update: shape of the weight.
        basis: (n, r) orthonormal, of :func:`extend_basis`.
        transposed: whether the weight is a transposed convolution's, (in, out, *kernel).
    """
    rows = update.flatten(1)
    if transposed:
        return (rows - basis @ (basis.T @ rows)).reshape(update.shape)
    return (rows - (rows @ basis) @ basis.T).reshape(update.shape)
