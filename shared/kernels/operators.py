"""The warping operators as torch knows them: kernels, shapes for tracing, gradients, batching over a new axis."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .ordered_adjoint import ordered_image_adjoint

__all__ = ["triton_kernels", "use_library", "use_triton"]

PACK_TAIL = 16  # voxels behind a packed field of integrate_cpu.cpp

_NAME = "registration::warp"
_INTEGRATE = "registration::integrate"
_LOCAL_NCC = "registration::local_ncc"


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
    kernels = triton_kernels()
    if getattr(torch.ops.registration, "has_cuda", False):
        return
    for name, kernel in kernels.items():
        _LIBRARY.impl(name, kernel, "CUDA")
    torch.ops.registration.has_cuda = True


def triton_kernels() -> dict[str, Callable[..., Any]]:
    """Return what Triton does of the operators, by name.

    Raises:
        ImportError: there is no Triton.
    """
    from . import histogram_triton, integrate_triton, jacobian_triton, lncc_triton, overlap_triton, warp_triton

    return {
        "filled_cells": overlap_triton.filled_cells,
        "integrate": integrate_triton.integrate,
        "integrate_adjoint": integrate_triton.integrate_adjoint,
        "jacobian_scores": jacobian_triton.jacobian_scores,
        "joint_histogram": histogram_triton.joint_histogram,
        "joint_histogram_adjoint": histogram_triton.joint_histogram_adjoint,
        "local_ncc": lncc_triton.local_ncc,
        "warp": warp_triton.sample,
        "warp_field_adjoint": warp_triton.field_adjoint,
        "warp_image_adjoint": _cuda_image_adjoint,
        "warped_overlap": overlap_triton.warped_overlap,
        "warped_overlap_adjoint": overlap_triton.warped_overlap_adjoint,
    }


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


def _no_second_gradient(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("warps, their integration and local NCC have no second derivative; nor has grid_sample")


def _fake_integrate(dvf: Tensor, steps: int, keep: bool) -> tuple[Tensor, Tensor]:
    count = dvf.numel()
    if dvf.device.type == "cpu":  # packed, with room behind
        pack = 4 if dvf.ndim == 5 else 2
        count = (dvf.shape[0] * dvf.shape[2:].numel() + PACK_TAIL) * pack
    states = dvf.new_empty((steps, count) if keep else (0,))
    return torch.empty_like(dvf, memory_format=torch.contiguous_format), states


def _fake_integrate_adjoint(grad: Tensor, dvf: Tensor, states: Tensor, steps: int) -> Tensor:
    return torch.empty_like(dvf, memory_format=torch.contiguous_format)


def _keep_states(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    dvf, ctx.steps, _ = inputs
    ctx.save_for_backward(dvf, output[1])
    ctx.mark_non_differentiable(output[1])


def _integrate_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
    dvf, states = ctx.saved_tensors
    return torch.ops.registration.integrate_adjoint(grad.contiguous(), dvf, states, ctx.steps), None, None


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


def _batch_integrate(
    info: Any, in_dims: tuple[int | None, ...], dvf: Tensor, steps: int, keep: bool
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    """Integrate with a new axis: it joins the batch; what was on the way is found again where it is needed."""
    full = dvf.movedim(in_dims[0] or 0, 0)
    ddf, _ = torch.ops.registration.integrate(full.flatten(0, 1).contiguous(), steps, False)
    return (ddf.unflatten(0, full.shape[:2]), dvf.new_empty((info.batch_size, 0))), (0, 0)


def _batch_integrate_adjoint(
    info: Any, in_dims: tuple[int | None, ...], grad: Tensor, dvf: Tensor, states: Tensor, steps: int
) -> tuple[Tensor, int]:
    joined = [
        (t.expand(info.batch_size, *t.shape) if axis is None else t.movedim(axis, 0)).flatten(0, 1).contiguous()
        for t, axis in ((grad, in_dims[0]), (dvf, in_dims[1]))
    ]
    found = torch.ops.registration.integrate_adjoint(*joined, dvf.new_empty((0,)), steps)
    return found.unflatten(0, (info.batch_size, -1)), 0


def _fake_local_ncc(
    x: Tensor, y: Tensor, weight: Tensor, window: int, eps: float, to_x: bool, to_y: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape[:1]), *(torch.empty_like(x) if to else x.new_empty((0,)) for to in (to_x, to_y))


def _keep_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:2], *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _local_ncc_backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    x, y, to_x, to_y = ctx.saved_tensors
    if any(need and to.numel() == 0 for need, to in zip(ctx.needs_input_grad[:2], (to_x, to_y), strict=True)):
        raise RuntimeError("local_ncc was not asked for the gradient to an image that requires one")
    found = torch.ops.registration.local_ncc_adjoint(grad, x, y, to_x, to_y)
    return *(to if need else None for need, to in zip(ctx.needs_input_grad, found, strict=False)), *[None] * 5


def _local_ncc_adjoint(grad: Tensor, x: Tensor, y: Tensor, to_x: Tensor, to_y: Tensor) -> tuple[Tensor, Tensor]:
    """Scale the gradients; the images are there for autograd, which has to know what these depend on."""
    scale = grad.view(-1, *[1] * (x.ndim - 1))
    first, second = (scale * to if to.numel() > 0 else x.new_empty((0,)) for to in (to_x, to_y))
    return first, second


def _batch_local_ncc(
    info: Any, in_dims: tuple[int | None, ...], x: Tensor, y: Tensor, weight: Tensor, *options: Any
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[int, ...]]:
    """Correlate with a new axis on any of the three: it joins the batch."""
    count, batch = info.batch_size, x.shape[0 if in_dims[0] is None else int(in_dims[0] == 0)]
    joined = [_join(tensor, axis, count, batch) for tensor, axis in zip((x, y, weight), in_dims, strict=False)]
    value, *found = torch.ops.registration.local_ncc(*joined, *options)
    first, second = (to.unflatten(0, (count, batch)) if to.numel() > 0 else x.new_empty((count, 0)) for to in found)
    return (value.unflatten(0, (count, batch)), first, second), (0, 0, 0)


def _batch_local_ncc_adjoint(
    info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    count = info.batch_size
    grad, x, y, to_x, to_y = (
        tensor.expand(count, *tensor.shape) if axis is None else tensor.movedim(axis, 0)
        for tensor, axis in zip(inputs, in_dims, strict=True)
    )
    joined = [tensor.flatten(0, 1).contiguous() for tensor in (grad, x, y, to_x, to_y)]
    found = torch.ops.registration.local_ncc_adjoint(*joined)
    first, second = (to.unflatten(0, (count, -1)) if to.numel() > 0 else x.new_empty((count, 0)) for to in found)
    return (first, second), (0, 0)


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
    library.define("integrate(Tensor dvf, int steps, bool keep) -> (Tensor, Tensor)")
    library.define("integrate_adjoint(Tensor grad, Tensor dvf, Tensor states, int steps) -> Tensor")
    torch.library.register_fake(_INTEGRATE, _fake_integrate)
    torch.library.register_fake(f"{_INTEGRATE}_adjoint", _fake_integrate_adjoint)
    torch.library.register_autograd(_INTEGRATE, _integrate_backward, setup_context=_keep_states)
    torch.library.register_autograd(f"{_INTEGRATE}_adjoint", _no_second_gradient)
    if hasattr(torch.library, "register_vmap"):
        torch.library.register_vmap(_INTEGRATE, _batch_integrate)
        torch.library.register_vmap(f"{_INTEGRATE}_adjoint", _batch_integrate_adjoint)
    library.define("jacobian_scores(Tensor field, Tensor mask) -> Tensor")
    images = "Tensor x, Tensor y"
    library.define(
        f"local_ncc({images}, Tensor weight, int window, float eps, bool to_x, bool to_y) -> (Tensor, Tensor, Tensor)"
    )
    library.define(f"local_ncc_adjoint(Tensor grad, {images}, Tensor to_x, Tensor to_y) -> (Tensor, Tensor)")
    library.impl("local_ncc_adjoint", _local_ncc_adjoint, "CompositeExplicitAutograd")
    torch.library.register_fake(_LOCAL_NCC, _fake_local_ncc)
    torch.library.register_autograd(_LOCAL_NCC, _local_ncc_backward, setup_context=_keep_gradients)
    torch.library.register_autograd(f"{_LOCAL_NCC}_adjoint", _no_second_gradient)
    if hasattr(torch.library, "register_vmap"):
        torch.library.register_vmap(_LOCAL_NCC, _batch_local_ncc)
        torch.library.register_vmap(f"{_LOCAL_NCC}_adjoint", _batch_local_ncc_adjoint)
    # Their callers differentiate: shared/losses/mutual_information.py and warped_overlap.py.
    library.define("filled_cells(Tensor maps) -> Tensor")
    sources = "Tensor p, Tensor p_field, Tensor p_filled, Tensor q, Tensor q_field, Tensor q_filled"
    library.define(f"warped_overlap({sources}) -> Tensor")
    library.define(f"warped_overlap_adjoint(Tensor grad, {sources}) -> (Tensor, Tensor)")
    library.define("joint_histogram(Tensor x, Tensor y, int bins, float k) -> Tensor")
    library.define("joint_histogram_adjoint(Tensor grad, Tensor x, Tensor y, float k) -> (Tensor, Tensor)")
    torch.ops.registration.definition = library  # outlives a host that drops this module
    return library


_LIBRARY = _define()
