"""What is written down of a learning rate schedule."""

from __future__ import annotations

import json

import pytest
import torch
from torch.optim import lr_scheduler as schedules

from shared.errors import InputError
from shared.schedules import check_scheduler, schedule_settings
from shared.settings import differences


def optimizer(rate: float | torch.Tensor = 0.1) -> torch.optim.Optimizer:
    return torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))], lr=rate)


def in_turn(over: torch.optim.Optimizer, gamma: float) -> schedules.LRScheduler:
    parts = [schedules.ConstantLR(over, 0.5, 2), schedules.ExponentialLR(over, gamma)]
    return schedules.SequentialLR(over, parts, milestones=[2])


PAIRS = {
    "step": [lambda o, g=g: schedules.StepLR(o, 1, g) for g in (0.5, 1.0)],
    "milestones": [lambda o, m=m: schedules.MultiStepLR(o, m) for m in ([3], [4])],
    "cosine": [lambda o, t=t: schedules.CosineAnnealingLR(o, t) for t in (10, 20)],
    "one cycle": [lambda o, r=r: schedules.OneCycleLR(o, r, 10) for r in (0.5, 0.6)],
    "a list of others": [lambda o, g=g: in_turn(o, g) for g in (0.9, 0.8)],
    "class": [schedules.ConstantLR, schedules.LinearLR],
    "none": [lambda o: None, lambda o: schedules.StepLR(o, 1)],
}


@pytest.mark.parametrize("name", PAIRS)
def test_equal_schedules_have_equal_settings_and_others_do_not(name):
    first, again, other = (schedule_settings(make(optimizer())) for make in (*PAIRS[name][:1] * 2, PAIRS[name][1]))
    noted = json.loads(json.dumps(first))
    assert differences(noted, again) == ""
    assert differences(noted, other)


def test_tensors_and_functions_in_a_state_do_no_harm():
    rate = torch.tensor(0.1)
    noted = schedule_settings(schedules.LambdaLR(optimizer(rate), lambda n: 0.9**n))
    assert json.loads(json.dumps(noted)) == noted
    assert noted["base_lrs"] == [pytest.approx(0.1)]


def test_a_schedule_that_asks_for_a_metric_is_refused():
    with pytest.raises(InputError, match=r"found ReduceLROnPlateau, which asks for a metric.*LrScheduleHandler"):
        check_scheduler(schedules.ReduceLROnPlateau(optimizer()))
