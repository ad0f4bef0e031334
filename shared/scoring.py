"""Scoring one model on several tasks, as a chain of tasks does after each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .continual import loss_rise
from .data.corruption import CorruptedPairs
from .data.embedded import load_pairs
from .data.pairs import PairDataset, stack_pairs
from .errors import InputError
from .evaluation import RegistrationEvaluator
from .files import read_json, save_json, writable_dir
from .losses import Objective
from .scored import holds_scores, record_scores, scores_of

__all__ = ["evaluate_tasks", "sharpness"]

# One figure a task: all models are asked about the same pairs at the same radius.
SHARPNESS_PAIRS, SHARPNESS_RHO = 8, 0.5


def sharpness(network: nn.Module, objective: Objective, dataset: PairDataset, device: torch.device) -> float:
    """Return the rise of the loss at the worst nearby weights, on the first pairs of a dataset.

    See :func:`~shared.continual.loss_rise`: a flat minimum has a small one.

    Args:
        network: trained, on ``device``; what it returns when called is what the objective takes.
        objective: what training minimised.
        dataset: pairs that it was not trained on.
        device: where the network runs.
    """
    network.eval()
    samples = [objective.prepare(dataset[i], device) for i in range(min(SHARPNESS_PAIRS, len(dataset)))]
    weights = [p for p in network.parameters() if p.requires_grad]
    return loss_rise(weights, lambda: objective(network(stack_pairs(samples)), samples)[0], SHARPNESS_RHO)


def evaluate_tasks(
    network: nn.Module,
    inferer: Callable,
    device: torch.device,
    tasks: Sequence[Sequence[str]],
    split: str,
    output_dir: str | Path,
    spatial_size: Sequence[int],
    spacing_mm: Sequence[float] | None = None,
    ct_window: Sequence[float] | None = None,
    model: str | Path = "",
    corruptions: Sequence[str] = (),
    objective: Objective | None = None,
    mask_images: bool = False,
) -> dict[str, dict[str, Any]]:
    """Score a model on every task; each gets a folder of its name below ``output_dir``.

    A task whose scores of the same weights and settings are there already is not scored again: a killed evaluation
    goes on.

    Args:
        network: trained, on ``device``.
        inferer: returns a dict with ``ddf``.
        device: where the network runs.
        tasks: (dataset_dir, task) each.
        split: "train", "val" or "test".
        output_dir: where the folders go.
        spatial_size: voxels of the network's grid.
        spacing_mm: voxel size of that grid.
        ct_window: HU window for CT.
        model: named in the headings.
        corruptions: names of :data:`~shared.data.corruption.CORRUPTIONS`: the tasks are scored on spoilt images too,
            in ``output_dir/corrupted/<name>/<task>``.
        objective: what training minimised; the sharpness of its minimum on validation pairs goes to
            ``sharpness.json``. None: no such file.
        mask_images: see :class:`~shared.data.pairs.PairDataset`: as the network was trained.

    Returns:
        task -> summary of its scores.

    Raises:
        InputError: an unknown task, unusable data, or two tasks of one name.
    """

    def read(dataset_dir: str, task: str, part: str) -> PairDataset:
        pairs = load_pairs(dataset_dir, task, part)
        return PairDataset(pairs, spatial_size, spacing_mm, ct_window, mask_images=mask_images)

    names = [task for _, task in tasks]
    if len(set(names)) < len(names):
        raise InputError(f"found tasks {names}, expected each name once: their results would share a folder")
    output_dir, summaries = Path(output_dir), {}
    grid = [spatial_size, spacing_mm, ct_window]
    common = scores_of(network, inferer, split=split, grid=grid, mask_images=mask_images, objective=str(objective))
    for dataset_dir, task in tasks:
        places = {"": output_dir / task, **{name: output_dir / "corrupted" / name / task for name in corruptions}}
        settings = {**common, "dataset_dir": str(dataset_dir)}
        left = {name: folder for name, folder in places.items() if not holds_scores(folder, settings)}
        if left:
            dataset = read(dataset_dir, task, split)
            if objective is not None:
                rise = sharpness(network, objective, read(dataset_dir, task, "val"), device)
                save_json(writable_dir(output_dir / task) / "sharpness.json", {"loss_rise": rise, "rho": SHARPNESS_RHO})
        for name, folder in left.items():
            scored = CorruptedPairs(dataset, name) if name else dataset
            title = ", ".join([task, f"{split} pairs", *([name] if name else []), str(model)])
            RegistrationEvaluator(device, scored, network, inferer, folder, "evaluation", title).run()
            record_scores(folder, settings)
        summaries[task] = read_json(output_dir / task / "evaluation_summary.json")
    return summaries
