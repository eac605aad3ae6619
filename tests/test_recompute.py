"""models/_recompute.py: less is kept, and nothing else changes."""

import pytest
import torch
from conftest import AUS, STATS, make_recipe, make_training
from torch.autograd.graph import saved_tensors_hooks

from aupipe import loop
from aupipe.models import build_model
from aupipe.models._recompute import recompute_blocks
from aupipe.schema import LabelStats

MODELS = {
    "attention_cnn": {"backbone": "efficientnet_b0", "random": True, "frozen": False},
    "sat_net": {"variant": "sat_net"},
    "stral": {"variant": "al", "c": 1},
    "cnn_lstm": {"trunk": "resnet18"},
    "me_graphau": {"depth": 18, "neighbours": 2},
}


def build(name, options):
    torch.manual_seed(5)
    return build_model(name, options, AUS, LabelStats.from_json(STATS)).train()


def step(model, frames):
    """Gradients and buffers after one training step, and the bytes that were kept for the backward pass."""
    kept = 0

    def pack(tensor):
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    torch.manual_seed(7)  # dropout
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(frames)
    output.logits_BTM.square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return output.logits_BTM.detach(), gradients, dict(model.named_buffers()), kept


@pytest.mark.parametrize("name", MODELS)
def test_gradients_and_statistics_are_the_same_and_less_is_kept(name):
    plain, thrifty = build(name, MODELS[name]), build(name, MODELS[name])
    names = set(thrifty.state_dict())
    assert len(recompute_blocks(thrifty)) >= 3
    assert set(thrifty.state_dict()) == names
    frames = torch.rand(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    logits, gradients, buffers, kept = step(plain, frames)
    again, same_gradients, same_buffers, less = step(thrifty, frames)
    torch.testing.assert_close(again, logits, rtol=0, atol=0)
    assert gradients.keys() == same_gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(same_gradients[key], gradient, rtol=1e-5, atol=1e-7, msg=key)
    for key, buffer in buffers.items():
        torch.testing.assert_close(same_buffers[key], buffer, rtol=0, atol=0, msg=key)
    assert less < 0.6 * kept, f"{less / kept:.2f} of the bytes are kept"
    assert all(norm.momentum == 0.1 for norm in thrifty.modules() if isinstance(norm, torch.nn.BatchNorm2d))


def test_training_asks_for_it(shards, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(loop, "recompute_blocks", asked.append)
    for recompute in (False, True):
        phase = {"name": "train", "epochs": 1, "batch": 8, "optimiser": {"name": "adam", "lr": 0.001}}
        recipe = make_recipe(phases=[phase], clip={"frames": 2, "stride": 9}, recompute=recompute)
        loop.fit(make_training(shards, tmp_path / str(recompute), recipe))
        assert len(asked) == recompute


def test_a_model_without_blocks_has_none():
    assert recompute_blocks(build("attention_cnn", {})) == []


def test_evaluation_is_left_alone():
    model = build("sat_net", {"variant": "resnet"}).eval()
    frames = torch.rand(1, 2, 3, 64, 64)
    with torch.no_grad():
        before = model(frames).logits_BTM
        recompute_blocks(model)
        torch.testing.assert_close(model(frames).logits_BTM, before, rtol=0, atol=0)
