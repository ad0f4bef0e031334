"""Scoring one model on several tasks, as a chain of tasks does after each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shared.continual import loss_rise
from shared.data.corruption import CorruptedPairs
from shared.data.pairs import PairDataset, stack_pairs
from shared.errors import InputError
from shared.evaluation import RegistrationEvaluator
from shared.files import read_json, save_json, writable_dir

from .inference import load_pairs
from .objective import RegistrationObjective

__all__ = ["evaluate_tasks", "sharpness"]

# One figure a task: all models are asked about the same pairs at the same radius.
SHARPNESS_PAIRS, SHARPNESS_RHO = 8, 0.5


def sharpness(
    network: nn.Module, objective: RegistrationObjective, dataset: PairDataset, device: torch.device
) -> float:
    """Return the rise of the loss at the worst nearby weights, on the first pairs of a dataset.

    See :func:`~shared.continual.loss_rise`: a flat minimum has a small one.
    """
    network.eval()
    samples = [objective.prepare(dataset[i], device) for i in range(min(SHARPNESS_PAIRS, len(dataset)))]
    weights = [p for p in network.parameters() if p.requires_grad]
    return loss_rise(weights, lambda: objective(network(stack_pairs(samples)), samples)[0], SHARPNESS_RHO)


def evaluate_tasks(
    network: nn.Module,
    inferer: Callable,
    objective: RegistrationObjective,
    device: torch.device,
    tasks: Sequence[Sequence[str]],
    split: str,
    output_dir: str | Path,
    spatial_size: Sequence[int],
    spacing_mm: Sequence[float] | None = None,
    ct_window: Sequence[float] | None = None,
    model: str | Path = "",
    corruptions: Sequence[str] = (),
) -> dict[str, dict[str, Any]]:
    """Score a model on every task; each gets a folder of its name below ``output_dir``.

    A task whose summary is there already is not scored again: a killed evaluation goes on.

    Args:
        network: trained, on ``device``.
        inferer: returns a dict with ``ddf``.
        objective: what training minimised; its sharpness on validation pairs goes to ``sharpness.json``.
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

    Returns:
        task -> summary of its scores.

    Raises:
        InputError: an unknown task, unusable data, or two tasks of one name.
    """
    names = [task for _, task in tasks]
    if len(set(names)) < len(names):
        raise InputError(f"found tasks {names}, expected each name once: their results would share a folder")
    output_dir, summaries = Path(output_dir), {}
    for dataset_dir, task in tasks:
        places = {"": output_dir / task, **{name: output_dir / "corrupted" / name / task for name in corruptions}}
        if not all((folder / "evaluation_summary.json").is_file() for folder in places.values()):
            dataset, held_out = (
                PairDataset(load_pairs(dataset_dir, task, part), spatial_size, spacing_mm, ct_window)
                for part in (split, "val")
            )
            rise = sharpness(network, objective, held_out, device)
            save_json(writable_dir(output_dir / task) / "sharpness.json", {"loss_rise": rise, "rho": SHARPNESS_RHO})
        for name, folder in places.items():
            if not (folder / "evaluation_summary.json").is_file():
                scored = CorruptedPairs(dataset, name) if name else dataset
                title = ", ".join([task, f"{split} pairs", *([name] if name else []), str(model)])
                RegistrationEvaluator(device, scored, network, inferer, folder, "evaluation", title).run()
        summaries[task] = read_json(output_dir / task / "evaluation_summary.json")
    return summaries
