"""Intensity heads: every model that has one, trained with its loss, on the scale of FACS."""

import numpy as np
import pytest
import torch
from conftest import AUS, STATS, make_recipe, make_training

from aupipe.checkpoint import load_checkpoint
from aupipe.loop import fit
from aupipe.models import build_model
from aupipe.models._layers import scale_intensity
from aupipe.schema import ConfigError, LabelStats

STATISTICS = LabelStats.from_json(STATS)
MODELS = [
    ("attention_cnn", {}),
    ("attention_cnn", {"attention": False}),
    ("stral", {"variant": "al_r", "c": 1}),
    ("stral", {"variant": "stral", "c": 1}),
    ("sat_net", {"variant": "resnet"}),
    ("sat_net", {"variant": "sat_net", "window": 2}),
]


def build(name, options):
    torch.manual_seed(0)
    return build_model(name, options, AUS, STATISTICS)


def frames(B=2, T=3):
    return torch.randn(B, T, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_scale_is_that_of_facs():
    scores = torch.tensor([-1e4, -3.0, 0.0, 3.0, 1e4])
    scaled = scale_intensity(scores)
    assert scaled.tolist() == pytest.approx([0, 5 / (1 + np.exp(3)), 2.5, 5 / (1 + np.exp(-3)), 5], abs=1e-6)
    assert scale_intensity(scores.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(("name", "options"), MODELS)
def test_head_is_there_on_request_and_changes_nothing_else(name, options):
    without, with_it = build(name, options).eval(), build(name, {**options, "intensity": True}).eval()
    own, more = without.state_dict(), with_it.state_dict()
    assert all(torch.equal(own[k], more[k]) for k in own)
    added = sorted(more.keys() - own.keys())
    assert [name.rpartition("intensity.")[2] for name in added] == ["bias", "weight"]
    plain, both = without(frames()), with_it(frames())
    assert plain.intensity_BTM is None
    assert torch.equal(plain.logits_BTM, both.logits_BTM)
    assert both.intensity_BTM.shape == (2, 3, 3)
    assert 0 < both.intensity_BTM.min() < both.intensity_BTM.max() < 5


@pytest.mark.parametrize(("name", "options"), MODELS)
def test_every_au_has_its_own_intensity(name, options):
    model = build(name, {**options, "intensity": True}).eval()
    before = model(frames()).intensity_BTM.detach().clone()
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if name.endswith("intensity.bias"))[1] += 1
    after = model(frames()).intensity_BTM
    assert (after != before).any(0).any(0).tolist() == [False, True, False]


def test_stral_reads_intensities_where_it_reads_occurrence():
    """After the graph, so that an AU's intensity hears of its neighbours and of the frames around."""
    stats = LabelStats(np.full(3, 0.3), np.array([[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1.0]]), np.full(3, 100))
    torch.manual_seed(0)
    model = build_model("stral", {"c": 1, "intensity": True}, AUS, stats).eval()
    features = torch.randn(1, 5, 3, 8)
    changed = features.clone()
    changed[:, 2, 0] += 3
    moved = (model(changed).intensity_BTM - model(features).intensity_BTM).abs()[0] > 1e-6
    assert moved.all(0).tolist() == [True, True, False]


RECIPE = {"model": {"name": "attention_cnn", "intensity": True}, "loss": {"intensity": 0.5}}


def test_training_fits_intensities_and_records_the_term(shards, tmp_path):
    whole = {"align": "face112", "crop": 112, "resize": 32}
    phase = {"name": "train", "epochs": 5, "batch": 8, "optimiser": {"name": "adam", "lr": 0.003}}
    records = fit(make_training(shards, tmp_path, make_recipe(**RECIPE, input=whole, phases=[phase])))
    for record in records:
        for side in ("train", "val"):
            figures = record[side]
            assert figures["intensity"] > 0
            assert figures["loss"] == pytest.approx(figures["bce"] + figures["intensity"])
    assert records[-1]["train"]["intensity"] < 0.7 * records[0]["train"]["intensity"]
    model, _ = load_checkpoint(tmp_path / "checkpoint")
    assert model(frames()).intensity_BTM.shape == (2, 3, 3)


@pytest.mark.parametrize("part", ["model", "loss"])
def test_head_and_loss_go_together(part):
    alone = {part: RECIPE[part]}
    with pytest.raises(ConfigError, match=r"set model\.intensity: true and loss\.intensity > 0, or neither"):
        make_recipe(**alone)


def test_weight_is_no_negative_number():
    with pytest.raises(ConfigError, match="a weight ≥ 0, not -1"):
        make_recipe(**{**RECIPE, "loss": {"intensity": -1.0}})
