"""models/_relative.py: a face read against the mean of its sequence, in every model that can."""

from functools import cache

import numpy as np
import pytest
import torch
from conftest import describe, make_recipe, make_training
from sat_net_models import AUS, STATISTICS
from torch import nn
from torch.nn import functional as F

from aupipe import inference, loop, pixels
from aupipe.checkpoint import load_checkpoint
from aupipe.clips import ClipSpec, clip_batches, plan_clips
from aupipe.facs import AUSet
from aupipe.features import open_store
from aupipe.metrics import auc
from aupipe.models import build_model, check_config, check_recipe, list_models
from aupipe.models._relative import Presence, Relative, split_presence
from aupipe.models._sequences import infer, is_temporal
from aupipe.schema import ConfigError

KINDS = ("clip", "running")
B, T, BLACK = 2, 7, 2  # the first sequence's frame BLACK has no face, nor has the second's first
EMBEDDINGS = {"backbone": "attention_cnn", "pooling": "7x7", "random": True, "kernel": 1}
MODELS = {
    "attention_cnn": ("attention_cnn", {"pooling": "7x7", "intensity": True}, 32),
    "attention_cnn on a backbone": (
        "attention_cnn",
        {"backbone": "efficientnet_b0", "random": True, "attention": False},
        32,
    ),
    "drml": ("drml", {"size": 66, "hidden": [16], "init": "default"}, 66),
    "arl_like": ("arl_like", {"c": 1, "init": "default"}, 32),
    "stral al": ("stral", {"c": 1, "variant": "al", "intensity": True}, 32),
    "stral gsa": ("stral", {"c": 1, "variant": "gsa", "finetune": True, "intensity": True}, 32),
    "stral": ("stral", {"c": 1, "finetune": True}, 32),
    "sat_net resnet": ("sat_net", {"variant": "resnet", "intensity": True}, 32),
    "sat_net": ("sat_net", {"window": 3, "intensity": True}, 32),
    "cnn_lstm": ("cnn_lstm", {"trunk": "resnet18", "cells": 8}, 32),
    "embeddings": ("embeddings", EMBEDDINGS, 32),
}
INDEPENDENT = [case for case in MODELS if case not in ("stral", "sat_net", "cnn_lstm")]  # of the frames beside a frame


def fresh(case, relative, aus=AUS):
    torch.manual_seed(0)
    return build_model(MODELS[case][0], MODELS[case][1] | {"relative": relative}, aus, STATISTICS).eval()


@cache
def settled(case, aus=AUS):
    """The weights of a plain model whose norms have seen frames."""
    model, side = fresh(case, "none", aus).train(), MODELS[case][2]
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.momentum = 1.0
    with torch.no_grad():
        model(torch.rand(2, 4, 3, side, side, generator=torch.Generator().manual_seed(0)))
    return model.state_dict()


def build(case, relative, aus=AUS):
    """The model with V = 0."""
    model = fresh(case, relative, aus)
    model.load_state_dict(settled(case, aus), strict=False)
    return model


def sequences(case):
    side = MODELS[case][2]
    frames = torch.rand(B, T, 3, side, side, generator=torch.Generator().manual_seed(9))
    frames += 0.3 * torch.arange(T).view(T, 1, 1, 1)
    frames[0, BLACK] = frames[1, 0] = torch.tensor([-0.4, 0.1, 0.2]).view(3, 1, 1)  # black, normalised by channel
    return frames


def move(model, case=0):
    """Give V a value."""
    torch.manual_seed(5 + case)
    for parameter in model.relative.parameters():
        nn.init.normal_(parameter)
    return model


def vectors_of(case, model, frames):
    """φ, what the heads are linear in, as it goes in there: (B, T, D) or (B, T, M, D)."""
    if case.startswith("stral"):
        return split_presence(model.features(frames))[0]
    head = {"arl_like": lambda: model.attention.heads}.get(case, lambda: model.head)()
    caught = []
    hook = head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    model(frames)
    hook.remove()
    given = caught[0].mean((2, 3)) if case.startswith("sat_net") else caught[0]
    return given if given.shape[:2] == (B, T) else given.unflatten(0, (B, T))


def reference(vectors, b, t, kind):
    """The mean by hand."""
    faces = [s for s in range(T) if (b, s) not in ((0, BLACK), (1, 0)) and (kind == "clip" or s <= t)]
    return sum(vectors[b, s] for s in faces) / len(faces)


@pytest.mark.parametrize("case", MODELS)
@torch.no_grad()
def test_the_option_adds_a_weight_of_zeros_and_nothing_else(case):
    plain, frames = fresh(case, "none"), sequences(case)
    assert not is_temporal(plain) or case in ("stral", "sat_net", "cnn_lstm")
    assert not any("relative" in name for name in plain.state_dict())
    for kind in KINDS:
        model = fresh(case, kind)
        ours, theirs = model.state_dict(), plain.state_dict()
        added = {"relative.weight"} | ({"relative.intensity"} if MODELS[case][1].get("intensity") else set())
        assert ours.keys() - theirs.keys() == added
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
        assert is_temporal(model)
        for one, other in zip(model(frames), plain(frames), strict=True):
            assert (one is None) == (other is None)
            assert one is None or torch.equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", MODELS)
@torch.no_grad()
def test_logits_gain_v_times_the_difference_from_the_mean(case, kind):
    plain, model, frames = build(case, "none"), move(build(case, kind)), sequences(case)
    before, after, vectors = plain(frames), model(frames), vectors_of(case, model, frames)
    for b, t in np.ndindex(B, T):
        gain = after.logits_BTM[b, t] - before.logits_BTM[b, t]
        expected = torch.zeros(3)
        if (b, t) not in ((0, BLACK), (1, 0)):
            expected = ((vectors[b, t] - reference(vectors, b, t, kind)) * model.relative.weight).sum(-1)
        torch.testing.assert_close(gain, expected, rtol=1e-3, atol=2e-5)
    spread = (after.logits_BTM - before.logits_BTM).std(1)
    assert spread.min() > 1e-3
    if after.intensity_BTM is not None:
        score = (before.intensity_BTM / 5).logit() + after.logits_BTM - before.logits_BTM
        model.relative.intensity.copy_(model.relative.weight)
        torch.testing.assert_close(model(frames).intensity_BTM, 5 * score.sigmoid(), rtol=1e-3, atol=1e-4)
    if after.aux_logits_BTM is not None:
        assert torch.equal(after.aux_logits_BTM, before.aux_logits_BTM)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", MODELS)
@torch.no_grad()
def test_a_stream_with_faceless_frames_gives_the_whole(case, kind):
    model, frames = move(build(case, kind)), sequences(case)
    whole = model(frames).logits_BTM
    for parts in (1, 3, T):
        torch.testing.assert_close(infer(model, frames.split(parts, 1), 2).logits_BTM, whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(model.features(frames)).logits_BTM, whole, rtol=1e-5, atol=1e-6)
    if kind == "running":
        later = frames.clone()
        later[:, 5:] = later[:, 5:].flip(-1) * 2
        reach = model.future
        torch.testing.assert_close(model(later).logits_BTM[:, : max(0, 5 - reach)], whole[:, : max(0, 5 - reach)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", INDEPENDENT)
@torch.no_grad()
def test_a_frame_without_a_face_changes_nothing_for_the_others(case, kind):
    model, frames = move(build(case, kind)), sequences(case)[:1]
    there = [t for t in range(T) if t != BLACK]
    logits = model(frames).logits_BTM[:, there]
    rounding = 1e-5 * max(1.0, logits.abs().max().item())  # V is large
    torch.testing.assert_close(model(frames[:, there]).logits_BTM, logits, rtol=1e-4, atol=rounding)
    bright = frames.clone()
    bright[:, BLACK, 0, 3, 3] += 1  # not the same all over: now it counts
    assert not torch.allclose(model(bright).logits_BTM[:, there], logits, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", MODELS)
@torch.no_grad()
def test_a_frame_alone_and_a_sequence_without_faces_are_read_plainly(case, kind):
    model, plain, frames = move(build(case, kind)), build(case, "none"), sequences(case)
    for shots in (frames[:, 3:4], torch.full_like(frames, 0.5)):
        torch.testing.assert_close(model(shots).logits_BTM, plain(shots).logits_BTM, rtol=1e-5, atol=1e-5)
        assert infer(model, shots).logits_BTM.isfinite().all()


def test_presence_is_kept_beside_features_of_any_shape():
    frames = torch.rand(2, 3, 3, 4, 4)
    frames[0, 1] = torch.tensor([1.0, 0.0, -1.0]).view(3, 1, 1)
    frames[1, 2, 1:] = 0  # one channel still shows something
    for shape in ((5,), (5, 6), (5, 2, 2)):
        features = torch.rand(2, 3, *shape)
        kept, present = split_presence(Presence()(features, frames))
        assert torch.equal(kept, features)
        assert present.tolist() == [[1, 0, 1], [1, 1, 1]]


def test_a_long_sequence_keeps_its_mean():
    vectors = 1000 + torch.randn(1, 20_000, 2, generator=torch.Generator().manual_seed(0))
    present = torch.ones(1, 20_000)
    whole = Relative("running", 3, 2).difference(vectors, present)[0]
    parts, sums = [], None
    for first in range(0, 20_000, 64):
        part, sums = Relative("running", 3, 2).difference(
            vectors[:, first : first + 64], present[:, first : first + 64], sums
        )
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-5)
    expected = vectors[0, -1].double() - vectors[0].double().mean(0)
    torch.testing.assert_close(whole[0, -1].double(), expected, rtol=0, atol=1e-6)


def people(count, seed):
    """Frames of people, 16 pixels wide, and labels: one pixel is brighter by 1 where the AU is present, and by each
    person's own offset of deviation 2 throughout.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(count, 8, generator=generator) < 0.5).float()
    frames = 0.05 * torch.randn(count, 8, 3, 16, 16, generator=generator)
    frames[..., 9, 6] += (labels + 2 * torch.randn(count, 1, generator=generator))[:, :, None]
    return frames, labels


def score(relative):
    """The AUC for unseen people of an attention CNN that was trained on others."""
    torch.manual_seed(0)
    model = build_model(
        "attention_cnn", {"pooling": "7x7", "attention": False, "relative": relative}, AUSet((1,)), STATISTICS
    ).train()
    optimiser = torch.optim.Adam(model.parameters(), 4e-3)
    for step in range(50):
        frames, labels = people(12, 100 + step)
        loss = F.binary_cross_entropy_with_logits(model(frames).logits_BTM[..., 0], labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    frames, labels = people(60, 1)
    with torch.no_grad():
        logits_BTM = model.eval()(frames)[0][:, 1:].numpy()
    return auc(logits_BTM, labels[:, 1:, None].numpy(), np.ones(logits_BTM.shape, bool))[0]


def test_only_against_its_own_mean_can_a_person_be_read():
    scores = {kind: score(kind) for kind in ("none", *KINDS)}
    assert scores["none"] < 0.7
    assert scores["clip"] > 0.9
    assert scores["running"] > 0.9


def describes(kind, **changes):
    return make_recipe(model={"name": "attention_cnn", "relative": kind}, clip={"frames": 4, "stride": 4}, **changes)


def test_strongly_augmented_frames_without_a_face_still_have_none(shards):
    recipe = describes("clip", input={"align": "face112", "crop": 64, "augment": "strong", "normalise": "grey"})
    spec = ClipSpec.of(recipe, AUS, 20)
    plan = plan_clips(shards, ["F001", "F002"], spec)
    model = describe(recipe).new_model()
    for batch in clip_batches(plan, shards, spec, train=True, seed=0, epoch=0):
        faces = batch.frames_BTHWC.any((2, 3, 4))
        frames = pixels.read_frames(batch, model, recipe.input, "cpu", train=True)
        _, present = split_presence(Presence()(torch.zeros(*frames.shape[:2], 1), frames))
        np.testing.assert_array_equal(present.numpy(), faces)
        assert faces.any()
        assert not faces.all()


def test_a_recording_is_one_sequence_when_evaluated_and_predicted(shards, tmp_path):
    recipe = describes("clip")
    loop.fit(make_training(shards, tmp_path, recipe))
    model, description = load_checkpoint(tmp_path / "checkpoint")
    assert model.relative.weight.abs().max() > 0, "V learned"
    tables = []
    for frames, chunk in ((4, 64), (7, 3)):
        spec = ClipSpec(AUS, frames, frames, 1, "face112", 64, 2)
        plan = plan_clips(shards, ["F006"], spec)
        tables.append(inference.predict_table(model, description, plan, shards, spec, chunk=chunk))
    one, other = (
        np.stack([table[name].to_numpy() for name in AUS.probability_columns], 1).reshape(2, 20, 3) for table in tables
    )
    np.testing.assert_allclose(one, other, atol=1e-5)
    spec = ClipSpec(AUS, 20, 20, 1, "face112", 64, 1)
    whole = next(iter(clip_batches(plan_clips(shards, ["F006"], spec), shards, spec, train=False)))
    with torch.no_grad():
        expected = model(pixels.read_frames(whole, model, recipe.input, "cpu", train=False)).logits_BTM.sigmoid()
    there = [t for t in range(20) if t != 3]
    np.testing.assert_allclose(one[:1, there], expected[:, there], atol=1e-5)
    from aupipe.predictor import AUPredictor

    np.testing.assert_allclose(AUPredictor(model, description).predict_faces(whole.frames_BTHWC[0]), expected[0], atol=1e-5)


def test_kept_features_say_where_there_is_a_face(shards, tmp_path):
    phase = {"name": "train", "epochs": 2, "batch": 8, "crops": 2, "optimiser": {"name": "adam", "lr": 0.01}}
    stores = {}
    for kind in ("none", *KINDS):
        model = {"name": "embeddings", **EMBEDDINGS, "relative": kind}
        read = {"align": "face112", "crop": 64, "resize": 32}
        recipe = make_recipe(model=model, input=read, clip={"frames": 4, "stride": 4}, phases=[phase])
        training = make_training(shards, tmp_path / kind, recipe, features=tmp_path / "kept")
        torch.manual_seed(training.seed)
        stores[kind] = open_store(tmp_path / "kept", training.description.new_model(), recipe, 2, shards)
    history = loop.fit(training)
    assert history[-1]["train"]["loss"] < history[0]["train"]["loss"]
    assert stores["clip"].directory == stores["running"].directory != stores["none"].directory
    spec = ClipSpec(AUS, 20, 20, 1, "face112", 64, 1)
    kept = stores["clip"].read(plan_clips(shards, ["F001"], spec), np.array([0, 1]), spec, 1)
    assert kept.shape == (2, 20, 256 + 1)
    np.testing.assert_array_equal(kept[..., -1], np.tile(np.arange(20) != 3, (2, 1)))


@pytest.mark.parametrize("case", ["arl_like", "stral al", "sat_net"])
def test_a_relative_model_starts_from_a_plain_one_or_from_the_v_of_another(case):
    own, other = AUSet((12, 4, 2)), AUS
    origin = move(build(case, "clip", other))
    model = build(case, "running", own)
    model.start_from(origin.state_dict(), other, {2: 1})
    for name, tensor in origin.relative.named_parameters():
        assert torch.equal(model.relative.get_parameter(name), tensor[[2, 1, 0]])
    model.start_from(build(case, "none", other).state_dict(), other, {2: 1})
    assert torch.equal(model.relative.weight, origin.relative.weight[[2, 1, 0]]), "what the other lacks stays"


def test_a_graph_starts_from_the_v_of_the_attention_stage_only_with_its_heads():
    origin = move(build("stral al", "clip"))
    for new_heads in (True, False):
        options = {"c": 1, "variant": "gsa", "relative": "clip", "intensity": True, "new_heads": new_heads}
        model = build_model("stral", options, AUS, STATISTICS)
        model.start_from(origin.state_dict(), AUS)
        assert model.relative.weight.any() != new_heads


@pytest.mark.parametrize("name", list_models())
def test_every_model_takes_the_option_or_says_why_not(name):
    options = {"random": True} if name == "embeddings" else {}
    with pytest.raises(
        ConfigError, match="leave out model.relative" if name == "me_graphau" else "known are none, clip, run"
    ):
        check_config(name, {**options, "relative": "mean"})
    for kind in KINDS if name != "me_graphau" else ():
        assert check_config(name, {**options, "relative": kind}).relative == kind


def test_one_frame_has_nothing_to_be_read_against():
    with pytest.raises(ConfigError, match=r"clip\.frames is 1"):
        check_recipe(make_recipe(model={"name": "attention_cnn", "relative": "clip"}, clip={"frames": 1, "stride": 1}))
    check_recipe(describes("clip"))
    with pytest.raises(ConfigError, match="targets: all"):
        check_config("sat_net", {"targets": "last", "relative": "running"})
