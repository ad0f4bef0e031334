"""Each strategy's defining property."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bundles.smdr.scripts.alignment import ParallelAlignment
from bundles.smdr.scripts.memory import ExemplarMemory, draw_evenly
from bundles.smdr.scripts.privacy import foreign_files
from bundles.smdr.scripts.replay import ReplayDataset
from bundles.smdr.scripts.strategies import ER, SMDR, LwF
from shared.continual import EWC, SI, Sequential
from shared.errors import InputError
from shared.files import load_tensors, save_tensors
from shared.trainer_checkpoint import restore
from tests.bundles.smdr.test_replay import change_a_byte
from tests.bundles.smdr.tiny_generator import TinySite
from tests.bundles.smdr.tiny_segmenter import BRIGHT, DARK, make_network, make_trainer, sgd, write_set
from tests.tiny import same, weights


def learnt(folder, strategy, **options):
    """Return a trainer that has learnt the first site."""
    trainer = make_trainer(folder, strategy, **options)
    trainer.run()
    return trainer


def second_site(first, folder, strategy, **options):
    """Return a trainer at the start of the second site, with what the first one left."""
    new = {"dataset": DARK, "task": "dark", "init_from": first.run_directory.path, "augmentation": None}
    second = make_trainer(folder, strategy, **{**new, **options})
    restore(second)
    second.begin()
    return second


def loss_of(trainer, network, samples):
    image, label = (torch.stack([s[key] for s in samples]) for key in ("image", "label"))
    return trainer.loss_function(network(image), label)


@pytest.mark.parametrize(
    "make",
    [lambda: EWC(samples=2), SI, LwF, lambda: ER(ExemplarMemory(3)), lambda: ER(ReplayDataset([]))],
    ids=["EWC", "SI", "LwF", "real ER", "ER"],
)
def test_the_first_site_is_plain_training(tmp_path, make):
    plain, first = learnt(tmp_path / "plain", Sequential()), learnt(tmp_path / "first", make())
    assert same(weights(plain), weights(first))


# -- penalties and distillation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda s: EWC(s, samples=6), SI, LwF], ids=["EWC", "SI", "LwF"])
def test_strength_keeps_the_answers_of_the_first_site(tmp_path, make):
    first = learnt(tmp_path / "first", make(0.0), max_epochs=10)
    image = torch.stack([s["image"] for s in DARK.samples if s is not None])
    changes = []
    for strength in (0.0, 1e3):
        second = second_site(first, tmp_path / str(strength), make(strength), max_epochs=10)
        second.run()
        with torch.no_grad():
            changes.append(float((second.network(image) - first.network(image)).square().mean()))
    assert 0 < changes[1] < 0.5 * changes[0]


def test_distillation_is_the_softened_divergence(tmp_path):
    first = learnt(tmp_path / "first", LwF(), **sgd())
    trainer = second_site(first, tmp_path / "second", LwF(strength=3.0, temperature=2.0), **sgd())
    samples = [DARK[0], DARK[1]]
    assert trainer.strategy.step(trainer, samples)["distillation"] == pytest.approx(0, abs=1e-6)
    image = torch.stack([s["image"] for s in samples])
    with torch.no_grad():
        teacher, student = (n(image).div(2).softmax(1) for n in (first.network, trainer.network))
    divergence = (teacher * (teacher.log() - student.log())).sum(1).mean()
    found = float(trainer.strategy.step(trainer, samples)["distillation"])
    assert found == pytest.approx(3 * 4 * float(divergence), rel=1e-4)
    assert found > 0


def test_distillation_of_no_temperature_is_refused():
    with pytest.raises(ValueError, match="found temperature 0, expected a number above 0"):
        LwF(temperature=0)


# -- replay ------------------------------------------------------------------------------------------------------------


def test_half_of_a_batch_is_replay_and_its_loss_counts_as_much(tmp_path, monkeypatch):
    first = learnt(tmp_path / "first", Sequential(), **sgd())
    replay = ReplayDataset(write_set(tmp_path / "set", "bright"))
    trainer = second_site(first, tmp_path / "second", ER(replay), **sgd())
    assert trainer.batch_size == 2
    drawn = []
    monkeypatch.setattr(
        "bundles.smdr.scripts.strategies.draw_evenly",
        lambda past, count, generator: drawn.append(count) or [past[i] for i in range(count)],
    )
    samples = [DARK[3], DARK[4]]
    expected = make_network()
    expected.load_state_dict(first.network.state_dict())
    loss = loss_of(trainer, expected, samples) + loss_of(trainer, expected, [replay[0], replay[1]])
    gradients = torch.autograd.grad(loss, list(expected.parameters()))
    parts = trainer.strategy.step(trainer, samples)
    assert drawn == [2]
    assert float(parts["loss"] + parts["replay_loss"]) == pytest.approx(float(loss.detach()), rel=1e-5)
    for before, after, gradient in zip(expected.parameters(), trainer.network.parameters(), gradients, strict=True):
        torch.testing.assert_close(after, before - 0.1 * gradient, rtol=1e-4, atol=1e-6)
    assert trainer.passes == 4


def test_an_odd_batch_cannot_be_half_replay(tmp_path):
    past = ReplayDataset(write_set(tmp_path / "set", "bright"))
    with pytest.raises(InputError, match="found batch_size 3, expected an even number"):
        make_trainer(tmp_path / "run", ER(past), batch_size=3)
    assert make_trainer(tmp_path / "run", ER(ReplayDataset([])), batch_size=3).batch_size == 3


def test_all_earlier_sites_are_replayed_alike(tmp_path):
    sites = {"a": TinySite(), "b": [BRIGHT[0], BRIGHT[1]], "c": TinySite()}
    past = ReplayDataset([write_set(tmp_path / name, name, data) for name, data in sites.items()])
    generator = torch.Generator().manual_seed(0)
    counts: Counter = Counter()
    for _ in range(60):
        drawn = Counter(sample["site"] for sample in draw_evenly(past, 8, generator))
        assert sorted(drawn.values()) == [2, 3, 3]  # as even as 8 of 3 sites can be
        counts += drawn
    assert max(counts.values()) - min(counts.values()) < 20  # the odd ones go round
    assert draw_evenly(ReplayDataset([]), 8, generator) == []


def test_more_earlier_sites_than_samples_take_turns(tmp_path):
    past = ReplayDataset([write_set(tmp_path / name, name) for name in "abcde"])
    generator = torch.Generator().manual_seed(0)
    counts: Counter = Counter()
    for _ in range(50):
        drawn = Counter(sample["site"] for sample in draw_evenly(past, 2, generator))
        assert sorted(drawn.values()) == [1, 1]
        counts += drawn
    assert sorted(counts) == list("abcde")
    assert max(counts.values()) - min(counts.values()) < 20


# -- alignment ---------------------------------------------------------------------------------------------------------


def test_without_inner_step_and_arbitrary_part_alignment_is_replay(tmp_path):
    first = learnt(tmp_path / "first", Sequential())
    replay = ReplayDataset(write_set(tmp_path / "set", "bright"))
    ends = []
    for number, strategy in enumerate((ER(replay), SMDR(replay, step=0.0, arbitrary=0.0))):
        trainer = second_site(first, tmp_path / str(number), strategy)
        trainer.run()
        ends.append(weights(trainer))
    assert same(*ends)


@pytest.mark.parametrize(
    "options",
    [{}, {"second_order": False}, {"orientational": 0.0}, {"arbitrary": 0.0}, {"second_order_arbitrary": True}],
    ids=str,
)
def test_a_step_goes_along_the_gradient_of_both_objectives(tmp_path, options):
    first = learnt(tmp_path / "first", Sequential(), **sgd())
    replay = ReplayDataset(write_set(tmp_path / "set", "bright"))
    trainer = second_site(first, tmp_path / "second", SMDR(replay, step=0.5, **options), **sgd())
    samples = [DARK[3], DARK[4]]
    twin = make_network()
    twin.load_state_dict(first.network.state_dict())
    trainer.generator.manual_seed(7)
    trainer.strategy.step(trainer, samples)
    trainer.generator.manual_seed(7)
    replayed = trainer.stack(draw_evenly(replay, 2, trainer.generator))
    names = {"second_order": "second_order_orientational"}
    alignment = ParallelAlignment(0.5, **{names.get(k, k): v for k, v in options.items()})
    total, _ = alignment(trainer.loss, twin, trainer.stack(samples), replayed, trainer.generator)
    for before, after, gradient in zip(
        twin.parameters(),
        trainer.network.parameters(),
        torch.autograd.grad(total, list(twin.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(after, before - 0.1 * gradient, rtol=1e-4, atol=1e-6)
    assert trainer.passes == 4 * (2 - ("orientational" in options or "arbitrary" in options))


def test_at_the_first_site_halves_of_augmented_slices_are_aligned(tmp_path):
    plain = learnt(tmp_path / "plain", Sequential())
    aligned = learnt(tmp_path / "aligned", SMDR(ReplayDataset([]), step=0.1))
    assert not same(weights(plain), weights(aligned))
    assert aligned.passes == 2 * plain.passes
    alone = learnt(tmp_path / "alone", SMDR(ReplayDataset([]), step=0.1, arbitrary=0.0))
    assert same(weights(plain), weights(alone))  # J_O without earlier sites is the loss


# -- what is kept of a site --------------------------------------------------------------------------------------------


def test_replay_sets_leave_nothing_of_a_patient_and_slices_do(tmp_path):
    generated = learnt(tmp_path / "generated", SMDR(ReplayDataset([])))
    assert foreign_files(generated.run_directory.path) == []
    kept = learnt(tmp_path / "kept", SMDR(ExemplarMemory(3)))
    found = foreign_files(kept.run_directory.path)
    assert len([line for line in found if "arrays that no replay index lists" in line]) == 3


@pytest.mark.parametrize("make", [lambda: EWC(samples=2), SI, LwF], ids=["EWC", "SI", "LwF"])
def test_what_strategies_know_counts_as_weights(tmp_path, make):
    assert foreign_files(learnt(tmp_path, make()).run_directory.path) == []


def test_an_image_among_what_a_strategy_knows_is_found(tmp_path):
    trainer = learnt(tmp_path, LwF())
    state = load_tensors(trainer.run_directory.state)
    state["strategy"]["teacher"]["patient"] = BRIGHT[0]["image"]
    save_tensors(trainer.run_directory.state, state)
    assert any("strategy/teacher/patient" in line for line in foreign_files(tmp_path))


# -- bad input ---------------------------------------------------------------------------------------------------------


def three_sites(folder):
    """Return the run of two sites, the second learnt with a replay set of the first."""
    learnt(folder / "0", SMDR(ReplayDataset([])))
    sets = write_set(folder / "set0", "bright")
    options = {"dataset": DARK, "task": "dark", "init_from": folder / "0"}
    learnt(folder / "1", SMDR(ReplayDataset(sets)), **options)
    return {"dataset": BRIGHT, "task": "third", "init_from": folder / "1"}


def test_an_earlier_site_without_replay_is_named(tmp_path):
    options = three_sites(tmp_path)
    trainer = make_trainer(tmp_path / "2", SMDR(ReplayDataset(tmp_path / "set0")), **options)
    with pytest.raises(InputError, match="learnt bright, dark, but there is nothing to replay of dark; expected"):
        trainer.run()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SMDR(ReplayDataset([])), "nothing to replay with this run, expected replay_sets"),
        (lambda: ER(ExemplarMemory(3)), "nothing to replay with this run, expected one that kept slices"),
    ],
)
def test_a_later_site_without_anything_to_replay_is_refused(tmp_path, make, message):
    first = learnt(tmp_path / "0", Sequential())
    trainer = make_trainer(tmp_path / "1", make(), dataset=DARK, task="dark", init_from=first.run_directory.path)
    with pytest.raises(InputError, match=message):
        trainer.run()


@pytest.mark.parametrize(
    ("task", "capacity", "message"),
    [
        ("bright", 4, "found site 'bright' in the memory already, expected each site once"),
        ("dark", 1, "found 2 sites and a memory of 1 slices, expected at least as many slices as sites"),
    ],
)
@pytest.mark.parametrize("make", [ER, SMDR])
def test_a_site_that_the_memory_cannot_keep_is_refused_before_it_is_learnt(tmp_path, make, task, capacity, message):
    first = learnt(tmp_path / "0", make(ExemplarMemory(4)))
    options = {"dataset": DARK, "task": task, "init_from": first.run_directory.path}
    trainer = make_trainer(tmp_path / "1", make(ExemplarMemory(capacity)), **options)
    with pytest.raises(InputError, match=message):
        trainer.run()
    assert trainer.state.iteration == 0


@pytest.mark.parametrize("strategy", [Sequential, lambda: ER(ExemplarMemory(4)), lambda: SMDR(ExemplarMemory(4))])
def test_weights_without_kept_slices_are_told_to_forget(tmp_path, capsys, strategy):
    learnt(tmp_path / "0", strategy())
    assert "nothing is replayed" not in capsys.readouterr().out
    weights_file = tmp_path / "0" / "model.pt"
    learnt(tmp_path / "1", strategy(), dataset=DARK, task="dark", init_from=weights_file)
    told = f"{weights_file}: found no kept slices, so nothing is replayed: what these weights have learnt of earlier"
    assert capsys.readouterr().out.count(told) == (strategy is not Sequential)


def test_a_run_that_was_killed_after_its_site_was_kept_ends(tmp_path):
    learnt(tmp_path, ER(ExemplarMemory(4)))
    (tmp_path / "done.json").unlink()
    learnt(tmp_path, ER(ExemplarMemory(4)))
    assert (tmp_path / "done.json").is_file()


def test_a_replay_set_of_the_site_itself_is_refused(tmp_path):
    trainer = make_trainer(tmp_path / "run", ER(ReplayDataset(write_set(tmp_path / "set", "bright"))))
    with pytest.raises(InputError, match="found a replay set of 'bright', the site that is learnt"):
        trainer.run()


def test_replay_of_another_image_size_is_refused(tmp_path):
    large = [{key: F.interpolate(value[None].float(), 16)[0] for key, value in s.items()} for s in BRIGHT.samples]
    trainer = make_trainer(tmp_path / "run", ER(ReplayDataset(write_set(tmp_path / "set", "other", large))))
    with pytest.raises(InputError, match=r"found replayed images \(1, 16, 16\), expected those of bright, \(1, 8, 8\)"):
        trainer.run()


def test_a_replay_set_whose_files_changed_is_refused(tmp_path):
    folder = write_set(tmp_path / "set", "other")
    change_a_byte(folder / "sample_0000003.npz")
    with pytest.raises(InputError, match=r"sample_0000003\.npz is changed, expected the 6 files"):
        ReplayDataset(folder)


def test_a_set_that_changed_since_a_run_began_is_another_run(tmp_path):
    folder = write_set(tmp_path / "set", "other")
    trainer = make_trainer(tmp_path / "run", ER(ReplayDataset(folder)), batch_size=2)
    trainer.run()
    write_set(folder, "other", DARK)
    with pytest.raises(InputError, match="holds a run with other settings"):
        make_trainer(tmp_path / "run", ER(ReplayDataset(folder)), batch_size=2).run()


def test_images_without_labels_are_refused(tmp_path):
    class Unlabelled(TinySite):
        def __getitem__(self, index):
            return {"image": self.samples[index]["image"]}

    with pytest.raises(InputError, match="bright: found an image without label, expected"):
        make_trainer(tmp_path, Sequential(), dataset=Unlabelled()).run()


def test_networks_without_norm_of_a_batch_learn_alike_in_both_modes():
    """Alignment calls the network several times a step: a running statistic would count each of them."""
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in make_network().modules())
