"""models/_sequences.py: however a sequence is cut and whenever it comes, its outputs are those of the whole."""

import importlib

import pytest
import stral_models
import torch
from temporal_models import KINDS, Recurrent, Whole, Window
from torch import nn

from aupipe.models import AUOutput, build_model, list_models
from aupipe.models._sequences import Stream, infer, is_temporal

MODELS = KINDS | {
    "stral": lambda: stral_models.settle(stral_models.build()),
    "stral gsa": lambda: stral_models.settle(stral_models.build("gsa")),
}
SIZES = [1, 2, 3, 5, 16, 50, 64]


def frames(T, B=2):
    return torch.rand(B, T, 3, 16, 16, generator=torch.Generator().manual_seed(T))


def assert_same(outputs, whole):
    """The outputs, one after the other, are those of the whole sequence."""
    logits = torch.cat([output.logits_BTM for output in outputs if output is not None], 1)
    torch.testing.assert_close(logits, whole.logits_BTM, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("T", [1, 2, 50])
def test_chunks_are_the_whole_sequence(kind, T):
    model, shots = MODELS[kind]().eval(), frames(T)
    with torch.no_grad():
        whole = model(shots)
    assert T == 1 or whole.logits_BTM.std(1).min() > 1e-3, "the frames differ, so a shift would show"
    for chunk in SIZES:
        assert_same([infer(model, shots, chunk)], whole)
        assert_same([infer(model, iter(shots.split(chunk, 1)))], whole)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("cut", [[1] * 50, [3] * 16 + [2], [0, 49, 0, 1], [50]])
def test_a_stream_gives_the_whole_sequence_in_order_with_its_latency(kind, cut):
    model, shots = MODELS[kind]().eval(), frames(sum(cut))
    with torch.no_grad():
        whole = model(shots)
    stream, outputs, seen, out = Stream(model, 7), [], 0, 0
    for part in shots.split(cut, 1):
        outputs.append(stream.push(part))
        seen += part.shape[1]
        out += 0 if outputs[-1] is None else outputs[-1].logits_BTM.shape[1]
        assert out == (0 if stream.latency is None else max(0, seen - stream.latency))
    assert_same([*outputs, stream.close()], whole)
    assert stream.close() is None


@pytest.mark.parametrize("kind", MODELS)
def test_latency_is_the_future_that_a_model_reads(kind):
    latencies = {"causal": 0, "recurrent": 0, "two-sided": 5, "ahead": 3, "whole": None, "stral": 16, "stral gsa": 0}
    assert Stream(MODELS[kind]().eval()).latency == latencies[kind]


@pytest.mark.parametrize("kind", MODELS)
def test_a_closed_stream_begins_another_sequence_and_forgets_the_last(kind):
    model = MODELS[kind]().eval()
    stream = Stream(model)
    for T in (23, 9):
        shots = frames(T)
        with torch.no_grad():
            assert_same([stream.push(shots), stream.close()], model(shots))


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_computed_once_per_frame_in_the_memory_of_a_chunk(kind):
    model = KINDS[kind]().eval()
    longest = []
    model.register_forward_pre_hook(lambda _, inputs: longest.append(inputs[0].shape[1]))
    infer(model, frames(50), 6)
    assert (model.featured, model.longest) == (50, 6)
    if kind != "whole":
        assert max(longest, default=0) <= 6 + model.future + (model.past or 0)


@pytest.mark.parametrize("missing", ["past", "future"])
def test_a_frame_less_of_context_is_not_enough(missing):
    model, shots = Window(3, 2).eval(), frames(30)
    with torch.no_grad():
        whole = model(shots).logits_BTM
    setattr(model, missing, getattr(model, missing) - 1)
    assert not torch.allclose(infer(model, shots, 6).logits_BTM, whole, atol=1e-3)


def test_every_output_of_a_model_comes_along():
    class Rich(Window):
        def forward(self, x):
            logits = super().forward(x).logits_BTM
            return AUOutput(logits, logits[..., None, None].sigmoid(), logits + 1, logits.sigmoid() * 5)

    model, shots = Rich(2, 2).eval(), frames(20)
    with torch.no_grad():
        whole = model(shots)
    for ours, theirs in zip(infer(model, shots, 6), whole, strict=True):
        torch.testing.assert_close(ours, theirs)
    recurrent = Recurrent().eval()
    torch.testing.assert_close(infer(recurrent, shots, 6).aux_logits_BTM, recurrent.features(shots))


def test_a_model_that_says_nothing_reads_each_frame_alone():
    class Frame(nn.Module):
        def forward(self, frames_BTCHW):
            seen.append(frames_BTCHW.shape[1])
            return AUOutput(frames_BTCHW.mean((3, 4)), frames_BTCHW[:, :, :1])

    seen = []
    model, shots = Frame().eval(), frames(20)
    assert not is_temporal(model)
    assert not is_temporal(stral_models.build("al"))
    assert all(is_temporal(make()) for make in KINDS.values())
    output = infer(model, shots, 6)
    assert seen == [6, 6, 6, 2], "no context is computed again"
    torch.testing.assert_close(output.logits_BTM, shots.mean((3, 4)))
    torch.testing.assert_close(output.attention_BTMhw, shots[:, :, :1])


# Each temporal model of the registry, what it is made with, its past, its future and the side of its frames
REGISTERED = [
    ("stral", {"c": 1}, 16, 16, 16),
    ("stral", {"c": 1, "temporal_kernel": 3, "graph_layers": 4}, 4, 4, 16),
    ("sat_net", {}, 7, 0, 32),
    ("sat_net", {"variant": "t_net", "window": 3, "fusion": "residual"}, 2, 0, 32),
    ("sat_net", {"mode": "stateful"}, None, 0, 32),
    ("cnn_lstm", {"trunk": "resnet18", "cells": 32}, None, 0, 32),
    ("embeddings", {"backbone": "resnet18", "random": True}, 4, 4, 32),
    ("embeddings", {"backbone": "resnet18", "random": True, "causal": True, "kernel": 4}, 3, 0, 32),
]
RELATIVE = [
    ("attention_cnn", {"pooling": "7x7"}, 0, 32),
    ("drml", {"size": 66, "hidden": [16], "init": "default"}, 0, 66),
    ("arl_like", {"c": 1, "init": "default"}, 0, 32),
    ("stral", {"c": 1, "variant": "al"}, 0, 16),
    ("stral", {"c": 1, "temporal_kernel": 3, "graph_layers": 4}, 4, 16),
    ("sat_net", {"variant": "sa_net"}, 0, 32),
    ("sat_net", {"window": 3}, 0, 32),
    ("sat_net", {"mode": "stateful"}, 0, 32),
    ("cnn_lstm", {"trunk": "resnet18", "cells": 32}, 0, 32),
    ("embeddings", {"backbone": "resnet18", "random": True}, 4, 32),
    ("embeddings", {"backbone": "resnet18", "random": True, "causal": True, "kernel": 4}, 0, 32),
]
for name, config, future, side in RELATIVE:
    REGISTERED.append((name, config | {"relative": "clip"}, None, None, side))
    REGISTERED.append((name, config | {"relative": "running"}, None, future, side))


@torch.no_grad()
def see(model, shots):
    """Fill norms with the statistics of frames, and the weights of differences, which begin at 0."""
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.momentum = 1.0
    model.train()(shots)
    model.eval()
    for parameter in model.relative.parameters():
        nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)


@pytest.mark.parametrize(("name", "config", "past", "future", "side"), REGISTERED)
def test_every_temporal_model_reads_any_length_in_any_parts(name, config, past, future, side):
    torch.manual_seed(0)
    model = build_model(name, config, stral_models.AUS, stral_models.statistics()).eval()
    model = stral_models.settle(model) if name == "stral" else model
    assert (model.past, model.future) == (past, future)
    assert is_temporal(model)
    T = 3 + 2 * (future or past or 5)
    shots = (
        2 * torch.rand(1, T, 3, side, side, generator=torch.Generator().manual_seed(1))
        + torch.arange(T).view(T, 1, 1, 1) % 5
    )
    if config.get("relative"):  # norms that have just seen frames amplify rounding: in double precision there is less
        model, shots = model.double(), shots.double()
        see(model, shots)
    with torch.no_grad():
        whole, first = model(shots), model(shots[:, :1])
        kept = model(model.features(shots))
    spread = whole.logits_BTM.std(1).min().item()
    assert spread > 1e-3, "the frames differ"
    exact = {"rtol": 0, "atol": min(1e-5, spread / 100)}
    torch.testing.assert_close(kept.logits_BTM, whole.logits_BTM, **exact)
    torch.testing.assert_close(infer(model, shots[:, :1]).logits_BTM, first.logits_BTM, **exact)
    for chunk in (1, 4, T):
        torch.testing.assert_close(infer(model, shots, chunk).logits_BTM, whole.logits_BTM, **exact)


def test_no_temporal_model_of_the_registry_is_left_out():
    classes = {name: importlib.import_module(f"aupipe.models.{name}").Model for name in list_models()}
    says = {name for name, kind in classes.items() if hasattr(kind, "past") or hasattr(kind, "step")}
    assert says <= {name for name, *_ in REGISTERED}


def test_no_graph_is_kept_for_gradients():
    assert not infer(Window(2, 2).eval(), frames(9), 4).logits_BTM.requires_grad


def test_inference_in_training_mode_is_refused():
    with pytest.raises(RuntimeError, match="eval mode"):
        infer(stral_models.build().train(), stral_models.frames(1, 3))


def test_what_cannot_be_streamed_is_refused():
    model = Whole().eval()
    model.future = 0
    with pytest.raises(TypeError, match="needs a `step`"):
        Stream(model)
    recurrent = Recurrent().eval()
    recurrent.future = 2
    with pytest.raises(TypeError, match="future of 0"):
        Stream(recurrent)
    with pytest.raises(ValueError, match="no frames"):
        infer(Window(1, 1).eval(), frames(0))
