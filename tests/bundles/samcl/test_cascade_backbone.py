"""The recurrent cascade as samcl's network: every strategy that looks into the network learns with it."""

from __future__ import annotations

import pytest
import torch

from bundles.samcl.scripts.objective import VelocityInferer
from shared.networks import SymmetricCascade
from tests.bundles.samcl.test_every_strategy import STRATEGIES
from tests.bundles.samcl.tiny import make_trainer
from tests.tiny import TinyPairs, weights


def make_network(**options) -> SymmetricCascade:
    torch.manual_seed(0)
    options = {
        "levels": 2,
        "widths": 4,
        "hidden": 4,
        "steps_per_level": 1,
        "path": "velocity",
        "output": "dvf",
        **options,
    }
    network = SymmetricCascade(**options)
    for module in network.corrections:
        torch.nn.init.normal_(module.head.conv.weight, std=0.05)
    return network


@pytest.mark.parametrize("name", ["sequential", "samcl", "agem", "ewc", "si", "lwf", "gpm"])
def test_two_tasks_are_learnt(tmp_path, name):
    for number in range(2):
        options = {"init_from": tmp_path / "0" if number else None, "dataset": TinyPairs(seed=number)}
        trainer = make_trainer(tmp_path / str(number), STRATEGIES[name](), network=make_network(), **options)
        trainer.run()
    before = make_network().state_dict()
    after = weights(trainer)
    assert all(torch.isfinite(v).all() for v in after.values())
    assert sum(not torch.equal(after[k], before[k]) for k in before) > len(before) / 2


def test_gpm_says_that_the_light_backbone_is_not_for_it(tmp_path):
    trainer = make_trainer(tmp_path, STRATEGIES["gpm"](), network=make_network(backbone="mobile"))
    with pytest.raises(ValueError, match="expected a convolution without groups"):
        trainer.run()


def test_its_velocity_is_what_the_inferer_takes():
    network = make_network().eval()
    image = torch.rand(1, 2, 12, 12, 12, generator=torch.Generator().manual_seed(0))
    there, back = (VelocityInferer()(x, network) for x in (image, image.flip(1)))
    assert there["ddf"].abs().max() > 0.01
    torch.testing.assert_close(there["inv_ddf"], back["ddf"], atol=1e-5, rtol=0)
