from __future__ import annotations

import pytest
import torch
from ignite.engine import Events

from bundles.dccnn_lstm_reg.scripts.engine import BlurSchedule, CascadeInferer
from bundles.dccnn_lstm_reg.scripts.objective import SymmetricObjective
from shared.data.augmentation import PairAugmentation
from shared.errors import InputError
from shared.fields import compose
from shared.warp import warp
from tests.tiny import kill_at, same, weights

from .tiny import make_network, make_trainer


def test_training_lowers_the_loss(tmp_path):
    network = make_network()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    trainer = make_trainer(tmp_path, network=network, optimizer=optimizer, max_epochs=4, epoch_length=10)
    parts: list[dict] = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: parts.append(dict(engine.state.output)))
    trainer.run()
    first, last = ({k: sum(float(p[k]) for p in some) for k in parts[0]} for some in (parts[:10], parts[-10:]))
    assert last["loss"] < 0.96 * first["loss"]
    assert last["similarity"] < first["similarity"]


@pytest.mark.parametrize("options", [{}, {"augmentation": PairAugmentation()}, {"max_norm": 0.1}])
def test_a_killed_run_ends_with_the_same_bits(tmp_path, options):
    whole = make_trainer(tmp_path / "whole", **options)
    whole.run()
    killed = make_trainer(tmp_path / "killed", **options)
    kill_at(killed, 3)
    again = make_trainer(tmp_path / "killed", **options)
    again.run()
    assert same(weights(whole), weights(again))


def test_an_augmentation_that_is_text_is_refused(tmp_path):
    with pytest.raises(InputError, match="augmentation: found 'null', expected None or a PairAugmentation"):
        make_trainer(tmp_path, augmentation="null")


def test_augmentation_changes_what_is_learnt(tmp_path):
    plain, augmented = make_trainer(tmp_path / "a"), make_trainer(tmp_path / "b", augmentation=PairAugmentation())
    plain.run()
    augmented.run()
    assert not same(weights(plain), weights(augmented))


def test_a_frozen_pyramid_rests_and_then_learns(tmp_path):
    resting = make_trainer(tmp_path / "a", frozen=["pyramid"], frozen_iterations=4)
    resting.run()
    waking = make_trainer(tmp_path / "b", frozen=["pyramid"], frozen_iterations=2)
    waking.run()
    before = make_network().state_dict()
    moved = {
        run: [k for k, v in weights(t).items() if not torch.equal(v, before[k])]
        for run, t in (("resting", resting), ("waking", waking))
    }
    assert not [k for k in moved["resting"] if k.startswith("pyramid")]
    assert [k for k in moved["resting"] if k.startswith("corrections")]
    assert [k for k in moved["waking"] if k.startswith("pyramid")]


def test_blur_falls_to_nothing_within_its_share(tmp_path):
    objective = SymmetricObjective(windows=(3,))
    seen: list[float] = []
    trainer = make_trainer(
        tmp_path,
        loss_function=objective,
        max_epochs=2,
        epoch_length=5,
        train_handlers=[BlurSchedule(objective, 2.0, 0.4)],
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: seen.append(objective.blur_sigma))
    trainer.run()
    assert seen == pytest.approx([2.0, 1.5, 1.0, 0.5, 0, 0, 0, 0, 0, 0])


@pytest.mark.parametrize("options", [{}, {"symmetric": False}, {"path": "velocity"}])
def test_the_inferer_gives_both_directions(options):
    network = make_network(**options)
    for module in network.corrections:
        torch.nn.init.normal_(module.head.conv.weight, std=0.2)
    image = torch.rand(1, 2, 12, 12, 12, generator=torch.Generator().manual_seed(0))
    fields = CascadeInferer()(image, network.eval())
    assert fields["ddf"].shape == fields["inv_ddf"].shape == (1, 3, 12, 12, 12)
    assert set(fields) == {"warped", "ddf", "inv_ddf"}
    assert torch.equal(fields["warped"], warp(image[:, :1], fields["ddf"]))
    training = CascadeInferer()(image, network.train())
    assert [entry["scale"] for entry in training["scales"]] == [1, 0]
    assert torch.equal(training["warped"], fields["warped"])
    if options:  # inverted, or inverse by construction
        inside = compose(fields["ddf"], fields["inv_ddf"])[..., 3:-3, 3:-3, 3:-3]
        assert inside.norm(dim=1).mean() < 0.03 < fields["ddf"].norm(dim=1).mean()
