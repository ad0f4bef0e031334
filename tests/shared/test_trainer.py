"""Training a registration network: what an iteration does, and what a run holds on to."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Events
from monai.engines.utils import IterationEvents

from shared.data.pairs import stack_pairs
from shared.distributed import call_method
from shared.errors import InputError
from shared.files import read_json
from shared.handlers import TrainingLog
from shared.run_trainer import RunTrainer
from shared.trainer import RegistrationTrainer
from tests.tiny import TinyObjective, TinyPairs, kill_at, make_network, make_trainer, same, weights


class AllScales(RegistrationTrainer):
    """Trains the fields of all scales, which the network's call does not return."""

    def call_network(self, network, image):
        return call_method(network, "fields", image)


def test_training_lowers_the_loss(tmp_path):
    network = make_network()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    handlers = [TrainingLog(tmp_path, interval=3, tensorboard=False)]
    options = {"network": network, "optimizer": optimizer, "train_handlers": handlers}
    trainer = make_trainer(tmp_path, max_epochs=10, epoch_length=3, **options)
    trainer.run()
    losses = [row["loss"] for row in trainer.log_rows]
    assert len(losses) == 10
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])
    assert {"similarity", "small"} <= set(trainer.log_rows[0])


def test_one_iteration_is_one_step_on_the_mean_loss_of_the_batch(tmp_path):
    network, pairs = make_network(), TinyPairs()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    trainer = make_trainer(tmp_path, network=network, optimizer=optimizer, max_epochs=1, epoch_length=1)
    trainer.run()
    by_hand, samples = make_network(), [pairs[i] for i in torch.randperm(6, generator=torch.Generator().manual_seed(0))]
    loss, _ = TinyObjective()(by_hand(stack_pairs(samples[:2])), samples[:2])
    loss.backward()
    torch.optim.SGD(by_hand.parameters(), lr=0.5).step()
    for name, value in by_hand.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], value, msg=name)
    assert trainer.passes == 2
    assert read_json(tmp_path / "done.json")["passes"] == 2


def test_the_networks_output_may_be_nested(tmp_path):
    trainer = make_trainer(tmp_path / "all", AllScales)
    sample = [trainer.prepare(TinyPairs()[0])]
    assert [f.shape[-1] for f in trainer.predict(stack_pairs(sample))["fields"]] == [4, 8]
    trainer.run()
    plain = make_trainer(tmp_path / "one")
    plain.run()
    assert not same(weights(trainer), weights(plain))
    assert [*trainer.backward(sample)] == ["loss", "similarity", "small"]


def test_extra_terms_are_added_to_the_loss_and_named(tmp_path):
    trainer = make_trainer(tmp_path)
    sample = [trainer.prepare(TinyPairs()[0])]
    weight = trainer.network.fine.weight
    plain = trainer.backward(sample)
    before = weight.grad.clone()
    parts = trainer.backward(sample, extra=lambda image, output: {"more": weight.square().sum()})
    torch.testing.assert_close(weight.grad - before, 2 * weight.detach())
    assert parts["loss"] == plain["loss"]
    assert float(parts["more"].detach()) == pytest.approx(float(weight.detach().square().sum()))


def test_long_gradients_are_scaled_down_to_max_norm_and_short_ones_left(tmp_path):
    moved = {}
    for max_norm in (None, 1e-3, 1e3):
        network = make_network()
        optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
        options = {"network": network, "optimizer": optimizer, "max_epochs": 1, "epoch_length": 1}
        trainer = make_trainer(tmp_path / str(max_norm), max_norm=max_norm, **options)
        start = weights(trainer)
        trainer.run()
        moved[max_norm] = torch.cat([(v - start[k]).flatten() for k, v in weights(trainer).items()])
    assert moved[None].norm() > 1e-2
    assert float(moved[1e-3].norm()) == pytest.approx(1e-3, rel=1e-3)
    torch.testing.assert_close(moved[1e-3] / moved[1e-3].norm(), moved[None] / moved[None].norm(), rtol=0, atol=1e-3)
    assert torch.equal(moved[1e3], moved[None])


def test_nothing_stays_on_the_optimizer_after_a_run(tmp_path):
    network = make_network()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    make_trainer(tmp_path, network=network, optimizer=optimizer, max_norm=1e-3).run()
    before = network.fine.weight.detach().clone()
    optimizer.zero_grad()
    network.fine.weight.grad = torch.ones_like(before)
    optimizer.step()
    torch.testing.assert_close(network.fine.weight.detach(), before - 1)


@pytest.mark.parametrize("max_norm", [0, -1.0, float("nan"), "null"])
def test_an_impossible_max_norm_is_refused(tmp_path, max_norm):
    with pytest.raises(ValueError, match=f"found max_norm {max_norm!r}, expected None or a number above 0"):
        make_trainer(tmp_path, max_norm=max_norm)


def test_bfloat16_trains_close_to_float32(tmp_path):
    results = []
    for autocast in (None, "bfloat16"):
        trainer = make_trainer(tmp_path / str(autocast), autocast=autocast)
        trainer.run()
        assert all(p.dtype == torch.float32 for p in trainer.network.parameters())
        results.append(torch.cat([p.detach().flatten() for p in trainer.network.parameters()]))
    distance = (results[0] - results[1]).norm() / results[0].norm()
    assert 0 < distance < 0.05


def test_unknown_autocast_is_refused(tmp_path):
    for autocast in ("int8", "null"):
        with pytest.raises(InputError, match=f"found autocast '{autocast}', expected None or bfloat16"):
            make_trainer(tmp_path, autocast=autocast)


@pytest.mark.parametrize("scheduler", ["null", False, torch.optim.lr_scheduler.StepLR])
def test_a_scheduler_that_is_none_is_refused(tmp_path, scheduler):
    with pytest.raises(InputError, match=r"^scheduler: found .*, expected None or a torch learning rate scheduler$"):
        make_trainer(tmp_path, scheduler=scheduler)


def test_loss_scaling_is_refused(tmp_path):
    with pytest.raises(ValueError, match="amp"):
        make_trainer(tmp_path, amp=True)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    network = make_network()
    with torch.no_grad():
        network.fine.weight.fill_(float("nan"))
    trainer = make_trainer(tmp_path, network=network, train_handlers=[TrainingLog(tmp_path, interval=1)])
    with pytest.raises(FloatingPointError, match="iteration 1: the loss is nan"):
        trainer.run()
    assert not (tmp_path / "model.pt").exists()


def test_handlers_of_every_event_are_called(tmp_path):
    trainer = make_trainer(tmp_path, max_epochs=1)
    called = []
    events = ["FORWARD_COMPLETED", "LOSS_COMPLETED", "BACKWARD_COMPLETED", "MODEL_COMPLETED"]
    for name in events:
        trainer.add_event_handler(getattr(IterationEvents, name), lambda engine, n: called.append(n), name)
    trainer.run()
    assert called == events * 2


def test_draws_are_those_of_the_iteration_and_of_the_end(tmp_path):
    """Whatever was drawn before: a resumed run draws alike."""

    class Drawing(RegistrationTrainer):
        def __init__(self, used: int, **options) -> None:
            self.used, self.drawn = used, []
            super().__init__(**options)

        def learn(self, samples):
            self.drawn.append(int(torch.randint(1 << 30, (1,), generator=self.generator)))
            torch.rand(self.used, generator=self.generator)
            return super().learn(samples)

        def end(self) -> None:
            self.drawn.append([int(s["moving_image"].sum() * 1e4) for s in self.draw_samples(4)])

    trainers = [make_trainer(tmp_path / str(used), Drawing, used=used) for used in (0, 7)]
    for trainer in trainers:
        trainer.run()
    assert trainers[0].drawn == trainers[1].drawn
    assert len(set(trainers[0].drawn[:4])) == 4
    assert len(set(trainers[0].drawn[4])) == 4  # different pairs


def test_several_tasks_have_one_name(tmp_path):
    trainer = make_trainer(tmp_path, task=["brain", "lung"])
    assert trainer.task == trainer.settings()["task"] == "brain+lung"


# -- settings ----------------------------------------------------------------------------------------------------------


def other_scale(options):
    options["network"].scale = 2.0


def other_optimizer(options):
    options["optimizer"] = torch.optim.Adam(options["network"].parameters(), lr=1e-3, weight_decay=0.1)


CHANGES = {
    "network.scale": other_scale,
    "optimizer.weight_decay": other_optimizer,
    "objective": lambda options: options.update(loss_function=TinyObjective(0.2)),
    "data": lambda options: options.update(dataset=TinyPairs(1)),
    "seed": lambda options: options.update(seed=1),
    "max_norm": lambda options: options.update(max_norm=1.0),
    "frozen": lambda options: options.update(frozen=["encoder"], frozen_iterations=1),
    "batch_size": lambda options: options.update(batch_size=1),
    "autocast": lambda options: options.update(autocast="bfloat16"),
}


def test_every_option_that_decides_the_result_is_a_setting(tmp_path):
    make_trainer(tmp_path).run()
    for name, change in CHANGES.items():
        options = {"network": make_network()}
        change(options)
        with pytest.raises(InputError, match=rf"holds a run with other settings \({name}.*: found .*asked for"):
            make_trainer(tmp_path, **options).run()


def test_options_that_are_not_in_use_are_no_settings(tmp_path):
    trainer = make_trainer(tmp_path, frozen=["encoder"], frozen_iterations=0)
    assert not {"frozen", "max_norm"} & set(trainer.settings())


def test_the_log_goes_on_without_gap_or_repetition(tmp_path):
    def trainer(folder):
        return make_trainer(folder, max_epochs=3, train_handlers=[TrainingLog(folder, interval=1, tensorboard=False)])

    whole = trainer(tmp_path / "whole")
    whole.run()
    kill_at(trainer(tmp_path / "part"), 3)
    again = trainer(tmp_path / "part")
    again.add_event_handler(Events.STARTED, lambda engine: None)
    again.run()
    rows = [[{k: v for k, v in row.items() if k[:7] != "seconds"} for row in t.log_rows] for t in (whole, again)]
    assert rows[0] == rows[1]
    assert [row["iteration"] for row in rows[0]] == [1, 2, 3, 4, 5, 6]


def test_a_trainer_that_does_not_say_what_an_iteration_is_is_refused(tmp_path):
    with pytest.raises(NotImplementedError, match="RunTrainer does not say what an iteration is"):
        make_trainer(tmp_path, RunTrainer).run()
