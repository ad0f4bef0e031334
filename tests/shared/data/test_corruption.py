"""Spoilt images: the same at every look, only the images, and as strong as they say."""

from __future__ import annotations

import pytest
import torch

from shared.data.corruption import CORRUPTIONS, IMAGE_CORRUPTIONS, CorruptedPairs
from shared.errors import InputError
from shared.fields import compose, invert, jacobian_determinant
from shared.warp import warp


class Pairs(torch.utils.data.Dataset):
    pairs = ("a", "b")

    def __len__(self):
        return 2

    def __getitem__(self, index):
        ramp = torch.linspace(0.2, 0.8, 16).expand(1, 16, 16, 16) + 0.1 * index
        return {"fixed_image": ramp, "moving_image": ramp.flip(-1), "fixed_label": ramp > 0.5, "task": "t"}


@pytest.mark.parametrize("name", IMAGE_CORRUPTIONS)
def test_images_change_the_same_way_at_every_look_and_nothing_else_does(name):
    clean, spoilt = Pairs(), CorruptedPairs(Pairs(), name)
    for index in range(2):
        first, second = spoilt[index], spoilt[index]
        for side in ("fixed_image", "moving_image"):
            assert torch.equal(first[side], second[side])
            assert not torch.allclose(first[side], clean[index][side], atol=1e-3)
            assert 0 <= first[side].min() <= first[side].max() <= 1
        assert torch.equal(first["fixed_label"], clean[index]["fixed_label"])
    assert len(spoilt) == 2


def test_noise_has_the_strength_it_says_and_differs_between_the_images():
    clean, spoilt = Pairs()[0], CorruptedPairs(Pairs(), "noise")[0]
    noise = [spoilt[s] - clean[s] for s in ("fixed_image", "moving_image")]
    assert noise[0].std().item() == pytest.approx(0.1, rel=0.1)
    assert abs(torch.corrcoef(torch.stack([n.flatten() for n in noise]))[0, 1]) < 0.1


def test_another_seed_draws_another_corruption():
    images = [CorruptedPairs(Pairs(), "noise", seed=s)[0]["fixed_image"] for s in (0, 100)]
    assert not torch.equal(*images)


def test_an_unknown_corruption_gets_the_near_miss():
    with pytest.raises(InputError, match=r"'nose' \(did you mean 'noise'\?\)"):
        CorruptedPairs(Pairs(), "nose")


def test_motion_moves_one_image_and_says_how():
    clean, spoilt = Pairs(), CorruptedPairs(Pairs(), "motion")
    first, second = spoilt[1], spoilt[1]
    assert torch.equal(first["moving_image"], second["moving_image"])
    assert torch.equal(first["fixed_image"], clean[1]["fixed_image"])
    assert 0.5 < first["motion"].abs().max() < 3
    assert jacobian_determinant(first["motion"]).min() > 0
    # Who finds the inverse of the motion has found, all in all, nothing.
    back = invert(first["motion"])[0]
    assert compose(first["motion"], back).abs().max() < 0.01
    undone = warp(first["moving_image"][None], back, padding_mode="border")[0]
    inside = (slice(None), *[slice(3, -3)] * 3)
    torch.testing.assert_close(undone[inside], clean[1]["moving_image"][inside], atol=0.02, rtol=0)
    assert "motion" in CORRUPTIONS
