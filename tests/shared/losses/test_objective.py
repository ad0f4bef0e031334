"""A pair made ready for an objective."""

from __future__ import annotations

import pytest
import torch

from shared.losses import label_probabilities, prepare_sample
from tests.tiny import TinyPairs

SIDES = ("fixed", "moving")


@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_labels_become_smoothed_channels_once(device, sigma):
    sample = {**TinyPairs()[0], "labels": [1, 5]}
    ready = prepare_sample(sample, torch.device(device), label_sigma=sigma)
    for side in SIDES:
        expected = label_probabilities(sample[f"{side}_label"][None], [1, 5], sigma)
        assert expected.shape == (1, 2, 8, 8, 8)
        torch.testing.assert_close(ready[f"{side}_probabilities"].cpu(), expected)
        assert torch.equal(ready[f"{side}_image"].cpu(), sample[f"{side}_image"])
    tensors = [v for v in ready.values() if isinstance(v, torch.Tensor)]
    assert {t.device.type for t in tensors} == {device}
    assert len(tensors) == 8
    assert "fixed_probabilities" not in sample


@pytest.mark.parametrize("labels", [None, []])
def test_without_labels_or_sigma_there_are_no_channels(labels):
    sample = TinyPairs()[0]
    assert not {f"{side}_probabilities" for side in SIDES} & set(prepare_sample(sample, torch.device("cpu")))
    bare = {k: v for k, v in sample.items() if k != "labels"} if labels is None else {**sample, "labels": labels}
    assert set(prepare_sample(bare, torch.device("cpu"), label_sigma=1.0)) == set(bare)
