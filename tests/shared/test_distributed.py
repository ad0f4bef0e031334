"""Two gloo ranks on the CPU: agreeing, methods behind the wrapper, and the trainer with frozen weights."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from shared.distributed import call_method, from_first_rank, on_all_ranks
from shared.files import load_tensors, save_tensors
from shared.trainer import RegistrationTrainer
from tests.tiny import make_network, make_trainer, same

FROZEN = {"frozen": "encoder", "frozen_iterations": 3}


class AllScales(RegistrationTrainer):
    """Trains what a method of the network returns."""

    def call_network(self, network, image):
        return call_method(network, "fields", image)


def train(folder: Path, wrapped: bool, **options) -> RegistrationTrainer:
    network = make_network()
    if wrapped:
        network = torch.nn.parallel.DistributedDataParallel(network, broadcast_buffers=False)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5, momentum=0.9)
    options = {"max_epochs": 3, **FROZEN, **options}
    trainer = make_trainer(folder, AllScales, network=network, optimizer=optimizer, **options)
    trainer.run()
    return trainer


def rank_main(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    frozen = train(folder / "frozen", True, batch_size=1, max_epochs=1).network.module.state_dict()
    weights = train(folder / "run", True, batch_size=1).network.module.state_dict()
    agreed = {
        "mixed": on_all_ranks(rank == 0, "cpu"),
        "all": on_all_ranks(True, "cpu"),
        "first": from_first_rank(lambda: [rank]),
    }
    save_tensors(folder / f"rank{rank}.pt", {"weights": weights, "frozen": frozen, "agreed": agreed})
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """Return what two ranks hold after training with one pair each."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    mp.spawn(rank_main, (port, folder), nprocs=2)
    return [load_tensors(folder / f"rank{rank}.pt") for rank in (0, 1)]


def test_ranks_agree(ranks):
    for content in ranks:
        assert content["agreed"] == {"mixed": False, "all": True, "first": [0]}


def test_gradients_of_a_method_are_averaged_as_those_of_forward(ranks, tmp_path):
    """The ranks share one stream of pairs, so they end where one process ends with both pairs in its batch."""
    assert same(ranks[0]["weights"], ranks[1]["weights"])
    single = train(tmp_path, wrapped=False, batch_size=2).network.state_dict()
    for name, value in single.items():
        torch.testing.assert_close(ranks[0]["weights"][name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_frozen_weights_stay_behind_the_wrapper(ranks):
    start = make_network().state_dict()
    for name, value in ranks[0]["frozen"].items():
        assert torch.equal(value, start[name]) == name.startswith("encoder"), name
    assert not same(ranks[0]["weights"], ranks[0]["frozen"])


def test_without_a_wrapper_a_method_is_called_plainly():
    network, image = make_network(), torch.rand(1, 2, 8, 8, 8)
    assert torch.equal(call_method(network, "fields", image)["fields"][1], network(image))
    assert "forward" not in vars(network)


def test_one_process_decides_alone():
    assert on_all_ranks(True, "cpu")
    assert not on_all_ranks(False, "cpu")
    assert from_first_rank(lambda: 3) == 3
