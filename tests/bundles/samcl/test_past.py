import pytest
import torch

from bundles.samcl.scripts.diffusion_memory import DiffusionMemory
from bundles.samcl.scripts.memory import ReservoirMemory
from bundles.samcl.scripts.past import EmbeddedPast
from shared.files import save_tensors
from shared.host_run import HostRun

CASES = [{"image": "a.nii.gz", "label": "b.nii.gz"}]
FOLDER = [{"fixed_image": "a", "moving_image": "b", "task": "brain"}]
TASKS = ["synth_brain_mr", "synth_lung_ct"]


@pytest.fixture
def past(tmp_path):
    (tmp_path / "models").mkdir()
    save_tensors(tmp_path / "models" / "model.pt", {"weight": torch.zeros(3)})

    def make(data, size=(8, 8, 8), capacity=200, on_disk=False):
        host = HostRun(data, tmp_path, "task", rehearses=True)
        where = {"host": host, "folder": tmp_path / "past", "tasks": TASKS, "options": {"spatial_size": size}}
        return EmbeddedPast(ReservoirMemory(capacity, on_disk), images=2, **where)

    return make


def test_weights_without_a_memory_get_pairs_of_what_they_learnt(past, capsys):
    filled = past(CASES)
    filled.fill()
    drawn = filled.memory.draw(10, torch.Generator().manual_seed(0))
    assert {sample["task"] for sample in drawn} == set(TASKS)
    assert len(drawn) == len(filled.memory) == 2 + 2
    assert drawn[0]["fixed_image"].shape == (1, 8, 8, 8)
    assert filled.memory.seen == 2400
    assert "rehearsed are 4 pairs" in capsys.readouterr().out


def test_a_memory_on_disk_is_filled_before_it_has_a_folder(past, tmp_path):
    in_ram, on_disk = past(CASES), past(CASES, on_disk=True)
    for filled in (in_ram, on_disk):
        filled.fill()
    assert on_disk.memory.nbytes > 0
    index = on_disk.memory.save(tmp_path / "memory")
    assert len(list((tmp_path / "memory").glob("pair_*.npz"))) == len(index["numbers"]) == 4
    drawn = [filled.memory.draw(4, torch.Generator().manual_seed(0)) for filled in (in_ram, on_disk)]
    assert all(torch.equal(a["fixed_image"], b["fixed_image"]) for a, b in zip(*drawn, strict=True))


def test_a_small_memory_is_not_overfilled(past):
    filled = past(CASES, capacity=3)
    filled.fill()
    assert len(filled.memory) == 3


def test_folders_2d_images_and_fresh_networks_are_left_alone(past, tmp_path, capsys):
    for filled in (past(FOLDER), past(CASES, size=(8, 8))):
        filled.fill()
        assert len(filled.memory) == 0
    assert "nothing learnt before is rehearsed" in capsys.readouterr().out
    (tmp_path / "models" / "model.pt").unlink()
    filled = past(CASES)
    filled.fill()
    assert len(filled.memory) == 0
    assert not (tmp_path / "past").exists()


def test_a_memory_of_generated_pairs_stays_empty(tmp_path, capsys):
    (tmp_path / "models").mkdir()
    save_tensors(tmp_path / "models" / "model.pt", {"weight": torch.zeros(3)})
    host, memory = HostRun(CASES, tmp_path, "task", rehearses=True), DiffusionMemory(4)
    options = {"host": host, "folder": tmp_path / "past", "tasks": TASKS, "options": {"spatial_size": (8, 8, 8)}}
    EmbeddedPast(memory, **options).fill()
    assert (len(memory), memory.seen) == (0, 0)
    assert "weights without a generator: nothing learnt before is rehearsed" in capsys.readouterr().out
