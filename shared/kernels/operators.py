"""The warping operators as torch knows them: kernels, shapes for tracing, gradients, batching over a new axis."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .ordered_adjoint import ordered_image_adjoint

__all__ = ["use_library", "use_triton"]

_NAME = "registration::warp"


@cache
def use_library(path: Path) -> None:
    """Take the CPU kernels from a built library, once a process."""
    torch.ops.load_library(str(path))


@cache
def use_triton() -> None:
    """Take the CUDA kernels from Triton, once a process.

    Raises:
        ImportError: there is no Triton.
    """
    from . import warp_triton

    if getattr(torch.ops.registration, "has_cuda", False):
        return
    _LIBRARY.impl("warp", warp_triton.sample, "CUDA")
    _LIBRARY.impl("warp_field_adjoint", warp_triton.field_adjoint, "CUDA")
    _LIBRARY.impl("warp_image_adjoint", _cuda_image_adjoint, "CUDA")
    torch.ops.registration.has_cuda = True


def _cuda_image_adjoint(grad: Tensor, image: Tensor, field: Tensor, nearest: bool, border: bool) -> Tensor:
    from . import warp_triton

    if torch.are_deterministic_algorithms_enabled():
        return ordered_image_adjoint(grad, image, field, nearest, border)
    return warp_triton.image_adjoint(grad, image, field, nearest, border)


def _fake_warp(image: Tensor, field: Tensor, nearest: bool, border: bool, add: bool) -> Tensor:
    batch = max(image.shape[0], field.shape[0])
    return image.new_empty((batch, image.shape[1], *field.shape[2:]))


def _fake_field_adjoint(grad: Tensor, image: Tensor, field: Tensor, border: bool) -> Tensor:
    return torch.empty_like(field, memory_format=torch.contiguous_format)


def _fake_image_adjoint(grad: Tensor, image: Tensor, field: Tensor, nearest: bool, border: bool) -> Tensor:
    return torch.empty_like(image, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    image, field, ctx.nearest, ctx.border, ctx.add = inputs
    ctx.save_for_backward(image, field)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
    image, field = ctx.saved_tensors
    grad = grad.contiguous()
    ops = torch.ops.registration
    to_image = to_field = None
    if ctx.needs_input_grad[0]:
        to_image = ops.warp_image_adjoint(grad, image, field, ctx.nearest, ctx.border)
    if ctx.needs_input_grad[1]:
        to_field = torch.zeros_like(field) if ctx.nearest else ops.warp_field_adjoint(grad, image, field, ctx.border)
        if ctx.add:
            to_field = to_field + (grad if grad.shape == field.shape else grad.sum(0, keepdim=True))
    return to_image, to_field, None, None, None


def _no_second_gradient(ctx: Any, grad: Tensor) -> None:
    raise NotImplementedError("warp has no second derivative, as grid_sample has none")


def _batch_warp(
    info: Any, in_dims: tuple[int | None, ...], image: Tensor, field: Tensor, nearest: bool, border: bool, add: bool
) -> tuple[Tensor, int]:
    """Warp with a new axis on either input: it joins the batch."""
    count = info.batch_size
    batch = max(
        tensor.shape[0 if axis is None else (1 if axis == 0 else 0)]
        for tensor, axis in ((image, in_dims[0]), (field, in_dims[1]))
    )
    joined = [_join(tensor, axis, count, batch) for tensor, axis in ((image, in_dims[0]), (field, in_dims[1]))]
    warped = torch.ops.registration.warp(*joined, nearest, border, add)
    return warped.unflatten(0, (count, batch)), 0


def _join(tensor: Tensor, axis: int | None, count: int, batch: int) -> Tensor:
    full = tensor.unsqueeze(0) if axis is None else tensor.movedim(axis, 0)
    return full.expand(count, batch, *full.shape[2:]).reshape(count * batch, *full.shape[2:]).contiguous()


def _define() -> torch.library.Library:
    """Define the operators, once a process: a host of several bundles loads a copy of this file with each."""
    defined = getattr(torch.ops.registration, "definition", None)
    if defined is not None:
        return defined
    library = torch.library.Library("registration", "FRAGMENT")
    library.define("warp(Tensor image, Tensor field, bool nearest, bool border, bool add) -> Tensor")
    library.define("warp_field_adjoint(Tensor grad, Tensor image, Tensor field, bool border) -> Tensor")
    library.define("warp_image_adjoint(Tensor grad, Tensor image, Tensor field, bool nearest, bool border) -> Tensor")
    torch.library.register_fake(_NAME, _fake_warp)
    torch.library.register_fake(f"{_NAME}_field_adjoint", _fake_field_adjoint)
    torch.library.register_fake(f"{_NAME}_image_adjoint", _fake_image_adjoint)
    torch.library.register_autograd(_NAME, _backward, setup_context=_keep)
    torch.library.register_autograd(f"{_NAME}_field_adjoint", _no_second_gradient)
    torch.library.register_autograd(f"{_NAME}_image_adjoint", _no_second_gradient)
    if hasattr(torch.library, "register_vmap"):  # torch 2.5
        torch.library.register_vmap(_NAME, _batch_warp)
    torch.ops.registration.definition = library  # outlives a host that drops this module
    return library


_LIBRARY = _define()
