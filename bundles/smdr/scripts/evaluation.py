"""Scoring a segmenter on the images' own grids: one row a volume, then a table; one site, or all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shared.case_evaluation import CaseEvaluator, label_scores
from shared.data.embedded import load_sites
from shared.data.slice_dataset import VolumeDataset, known_label
from shared.data.slices import label_on_image
from shared.data.volumes import read_volume_label
from shared.errors import InputError
from shared.files import read_json
from shared.scored import holds_scores, record_scores, scores_of

from .pictures import segmentation_figure

__all__ = ["SegmentationEvaluator", "evaluate_tasks", "validation_title"]

Sample = dict[str, Any]


class SegmentationEvaluator(CaseEvaluator):
    """Segment every volume of a dataset and score it on its own grid: Dice, HD95 and ASSD in mm, means over labels.

    A label that the network does not find counts with Dice 0; it has no distances. See :class:`CaseEvaluator` for what
    is written, and its arguments; ``inferer`` is a ``SliceInferer``, the dataset a ``VolumeDataset`` of labelled
    images. A row's ``task`` is the site.
    """

    case = "image"

    @torch.no_grad()
    def answer(self, sample: Sample) -> Tensor:
        """Return the label map (1, i, j, k) on the image's own grid."""
        self.network.eval()
        device = torch.device(self.state.device)
        probabilities = self.inferer(sample["image"][None].to(device), self.network)[0]
        grids = sample["grids"]
        return label_on_image(probabilities.float().cpu(), grids["network"], grids["image"])

    def score(self, sample: Sample, answer: Tensor) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the row of a volume, and both label maps."""
        item, grid = sample["item"], sample["grids"]["image"]
        if not item.get("label"):
            raise InputError(f"{item['image']}: found no label, expected one: the segmentation is scored with it")
        volumes = self.data_loader.dataset
        reference = known_label(read_volume_label(item["label"], grid), item, volumes.classes, volumes.label_map)
        scores = label_scores(answer[0], reference[0], grid.spacing_mm)
        row = {"task": sample["site"], "image": Path(item["image"]).name, **scores}
        return row, {"found": answer, "reference": reference}

    def draw(self, sample: Sample, answer: dict[str, Tensor], path: Path) -> None:
        """Draw a volume."""
        segmentation_figure(sample, answer["found"], answer["reference"], path, title=self.title)


def validation_title(training: Any, validation: VolumeDataset) -> str:
    """Return the heading of a table after training: says whether the scored images were trained on."""
    trained = {item["image"] for item in training.items}
    scored = {item["image"] for item in validation.items}
    seen = f"{len(trained & scored)} of {len(scored)} were trained on" if trained & scored else "never trained on"
    sites = dict.fromkeys(str(item.get("site", "images")) for item in validation.items)
    return f"{'+'.join(sites)}, validation images ({seen})"


def evaluate_tasks(
    network: nn.Module,
    inferer: Callable,
    device: torch.device,
    tasks: Sequence[Sequence[str]],
    split: str,
    output_dir: str | Path,
    spatial_size: Sequence[int],
    model: str | Path = "",
    corruptions: Sequence[str] = (),
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """Score a segmenter on every site; each gets a folder of its name below ``output_dir``.

    A site whose scores of the same weights and settings are there already is not scored again: a killed evaluation
    goes on.

    Args:
        network: trained, on ``device``.
        inferer: see ``SliceInferer``.
        device: where the network runs.
        tasks: (dataset_dir, site) each.
        split: "train", "val" or "test".
        output_dir: where the folders go.
        spatial_size: rows and columns of a slice.
        model: named in the headings.
        corruptions: none: spoilt images are known for registration alone.
        options: of :class:`~shared.data.slice_dataset.VolumeDataset`.

    Returns:
        site -> summary of its scores.

    Raises:
        InputError: an unknown site, unusable data, two sites of one name, or corruptions.
    """
    names = [site for _, site in tasks]
    if len(set(names)) < len(names):
        raise InputError(f"found sites {names}, expected each name once: their results would share a folder")
    if corruptions:
        raise InputError(f"found corruptions {list(corruptions)}, expected none: they are for pairs of images")
    output_dir, summaries = Path(output_dir), {}
    common = scores_of(network, inferer, split=split, size=spatial_size, options=options)
    for dataset_dir, site in tasks:
        folder = output_dir / site
        settings = {**common, "dataset_dir": str(dataset_dir)}
        if not holds_scores(folder, settings):
            volumes = VolumeDataset(load_sites(dataset_dir, site, split), spatial_size, **options)
            title = f"{site}, {split} images, {model}"
            SegmentationEvaluator(device, volumes, network, inferer, folder, "evaluation", title).run()
            record_scores(folder, settings)
        summaries[site] = read_json(folder / "evaluation_summary.json")
    return summaries
