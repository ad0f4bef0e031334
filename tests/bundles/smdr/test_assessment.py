"""What is said and shown of a replay set."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from bundles.smdr.scripts.assessment import ASSESSMENT, assess_replay, sample_sheet
from bundles.smdr.scripts.privacy import foreign_files
from bundles.smdr.scripts.replay import ReplayDataset, read_index
from shared.errors import InputError
from shared.files import read_json
from tests.bundles.smdr.test_replay import make
from tests.bundles.smdr.tiny_generator import SIZE, TinySite


def images(count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    random = torch.Generator().manual_seed(seed)
    return [{"image": torch.rand(1, SIZE, SIZE, generator=random)} for _ in range(count)]


def test_the_figures_of_a_set_lie_beside_its_index(tmp_path):
    make(tmp_path, count=24)
    found = assess_replay(tmp_path, images(12, 1), images(48, 2))
    assert read_json(tmp_path / ASSESSMENT) == found
    assert (found["site"], found["drawn"]) == ("first", 24)
    assert found["leakage"]["training_images"] == 12
    assert found["leakage"]["held_out_images"] == 48
    assert set(found["quality"]) >= {"fid", "mmd", "ms_ssim"}
    assert foreign_files(tmp_path) == []


def test_a_set_of_copies_is_found_out(tmp_path):
    make(tmp_path, exclude=[1])
    copies = [{"image": item["image"]} for item in map(ReplayDataset(tmp_path).__getitem__, range(5))]
    found = assess_replay(tmp_path, copies, images(6, 3))
    assert found["leakage"]["suspects"] == 5
    assert found["leakage"]["lowest_ratio"] < 1e-3
    # By these numbers they can be excluded from a set made anew.
    assert sorted(found["suspect_samples"]) == [entry["number"] for entry in read_index(tmp_path)["samples"]]


def test_few_images_have_no_quality_and_the_reason_is_told(tmp_path):
    make(tmp_path)
    quality = assess_replay(tmp_path, TinySite().samples, images(6, 3))["quality"]
    assert list(quality) == ["missing"]
    assert "found 5 samples and 6 real images" in quality["missing"]


def test_a_changed_set_is_refused(tmp_path):
    make(tmp_path)
    next(tmp_path.glob("sample_*.npz")).write_bytes(b"other")
    with pytest.raises(InputError, match="is changed"):
        assess_replay(tmp_path, images(6, 1), images(6, 2))
    with pytest.raises(InputError, match="is changed"):
        sample_sheet(tmp_path, tmp_path / "sheet.png")


def test_the_sheet_shows_the_first_samples(tmp_path):
    make(tmp_path / "set")
    for count, columns in ((4, 2), (40, 10)):
        sample_sheet(tmp_path / "set", tmp_path / "sheet.png", count, columns)
        with Image.open(tmp_path / "sheet.png") as picture:
            pixels = torch.tensor(list(picture.convert("RGB").getdata()))
        assert len(pixels.unique(dim=0)) > 20
        assert abs(picture.width - 121 * columns) <= 2
