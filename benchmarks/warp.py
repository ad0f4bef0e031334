"""Warping, forward and backward, and scaling and squaring, against grid_sample as usually called and MONAI's blocks.

Run from the repository root: OMP_PROC_BIND=true python -m benchmarks.warp --threads 2
All candidates take turns in one process, with another displacement every round; before that each must agree with
grid_sample in float64. `--check` runs the smallest size and fails where ours is slower than grid_sample.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import monai
import torch
import torch.nn.functional as F
from monai.networks.blocks import DVF2DDF, Warp
from torch import Tensor, nn

from shared.fields import exponentiate
from shared.kernels import warp_backend
from shared.warp import warp

SIZES = ((32, 32, 32), (64, 64, 64), (112, 96, 112), (160, 192, 224))
STEPS = 7
Candidate = Callable[[Tensor, Tensor], Tensor]


class UsualWarp(nn.Module):
    """The spatial transformer of most registration code: cached grid, normalise axis by axis, permute, grid_sample."""

    def __init__(self, size: tuple[int, ...]) -> None:
        super().__init__()
        axes = [torch.arange(n, dtype=torch.float32) for n in size]
        self.grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]
        self.size = size

    def forward(self, image: Tensor, ddf: Tensor) -> Tensor:
        position = self.grid.to(ddf.dtype) + ddf
        for axis, n in enumerate(self.size):
            position[:, axis] = 2 * (position[:, axis] / (n - 1) - 0.5)
        return F.grid_sample(image, position.permute(0, 2, 3, 4, 1)[..., [2, 1, 0]], align_corners=True)


class UsualIntegration(nn.Module):
    """Scaling and squaring with :class:`UsualWarp`."""

    def __init__(self, size: tuple[int, ...]) -> None:
        super().__init__()
        self.warp = UsualWarp(size)

    def forward(self, dvf: Tensor) -> Tensor:
        ddf = dvf / 2**STEPS
        for _ in range(STEPS):
            ddf = ddf + self.warp(ddf, ddf)
        return ddf


@contextmanager
def backend(name: str) -> Iterator[None]:
    before = os.environ.get("WARP_BACKEND")
    os.environ["WARP_BACKEND"] = name
    try:
        yield
    finally:
        os.environ.pop("WARP_BACKEND")
        if before is not None:
            os.environ["WARP_BACKEND"] = before


def ours(name: str, run: Callable[..., Tensor]) -> Candidate:
    def call(*inputs: Tensor) -> Tensor:
        with backend(name):
            return run(*inputs)

    return call


def candidates(size: tuple[int, ...]) -> tuple[dict[str, Candidate], dict[str, Callable[[Tensor], Tensor]]]:
    names = ["torch", *(["compiled"] if warp_backend().name != "torch" else [])]
    monai_warp, monai_exp = Warp("bilinear", "zeros"), DVF2DDF(STEPS, padding_mode="border")
    warps = {"grid_sample": UsualWarp(size), "monai": monai_warp, **{f"ours {n}": ours(n, warp) for n in names}}
    integrations = {
        "grid_sample": UsualIntegration(size),
        "monai": monai_exp,
        **{f"ours {n}": ours(n, lambda dvf: exponentiate(dvf, STEPS)) for n in names},
    }
    return warps, integrations


def smooth_field(size: tuple[int, ...]) -> Tensor:
    return F.interpolate(3 * torch.randn(1, 3, 8, 8, 8), size=size, mode="trilinear", align_corners=True)


def timed(call: Callable[..., Tensor], inputs: list[Tensor], wanted: tuple[int, ...]) -> float:
    leaves = [x.clone().requires_grad_(i in wanted) for i, x in enumerate(inputs)]
    start = time.perf_counter()
    if wanted:
        call(*leaves).square().sum().backward()
    else:
        with torch.no_grad():
            call(*leaves)
    return time.perf_counter() - start


def agree(warps: dict[str, Candidate], size: tuple[int, ...]) -> None:
    image, ddf = torch.randn(1, 1, *size), smooth_field(size)
    truth = UsualWarp(size)(image.double(), ddf.double())
    for name, call in warps.items():
        error = float((call(image, ddf).double() - truth).abs().max())
        if error > 1e-3:
            raise SystemExit(f"{name} is off by {error:.1e} at {size}, expected 1e-3 at most")


def measure(size: tuple[int, ...], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Return seconds by operation and candidate."""
    warps, integrations = candidates(size)
    agree(warps, size)
    found: dict[str, dict[str, list[float]]] = {}
    for number in range(rounds + 1):
        image, ddf, vector = torch.randn(1, 1, *size), smooth_field(size), torch.randn(1, 3, *size)
        jobs = [
            ("warp", warps, [image, ddf], ()),
            ("warp, gradient to the field", warps, [image, ddf], (1,)),
            ("warp, gradient to both", warps, [image, ddf], (0, 1)),
            ("warp of three channels", warps, [vector, ddf], ()),
            (f"scaling and squaring, {STEPS} steps", integrations, [ddf / 4], ()),
            (f"scaling and squaring, {STEPS} steps, gradient", integrations, [ddf / 4], (0,)),
        ]
        for operation, calls, inputs, wanted in jobs:
            for name, call in calls.items():
                taken = timed(call, inputs, wanted)
                if number > 0:  # the first round warms up
                    found.setdefault(operation, {}).setdefault(name, []).append(taken)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--sizes", type=int, default=3, help="how many of the sizes, from the smallest (4: all)")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, MONAI {monai.__version__}, {options.threads} threads, {options.rounds} rounds")
    print(f"backend: {warp_backend().name}, {warp_backend().reason.split(' (')[0]}")
    print("Milliseconds of grid_sample (median); how many times as fast the others are: median (minimum)\n")
    slow = []
    for size in SIZES[: 1 if options.check else options.sizes]:
        for operation, times in measure(size, options.rounds).items():
            base = times["grid_sample"]
            row = [f"{'x'.join(map(str, size))} | {operation} | {statistics.median(base) * 1e3:.1f} ms"]
            for name, taken in list(times.items())[1:]:
                ratio = statistics.median(base) / statistics.median(taken)
                row.append(f"{name} {ratio:.1f} ({min(base) / min(taken):.1f})")
                if name == list(times)[-1] and ratio < 1:
                    slow.append(f"{operation} at {size}: {ratio:.2f}")
            print("| " + " | ".join(row) + " |", flush=True)
    if options.check and slow:
        raise SystemExit(f"slower than grid_sample: {slow}")


if __name__ == "__main__":
    main()
