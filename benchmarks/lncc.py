"""Local cross-correlation, forward and backward, against MONAI's loss with the same window.

Run from the repository root: OMP_PROC_BIND=true python -m benchmarks.lncc --threads 2
Without binding, both OpenMP threads may share one core for seconds, and every ratio with them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from monai.losses import LocalNormalizedCrossCorrelationLoss
from torch import Tensor

from shared.losses import LocalNCCLoss

SIZES = ((64, 64, 64), (112, 96, 112))


def seconds(loss: Callable[[Tensor, Tensor], Tensor], pred: Tensor, target: Tensor) -> float:
    leaf = pred.clone().requires_grad_()
    start = time.perf_counter()
    loss(leaf, target).backward()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--window", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    losses = {
        "monai": LocalNormalizedCrossCorrelationLoss(3, options.window),
        "ours": LocalNCCLoss(options.window),
    }
    print(f"torch {torch.__version__}, {options.threads} threads, window {options.window}, {options.rounds} rounds")
    print(f"{'size':>14} {'monai ms':>10} {'ours ms':>10} {'ratio (median)':>15} {'ratio (min)':>12}")
    for size in SIZES:
        times: dict[str, list[float]] = {name: [] for name in losses}
        for round_ in range(options.rounds + 1):
            target = torch.rand(1, 1, *size)
            pred = target + 0.3 * torch.rand_like(target)
            for name, loss in losses.items():
                taken = seconds(loss, pred, target)
                if round_ > 0:
                    times[name].append(taken)
        medians = {name: statistics.median(taken) for name, taken in times.items()}
        ratio = medians["monai"] / medians["ours"]
        best = min(times["monai"]) / min(times["ours"])
        label = "x".join(map(str, size))
        print(f"{label:>14} {medians['monai'] * 1e3:10.1f} {medians['ours'] * 1e3:10.1f} {ratio:15.1f} {best:12.1f}")


if __name__ == "__main__":
    main()
