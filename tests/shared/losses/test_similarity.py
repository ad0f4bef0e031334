from __future__ import annotations

import pytest
import torch
from monai.losses import LocalNormalizedCrossCorrelationLoss
from scipy.ndimage import uniform_filter
from torch.autograd import gradcheck

from shared.losses import LocalNCCLoss, MINDSSCLoss, mind_ssc

SIZES = [(13, 15), (11, 12, 13)]


def pair(size, generator, batch=1, channels=1, dtype=torch.float64):
    target = torch.rand(batch, channels, *size, generator=generator, dtype=dtype)
    return target + 0.4 * torch.rand(batch, channels, *size, generator=generator, dtype=dtype), target


def direct_cc(x, y, window, eps):
    """Squared correlation, window by window, as the definition says."""
    cc = torch.zeros_like(x)
    radius = window // 2
    for index in torch.cartesian_prod(*[torch.arange(n) for n in x.shape]).tolist():
        box = tuple(slice(max(i - radius, 0), i + radius + 1) for i in index)
        a, b = x[box] - x[box].mean(), y[box] - y[box].mean()
        cc[tuple(index)] = (a * b).sum() ** 2 / ((a * a).sum() * (b * b).sum() + eps)
    return cc


@pytest.mark.parametrize(("size", "window"), [((6, 7), 3), ((6, 7), 5), ((5, 4), 11), ((5, 4, 6), 3), ((5, 4, 6), 7)])
def test_value_is_the_definition(size, window, generator):
    pred, target = pair(size, generator)
    mask = torch.rand(1, 1, *size, generator=generator, dtype=torch.float64)
    cc = direct_cc(pred[0, 0], target[0, 0], window, 1e-3)
    loss = LocalNCCLoss(window, eps=1e-3)
    torch.testing.assert_close(loss(pred, target), 1 - cc.mean())
    torch.testing.assert_close(loss(pred, target, mask), 1 - (cc * mask[0, 0]).sum() / mask.sum())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("window", [3, 5, 7, 9])
def test_agrees_with_monai_in_the_interior(size, window, generator):
    pred, target = pair(size, generator, batch=2)
    mask = torch.zeros_like(pred)
    radius = window // 2
    mask[(..., *[slice(radius, n - radius) for n in size])] = 1
    peer = LocalNormalizedCrossCorrelationLoss(len(size), window, reduction="none")
    leaves = [t.clone().requires_grad_() for t in (pred, target)]
    ours = LocalNCCLoss(window, eps=1e-12)(*leaves, mask)
    theirs = 1 + (peer(*leaves) * mask).sum() / mask.sum()
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("size", "window"), [((5, 6), 3), ((4, 5), 7), ((4, 3, 5), 3)])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients(size, window, masked, generator):
    pred, target = pair(size, generator, batch=2, channels=2)
    mask = torch.rand(2, 1, *size, generator=generator) > 0.4 if masked else None
    loss = LocalNCCLoss(window)
    assert gradcheck(lambda p, t: loss(p, t, mask), (pred.requires_grad_(), target.requires_grad_()))
    assert gradcheck(lambda t: loss(pred.detach(), t, mask), (target,))


def test_only_the_gradients_asked_for_are_kept(generator):
    pred, target = pair((6, 6), generator)
    assert not LocalNCCLoss(3)(pred, target).requires_grad
    value = LocalNCCLoss(3)(pred.requires_grad_(), target)
    value.backward()
    assert pred.grad is not None
    assert target.grad is None
    with torch.no_grad():
        assert not LocalNCCLoss(3)(pred, target).requires_grad


@pytest.mark.parametrize("size", SIZES)
def test_brightness_and_contrast_do_not_matter(size, device, generator):
    pred, target = (t.to(device) for t in pair(size, generator, dtype=torch.float32))
    loss = LocalNCCLoss(5, eps=1e-12)
    expected = loss(pred, target)
    torch.testing.assert_close(loss(pred + 1000, -2 * target - 50), expected, rtol=1e-3, atol=1e-4)
    assert loss(target, 3 * target + 1).item() == pytest.approx(0, abs=1e-4)


def test_flat_background_at_ct_intensities_counts_as_uncorrelated(generator):
    noise = torch.rand(1, 1, 24, 24, 24, generator=generator)
    images = [torch.full_like(noise, -1024.0) for _ in range(2)]
    for image in images:
        image[..., 16:, :, :] = 1000 * noise[..., 16:, :, :]
    images[1].requires_grad_()
    background = torch.zeros_like(noise)
    background[..., :11, :, :] = 1
    loss = LocalNCCLoss(9)(*images, background)
    assert loss.item() == 1
    assert torch.autograd.grad(loss, images[1])[0].abs().max() == 0


def test_mask_shuts_out_what_lies_beyond_the_window(generator):
    pred, target = pair((12, 12), generator)
    mask = torch.zeros(1, 1, 12, 12)
    mask[..., :4, :] = 1
    changed = pred.clone()
    changed[..., 6:, :] = 5
    loss = LocalNCCLoss(5)
    # Subtracting the mean of the image moves the rounding only.
    torch.testing.assert_close(loss(changed, target, mask), loss(pred, target, mask), rtol=1e-9, atol=1e-9)
    changed[..., 5, :] = 5
    assert abs(loss(changed, target, mask) - loss(pred, target, mask)) > 1e-3


def test_empty_mask(generator):
    pred, target = pair((6, 6), generator)
    pred.requires_grad_()
    mask = torch.zeros(1, 1, 6, 6, dtype=torch.bool)
    loss = LocalNCCLoss(3)(pred, target, mask)
    assert loss.item() == 1
    assert torch.autograd.grad(loss, pred)[0].abs().max() == 0
    loss = MINDSSCLoss(1, 1)(pred, target, mask)
    assert loss.item() == 0
    assert torch.autograd.grad(loss, pred)[0].abs().max() == 0


@pytest.mark.parametrize("loss", [LocalNCCLoss(3), MINDSSCLoss(1, 1)])
def test_mask_broadcasts_over_channels(loss, generator):
    pred, target = pair((7, 8), generator, batch=2, channels=3)
    mask = torch.rand(2, 1, 7, 8, generator=generator) > 0.5
    torch.testing.assert_close(loss(pred, target, mask), loss(pred, target, mask.expand(2, 3, 7, 8)))
    torch.testing.assert_close(loss(pred, target, torch.ones(2, 1, 7, 8)), loss(pred, target))


@pytest.mark.parametrize("loss", [LocalNCCLoss(3), MINDSSCLoss(1, 1)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_images_give_a_float32_loss(loss, dtype, device, generator):
    pred, target = (t.to(device, dtype) for t in pair((8, 9), generator))
    value = loss(pred.requires_grad_(), target)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(pred.float(), target.float()))
    assert torch.autograd.grad(value, pred)[0].dtype == dtype


def test_constant_images_have_finite_gradients():
    for loss, expected in ((LocalNCCLoss(3), 1.0), (MINDSSCLoss(1, 1), 0.0)):
        pred = torch.full((1, 1, 6, 6, 6), 0.5, requires_grad=True)
        value = loss(pred, torch.full((1, 1, 6, 6, 6), 0.2))
        assert value.item() == expected
        assert torch.autograd.grad(value, pred)[0].isfinite().all()


@pytest.mark.parametrize(("size", "channels"), [((9, 10), 4), ((8, 9, 10), 12)])
def test_mind_by_the_definition(size, channels, generator):
    image = torch.rand(1, 1, *size, generator=generator, dtype=torch.float64)
    d, dilation, window = len(size), 2, 3
    steps = [(a, s * dilation) for a in range(d) for s in (-1, 1)]
    distances = [
        torch.from_numpy(uniform_filter(((image.roll(-s, a + 2) - image.roll(-t, b + 2)) ** 2)[0, 0].numpy(), window))
        for i, (a, s) in enumerate(steps)
        for b, t in steps[i + 1 :]
        if a != b
    ]
    distance = torch.stack(distances)
    descriptor = mind_ssc(image, radius=1, dilation=dilation)
    assert descriptor.shape == (1, 1, channels, *size)
    inside = (..., *[slice(3, -3)] * d)
    expected = torch.exp((distance.amin(0) - distance) / distance.mean(0))
    torch.testing.assert_close(descriptor[0, 0][inside], expected[inside])


@pytest.mark.parametrize("size", SIZES)
def test_mind_does_not_mind_contrast(size, device, generator):
    image = torch.rand(2, 1, *size, generator=generator).to(device)
    other = torch.rand(2, 1, *size, generator=generator).to(device)
    loss = MINDSSCLoss()
    assert loss(image, 5 - 3 * image).item() == pytest.approx(0, abs=1e-6)
    assert loss(image, other).item() > 0.01


@pytest.mark.parametrize("size", [(5, 6), (4, 3, 5)])
def test_mind_gradients(size, generator):
    pred, target = pair(size, generator, batch=2)
    mask = torch.rand(2, 1, *size, generator=generator) > 0.3
    loss = MINDSSCLoss(1, 1)
    # The bounds of the variance are held fixed, so keep to images that do not reach them.
    assert gradcheck(lambda p, t: loss(p, t, mask), (pred.requires_grad_(), target.requires_grad_()))


@pytest.mark.parametrize("loss", [LocalNCCLoss(3), MINDSSCLoss(1, 1)])
def test_cuda_agrees_with_cpu(loss, device, generator):
    pred, target = pair((14, 15, 16), generator, dtype=torch.float32)
    here, there = pred.clone().requires_grad_(), pred.to(device).requires_grad_()
    a, b = loss(here, target), loss(there, target.to(device))
    torch.testing.assert_close(b.cpu(), a, rtol=1e-4, atol=1e-5)
    ga, gb = torch.autograd.grad(a, here)[0], torch.autograd.grad(b, there)[0]
    assert (gb.cpu() - ga).norm() < 1e-3 * ga.norm()


@pytest.mark.parametrize("window", [4, 1, -3])
def test_error_of_window(window):
    with pytest.raises(ValueError, match=f"window must be odd and at least 3, got {window}"):
        LocalNCCLoss(window)


def test_error_of_mind_options():
    with pytest.raises(ValueError, match="radius and dilation must be 1 or more, got 0 and 2"):
        MINDSSCLoss(radius=0)


@pytest.mark.parametrize("loss", [LocalNCCLoss(), MINDSSCLoss()])
@pytest.mark.parametrize(
    ("pred", "target", "mask", "message"),
    [
        ((1, 1, 5, 5), (1, 1, 5, 6), None, r"one shape \(B, C, \*S\).*got \(1, 1, 5, 5\) and \(1, 1, 5, 6\)"),
        ((1, 1, 5), (1, 1, 5), None, r"2 or 3 spatial dims"),
        ((1, 2, 5, 5), (1, 2, 5, 5), (1, 5, 5), r"mask must be \(B, 1, \*S\) or as the images \(1, 2, 5, 5\)"),
        ((2, 2, 5, 5), (2, 2, 5, 5), (1, 1, 5, 5), "mask must be"),
    ],
)
def test_errors_of_shape(loss, pred, target, mask, message):
    with pytest.raises(ValueError, match=message):
        loss(torch.zeros(pred), torch.zeros(target), None if mask is None else torch.ones(mask))
