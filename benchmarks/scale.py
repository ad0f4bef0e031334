"""What a SAMCL iteration costs as volume, classes, tasks, memory and ranks grow.

Run from the repository root: python -m benchmarks.scale --threads 1 --out scale.md
Every row is a process of its own (with ranks, one `torchrun` of gloo ranks on the CPU), so that its peak memory is its
own: it trains with `samcl`'s network, objective, strategy and trainer on random smooth pairs, and writes its checkpoint
as training does. One iteration: a batch of one pair and one replayed pair, two SAM steps, four passes; the first one
warms up. Rows that grow the memory begin with it full. `--only volume` measures one sweep, `--check` tiny sizes of all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import monai
import torch
import torch.distributed as dist
from ignite.engine import Events
from torch import nn

from benchmarks.step import Samples
from bundles.samcl.scripts.memory import ReservoirMemory
from bundles.samcl.scripts.network import LKUNet
from bundles.samcl.scripts.objective import RegistrationObjective
from bundles.samcl.scripts.strategies import SAMCL
from bundles.samcl.scripts.trainer import ContinualTrainer
from shared.distributed import start_processes, stop_processes
from shared.kernels import warp_backend

MIB = 2**20


@dataclass
class Case:
    """One row: what is trained, and how often it is measured."""

    size: tuple[int, ...] = (64, 64, 64)
    classes: int = 14
    tasks: int = 1
    pairs: int = 4  # in the memory
    on_disk: bool = False
    ranks: int = 1
    iterations: int = 3
    width: int = 8
    depth: int = 3
    threads: int = 1


def sweeps(base: Case, tiny: bool) -> dict[str, list[Case]]:
    """Return the rows by what grows in them."""
    if tiny:
        volumes, capacities = [(12,) * 3, (16,) * 3], [2, 4]
        base = replace(base, size=volumes[0], width=2, depth=1, iterations=2)
    else:
        volumes, capacities = [(32,) * 3, (64,) * 3, (96,) * 3, (112, 96, 112)], [10, 50, 200]
        base = replace(base, size=(48,) * 3)
    return {
        "volume": [replace(base, size=size) for size in volumes],
        "classes": [replace(base, classes=classes) for classes in (5, 14, 36)],
        "tasks": [replace(base, tasks=tasks) for tasks in (1, 2, 4)],
        "memory": [replace(base, pairs=n, on_disk=disk) for disk in (False, True) for n in capacities],
        "ranks": [replace(base, ranks=ranks) for ranks in (1, 2)],
    }


class Clock:
    """Wall and CPU seconds of every iteration of a trainer."""

    def __init__(self, trainer: ContinualTrainer) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []
        trainer.add_event_handler(Events.ITERATION_STARTED, self._start)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._stop)

    def _start(self) -> None:
        self._since = time.perf_counter(), time.process_time()

    def _stop(self) -> None:
        self.wall.append(time.perf_counter() - self._since[0])
        self.cpu.append(time.process_time() - self._since[1])


def trainer_of(case: Case, task: int, folder: Path) -> ContinualTrainer:
    torch.manual_seed(0)
    network: nn.Module = LKUNet(3, case.width, case.depth)
    nn.init.normal_(network.head.conv.weight, std=1e-3)
    memory = ReservoirMemory(case.pairs, case.on_disk)
    if dist.is_initialized():
        network = nn.parallel.DistributedDataParallel(network, broadcast_buffers=False)
    return ContinualTrainer(
        device=torch.device("cpu"),
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), lr=1e-4),
        loss_function=RegistrationObjective(window=5, steps=5, downsize=2),
        dataset=Samples(case.size, case.classes),
        strategy=SAMCL(memory),
        run_dir=folder / str(task),
        init_from=folder / str(task - 1) if task else None,
        task=f"task{task}",
        max_epochs=1,
        epoch_length=case.iterations + 1,
    )


def fill(trainer: ContinualTrainer) -> None:
    """Offer pairs until the memory is full."""
    memory, dataset = trainer.strategy.memory, trainer.data_loader.dataset
    memory.save(trainer.run_directory.memory)
    while len(memory) < memory.capacity:
        memory.offer(dataset[len(memory) % len(dataset)], trainer.generator)


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Train the case's tasks one after another; return what the last one cost."""
    if case.ranks > 1:
        start_processes()
    for task in range(case.tasks):
        trainer = trainer_of(case, task, folder)
        if task == 0:
            trainer.add_event_handler(Events.STARTED, fill)
        clock = Clock(trainer)
        trainer.run()
    memory = trainer.strategy.memory
    run = trainer.run_directory
    found = {
        "wall": clock.wall[1:],
        "cpu": clock.cpu[1:],
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "checkpoint": run.state.stat().st_size,
        "memory_files": sum(p.stat().st_size for p in run.memory.glob("*.npz")),
        "memory_ram": 0 if case.on_disk else memory.nbytes,
        "wait_share": trainer.data_loader.waited / trainer.seconds,
    }
    if case.ranks > 1:
        stop_processes()
    return found


def work(options: argparse.Namespace) -> None:
    """Measure one case in this process and write what was found."""
    case = Case(**json.loads(options.work))
    case = replace(case, size=tuple(case.size))
    torch.set_num_threads(case.threads)
    folder = Path(options.out)
    rank = os.environ.get("RANK", "0")
    (folder / f"found{rank}.json").write_text(json.dumps(measure(case, folder)))


def in_processes(case: Case) -> list[dict[str, Any]]:
    """Measure a case in processes of its own; return what each found."""
    launch = [sys.executable]
    if case.ranks > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={case.ranks}"]
    with tempfile.TemporaryDirectory() as folder:
        command = [*launch, "-m", "benchmarks.scale", "--work", json.dumps(asdict(case)), "--out", folder]
        environment = {**os.environ, "OMP_NUM_THREADS": str(case.threads), "OMP_WAIT_POLICY": "passive"}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise SystemExit(f"{case}: failed\n{result.stderr[-2000:]}")
        return [json.loads((Path(folder) / f"found{rank}.json").read_text()) for rank in range(case.ranks)]


def row(sweep: str, case: Case, found: list[dict[str, Any]]) -> str:
    first = found[0]
    size = "x".join(map(str, case.size))
    place = "disk" if case.on_disk else "RAM"
    cpu = sum(statistics.median(f["cpu"]) for f in found)
    cells = [
        sweep,
        size,
        case.classes,
        case.tasks,
        f"{case.pairs} pairs, {place}",
        case.ranks,
        f"{statistics.median(first['wall']):.2f}",
        f"{cpu:.2f}",
        f"{cpu / case.ranks:.2f}",
        f"{max(f['peak'] for f in found) / MIB:.0f}",
        f"{first['checkpoint'] / MIB:.1f}",
        f"{first['memory_ram'] / MIB:.1f} / {first['memory_files'] / MIB:.1f}",
        f"{first['wait_share']:.1%}",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


HEADER = [
    *("grows", "volume", "classes", "tasks", "memory", "ranks", "wall s/iteration", "CPU s/iteration", "of a rank"),
    *("peak MiB a rank", "state.pt MiB", "memory MiB RAM / files", "waited"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="a rank")
    parser.add_argument("--iterations", type=int, default=3, help="measured ones a row")
    parser.add_argument("--only", choices=("volume", "classes", "tasks", "memory", "ranks"), action="append")
    parser.add_argument("--check", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--out", help="also write the table there")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options)
        return
    lines = [
        f"torch {torch.__version__}, MONAI {monai.__version__}, {platform.machine()}, {os.cpu_count()} cores, "
        f"{options.threads} threads a rank, kernels: {warp_backend().name}, medians of {options.iterations} iterations",
        "",
        "| " + " | ".join(HEADER) + " |",
        "|" + "---|" * len(HEADER),
    ]
    print("\n".join(lines), flush=True)
    base = Case(threads=options.threads, iterations=options.iterations)
    for sweep, cases in sweeps(base, options.check).items():
        for case in cases if not options.only or sweep in options.only else []:
            lines.append(row(sweep, case, in_processes(case)))
            print(lines[-1], flush=True)
    if options.out:
        Path(options.out).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
