"""Replay of generated pairs: what is drawn, what is kept, and that no real pair is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bundles.samcl.scripts.diffusion_memory import DiffusionMemory
from bundles.samcl.scripts.memory import ReservoirMemory
from bundles.samcl.scripts.network import LKUNet
from bundles.samcl.scripts.objective import RegistrationObjective
from bundles.samcl.scripts.pair_code import PairCode, labels_of
from bundles.samcl.scripts.pair_files import read_pair
from bundles.samcl.scripts.pair_generator import PairGenerator
from bundles.samcl.scripts.strategies import AGEM, ER, SAMCL
from shared.diffusion import load_generator
from shared.errors import InputError
from shared.files import load_tensors
from tests.bundles.samcl.tiny import make_trainer
from tests.tiny import SIZE, Killed, TinyPairs, kill_at, same, weights

NETWORK = {
    **{"patch": 2, "features": (8, 8), "attention": (False, True), "head_channels": 8, "tokens": 2, "token_size": 8},
    **{"conditioning": "film", "timesteps": 10, "schedule": "cosine", "prediction": "sample"},
}


def make_memory(capacity: int = 4, **options) -> DiffusionMemory:
    options = {"iterations": 2, "batch_size": 2, "label_bits": 2, "steps": 2, "sampling_batch_size": 2, **options}
    return DiffusionMemory(capacity, PairGenerator(**{"network": NETWORK, "patience": 200, **options}))


class Pairs(TinyPairs):
    """Six smooth random pairs in 2D or 3D, with any labels."""

    def __init__(self, seed: int = 0, dims: int = 2, values: tuple[int, ...] = (5, 300)) -> None:
        super().__init__(seed)
        self.dims, self.values = dims, values
        knots = torch.rand(6, 2, *[4] * dims, generator=torch.Generator().manual_seed(seed))
        mode = {2: "bilinear", 3: "trilinear"}[dims]
        self.images = F.interpolate(knots, size=(SIZE,) * dims, mode=mode, align_corners=True)

    def __getitem__(self, index: int) -> dict:
        sample = {k: v for k, v in super().__getitem__(index).items() if "label" not in k}
        for side in ("fixed", "moving"):
            image = sample[f"{side}_image"]
            sample[f"{side}_mask"] = torch.ones_like(image, dtype=torch.uint8)
            if self.values:
                sample[f"{side}_label"] = sum(
                    v * (image > 0.4 + 0.2 * i) for i, v in enumerate(self.values[:1])
                ).short()
                sample[f"{side}_label"][image > 0.6] = self.values[-1]
                sample["labels"] = sorted(set(self.values))
        return sample


def trainer_of(folder, dims: int, number: int = 0, strategy=None, previous=None, **options):
    torch.manual_seed(0)
    network = LKUNet(dims, channels=2, depth=1)
    torch.nn.init.normal_(network.head.conv.weight, std=0.05)
    options = {"dataset": Pairs(number, dims), "task": f"task{number}", "init_from": previous, **options}
    objective = RegistrationObjective(window=3, steps=2)
    return make_trainer(folder, strategy or SAMCL(make_memory()), network=network, loss_function=objective, **options)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("values", [(5, 300), (1, 2, 3), ()])
def test_a_pair_becomes_channels_and_comes_back(dims, values):
    dataset = Pairs(0, dims, values)
    code = PairCode(labels_of(dataset, "task"), bits=2)
    for index in range(len(dataset)):
        sample = dataset[index]
        sample["moving_mask"][..., :2] = 0
        channels = code.encode(sample)
        assert channels.shape == (8, *[SIZE] * dims)
        assert float(channels.abs().max()) <= 1
        found = code.decode(channels, "task")
        assert {k for k in found if k != "labels"} == {k for k in sample if k not in ("pair", "labels")}
        for side in ("fixed", "moving"):
            torch.testing.assert_close(found[f"{side}_image"], sample[f"{side}_image"])
            assert torch.equal(found[f"{side}_mask"], sample[f"{side}_mask"])
            if values:
                assert torch.equal(found[f"{side}_label"], sample[f"{side}_label"])
        assert code.fault(found) is None


def test_bits_that_stand_for_no_label_are_background():
    code = PairCode([4, 7], bits=2)
    channels = torch.ones(8, 4, 4)
    sample = code.decode(channels, "task")  # code 3, of two labels
    assert not sample["fixed_label"].any()
    assert code.fault(sample) == "no common label"
    channels[5] = -1
    channels[7] = -1
    assert code.decode(channels, "task")["labels"] == [4]
    channels[2] = -1
    assert code.fault(code.decode(channels, "task")) == "empty mask"


@pytest.mark.parametrize("dims", [2, 3])
def test_what_is_kept_of_a_task_is_generated(tmp_path, dims):
    """Every file in the run's folder is looked at: none holds an image of the training."""
    trainer = trainer_of(tmp_path, dims)
    trainer.run()
    memory = trainer.strategy.memory
    assert len(memory) == 4
    real = torch.cat([trainer.data_loader.dataset.images[:, c] for c in (0, 1)]).flatten(1)
    files = sorted(tmp_path.rglob("*.npz"))
    assert len(files) == 4
    kept = [read_pair(path)[f"{side}_image"].float().flatten() for path in files for side in ("fixed", "moving")]
    assert float(torch.cdist(torch.stack(kept), real, p=float("inf")).min()) > 0.01
    assert all(not isinstance(pair.get("pair"), dict) for pairs in memory._pairs.values() for _, pair in pairs)
    raw = [bits for image in trainer.data_loader.dataset.images.flatten(0, 1) for bits in (image, image.half())]
    for path in [p for p in tmp_path.rglob("*") if p.is_file()]:
        content = path.read_bytes()  # torch.save does not compress
        assert not [i for i, image in enumerate(raw) if image.numpy().tobytes() in content], path


@pytest.mark.parametrize("dims", [2, 3])
def test_two_tasks_killed_at_any_place_end_with_the_same_bits(tmp_path, dims, monkeypatch):
    def task(folder, number):
        previous = tmp_path / folder / str(number - 1) if number else None
        return trainer_of(tmp_path / folder / str(number), dims, number, previous=previous)

    def killed_while(trainer, name):
        work = getattr(PairGenerator, name)

        def stop(self, *args):
            work(self, *args) if name == "learn" else next(work(self, *args))
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(PairGenerator, name, stop)
            with pytest.raises(Killed):
                trainer.run()

    for number in (0, 1):
        whole = task("whole", number)
        whole.run()
        kill_at(task("pieces", number), 3)
        killed_while(task("pieces", number), "learn")
        killed_while(task("pieces", number), "draw")
        torch.manual_seed(99)
        pieces = task("pieces", number)
        pieces.run()
        assert same(weights(whole), weights(pieces))
        one, two = (t.strategy.memory.draw(9, torch.Generator().manual_seed(1)) for t in (whole, pieces))
        assert len(one) == 4
        for a, b in zip(one, two, strict=True):
            assert a.keys() == b.keys()
            assert all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)
        models = [load_tensors(t.run_directory.memory / "generator" / "model.pt") for t in (whole, pieces)]
        assert same(*models)
    assert {sample["task"] for sample in one} == {"task0", "task1"}
    assert list(load_generator(pieces.run_directory.memory / "generator").sites) == ["task0", "task1"]


def test_the_present_task_is_drawn_as_often_as_a_reservoir_would(tmp_path):
    trainer_of(tmp_path / "0", 2).run()
    trainer = trainer_of(tmp_path / "1", 2, 1, previous=tmp_path / "0")
    trainer.run_directory.check_settings({})
    memory = trainer.strategy.memory
    state = load_tensors(tmp_path / "0" / "state.pt")
    from shared.run_directory import RunDirectory

    trainer.inherit(state, RunDirectory(tmp_path / "0", read_only=True))
    trainer.begin()
    random = torch.Generator().manual_seed(0)
    assert memory.seen == memory._past == 8
    assert {s["task"] for s in memory.draw(4, random)} == {"task0"}
    for _ in range(24):
        assert memory.offer(trainer.data_loader.dataset[0], random) is False
    drawn = [s["task"] for _ in range(100) for s in memory.draw(4, random)]
    assert len(drawn) == 400
    assert drawn.count("tiny") / 400 == pytest.approx(0.75, abs=0.08)  # its dataset calls the task so
    assert {s["task"] for s in memory.draw(9, random, before=8)} == {"task0"}
    assert len(memory) == 4


def test_a_full_memory_gives_each_task_the_same_share(tmp_path):
    previous = None
    for number in range(3):
        trainer = trainer_of(tmp_path / str(number), 2, number, ER(make_memory(5)), previous, max_epochs=1)
        trainer.run()
        previous = tmp_path / str(number)
    memory = trainer.strategy.memory
    assert {task: len(pairs) for task, pairs in memory._pairs.items()} == {"task0": 1, "task1": 1, "task2": 1}
    assert len(list((previous / "memory").rglob("pair_*.npz"))) == 3


def test_averaged_gradients_take_generated_pairs_as_reference(tmp_path):
    trainer_of(tmp_path / "0", 2, strategy=AGEM(make_memory()), max_epochs=1).run()
    trainer = trainer_of(tmp_path / "1", 2, 1, AGEM(make_memory()), tmp_path / "0", max_epochs=1)
    seen = []
    draw = trainer.strategy.memory.draw_ahead

    def watched(*args):
        coming = draw(*args)
        return lambda: seen.append(coming()) or seen[-1]

    trainer.strategy.memory.draw_ahead = watched
    trainer.run()
    assert {sample["task"] for drawn in seen for sample in drawn} == {"task0"}


def test_what_cannot_be_learnt_is_refused_before_the_training(tmp_path):
    class HalfLabelled(Pairs):
        def __getitem__(self, index):
            self.values = () if index % 2 else (1, 2)
            return super().__getitem__(index)

    def run(dataset, **options):
        trainer_of(tmp_path / "run", 2, strategy=SAMCL(make_memory(**options)), dataset=dataset).run()

    with pytest.raises(InputError, match="found 3 of 6 pairs with labels, expected all or none"):
        run(HalfLabelled())
    with pytest.raises(InputError, match="found 2 labels, expected at most 1 with label_bits 1; raise label_bits"):
        run(Pairs(), label_bits=1)
    with pytest.raises(InputError, match=r"found image_size \[8, 8\], expected multiples of 16"):
        run(Pairs(), network={**NETWORK, "patch": 8})
    with pytest.raises(InputError, match="found 3 sampling steps"):
        run(Pairs(), steps=3)
    with pytest.raises(InputError, match="found later_tasks 'all', expected one of: prompt, film, full"):
        make_memory(later_tasks="all")
    with pytest.raises(ValueError, match="found capacity 0"):
        DiffusionMemory(0)
    assert not list((tmp_path / "run").rglob("*.pt"))


def test_a_generator_that_draws_nothing_of_use_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(PairCode, "fault", lambda self, sample: "empty mask")
    with pytest.raises(InputError, match=r"task0: found 0 fit pairs among 8 generated ones \(\{'empty mask': 8\}\)"):
        trainer_of(tmp_path, 2, strategy=SAMCL(make_memory(patience=2))).run()


def test_a_memory_of_the_other_kind_and_a_known_task_are_refused(tmp_path):
    trainer_of(tmp_path / "0", 2, max_epochs=1).run()
    with pytest.raises(InputError, match="holds generated pairs, expected the real ones"):
        trainer_of(tmp_path / "1", 2, 1, SAMCL(ReservoirMemory(4)), tmp_path / "0").run()
    with pytest.raises(InputError, match="found task 'task0' in the memory already"):
        trainer_of(tmp_path / "2", 2, 0, previous=tmp_path / "0").run()
    trainer_of(tmp_path / "real", 2, 0, SAMCL(ReservoirMemory(4)), max_epochs=1).run()
    with pytest.raises(InputError, match="holds real pairs, expected generated ones"):
        trainer_of(tmp_path / "3", 2, 1, previous=tmp_path / "real").run()
