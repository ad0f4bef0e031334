"""Noise added and taken away, against closed forms."""

from __future__ import annotations

import pytest
import torch

from shared.diffusion import (
    PREDICTIONS,
    DenoisingLoss,
    SiteDiffusion,
    draw_samples,
    from_channels,
    sample_seed,
    to_channels,
)
from shared.errors import InputError
from tests.tiny_diffusion import SIZE, make_generator


class KnowsTheImage(SiteDiffusion):
    """Sees through any noise, because it knows the one image that there is."""

    def forward(self, x, timesteps, context):
        kept = self.scheduler.alphas_cumprod[timesteps.long()].reshape(-1, *[1] * (x.ndim - 1))
        noise = (x - kept.sqrt() * self.image) / (1 - kept).sqrt()
        if self.architecture["prediction"] == "epsilon":
            return noise
        if self.architecture["prediction"] == "sample":
            return self.image.expand_as(x)
        return kept.sqrt() * noise - (1 - kept).sqrt() * self.image


def oracle(prediction, **options):
    generator = KnowsTheImage(
        SIZE, features=(8,), attention=(True,), head_channels=8, prediction=prediction, **{"timesteps": 100, **options}
    )
    generator.add_site("first")
    generator.image = 1.8 * torch.rand(1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) - 0.9
    return generator


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [1, 4, 50, 100])
def test_who_sees_through_the_noise_draws_the_image(prediction, steps):
    generator = oracle(prediction)
    drawn = draw_samples(generator, "first", [1, 2, 3], steps)
    torch.testing.assert_close(drawn, generator.image.expand(3, -1, -1, -1), atol=2e-3, rtol=0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_who_sees_through_the_noise_has_no_loss(prediction):
    generator = oracle(prediction)
    clean, numbers = generator.image.expand(8, -1, -1, -1), torch.zeros(8, dtype=torch.long)
    random = torch.Generator().manual_seed(0)
    assert float(DenoisingLoss()(generator, clean, numbers, random)) < 1e-6
    assert float(DenoisingLoss()(generator, clean + 0.5, numbers, random)) > 1e-2


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_weighs_the_error_of_the_image_up_to_a_bound(prediction):
    generator = oracle(prediction)
    times = torch.tensor([0, 20, 50, 90])
    kept = generator.scheduler.alphas_cumprod[times]
    clean, noise = generator.image.expand(4, -1, -1, -1), torch.randn(4, 1, SIZE, SIZE)
    noisy = generator.scheduler.add_noise(clean, noise, times)
    # An image that is wrong by `error`, and what a network says that believes it.
    error = 0.1 * torch.randn(clean.shape)
    believes = oracle(prediction)
    believes.image = clean + error
    both = [g(noisy, times, torch.zeros(4, dtype=torch.long)) for g in (generator, believes)]
    found = (both[0] - both[1]).square().flatten(1).mean(1)
    expected = (kept / (1 - kept)).clamp(max=5) * error.square().flatten(1).mean(1)
    torch.testing.assert_close(
        DenoisingLoss(min_snr=5).weight(generator, times) * found, expected, rtol=1e-3, atol=1e-6
    )
    assert float(kept[0] / (1 - kept[0])) > 5 > float(kept[-1] / (1 - kept[-1]))


def test_an_error_of_the_image_counts_as_that_of_its_velocity_up_to_a_limit():
    generator, times = oracle("sample"), torch.tensor([0, 20, 50, 90])
    kept = generator.scheduler.alphas_cumprod[times]
    weight = DenoisingLoss().weight(generator, times)
    torch.testing.assert_close(weight, (1 / (1 - kept)).clamp(max=20))
    assert float(weight[0]) == 20
    assert float(weight[-1]) < 1.1
    assert torch.equal(DenoisingLoss().weight(oracle("v_prediction"), times), torch.ones(4))


def test_the_same_seed_draws_the_same_sample_wherever_it_stands():
    generator = make_generator()
    one, two = draw_samples(generator, "first", [7, 8], 5), draw_samples(generator, "first", [8, 7], 5)
    torch.testing.assert_close(one, two.flip(0))
    assert torch.equal(one, draw_samples(generator, "first", [7, 8], 5))
    assert not torch.allclose(one[0], one[1])


def test_seeds_differ_by_seed_site_and_number():
    assert len({sample_seed(s, site, n) for s in range(3) for site in ("a", "b") for n in range(50)}) == 300
    assert sample_seed(0, "a", 1) == sample_seed(0, "a", 1)
    assert all(0 <= sample_seed(0, "a", n) < 2**63 for n in range(100))


def test_drawing_leaves_the_global_random_state_alone():
    generator = make_generator()
    before = torch.get_rng_state()
    draw_samples(generator, "first", [1], 2)
    clean = torch.zeros(2, 1, SIZE, SIZE)
    DenoisingLoss()(generator, clean, torch.zeros(2, dtype=torch.long), torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_sampling_runs_on_every_device(device):
    generator = make_generator(conditioning="film", timesteps=10).to(device)
    drawn = draw_samples(generator, "first", [1, 2], 5)
    assert drawn.device.type == device
    torch.testing.assert_close(drawn.cpu(), draw_samples(generator.cpu(), "first", [1, 2], 5), atol=1e-3, rtol=0)


@pytest.mark.parametrize("steps", [0, 3, 11])
def test_steps_that_do_not_divide_the_times_are_refused(steps):
    with pytest.raises(InputError, match=f"found {steps} sampling steps, expected a number that divides timesteps, 10"):
        draw_samples(make_generator(), "first", [1], steps)


def test_images_and_labels_become_channels_and_come_back():
    generator = make_generator(channels=2, label_channels=2)
    images, labels = torch.rand(3, 2, SIZE, SIZE), torch.randint(0, 3, (3, 1, SIZE, SIZE))
    channels = to_channels(generator, images, labels)
    assert channels.shape == (3, 4, SIZE, SIZE)
    assert set(channels[:, 2:].unique().tolist()) == {-1.0, 1.0}
    again, probabilities = from_channels(generator, channels)
    torch.testing.assert_close(again, images)
    assert torch.equal(probabilities.argmax(1, keepdim=True), labels)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(3, SIZE, SIZE))
    unsure = from_channels(generator, torch.zeros(1, 4, SIZE, SIZE))[1]
    torch.testing.assert_close(unsure, torch.full_like(unsure, 1 / 3))


def test_images_alone_become_channels():
    generator = make_generator()
    channels = to_channels(generator, torch.tensor([0.0, 0.25]).reshape(2, 1, 1, 1).expand(2, 1, SIZE, SIZE))
    assert channels[:, 0, 0, 0].tolist() == [-1.0, -0.5]
    assert from_channels(generator, channels)[1] is None


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(1, 1, 8, 4), torch.zeros(1, 1, 8, 4), r"found images of \(1, 8, 4\), expected \(1, 8, 8\)"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8), r"found images of \(3, 8, 8\)"),
        (torch.zeros(1, 1, 8, 8), None, "without labels"),
        (torch.zeros(1, 1, 8, 8), torch.full((1, 1, 8, 8), 2), "found label 2, expected at most 1"),
    ],
)
def test_images_that_do_not_fit_are_refused(images, labels, message):
    with pytest.raises(InputError, match=message):
        to_channels(make_generator(label_channels=1), images, labels)


@pytest.mark.parametrize("options", [{"norm": "l3"}, {"min_snr": 0}, {"min_snr": -1.0}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match="found"):
        DenoisingLoss(**options)
