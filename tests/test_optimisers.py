"""optimisers.py: what learns, and at which rate. test_loop.py has the rates of a training's steps."""

import pytest
import torch
from torch import nn

from aupipe.config import OptimiserConfig, PhaseConfig
from aupipe.optimisers import make_optimiser, set_rate


def rates(epochs, *moments, **config):
    phase = PhaseConfig(name="p", epochs=epochs, batch=1, optimiser=OptimiserConfig(name="sgd", **config))
    optimiser = make_optimiser(phase.optimiser, nn.Linear(1, 1))
    found = []
    for moment in moments:
        set_rate(optimiser, phase, moment)
        found.append(optimiser.param_groups[0]["lr"])
    return found


def test_steps_last_whole_epochs():
    found = rates(6, 0, 1.99, 2, 3.5, 4, 5.9, lr=0.006, decay=0.3, decay_every=2)
    assert found == pytest.approx([0.006, 0.006, 0.0018, 0.0018, 0.00054, 0.00054])


def test_cosine_falls_all_the_way():
    found = rates(4, 0, 1, 2, 3, 4, lr=0.01, schedule="cosine")
    assert found == pytest.approx([0.01, 0.01 * (1 + 0.5**0.5) / 2, 0.005, 0.01 * (1 - 0.5**0.5) / 2, 0])


def test_one_cycle_rises_then_falls():
    found = rates(10, 0, 1.5, 3, 6.5, 10, lr=1.0, schedule="one_cycle")
    assert found == pytest.approx([0.04, 0.52, 1, 0.5, 0])


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_what_is_frozen_is_left_out(name):
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model[0].requires_grad_(False)
    optimiser = make_optimiser(OptimiserConfig(name=name, lr=0.1, weight_decay=0.5), model)
    assert [id(p) for group in optimiser.param_groups for p in group["params"]] == [id(p) for p in model[1].parameters()]
    assert optimiser.defaults["weight_decay"] == 0.5
    assert isinstance(optimiser, {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name])


def test_momentum_is_nesterovs():
    model = nn.Linear(1, 1)
    assert make_optimiser(OptimiserConfig(name="sgd", lr=0.1), model).defaults["nesterov"] is True
    assert make_optimiser(OptimiserConfig(name="sgd", lr=0.1, momentum=0.0), model).defaults["nesterov"] is False
