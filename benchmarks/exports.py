"""The cascade of dccnn_lstm_reg as torch runs it, compiled, and exported: time a pair, size of the file, error.

Run from the repository root: python -m benchmarks.exports
With --model FILE also what int8 costs in accuracy, on pairs of the embedded tasks or of Learn2Reg folders.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from tqdm import tqdm

from shared.data.embedded import load_pairs
from shared.data.pairs import PairDataset, stack_pairs
from shared.evaluation import score_pair
from shared.export import FILES, export_network, onnx_runner
from shared.networks import SymmetricCascade
from shared.weights import load_weights

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "dccnn_lstm_reg"
SCORES = ("dice", "tre_mm", "folds_percent")


def make_network(model: str | None) -> SymmetricCascade:
    """Return the network of the default config; without a model its fields are random, and not zero."""
    settings = json.loads((BUNDLE / "configs" / "inference.json").read_text())["network_def"]
    del settings["_target_"]
    torch.manual_seed(0)
    network = SymmetricCascade(**{**settings, "spatial_dims": 3, "repair_folds": False})
    if model:
        load_weights(network, model)
    else:
        for module in network.corrections:
            torch.nn.init.normal_(module.head.conv.weight, std=0.02)
    return network.eval()


def load(folder: Path) -> dict[str, Callable[[Tensor], Tensor]]:
    return {
        "torchscript": torch.jit.load(folder / FILES["torchscript"]),
        "onnx": onnx_runner(folder / FILES["onnx"]),
        "onnx_int8": onnx_runner(folder / FILES["onnx_int8"]),
    }


def measure(runners: dict[str, Callable[[Tensor], Tensor]], size: int, rounds: int, warm_up: int) -> None:
    times: dict[str, list[float]] = {name: [] for name in runners}
    differences = dict.fromkeys(runners, 0.0)
    for round_ in tqdm(range(-warm_up, rounds), desc=f"{size}^3", unit="round", leave=False):
        image = torch.rand(1, 2, size, size, size)
        expected = None
        for name, runner in runners.items():
            start = time.perf_counter()
            found = runner(image)
            taken = time.perf_counter() - start
            expected = found if expected is None else expected
            differences[name] = max(differences[name], float((found - expected).abs().max()))
            if round_ >= 0:
                times[name].append(taken)
    reference = statistics.median(times["eager"])
    for name, taken in times.items():
        median = statistics.median(taken)
        print(f"{size:>6}^3 {name:>12} {median * 1e3:10.1f} {median / reference:10.2f} {differences[name]:15.2g}")


def score(runners: dict[str, Callable[[Tensor], Tensor]], data: PairDataset) -> dict[str, dict[str, float]]:
    """Return the mean scores of every runner."""
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in runners}
    for index in tqdm(range(len(data)), desc="scoring", unit="pair", leave=False):
        sample = data[index]
        for name, runner in runners.items():
            rows[name].append(score_pair(sample, runner(stack_pairs([sample]))))
    return {
        name: {key: statistics.fmean(row[key] for row in found if key in row) for key in SCORES if key in found[0]}
        for name, found in rows.items()
    }


def print_scores(runners: dict[str, Callable], options: argparse.Namespace, size: Sequence[int]) -> None:
    wanted = {name: runners[name] for name in ("eager", "onnx", "onnx_int8")}
    print(f"\n{'task':>20} {'pairs':>6} {'':>12}" + "".join(f"{key:>15}" for key in SCORES))
    for task in options.tasks:
        data = PairDataset(load_pairs(options.dataset_dir, task, options.split), size)
        for name, means in score(wanted, data).items():
            cells = "".join(f"{means[key]:15.4f}" if key in means else f"{'-':>15}" for key in SCORES)
            print(f"{task:>20} {len(data):>6} {name:>12}{cells}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64], help="edges of cubes, in voxels")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warm_up", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="torch.compile too")
    parser.add_argument("--model", help="weights; pairs are scored at the first size")
    parser.add_argument("--dataset_dir", default=str(BUNDLE / "data"))
    tasks = ["synth_brain_mr", "synth_abdomen_ct", "synth_lung_ct", "synth_abdomen_mrct"]
    parser.add_argument("--tasks", nargs="+", default=tasks)
    parser.add_argument("--split", default="val")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    network = make_network(options.model)
    print(f"torch {torch.__version__}, {options.threads} threads, {options.rounds} rounds, interleaved, medians")
    for place, size in enumerate(options.sizes):
        with TemporaryDirectory() as scratch, torch.inference_mode():
            export_network(network, scratch, [size] * 3)
            runners: dict[str, Callable[[Tensor], Tensor]] = {"eager": network, **load(Path(scratch))}
            if options.compile:
                runners["compiled"] = torch.compile(network, dynamic=False)
                start = time.perf_counter()
                runners["compiled"](torch.rand(1, 2, size, size, size))
                print(f"torch.compile took {time.perf_counter() - start:.0f} s")
            print(f"{'size':>8} {'':>12} {'ms':>10} {'of eager':>10} {'max difference':>15}")
            measure(runners, size, options.rounds, options.warm_up)
            if options.model and place == 0:
                print_scores(runners, options, [size] * 3)


if __name__ == "__main__":
    main()
