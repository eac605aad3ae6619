"""pixels.py: crops as drawn, normalisation by the model or the image, augmentation as a function of a clip's own seed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import AUS, describe, make_recipe

from aupipe import pixels
from aupipe.clips import ClipSpec, clip_batches, plan_clips
from aupipe.config import InputSpec


def make_model(**constants):
    torch.manual_seed(0)
    model = describe(make_recipe()).new_model().eval()
    for name, value in constants.items():
        setattr(model, name, value)
    return model


@pytest.fixture
def batch(shards):
    spec = ClipSpec(AUS, 2, 2, 1, "face112", 96, 6)
    plan = plan_clips(shards, ["F001", "F002"], spec, train=True)
    return next(clip_batches(plan, shards, spec, train=True, seed=4))


def faces(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (*shape, 112, 112, 3), np.uint8))


def test_crop_and_mirror_are_taken_as_drawn(batch):
    assert 0 < batch.mirror_B.sum() < 6, "both kinds are in this batch"
    model = make_model(MEAN=(0.5, 0.4, 0.3), STD=(0.1, 0.2, 0.3))
    frames = pixels.read_frames(batch, model, InputSpec(align="face112", crop=96), "cpu", train=True)
    assert frames.shape == (6, 2, 3, 96, 96)
    for b, (top, left) in enumerate(batch.crop_B2):
        for t in range(2):
            expected = batch.frames_BTHWC[b, t, top : top + 96, left : left + 96].astype(np.float32) / 255
            expected = expected[:, ::-1] if batch.mirror_B[b] else expected
            expected = (expected - model.MEAN) / model.STD
            np.testing.assert_allclose(frames[b, t].permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_faces_that_are_a_tensor_already_are_read_alike(batch):
    model, spec = make_model(), InputSpec(align="face112", crop=96)
    there = replace(batch, frames_BTHWC=torch.from_numpy(batch.frames_BTHWC))
    assert torch.equal(*(pixels.read_frames(one, model, spec, "cpu", train=True) for one in (batch, there)))


@pytest.mark.parametrize("kind", ["image", "grey"])
def test_an_image_is_normalised_by_itself(kind):
    images = faces(4)
    frames = pixels.normalise(pixels.read_channels(images, kind), make_model(), kind)
    assert frames.shape == (4, 3, 112, 112)
    np.testing.assert_allclose(frames.mean((1, 2, 3)), 0, atol=1e-4)
    brighter = pixels.normalise(pixels.read_channels(images // 2 + 60, kind), make_model(), kind)
    if kind == "grey":
        assert torch.equal(frames[:, 0], frames[:, 2])
        weights = torch.tensor([0.299, 0.587, 0.114]) / 255
        assert torch.allclose(pixels.read_channels(images, kind)[:, 0], images.float() @ weights, atol=1e-5)
    assert torch.corrcoef(torch.stack([frames.flatten(), brighter.flatten()]))[0, 1] > 0.999
    assert not torch.isnan(pixels.normalise(torch.zeros(1, 1, 8, 8), make_model(), kind)).any(), "a black frame"


@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_is_a_function_of_the_clips_seed(channels):
    frames = torch.rand(5, 2, channels, 112, 112)
    seeds = torch.tensor([3, 1, 4, 1, 5])
    whole = pixels.augment(frames, seeds, 96)
    assert whole.shape == (5, 2, channels, 96, 96)
    assert torch.isfinite(whole).all()
    alone = pixels.augment(frames[2:3], seeds[2:3], 96)
    torch.testing.assert_close(alone, whole[2:3])
    assert not torch.allclose(pixels.augment(frames[2:3], seeds[:1], 96), alone, atol=0.01)


def test_frames_of_a_clip_share_all_but_the_noise():
    still = torch.rand(64, 1, 3, 112, 112).expand(-1, 2, -1, -1, -1)
    first, second = pixels.augment(still, torch.arange(64), 96).unbind(1)
    difference = (first - second).flatten(1)
    assert 0.005 < difference.std(1).mean() < 0.035 * 2**0.5
    assert difference.mean(1).abs().max() < 0.003


def test_augmentation_turns_scales_shifts_and_mirrors():
    # Two dots of different brightness on black: where they end up tells the movement.
    frames = torch.zeros(400, 1, 1, 112, 112)
    frames[..., 36:40, 36:40], frames[..., 36:40, 72:76] = 1.0, 0.5
    moved = pixels._move(frames[:, 0], torch.randn(400, 7, generator=torch.Generator().manual_seed(0)), 96)
    place = torch.arange(96.0)
    bright = (moved > 0.75).float()
    x = (bright.sum((1, 2)) * place).sum(1) / bright.sum((1, 2, 3))
    y = (bright.sum((1, 3)) * place).sum(1) / bright.sum((1, 2, 3))
    seen = bright.sum((1, 2, 3)) > 0
    mirrored = x[seen] > 48
    assert 0.35 < mirrored.float().mean() < 0.65
    assert x[seen][~mirrored].mean() == pytest.approx(30, abs=1.5)
    assert 1.5 < x[seen][~mirrored].std() < 6
    assert 1.5 < y[seen].std() < 6


def test_augmentation_blurs_covers_and_greys_its_share_of_clips():
    checks = ((torch.arange(112)[:, None] + torch.arange(112)) % 2).float().expand(300, 1, 3, 112, 112)
    draws = torch.randn(300, 24, generator=torch.Generator().manual_seed(1))
    soft = pixels._blur(checks, pixels._uniform(draws[:, 14]), pixels._uniform(draws[:, 15]))
    contrast = soft.std((1, 2, 3, 4)) / checks[0].std()
    assert (contrast == 1).float().mean() == pytest.approx(0.6, abs=0.08)
    assert contrast.min() < 0.3
    grey = torch.full((300, 1, 3, 96, 96), 0.123)
    hidden = (pixels._cover(grey, pixels._uniform(draws[:, 16:23])) != 0.123).all(2).float().mean((1, 2, 3))
    assert (hidden > 0).float().mean() == pytest.approx(0.35, abs=0.08)
    assert hidden[hidden > 0].min() > 0.005
    assert hidden.max() < 0.15
    colours = torch.tensor([0.2, 0.5, 0.8]).view(1, 1, 3, 1, 1).expand(300, 1, 3, 8, 8)
    spread = pixels._relight(colours, draws[:, 7:14] * torch.tensor([1, 0, 0, 0, 0, 0, 0])).std(2).amax((1, 2, 3))
    assert (spread < 1e-5).float().mean() == pytest.approx(0.3, abs=0.08)


def test_a_crop_is_shrunk_by_the_means_of_areas():
    frames = torch.rand(2, 3, 1, 96, 96)
    small = pixels.shrink(frames, 32)
    torch.testing.assert_close(small, frames.unflatten(-1, (32, 3)).unflatten(-3, (32, 3)).mean((-1, -3)))
    assert pixels.shrink(frames, None) is frames


@pytest.mark.parametrize("resize", [None, 64])
def test_prediction_reads_faces_as_validation_does(batch, resize):
    spec = InputSpec(align="face112", crop=96, resize=resize, normalise="grey", augment="strong")
    centred = replace(batch, crop_B2=np.full_like(batch.crop_B2, 8), mirror_B=np.zeros_like(batch.mirror_B))
    frames = pixels.read_frames(centred, make_model(), spec, "cpu", train=False)
    faces = torch.from_numpy(batch.frames_BTHWC).flatten(0, 1)
    torch.testing.assert_close(pixels.read_middle(faces, make_model(), spec), frames.flatten(0, 1))


def test_only_training_is_augmented(batch):
    spec = InputSpec(align="face112", crop=96, resize=64, normalise="grey", augment="strong")
    model = make_model()
    seen = pixels.read_frames(batch, model, spec, "cpu", train=False)
    plain = pixels.read_frames(batch, model, replace(spec, augment="crop"), "cpu", train=False)
    assert torch.equal(seen, plain)
    assert seen.shape[-2:] == (64, 64)
    changed = pixels.read_frames(batch, model, spec, "cpu", train=True)
    assert changed.shape == seen.shape
    assert not torch.allclose(changed, seen, atol=0.1)
