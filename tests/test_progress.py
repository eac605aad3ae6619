"""progress.py: steps add up one step late, seconds have names, and a phase knows when it is over."""

import logging

import numpy as np
import pytest
import torch

from aupipe import progress
from aupipe.metrics import Counts
from aupipe.progress import Progress, Speaker, Sums, Tally, Timers
from aupipe.recipes import OptimiserConfig, PhaseConfig
from aupipe.schema import Batch


def make_batch(B=2, T=3, M=2):
    rng = np.random.default_rng(0)
    nothing = np.zeros(B, np.int64)
    labels = rng.integers(0, 2, (B, T, M)).astype(np.float32)
    mask = rng.random((B, T, M)) < 0.8
    real = np.ones((B, T), bool)
    real[-1, -1] = False
    return Batch(np.zeros(0, np.uint8), labels, mask, np.zeros((B, 2), np.int64), nothing > 0, nothing, nothing, real)


def test_sums_are_rows_of_numbers_and_back():
    batch, sums = make_batch(), Sums(Counts.zero(2))
    logits = torch.randn(2, 3, 2)
    sums.add({"bce": torch.tensor(0.25), "attention_l1": 0.5}, logits, batch)
    assert (sums.clips, sums.frames, sums.terms) == (2, 5, {"bce": 0.5, "attention_l1": 1.0})
    np.testing.assert_array_equal(
        sums.counts.to_array(), Counts.from_probs(logits.sigmoid(), batch.labels_BTM, batch.mask_BTM).to_array()
    )
    again = Sums.from_array(sums.to_array(), sums.terms)
    assert again.figures() == sums.figures()
    assert (again.clips, again.frames, again.terms) == (sums.clips, sums.frames, sums.terms)
    np.testing.assert_array_equal(again.counts.to_array(), sums.counts.to_array())


def test_terms_count_by_clips_so_that_two_workers_have_one_worker_s_mean():
    alone, first, second = (Sums(Counts.zero(2)) for _ in range(3))
    one, other = make_batch(4), make_batch(1)  # a last batch that is short
    for sums, batch, term in ((alone, one, 1.0), (alone, other, 4.0), (first, one, 1.0), (second, other, 4.0)):
        sums.add({"bce": term}, torch.zeros(len(batch.clip_B), 3, 2), batch)
    total = first.reduced(lambda flat: flat + second.to_array())
    assert total.figures() == alone.figures()
    assert total.figures()["bce"] == pytest.approx((4 * 1.0 + 1 * 4.0) / 5)


def test_tally_adds_a_step_when_the_next_one_comes():
    tally, batch = Tally(Sums(Counts.zero(2))), make_batch()
    tally.add({"bce": torch.tensor(1.0)}, torch.zeros(2, 3, 2), batch)
    assert tally.sums.clips == 0
    tally.add({"bce": torch.tensor(2.0)}, torch.zeros(2, 3, 2), batch)
    assert tally.sums.clips == 2
    tally.flush()
    tally.flush()
    assert (tally.sums.clips, tally.sums.terms) == (4, {"bce": 6.0})


def test_tally_refuses_the_batch_whose_loss_is_not_finite():
    refused = []
    tally = Tally(Sums(Counts.zero(2)), lambda loss, batch: refused.append((loss, batch)))
    good, bad = make_batch(), make_batch()
    tally.add({"bce": torch.tensor(1.0), "l1": torch.tensor(1.0)}, torch.zeros(2, 3, 2), good)
    tally.add({"bce": torch.tensor(float("inf")), "l1": torch.tensor(1.0)}, torch.zeros(2, 3, 2), bad)
    assert not refused
    tally.flush()
    assert refused == [(float("inf"), bad)]


def test_timers_name_the_seconds(monkeypatch):
    clock = iter([0.0, 1.0, 10.0, 12.5, 20.0, 20.5, 30.0, 36.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    timers = Timers({"save": 2.0})
    with timers.part("step"):
        pass
    assert list(timers.each("wait", ["a", "b"])) == ["a", "b"], "the end is waited for too"
    assert timers.seconds == {"save": 2.0, "step": 1.0, "wait": 9.0}
    assert timers.share("wait") == 0.75


def phase(**changes):
    return PhaseConfig(name="p", batch=1, optimiser=OptimiserConfig(name="sgd", lr=1.0), **{"epochs": 9, **changes})


@pytest.mark.parametrize(
    ("scores", "first", "changes", "over"),
    [
        ([], 0, {}, False),
        ([0.1] * 9, 0, {}, True),
        ([0.1] * 9, 1, {}, False),
        ([0.5, 0.4, 0.4], 0, {"patience": 2}, True),
        ([0.5, 0.4, 0.6], 0, {"patience": 2}, False),
        ([0.5, 0.5, 0.5], 0, {"patience": 2}, True),  # as good is not better
        ([0.9, 0.5, 0.4], 1, {"patience": 2}, False),  # each phase looks at its own epochs
        ([None, None, None], 0, {"patience": 2}, True),
        ([None, None, 0.1], 0, {"patience": 2}, False),
    ],
)
def test_phase_is_over_after_its_epochs_or_its_patience(scores, first, changes, over):
    history = [{"val": {"f1": f1}} for f1 in scores]
    assert Progress(history, first=first).is_over(phase(**changes)) is over


def test_a_line_is_spoken_now_and_then(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "gpu_use", lambda device: 50.0 + now[0])
    speaker, timers = Speaker("cpu", 40, 2), Timers({"wait": 1.0, "step": 3.0})
    sums = Sums(Counts.zero(2), {"bce": 6.0}, clips=4, frames=100)
    with caplog.at_level(logging.INFO, "aupipe.progress"):
        for now[0] in (1.0, 29.0, 31.0, 45.0, 62.0):
            speaker.look(3, 10, sums, timers)
    text = "epoch 3, step 10 of 40: loss 1.5000, 50 frames/s, 25 % of the time waiting for data"
    assert [record.getMessage() for record in caplog.records] == [text, text]
    assert speaker.uses == [79.0, 81.0, 95.0, 112.0]
    assert speaker.gpu() == {}, "without a GPU nothing is said of one"


def test_gpu_that_cannot_be_asked_says_nothing(monkeypatch):
    assert progress.gpu_use("cpu") is None
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 1 / 0)
    assert progress.gpu_use("cuda:0") is None
