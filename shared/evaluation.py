"""Scoring registrations on the images' own grids: one row a pair, then a table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from .data.corruption import CorruptedPairs
from .data.images import read_label, read_points
from .data.learn2reg import by_task
from .data.pairs import PairDataset, Sample, label_file, stack_pairs
from .data.pooled import PooledPairs
from .fields import compose
from .files import save_json, writable_dir, write_csv
from .metrics import (
    METRICS,
    assd_per_label,
    dice_per_label,
    fold_percent,
    hd95_per_label,
    round_trip_mm,
    sdlogj,
    tre_mm,
)
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


def _label_scores(warped: Tensor, fixed: Tensor, spacing_mm: Sequence[float]) -> dict[str, float]:
    labels = [int(v) for v in torch.unique(torch.cat([warped.flatten(), fixed.flatten()])) if v > 0]
    if not labels:
        return {}
    scores = {
        "dice": dice_per_label(warped, fixed, labels),
        "hd95_mm": hd95_per_label(warped, fixed, labels, spacing_mm),
        "assd_mm": assd_per_label(warped, fixed, labels, spacing_mm),
    }
    return {
        name: float(np.nanmean(v)) if np.isfinite(v := value.numpy()).any() else np.nan
        for name, value in scores.items()
    }


def score_pair(
    sample: Sample, ddf: Tensor, native: tuple[Tensor, Tensor] | None = None, inv_ddf: Tensor | None = None
) -> dict[str, float]:
    """Score a field on the fixed image's own grid, and the unregistered pair beside it (``*_before``).

    Label scores are means over the labels of the pair; a label that vanished counts with Dice 0.

    Args:
        sample: of :class:`PairDataset`.
        ddf: (1, d, *S) on the network's grid, in its voxels.
        native: what `to_native` makes of ``ddf``, where the caller has it.
        inv_ddf: the reverse field, of the shape of ``ddf``, where there is one.

    Returns:
        ``dice hd95_mm assd_mm`` where the pair has labels, ``tre_mm`` where it has points, ``folds_percent sdlogj``,
        and ``round_trip_mm`` (on the network's grid) with ``inv_ddf``.
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
        for suffix, mapping in (("", total), ("_before", affine_ddf(fixed, moving))):
            warped = warp(source, mapping, mode="nearest")[0, 0].to(torch.int16)
            row.update({k + suffix: v for k, v in _label_scores(warped, reference, fixed.spacing_mm).items()})
    if pair.get("fixed_points") and pair.get("moving_points"):
        start, target = read_points(pair["fixed_points"], dims), read_points(pair["moving_points"], dims)
        for suffix, points in (("", warp_points(start[None], field)[0]), ("_before", start)):
            row[f"tre_mm{suffix}"] = float(tre_mm(_world(points, fixed), _world(target, moving)))
    row["folds_percent"], row["sdlogj"] = float(fold_percent(field)), float(sdlogj(field))
    if inv_ddf is not None:
        row["round_trip_mm"] = round_trip_mm(ddf, inv_ddf, grids["network"].spacing_mm)
    return row


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return mean, standard deviation and number of every numeric column; missing and NaN entries do not count."""
    columns = [k for k in dict.fromkeys(k for row in rows for k in row) if isinstance(rows[0].get(k, 0.0), float)]
    table = {}
    for name in columns:
        values = np.array([row[name] for row in rows if name in row and np.isfinite(row[name])])
        if len(values):
            table[name] = {"mean": float(values.mean()), "sd": float(values.std()), "n": len(values)}
    return table


def validation_title(training: PairDataset | PooledPairs, validation: PairDataset) -> str:
    """Return the heading of a table after training: says whether the scored images were trained on."""
    trained, scored = (
        {pair[f"{side}_image"] for pair in dataset.pairs for side in ("fixed", "moving")}
        for dataset in (training, validation)
    )
    seen = (
        f"{len(trained & scored)} of {len(scored)} images were trained on" if trained & scored else "never trained on"
    )
    return f"{'+'.join(by_task(validation.pairs))}, validation pairs ({seen})"


def format_table(summary: Mapping[str, Mapping[str, float]], title: str) -> str:
    """Return a plain-text table of means and standard deviations before and after registration."""
    names = [m for m in METRICS if m in summary]
    lines = [title, f"{'':>10}" + "".join(f"{METRICS[m][0]:>18}" for m in names)]
    for heading, suffix in (("before", "_before"), ("after", "")):
        cells = []
        for name in names:
            entry = summary.get(name + suffix)
            cells.append(f"{entry['mean']:.3f} +- {entry['sd']:.3f}" if entry else "-")
        lines.append(f"{heading:>10}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


class RegistrationEvaluator(SupervisedEvaluator):
    """Register every pair of a dataset and score it on its own grid.

    Writes ``<name>_cases.csv``, ``<name>_summary.json`` and ``<name>_example.png`` (first pair) and prints the table.
    The summary also holds the median seconds that network and inferer take for a pair.
    With pairs of several tasks, table and summary show the mean over all pairs and each task.

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
        loader = DataLoader(dataset, batch_size=1, shuffle=False, collate_fn=list)
        super().__init__(
            device=device,
            val_data_loader=loader,
            network=network,
            inferer=inferer,
            val_handlers=val_handlers,
            decollate=False,
            **kwargs,
        )
        self.output_dir, self.name, self.title, self.picture = Path(output_dir), name, title, picture
        self.rows: list[dict[str, Any]] = []
        self.seconds: list[float] = []
        self.writes = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
        self.add_event_handler(Events.STARTED, self._begin)
        self.add_event_handler(Events.COMPLETED, self._finish)

    def _iteration(self, engine: Engine, batchdata: list[Sample]) -> dict[str, Any]:
        sample = batchdata[0]
        start = time.perf_counter()
        fields = predict(self.network, self.inferer, sample, self.state.device)
        self.seconds.append(time.perf_counter() - start)
        pair = sample["pair"]
        names = {side: Path(pair[f"{side}_image"]).name for side in ("fixed", "moving")}
        if "motion" in sample:  # the network saw an image that had been moved: undo that too
            fields = {"ddf": compose(sample["motion"], fields["ddf"])}
        scores = score_pair(sample, fields["ddf"], inv_ddf=fields.get("inv_ddf"))
        row: dict[str, Any] = {"task": sample["task"], **names, **scores}
        if self.writes and self.picture and not self.rows:
            from .plots import pair_figure

            pair_figure(sample, fields["ddf"], self.output_dir / f"{self.name}_example.png", title=self.title)
        self.rows.append(row)
        self._bar.update()
        engine.state.output = row
        return row

    def _begin(self, engine: Engine) -> None:
        self.rows, self.seconds = [], []
        if self.writes:
            writable_dir(self.output_dir)
        total = engine.state.epoch_length
        self._bar = tqdm(total=total, desc=f"scoring {self.name}", unit="pair", leave=False, disable=not self.writes)

    def _finish(self, engine: Engine) -> None:
        self._bar.close()
        summary = summarise(self.rows)
        engine.state.metrics.update({k: v["mean"] for k, v in summary.items()})
        if self.writes:
            write_csv(self.output_dir / f"{self.name}_cases.csv", self.rows)
            content: dict[str, Any] = {"pairs": len(self.rows), "metrics": summary}
            content["seconds_per_pair"] = round(statistics.median(self.seconds), 4) if self.seconds else None
            print(format_table(summary, f"\n{self.title}: {len(self.rows)} pairs, mean +- sd"), flush=True)
            tasks = by_task(self.rows)
            if len(tasks) > 1:
                content["tasks"] = {task: summarise(rows) for task, rows in tasks.items()}
                for task, rows in tasks.items():
                    print(format_table(content["tasks"][task], f"{task}: {len(rows)} pairs"), flush=True)
            save_json(self.output_dir / f"{self.name}_summary.json", content)
            print(f"written to {self.output_dir}", flush=True)
