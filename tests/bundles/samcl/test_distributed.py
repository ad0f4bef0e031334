"""Two gloo ranks on the CPU, by the numbers: averaged gradients, equal weights, resuming."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from bundles.samcl.scripts.consolidation import EWC, SI, LwF
from bundles.samcl.scripts.gradient_projection import GPM
from bundles.samcl.scripts.memory import ReservoirMemory
from bundles.samcl.scripts.strategies import AGEM, SAMCL, Sequential
from shared.data.pairs import stack_pairs
from shared.distributed import from_first_rank, on_all_ranks
from shared.files import load_tensors, save_tensors
from tests.bundles.samcl.tiny import make_network, make_trainer
from tests.tiny import TinyPairs, same


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


CONSOLIDATING = {
    "ewc": lambda: EWC(strength=100.0, samples=6, normalise=False),
    "si": lambda: SI(strength=100.0),
    "lwf": lambda: LwF(strength=100.0),
    "gpm": lambda: GPM(threshold=0.9, samples=3, patches=20),
    "agem": lambda: AGEM(ReservoirMemory(1)),  # one rank may lose its last old pair before the other
}


def two_tasks_main(rank: int, port: int, folder: Path) -> None:
    """Run two tasks with each strategy in one process group; save what each rank then holds."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    for name, make in CONSOLIDATING.items():
        for task in (0, 1):
            network = torch.nn.parallel.DistributedDataParallel(make_network(), broadcast_buffers=False)
            trainer = make_trainer(
                folder / name / str(task),
                make(),
                network=network,
                optimizer=torch.optim.Adam(network.parameters(), lr=1e-2),
                batch_size=1,
                dataset=TinyPairs(seed=task),
                task=f"task{task}",
                init_from=folder / name / "0" if task else None,
            )
            trainer.run()
            state = {} if trainer.strategy.memory else trainer.strategy.state_dict()
            content = {"network": network.module.state_dict(), "strategy": state, "passes": trainer.passes}
            save_tensors(folder / f"{name}{task}_{rank}.pt", content)
    agreed = {"mixed": on_all_ranks(rank == 0, "cpu"), "all": on_all_ranks(True, "cpu")}
    save_tensors(folder / f"agreed_{rank}.pt", {**agreed, "first": from_first_rank(lambda: [rank])})
    dist.destroy_process_group()


def equal(first: object, second: object) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[k], second[k]) for k in first)
    return torch.equal(torch.as_tensor(first), torch.as_tensor(second))


def test_ranks_remember_the_same(tmp_path):
    """Weights, and importance, teacher and bases, on both ranks; Fisher information is that of single pairs."""
    mp.spawn(two_tasks_main, (free_port(), tmp_path), nprocs=2)
    for rank in (0, 1):
        assert load_tensors(tmp_path / f"agreed_{rank}.pt") == {"mixed": False, "all": True, "first": [0]}
    for name in CONSOLIDATING:
        for task in (0, 1):
            first, second = (load_tensors(tmp_path / f"{name}{task}_{rank}.pt") for rank in (0, 1))
            assert equal(first, second), (name, task)
    network, pairs = make_network(), TinyPairs()
    held = load_tensors(tmp_path / "ewc0_0.pt")
    network.load_state_dict(held["network"])
    trainer, squares = make_trainer(tmp_path / "by_hand", Sequential(), network=network), {}
    for sample in (trainer.prepare(pairs[i]) for i in range(6)):
        loss, _ = trainer.loss_function(network(stack_pairs([sample])), [sample])
        named = dict(network.named_parameters())
        for key, g in zip(named, torch.autograd.grad(loss, list(named.values())), strict=True):
            squares[key] = squares.get(key, 0) + g**2 / 6
    for key, expected in squares.items():
        torch.testing.assert_close(held["strategy"]["importance"][key], expected, rtol=1e-3, atol=1e-9, msg=key)
