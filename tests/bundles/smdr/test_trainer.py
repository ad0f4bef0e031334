"""The segmenter's runs: learning, killing and going on, the next site; augmentation."""

from __future__ import annotations

import json

import pytest
import torch

from bundles.smdr.scripts.augmentation import SliceAugmentation
from bundles.smdr.scripts.replay import ReplayDataset
from bundles.smdr.scripts.strategies import SMDR
from shared.continual import Sequential
from shared.errors import InputError
from shared.handlers import TrainingLog
from shared.trainer_checkpoint import restore
from tests.bundles.smdr.tiny_generator import TinySite
from tests.bundles.smdr.tiny_segmenter import BRIGHT, DARK, make_network, make_trainer, write_set
from tests.tiny import kill_at, same, weights


def test_training_finds_the_square(tmp_path):
    network = make_network()
    trainer = make_trainer(
        tmp_path,
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), lr=2e-2),
        max_epochs=20,
        epoch_length=3,
        train_handlers=[TrainingLog(tmp_path, interval=3)],
    )
    trainer.run()
    with torch.no_grad():
        found = network(torch.stack([s["image"] for s in BRIGHT.samples])).argmax(1, keepdim=True)
    truth = torch.stack([s["label"] for s in BRIGHT.samples])
    assert float((found == truth).float().mean()) > 0.95
    assert {"loss", "first_loss", "second_loss"} <= set(trainer.log_rows[0])


@pytest.mark.parametrize("replays", [False, True])
def test_a_run_in_two_parts_ends_with_the_same_bits(tmp_path, replays):
    sets = [write_set(tmp_path / "set", "other")] if replays else []

    def run(folder):
        return make_trainer(tmp_path / folder, SMDR(ReplayDataset(sets), step=0.1), max_epochs=4)

    whole = run("whole")
    whole.run()
    kill_at(run("parts"), 5)  # inside the third epoch: one iteration is lost and done again
    again = run("parts")
    again.run()
    assert same(weights(whole), weights(again))
    assert again.passes == whole.passes


def test_the_next_site_gets_weights_and_moments(tmp_path):
    first = make_trainer(tmp_path / "first", Sequential())
    first.run()
    second = make_trainer(tmp_path / "second", Sequential(), dataset=DARK, task="dark", init_from=tmp_path / "first")
    restore(second)
    assert same(weights(first), weights(second))
    moments = [[s["exp_avg"] for s in t.optimizer.state_dict()["state"].values()] for t in (first, second)]
    assert all(torch.equal(a, b) for a, b in zip(*moments, strict=True))


@pytest.mark.parametrize(
    "change",
    [
        {"augmentation": None},
        {"augmentation": SliceAugmentation(noise=0.1)},
        {"strategy": SMDR(ReplayDataset([]), step=0.2)},
        {"loss_function": torch.nn.CrossEntropyLoss()},
        {"dataset": DARK},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_folder_of_another_run_is_refused(tmp_path, change):
    kill_at(make_trainer(tmp_path), 3)
    with pytest.raises(InputError, match="holds a run with other settings"):
        make_trainer(tmp_path, **change).run()


def test_the_record_names_loss_and_strategy(tmp_path):
    make_trainer(tmp_path).run()
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["loss"]["name"] == "DiceCELoss"
    assert settings["loss"]["lambda_dice"] == 1.0
    assert settings["loss"]["dice"]["softmax"] is True
    assert settings["strategy"]["second_order"] is True
    assert settings["augmentation"].startswith("SliceAugmentation(flip=0.5")


def test_the_segmenter_in_3d_trains_too(tmp_path):
    network = make_network(spatial_dims=3)
    trainer = make_trainer(
        tmp_path, network=network, optimizer=torch.optim.Adam(network.parameters()), dataset=TinySite(spatial_dims=3)
    )
    before = weights(trainer)
    trainer.run()
    assert not same(before, weights(trainer))


# -- augmentation ------------------------------------------------------------------------------------------------------


def square(dims: int = 2, size: int = 32, channels: int = 3) -> dict[str, torch.Tensor]:
    """Return a bright block whose image is its label map: in whatever way they move, they must stay alike."""
    label = torch.zeros(1, *[size] * dims, dtype=torch.int16)
    label[(slice(None), *[slice(10, 22)] * dims)] = 1
    return {"image": label.float().repeat(channels, *[1] * dims), "label": label, "site": "a"}


def draws(augmentation: SliceAugmentation, sample: dict, seed: int = 0, count: int = 8) -> list[dict]:
    generator = torch.Generator().manual_seed(seed)
    return [augmentation(sample, generator) for _ in range(count)]


@pytest.mark.parametrize("dims", [2, 3])
def test_image_and_label_move_together(dims):
    still = {"bias": 0.0, "gamma": (1.0, 1.0), "noise": 0.0, "blur": 0.0}
    sample = square(dims)
    for changed in draws(SliceAugmentation(**still), sample):
        assert changed["image"].shape == sample["image"].shape
        assert changed["label"].dtype == torch.int16
        assert not torch.equal(changed["label"], sample["label"])
        assert set(torch.unique(changed["label"]).tolist()) == {0, 1}
        sure = (changed["image"] - 0.5).abs() > 0.45  # away from the interpolated edge
        assert torch.equal((changed["image"] > 0.5)[sure], (changed["label"] > 0).expand_as(sure)[sure])
        assert type(changed["image"]) is torch.Tensor
        assert changed["site"] == "a"


def test_intensities_change_without_the_label():
    still = {"flip": 0.0, "rotation": 0.0, "scaling": 0.0, "shift": 0.0}
    sample = square()
    for changed in draws(SliceAugmentation(**still, noise=0.2), sample, count=12):
        assert torch.equal(changed["label"], sample["label"])
        assert float(changed["image"].min()) >= 0
        assert float(changed["image"].max()) <= 1
    images = [changed["image"] for changed in draws(SliceAugmentation(**still, noise=0.2), sample, count=12)]
    assert sum(not torch.equal(image, sample["image"]) for image in images) > 6


def test_the_generator_decides_everything():
    sample, augmentation = square(), SliceAugmentation()
    once, again, other = draws(augmentation, sample), draws(SliceAugmentation(), sample), draws(augmentation, sample, 1)
    assert all(torch.equal(a[k], b[k]) for a, b in zip(once, again, strict=True) for k in ("image", "label"))
    assert not any(torch.equal(a["image"], b["image"]) for a, b in zip(once, other, strict=True))
    torch.rand(1)  # the global state has no part in it
    assert torch.equal(draws(augmentation, sample)[0]["image"], once[0]["image"])


def test_slices_of_a_patch_move_alike():
    """A patch of equal slices stays one: in 3D, nothing turns out of the slice's plane."""
    sample = square()
    patch = {k: v[..., None].repeat(1, 1, 1, 5) if k != "site" else v for k, v in sample.items()}
    still = {"bias": 0.0, "gamma": (1.0, 1.0), "noise": 0.0, "blur": 0.8}
    for changed in draws(SliceAugmentation(**still), patch):
        torch.testing.assert_close(changed["image"], changed["image"][..., :1].expand_as(changed["image"]))


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="expected none below 0"):
        SliceAugmentation(noise=-0.1)
    with pytest.raises(ValueError, match="rising range of gamma above 0"):
        SliceAugmentation(gamma=(1.5, 0.7))
