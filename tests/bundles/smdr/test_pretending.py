"""Made-up contrasts of the first site."""

from __future__ import annotations

import pytest
import torch

from bundles.smdr.scripts.pretending import contrast, pretend
from shared.diffusion import draw_samples, load_generator, prepare_generator
from shared.weights import trainable
from tests.bundles.smdr.tiny_generator import SIZE, make_generator, make_trainer

LEVELS = torch.linspace(0, 1, 11)


@pytest.mark.parametrize("number", range(30))
def test_a_contrast_keeps_the_order_of_grey_values_or_turns_it_over(number):
    found = contrast(LEVELS, number)
    steps = found.diff()
    assert bool((steps > 0).all() or (steps < 0).all())
    assert 0 <= float(found.min()) <= float(found.max()) <= 1 + 1e-6
    assert float(found.max() - found.min()) > 0.24
    assert torch.equal(found, contrast(LEVELS, number))


def test_contrasts_are_various():
    curves = torch.stack([contrast(LEVELS, number) for number in range(24)])
    turned = int((curves[:, -1] < curves[:, 0]).sum())
    assert 6 <= turned <= 18
    between = torch.cdist(curves, curves) + torch.eye(24)
    assert float(between.min()) > 0.02
    assert float(curves.min()) < 0.15
    assert float(curves.max()) > 0.85


def first(**options):
    return prepare_generator(make_generator(None, **{"pretended": 3, **options}), "first")


def test_some_images_are_shown_as_another_sites(generator):
    model, images = first(), torch.rand(400, 1, 4, 4)
    shown, numbers = pretend(model, images, torch.zeros(400, dtype=torch.long), generator)
    assert 150 < int((numbers < 0).sum()) < 250
    assert numbers.unique().tolist() == [-3, -2, -1, 0]
    for index in range(400):
        number = int(numbers[index])
        expected = images[index] if number == 0 else contrast(images[index], -1 - number)
        assert torch.equal(shown[index], expected)


def test_a_pretended_site_has_the_prompt_of_its_number():
    model = first(conditioning="film")
    with torch.no_grad():
        model.pretended_films.normal_()
    noisy, times = torch.randn(1, 1, SIZE, SIZE), torch.tensor([4])
    found = model(noisy, times, torch.tensor([-2]))
    with torch.no_grad():
        model.prompts[0].copy_(model.pretended[1])
        model.films[0].copy_(model.pretended_films[1])
    assert torch.equal(model(noisy, times, torch.tensor([0])), found)


@pytest.mark.parametrize("options", [{"pretended": 0}, {}])
def test_nothing_is_pretended_at_later_sites_or_without_pretended_sites(tmp_path, generator, options):
    if options:
        model = first(**options)
    else:
        make_generator(pretended=3).save(tmp_path / "model.pt")
        model = prepare_generator(make_generator(None, pretended=3), "second", tmp_path, "full")
    images, numbers = torch.rand(20, 1, 4, 4), torch.ones(20, dtype=torch.long)
    shown = pretend(model, images, numbers, generator)
    assert torch.equal(shown[0], images)
    assert torch.equal(shown[1], numbers)


def test_pretended_sites_learn_with_the_first_site_alone(tmp_path):
    before = first(conditioning="film")
    make_trainer(tmp_path / "1", first(conditioning="film"), max_epochs=3).run()
    one = load_generator(tmp_path / "1")
    assert not torch.equal(one.pretended, before.pretended)
    model = prepare_generator(make_generator(None, pretended=3, conditioning="film"), "second", tmp_path / "1", "film")
    assert set(trainable(model)) == {"prompts.1", "films.1"}
    make_trainer(tmp_path / "2", model, "second").run()
    two = load_generator(tmp_path / "2")
    assert torch.equal(two.pretended, one.pretended)
    assert torch.equal(draw_samples(two, "first", [1], 5), draw_samples(one, "first", [1], 5))
