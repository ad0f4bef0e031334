from __future__ import annotations

import pytest
import torch

from shared.data.augmentation import PairAugmentation


def blobs(*size: int) -> dict:
    """Return a pair with a bright block in either image, its label, and a landmark at its centre."""
    sample = {"labels": [1]}
    for side, start in (("fixed", 5), ("moving", 8)):
        block = torch.zeros(1, *size)
        block[(0, *[slice(start, start + 5)] * len(size))] = 1.0
        sample[f"{side}_image"] = 0.2 + 0.6 * block
        sample[f"{side}_label"] = block.to(torch.int16)
        sample[f"{side}_mask"] = torch.ones(1, *size, dtype=torch.uint8)
        sample[f"{side}_points"] = torch.full((1, len(size)), start + 2.0)
    return sample


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", [(20, 20, 20), (20, 18)])
@pytest.mark.parametrize("seed", range(5))
def test_images_labels_and_points_move_together(size, seed):
    changed = PairAugmentation(noise=0.0, gamma=(0.9, 1.1), bias=0.0)(blobs(*size), seeded(seed))
    for side in ("fixed", "moving"):
        where = changed[f"{side}_label"][0].nonzero().float()
        assert len(where) > 0
        torch.testing.assert_close(where.mean(0), changed[f"{side}_points"][0], atol=0.4, rtol=0)
        bright = (changed[f"{side}_image"] > 0.5) == (changed[f"{side}_label"] > 0)
        assert bright.float().mean() > 0.98


def test_both_images_are_flipped_alike_and_moved_apart():
    sample = blobs(20, 20, 20)
    changed = PairAugmentation(flip=1.0, rotation=0.0, shift=0.0)(sample, seeded(0))
    for side in ("fixed", "moving"):
        torch.testing.assert_close(changed[f"{side}_points"], 19 - sample[f"{side}_points"])
    apart = PairAugmentation(flip=0.0)(sample, seeded(0))
    moved = [apart[f"{side}_points"] - sample[f"{side}_points"] for side in ("fixed", "moving")]
    assert (moved[0] - moved[1]).abs().max() > 0.1


def test_outside_of_the_image_is_masked_out():
    changed = PairAugmentation(shift=0.3, flip=0.0)(blobs(20, 20, 20), seeded(3))
    assert 0.3 < changed["fixed_mask"].float().mean() < 1


def test_the_generator_decides_and_the_sample_stays():
    sample, augment = blobs(12, 12, 12), PairAugmentation()
    before = {k: v.clone() for k, v in sample.items() if isinstance(v, torch.Tensor)}
    first, same, other = (augment(sample, seeded(s))["fixed_image"] for s in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert all(torch.equal(sample[k], v) for k, v in before.items())


def test_intensities_stay_in_range_and_change():
    sample = blobs(12, 12, 12)
    changed = PairAugmentation(flip=0.0, rotation=0.0, shift=0.0)
    images = [changed(sample, seeded(s))["fixed_image"] for s in range(8)]
    assert all(float(i.min()) >= 0 and float(i.max()) <= 1 for i in images)
    assert sum(not torch.allclose(i, sample["fixed_image"], atol=1e-3) for i in images) >= 6


def test_all_options_are_in_its_words():
    assert repr(PairAugmentation(bias=0.7)) != repr(PairAugmentation())
