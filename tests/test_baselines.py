"""The baselines go through the same door as all models: trained, saved, loaded and predicting."""

import numpy as np
import pytest
from conftest import AUS, make_recipe, make_training

from aupipe import inference, loop
from aupipe.checkpoint import load_checkpoint
from aupipe.clips import ClipSpec, plan_clips
from aupipe.models import check_recipe

ASYMMETRIC = {"kind": "asymmetric", "weighting": "inverse_rate"}
RECIPES = {
    "drml": ({"name": "drml", "size": 66, "filters": 8, "hidden": [16], "init": "default"}, {}),
    "arl_like": ({"name": "arl_like", "c": 1, "init": "default"}, {"attention_l1": 1e-4}),
    "me_graphau-1": ({"name": "me_graphau", "depth": 18}, ASYMMETRIC),
    "me_graphau-2": ({"name": "me_graphau", "depth": 18, "stage": 2}, {**ASYMMETRIC, "relations": 0.05}),
    "cnn_lstm": ({"name": "cnn_lstm", "trunk": "resnet18", "cells": 16}, {}),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_baseline_trains_saves_loads_and_predicts(name, shards, tmp_path):
    model, loss = RECIPES[name]
    crop = model.get("size", 64)
    phase = {"name": "train", "epochs": 1, "batch": 8, "optimiser": {"name": "adamw", "lr": 1e-3}}
    recipe = make_recipe(
        model=model,
        loss=loss,
        input={"align": "face112", "crop": crop, "normalise": "grey"},
        clip={"frames": 2, "stride": 9},
        phases=[phase],
    )
    check_recipe(recipe)
    spec = ClipSpec.of(recipe, AUS, 8)
    training = make_training(shards, tmp_path, recipe, train_plan=plan_clips(shards, ["F001"], spec, train=True))
    (record,) = loop.fit(training)
    kind = loss.get("kind", "bce")
    extra = {"relations", "attention_l1"} & loss.keys()
    assert record["train"].keys() >= {kind, *extra}
    assert record["train"]["loss"] == pytest.approx(sum(record["train"][term] for term in {kind, *extra}))
    assert np.isfinite(record["train"]["loss"])
    assert record["val"]["loss"] == pytest.approx(record["val"][kind])
    model, description = load_checkpoint(tmp_path / "checkpoint")
    table = inference.predict_table(model, description, plan_clips(shards, ["F006"], spec), shards, spec)
    probabilities = np.stack([table[column].drop_null().to_numpy() for column in AUS.probability_columns])
    assert probabilities.size
    assert np.ptp(probabilities, axis=1).min() > 0
    assert 0 <= probabilities.min() <= probabilities.max() <= 1
