"""Scoring registrations on the images' own grids: one row a pair, then a table."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .case_evaluation import CaseEvaluator, format_table, label_scores, summarise
from .data.corruption import CorruptedPairs
from .data.images import read_label, read_points
from .data.learn2reg import by_task
from .data.pair_entries import label_file
from .data.pairs import PairDataset, Sample, stack_pairs
from .data.pooled import PooledPairs
from .fields import compose
from .metrics import fold_percent, labels_of_both, round_trip_mm, sdlogj, tre_mm
from .transform_io import Grid, affine_ddf, to_native
from .warp import warp, warp_points

__all__ = ["RegistrationEvaluator", "format_table", "predict", "score_pair", "summarise", "validation_title"]


@torch.no_grad()
def predict(network: nn.Module, inferer: Callable, sample: Sample, device: torch.device | str) -> dict[str, Tensor]:
    """Register one sample; fields on the network's grid come back on the CPU."""
    network.eval()
    fields = inferer(stack_pairs([sample]).to(device), network)
    return {k: v.float().cpu() for k, v in fields.items()}


def _world(points: Tensor, grid: Grid) -> Tensor:
    matrix = torch.as_tensor(grid.affine)
    return points.double() @ matrix[:-1, :-1].T + matrix[:-1, -1]


def score_pair(
    sample: Sample, ddf: Tensor, native: tuple[Tensor, Tensor] | None = None, inv_ddf: Tensor | None = None
) -> dict[str, float]:
    """Score a field on the fixed image's own grid, and the unregistered pair beside it (``*_before``).

    Label scores are means over the labels that both maps of the pair have, each on its own image's grid: the same
    before and after. One that vanished under the warp counts with Dice 0 and has no distance.

    Args:
        sample: of :class:`PairDataset`.
        ddf: (1, d, *S) on the network's grid, in its voxels.
        native: what `to_native` makes of ``ddf``, where the caller has it.
        inv_ddf: the reverse field, of the shape of ``ddf``, where there is one.

    Returns:
        ``dice hd95_mm assd_mm`` where the pair has labels in common, ``tre_mm`` where it has points,
        ``folds_percent sdlogj``, and ``round_trip_mm`` (on the network's grid) with ``inv_ddf``.
    """
    pair, grids = sample["pair"], sample["grids"]
    fixed, moving = grids["fixed"], grids["moving"]
    field, total = native or to_native(ddf, grids["network"], fixed, moving)
    dims = len(fixed.shape)
    row: dict[str, float] = {}
    fixed_label, moving_label = label_file(pair, "fixed"), label_file(pair, "moving")
    if fixed_label and moving_label:
        reference = read_label(fixed_label, fixed, dims)[0]
        source = read_label(moving_label, moving, dims)[None].float()
        labels = labels_of_both(reference, source)
        if not labels:
            warnings.warn(
                f"{fixed_label}, {moving_label}: found no label in both, so no overlap is scored", stacklevel=2
            )
        for suffix, mapping in (("", total), ("_before", affine_ddf(fixed, moving))):
            warped = warp(source, mapping, mode="nearest")[0, 0].to(torch.int16)
            row.update({k + suffix: v for k, v in label_scores(warped, reference, fixed.spacing_mm, labels).items()})
    if pair.get("fixed_points") and pair.get("moving_points"):
        start, target = read_points(pair["fixed_points"], dims), read_points(pair["moving_points"], dims)
        for suffix, points in (("", warp_points(start[None], field)[0]), ("_before", start)):
            row[f"tre_mm{suffix}"] = float(tre_mm(_world(points, fixed), _world(target, moving)))
    row["folds_percent"], row["sdlogj"] = float(fold_percent(field)), float(sdlogj(field))
    if inv_ddf is not None:
        row["round_trip_mm"] = round_trip_mm(ddf, inv_ddf, grids["network"].spacing_mm)
    return row


def validation_title(training: PairDataset | PooledPairs, validation: PairDataset) -> str:
    """Return the heading of a table after training: says whether the scored images were trained on."""
    trained, scored = training.images, validation.images
    seen = (
        f"{len(trained & scored)} of {len(scored)} images were trained on" if trained & scored else "never trained on"
    )
    return f"{'+'.join(by_task(validation.pairs))}, validation pairs ({seen})"


class RegistrationEvaluator(CaseEvaluator):
    """Register every pair of a dataset and score it on its own grid, see :class:`CaseEvaluator`.

    Args:
        device: where the network runs.
        dataset: pairs; they are taken one by one.
        network: gives what ``inferer`` needs.
        inferer: returns a dict with ``ddf`` (1, d, *S).
        output_dir: where the files go.
        name: first part of their names.
        title: heading of the table.
        picture: also draw the first pair.
        val_handlers: MONAI and ignite handlers.
    """

    case = "pair"
    lines_of = (("before", "_before"), ("after", ""))

    def __init__(
        self,
        device: torch.device,
        dataset: PairDataset | CorruptedPairs,
        network: nn.Module,
        inferer: Callable,
        output_dir: str | Path,
        name: str = "validation",
        title: str = "validation pairs",
        picture: bool = True,
        val_handlers: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            device, dataset, network, inferer, output_dir, name, title, picture, val_handlers=val_handlers, **kwargs
        )

    def answer(self, sample: Sample) -> dict[str, Tensor]:
        """Return the fields of a pair."""
        return predict(self.network, self.inferer, sample, self.state.device)

    def score(self, sample: Sample, answer: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the row of a pair, and the fields that count."""
        pair, fields = sample["pair"], answer
        names = {side: Path(pair[f"{side}_image"]).name for side in ("fixed", "moving")}
        if "motion" in sample:  # the network saw an image that had been moved: undo that too
            fields = {"ddf": compose(sample["motion"], fields["ddf"])}
        scores = score_pair(sample, fields["ddf"], inv_ddf=fields.get("inv_ddf"))
        return {"task": sample["task"], **names, **scores}, fields

    def draw(self, sample: Sample, answer: dict[str, Tensor], path: Path) -> None:
        """Draw a pair."""
        from .plots import pair_figure

        pair_figure(sample, answer["ddf"], path, title=self.title)
