"""Two gloo ranks on the CPU, by the numbers: the trainer averages gradients itself, also those of the alignment."""

from __future__ import annotations

import socket
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from bundles.smdr.scripts.replay import ReplayDataset
from bundles.smdr.scripts.strategies import SMDR
from shared.continual import Sequential
from shared.files import load_tensors, save_tensors
from tests.bundles.smdr.tiny_segmenter import make_network, make_trainer, sgd, write_set
from tests.tiny import same


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank_main(rank: int, port: int, folder: Path, name: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    network = make_network(seed=rank)  # the first rank's weights count
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    options = {"network": network, "optimizer": optimizer}
    if name == "sequential":
        trainer = make_trainer(folder / "run", Sequential(), batch_size=1, augmentation=None, **options)
    else:
        strategy = SMDR(ReplayDataset(folder / "set"), step=0.1)
        trainer = make_trainer(folder / "run", strategy, batch_size=4, **options)
    trainer.run()
    save_tensors(folder / f"rank{rank}.pt", network.state_dict())
    dist.destroy_process_group()


def two_ranks(folder: Path, name: str) -> list[dict[str, torch.Tensor]]:
    folder.mkdir(exist_ok=True)
    mp.spawn(rank_main, (free_port(), folder, name), nprocs=2)
    return [load_tensors(folder / f"rank{rank}.pt") for rank in (0, 1)]


def test_two_ranks_of_one_slice_are_one_rank_of_two(tmp_path):
    first, second = two_ranks(tmp_path / "two", "sequential")
    assert same(first, second)
    single = make_trainer(tmp_path / "one", Sequential(), batch_size=2, augmentation=None, **sgd())
    single.run()
    for name, value in single.network.state_dict().items():
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-6)
    assert not same(first, make_network().state_dict())


def test_alignment_keeps_the_ranks_equal(tmp_path):
    write_set(tmp_path / "set", "earlier")
    first, second = two_ranks(tmp_path, "smdr")
    assert same(first, second)
    assert not same(first, make_network().state_dict())
