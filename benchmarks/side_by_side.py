"""Candidates that take turns in one process: agreement, times, peak memory, and the floor that a copy of the data sets.

Every round has new inputs, the first one warms up. Ratios are of medians; those of minima stand in brackets.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import monai
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.kernels import warp_backend

CHECK_SIZE = (64, 64, 64)
# Voxels of zeros around images: beyond the border each loss counts in its own way.
MARGIN = 12
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
Candidate = Callable[..., Tensor]


@dataclass
class Claim:
    """One operation and who performs it; the first candidate is the one the others are measured against.

    Args:
        operation: what a table calls it.
        candidates: by name; ours come last.
        inputs: makes new ones for a round.
        wanted: inputs whose gradient is asked for; none of them times the forward pass alone.
        tolerance: largest difference to the first candidate in float64, relative to its largest value.
        bytes: what has to be read and written at least; for the floor.
        generous: ratios that `--check` asks of the last candidate against others, by name.
    """

    operation: str
    candidates: dict[str, Candidate]
    inputs: Callable[[], list[Tensor]]
    wanted: tuple[int, ...] = ()
    tolerance: float = 1e-3
    bytes: int = 0
    generous: dict[str, float] = field(default_factory=dict)


def smooth_field(size: Sequence[int], device: str, length: float = 3.0) -> Tensor:
    """Return a smooth displacement (1, 3, *S) of about ``length`` voxels."""
    coarse = length * torch.randn(1, 3, 8, 8, 8, device=device)
    return F.interpolate(coarse, size=tuple(size), mode="trilinear", align_corners=True)


def framed(size: Sequence[int], device: str) -> Tensor:
    """Return a random image (1, 1, *S) with a margin of zeros."""
    inner = torch.rand(1, 1, 20, 20, 20, device=device)
    inner = F.interpolate(inner, size=[n - 2 * MARGIN for n in size], mode="trilinear", align_corners=True)
    return F.pad(inner + 0.3 * torch.rand_like(inner), [MARGIN] * 6)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Warp by another backend for a while."""
    before = os.environ.get("WARP_BACKEND")
    os.environ["WARP_BACKEND"] = name
    try:
        yield
    finally:
        os.environ.pop("WARP_BACKEND")
        if before is not None:
            os.environ["WARP_BACKEND"] = before


def ours(run: Candidate, device: str) -> dict[str, Candidate]:
    """Return our candidates: without kernels, and with them where they can be had."""

    def by(name: str) -> Candidate:
        def call(*inputs: Tensor) -> Tensor:
            with backend(name):
                return run(*inputs)

        return call

    names = ["torch", *(["compiled"] if warp_backend(device).name != "torch" else [])]
    return {f"ours {name}": by(name) for name in names}


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def call(claim: Claim, run: Candidate, inputs: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return the value and the gradients to what is wanted."""
    if not claim.wanted:
        with torch.no_grad():
            return run(*inputs), []
    leaves = [x.detach().requires_grad_(i in claim.wanted) for i, x in enumerate(inputs)]
    value = run(*leaves)
    (value if value.ndim == 0 else value.square().sum()).backward()
    return value.detach(), [leaf.grad for leaf in leaves if leaf.grad is not None]


def seconds(claim: Claim, run: Candidate, inputs: list[Tensor], device: str, clock: Callable[[], float]) -> float:
    wait(device)
    start = clock()
    call(claim, run, inputs)
    wait(device)
    return clock() - start


def kilobytes(key: str) -> int:
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(key))


def peak_mib(claim: Claim, run: Candidate, inputs: list[Tensor], device: str) -> float:
    """Return the most memory taken above the inputs in MiB; not a number where the system does not tell."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call(claim, run, inputs)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is free goes back first, so that taking it again counts
        RESET.write_text("5")
        before = kilobytes("VmRSS")
        call(claim, run, inputs)
        return (kilobytes("VmHWM") - before) / 2**10
    except (OSError, AttributeError, StopIteration):
        return float("nan")


def check_agreement(claim: Claim) -> None:
    """Raise SystemExit unless all candidates agree with the first in float64, in value and gradient."""
    inputs = claim.inputs()
    names = list(claim.candidates)
    value, gradients = call(claim, claim.candidates[names[0]], [x.double() for x in inputs])
    truths = [value, *gradients]
    for name in names[1:]:
        value, gradients = call(claim, claim.candidates[name], inputs)
        for found, truth in zip([value, *gradients], truths, strict=True):
            # Where a position lies on a voxel the slope is that of either side: a few differ.
            error = float(
                (found.double() - truth).abs().flatten().kthvalue(int(0.999 * (found.numel() - 1)) + 1).values
            )
            largest = float(truth.abs().max())
            if error > claim.tolerance * largest:
                raise SystemExit(f"{claim.operation}: {name} is off by {error:.1e} of {largest:.1e}: nothing is timed")


def bandwidth(device: str) -> float:
    """Return bytes a second that a copy reads and writes, of data larger than the caches."""
    source = torch.zeros(1 << 26, device=device)
    target = torch.empty_like(source).copy_(source)
    taken = []
    for _ in range(5):
        wait(device)
        start = time.perf_counter()
        target.copy_(source)
        wait(device)
        taken.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(taken)


def measure(
    claim: Claim, rounds: int, device: str, clock: Callable[[], float]
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return seconds and peak MiB by candidate."""
    times: dict[str, list[float]] = {name: [] for name in claim.candidates}
    for round_ in range(rounds + 1):
        inputs = claim.inputs()
        for name, run in claim.candidates.items():
            taken = seconds(claim, run, inputs, device, clock)
            if round_ > 0:
                times[name].append(taken)
    return times, {name: peak_mib(claim, run, inputs, device) for name, run in claim.candidates.items()}


def report(claim: Claim, size: Sequence[int], options: argparse.Namespace, rate: float) -> list[str]:
    """Measure and print one line of the table; return what `--check` has to complain of."""
    check_agreement(claim)
    clock = time.process_time if options.cpu_time else time.perf_counter
    times, peaks = measure(claim, options.rounds, options.device, clock)
    names = list(times)
    base, last = times[names[0]], times[names[-1]]
    label = "x".join(map(str, size))
    row = [label, claim.operation, f"{names[0]} {statistics.median(base) * 1e3:.1f} ms, {peaks[names[0]]:.0f} MiB"]
    for name in names[1:]:
        ratio, best = statistics.median(base) / statistics.median(times[name]), min(base) / min(times[name])
        row.append(f"{name} {ratio:.1f}x ({best:.1f}), {peaks[name]:.0f} MiB")
    row.append(
        f"floor {claim.bytes / rate * 1e3:.1f} ms, {min(last) * rate / claim.bytes:.1f}x it" if claim.bytes else "-"
    )
    print("| " + " | ".join(row) + " |", flush=True)
    wanted = claim.generous if warp_backend(options.device).name != "torch" else {}
    return [
        f"{claim.operation} at {label}: {ratio:.2f} times {name}, expected {least}"
        for name, least in wanted.items()
        if (ratio := statistics.median(times[name]) / statistics.median(last)) < least
    ]


def main(
    description: str | None, claims: Callable[[Sequence[int], str], list[Claim]], sizes: Sequence[Sequence[int]]
) -> None:
    """Run a benchmark's command line: its claims at every size."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", type=int, nargs=3, action="append", help=f"may be repeated; else {sizes}")
    parser.add_argument("--cpu-time", action="store_true", help="of all threads, for a machine that is busy otherwise")
    parser.add_argument("--check", action="store_true", help=f"fail where a generous ratio is missed, at {CHECK_SIZE}")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rate, chosen = bandwidth(options.device), warp_backend(options.device)
    print(f"torch {torch.__version__}, MONAI {monai.__version__}, numpy {np.__version__}, {options.device}", end=", ")
    clock = "CPU" if options.cpu_time else "wall"
    print(f"{options.threads} threads, {clock} time, {options.rounds} rounds, copies at {rate / 1e9:.1f} GB/s")
    print(f"kernels: {chosen.name}, {chosen.reason.split(' (')[0]}")
    print(
        "Median of the first; how many times as fast the others are: median (minimum); peak memory above the inputs\n"
    )
    missed = []
    for size in [CHECK_SIZE] if options.check else options.size or sizes:
        for claim in claims(size, options.device):
            missed += report(claim, size, options, rate)
    if options.check and missed:
        sys.exit("\n".join(missed))
