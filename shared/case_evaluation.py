"""Scoring cases one by one: a row each, then a table; whatever a case is."""

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
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .data.learn2reg import by_task
from .files import save_json, writable_dir, write_csv
from .metrics import METRICS, assd_per_label, dice_per_label, hd95_per_label

__all__ = ["CaseEvaluator", "format_table", "label_scores", "summarise"]


def label_scores(
    found: Tensor, reference: Tensor, spacing_mm: Sequence[float], labels: Sequence[int] | None = None
) -> dict[str, float]:
    """Return Dice, HD95 and ASSD of two label maps, each the mean over the labels; none without labels.

    A label that one map lacks counts with Dice 0 and has no distance.

    Args:
        found: label map (*S).
        reference: label map (*S).
        spacing_mm: voxel size along each axis.
        labels: that count; None takes those of either map.
    """
    if labels is None:
        labels = [int(v) for v in torch.unique(torch.cat([found.flatten(), reference.flatten()])) if v > 0]
    if not labels:
        return {}
    scores = {
        "dice": dice_per_label(found, reference, labels),
        "hd95_mm": hd95_per_label(found, reference, labels, spacing_mm),
        "assd_mm": assd_per_label(found, reference, labels, spacing_mm),
    }
    return {
        name: float(np.nanmean(v)) if np.isfinite(v := value.numpy()).any() else np.nan
        for name, value in scores.items()
    }


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return mean, standard deviation and number of every numeric column; missing and NaN entries do not count."""
    columns = [k for k in dict.fromkeys(k for row in rows for k in row) if isinstance(rows[0].get(k, 0.0), float)]
    table = {}
    for name in columns:
        values = np.array([row[name] for row in rows if name in row and np.isfinite(row[name])])
        if len(values):
            table[name] = {"mean": float(values.mean()), "sd": float(values.std()), "n": len(values)}
    return table


def format_table(
    summary: Mapping[str, Mapping[str, float]],
    title: str,
    lines_of: Sequence[tuple[str, str]] = (("before", "_before"), ("after", "")),
) -> str:
    """Return a plain-text table of means and standard deviations.

    Args:
        summary: of :func:`summarise`.
        title: first line.
        lines_of: (heading, end of the column's name) of each line; here, before and after registration.
    """
    names = [m for m in METRICS if m in summary]
    lines = [title, f"{'':>10}" + "".join(f"{METRICS[m][0]:>18}" for m in names)]
    for heading, suffix in lines_of:
        cells = []
        for name in names:
            entry = summary.get(name + suffix)
            cells.append(f"{entry['mean']:.3f} +- {entry['sd']:.3f}" if entry else "-")
        lines.append(f"{heading:>10}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


class CaseEvaluator(SupervisedEvaluator):
    """Take the cases of a dataset one by one and score them.

    Writes ``<name>_cases.csv``, ``<name>_summary.json`` and ``<name>_example.png`` (first case) and prints the table.
    The summary also holds the median seconds of :meth:`answer`. With cases of several tasks, table and summary show
    the mean over all cases and each task. A base: a subclass says what an answer, a row and a picture are.

    Args:
        device: where the network runs.
        dataset: cases.
        network: that is scored.
        inferer: what runs it on a case.
        output_dir: where the files go.
        name: first part of their names.
        title: heading of the table.
        picture: also draw the first case.
        val_handlers: MONAI and ignite handlers.
    """

    case = "case"  # what a case is called
    lines_of: Sequence[tuple[str, str]] = (("mean", ""),)  # of the table, see format_table

    def __init__(
        self,
        device: torch.device,
        dataset: Dataset,
        network: nn.Module,
        inferer: Callable,
        output_dir: str | Path,
        name: str = "validation",
        title: str = "validation",
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

    def run(self, global_epoch: int = 1) -> None:
        """Score all cases; without any, say so."""
        cases = self.data_loader.dataset
        if len(cases) > 0:
            super().run(global_epoch)
        elif self.writes:
            print(f"{self.name}: nothing to score: {getattr(cases, 'reason', 'there are no cases')}", flush=True)

    def answer(self, sample: dict[str, Any]) -> Any:
        """Return what network and inferer make of a case; its seconds are taken: a hook."""
        raise NotImplementedError(f"{type(self).__name__} has no answer; expected a method answer")

    def score(self, sample: dict[str, Any], answer: Any) -> tuple[dict[str, Any], Any]:
        """Return the row of a case, with its ``task``, and what :meth:`draw` needs: a hook."""
        raise NotImplementedError(f"{type(self).__name__} gives no scores; expected a method score")

    def draw(self, sample: dict[str, Any], answer: Any, path: Path) -> None:
        """Draw a case: a hook."""
        raise NotImplementedError(f"{type(self).__name__} draws nothing; expected a method draw")

    def _iteration(self, engine: Engine, batchdata: list[dict[str, Any]]) -> dict[str, Any]:
        sample = batchdata[0]
        start = time.perf_counter()
        answer = self.answer(sample)
        self.seconds.append(time.perf_counter() - start)
        row, drawn = self.score(sample, answer)
        if self.writes and self.picture and not self.rows:
            self.draw(sample, drawn, self.output_dir / f"{self.name}_example.png")
        self.rows.append(row)
        self._bar.update()
        engine.state.output = row
        return row

    def _begin(self, engine: Engine) -> None:
        self.rows, self.seconds = [], []
        if self.writes:
            writable_dir(self.output_dir)
        total = engine.state.epoch_length
        self._bar = tqdm(total=total, desc=f"scoring {self.name}", unit=self.case, leave=False, disable=not self.writes)

    def _finish(self, engine: Engine) -> None:
        self._bar.close()
        summary = summarise(self.rows)
        engine.state.metrics.update({k: v["mean"] for k, v in summary.items()})
        if self.writes:
            write_csv(self.output_dir / f"{self.name}_cases.csv", self.rows)
            content: dict[str, Any] = {f"{self.case}s": len(self.rows), "metrics": summary}
            seconds = round(statistics.median(self.seconds), 4) if self.seconds else None
            content[f"seconds_per_{self.case}"] = seconds
            title = f"\n{self.title}: {len(self.rows)} {self.case}s, mean +- sd"
            print(format_table(summary, title, self.lines_of), flush=True)
            tasks = by_task(self.rows)
            if len(tasks) > 1:
                content["tasks"] = {task: summarise(rows) for task, rows in tasks.items()}
                for task, rows in tasks.items():
                    title = f"{task}: {len(rows)} {self.case}s"
                    print(format_table(content["tasks"][task], title, self.lines_of), flush=True)
            save_json(self.output_dir / f"{self.name}_summary.json", content)
            print(f"written to {self.output_dir}", flush=True)
