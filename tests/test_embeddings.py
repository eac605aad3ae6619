"""models/embeddings.py: a trunk that stays, a perceptron that learns, and a mean in time whose reach is exact."""

import numpy as np
import pytest
import torch
from conftest import AUS, STATS, make_recipe, make_training
from safetensors.torch import save_file
from torch.nn import functional as F

from aupipe import inference, loop, schema
from aupipe.checkpoint import load_checkpoint
from aupipe.clips import ClipSpec, plan_clips
from aupipe.facs import AU_SETS
from aupipe.metrics import Counts
from aupipe.models import build_model, check_config
from aupipe.models._backbones import TRUNKS
from aupipe.models._sequences import Stream, infer
from aupipe.models.embeddings import TemporalMean
from aupipe.schema import ConfigError, DataError, LabelStats

STATISTICS = LabelStats.from_json(STATS)


def build(backbone="attention_cnn", aus=AUS, seed=0, **options):
    torch.manual_seed(seed)
    options = options if "weights" in options else {"random": True, **options}
    model = build_model("embeddings", {"backbone": backbone, **options}, aus, STATISTICS)
    with torch.no_grad():
        model.smoothing.scores.normal_()
    return model


def frames(T, B=2, side=32):
    return torch.rand(B, T, 3, side, side, generator=torch.Generator().manual_seed(T))


@pytest.mark.parametrize(("backbone", "channels"), [("resnet18", 512), ("efficientnet_b0", 1280), ("attention_cnn", 256)])
def test_size_is_the_trunk_the_perceptron_and_the_kernels(backbone, channels):
    model = build(backbone, aus=AU_SETS["bp4d"])
    learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert learned == channels * 256 + 256 + 256 * 12 + 12 + 12 * 9
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    expected = {"resnet18": 11_176_512, "efficientnet_b0": 4_007_548, "attention_cnn": 1_127_808}
    assert frozen == expected[backbone]
    assert model.features(frames(3, side=64)).shape == (2, 3, channels)


def test_only_the_perceptron_and_the_kernels_learn():
    model = build().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    model(frames(6)).logits_BTM.sub(1).square().sum().backward()
    optimiser.step()
    changed = {name.split(".")[0] for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"norm", "hidden", "head", "smoothing"}


def test_trunk_starts_from_any_model_that_has_one():
    torch.manual_seed(4)
    other = build_model("sat_net", {"variant": "resnet"}, AUS, STATISTICS)
    model = build("resnet18")
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.start_from(other.state_dict(), AUS)
    trunk = {name.split("trunk.")[-1]: tensor for name, tensor in model.state_dict().items() if "trunk." in name}
    given = other.state_dict()
    for name, tensor in trunk.items():
        assert any(key.endswith(name) and torch.equal(tensor, given[key]) for key in given), name
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items() if "trunk." not in name)
    with pytest.raises(
        DataError, match=r"^the weights to start from are of another network than PlainBlocks: \S+ is on one"
    ):
        build("attention_cnn").start_from(other.state_dict(), AUS)


def test_features_can_be_kept():
    model = build().train()
    shots = frames(7)
    kept = model.features(shots)
    assert not kept.requires_grad
    model.eval()
    torch.testing.assert_close(model(kept).logits_BTM, model(shots).logits_BTM, rtol=0, atol=0)
    torch.testing.assert_close(model.features(shots), kept, rtol=0, atol=0)
    torch.testing.assert_close(model.features(shots[:, 2:3]), kept[:, 2:3], rtol=1e-4, atol=1e-6)


def test_features_are_the_mean_of_the_map():
    model = build("resnet18")
    shots = frames(2, side=64)
    map_ = model.backbone.trunk(shots.flatten(0, 1))
    torch.testing.assert_close(model.features(shots).flatten(0, 1), F.adaptive_avg_pool2d(map_, 1).flatten(1))


@pytest.mark.parametrize(
    ("kernel", "causal", "past", "future"), [(9, False, 4, 4), (5, True, 4, 0), (4, True, 3, 0), (1, False, 0, 0)]
)
def test_a_frame_depends_on_the_frames_that_the_model_states(kernel, causal, past, future):
    model = build(kernel=kernel, causal=causal).eval()
    assert (model.past, model.future) == (past, future)
    features = torch.randn(1, 21, 256)
    changed = features.clone()
    changed[:, 10] += 5
    differs = (model(features).logits_BTM - model(changed).logits_BTM).abs().amax((0, 2)) > 0
    assert differs.nonzero().flatten().tolist() == list(range(10 - future, 10 + past + 1))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("T", [1, 2, 7, 40])
def test_chunks_and_streams_are_the_whole(causal, T):
    model, shots = build(causal=causal).eval(), frames(T)
    whole = model(shots).logits_BTM
    assert whole.shape == (2, T, 3)
    for chunk in (1, 3, 64):
        torch.testing.assert_close(infer(model, shots, chunk).logits_BTM, whole, rtol=0, atol=1e-5)
    assert Stream(model).latency == (0 if causal else 4)


def test_smoothing_is_a_mean_with_weights_of_its_own_for_each_au():
    mean = TemporalMean(2, 5)
    torch.nn.init.normal_(mean.scores)
    level = torch.tensor([[[2.0, -3.0]]]).expand(1, 9, 2)
    torch.testing.assert_close(mean(level), level, msg="the ends too keep a level")
    logits = torch.randn(3, 9, 2)
    weights = mean.scores.softmax(1)
    expected = sum(weights[:, k] * logits[:, k : 5 + k] for k in range(5))
    torch.testing.assert_close(mean(logits)[:, 2:7], expected)
    first = (weights[:, 2:] * logits[0, :3].T).sum(1) / weights[:, 2:].sum(1)
    torch.testing.assert_close(mean(logits)[0, 0], first)
    assert (mean(logits) <= logits.max()).all(), "it cannot amplify"


def test_smoothing_begins_as_the_plain_mean():
    logits = torch.randn(1, 11, 2)
    torch.testing.assert_close(TemporalMean(2, 3)(logits)[0, 1], logits[0, :3].mean(0))


def test_kernels_learn_how_long_an_au_lasts():
    """AU 0 lasts 20 frames, AU 1 a single one: seen through noise, the first wants a long kernel and the second a short."""
    generator = torch.Generator().manual_seed(0)
    truth = (torch.rand(64, 40, 2, generator=generator) < 0.5).float()
    truth[..., 0] = truth[:, ::20, 0].repeat_interleave(20, 1)
    logits = (truth * 2 - 1) + torch.randn(64, 40, 2, generator=generator)
    mean = TemporalMean(2, 5)
    optimiser = torch.optim.Adam(mean.parameters(), lr=0.1)
    for _ in range(60):
        optimiser.zero_grad()
        F.binary_cross_entropy_with_logits(2 * mean(logits), truth).backward()
        optimiser.step()
    weights = mean.scores.softmax(1)
    assert weights[0].max() < 0.35
    assert weights[1, 2] > 0.75


def test_our_own_trained_trunk_can_be_the_backbone(tmp_path):
    torch.manual_seed(3)
    trained = build_model("attention_cnn", {"pooling": "7x7"}, AUS, STATISTICS)
    path = str(tmp_path / "model.safetensors")
    save_file(trained.state_dict(), path)
    model = build(weights=path, pooling="7x7").eval()
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(model.backbone(x), trained.eval().extractor(x), rtol=0, atol=0)
    assert (model.MEAN, model.STD) == (trained.MEAN, trained.STD)


def test_a_backbone_tuned_here_can_be_the_backbone(tmp_path):
    trained = build_model("attention_cnn", {"backbone": "efficientnet_b0", "random": True, "frozen": False}, AUS, STATISTICS)
    path = str(tmp_path / "model.safetensors")
    save_file(trained.state_dict(), path)
    model = build("efficientnet_b0", weights=path)
    own, theirs = model.backbone.state_dict(), trained.extractor.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in own.items())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "resnet50 has no weights"),
        ({"random": True, "kernel": 4}, "must be odd, to have a middle frame; got 4"),
        ({"random": True, "kernel": 0, "causal": True}, "got 0"),
        ({"random": True, "backbone": "none"}, "known are " + ", ".join(TRUNKS) + ", attention_cnn"),
        ({"random": True, "pooling": "2x2"}, "unknown pooling '2x2'"),
        ({"random": True, "width": 0}, "width of at least 1"),
        ({"random": True, "dropout": 1.0}, "dropout from 0 to below 1"),
    ],
)
def test_what_cannot_be_is_refused(options, reason):
    with pytest.raises(ConfigError, match=reason):
        check_config("embeddings", options)


def test_it_trains_on_features_that_are_computed_once(shards, tmp_path):
    phase = {"name": "train", "epochs": 8, "batch": 8, "crops": 2, "optimiser": {"name": "adam", "lr": 0.01}}
    model = {"name": "embeddings", "backbone": "attention_cnn", "random": True, "kernel": 1, "pooling": "7x7"}
    recipe = make_recipe(model=model, phases=[phase], loss={"weighting": "positive"}, input={"align": "face112", "crop": 48})
    history = loop.fit(make_training(shards, tmp_path, recipe))
    assert history[-1]["val_f1"]["AU04"] > 0.8, "calling every frame positive has 0.57"
    trained, description = load_checkpoint(tmp_path / "checkpoint")
    spec = ClipSpec.of(recipe, AUS, 8)
    table = inference.predict_table(trained, description, plan_clips(shards, ["F006"], spec), shards, spec)
    labels, mask = schema.label_arrays(table, AUS)
    probs = np.stack([table[c].to_numpy() for c in AUS.probability_columns], 1)
    counts = Counts.from_probs(probs, labels, mask & ~np.isnan(probs))
    assert counts.f1()[1] > 0.8, "from frames of a subject that it has never seen"
