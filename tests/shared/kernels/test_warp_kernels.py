"""The compiled warp against grid_sample in float64, its gradients, and what torch asks of an operator."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from shared.fields import compose, exponentiate
from shared.kernels import warp_backend
from shared.kernels.backend import _choose
from shared.kernels.ordered_adjoint import ordered_image_adjoint
from shared.warp import warp

pytestmark = pytest.mark.skipif(warp_backend().name != "cpp", reason=f"no compiled kernels: {warp_backend().reason}")

SHAPES = [
    # image, output, channels, image batch, field batch
    ((9, 11, 13), (9, 11, 13), 1, 1, 1),
    ((9, 11, 13), (20, 7, 35), 3, 2, 2),
    ((33, 8, 40), (33, 8, 40), 3, 1, 1),
    ((5, 6, 17), (8, 6, 17), 2, 1, 3),
    ((9, 13), (30, 40), 2, 1, 3),
    ((40, 33), (40, 33), 1, 2, 1),
    ((2, 2, 2), (3, 3, 3), 1, 1, 1),
]


def reference(image, field, mode, padding_mode):
    """Sample by grid_sample itself."""
    size = torch.tensor(image.shape[2:], dtype=torch.float64)
    axes = [torch.arange(n, dtype=torch.float64) for n in field.shape[2:]]
    position = torch.stack(torch.meshgrid(*axes, indexing="ij")) + field
    normalised = position.movedim(1, -1) * (2 / (size - 1)) - 1
    batch = max(len(image), len(field))
    image, normalised = image.expand(batch, *image.shape[1:]), normalised.expand(batch, *normalised.shape[1:])
    return F.grid_sample(image, normalised.flip(-1), mode=mode, padding_mode=padding_mode, align_corners=True)


def make(shape, scale, dtype=torch.float64):
    size, out, channels, image_batch, field_batch = shape
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(image_batch, channels, *size, generator=generator, dtype=torch.float64)
    field = torch.randn(field_batch, len(size), *out, generator=generator, dtype=torch.float64) * scale
    return image.to(dtype), field.to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
@pytest.mark.parametrize("scale", [0.7, 8.0])
def test_linear_sampling_and_both_gradients(shape, padding_mode, scale):
    image, field = (tensor.requires_grad_() for tensor in make(shape, scale))
    expected = reference(image, field, "bilinear", padding_mode)
    upstream = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (image, field), upstream)
    found = warp(image, field, padding_mode=padding_mode)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for value, truth in zip(torch.autograd.grad(found, (image, field), upstream), wanted, strict=True):
        torch.testing.assert_close(value, truth, rtol=0, atol=1e-11)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_single_precision(shape, padding_mode):
    image, field = make(shape, 2.0, torch.float32)
    expected = reference(image.double(), field.double(), "bilinear", padding_mode)
    torch.testing.assert_close(warp(image, field, padding_mode=padding_mode).double(), expected, rtol=0, atol=3e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_nearest(shape, padding_mode):
    image, field = make(shape, 4.0)
    image.requires_grad_()
    expected = reference(image, field, "nearest", padding_mode)
    found = warp(image, field, "nearest", padding_mode)
    assert torch.equal(found, expected)
    upstream = torch.randn_like(expected)
    (truth,) = torch.autograd.grad(expected, image, upstream)
    torch.testing.assert_close(torch.autograd.grad(found, image, upstream)[0], truth, rtol=0, atol=1e-12)


def test_positions_that_are_no_numbers_or_far_away_give_padding():
    image = torch.ones(1, 1, 4, 4, 4)
    field = torch.zeros(1, 3, 4, 4, 4)
    field[0, 0, 0], field[0, 1, 1], field[0, 2, 2] = float("nan"), float("inf"), -1e30
    found = warp(image, field)
    assert bool(torch.isfinite(found).all())
    assert bool((found[0, 0, 1:3] == 0).all())
    assert bool((found[0, 0, 3] == 1).all())


@pytest.mark.parametrize("scale", [0.5, 3.0, 30.0])
def test_gradients_are_the_same_bits_for_any_number_of_threads(scale):
    image, field = make(((40, 12, 33), (40, 12, 33), 2, 1, 1), scale, torch.float32)
    grad = torch.randn(1, 2, 40, 12, 33)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            found.append(torch.ops.registration.warp_image_adjoint(grad, image, field, False, False))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_operator_passes_torch_checks():
    image, field = make(((5, 6, 7), (4, 5, 6), 2, 1, 2), 1.0)
    arguments = (image.requires_grad_(), field.requires_grad_(), False, False, False)
    torch.library.opcheck(torch.ops.registration.warp.default, arguments)


def test_second_derivative_is_refused():
    image, field = (tensor.requires_grad_() for tensor in make(SHAPES[0], 1.0))
    (first,) = torch.autograd.grad(warp(image, field).square().sum(), field, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        first.sum().backward()


@pytest.mark.skipif(not hasattr(torch.library, "register_vmap"), reason="torch before 2.5 has no register_vmap")
@pytest.mark.parametrize("dims", [(0, 0), (None, 0), (0, None)])
def test_vmap_is_a_loop(dims):
    image, field = make(SHAPES[3], 1.0)
    many = [torch.stack([t, 2 * t, -t]) if d == 0 else t for t, d in zip((image, field), dims, strict=True)]
    found = torch.vmap(warp, in_dims=dims)(*many)
    pairs = [[t[i] if d == 0 else t for t, d in zip(many, dims, strict=True)] for i in range(3)]
    torch.testing.assert_close(found, torch.stack([warp(*pair) for pair in pairs]))


def test_composition_is_the_sum_of_two_steps(monkeypatch):
    outer, inner = (make(((7, 8, 9), (7, 8, 9), 3, 1, 1), s)[1] for s in (0.5, 1.5))
    found = compose(outer, inner)
    torch.testing.assert_close(found, inner + reference(outer, inner, "bilinear", "border"), rtol=0, atol=1e-12)
    velocity = outer.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: exponentiate(v, 3), velocity[..., :3, :3, :3].detach().requires_grad_())


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def test_a_second_copy_of_the_package_uses_the_operators_of_the_first():
    code = """
import importlib, sys, torch
from shared.warp import warp
image, field = torch.rand(1, 1, 5, 5, 5), torch.rand(1, 3, 5, 5, 5)
first = warp(image, field)
for name in [n for n in sys.modules if n.startswith("shared")]:
    del sys.modules[name]
del warp
import gc; gc.collect()
again = importlib.import_module("shared.warp").warp(image, field.requires_grad_())
again.sum().backward()
print(torch.equal(first, again), float(field.grad.abs().sum()) > 0)
"""
    found = run(code)
    assert found.stdout.split() == ["True", "True"], found.stderr


TELL = "from shared.kernels import warp_backend; print(*warp_backend())"


def test_without_a_compiler_grid_sample_warps_and_the_reason_is_told(tmp_path):
    found = run(TELL, REGISTRATION_KERNELS_CACHE=str(tmp_path), CXX="no-such-compiler")
    assert found.stdout.startswith("torch the kernels cannot be built"), found.stderr
    assert "no-such-compiler" in found.stdout
    asked = run(TELL, REGISTRATION_KERNELS_CACHE=str(tmp_path), CXX="no-such-compiler", WARP_BACKEND="compiled")
    assert asked.returncode != 0
    assert "found WARP_BACKEND=compiled, but the kernels cannot be built" in asked.stderr


def test_a_compiler_that_fails_is_quoted(tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text(
        "#!/bin/sh\n[ \"$1\" = --version ] && echo c++ 12 && exit 0\necho 'error: no room' >&2\nexit 1\n"
    )
    compiler.chmod(0o755)
    found = run(TELL, REGISTRATION_KERNELS_CACHE=str(tmp_path / "cache"), CXX=str(compiler))
    assert found.stdout.startswith("torch the kernels cannot be built: the compiler failed"), found.stderr
    assert not list((tmp_path / "cache").glob("*.so"))


def test_the_environment_chooses():
    assert _choose("torch", "cpu").name == "torch"
    assert _choose("auto", "xpu") == ("torch", "there are no kernels for xpu")
    with pytest.raises(ValueError, match="found WARP_BACKEND=cuda, expected one of auto, torch, compiled"):
        _choose("cuda", "cpu")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
@pytest.mark.parametrize("nearest", [False, True])
def test_ordered_adjoint_is_the_adjoint(shape, padding_mode, nearest):
    image, field = make(shape, 4.0)
    grad = torch.randn(max(len(image), len(field)), image.shape[1], *field.shape[2:], dtype=torch.float64)
    border = padding_mode == "border"
    expected = torch.ops.registration.warp_image_adjoint(grad, image, field, nearest, border)
    found = ordered_image_adjoint(grad, image, field, nearest, border)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
