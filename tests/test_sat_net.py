"""models/sat_net.py: sizes to the integer, its four variants, windows, any length, bad input."""

import pytest
import torch
from counting import count, multiplications
from sat_net_models import ATTENTIVE, AUS, TEMPORAL, VARIANTS, build, frames

from aupipe.facs import AU_SETS
from aupipe.models import build_model
from aupipe.models._conv_lstm import PlainConvLSTM
from aupipe.models._sequences import infer
from aupipe.schema import ConfigError

# Sizes


PARAMETERS = {  # of 12 AUs
    (18, "resnet"): 11_182_668,
    (18, "t_net"): 12_362_828,
    (18, "sa_net"): 11_188_824,
    (18, "sat_net"): 12_368_984,
    (34, "resnet"): 21_290_828,
    (34, "t_net"): 22_470_988,
    (34, "sa_net"): 21_296_984,
    (34, "sat_net"): 22_477_144,
    (50, "resnet"): 23_532_620,
    (50, "t_net"): 42_409_036,
    (50, "sa_net"): 23_557_208,
    (50, "sat_net"): 42_433_624,
}
PARAMETERS_OF_8 = {"resnet": 11_180_616, "t_net": 12_360_776, "sa_net": 11_184_720, "sat_net": 12_364_880}  # depth 18
JAA_NET = 22_162_854


def sizes(corpus):
    with torch.device("meta"):
        for depth, variant in PARAMETERS:
            yield depth, variant, build_model("sat_net", {"variant": variant, "depth": depth}, AU_SETS[corpus], None)


@pytest.mark.parametrize("corpus", ["bp4d", "disfa"])
def test_parameters_are_those_of_the_table_to_the_integer(corpus):
    M = len(AU_SETS[corpus])
    print(f"\n{corpus}: {M} AUs")
    for depth, variant, model in sizes(corpus):
        # An AU has a weight per channel of the last map and a bias, and as many for its mask.
        of_an_au = (model.trunk.channels + 1) * (2 if variant in ATTENTIVE else 1)
        print(f"  {variant:8s} {depth}  {count(model):>11,}")
        assert count(model) == PARAMETERS[depth, variant] - (12 - M) * of_an_au
        assert M == 12 or depth != 18 or count(model) == PARAMETERS_OF_8[variant]
        if variant in TEMPORAL:
            assert count(model.fusion) == {18: 1_180_160, 34: 1_180_160, 50: 18_876_416}[depth]


def test_only_with_18_layers_it_has_the_least_parameters():
    assert PARAMETERS[18, "sat_net"] < JAA_NET < PARAMETERS[34, "sat_net"]


def test_multiplications_are_those_of_the_table():
    of_frame, of_step = {224: 1.814, 176: 1.168}, {224: 0.925, 176: 0.571}  # 10⁹; a step is a convolution of x and one of h
    table = {}
    for depth, variant, model in sizes("bp4d"):
        for side in of_frame:
            table[depth, variant, side] = multiplications(model.eval(), 1, 1, 3, side, side) / 1e9
        print(f"  {variant:8s} {depth} " + " ".join(f"{table[depth, variant, side]:8.3f} G at {side}" for side in of_frame))
    for side, macs in of_frame.items():
        assert table[18, "resnet", side] == pytest.approx(macs, abs=6e-4)
        # Of the 8 steps of a window each costs half of what is printed: the window shares its input's convolutions, and
        # the first step has no state.
        for attentive, temporal in (("resnet", "t_net"), ("sa_net", "sat_net")):
            fusion = table[18, temporal, side] - table[18, attentive, side]
            assert fusion == pytest.approx(8 * of_step[side] / 2, rel=1e-3)
            assert 0 < table[18, "sa_net", side] - table[18, "resnet", side] < 1e-3
    assert table[50, "t_net", 224] - table[50, "resnet", 224] == pytest.approx(8 * 14.8 / 2, rel=1e-3)


# Variants


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("T", [1, 4])
def test_every_variant_takes_any_number_of_frames(variant, T):
    output = build(variant).eval()(frames(T, 2, 64))
    assert output.logits_BTM.shape == (2, T, 3)
    assert output.logits_BTM.dtype == torch.float32
    assert output.intensity_BTM is None
    if variant in ATTENTIVE:
        assert output.attention_BTMhw.shape == (2, T, 3, 2, 2)
        assert 0 < output.attention_BTMhw.min() < output.attention_BTMhw.max() < 1
        assert output.aux_logits_BTM.shape == (2, T, 3)
    else:
        assert output.attention_BTMhw is output.aux_logits_BTM is None


def plain(model, shots, length=3):
    """As described: every frame by itself through half of the trunk, its window step by step through a ConvLSTM, the other
    half, a map and a mask per AU.
    """
    fusion, head, D = PlainConvLSTM(model.fusion), model.head, model.trunk.channels
    logits = []
    for t in range(shots.shape[1]):
        h = c = None
        for s in range(t - length + 1, t + 1):
            x = model.trunk.early(shots[:, max(s, 0)])
            h, c = fusion.step(x, *((torch.zeros_like(x),) * 2 if h is None else (h, c)))
        fused = x + h if model.config.fusion == "residual" else h
        features = model.trunk.late(fused)
        of_au = []
        for m in range(len(AUS)):
            score = torch.einsum("bdhw,d->bhw", features, head.features.weight[m].view(D)) + head.features.bias[m]
            if head.masks is not None:
                mask = torch.einsum("bdhw,d->bhw", features, head.masks.weight[m].view(D)) + head.masks.bias[m]
                score = score * torch.sigmoid(mask)
            of_au.append(score.mean((1, 2)))
        logits.append(torch.stack(of_au, -1))
    return torch.stack(logits, 1)


@pytest.mark.parametrize("fusion", ["replace", "residual"])
@pytest.mark.parametrize("variant", TEMPORAL)
def test_logits_are_those_of_a_window_of_its_own_for_every_frame(variant, fusion):
    model, shots = build(variant, fusion=fusion).double().eval(), frames(5, 2).double()
    output, wanted = model(shots), plain(model, shots)
    torch.testing.assert_close(output.logits_BTM.double(), wanted, rtol=0, atol=1e-6)
    gradients = []
    for logits in (output.logits_BTM, wanted):
        model.zero_grad()
        (logits * torch.linspace(-1, 1, logits.numel()).view(logits.shape)).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if not name.startswith("fusion")})
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_without_a_convlstm_frames_are_independent():
    for variant in ("resnet", "sa_net"):
        model, shots = build(variant).eval(), frames(4, 2)
        whole = model(shots).logits_BTM
        each = torch.cat([model(shots[:, t : t + 1]).logits_BTM for t in range(4)], 1)
        torch.testing.assert_close(each, whole, rtol=0, atol=1e-5)
        assert (model.past, model.future) == (0, 0)


def test_without_masks_the_head_is_the_mean_and_a_linear_layer():
    model, shots = build("resnet").eval(), frames(2)
    pooled = model.trunk(shots[0]).mean((2, 3))
    expected = torch.nn.functional.linear(pooled, model.head.features.weight.flatten(1), model.head.features.bias)
    torch.testing.assert_close(model(shots).logits_BTM[0], expected)


def test_masking_the_map_before_the_linear_layer_is_the_same():
    model, x = build("sa_net").eval(), torch.randn(2, 512, 3, 3)
    masks = torch.sigmoid(model.head.masks(x))
    masked = torch.einsum("nmhw,ndhw->nmd", masks, x) / 9
    expected = torch.einsum("nmd,md->nm", masked, model.head.features.weight.flatten(1))
    expected = expected + model.head.features.bias * masks.mean((2, 3))
    torch.testing.assert_close(model.head(x).logits_BTM, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_frame_hears_of_its_window_and_of_nothing_else(variant):
    for mode, reach in (("window", 3), ("stateful", 6)):
        model, shots = build(variant, mode=mode).eval(), frames(6)
        changed = shots.clone()
        changed[:, 1] = frames(1, seed=9)[:, 0]
        moved = (model(changed).logits_BTM - model(shots).logits_BTM).abs().amax((0, 2)) > 1e-4
        last = 1 if variant not in TEMPORAL else min(5, reach)
        assert moved.tolist() == [1 <= t <= last for t in range(6)]
        assert model.past == (0 if variant not in TEMPORAL else 2 if mode == "window" else None)


def test_the_trunk_sees_a_frame_once():
    model, seen = build().eval(), []
    model.trunk.layer2.register_forward_hook(lambda _, inputs, output: seen.append(len(output)))
    model(frames(7, 2))
    assert seen == [14]


def test_intensities_come_under_the_masks_from_0_to_5():
    for variant in VARIANTS:
        model = build(variant, intensity=True).eval()
        intensity = model(frames(4)).intensity_BTM
        assert intensity.shape == (1, 4, 3)
        assert 0 < intensity.min() < intensity.max() < 5
        assert count(model) - count(build(variant)) == 3 * 513


def test_bf16_is_close_to_single_precision():
    model, shots = build().eval(), frames(4)
    exact = model(shots)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(shots)
    assert rough.logits_BTM.dtype == torch.float32
    assert (rough.logits_BTM - exact.logits_BTM).abs().max() < 0.15 * exact.logits_BTM.abs().max()
    assert (rough.attention_BTMhw - exact.attention_BTMhw).abs().max() < 0.05


# Any length


@pytest.mark.parametrize(("variant", "mode"), [(v, "window") for v in VARIANTS] + [("sat_net", "stateful")])
@pytest.mark.parametrize("T", [1, 2, 11])
def test_chunks_and_steps_are_the_whole_sequence(variant, mode, T):
    model, shots = build(variant, mode=mode).eval(), frames(T, 2)
    with torch.inference_mode():
        whole = model(shots)
        assert T < 3 or whole.logits_BTM.std(1).min() > 1e-2, "the frames differ, so a shift would show"
        parts = [infer(model, shots, chunk) for chunk in (1, 2, 4, 64)]
        for chunk in (1, 3):
            state, stepped = None, []
            for part in shots.split(chunk, 1):
                output, state = model.step(model.features(part), state)
                stepped.append(output)
            parts.append(whole._make(None if p[0] is None else torch.cat(p, 1) for p in zip(*stepped, strict=True)))
        parts.append(model(model.features(shots)))
    for part in parts:
        torch.testing.assert_close(part, whole, rtol=0, atol=1e-5)


def test_a_state_is_no_window():
    """Nor is a window long enough to hold the whole sequence: it begins with repeats of the first frame."""
    whole, shots = build(mode="stateful").eval(), frames(6)
    windows = [build(window=length).eval()(shots).logits_BTM for length in (3, 6, 7)]
    for other in windows:
        assert (whole(shots).logits_BTM - other).abs().max() > 1e-3
    torch.testing.assert_close(whole(shots).logits_BTM[:, -1], windows[1][:, -1], rtol=0, atol=1e-5)


# Bad input


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"variant": "satnet"}, "unknown variant 'satnet'.*resnet, t_net, sa_net, sat_net"),
        ({"fusion": "sum"}, "unknown fusion 'sum'.*replace, residual"),
        ({"mode": "stream"}, "unknown mode 'stream'.*window, stateful"),
        ({"targets": "first"}, "unknown targets 'first'.*all, last"),
        ({"depth": 101}, "depth of 18, 34, 50, not 101"),
        ({"window": 0}, "at least 1 frame, not 0.*model.window"),
        ({"kernel": 4}, "must be odd.*got 4"),
        ({"windw": 8}, "did you mean 'window'"),
    ],
)
def test_options_that_cannot_be_are_named(options, reason):
    with pytest.raises(ConfigError, match=reason):
        build(**options)


@pytest.mark.parametrize("shape", [(1, 3, 31, 64), (1, 1, 64, 64), (0, 3, 64, 64)])
def test_frames_of_other_shapes_are_refused(shape):
    T, C, H, W = shape
    with pytest.raises(ConfigError, match=f"3×32×32 or larger, not {T} of {C}×{H}×{W}; set the recipe's input.crop"):
        build()(torch.zeros(1, *shape))


def test_frames_without_a_face_give_numbers():
    model = build().train()
    output = model(torch.cat([torch.zeros(2, 2, 3, 32, 32), frames(2, 2)], 1))
    assert torch.isfinite(output.logits_BTM).all()
