"""models/: the folder is the registry; the attention CNN has the paper's size, and its attention does what it says."""

import numpy as np
import pytest
import torch
from conftest import AUS, STATS

from aupipe.facs import AU_SETS
from aupipe.models import build_model, list_models, model_code
from aupipe.schema import ConfigError, LabelStats

STATISTICS = LabelStats.from_json(STATS)
PARAMETERS, WITHOUT_ATTENTION = 1_164_173, 1_130_892  # for 12 AUs, counted from the paper's description


def build(pooling="3x3", attention=True, aus=AUS, seed=0, **options):
    torch.manual_seed(seed)
    return build_model("attention_cnn", {"pooling": pooling, "attention": attention, **options}, aus, STATISTICS)


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_folder_is_the_registry():
    assert "attention_cnn" in list_models()
    assert not [name for name in list_models() if name.startswith("_")]
    for name in list_models():
        assert model_code(name)[0].name == f"{name}.py"
        assert all(path.is_file() for path in model_code(name))


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("vgg", {}, "unknown model 'vgg'.*attention_cnn"),
        ("_layers", {}, "unknown model"),
        ("attention_cnn", {"poolin": "3x3"}, "did you mean 'pooling'"),
        ("attention_cnn", {"pooling": "5x5"}, "literal, 3x3, 7x7"),
        ("attention_cnn", {"attention": "yes"}, "attention: expected bool"),
    ],
)
def test_unknown_model_or_option_is_named(name, options, reason):
    with pytest.raises(ConfigError, match=reason):
        build_model(name, {"name": name, **options}, AUS, STATISTICS)


@pytest.mark.parametrize(("pooling", "side"), [("literal", 1), ("3x3", 3), ("7x7", 7)])
def test_size_is_that_of_the_paper_for_every_pooling(pooling, side):
    model = build(pooling, aus=AU_SETS["affwild2"])
    assert count(model) == PARAMETERS
    assert count(build(pooling, attention=False, aus=AU_SETS["affwild2"])) == WITHOUT_ATTENTION
    output = model.eval()(torch.rand(2, 1, 3, 112, 112))
    assert output.logits_BTM.shape == (2, 1, 12)
    assert output.attention_BTMhw.shape == (2, 1, 12, side, side)
    assert output.aux_logits_BTM is None


def gradients(pooling):
    model = build(pooling).train()
    model(torch.rand(2, 1, 3, 112, 112)).logits_BTM.square().sum().backward()
    return [p.grad.abs().max().item() for p in model.attention.parameters()]


def test_literal_pooling_leaves_the_attention_inert():
    assert gradients("literal") == [0] * 6
    learning = gradients("3x3")
    assert min(learning[i] for i in (0, 2, 3, 4)) > 0, "weights of both layers and of the norm learn"


def test_attention_weights_sum_to_one_and_the_shown_map_peaks_at_one():
    model = build().eval()
    features = torch.randn(5, 256, 3, 3)
    weights = model.attention(features)
    assert weights.shape == (5, 9)
    torch.testing.assert_close(weights.sum(1), torch.ones(5))
    assert (weights > 0).all()
    shown = model(torch.rand(1, 5, 3, 112, 112)).attention_BTMhw
    assert shown.min() >= 0
    torch.testing.assert_close(shown.amax((-1, -2)), torch.ones(1, 5, 3))
    torch.testing.assert_close(shown[:, :, 0], shown[:, :, 2], rtol=0, atol=0)


def test_logits_are_the_head_of_the_weighted_sum():
    model = build().eval()
    frames = torch.rand(1, 2, 3, 96, 96)
    features = model.extractor(frames[0])
    weights = model.attention(features).view(2, 1, 3, 3)
    torch.testing.assert_close(model(frames).logits_BTM[0], model.head((features * weights).sum((2, 3))))


def test_without_attention_the_map_is_averaged():
    model = build(attention=False).eval()
    frames = torch.rand(1, 2, 3, 112, 112)
    output = model(frames)
    torch.testing.assert_close(output.logits_BTM[0], model.head(model.extractor(frames[0]).mean((2, 3))))
    assert output.attention_BTMhw is None


@pytest.mark.parametrize("attention", [True, False])
def test_frames_are_independent_and_any_number_of_them_will_do(attention):
    model = build(attention=attention).eval()
    frames = torch.rand(2, 5, 3, 64, 64)
    logits = model(frames).logits_BTM
    assert logits.shape == (2, 5, 3)
    torch.testing.assert_close(model(frames[:, 3:4]).logits_BTM, logits[:, 3:4], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        model(frames.reshape(10, 1, 3, 64, 64)).logits_BTM.view(2, 5, 3), logits, rtol=1e-4, atol=1e-5
    )
    changed = frames.clone()
    changed[0, 0] = 0
    torch.testing.assert_close(model(changed).logits_BTM.flatten(0, 1)[1:], logits.flatten(0, 1)[1:], rtol=1e-4, atol=1e-5)


def test_weights_follow_the_seed():
    same, other = build(seed=1).state_dict(), build(seed=2).state_dict()
    again = build(seed=1).state_dict()
    assert all(torch.equal(same[k], again[k]) for k in same)
    assert not torch.equal(same["head.weight"], other["head.weight"])


@pytest.mark.parametrize("name", list_models())
def test_every_model_states_its_normalisation_and_builds_by_default(name):
    options = {"random": True} if name == "embeddings" else {}  # frozen weights must come from somewhere
    model = build_model(name, {"name": name, **options}, AUS, STATISTICS).eval()
    assert np.shape(model.MEAN) == np.shape(model.STD) == (3,)
    assert all(0 <= p.abs().max() < 1e3 for p in model.parameters())
