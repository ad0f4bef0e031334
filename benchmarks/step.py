"""One SAMCL iteration with 36 classes against a straightforward reading of the method on torch's stock operations.

Run from the repository root: OMP_PROC_BIND=true python -m benchmarks.step --threads 2
The reference is written as the method reads: the three branches of a large-kernel block each by itself, `grid_sample`
with a grid made for every call, one-hot labels smoothed in every pass, v and -v integrated one after the other, loops
over the weights for SAM and Reptile. Loss and gradients must agree before anything is timed; both take turns in one
process. `--check` runs a small size and fails where ours is slower.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import monai
import torch
import torch.nn.functional as F
from monai.networks.layers import GaussianFilter
from torch import Tensor, nn

from bundles.samcl.scripts.layers import LargeKernelBlock
from bundles.samcl.scripts.memory import ReservoirMemory
from bundles.samcl.scripts.network import LKUNet
from bundles.samcl.scripts.objective import RegistrationObjective
from bundles.samcl.scripts.strategies import SAMCL
from bundles.samcl.scripts.trainer import ContinualTrainer
from shared.data.pairs import Sample, stack_pairs

STEPS, WINDOW, SIGMA, RHO, BETA = 7, 3, 1.0, 0.05, 0.25
WIDTH, DEPTH = 16, 4
POINTS = 500


class BranchedBlock(nn.Module):
    """The branches of a large-kernel block, each a convolution of its own."""

    def __init__(self, block: LargeKernelBlock) -> None:
        super().__init__()
        self.conv1, self.conv3, self.conv5 = block.conv1, block.conv3, block.conv5
        self.activation = block.activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.conv3(x) + self.conv1(x) + self.conv5(x) + x)


def branched(network: LKUNet) -> LKUNet:
    network = copy.deepcopy(network)
    for down in network.down:
        down.large = BranchedBlock(down.large)
    return network


def stock_warp(image: Tensor, ddf: Tensor, mode: str = "bilinear", padding: str = "zeros") -> Tensor:
    size = ddf.shape[2:]
    axes = [torch.arange(n, dtype=ddf.dtype) for n in size]
    position = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None] + ddf
    scaled = [2 * position[:, i] / (n - 1) - 1 for i, n in enumerate(size)]
    return F.grid_sample(image, torch.stack(scaled[::-1], dim=-1), mode=mode, padding_mode=padding, align_corners=True)


def stock_exponential(dvf: Tensor) -> Tensor:
    ddf = dvf / 2**STEPS
    for _ in range(STEPS):
        ddf = ddf + stock_warp(ddf, ddf, padding="border")
    return ddf


def stock_similarity(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    kernel = torch.ones(1, 1, WINDOW, WINDOW, WINDOW)

    def total(x: Tensor) -> Tensor:
        return F.conv3d(x, kernel, padding=WINDOW // 2)

    count = total(torch.ones_like(pred))
    a, b = total(pred), total(target)
    cross = total(pred * target) - a * b / count
    var_a = (total(pred * pred) - a * a / count).clamp_min(0)
    var_b = (total(target * target) - b * b / count).clamp_min(0)
    cc = cross * cross / (var_a * var_b + 1e-5)
    return 1 - (cc * mask).sum() / mask.sum()


def stock_probabilities(label: Tensor, labels: Sequence[int]) -> Tensor:
    one_hot = F.one_hot(label.long(), max(labels) + 1).permute(0, 4, 1, 2, 3)[:, labels].float()
    padded = F.pad(one_hot, [3] * 6, mode="replicate")
    return GaussianFilter(3, SIGMA, truncated=3.0, approx="sampled")(padded)[..., 3:-3, 3:-3, 3:-3]


def stock_dice(p: Tensor, q: Tensor) -> Tensor:
    dims = (2, 3, 4)
    squares = (p * p).sum(dims) + (q * q).sum(dims)
    present = (squares > 0).float()
    dice = 1 - 2 * (p * q).sum(dims) / (squares + 1e-5)
    return (present * dice).sum() / present.sum()


def stock_regularity(dvf: Tensor) -> tuple[Tensor, Tensor]:
    def central(x: Tensor, dim: int) -> Tensor:
        n = x.shape[dim] - 2
        return (x.narrow(dim, 2, n) - x.narrow(dim, 0, n)) / 2

    bending = torch.zeros(())
    for a in (2, 3, 4):
        for b in (2, 3, 4):
            second = central(central(dvf, a), b)
            for c in (2, 3, 4):
                taken = int(c == a) + int(c == b)
                second = second.narrow(c, 2 - taken, dvf.shape[c] - 4)
            bending = bending + (second**2).mean()
    membrane = torch.stack([(dvf.diff(dim=dim) ** 2).mean() for dim in (2, 3, 4)]).sum()
    return bending, membrane


def stock_landmarks(fixed: Tensor, moving: Tensor, half: Tensor) -> Tensor:
    size = torch.tensor(half.shape[2:]) - 1
    moved = fixed
    for _ in range(2):  # the half deformation twice is the whole one
        places = (2 * moved / size - 1).flip(-1)[None, :, None, None]
        moved = moved + F.grid_sample(half, places, padding_mode="border", align_corners=True)[0, :, :, 0, 0].T
    return ((moved - moving) ** 2).sum(dim=1).mean().sqrt()


def stock_loss(dvf: Tensor, samples: Sequence[Sample]) -> Tensor:
    half, half_inv = stock_exponential(dvf), stock_exponential(-dvf)
    terms = []
    for i, sample in enumerate(samples):
        go, back = half[i : i + 1], half_inv[i : i + 1]
        moving, fixed = stock_warp(sample["moving_image"][None], go), stock_warp(sample["fixed_image"][None], back)
        mask = stock_warp(sample["fixed_mask"][None].float(), back, "nearest")
        mask = mask * stock_warp(sample["moving_mask"][None].float(), go, "nearest")
        p = stock_warp(stock_probabilities(sample["moving_label"], sample["labels"]), go)
        q = stock_warp(stock_probabilities(sample["fixed_label"], sample["labels"]), back)
        terms.append(stock_similarity(moving, fixed, mask.detach()) + stock_dice(p, q))
        terms[-1] = terms[-1] + stock_landmarks(sample["fixed_points"], sample["moving_points"], go)
    bending, membrane = stock_regularity(dvf)
    return torch.stack(terms).mean() + bending + membrane


class StockTrainer:
    """SAMCL's iteration (Wang, Luo & Zhuang, MICCAI 2024), loop by loop."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, weight_decay=1e-5, foreach=False)

    def backward(self, samples: Sequence[Sample]) -> float:
        self.optimizer.zero_grad()
        loss = stock_loss(self.network(stack_pairs(samples)), samples)
        loss.backward()
        return loss.item()

    def sam(self, samples: Sequence[Sample]) -> None:
        self.backward(samples)
        weights = [p for p in self.network.parameters() if p.grad is not None]
        saved = [p.data.clone() for p in weights]
        norm = torch.stack([(p.data.abs() * p.grad).norm() for p in weights]).norm()
        for p in weights:
            p.data.add_(p.data**2 * p.grad * (RHO / (norm + 1e-12)))
        self.backward(samples)
        for p, value in zip(weights, saved, strict=True):
            p.data.copy_(value)
        self.optimizer.step()

    def learn(self, samples: Sequence[Sample], replayed: Sequence[Sample]) -> None:
        before = [p.data.clone() for p in self.network.parameters()]
        for sample in samples:
            self.sam([sample])
        self.sam(replayed)
        for p, value in zip(self.network.parameters(), before, strict=True):
            p.data.copy_(value + BETA * (p.data - value))


class Samples(torch.utils.data.Dataset):
    """Random smooth images, label maps of compact regions, landmarks: what costs like a pair of a real data set."""

    def __init__(self, size: Sequence[int], classes: int, count: int = 2) -> None:
        generator = torch.Generator().manual_seed(0)
        self.samples = [self._sample(size, classes, generator) for _ in range(count)]

    @staticmethod
    def _sample(size: Sequence[int], classes: int, generator: torch.Generator) -> Sample:
        sample: Sample = {"labels": list(range(1, classes + 1)), "task": "random"}
        extent = torch.tensor([n - 1.0 for n in size])
        for side in ("fixed", "moving"):
            coarse = torch.rand(1, 1, 6, 6, 6, generator=generator)
            sample[f"{side}_image"] = F.interpolate(coarse, size=tuple(size), mode="trilinear")[0]
            seeds = torch.randint(0, classes + 1, (1, 1, 8, 8, 8), generator=generator).float()
            seeds.view(-1)[: classes + 1] = torch.arange(classes + 1.0)
            sample[f"{side}_label"] = F.interpolate(seeds, size=tuple(size), mode="nearest")[0].to(torch.int16)
            sample[f"{side}_mask"] = torch.ones(1, *size, dtype=torch.uint8)
            sample[f"{side}_points"] = torch.rand(POINTS, 3, generator=generator) * extent
        return sample

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def settings(self) -> dict[str, Any]:
        return {}


def our_trainer(network: LKUNet, dataset: Samples, run_dir: str) -> ContinualTrainer:
    objective = RegistrationObjective(window=WINDOW, label_sigma=SIGMA, steps=STEPS)
    return ContinualTrainer(
        device=torch.device("cpu"),
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), lr=1e-4, weight_decay=1e-5),
        loss_function=objective,
        dataset=dataset,
        strategy=SAMCL(ReservoirMemory(len(dataset), on_disk=False), rho=RHO, beta=BETA),
        run_dir=run_dir,
    )


def check_agreement(trainer: ContinualTrainer, reference: StockTrainer, sample: Sample) -> None:
    """Raise unless loss and gradients of both agree on one sample."""
    ours = trainer.backward([trainer.prepare(sample)])["loss"].item()
    stock = reference.backward([sample])
    a = torch.cat([p.grad.flatten() for _, p in sorted(trainer.network.named_parameters())])
    b = torch.cat([p.grad.flatten() for _, p in sorted(reference.network.named_parameters())])
    apart = ((a - b).norm() / b.norm()).item()
    if abs(ours - stock) > 1e-4 * abs(stock) or apart > 1e-2:
        raise SystemExit(f"losses {ours:.6f} and {stock:.6f}, gradients apart by {apart:.2%}: nothing is timed")
    print(f"agreement: losses {ours:.6f} and {stock:.6f}, gradients apart by {apart:.3%} of their length")


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(size: Sequence[int], classes: int, rounds: int) -> tuple[list[float], list[float]]:
    torch.manual_seed(0)
    network = LKUNet(3, WIDTH, DEPTH)
    nn.init.normal_(network.head.conv.weight, std=1e-3)  # at zero there is no motion, and no gradient below the head
    dataset = Samples(size, classes)
    with tempfile.TemporaryDirectory() as folder:
        trainer = our_trainer(copy.deepcopy(network), dataset, folder)
        reference = StockTrainer(branched(network))
        check_agreement(trainer, reference, dataset[0])
        times: tuple[list[float], list[float]] = ([], [])
        for round_ in range(rounds + 1):
            sample = dataset[round_ % len(dataset)]
            taken = (seconds(lambda s=sample: reference.learn([s], [s])), seconds(lambda s=sample: trainer.learn([s])))
            if round_ > 0:
                for kept, value in zip(times, taken, strict=True):
                    kept.append(value)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--classes", type=int, default=36)
    parser.add_argument("--size", type=int, nargs=3, action="append", help="may be repeated; 64^3 and 112x96x112")
    parser.add_argument("--check", action="store_true", help="fail where ours is slower, at 32^3")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sizes = [[32, 32, 32]] if options.check else options.size or [[64, 64, 64], [112, 96, 112]]
    print(
        f"torch {torch.__version__}, MONAI {monai.__version__}, {options.threads} threads, {options.classes} classes, "
        f"{options.rounds} rounds; one iteration: batch 1 and one replayed pair, four passes"
    )
    slower = False
    for size in sizes:
        stock, ours = measure(size, options.classes, options.rounds)
        median = statistics.median(stock) / statistics.median(ours)
        slower = slower or median < 1
        print(
            f"{'x'.join(map(str, size)):>14}: stock {statistics.median(stock):7.2f} s, "
            f"ours {statistics.median(ours):7.2f} s, "
            f"ratio {median:.1f} (of the minima {min(stock) / min(ours):.1f})"
        )
    if options.check and slower:
        sys.exit("ours is slower than the reference")


if __name__ == "__main__":
    main()
