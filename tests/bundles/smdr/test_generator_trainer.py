"""The generator's phase: runs that resume exactly, averaged weights, and earlier sites left alone."""

from __future__ import annotations

import pytest
import torch

from bundles.smdr.scripts.labelling import site_statistics
from shared.diffusion import (
    DenoisingLoss,
    MovingAverage,
    draw_samples,
    load_generator,
    parameter_groups,
    prepare_generator,
)
from shared.errors import InputError
from shared.files import load_tensors, read_json, save_tensors
from shared.handlers import TrainingLog
from tests.bundles.smdr.tiny_generator import TinySite, make_generator, make_trainer
from tests.tiny import kill_at, same, weights


def first(**options):
    return prepare_generator(make_generator(None, **options), "first")


def second(run_dir, later_sites="prompt", **options):
    return prepare_generator(make_generator(None, **options), "second", run_dir, later_sites)


def test_training_lowers_the_loss(tmp_path):
    generator = first()
    optimizer = torch.optim.Adam(parameter_groups(generator, 8e-3, 8e-3))
    log = TrainingLog(tmp_path, interval=12)
    trainer = make_trainer(
        tmp_path, generator, optimizer=optimizer, batch_size=4, max_epochs=3, epoch_length=12, train_handlers=[log]
    )
    trainer.run()
    losses = [row["loss"] for row in trainer.log_rows]
    assert len(losses) == 3
    assert losses[-1] < 0.8 * losses[0]
    assert (tmp_path / "metrics.csv").read_text().startswith("iteration,seconds_per_iteration,loss")
    assert list((tmp_path / "tensorboard").glob("events*"))
    assert read_json(tmp_path / "done.json")["passes"] == 144


@pytest.mark.parametrize("site", ["first", "second"])
def test_a_run_in_two_parts_ends_with_the_same_bits(tmp_path, site):
    options = {"conditioning": "film", "pretended": 2}
    make_trainer(tmp_path / "before", first(**options)).run()

    def start(folder):
        generator = first(**options) if site == "first" else second(tmp_path / "before", **options)
        return make_trainer(tmp_path / folder, generator, site, max_epochs=3, dataset=TinySite(0.7, 0.1))

    whole = start("whole")
    whole.run()
    kill_at(start("parts"), 3)  # inside the second epoch
    torch.manual_seed(123)
    again = start("parts")
    again.run()
    assert same(weights(whole), weights(again))
    assert same(whole.average.values, again.average.values)
    for file in ("model.pt", "state.pt"):
        one, two = (load_tensors(tmp_path / folder / file) for folder in ("whole", "parts"))
        assert same(one.get("network", one), two.get("network", two))
    assert not same(weights(whole), load_tensors(tmp_path / "whole" / "model.pt"))  # those are the average


def test_a_checkpoint_that_lists_a_tensor_without_numbers_goes_on(tmp_path):
    kill_at(make_trainer(tmp_path, first()), 3)
    state = load_tensors(tmp_path / "state.pt")
    assert "pretended_films" not in state["average"]
    state["average"]["pretended_films"] = torch.zeros(0, 0)  # as prompts without modulation had it
    save_tensors(tmp_path / "state.pt", state)
    again = make_trainer(tmp_path, first())
    again.run()
    assert (tmp_path / "done.json").is_file()


def test_the_next_site_goes_on_from_the_file_and_harms_nothing(tmp_path):
    make_trainer(tmp_path / "1", first()).run()
    before = load_generator(tmp_path / "1")
    trainer = make_trainer(tmp_path / "2", second(tmp_path / "1"), "second", dataset=TinySite(0.7, 0.1))
    trainer.run()
    after = load_generator(tmp_path / "2")
    assert list(after.sites) == ["first", "second"]
    assert after.sites["first"] == before.sites["first"]
    assert torch.equal(draw_samples(after, "first", [1, 2], 5), draw_samples(before, "first", [1, 2], 5))
    old, new = before.state_dict(), after.state_dict()
    assert [name for name in new if name not in old or not torch.equal(new[name], old[name])] == [
        "_extra_state",
        "prompts.1",
    ]
    assert not torch.equal(after.prompts[1], after.prompts[0])


def test_the_file_holds_the_sites_statistics(tmp_path):
    make_trainer(tmp_path, first(), dataset=TinySite(0.3, 0.6)).run()
    assert load_generator(tmp_path).sites["first"] == site_statistics(TinySite(0.3, 0.6))


def test_a_complete_run_loads_its_average(tmp_path):
    make_trainer(tmp_path, first()).run()
    again = make_trainer(tmp_path, first())
    again.run()
    assert same(weights(again), load_tensors(tmp_path / "model.pt"))


def test_another_previous_generator_is_another_run(tmp_path):
    make_trainer(tmp_path / "a", first()).run()
    make_trainer(tmp_path / "b", first(), seed=1).run()
    kill_at(make_trainer(tmp_path / "2", second(tmp_path / "a"), "second"), 3)
    with pytest.raises(InputError, match=r"network\.origin: found"):
        make_trainer(tmp_path / "2", second(tmp_path / "b"), "second").run()


@pytest.mark.parametrize("option", [{"average_decay": 0.5}, {"loss_function": DenoisingLoss(min_snr=5)}, {"seed": 2}])
def test_other_settings_are_another_run(tmp_path, option):
    kill_at(make_trainer(tmp_path, first()), 3)
    with pytest.raises(InputError, match="holds a run with other settings"):
        make_trainer(tmp_path, first(), **option).run()


def test_an_optimizer_that_moves_frozen_weights_is_found_out(tmp_path):
    make_trainer(tmp_path / "1", first()).run()
    generator = second(tmp_path / "1")
    generator.prompts[0].grad = torch.ones_like(generator.prompts[0])
    optimizer = torch.optim.SGD(generator.parameters(), lr=1e-3)
    trainer = make_trainer(tmp_path / "2", generator, "second", optimizer=optimizer)
    keep = optimizer.zero_grad
    optimizer.zero_grad = lambda set_to_none=True: None
    with pytest.raises(RuntimeError, match="frozen weights changed while 'second' was learned"):
        trainer.run()
    optimizer.zero_grad = keep
    assert not (tmp_path / "2" / "model.pt").exists()


def test_labels_are_learned_along(tmp_path):
    trainer = make_trainer(tmp_path, first(label_channels=1))
    trainer.run()
    assert draw_samples(load_generator(tmp_path), "first", [1], 5).shape[1] == 2


def test_volumes_train_too(tmp_path):
    make_trainer(tmp_path, first(spatial_dims=3), dataset=TinySite(spatial_dims=3), max_epochs=1).run()
    assert draw_samples(load_generator(tmp_path), "first", [1], 2).shape == (1, 1, 8, 8, 8)


def test_bfloat16_trains_close_to_float32(tmp_path):
    found = []
    for autocast in (None, "bfloat16"):
        trainer = make_trainer(tmp_path / str(autocast), first(), autocast=autocast)
        trainer.run()
        found.append(torch.cat([p.detach().flatten() for p in trainer.network.parameters()]))
    assert 0 < float((found[0] - found[1]).norm() / found[0].norm()) < 0.05


def test_prompt_and_denoiser_have_their_own_rates(tmp_path):
    groups = parameter_groups(first(conditioning="film"), 1e-4, 1e-3)
    assert [group["lr"] for group in groups] == [1e-3, 1e-4]
    assert len(groups[0]["params"]) == 2
    make_trainer(tmp_path, first()).run()
    (group,) = parameter_groups(second(tmp_path), 1e-4, 1e-3)
    assert (group["lr"], len(group["params"])) == (1e-3, 1)


def test_the_average_follows_quickly_at_first_and_slowly_later():
    layer = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
    average = MovingAverage(layer, 0.5)
    expected, value = [], 0.0
    for update in range(12):
        with torch.no_grad():
            layer.weight.fill_(update + 1.0)
        average.update()
        decay = min(0.5, (1 + update) / (10 + update))
        value = decay * value + (1 - decay) * (update + 1)
        expected.append(value)
    assert float(average.values["weight"]) == pytest.approx(expected[-1], rel=1e-5)
    assert average.updates == 12


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_an_impossible_decay_is_refused(tmp_path, decay):
    with pytest.raises(ValueError, match="found decay"):
        make_trainer(tmp_path, first(), average_decay=decay)


def test_what_belongs_to_prepare_generator_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected it with prepare_generator"):
        make_trainer(tmp_path, first(), init_from=tmp_path)
    with pytest.raises(InputError, match="found site 'third'"):
        make_trainer(tmp_path, first(), "third")


def test_about_half_of_the_images_are_mirrored_with_their_labels(tmp_path):
    trainer = make_trainer(tmp_path, first(channels=1), mirror_axis=0)
    trainer.generator.manual_seed(3)
    sample = TinySite()[0]
    mirrored = 0
    for _ in range(40):
        found = trainer._mirrored(sample)
        turned = not torch.equal(found["image"], sample["image"])
        mirrored += turned
        for key in ("image", "label"):
            assert torch.equal(found[key], sample[key].flip(1) if turned else sample[key])
    assert 10 < mirrored < 30
    assert trainer.extra_settings()["mirror_axis"] == 0
    plain = make_trainer(tmp_path / "plain", first())
    assert plain._mirrored(sample) is sample
