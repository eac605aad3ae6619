"""benchmarks/constructed.py: what its corpora tell and what they do not, its baseline, and its figures."""

import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from aupipe import metrics
from aupipe.models import build_model

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import constructed as bench

PEOPLE = 120
DRAWS = (bench.draw_patch, bench.draw_copy, bench.draw_neutral)


@cache
def draw(function, people=PEOPLE, seed=0, **options):
    return function(np.random.default_rng(seed), people, **options)


def brightness(corpus, au):
    """(P, T): mean of the middle of an AU's place, which no shift of the picture moves out of it."""
    row, column = (bench.CELL * place for place in divmod(bench.SHOWN[au], bench.SIZE // bench.CELL))
    return corpus.frames[..., row + 2 : row + 6, column + 2 : column + 6].mean((2, 3, 4)).numpy()


def energy(corpus, au):
    """(P, T): how much the middle of an AU's place varies."""
    row, column = (bench.CELL * place for place in divmod(bench.SHOWN[au], bench.SIZE // bench.CELL))
    return corpus.frames[..., row + 2 : row + 6, column + 2 : column + 6].flatten(3).std(3).mean(2).numpy()


def area(scores, labels):
    return metrics.auc(scores.reshape(-1, 1), labels.reshape(-1, 1), np.ones((labels.size, 1)))[0]


@pytest.mark.parametrize("function", DRAWS)
def test_a_corpus_is_drawn_from_its_seed(function):
    first, again, other = (function(np.random.default_rng(seed), 8) for seed in (0, 0, 1))
    assert torch.equal(first.frames, again.frames)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.labels, other.labels)
    assert first.frames.shape == (8, bench.FRAMES, 3, bench.SIZE, bench.SIZE)
    assert 0.5 < first.frames.std() < 2


@pytest.mark.parametrize("function", DRAWS)
def test_neither_other_aus_nor_neighbouring_frames_tell_the_label_of_a_frame(function):
    labels = draw(function).labels.numpy()[:, bench.LAG :]
    M = labels.shape[2]
    noise = 5 / np.sqrt(labels[..., 0].size)  # five deviations of a correlation that is 0
    assert np.abs(np.corrcoef(labels.reshape(-1, M).T) - np.eye(M)).max() < noise
    earlier, later = labels[:, :-1], labels[:, 1:]
    assert np.abs(np.corrcoef(earlier.reshape(-1, M).T, later.reshape(-1, M).T)[:M, M:]).max() < noise


def test_a_patch_tells_its_own_label_and_no_other_place_does():
    corpus = draw(bench.draw_patch)
    labels = corpus.labels.numpy()
    areas = np.array([[area(energy(corpus, i), labels[..., j]) for j in range(6)] for i in range(6)])
    assert np.diag(areas).min() > 0.7
    assert np.abs(areas[~np.eye(6, dtype=bool)] - 0.5).max() < 0.06
    assert all(abs(area(brightness(corpus, j), labels[..., j]) - 0.5) < 0.06 for j in range(6))
    whole = corpus.frames.flatten(2).std(2).numpy()
    assert all(area(whole, labels[..., j]) < 0.6 for j in range(6))


def test_a_copied_label_shows_only_two_frames_earlier_and_in_the_control_now():
    corpus, control = draw(bench.draw_copy), draw(bench.draw_copy, control=True)
    shown, copied = corpus.labels[..., : bench.VISIBLE], corpus.labels[..., bench.VISIBLE :]
    assert torch.equal(copied[:, bench.LAG :], shown[:, : -bench.LAG])
    assert not corpus.mask[:, : bench.LAG, bench.VISIBLE :].any()
    assert corpus.mask.float().mean() == 1 - bench.LAG / bench.FRAMES / 2
    for j in range(bench.VISIBLE):
        seen, later = energy(corpus, j), copied[..., j].numpy()
        assert area(seen, shown[..., j].numpy()) > 0.9
        assert abs(area(seen[:, bench.LAG :], later[:, bench.LAG :]) - 0.5) < 0.06
        assert area(seen[:, : -bench.LAG], later[:, bench.LAG :]) > 0.9
        assert abs(area(energy(corpus, bench.VISIBLE + j)[:, bench.LAG :], later[:, bench.LAG :]) - 0.5) < 0.06
    assert control.mask.all()
    assert torch.equal(control.labels[..., bench.VISIBLE :], control.labels[..., : bench.VISIBLE])


def test_brightness_tells_a_label_only_against_the_persons_own():
    corpus, control = draw(bench.draw_neutral), draw(bench.draw_neutral, control=True)
    for j in range(len(bench.AUS)):
        labels, seen = corpus.labels[..., j].numpy(), brightness(corpus, j)
        assert area(seen, labels) < 0.7
        assert area(seen - seen.mean(1, keepdims=True), labels) > 0.9
        assert area(brightness(control, j), control.labels[..., j].numpy()) > 0.75


def test_open_maps_are_exactly_one_and_do_not_learn():
    corpus = draw(bench.draw_patch, 4)
    model = build_model("stral", {"variant": "al", **bench.STRAL}, bench.AUS, corpus.stats())
    bench.open_maps(model)
    before = {name: p.clone() for name, p in model.named_parameters()}
    bench.train(model, corpus, corpus.frames, 0, epochs=1, lr=0.01)
    assert (model(corpus.frames[:2]).attention_BTMhw == 1).all()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert before.keys() - moved == {"attention.branches.attention.weight", "attention.branches.attention.bias"}


def test_mean_auc_weighs_people_and_leaves_out_what_is_not_coded():
    corpus = draw(bench.draw_copy, 6)
    scores = np.random.default_rng(1).integers(0, 4, corpus.labels.shape).astype(float)  # with ties
    labels, mask = corpus.labels.numpy(), corpus.mask.numpy()
    weights = np.array([[1, 1, 1, 1, 1, 1], [2, 0, 1, 3, 0, 0]])
    drawn = np.repeat(np.arange(6), weights[1])
    expected = [metrics.auc(scores, labels, mask).mean(), metrics.auc(scores[drawn], labels[drawn], mask[drawn]).mean()]
    np.testing.assert_allclose(bench.mean_auc(scores, corpus, weights), expected, rtol=1e-12)
