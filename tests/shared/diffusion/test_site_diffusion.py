"""The generator: sites that do not touch each other, and one file that says all."""

from __future__ import annotations

import copy

import pytest
import torch

from shared.diffusion import (
    DenoisingLoss,
    SiteDiffusion,
    SiteNorm,
    draw_samples,
    first_or_later,
    load_generator,
    prepare_generator,
)
from shared.errors import InputError
from shared.files import save_tensors
from shared.hashes import hash_of_weights
from shared.weights import load_weights, trainable
from tests.tiny_diffusion import SIZE, make_generator


def learn(generator, site, steps=3):
    optimizer = torch.optim.SGD(trainable(generator).values(), lr=0.5)
    random = torch.Generator().manual_seed(0)
    clean = torch.rand(4, 1, SIZE, SIZE, generator=random) * 2 - 1
    for _ in range(steps):
        optimizer.zero_grad()
        numbers = torch.full((4,), generator.number(site))
        DenoisingLoss()(generator, clean, numbers, random).backward()
        optimizer.step()


def change(before, after):
    return {name for name, value in after.items() if name not in before or not torch.equal(value, before[name])}


@pytest.mark.parametrize(
    ("conditioning", "later_sites", "learned"),
    [
        ("prompt", "prompt", {"prompts.1"}),
        ("film", "prompt", {"prompts.1"}),
        ("film", "film", {"prompts.1", "films.1"}),
    ],
)
def test_a_later_site_leaves_earlier_samples_and_weights_bit_for_bit(conditioning, later_sites, learned):
    generator = make_generator(conditioning=conditioning)
    generator.learn_only("first")
    learn(generator, "first")
    seeds = [3, 4]
    before = {name: p.detach().clone() for name, p in generator.named_parameters()}
    samples = draw_samples(generator, "first", seeds, steps=5)
    generator.add_site("second")
    generator.learn_only("second", later_sites)
    assert set(trainable(generator)) == learned
    frozen, started = generator.frozen_hash(), draw_samples(generator, "second", seeds, steps=5)
    learn(generator, "second")
    assert generator.frozen_hash() == frozen
    assert change(before, dict(generator.named_parameters())) <= learned | {"films.1"}
    assert torch.equal(draw_samples(generator, "first", seeds, steps=5), samples)
    assert not torch.equal(draw_samples(generator, "second", seeds, steps=5), started)


def test_with_the_whole_denoiser_learning_earlier_samples_change():
    generator = make_generator()
    samples = draw_samples(generator, "first", [3], steps=5)
    generator.add_site("second")
    generator.learn_only("second", "full")
    prompt = generator.prompts[0].detach().clone()
    learn(generator, "second")
    assert torch.equal(generator.prompts[0], prompt)
    assert not torch.equal(draw_samples(generator, "first", [3], steps=5), samples)


def test_a_first_site_learns_everything():
    generator = make_generator(conditioning="film")
    generator.learn_only("first")
    assert set(trainable(generator)) == {name for name, _ in generator.named_parameters()}
    before = {name: p.detach().clone() for name, p in generator.named_parameters()}
    learn(generator, "first")
    changed = change(before, dict(generator.named_parameters()))
    assert {"prompts.0", "films.0", "denoiser.out.2.conv.weight"} <= changed


def test_a_new_site_begins_in_the_mean_of_those_before():
    generator = make_generator(conditioning="film")
    generator.add_site("second")
    with torch.no_grad():
        generator.prompts[1].add_(2)
        generator.films[1].sub_(1)
    generator.add_site("third")
    torch.testing.assert_close(generator.prompts[2], generator.prompts[0] + 1)
    torch.testing.assert_close(generator.films[2], generator.films[0] - 0.5)


def test_pretended_sites_count_in_that_mean():
    generator = make_generator(pretended=3, conditioning="film")
    with torch.no_grad():
        generator.pretended_films.fill_(4.0)
    generator.add_site("second")
    torch.testing.assert_close(generator.prompts[1], torch.stack([generator.prompts[0], *generator.pretended]).mean(0))
    torch.testing.assert_close(generator.films[1], torch.full_like(generator.films[1], 3.0))


def test_a_batch_may_mix_sites():
    generator = make_generator(conditioning="film")
    generator.add_site("second")
    with torch.no_grad():
        generator.prompts[1].normal_()
        generator.films[1].normal_()
    noisy, times = torch.randn(2, 1, SIZE, SIZE), torch.tensor([3, 7])
    both = generator(noisy, times, torch.tensor([0, 1]))
    alone = [generator(noisy[i : i + 1], times[i : i + 1], torch.tensor([i])) for i in range(2)]
    torch.testing.assert_close(both, torch.cat(alone))
    assert not torch.allclose(both[1:], generator(noisy[1:], times[1:], torch.tensor([0])))


def test_a_modulation_scales_and_shifts_and_zeros_change_nothing():
    norm = SiteNorm(torch.nn.GroupNorm(1, 2), 2)
    features = torch.randn(3, 2, 4, 4)
    plain = norm(features)
    norm.scale_and_shift = torch.zeros(3, 4)
    assert torch.equal(norm(features), plain)
    norm.scale_and_shift = torch.tensor([[1.0, 0.0, 0.0, 5.0]]).repeat(3, 1)
    torch.testing.assert_close(norm(features)[:, 0], 2 * plain[:, 0])
    torch.testing.assert_close(norm(features)[:, 1], plain[:, 1] + 5)


def test_a_modulation_does_not_outlast_its_pass():
    generator = make_generator(conditioning="film")
    generator(torch.randn(2, 1, SIZE, SIZE), torch.tensor([1, 2]), torch.tensor([0, 0]))
    norms = [m for m in generator.modules() if isinstance(m, SiteNorm)]
    assert norms
    assert all(norm.scale_and_shift is None for norm in norms)


@pytest.mark.parametrize(
    ("spatial_dims", "channels", "label_channels"), [(2, 1, 0), (2, 3, 0), (2, 3, 2), (3, 1, 0), (3, 2, 1)]
)
def test_images_of_two_and_three_dimensions_and_any_channels(spatial_dims, channels, label_channels):
    generator = make_generator(spatial_dims=spatial_dims, channels=channels, label_channels=label_channels)
    samples = draw_samples(generator, "first", [1, 2], steps=2)
    assert samples.shape == (2, channels + label_channels, *[SIZE] * spatial_dims)
    assert bool(torch.isfinite(samples).all())
    assert float(samples.abs().max()) <= 1


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_patches_are_channels_of_the_denoiser_alone(spatial_dims):
    generator = make_generator(spatial_dims=spatial_dims, channels=2, patch=2)
    assert generator.denoiser.conv_in.conv.in_channels == 2 * 2**spatial_dims
    seen = []
    generator.denoiser.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    noisy = torch.arange(2.0 * SIZE**spatial_dims).reshape(1, 2, *[SIZE] * spatial_dims)
    found = generator(noisy, torch.tensor([3]), torch.tensor([0]))
    assert found.shape == noisy.shape
    inside, outside = seen[0]
    assert inside.shape == (1, 2 * 2**spatial_dims, *[SIZE // 2] * spatial_dims)
    # A patch's pixels lie at one place of the small grid, going in and coming out.
    corner = (0, slice(0, 2), *[slice(0, 2)] * spatial_dims)
    place = (0, slice(None), *[0] * spatial_dims)
    assert torch.equal(noisy[corner].flatten(), inside[place])
    assert torch.equal(found[corner].flatten(), outside[place])


def test_a_generator_of_other_images_than_the_segmenters_is_refused(tmp_path):
    make_generator(channels=3).save(tmp_path / "model.pt")
    assert list(load_generator(tmp_path, (3, SIZE, SIZE)).sites) == ["first"]
    with pytest.raises(InputError, match=r"images \(3, 8, 8\), expected \(3, 16, 16\): the segmenter's"):
        load_generator(tmp_path, (3, 16, 16))


def test_options_of_a_first_and_of_a_later_site():
    assert first_or_later(None, 5, 2) == 5
    assert first_or_later("runs/before", 5, 2) == 2


def test_a_file_holds_all_that_is_needed(tmp_path):
    generator = make_generator(conditioning="film", prediction="v_prediction")
    generator.add_site("site b/ü", {"area": [0.1, 0.2]})
    generator.save(tmp_path / "generator.pt")
    torch.load(tmp_path / "generator.pt", weights_only=True)
    again = load_generator(tmp_path / "generator.pt")
    assert again.architecture == generator.architecture
    assert again.sites == generator.sites
    assert list(again.sites) == ["first", "site b/ü"]
    assert hash_of_weights(again.state_dict()) == hash_of_weights(generator.state_dict()) == again.origin
    for site in again.sites:
        assert torch.equal(draw_samples(again, site, [5], 5), draw_samples(generator, site, [5], 5))


def test_a_copy_draws_what_the_original_draws():
    generator = make_generator(conditioning="film")
    with torch.no_grad():
        generator.films[0].normal_()
    assert torch.equal(
        draw_samples(copy.deepcopy(generator), "first", [5], 5), draw_samples(generator, "first", [5], 5)
    )


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"image_size": 16}, r"image_size: found \[8, 8\], asked for \[16, 16\]"),
        ({"channels": 3}, "channels: found 1, asked for 3"),
        ({"conditioning": "film"}, "conditioning: found prompt, asked for film"),
        ({"timesteps": 20}, "timesteps: found 10, asked for 20"),
    ],
)
def test_a_generator_of_another_kind_is_refused(tmp_path, other, message):
    make_generator().save(tmp_path / "model.pt")
    with pytest.raises(InputError, match=message) as caught:
        prepare_generator(make_generator(None, **other), "second", tmp_path)
    assert str(tmp_path / "model.pt") in str(caught.value)


def test_a_file_of_other_sites_is_refused(tmp_path):
    make_generator("elsewhere").save(tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"sites \['elsewhere'\], expected one that begins with \['first'\]"):
        make_generator().load_file(tmp_path / "model.pt")


@pytest.mark.parametrize("content", [{"weight": torch.zeros(2)}, [1, 2], {"_extra_state": torch.zeros(2)}])
def test_another_file_is_refused(tmp_path, content):
    save_tensors(tmp_path / "model.pt", content)
    with pytest.raises(InputError, match="holds no generator"):
        load_generator(tmp_path / "model.pt")


def test_weights_load_as_those_of_any_network(tmp_path):
    generator = make_generator()
    generator.save(tmp_path / "model.pt")
    plain = make_generator(None)
    plain.add_site("first")  # without statistics: its extra state is shorter
    load_weights(plain, tmp_path / "model.pt")
    assert plain.sites == generator.sites


def test_a_new_site_is_prepared_on_the_generator_of_those_before(tmp_path):
    make_generator().save(tmp_path / "model.pt")
    generator = prepare_generator(make_generator(None), "second", tmp_path / "model.pt")
    assert list(generator.sites) == ["first", "second"]
    assert set(trainable(generator)) == {"prompts.1"}
    assert generator.settings()["origin"] == hash_of_weights(torch.load(tmp_path / "model.pt", weights_only=True))
    assert "nothing" not in generator.settings()["frozen"]
    with pytest.raises(InputError, match="found site 'first', expected a name other than: first"):
        prepare_generator(make_generator(None), "first", tmp_path)
    assert prepare_generator(make_generator(None), "first").settings()["frozen"] == "nothing"


def test_an_unknown_site_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match=r"site 'frist' \(did you mean 'first'\?\), expected one of: first"):
        make_generator().number("frist")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 9}, "multiples of 2"),
        ({"image_size": 10, "patch": 2}, "multiples of 4: features has 2 levels of patches of 2 pixels"),
        ({"patch": 0}, "found patch 0"),
        ({"conditioning": "class"}, "expected prompt or film"),
        ({"prediction": "image"}, "expected one of: epsilon, v_prediction, sample"),
        ({"attention": (False, False)}, "one level or more with attention"),
        ({"features": (8, 12)}, "level of 12 features"),
        ({"schedule": "linear_beta", "schedule_options": {"beta_start": 1e-4, "beta_end": 2e-2}}, "leaves 90% of"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        make_generator(**options)


@pytest.mark.parametrize("timesteps", [100, 1000])
def test_the_default_schedule_ends_in_noise_for_any_number_of_steps(timesteps):
    generator = SiteDiffusion(8, features=(8,), attention=(True,), head_channels=8, timesteps=timesteps)
    assert float(generator.scheduler.alphas_cumprod[-1]) < 1e-3


@pytest.mark.parametrize(
    ("later_sites", "message"), [("film", "expected conditioning film"), ("all", "expected one of: prompt, film, full")]
)
def test_what_cannot_learn_is_refused(later_sites, message):
    generator = make_generator()
    generator.add_site("second")
    with pytest.raises(InputError, match=message):
        generator.learn_only("second", later_sites)
