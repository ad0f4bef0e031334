"""Scaling and squaring as one operator against grid_sample step by step in float64, in C++ and in Triton."""

import pytest
import torch
import torch.nn.functional as F

from shared.fields import exponentiate, identity
from shared.kernels import warp_backend

SIZES = [((9, 11, 13), 1), ((5, 6, 35), 2), ((2, 2, 2), 1), ((9, 40), 3), ((40, 33), 1)]
STEPS = 3


def reference(dvf, steps):
    ddf = dvf * 0.5**steps
    size = dvf.shape[2:]
    for _ in range(steps):
        position = identity(size, dtype=dvf.dtype) + ddf
        grid = torch.stack([2 * position[:, a] / (n - 1) - 1 for a, n in enumerate(size)][::-1], -1)
        ddf = ddf + F.grid_sample(ddf, grid, padding_mode="border", align_corners=True)
    return ddf


def make(size, batch, scale, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, len(size), *size, generator=generator, dtype=torch.float64).mul(scale).to(dtype)


@pytest.fixture(params=["cpp", "triton"])
def operators(request):
    """Return the operator and its adjoint of a backend, on tensors of the CPU."""
    if request.param == "cpp":
        if warp_backend().name != "cpp":
            pytest.skip(f"no compiled kernels: {warp_backend().reason}")
        return torch.ops.registration.integrate, torch.ops.registration.integrate_adjoint
    pytest.importorskip("triton", reason="no Triton")
    if torch.cuda.is_available():
        pytest.skip("Triton is not interpreted where there is a GPU: test_the_operator_on_cuda runs it there")
    from shared.kernels import integrate_triton

    return integrate_triton.integrate, integrate_triton.integrate_adjoint


@pytest.mark.parametrize(("size", "batch"), SIZES)
@pytest.mark.parametrize("scale", [1.0, 12.0])
def test_value_and_gradient(operators, size, batch, scale):
    integrate, adjoint = operators
    if "triton" in integrate.__module__:  # interpreted voxel by voxel
        size = tuple(min(n, 6) for n in size)
    dvf = make(size, batch, scale).requires_grad_()
    expected = reference(dvf, STEPS)
    grad = torch.randn_like(expected)
    (wanted,) = torch.autograd.grad(expected, dvf, grad)
    dvf = dvf.detach()
    found, states = integrate(dvf, STEPS, True)
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-11)
    assert torch.equal(integrate(dvf, STEPS, False)[0], found)
    # The first steps of random fields steepen the last ones: gradients grow to hundreds.
    tolerance = 1e-12 * float(wanted.abs().max())
    torch.testing.assert_close(adjoint(grad, dvf, states, STEPS), wanted, rtol=0, atol=tolerance)
    torch.testing.assert_close(adjoint(grad, dvf, dvf.new_empty(0), STEPS), wanted, rtol=0, atol=tolerance)


def test_single_precision(operators):
    dvf = make((12, 9, 20), 1, 2.0)
    found, _ = operators[0](dvf.float(), 7, False)
    torch.testing.assert_close(found.double(), reference(dvf, 7), rtol=0, atol=1e-4)


def test_velocities_that_are_no_numbers_spread_no_further_than_they_reach(operators):
    dvf = torch.zeros(1, 3, 8, 6, 7)
    dvf[0, :, 7, 5, 6] = torch.tensor([float("nan"), float("inf"), -1e30])
    found, states = operators[0](dvf, 2, True)
    assert bool((found[..., :5, :, :] == 0).all())  # a step reaches one voxel on
    operators[1](torch.ones_like(dvf), dvf, states, 2)


compiled = pytest.mark.skipif(warp_backend().name != "cpp", reason=f"no compiled kernels: {warp_backend().reason}")


@compiled
def test_exponentiate_is_the_operator_and_passes_gradcheck():
    dvf = make((3, 4, 5), 2, 0.7).requires_grad_()
    assert "registration_integrate" in type(exponentiate(dvf, 3).grad_fn).__name__
    assert torch.autograd.gradcheck(lambda v: exponentiate(v, 3), dvf)
    assert torch.autograd.gradcheck(lambda v: exponentiate(v, 2), make((4, 5), 1, 0.7).requires_grad_())


@compiled
@pytest.mark.parametrize("keep", [True, False])
def test_operator_passes_torch_checks(keep):
    dvf = make((4, 5, 6), 2, 1.0).requires_grad_()
    torch.library.opcheck(torch.ops.registration.integrate.default, (dvf, 3, keep))


@compiled
@pytest.mark.parametrize("scale", [0.5, 3.0, 30.0])
def test_gradients_are_the_same_bits_for_any_number_of_threads(scale):
    dvf, grad = make((40, 12, 33), 2, scale, torch.float32), make((40, 12, 33), 2, 1.0, torch.float32)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            found.append(torch.ops.registration.integrate_adjoint(grad, dvf, dvf.new_empty(0), 4))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found[1:])


@compiled
def test_half_velocities_and_no_gradient_and_views():
    dvf = make((6, 7, 8), 1, 1.0, torch.float32)
    assert exponentiate(dvf.half()).dtype == torch.float32
    turned = dvf.transpose(3, 4)
    torch.testing.assert_close(exponentiate(turned), exponentiate(turned.contiguous()), rtol=0, atol=0)
    with torch.no_grad():
        assert torch.equal(exponentiate(dvf.clone().requires_grad_()), exponentiate(dvf))


@compiled
@pytest.mark.skipif(not hasattr(torch.library, "register_vmap"), reason="torch before 2.5 has no register_vmap")
def test_vmap_is_a_loop():
    many = torch.stack([make((4, 5, 6), 2, scale) for scale in (0.3, 1.0, 2.0)])
    torch.testing.assert_close(torch.vmap(exponentiate)(many), torch.stack([exponentiate(dvf) for dvf in many]))
    dvf = many[1].requires_grad_()
    ddf = exponentiate(dvf, 3)
    (batched,) = torch.autograd.grad(ddf, dvf, many, is_grads_batched=True, retain_graph=True)
    expected = torch.stack([torch.autograd.grad(ddf, dvf, grad, retain_graph=True)[0] for grad in many])
    torch.testing.assert_close(batched, expected)


@pytest.mark.gpu
def test_the_operator_on_cuda():
    assert warp_backend("cuda").name == "triton"
    dvf = make((9, 11, 13), 2, 1.0).requires_grad_()
    expected = reference(dvf, STEPS)
    (wanted,) = torch.autograd.grad(expected.square().sum(), dvf)
    moved = dvf.detach().cuda().requires_grad_()
    torch.library.opcheck(torch.ops.registration.integrate.default, (moved, STEPS, True))
    found = exponentiate(moved, STEPS)
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-11)
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        try:
            (to_dvf,) = torch.autograd.grad(exponentiate(moved, STEPS).square().sum(), moved)
        finally:
            torch.use_deterministic_algorithms(False)
        torch.testing.assert_close(to_dvf.cpu(), wanted, rtol=1e-9, atol=1e-9)
