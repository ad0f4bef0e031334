"""Networks and classical registration on the same pairs, scored by the same code: one row a method.

Run from the repository root; every method runs in a process of its own, one after another:

    python -m benchmarks.registration --dataset_dir DIR --tasks synth_brain_mr,synth_lung_ct --out FOLDER \\
        --network "cascade=dccnn_lstm_reg:runs/cascade/model.pt" \\
        --network "VoxelMorph=samcl:runs/voxelmorph/model.pt:voxelmorph" \\
        --classical syn,syncc,elastix

A network is NAME=BUNDLE:WEIGHTS, optionally :OVERLAY,... (configs of the bundle) and :KEY=VALUE,... (options). SyN
needs antspyx, elastix needs itk-elastix: install them in an environment for benchmarks.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from shared.data.learn2reg import read_pairs
from shared.data.pairs import PairDataset, Sample
from shared.evaluation import score_pair
from shared.files import save_json, write_csv
from shared.metrics import METRICS, round_trip_mm
from shared.transform_io import Transform, read_transform

Found = tuple[Transform, Transform | None, float]


def syn(pair: dict[str, Any], folder: Path, metric: str) -> Found:
    """Return ANTs' SyN from the identity, its inverse, and the seconds it took."""
    import ants

    fixed, moving = (ants.image_read(pair[f"{side}_image"]) for side in ("fixed", "moving"))
    start = time.perf_counter()
    result = ants.registration(
        fixed,
        moving,
        type_of_transform="SyNOnly",
        initial_transform="identity",
        syn_metric=metric,
        syn_sampling=32 if metric == "mattes" else 2,  # bins; radius in voxels
        reg_iterations=(100, 70, 50),  # the default leaves out the full resolution
        outprefix=str(folder / "syn_"),
        random_seed=0,
    )
    seconds = time.perf_counter() - start
    forward = [read_transform(path) for path in result["fwdtransforms"]]
    # The inverse list names the affine as it is, to be inverted.
    backward = [
        read_transform(path).inverse()[0] if str(path).endswith(".mat") else read_transform(path)
        for path in result["invtransforms"]
    ]
    return Transform.chain(forward), Transform.chain(backward), seconds


def elastix(pair: dict[str, Any], folder: Path) -> Found:
    """Return elastix' default B-spline (mutual information) from the identity, and the seconds it took."""
    import itk

    fixed, moving = (itk.imread(pair[f"{side}_image"], itk.F) for side in ("fixed", "moving"))
    parameters = itk.ParameterObject.New()
    parameters.AddParameterMap(parameters.GetDefaultParameterMap("bspline", 3, min(fixed.GetSpacing()) * 5))
    start = time.perf_counter()
    _, found = itk.elastix_registration_method(fixed, moving, parameter_object=parameters, log_to_console=False)
    seconds = time.perf_counter() - start
    field = itk.transformix_deformation_field(moving, found)
    itk.imwrite(field, str(folder / "elastix.nii.gz"))
    return read_transform(folder / "elastix.nii.gz"), None, seconds


CLASSICAL: dict[str, Callable[[dict[str, Any], Path], Found]] = {
    "syn": lambda pair, folder: syn(pair, folder, "mattes"),
    "syncc": lambda pair, folder: syn(pair, folder, "CC"),
    "elastix": elastix,
}


def score(sample: Sample, found: Found) -> dict[str, float]:
    """Return the scores of a transform on the fixed image's grid, and the seconds."""
    forward, backward, seconds = found
    fixed, moving = sample["grids"]["fixed"], sample["grids"]["moving"]
    ddf = forward.ddf(fixed, fixed)
    row = score_pair(sample, ddf, (ddf, forward.ddf(fixed, moving)))
    if backward is not None:
        row["round_trip_mm"] = round_trip_mm(ddf, backward.ddf(fixed, fixed), fixed.spacing_mm)
    return {**row, "seconds": seconds}


def run_classical(name: str, options: argparse.Namespace) -> None:
    """Register every pair with one method and write a row each."""
    rows: list[dict[str, Any]] = []
    for task in options.tasks:
        dataset = PairDataset(read_pairs(options.dataset_dir, task, options.split), options.spatial_size)
        for index in tqdm(range(len(dataset))[: options.pairs], desc=f"{name} {task}", unit="pair"):
            sample = dataset[index]
            with tempfile.TemporaryDirectory() as folder:
                rows.append({"task": task, **score(sample, CLASSICAL[name](sample["pair"], Path(folder)))})
    write_csv(options.out / name / "cases.csv", rows)


def network_command(text: str, options: argparse.Namespace) -> tuple[str, list[str], Path]:
    """Return name, command line and folder of a network's evaluation."""
    name, rest = text.split("=", 1)
    bundle, weights, *more = rest.split(":")
    words = [word for part in more for word in part.split(",") if word]
    overlays, settings = [w for w in words if "=" not in w], [w.split("=", 1) for w in words if "=" in w]
    configs = [f"bundles/{bundle}/configs/{n}.json" for n in ("train", *overlays, "evaluate_tasks")]
    folder = options.out / name.replace(" ", "_")
    tasks = [[str(Path(options.dataset_dir).absolute()), task] for task in options.tasks]
    flags = {
        "model": weights,
        "tasks": tasks,
        "split": options.split,
        "output_dir": folder,
        "dataset_dir": options.dataset_dir,
    }
    command = [sys.executable, "-m", "monai.bundle", "run", "evaluating", "--config_file", str(configs)]
    for key, value in [*flags.items(), *settings]:
        command += [f"--{key}", str(value)]
    return name, command, folder


def peak_memory(command: list[str], log: Path) -> float:
    """Run a command to its end and return its largest memory in MiB.

    Raises:
        RuntimeError: it failed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{log}: the command failed:\n{log.read_text()[-2000:]}")
    return usage.ru_maxrss / 1024


def means(rows: list[dict[str, Any]], keys: list[str]) -> dict[str, float]:
    """Return the mean over tasks of each column's mean over pairs."""
    found = {}
    for key in keys:
        tasks = [
            [float(row[key]) for row in rows if row["task"] == task and row.get(key) not in (None, "", "nan")]
            for task in dict.fromkeys(row["task"] for row in rows)
        ]
        values = [statistics.fmean(v) for v in tasks if v]
        found[key] = statistics.fmean(values) if values else float("nan")
    return found


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run every method and return a row each."""
    table: list[dict[str, Any]] = []
    keys = list(METRICS)
    before: dict[str, float] = {}
    for text in options.network:
        name, command, folder = network_command(text, options)
        memory = peak_memory(command, folder / "log.txt")
        rows, seconds = [], []
        for task in options.tasks:
            with (folder / task / "evaluation_cases.csv").open() as stream:
                rows += list(csv.DictReader(stream))
            summary = json.loads((folder / task / "evaluation_summary.json").read_text())
            seconds.append(summary["seconds_per_pair"])
        before = means(rows, [f"{k}_before" for k in ("dice", "hd95_mm", "tre_mm")])
        table.append({"method": name, **means(rows, keys), "seconds": statistics.fmean(seconds), "MiB": memory})
    for name in options.classical:
        memory = peak_memory(
            [sys.executable, "-m", "benchmarks.registration", *sys.argv[1:], "--only", name],
            options.out / name / "log.txt",
        )
        with (options.out / name / "cases.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        table.append(
            {"method": name, **means(rows, keys), "seconds": means(rows, ["seconds"])["seconds"], "MiB": memory}
        )
    if before:
        table.insert(0, {"method": "before", **{k.removesuffix("_before"): v for k, v in before.items()}})
    return table


def print_table(table: list[dict[str, Any]]) -> None:
    """Print Markdown."""
    columns = {**{k: METRICS[k][0] for k in METRICS}, "seconds": "seconds a pair", "MiB": "peak MiB"}
    digits = {"seconds": 2, "MiB": 0, "tre_mm": 1, "hd95_mm": 1, "assd_mm": 2}
    print("| method | " + " | ".join(columns.values()) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for row in table:
        cells = [f"{row[k]:.{digits.get(k, 3)}f}" if np.isfinite(row.get(k, np.nan)) else "" for k in columns]
        print(f"| {row['method']} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", required=True, help="folder of Learn2Reg folders")
    parser.add_argument("--tasks", required=True, type=lambda text: text.split(","))
    parser.add_argument("--split", default="test")
    parser.add_argument("--pairs", type=int, default=None, help="of each task, for the classical methods")
    parser.add_argument("--spatial_size", type=int, nargs=3, default=(32, 32, 32))
    parser.add_argument("--network", action="append", default=[])
    parser.add_argument("--classical", default=[], type=lambda text: [n for n in text.split(",") if n])
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--only", choices=CLASSICAL, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    unknown = set(options.classical) - set(CLASSICAL)
    if unknown:
        parser.error(f"found {sorted(unknown)}, expected some of {list(CLASSICAL)}")
    if options.only:
        run_classical(options.only, options)
        return
    table = measure(options)
    save_json(options.out / "table.json", {"torch": torch.__version__, "rows": table})
    print_table(table)


if __name__ == "__main__":
    main()
