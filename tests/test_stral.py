"""models/stral.py: sizes to the integer, variants, any length, two stages, bad input."""

import logging

import numpy as np
import pytest
import torch
from counting import count, multiplications
from stral_models import AUS, PEARSON, build, connect, frames, settle, statistics

from aupipe.config import LossConfig
from aupipe.facs import AU_SETS, AUSet
from aupipe.folds import label_stats
from aupipe.losses import label_weights, loss_terms
from aupipe.models import build_model
from aupipe.models._sequences import infer
from aupipe.models._stral_plain import PlainAttentionNetwork
from aupipe.models.stral import relation_graph
from aupipe.schema import ConfigError, DataError

# Sizes


ATTENTION = {12: {3: 3_844_920, 2: 3_400_248, 1: 2_955_576}, 8: {3: 3_101_744, 2: 2_805_296, 1: 2_508_848}}
GRAPH = {
    (12, "gsf"): (133_900, 135_948),
    (12, "gsa"): (137_356, 139_404),
    (12, "stral"): (268_428, 270_476),
    (8, "gsf"): (133_640, 135_688),
    (8, "gsa"): (135_176, 137_224),
    (8, "stral"): (266_248, 268_296),
}
TOTAL = {12: 4_115_396, 8: 3_370_040}
GMAC = {(12, 3): 4.858, (12, 2): 4.001, (12, 1): 3.145, (8, 3): 3.426}


@pytest.mark.parametrize("corpus", ["bp4d", "disfa"])
def test_parameters_are_those_of_the_table_to_the_integer(corpus):
    aus = AU_SETS[corpus]
    M, stats = len(aus), statistics(np.eye(len(aus)))

    def size(variant, **options):
        return build_model("stral", {"variant": variant, **options}, aus, stats)

    print(f"\n{corpus}: {M} AUs")
    for layers, expected in ATTENTION[M].items():
        counts = {variant: count(size(variant, pre_layers=layers)) for variant in ("al", "al_r")}
        print(f"  attention stage, {layers} pre_layers  {counts['al']:>9,}")
        assert counts == {"al": expected, "al_r": expected}
    for variant in ("gsf", "gsa", "stral"):
        for activation, expected in zip(("literal", "stgcn"), GRAPH[M, variant], strict=True):
            model = size(variant, activation=activation)
            print(f"  {variant:5s} {activation:7s} graph {count(model.relations):>9,}  total {count(model):>9,}")
            assert count(model.relations) == expected
            assert count(model) == ATTENTION[M][3] + expected
    assert count(size("stral")) == TOTAL[M]


@pytest.mark.parametrize(("M", "layers"), GMAC)
def test_multiplications_of_the_network_as_drawn_are_those_of_the_table(M, layers):
    aus = AUSet(AU_SETS["bp4d"].numbers[:M])
    model = build_model("stral", {"variant": "al", "pre_layers": layers}, aus, statistics(np.eye(M)))
    macs = {}
    for name, network in (("drawn", PlainAttentionNetwork(model.attention)), ("ours", model.attention)):
        macs[name] = multiplications(network, 1, 3, 176, 176) / 1e9
    assert macs["drawn"] == pytest.approx(GMAC[M, layers], abs=6e-4)
    # Each branch's last convolution, 64² × 9 at 44² places, is only computed as its mean.
    assert macs["drawn"] - macs["ours"] == pytest.approx(M * 64 * 64 * 9 * 44 * 44 / 1e9, rel=0.02)


# Variants


VARIANTS = ("al", "al_r", "gsf", "gsa", "stral")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("T", [1, 3])
def test_every_variant_takes_any_number_of_frames(variant, T):
    model = build(variant).eval()
    output = model(frames(2, T))
    assert output.logits_BTM.shape == (2, T, 4)
    assert output.attention_BTMhw.shape == (2, T, 4, 4, 4)
    assert output.attention_BTMhw.min() > 0
    assert output.attention_BTMhw.max() < 1
    assert (output.aux_logits_BTM is not None) == (variant in ("gsf", "gsa", "stral"))


def test_only_learned_edges_learn_and_they_do_from_the_first_step():
    learned = {}
    for variant in ("gsf", "gsa", "stral"):
        model = build(variant).train()
        model(frames(2, 3)).logits_BTM.square().sum().backward()
        learned[variant] = [layer.edges for layer in model.relations.layers]
        kernels = {layer.temporal.kernel_size for layer in model.relations.layers}
        assert kernels == {(5 if variant == "stral" else 1, 1)}
        assert len(model.relations.layers) == 8
    assert learned["gsf"] == [None] * 8
    there = torch.tensor(relation_graph(PEARSON).partitions_3MM > 0)
    for edges in learned["gsa"] + learned["stral"]:
        assert torch.equal(edges.grad != 0, there), "where there is an edge, and nowhere else"
        assert edges.tanh()[0, 0, 0].item() == pytest.approx(np.tanh(1))


def test_an_au_hears_only_of_its_component():
    model = build("stral").eval()
    features = torch.randn(1, 6, 4, 8)
    changed = features.clone()
    changed[:, :, 3] += 1  # AU12 is isolated
    moved = (model(changed).logits_BTM - model(features).logits_BTM).abs().amax((0, 1)) > 1e-6
    assert moved.tolist() == [False, False, False, True]
    changed = features.clone()
    changed[:, :, 1] += 1
    moved = (model(changed).logits_BTM - model(features).logits_BTM).abs().amax((0, 1)) > 1e-6
    assert moved.tolist() == [True, True, True, False]


def test_every_option_changes_what_is_computed_and_no_other_mode_does():
    shots = frames(1, 4)
    plain = build().eval()(shots).logits_BTM
    for same in ({"branches": "loop"}, {"branches": "grouped"}, {"finetune": True}):
        torch.testing.assert_close(build(**same).eval()(shots).logits_BTM, plain, rtol=1e-4, atol=1e-5)
    for other in (
        {"pre_layers": 2},
        {"mask_after_relu": True},
        {"feature_norm": True},
        {"graph_layers": 2},
        {"temporal_kernel": 3},
        {"threshold": 0.7},
        {"activation": "literal"},
        {"orientation": "stgcn"},
        {"edge_init": 0.5},
        {"centre": 2},
        {"init": "gaussian001"},
    ):
        assert not torch.allclose(build(**other).eval()(shots).logits_BTM, plain, atol=1e-4), other


def test_gaussian_start_is_arls():
    attention = build_model("stral", {"variant": "al", "init": "gaussian001"}, AUS, statistics()).attention
    assert attention.branches.weighted.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not attention.branches.weighted.bias.any()
    assert (attention.branches.weighted_norm.weight == 1).all()


def test_bf16_is_close_to_single_precision():
    model = build(c=2).eval()
    exact = model(frames(1, 3)).logits_BTM
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(frames(1, 3)).logits_BTM
    assert (rough - exact).abs().max() < 0.1 * exact.abs().max() + 0.05


def share_right(variant, steps=80):
    """Trained on features that show each AU's state, for an AU that does what its neighbour did two frames before."""
    model = build(variant, AUSet((1, 2)), statistics(connect(2, (0, 1))), graph_layers=2).train()
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.02)
    generator = torch.Generator().manual_seed(5)
    for step in range(steps + 1):
        states = (torch.rand(8, 34, 2, generator=generator) < 0.5).float()
        features = torch.randn(8, 34, 2, 8, generator=generator) * 0.3 + states[..., None]
        logits, labels = model(features).logits_BTM[:, 2:, 0], states[:, :-2, 1]
        if step == steps:
            return ((logits > 0) == (labels > 0)).float().mean().item()
        optimiser.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(logits, labels).backward()
        optimiser.step()


def test_only_the_full_graph_reads_what_another_au_did_before():
    assert share_right("stral") > 0.9
    assert share_right("gsa") < 0.65


# Any length


@pytest.mark.parametrize("variant", VARIANTS)
def test_chunks_with_the_halo_are_the_whole_sequence(variant):
    model = settle(build(variant))
    shots = frames(1, 41)
    with torch.inference_mode():
        whole = model(shots).logits_BTM
        assert whole.std(1).min() > 1e-3, "the frames differ"
        for chunk in (5, 16, 41, 100):
            torch.testing.assert_close(infer(model, shots, chunk).logits_BTM, whole, rtol=0, atol=1e-5)


def reach(model):
    return model.past, model.future


def test_halo_is_the_reach_of_the_graph_exactly():
    model = build("stral").double().eval()
    assert reach(model) == (16, 16)
    assert reach(build("stral", temporal_kernel=3, graph_layers=3)) == (3, 3)
    assert reach(build("gsa")) == reach(build("al")) == (0, 0)
    features = torch.randn(1, 50, 4, 8, dtype=torch.float64).requires_grad_()
    model(features).logits_BTM[0, 25].sum().backward()
    reached = torch.nonzero(features.grad.abs().amax((0, 2, 3))).flatten()
    assert (reached.min().item(), reached.max().item()) == (25 - 16, 25 + 16)


def test_a_halo_too_small_is_not_the_whole_sequence():
    model = build("stral").double().eval()
    features = torch.randn(1, 60, 4, 8, dtype=torch.float64)
    whole = model(features).logits_BTM
    part = model(features[:, 20 - 15 : 40]).logits_BTM[:, 15:]
    assert not torch.equal(part[:, 0], whole[:, 20])
    exact = model(features[:, 20 - 16 : 40 + 16]).logits_BTM[:, 16:-16]
    torch.testing.assert_close(exact, whole[:, 20:40], rtol=0, atol=1e-12)


# Two stages


def test_second_stage_learns_the_graph_alone_and_leaves_the_first_as_it_is():
    model = build("stral").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, weight_decay=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        model(frames()).logits_BTM.square().sum().backward()
        optimiser.step()
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not [name for name in changed if name.startswith("attention.")], "not even running statistics"
    assert {"relations.heads.weight", "relations.layers.0.edges", "relations.layers.7.temporal.weight"} <= changed
    assert "relations.layers.0.norm_1.running_mean" in changed


def test_fine_tuning_and_thawing_let_the_first_stage_learn():
    for model in (build("stral", finetune=True), build("stral"), build("al")):
        model.freeze_attention(False)
        model.train()
        mean = model.attention.region_1.norm.running_mean.clone()
        model(frames()).logits_BTM.square().sum().backward()
        assert model.attention.region_1.stem.weight.grad.abs().max() > 0
        assert not torch.equal(model.attention.region_1.norm.running_mean, mean)
        model.freeze_attention()
        assert not model.attention.training
        assert not any(p.requires_grad for p in model.attention.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_kept_features_stand_for_the_frames(variant):
    model = build(variant).eval()
    shots = frames()
    kept = model.features(shots)
    assert kept.shape == (2, 5, 4, 8)
    direct, later = model(shots), model(kept)
    torch.testing.assert_close(later.logits_BTM, direct.logits_BTM, rtol=0, atol=0)
    assert later.attention_BTMhw is None
    if variant in ("gsf", "gsa", "stral"):
        model.train()
        torch.testing.assert_close(model.features(shots), kept, rtol=0, atol=0), "frozen, so the same in training"
        torch.testing.assert_close(later.aux_logits_BTM, direct.aux_logits_BTM, rtol=0, atol=0)


def test_variants_share_the_first_stage():
    first = build("al_r", seed=1).eval()
    second = build("stral", seed=2).eval()
    second.start_from(first.state_dict(), AUS)
    torch.testing.assert_close(second(frames()).aux_logits_BTM, first(frames()).logits_BTM, rtol=0, atol=0)
    assert not torch.equal(second.relations.heads.weight, second.attention.heads.weight), "new heads"
    again = build("stral", seed=2, new_heads=False)
    again.start_from(first.state_dict(), AUS)
    assert torch.equal(again.relations.heads.weight, first.attention.heads.weight)
    assert torch.equal(again.relations.layers[3].spatial.weight, second.relations.layers[3].spatial.weight)


def test_other_aus_start_from_the_branches_that_the_map_names():
    bp4d, disfa = AU_SETS["bp4d"], AU_SETS["disfa"]
    old = build("al_r", bp4d, statistics(np.eye(12)), seed=1).eval()
    new = build("al_r", disfa, statistics(np.eye(8)), seed=2).eval()
    new.start_from(old.state_dict(), bp4d, {9: 10, 25: 23, 26: 24})  # §4.1
    expected = old(frames()).logits_BTM[..., [0, 1, 2, 3, 5, 6, 10, 11]]
    torch.testing.assert_close(new(frames()).logits_BTM, expected, rtol=0, atol=1e-6)


def test_a_start_that_cannot_be_is_refused():
    old = build("al", AU_SETS["bp4d"], statistics(np.eye(12)))
    new = build("al", AU_SETS["disfa"], statistics(np.eye(8)))
    with pytest.raises(ConfigError, match=r"AU25 has no branch.*init\.au_map"):
        new.start_from(old.state_dict(), AU_SETS["bp4d"], {9: 10})
    same = build("al", c=2)
    with pytest.raises(DataError, match="another network"):
        same.start_from(build("al").state_dict(), AUS)
    with pytest.raises(DataError, match="another network"):
        same.start_from({}, AUS)


def test_the_graph_is_kept_with_the_weights():
    model = build("gsa")
    stored = model.state_dict()["relations.partitions_3MM"]
    torch.testing.assert_close(stored, torch.tensor(relation_graph(PEARSON).partitions_3MM).float())
    other = build("gsa", stats=statistics(np.eye(4)))
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other.eval()(frames()).logits_BTM, model.eval()(frames()).logits_BTM)


# Bad input


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"variant": "gst"}, "unknown variant 'gst'.*al, al_r, gsf, gsa, stral"),
        ({"temporal_kernel": 4}, "must be odd.*got 4"),
        ({"temporal_kernel": -1}, "must be odd"),
        ({"pre_layers": 4}, "1 to 3 pre_layers"),
        ({"c": 0}, "c ≥ 1"),
        ({"graph_layers": 0}, "graph_layers ≥ 1"),
        ({"edge_init": 0}, "tanh"),
        ({"activation": "relu"}, "stgcn, literal"),
        ({"orientation": "column"}, "row, stgcn"),
        ({"branches": "fast"}, "auto, loop, grouped"),
        ({"init": "xavier"}, "gaussian001"),
        ({"centre": 14}, "AU14 is not among AUs 1, 2, 4, 12"),
        ({"temporal_kernal": 5}, "did you mean 'temporal_kernel'"),
    ],
)
def test_options_that_cannot_be_are_named(options, reason):
    with pytest.raises(ConfigError, match=reason):
        build_model("stral", options, AUS, statistics())


@pytest.mark.parametrize(("H", "W"), [(24, 16), (16, 170), (0, 16)])
def test_frames_of_other_sizes_are_refused(H, W):
    with pytest.raises(ConfigError, match=f"multiples of 16, not {H}×{W}.*input.crop"):
        build("al")(torch.zeros(1, 1, 3, H, W))


@pytest.mark.parametrize("variant", VARIANTS)
def test_statistics_of_other_aus_are_refused(variant):
    with pytest.raises(DataError, match="statistics are of 3 AUs, the model's are 4"):
        build(variant, stats=statistics(np.eye(3)))


def test_an_au_without_a_positive_gets_no_weight_no_edge_and_a_warning(caplog):
    labels = np.random.default_rng(0).integers(0, 2, (60, 4)).astype(float)
    labels[:, 1] = labels[:, 0]
    labels[:, 2] = 0
    stats = label_stats(labels)
    with caplog.at_level(logging.WARNING):
        model = build("stral", stats=stats).train()
        weights = label_weights(LossConfig(weighting="inverse_rate"), stats)
    assert "AU04" in caplog.text
    assert "AU02" not in caplog.text
    assert relation_graph(stats.pearson_MM).adjacency_MM[2].tolist() == [False, False, True, False]
    assert weights["weights"][2] == 0
    output = model(frames(2, 3))
    mask = torch.ones(2, 3, 4, dtype=torch.bool)
    loss = sum(loss_terms(output, torch.zeros(2, 3, 4), mask, LossConfig(weighting="inverse_rate"), weights).values())
    loss.backward()
    assert torch.isfinite(loss)
    assert not model.relations.heads.weight.grad[2].any()
    assert model.relations.heads.weight.grad[[0, 1, 3]].any(1).all()


def test_a_train_side_without_a_positive_is_refused():
    with pytest.raises(DataError, match="no AU has a positive"):
        build("stral", stats=label_stats(np.zeros((20, 4))))
