"""Two gloo ranks on the CPU, by the numbers: averaged gradients, equal weights, resuming."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from bundles.samcl.scripts.memory import ReservoirMemory
from bundles.samcl.scripts.strategies import SAMCL, Sequential
from shared.files import load_tensors, save_tensors
from tests.bundles.samcl.tiny import make_network, make_trainer, same


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank_main(rank: int, port: int, folder: Path, strategy: str, stop_at: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    network = torch.nn.parallel.DistributedDataParallel(make_network(), broadcast_buffers=False)
    chosen = Sequential() if strategy == "sequential" else SAMCL(ReservoirMemory(3), rho=0.5)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    trainer = make_trainer(folder / "run", chosen, network=network, optimizer=optimizer, batch_size=1)
    if stop_at:
        from ignite.engine import Events

        trainer.add_event_handler(
            Events.ITERATION_COMPLETED, lambda engine: engine.terminate() if engine.state.iteration == stop_at else None
        )
        trainer.run_directory.finish = lambda *args: None
        save = trainer.save
        trainer.save = lambda: save() if trainer.state.iteration != stop_at else None
    trainer.run()
    save_tensors(folder / f"rank{rank}.pt", network.module.state_dict())
    dist.destroy_process_group()


def two_ranks(folder: Path, strategy: str, stop_at: int = 0) -> list[dict[str, torch.Tensor]]:
    folder.mkdir(exist_ok=True)
    mp.spawn(rank_main, (free_port(), folder, strategy, stop_at), nprocs=2)
    return [load_tensors(folder / f"rank{rank}.pt") for rank in (0, 1)]


def test_two_ranks_of_one_pair_are_one_rank_of_two(tmp_path):
    """The ranks share one stream of pairs, so averaged gradients are those of the joint batch."""
    first, second = two_ranks(tmp_path / "two", "sequential")
    assert same(first, second)
    network = make_network()
    single = make_trainer(
        tmp_path / "one",
        Sequential(),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        batch_size=2,
    )
    single.run()
    start = make_network().state_dict()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-6)
    assert not same(first, start)


def test_samcl_keeps_the_ranks_equal_and_their_memories_apart(tmp_path):
    first, second = two_ranks(tmp_path, "samcl")
    assert same(first, second)
    memories = [
        sorted(p.read_bytes() for p in (tmp_path / "run" / "memory" / f"rank{r}").glob("*.npz")) for r in (0, 1)
    ]
    assert len(memories[0]) == len(memories[1]) == 3
    assert memories[0] != memories[1]


@pytest.mark.parametrize("strategy", ["sequential", "samcl"])
def test_two_ranks_go_on_after_a_stop(tmp_path, strategy):
    whole, _ = two_ranks(tmp_path / "whole", strategy)
    two_ranks(tmp_path / "part", strategy, stop_at=3)
    assert load_tensors(tmp_path / "part" / "run" / "state.pt")["iteration"] == 2
    resumed, other = two_ranks(tmp_path / "part", strategy)
    assert same(resumed, other)
    assert same(whole, resumed)
