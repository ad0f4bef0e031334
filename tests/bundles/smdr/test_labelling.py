"""Labels of generated images, and which images go."""

from __future__ import annotations

import pytest
import torch

from bundles.smdr.scripts.labelling import (
    JointLabels,
    PseudoLabels,
    SampleFilter,
    choose_labels,
    judge,
    site_statistics,
)
from shared.errors import InputError
from shared.files import save_tensors
from tests.bundles.smdr.tiny_generator import SIZE, TinySite, make_generator


class Threshold(torch.nn.Module):
    """Finds what is bright; more than half a network, as it has a running statistic that training mode would move."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.classes, self.norm = classes, torch.nn.BatchNorm2d(1)

    def forward(self, images):
        score = 20 * (self.norm(images) - 0.5)
        return score if self.classes == 1 else torch.cat([torch.zeros_like(score), score], dim=1)


def test_confidence_is_that_of_the_foreground_and_area_its_share():
    inside = torch.tensor([[0.9, 0.7, 0.2, 0.1], [0.4, 0.4, 0.2, 0.2]]).reshape(2, 1, 2, 2)
    labels, confidence, area = judge(torch.cat([1 - inside, inside], dim=1))
    assert labels.dtype == torch.uint8
    assert labels.flatten(1).tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]
    torch.testing.assert_close(confidence, torch.tensor([0.8, 0.7]))
    assert area.tolist() == [0.5, 0.0]


def test_the_most_likely_class_labels_a_voxel():
    probabilities = torch.tensor([[0.2, 0.1, 0.7], [0.1, 0.6, 0.3], [0.5, 0.25, 0.25]]).T.reshape(1, 3, 1, 3)
    labels, confidence, area = judge(probabilities)
    assert labels.flatten().tolist() == [2, 1, 0]
    assert float(confidence) == pytest.approx(0.65)
    assert float(area) == pytest.approx(2 / 3)


@pytest.mark.parametrize("classes", [1, 2])
def test_a_segmenter_labels_in_eval_mode_and_is_left_as_it_was(classes):
    segmenter = Threshold(classes).train()
    before = segmenter.norm.running_mean.clone()
    channels = torch.full((2, 1, SIZE, SIZE), -0.6)
    channels[:, :, :2] = 0.8  # in [-1, 1]: 0.9 as an image
    images, probabilities = PseudoLabels(segmenter)(make_generator(), channels)
    assert segmenter.training
    assert torch.equal(segmenter.norm.running_mean, before)
    assert float(images[0, 0, 0, 0]) == pytest.approx(0.9)
    labels, confidence, area = judge(probabilities)
    assert bool((labels[:, :, :2] == 1).all())
    assert area.tolist() == [0.25, 0.25]
    assert float(confidence.min()) > 0.99


def test_the_segmenters_hash_tells_labellers_apart():
    one, two = PseudoLabels(Threshold()), PseudoLabels(Threshold())
    assert one.settings() == two.settings()
    with torch.no_grad():
        two.segmenter.norm.weight[0] += 1e-6
    assert one.settings() != two.settings()


def test_the_choice_of_labels_loads_the_segmenter_where_it_labels(tmp_path):
    trained, fresh = Threshold(), Threshold()
    with torch.no_grad():
        trained.norm.weight[0] += 1
    save_tensors(tmp_path / "model.pt", trained.state_dict())
    labels = choose_labels("pseudo", fresh, tmp_path / "model.pt")
    assert labels.settings() == PseudoLabels(trained).settings()
    assert choose_labels("joint", fresh, tmp_path / "none.pt").settings() == {"labels": "joint"}
    with pytest.raises(InputError, match=r"found labels 'jont' \(did you mean 'joint'\?\), expected pseudo or joint"):
        choose_labels("jont", fresh, tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"none.pt"):
        choose_labels("pseudo", fresh, tmp_path / "none.pt")


def test_labels_drawn_along_need_a_generator_that_draws_them():
    generator = make_generator(label_channels=1)
    _, probabilities = JointLabels()(generator, torch.ones(1, 2, SIZE, SIZE))
    assert bool((probabilities[:, 1] == 1).all())
    with pytest.raises(InputError, match="expected label_channels, or pseudo"):
        JointLabels()(make_generator(), torch.ones(1, 1, SIZE, SIZE))


@pytest.mark.parametrize(
    ("confidence", "area", "fault"),
    [
        (0.9, 0.2, None),
        (0.79, 0.2, "unsure"),
        (0.9, 0.09, None),
        (0.9, 0.07, "too small"),
        (0.9, 0.37, None),
        (0.9, 0.38, "too large"),
        (0.9, 0.0, "empty"),
    ],
)
def test_unsure_and_implausible_samples_go(confidence, area, fault):
    statistics = {"area": [0.1, 0.3], "empty": 0.0}
    assert SampleFilter(0.8, slack=0.25).fault(confidence, area, statistics) == fault


def test_empty_samples_stay_where_the_site_has_empty_images():
    assert SampleFilter().fault(0.9, 0.0, {"area": [0.1, 0.3], "empty": 0.2}) is None


def test_statistics_are_those_of_the_site():
    site = TinySite(0.2, 0.8)
    site.samples.append({"image": torch.zeros(1, SIZE, SIZE), "label": torch.zeros(1, SIZE, SIZE)})
    found = site_statistics(site)
    values = torch.stack([s["image"] for s in site.samples]).double()
    assert found["images"] == 7
    assert found["empty"] == pytest.approx(1 / 7, abs=1e-6)
    assert found["area"] == [0.25, 0.25]
    assert found["intensity"] == pytest.approx([float(values.mean()), float(values.std(correction=0))], abs=1e-5)


def test_statistics_of_areas_leave_out_the_extremes():
    areas = [1, 2, 3, 30]
    samples = [{"image": torch.zeros(1, 100), "label": (torch.arange(100) < a).int()[None]} for a in areas]
    low, high = site_statistics(samples)["area"]
    assert 0.01 < low < 0.02
    assert 0.25 < high < 0.3


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"image": torch.zeros(1, 4, 4)}, "image without label"),
        ({"image": torch.zeros(1, 4, 4), "label": torch.zeros(1, 4, 4)}, "1 images without any foreground"),
    ],
)
def test_a_site_without_labels_is_refused(sample, message):
    with pytest.raises(InputError, match=f"there: found .*{message}"):
        site_statistics([sample], "there")


@pytest.mark.parametrize("options", [{"min_confidence": 1.1}, {"min_confidence": -0.1}, {"slack": -1}])
def test_impossible_filters_are_refused(options):
    with pytest.raises(ValueError, match="found min_confidence"):
        SampleFilter(**options)
