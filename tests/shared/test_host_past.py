import pytest
import torch

from shared.data.learn2reg import read_pairs
from shared.data.pairs import PairDataset
from shared.data.pooled import PooledPairs
from shared.data.synthetic import write_registration_tasks
from shared.files import save_tensors
from shared.host_past import EmbeddedPairs
from shared.host_run import HostRun

TASKS = ["synth_brain_mr", "synth_lung_ct"]
OPTIONS = {"spatial_size": (8, 8, 8)}


@pytest.fixture
def cases(tmp_path):
    """Three images of a host and the weights that it serves."""
    (tmp_path / "models").mkdir()
    save_tensors(tmp_path / "models" / "model.pt", {"weight": torch.zeros(3)})
    counts = {"training": 3, "validation": 0, "test": 0}
    folder = write_registration_tasks(tmp_path / "data", ["synth_abdomen_ct"], size=16, seed=3, counts=counts)
    images = sorted((folder["synth_abdomen_ct"] / "imagesTr").iterdir())
    return [{"image": str(i), "label": str(i).replace("imagesTr", "labelsTr")} for i in images]


def past(root, data, **options):
    return EmbeddedPairs(HostRun(data, root, "task"), root / "past", TASKS, OPTIONS, images=2, **options)


def test_every_second_sample_is_of_a_task_that_the_weights_have_learnt(tmp_path, cases, capsys):
    own = PairDataset(cases, (8, 8, 8))
    both = past(tmp_path, cases).beside(own)
    assert [both[i]["task"] for i in range(4)] == ["images", TASKS[0], "images", TASKS[1]]
    assert len(both) == 2 * len(own)
    assert {"0", "1"} == set(both.settings())
    assert "every second pair is one of 4" in capsys.readouterr().out


def test_the_embedded_pairs_are_not_those_of_the_tasks_folders(tmp_path, cases):
    found = past(tmp_path, cases).pairs()
    write_registration_tasks(tmp_path / "usual", TASKS[:1], counts={"training": 2, "validation": 0, "test": 0})
    usual = PairDataset(read_pairs(tmp_path / "usual", TASKS[0]), (8, 8, 8))[0]["fixed_image"]
    assert not torch.equal(PairDataset(found[:1], (8, 8, 8))[0]["fixed_image"], usual)


def test_folders_fresh_networks_and_zero_images_are_left_alone(tmp_path, cases):
    own = PairDataset(cases, (8, 8, 8))
    pairs = [{**pair, "task": "mine"} for pair in own.pairs]
    assert past(tmp_path, pairs).beside(own) is own
    none = EmbeddedPairs(HostRun(cases, tmp_path, "task"), tmp_path / "past", TASKS, OPTIONS, images=0)
    assert none.beside(own) is own
    (tmp_path / "models" / "model.pt").unlink()
    assert past(tmp_path, cases).beside(own) is own
    assert not (tmp_path / "past").exists()


def test_several_own_tasks_count_as_one(tmp_path, cases):
    own = PooledPairs([PairDataset(cases, (8, 8, 8)), PairDataset(cases[:2], (8, 8, 8))])
    both = past(tmp_path, cases).beside(own)
    assert [both[i]["task"] for i in range(4)] == ["images", TASKS[0], "images", TASKS[1]]
