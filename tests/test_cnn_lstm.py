"""models/cnn_lstm.py: sizes, causality, a stream equals the whole, trunks, bad input."""

import pytest
import torch
from baseline_models import AUS, assert_a_masked_au_is_left_out, build, frames, sizes, statistics, unreached

from aupipe.models import build_model
from aupipe.models._sequences import Stream, infer
from aupipe.schema import ConfigError, DataError


def small(**options):
    return build("cnn_lstm", trunk="resnet18", cells=16, fusion=12, **options)


def lstm(D, cells, layers):
    return sum(4 * cells * ((D if layer == 0 else cells) + cells + 2) for layer in range(layers))


@pytest.mark.parametrize(("corpus", "M"), [("bp4d", 12), ("disfa", 8)])
def test_sizes_with_alexnet(corpus, M):
    parameters, macs = sizes("cnn_lstm", corpus, 227)
    # AlexNet's published 60,965,224 less its 1,000 classes
    alexnet = 60_965_224 - 4097 * 1000
    assert parameters == alexnet + lstm(4096, 256, 2) + (4096 + 256 + 1) * 256 + 257 * M
    assert parameters == {"bp4d": 62_970_508, "disfa": 62_969_480}[corpus]
    places = 55**2 * 96 * 363 + 27**2 * 256 * 1200 + 13**2 * (384 * 2304 + 384 * 1728 + 256 * 1728)
    linear = 9216 * 4096 + 4096**2 + 4 * 256 * (4096 + 256 + 512) + 4352 * 256 + 256 * M
    assert macs == pytest.approx(places + linear, rel=1e-2)


@pytest.mark.parametrize(("trunk", "parameters", "D"), [("resnet18", 11_176_512, 512), ("resnet50", 23_508_032, 2048)])
def test_sizes_with_a_resnet(trunk, parameters, D):
    found, _ = sizes("cnn_lstm", "bp4d", 224, trunk=trunk, layers=3, cells=64, fusion=32)
    assert found == parameters + lstm(D, 64, 3) + (D + 64 + 1) * 32 + 33 * 12


@pytest.mark.parametrize("T", [1, 2, 7])
def test_any_number_of_frames_and_features_stand_for_them(T):
    model = small().eval()
    shots = frames(2, T, 32)
    output = model(shots)
    assert output.logits_BTM.shape == (2, T, 4)
    kept = model.features(shots)
    assert kept.shape == (2, T, 512)
    assert torch.equal(model(kept).logits_BTM, output.logits_BTM)
    torch.testing.assert_close(model.features(shots[:, -1:]), kept[:, -1:], rtol=1e-4, atol=1e-5)


def test_a_frame_depends_on_all_before_it_and_none_after():
    model = small().double().eval()
    assert (model.past, model.future) == (None, 0)
    features = torch.randn(1, 9, 512, dtype=torch.float64, requires_grad=True)
    model(features).logits_BTM[0, 5].sum().backward()
    reached = features.grad.abs().amax((0, 2)) > 0
    assert reached.tolist() == [True] * 6 + [False] * 3


def test_clips_of_a_batch_are_independent():
    model = small().eval()
    features = torch.randn(3, 4, 512)
    torch.testing.assert_close(model(features[1:2]).logits_BTM, model(features).logits_BTM[1:2], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("cuts", [[1] * 11, [4, 7], [10, 1], [11]])
def test_a_stream_equals_the_whole(cuts):
    model = small().double().eval()
    features = torch.randn(2, 11, 512, dtype=torch.float64)
    whole, state, parts = model(features).logits_BTM, None, []
    for part in features.split(cuts, 1):
        output, state = model.step(part, state)
        parts.append(output.logits_BTM)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-12)
    fresh = model.step(features[:, cuts[0] :], None)[0].logits_BTM if len(cuts) > 1 else None
    assert fresh is None or not torch.allclose(fresh, whole[:, cuts[0] :]), "the state matters"


def test_any_length_is_read_in_chunks():
    model, shots = small().eval(), frames(1, 9, 32)
    torch.testing.assert_close(infer(model, shots, chunk=4).logits_BTM, model(shots).logits_BTM, rtol=1e-4, atol=1e-5)
    stream = Stream(model, chunk=4)
    assert stream.latency == 0
    assert stream.push(shots[:, :3]).logits_BTM.shape == (1, 3, 4)


def test_every_parameter_learns_and_a_masked_au_does_no_harm():
    model = small()
    assert not unreached(model, 64)
    assert_a_masked_au_is_left_out(model, 32)


def test_alexnet_reads_its_own_size_and_others_from_67_pixels_on():
    model = build("cnn_lstm", dropout=0.0)
    alexnet = model.trunk.eval()
    maps = alexnet.maps[:-1](torch.zeros(1, 3, 227, 227))
    assert maps.shape == (1, 256, 6, 6), "nothing is left to pool"
    for size in (67, 112):
        assert alexnet(torch.zeros(1, 3, size, size)).shape == (1, 4096)
    with pytest.raises(ConfigError, match=r"from 67 pixels on, not 66×80.*resnet18"):
        model(torch.zeros(1, 1, 3, 66, 80))
    assert not unreached(model, 67)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"trunk": "vgg"}, "unknown trunk 'vgg'.*alexnet, resnet18, resnet34, resnet50"),
        ({"layers": 0}, "at least one layer"),
        ({"cells": 0}, "at least one layer, one cell"),
        ({"dropout": 1.0}, "below 1"),
        ({"weights": "x.safetensors"}, "no published weights have this AlexNet's layout"),
        ({"trunk": "resnet18", "weights": "absent.safetensors"}, "absent.safetensors are not here"),
    ],
)
def test_options_that_cannot_be_are_named(options, reason):
    with pytest.raises((ConfigError, DataError), match=reason):
        build_model("cnn_lstm", options, AUS, statistics())
