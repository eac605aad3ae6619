"""models/arl_like.py: sizes, the branch as published but for the field, initial weights, other AUs, bad input."""

import pytest
import torch
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
from torch.utils.flop_counter import FlopCounterMode

from aupipe.facs import AU_SETS
from aupipe.models import build_model
from aupipe.models._stral_plain import PlainAttentionNetwork
from aupipe.schema import ConfigError, DataError


def small(aus=AUS, seed=0, c=1, init="default", **options):
    return build("arl_like", aus, seed, c=c, init=init, map_channels=2, **options)


@pytest.mark.parametrize(("corpus", "parameters"), [("bp4d", 4_000_824), ("disfa", 3_205_680)])
def test_parameters_are_those_of_the_published_network_without_its_field(corpus, parameters):
    assert sizes("arl_like", corpus, 176)[0] == parameters
    # STRAL's attention stage; per AU a linear layer 64 → 64, a convolution 64 → 16 with BatchNorm, a map of 48 inputs less
    M, attention = {"bp4d": (12, 3_844_920), "disfa": (8, 3_101_744)}[corpus]
    assert parameters == attention + M * (64 * 65 + 64 * 9 * 16 + 16 + 2 * 16 - 48 * 9)


def test_multiplications_of_the_network_as_drawn_are_those_of_the_table():
    model = build("arl_like", AU_SETS["bp4d"])
    with FlopCounterMode(display=False) as counter:
        PlainAttentionNetwork(model.attention).to("meta")(torch.empty(1, 3, 176, 176, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(5.06, abs=5e-3)


def test_a_branch_is_computed_as_published():
    model = small().double().eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "norm" in name and tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    own, m = model.attention.branches, 2  # the third of four AUs
    D, x = 8, torch.randn(3, 8, 4, 4, dtype=torch.float64)

    def conv(layer, x, padding=1):
        parts = layer.weight.chunk(4)[m], layer.bias.chunk(4)[m]
        return torch.nn.functional.conv2d(x, *parts, padding=padding)

    def norm(layer, x):
        mean, var, weight, bias = (getattr(layer, n).chunk(4)[m] for n in ("running_mean", "running_var", "weight", "bias"))
        return torch.nn.functional.batch_norm(x, mean, var, weight, bias)

    conv31 = norm(own.pre_norms[0], conv(own.pre[0], x)).relu()
    scale = torch.sigmoid(conv(own.gate, conv31.mean((2, 3), keepdim=True), 0))
    conv32 = norm(own.pre_norms[1], conv(own.pre[1], conv31) * scale).relu()
    conv32_new = norm(own.pre_norms[2], conv(own.pre[2], conv32)).relu()
    conv33 = torch.tanh(norm(own.map_norm, conv(own.map, conv32_new)))
    attention = torch.sigmoid(conv(own.attention, conv33))
    conv34 = norm(own.weighted_norm, conv(own.weighted, conv32_new) * attention).relu()
    features, maps = own(x)
    torch.testing.assert_close(features[:, m], conv(own.feature, conv34).mean((2, 3)), rtol=0, atol=1e-12)
    torch.testing.assert_close(maps[:, m], attention[:, 0], rtol=0, atol=1e-12)
    assert features.shape == (3, 4, D)


def test_output_has_a_map_for_each_au():
    output = small().eval()(frames(2, 3, 32))
    assert output.attention_BTMhw.shape == (2, 3, 4, 8, 8)
    assert 0 < output.attention_BTMhw.min() <= output.attention_BTMhw.max() < 1


def test_frames_are_independent():
    assert_frames_are_independent(small(), 16)


def test_every_parameter_learns_and_a_masked_au_does_no_harm():
    assert not unreached(small(c=2), 32)
    assert_a_masked_au_is_left_out(small(), 16, attention_l1=1e-4)


def test_initial_weights_are_the_published_gaussians():
    model = build("arl_like", c=2)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight"))))
        elif name.endswith("bias"):
            assert not parameter.any()
        elif parameter.numel() > 1000:
            assert parameter.std().item() == pytest.approx(0.01, rel=0.1), name
    assert small(init="default").attention.branches.pre[0].bias.any()


def test_other_aus_start_from_the_branches_that_the_map_names():
    bp4d, disfa = AU_SETS["bp4d"], AU_SETS["disfa"]
    old, new = small(bp4d, 1).eval(), small(disfa, 2).eval()
    new.start_from(old.state_dict(), bp4d, {9: 10, 25: 23, 26: 24})
    expected = old(frames(size=16)).logits_BTM[..., [0, 1, 2, 3, 5, 6, 10, 11]]
    torch.testing.assert_close(new(frames(size=16)).logits_BTM, expected, rtol=0, atol=1e-6)
    with pytest.raises(ConfigError, match=r"AU09 has no branch.*init\.au_map"):
        new.start_from(old.state_dict(), bp4d)
    with pytest.raises(DataError, match="another network"):
        new.start_from(build("stral", disfa, c=1, variant="al").state_dict(), disfa)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"c": 0}, "c ≥ 1"),
        ({"map_channels": 0}, "map_channels ≥ 1"),
        ({"init": "caffe"}, "unknown init 'caffe'.*gaussian001, default"),
        ({"branches": "fast"}, "auto, loop, grouped"),
    ],
)
def test_options_that_cannot_be_are_named(options, reason):
    with pytest.raises(ConfigError, match=reason):
        build_model("arl_like", options, AUS, statistics())


@pytest.mark.parametrize(("H", "W"), [(24, 16), (16, 170), (0, 16)])
def test_frames_of_other_sizes_are_refused(H, W):
    with pytest.raises(ConfigError, match=f"multiples of 16, not {H}×{W}.*input.crop"):
        small()(torch.zeros(1, 1, 3, H, W))
