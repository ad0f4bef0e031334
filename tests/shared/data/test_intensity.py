"""Windows of CT and percentiles of MR."""

from __future__ import annotations

import pytest
import torch

from shared.data.intensity import normalise
from shared.errors import InputError


def ct(lung: bool) -> torch.Tensor:
    """HU of a body (40) in air (-1000), with or without lungs (-800)."""
    image = torch.full((1, 20, 20, 20), -1000.0)
    image[:, 3:17, 3:17, 3:17] = 40.0
    if lung:
        image[:, 5:15, 5:15, 5:15] = -800.0
    return image


@pytest.mark.parametrize("modality", ["ct", "auto"])
@pytest.mark.parametrize(("lung", "body"), [(False, 240 / 500), (True, 1390 / 1500)])
def test_ct_window_follows_the_content(modality, lung, body):
    scaled = normalise(ct(lung), modality)
    assert scaled[0, 4, 4, 4] == pytest.approx(body, abs=1e-6)
    if lung:
        assert scaled[0, 10, 10, 10] == pytest.approx(550 / 1500, abs=1e-6)
    else:
        assert scaled[0, 0, 0, 0] == 0


def test_given_ct_window_is_linear_and_clipped():
    image = torch.tensor([-1000.0, -100.0, 0.0, 100.0, 1000.0]).reshape(1, 5, 1)
    assert normalise(image, "ct", (-100, 100)).flatten().tolist() == pytest.approx([0, 0, 0.5, 1, 1])


@pytest.mark.parametrize("modality", ["mr", "auto"])
def test_mr_runs_from_its_minimum_to_its_99th_percentile(modality):
    image = torch.arange(1001.0).reshape(1, 1001, 1) + 50
    image[0, -1] = 1e6
    scaled = normalise(image, modality)
    assert scaled.dtype == torch.float32
    assert scaled.min() == 0
    assert scaled.max() == 1
    assert scaled[0, 495, 0] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pet",), "modality 'pet', expected ct, mr or auto"),
        (("ct", (100, -100)), r"ct_window \[100, -100\], expected two rising numbers"),
        (("ct", (1, 2, 3)), "expected two rising numbers"),
    ],
)
def test_normalise_names_bad_options(arguments, message):
    with pytest.raises(InputError, match=message):
        normalise(torch.rand(1, 4, 4, 4), *arguments)


def test_a_speck_in_the_background_is_scaled():
    image = torch.zeros(1, 20, 20, 20)
    image[0, 5, 5, 5] = 200
    assert normalise(image, "mr").max() == 1.0
