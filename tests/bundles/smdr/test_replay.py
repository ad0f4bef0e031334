"""Replay sets: the same files whatever happens while they are made, and none that were touched since."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bundles.smdr.scripts.labelling import PseudoLabels, SampleFilter
from bundles.smdr.scripts.leakage import LeakFilter, leak_test
from bundles.smdr.scripts.replay import INDEX, ReplayDataset, make_replay, read_index
from shared.diffusion import draw_samples, from_channels, sample_seed
from shared.errors import InputError
from shared.files import read_json, save_json
from tests.bundles.smdr.tiny_generator import SIZE, known_of_site, make_generator
from tests.tiny import Killed


class Bright(torch.nn.Module):
    """Calls bright what lies above the image's mean; how sure it is depends on the image."""

    def forward(self, images):
        score = 40 * (images - images.mean(dim=(1, 2, 3), keepdim=True)).mean(1, keepdim=True)
        return torch.cat([-score, score], dim=1)


OPTIONS = {"count": 5, "batch_size": 2, "steps": 5, "keep": SampleFilter(0.0)}


def make(folder, generator=None, **options):
    labels = PseudoLabels(Bright())
    return make_replay(generator or make_generator(), "first", folder, labels, **{**OPTIONS, **options})


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".lock"}


def test_a_set_holds_what_the_seeds_draw(tmp_path):
    generator = make_generator()
    assert make(tmp_path, generator) == tmp_path / INDEX
    dataset = ReplayDataset(tmp_path)
    assert len(dataset) == 5
    drawn = draw_samples(generator, "first", [sample_seed(0, "first", n) for n in range(2)], 5)
    images, _ = from_channels(generator, drawn)
    for number in range(2):
        item = dataset[number]
        assert item["site"] == "first"
        assert item["image"].dtype == torch.float32
        assert item["label"].dtype == torch.int16
        torch.testing.assert_close(item["image"], images[number], atol=1e-3, rtol=0)
        assert torch.equal(item["label"][0] > 0, (images[number] > images[number].mean())[0])
    index = read_json(tmp_path / INDEX)
    assert [entry["number"] for entry in index["samples"]] == list(range(5))
    assert index["drawn"] == 5
    assert all(0 < entry["area"] < 1 and 0.5 <= entry["confidence"] <= 1 for entry in index["samples"])
    assert index["samples"][0]["area"] == pytest.approx(float((dataset[0]["label"] > 0).float().mean()), abs=1e-6)


def test_a_kill_at_any_write_changes_nothing(tmp_path, monkeypatch):
    """Die right before and right after each rename, then make it again: the same bytes, each time."""
    few = {"count": 3, "steps": 2}
    make(tmp_path / "whole", **few)
    whole = content(tmp_path / "whole")
    rename, writes = Path.replace, 0

    def count(self, target):
        nonlocal writes
        writes += 1
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", count)
    make(tmp_path / "counted", **few)
    assert writes == 3 + 3  # samples; an index at first and after each of two batches
    for moment in range(2 * writes):
        left = moment // 2

        def die(self, target, after=moment % 2):
            nonlocal left
            left -= 1
            if left >= 0:
                return rename(self, target)
            if after:
                rename(self, target)
            raise Killed

        folder = tmp_path / f"killed {moment}"
        monkeypatch.setattr(Path, "replace", die)
        with pytest.raises(Killed):
            make(folder, **few)
        (folder / ".tmp-1-sample_0000009.npz").write_bytes(b"torn")  # as a real kill leaves it
        monkeypatch.setattr(Path, "replace", rename)
        make(folder, **few)
        assert content(folder) == whole, moment


def test_a_complete_set_is_only_checked(tmp_path, monkeypatch):
    make(tmp_path)
    monkeypatch.setattr("bundles.smdr.scripts.replay.draw_samples", None)
    make(tmp_path)


def test_an_old_site_is_replayed_alike_by_the_grown_generator(tmp_path):
    make(tmp_path / "before")
    generator = make_generator()
    generator.add_site("second", known_of_site())
    with torch.no_grad():
        generator.prompts[1].normal_()
    make(tmp_path / "after", generator)
    before, after = content(tmp_path / "before"), content(tmp_path / "after")
    assert before.pop(INDEX) != after.pop(INDEX)  # it names the generator
    assert before == after


def test_a_smaller_set_is_the_beginning_of_a_larger_one(tmp_path):
    make(tmp_path / "large")
    make(tmp_path / "small", count=3)
    small, large = content(tmp_path / "small"), content(tmp_path / "large")
    assert len(small) == 4
    assert all(large[name] == small[name] for name in small if name != INDEX)


def test_unfit_samples_are_left_out_and_counted(tmp_path):
    make(tmp_path / "all", count=8)
    entries = read_json(tmp_path / "all" / INDEX)["samples"]
    bound = sorted(entry["confidence"] for entry in entries)[3]
    make(tmp_path / "some", count=3, keep=SampleFilter(bound))
    index = read_json(tmp_path / "some" / INDEX)
    fit = [entry["number"] for entry in entries if entry["confidence"] >= bound]
    assert [entry["number"] for entry in index["samples"]] == fit[:3]
    assert index["dropped"] == {"unsure": index["drawn"] - 3}


def test_excluded_numbers_are_left_out(tmp_path):
    make(tmp_path, exclude=[0, 3])
    index = read_json(tmp_path / INDEX)
    assert [entry["number"] for entry in index["samples"]] == [1, 2, 4, 5, 6]
    assert index["dropped"] == {"excluded": 2}


def test_hopeless_sampling_ends_with_what_was_wrong(tmp_path):
    with pytest.raises(InputError, match=r"0 fit samples of 'first' among 10 \(10 unsure\), expected 5: train"):
        make(tmp_path, keep=SampleFilter(1.0), patience=2)


def test_sites_without_statistics_and_unknown_sites_are_refused(tmp_path):
    generator = make_generator()
    generator.sites["first"] = {}
    with pytest.raises(InputError, match="no statistics of site 'first'"):
        make(tmp_path, generator)
    with pytest.raises(InputError, match="found site 'third'"):
        make_replay(make_generator(), "third", tmp_path, PseudoLabels(Bright()))


@pytest.mark.parametrize("option", [{"seed": 1}, {"steps": 2}, {"keep": SampleFilter(0.5)}, {"batch_size": 3}])
def test_a_folder_of_another_set_is_refused(tmp_path, option):
    make(tmp_path)
    name = {"keep": "min_confidence"}.get(next(iter(option)), next(iter(option)))
    with pytest.raises(InputError, match=f"holds another replay set \\({name}: found"):
        make(tmp_path, **option)


def change_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change_a_byte, "sample_0000002.npz is changed, expected the 5 files"),
        (Path.unlink, "sample_0000002.npz is missing, expected the 5 files"),
    ],
)
def test_a_set_whose_files_were_changed_is_refused(tmp_path, spoil, message):
    make(tmp_path)
    spoil(tmp_path / "sample_0000002.npz")
    for use in (ReplayDataset, make):
        with pytest.raises(InputError, match=message):
            use(tmp_path)


def test_an_incomplete_set_is_refused_for_training(tmp_path):
    make(tmp_path)
    index = read_json(tmp_path / INDEX)
    save_json(tmp_path / INDEX, {**index, "complete": False, "samples": index["samples"][:4], "drawn": 4})
    with pytest.raises(InputError, match="holds 4 of 5 samples, expected a complete replay set"):
        ReplayDataset(tmp_path)
    make(tmp_path)
    assert len(ReplayDataset(tmp_path)) == 5


@pytest.mark.parametrize("index", [[], {"format": 0, "samples": []}, {"format": 1}])
def test_another_index_is_refused(tmp_path, index):
    save_json(tmp_path / INDEX, index)
    with pytest.raises(InputError, match="found no index of a replay set"):
        read_index(tmp_path)


def test_no_index_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        ReplayDataset(tmp_path)


def test_a_dataset_of_two_sites(tmp_path):
    generator = make_generator()
    generator.add_site("second", known_of_site())
    options = {**OPTIONS, "labels": PseudoLabels(Bright())}
    make_replay(generator, "first", tmp_path / "1", **options)
    make_replay(generator, "second", tmp_path / "2", **{**options, "count": 2})
    dataset = ReplayDataset([tmp_path / "1", tmp_path / "2"])
    assert dataset.sites == {"first": range(5), "second": range(5, 7)}
    assert [dataset[i]["site"] for i in range(len(dataset))] == ["first"] * 5 + ["second"] * 2
    assert set(dataset.settings()["replay"]) == {"first", "second"}
    with pytest.raises(InputError, match="second replay set of site 'first'"):
        ReplayDataset([tmp_path / "1", tmp_path / "1"])


def test_samples_are_read_once_and_come_out_as_from_the_file(tmp_path, monkeypatch):
    make_replay(make_generator(), "first", tmp_path, **{**OPTIONS, "labels": PseudoLabels(Bright())})
    kept, read = ReplayDataset(tmp_path), ReplayDataset(tmp_path, cache_num=0)
    before = [kept[i] for i in range(5)]
    for i, sample in enumerate(before):
        assert all(torch.equal(sample[key], read[i][key]) for key in ("image", "label"))
        sample["image"].zero_()
        sample["label"].fill_(3)
    monkeypatch.setattr("numpy.load", None)  # nothing is read any more
    assert all(kept[i]["image"].any() and not (kept[i]["label"] == 3).any() for i in range(5))
    with pytest.raises(RuntimeError):
        read[0]


def test_sets_of_different_sizes_do_not_mix(tmp_path):
    make(tmp_path / "1")
    other = make_generator("second", image_size=2 * SIZE)
    make_replay(other, "second", tmp_path / "2", PseudoLabels(Bright()), **OPTIONS)
    with pytest.raises(InputError, match="expected one size"):
        ReplayDataset([tmp_path / "1", tmp_path / "2"])


def test_samples_need_no_pickle(tmp_path):
    make(tmp_path)
    with np.load(tmp_path / "sample_0000000.npz", allow_pickle=False) as arrays:
        assert arrays["image"].dtype == np.float16
        assert arrays["label"].dtype == np.uint8


class Nothing(torch.nn.Module):
    """Finds foreground in every other image of a batch."""

    def forward(self, images):
        score = torch.full_like(images[:, :1], -9.0)
        score[::2, :, 2:5, 2:5] = 9.0
        return torch.cat([-score, score], dim=1)


@pytest.mark.parametrize(("share", "expected"), [(0.5, 4), (0.2, 2), (0.0, 0)])
def test_no_more_samples_are_empty_than_images_of_the_site(tmp_path, share, expected):
    generator = make_generator()
    generator.sites["first"] = {**known_of_site(), "empty": share}
    make_replay(generator, "first", tmp_path, PseudoLabels(Nothing()), **{**OPTIONS, "count": 8})
    index = read_json(tmp_path / INDEX)
    assert sum(entry["area"] == 0 for entry in index["samples"]) == expected
    assert sum(index["dropped"].values()) == index["drawn"] - 8
    assert set(index["dropped"]) <= {"one more empty", "empty"}


def drawn_images(folder: Path) -> torch.Tensor:
    dataset = ReplayDataset(folder)
    return torch.stack([dataset[number]["image"] for number in range(len(dataset))])


def test_copies_of_a_training_image_never_reach_the_disk(tmp_path):
    make(tmp_path / "all")
    images = drawn_images(tmp_path / "all")
    strangers = torch.rand(8, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    originals = LeakFilter(images[[1, 2]], torch.cat([strangers, images[[0, 3, 4]]]))
    make(tmp_path / "set", originals=originals)
    index = read_index(tmp_path / "set")
    numbers = [entry["number"] for entry in index["samples"]]
    assert numbers[:3] == [0, 3, 4]
    assert len(numbers) == 5
    assert index["dropped"]["too near to a training image"] == index["drawn"] - 5 >= 2
    assert index["settings"]["leak_threshold"] == 0.5
    assert {path.name for path in (tmp_path / "set").glob("*.npz")} == {e["file"] for e in index["samples"]}
    found = leak_test(drawn_images(tmp_path / "set"), images[[1, 2]], torch.cat([strangers, images[[0, 3, 4]]]))
    assert found.suspects() == []


def test_a_set_that_was_compared_is_another_set(tmp_path):
    make(tmp_path)
    assert read_index(tmp_path)["settings"]["leak_threshold"] is None
    strangers = [torch.rand(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    with pytest.raises(InputError, match=r"holds another replay set \(leak_threshold: found None, asked for 0\.5"):
        make(tmp_path, originals=LeakFilter(*strangers))


def test_a_set_from_before_there_was_a_comparison_goes_on(tmp_path):
    make(tmp_path)
    index = read_json(tmp_path / INDEX)
    del index["settings"]["leak_threshold"]
    save_json(tmp_path / INDEX, index)
    make(tmp_path)
    assert read_json(tmp_path / INDEX) == index


def test_a_generator_of_copies_alone_gives_up_and_says_why(tmp_path):
    make(tmp_path / "all", count=20)
    images = drawn_images(tmp_path / "all")
    originals = LeakFilter(images, torch.rand(1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1)))
    with pytest.raises(InputError, match=r"found 0 fit samples .*20 too near to a training image"):
        make(tmp_path / "set", patience=4, originals=originals)
    assert list((tmp_path / "set").glob("*.npz")) == []
