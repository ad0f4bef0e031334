"""Local NCC in Triton, interpreted, against the loss without kernels in float64, and what torch asks of an operator."""

import pytest
import torch

from shared.kernels import warp_backend
from shared.losses import LocalNCCLoss

CASES = [  # size, window, batch, channels, masked channels
    ((5, 6), 3, 1, 1, 0),
    ((5, 4, 6), 7, 2, 2, 1),
    ((3, 7, 90), 3, 1, 1, 0),  # lanes of several programs
    ((36, 2, 4), 3, 1, 2, 2),  # more than one stretch of planes, and of rows
    ((36, 4), 5, 2, 1, 1),
]


interpreted = pytest.mark.usefixtures("triton_on_cpu")


def pair(size, generator, batch=1, channels=1):
    target = torch.rand(batch, channels, *size, generator=generator, dtype=torch.float64)
    return 2 * target + 0.5 * torch.rand(target.shape, generator=generator, dtype=torch.float64) - 7, target


def value_and_gradients(loss, images, mask):
    leaves = [image.clone().requires_grad_() for image in images]
    value = loss(*leaves, mask)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


@interpreted
@pytest.mark.parametrize(("size", "window", "batch", "channels", "masked"), CASES)
def test_value_and_both_gradients(size, window, batch, channels, masked, generator, monkeypatch):
    images, loss = pair(size, generator, batch, channels), LocalNCCLoss(window)
    mask = torch.rand(batch, masked, *size, generator=generator) > 0.4 if masked else None
    found = value_and_gradients(loss, images, mask)
    single = value_and_gradients(loss, [image.float() for image in images], mask)
    monkeypatch.setenv("WARP_BACKEND", "torch")
    expected = value_and_gradients(loss, images, mask)
    for value, less, truth in zip(found, single, expected, strict=True):
        scale = float(truth.abs().max())
        torch.testing.assert_close(value, truth, rtol=0, atol=1e-12 * scale)
        torch.testing.assert_close(less.double(), truth, rtol=0, atol=1e-4 * scale)


@interpreted
def test_the_loss_is_the_operator_and_forms_no_gradient_that_nobody_wants(generator, monkeypatch):
    from shared.kernels import lncc_triton

    pred, target = pair((5, 6), generator)
    asked, kernel = [], lncc_triton.local_ncc
    monkeypatch.setattr(torch.ops.registration, "local_ncc", lambda *a: asked.append(a[-2:]) or kernel(*a))
    with torch.no_grad():
        LocalNCCLoss(3)(pred.clone().requires_grad_(), target)
    LocalNCCLoss(3)(pred, target.requires_grad_())
    assert asked == [(False, False), (False, True)]
    _, to_pred, to_target = kernel(pred, target.detach(), torch.ones(1, 1, 1, 1).double(), 3, 1e-5, True, False)
    assert (to_pred.shape, to_target.shape) == (pred.shape, (0,))


@interpreted
def test_a_faint_background_beside_bright_noise_keeps_its_digits(generator, monkeypatch):
    noise = torch.rand(1, 1, 20, 12, 4, generator=generator, dtype=torch.float64)
    images = [0.01 * noise, 0.01 * noise.square()]
    for axis, image in enumerate(images):
        bright = 1000 * noise.narrow(2 + axis, 0, 4)
        image.narrow(2 + axis, 0, 8).copy_(torch.cat([bright, -bright], dim=2 + axis))
    background = torch.zeros_like(noise)
    background[..., 10:, 9:, :] = 1
    loss = LocalNCCLoss(3, eps=1e-15)
    found = value_and_gradients(loss, [image.float() for image in images], background)
    monkeypatch.setenv("WARP_BACKEND", "torch")
    for value, truth in zip(found, value_and_gradients(loss, images, background), strict=True):
        torch.testing.assert_close(value.double(), truth, rtol=0, atol=1e-3 * float(truth.abs().max()))


def arguments(generator):
    pred, target = pair((4, 5), generator, 2, 1)
    weight = torch.rand(pred.shape, generator=generator, dtype=torch.float64)
    return pred.requires_grad_(), target.requires_grad_(), weight, 3, 1e-5, True, True


@interpreted
def test_operator_passes_torch_checks(generator):
    torch.library.opcheck(torch.ops.registration.local_ncc.default, arguments(generator))


@interpreted
def test_the_same_bits_from_call_to_call(generator):
    given = arguments(generator)
    first, second = (torch.ops.registration.local_ncc(*given) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@interpreted
def test_second_derivative_is_refused(generator):
    pred, target, *rest = arguments(generator)
    value = torch.ops.registration.local_ncc(pred, target, *rest)[0]
    (first,) = torch.autograd.grad(value.sum(), pred, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        first.sum().backward()


@interpreted
def test_a_gradient_that_was_not_asked_for_is_missed(generator):
    pred, target, weight, window, eps, *_ = arguments(generator)
    value = torch.ops.registration.local_ncc(pred, target, weight, window, eps, True, False)[0]
    with pytest.raises(RuntimeError, match="not asked for the gradient"):
        value.sum().backward()


@interpreted
@pytest.mark.skipif(not hasattr(torch.library, "register_vmap"), reason="torch before 2.5 has no register_vmap")
def test_vmap_is_a_loop(generator):
    pred, target, weight, *options = arguments(generator)
    many = torch.stack([pred.detach(), pred.detach().square(), -target.detach()])

    def values(x, y):
        return torch.ops.registration.local_ncc(x, y, weight, *options)[0]

    found = torch.vmap(values, in_dims=(0, None))(many, target.detach())
    torch.testing.assert_close(found, torch.stack([values(x, target.detach()) for x in many]))
    value = values(pred, target)
    grads = torch.eye(2, dtype=torch.float64)
    (batched,) = torch.autograd.grad(value, pred, grads, is_grads_batched=True, retain_graph=True)
    expected = torch.stack([torch.autograd.grad(value, pred, grad, retain_graph=True)[0] for grad in grads])
    torch.testing.assert_close(batched, expected)


@pytest.mark.gpu
def test_the_operator_on_cuda(generator, monkeypatch):
    assert warp_backend("cuda").name == "triton"
    pred, target, weight, *options = arguments(generator)
    moved = [tensor.detach().cuda().requires_grad_(tensor.requires_grad) for tensor in (pred, target, weight)]
    torch.library.opcheck(torch.ops.registration.local_ncc.default, (*moved, *options))
    for size, window, batch, channels, masked in CASES:
        images, loss = pair(size, generator, batch, channels), LocalNCCLoss(window)
        mask = torch.rand(batch, masked, *size, generator=generator) > 0.4 if masked else None
        expected = value_and_gradients(loss, images, mask)
        found = value_and_gradients(loss, [image.cuda() for image in images], None if mask is None else mask.cuda())
        for value, truth in zip(found, expected, strict=True):
            torch.testing.assert_close(value.cpu(), truth, rtol=0, atol=1e-11 * float(truth.abs().max()))
