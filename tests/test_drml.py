"""models/drml.py: the published layout to the integer, its region layer patch by patch, other sizes, bad input."""

import pytest
import torch
import torch.nn.functional as F
from baseline_models import (
    AUS,
    assert_a_masked_au_is_left_out,
    assert_frames_are_independent,
    build,
    frames,
    sizes,
    statistics,
    unreached,
)

from aupipe.models import build_model
from aupipe.models.drml import PatchLayer
from aupipe.schema import ConfigError

SMALL = {"filters": 8, "later_filters": 8, "hidden": [16, 8]}


def small(size=66, init="default", **options):
    return build("drml", size=size, init=init, **SMALL, **options)


@pytest.mark.parametrize(("corpus", "M"), [("bp4d", 12), ("disfa", 8)])
def test_sizes_are_those_of_the_published_layout(corpus, M):
    parameters, macs = sizes("drml", corpus, 170)
    assert parameters == 56_863_436 - (12 - M) * (2048 + 1)
    # 160², 160², 73², 66², 31² and 27² places, then the linear layers, counted by hand
    first = 160**2 * 32 * (3 * 121 + 32 * 9)
    later = 16 * (73**2 * 32 * 64 + 66**2 * 16 * 64 + 31**2 * 16 * 36 + 27**2 * 16 * 25)
    assert macs == first + later + 27**2 * 16 * 4096 + 4096 * 2048 + 2048 * M
    assert macs == pytest.approx(0.849e9, abs=5e5)


@pytest.mark.parametrize("training", [True, False])
def test_region_layer_is_a_norm_and_a_convolution_of_its_own_for_each_patch(training):
    torch.manual_seed(0)
    layer = PatchLayer(3).double().train(training)
    x = torch.randn(2, 3, 24, 32, dtype=torch.float64)
    layer.norm.running_mean.normal_()
    layer.norm.running_var.uniform_(0.5, 2)
    mean, var = layer.norm.running_mean.view(64, 3).clone(), layer.norm.running_var.view(64, 3).clone()
    expected = x.clone()
    for p in range(64):
        rows, columns = slice(p // 8 * 3, p // 8 * 3 + 3), slice(p % 8 * 4, p % 8 * 4 + 4)
        patch = x[:, :, rows, columns]
        normed = F.batch_norm(patch, None if training else mean[p], None if training else var[p], training=training)
        weight, bias = layer.conv.weight.view(64, 3, 3, 3, 3)[p], layer.conv.bias.view(64, 3)[p]
        expected[:, :, rows, columns] += F.conv2d(normed.relu(), weight, bias, padding=1)
    torch.testing.assert_close(layer(x), expected.relu(), rtol=0, atol=1e-12)
    assert not list(layer.norm.parameters()), "no scale, no shift"


def test_published_fillers():
    model = build("drml", size=66, hidden=[256, 64])
    assert model.first.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert model.hidden[0].weight.std().item() == pytest.approx(0.005, rel=0.05)
    assert model.head.weight.std().item() == pytest.approx(0.01, rel=0.2)
    ones = [model.region.conv, model.later[0], model.later[6], model.hidden[0], model.hidden[3]]
    assert all((layer.bias == 1).all() for layer in ones)
    assert not model.first.bias.any()
    assert not model.head.bias.any()
    assert small().hidden[0].bias.abs().max() < 1


@pytest.mark.parametrize(("size", "places"), [(66, 1), (74, 9), (82, 25), (90, 49)])
def test_other_sizes_give_the_first_linear_layer_other_inputs(size, places):
    model = small(size).eval()
    assert model.hidden[0].in_features == 8 * places
    output = model(frames(1, 1, size))
    assert output.logits_BTM.shape == (1, 1, 4)
    assert output.attention_BTMhw is None


def test_frames_are_independent():
    assert_frames_are_independent(small(82), 82)


def test_memory_format_changes_nothing():
    model, shots = small(82).eval(), frames(2, 2, 82)
    expected = model(shots).logits_BTM
    laid_out = model.to(memory_format=torch.channels_last)(shots).logits_BTM
    torch.testing.assert_close(laid_out, expected, rtol=1e-4, atol=1e-5)


def test_every_parameter_learns_and_a_masked_au_does_no_harm():
    assert not unreached(small(82, dropout=0.0), 82)
    assert_a_masked_au_is_left_out(small(), 66)


def test_dropout_is_for_training_alone():
    model, shots = small(82), frames(1, 1, 82)
    assert not torch.equal(model.train()(shots).logits_BTM, model(shots).logits_BTM)
    assert torch.equal(model.eval()(shots).logits_BTM, model(shots).logits_BTM)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"size": 64}, r"frames of 66, 74, 82 … pixels, not 64; set model\.size"),
        ({"size": 58}, "not 58"),
        ({"size": 176}, "not 176"),
        ({"filters": 0}, "positive filters"),
        ({"hidden": []}, "at least one hidden layer"),
        ({"hidden": [8, 0]}, "hidden widths"),
        ({"dropout": 1.0}, "below 1, not 1.0"),
        ({"init": "xavier"}, "known are caffe, he, default"),
        ({"width": 3}, "unknown"),
    ],
)
def test_options_that_cannot_be_are_named(options, reason):
    with pytest.raises(ConfigError, match=reason):
        build_model("drml", options, AUS, statistics())


def test_frames_of_another_size_are_refused():
    with pytest.raises(ConfigError, match=r"66×66 pixels, not 64×66; set model\.size"):
        small()(torch.zeros(1, 1, 3, 64, 66))


def test_he_keeps_what_frames_differ_by_and_torchs_own_does_not():
    """There is no norm after the region layer, so torch's own start shrinks the difference of two frames layer by layer."""
    frames = torch.randn(32, 1, 3, 82, 82, generator=torch.Generator().manual_seed(0))
    spread = {}
    for init in ("default", "he"):
        torch.manual_seed(0)
        spread[init] = small(size=82, init=init, dropout=0.0)(frames).logits_BTM.std(0).mean().item()
    assert 0.1 < spread["he"] < 3
    assert spread["default"] < spread["he"] / 5
