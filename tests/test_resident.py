"""resident.py: whichever level the faces are at, the batches are the same, byte for byte."""

import dataclasses
import logging
import multiprocessing

import numpy as np
import pytest
import torch
from conftest import AUS, write_shards

from aupipe import resident, shared
from aupipe.clips import ClipSpec, clip_batches, plan_clips
from aupipe.resident import open_level
from aupipe.schema import Batch, ConfigError, DataError

SPEC = ClipSpec(AUS, frames=6, stride=3, interval=1, align="face112", crop=96, batch=6)


@pytest.fixture(autouse=True)
def own_scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("AUPIPE_SCRATCH", str(tmp_path))


def plans_of(shards, spec):
    return plan_clips(shards, ["F001", "F002"], spec, train=True), plan_clips(shards, ["F003", "F004"], spec)


def fields(batch):
    return [getattr(batch, field.name) for field in dataclasses.fields(Batch)]


def assert_same(ours, theirs):
    ours, theirs = list(ours), list(theirs)
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        for a, b in zip(fields(one), fields(other), strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                a = np.asarray(a)
                assert a.dtype == b.dtype
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("level", ["host", "device"])
@pytest.mark.parametrize(("interval", "intensity"), [(1, False), (3, True)])
def test_levels_give_the_batches_of_the_stream(shards, level, interval, intensity):
    # 20 frames a session: windows of 6 that end in mid-air, a frame without a face, a span of 16 with the interval.
    spec = dataclasses.replace(SPEC, interval=interval, intensity=intensity)
    train, val = plans_of(shards, spec)
    with open_level(level, clip_batches, shards, (train, val), spec) as source:
        for options in ({}, {"rank": 0, "world": 2}, {"rank": 1, "world": 2, "start": 1}):
            for plan, kind in ((train, {"train": True, "seed": 5, "epoch": 3}), (val, {"train": False})):
                both = [one(plan, shards, spec, **kind, **options) for one in (source, clip_batches)]
                assert_same(*both)
        assert source.level == level


def test_batch_size_may_change_between_passes(shards):
    plans = plans_of(shards, SPEC)
    with open_level("host", clip_batches, shards, plans, SPEC) as source:
        for size in (2, 6):
            spec = dataclasses.replace(SPEC, batch=size)
            assert_same(*(one(plans[0], shards, spec, train=True, seed=1) for one in (source, clip_batches)))


def test_nothing_is_decoded_before_it_is_asked_for_and_nothing_stays(shards, tmp_path):
    plans = plans_of(shards, SPEC)
    with open_level("host", clip_batches, shards, plans, SPEC) as source:
        assert source.level is None
        assert not list(tmp_path.rglob("*"))
        first = next(iter(source(plans[0], shards, SPEC, train=True)))
        assert [path.suffix for path in sorted(tmp_path.rglob("*.*"))] == [".array", ".lock"]
    assert not list(tmp_path.rglob("*.*"))
    assert np.asarray(first.frames_BTHWC).any(), "a batch outlives its level"


def test_a_batch_is_nobodys_view(shards):
    plans = plans_of(shards, SPEC)
    for level in ("host", "device"):
        with open_level(level, clip_batches, shards, plans, SPEC) as source:
            first, again = (next(iter(source(plans[1], shards, SPEC, train=False))) for _ in range(2))
            first.frames_BTHWC[:] = 7
            assert np.asarray(again.frames_BTHWC).max() > 7
            assert_same(source(plans[1], shards, SPEC, train=False), clip_batches(plans[1], shards, SPEC, train=False))


def work(shards, queue, barrier, rank):
    calls, decode = [], resident.Sessions.decode
    resident.Sessions.decode = lambda self, out: (calls.append(1), decode(self, out))
    plans = plans_of(shards, SPEC)
    with open_level("host", clip_batches, shards, plans, SPEC) as source:
        total = sum(
            int(batch.frames_BTHWC.sum()) for batch in source(plans[0], shards, SPEC, train=True, rank=rank, world=2)
        )
        barrier.wait(60)
    queue.put((len(calls), total))


def test_workers_of_a_machine_share_one_copy(shards, tmp_path):
    context = multiprocessing.get_context("spawn")
    queue, barrier = context.Queue(), context.Barrier(2)
    workers = [context.Process(target=work, args=(shards, queue, barrier, rank)) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    decoded, sums = zip(*(queue.get(timeout=120) for _ in workers), strict=True)
    for worker in workers:
        worker.join(60)
    assert sorted(decoded) == [0, 1]
    plans = plans_of(shards, SPEC)
    assert sum(sums) == sum(int(b.frames_BTHWC.sum()) for b in clip_batches(plans[0], shards, SPEC, train=True))
    assert not list(tmp_path.rglob("*.*"))


ROOM = [("auto", 10**12, "host"), ("auto", 1000, "stream"), ("host", 1000, "stream"), ("device", 1000, "stream")]


@pytest.mark.parametrize(("asked", "free", "level"), ROOM)
def test_level_follows_the_room_that_there_is(shards, monkeypatch, caplog, asked, free, level):
    monkeypatch.setattr(shared, "free_memory", lambda: free)
    plans = plans_of(shards, SPEC)
    with caplog.at_level(logging.INFO), open_level(asked, clip_batches, shards, plans, SPEC) as source:
        assert_same(*(one(plans[0], shards, SPEC, train=True) for one in (source, clip_batches)))
        assert source.level == level
    text = "level 'host'" if level == "host" else "no room for level 'host' of the loader"
    assert text in caplog.text
    assert any(r.levelname == "WARNING" for r in caplog.records) == (asked in ("host", "device"))


def test_full_scratch_folder_means_the_stream(shards, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared.os, "posix_fallocate", full)
    plans = plans_of(shards, SPEC)
    with open_level("host", clip_batches, shards, plans, SPEC) as source:
        assert_same(*(one(plans[0], shards, SPEC, train=True) for one in (source, clip_batches)))
        assert source.level == "stream"
    assert "No space left" in caplog.text


def test_gpu_with_room_is_chosen_first(shards, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**12, 10**12))
    filled = []
    monkeypatch.setattr(resident, "_fill_device", lambda sessions, device: filled.append(device) or torch.zeros(0))
    plans = plans_of(shards, SPEC)
    with open_level("auto", clip_batches, shards, plans, SPEC, "cuda:1") as source:
        source(plans[0], shards, SPEC, train=True)
        assert source.level == "device"
    assert filled == ["cuda:1"]


def test_damaged_shard_is_one_sentence(tmp_path):
    shards = write_shards(tmp_path / "shards", 2, 1)
    plans = (plan_clips(shards, ["F001", "F002"], SPEC),)
    (shards / "F001" / "T1.parquet").write_bytes(b"damaged")
    with (
        pytest.raises(DataError, match=r"F001/T1\.parquet cannot be read.*dvc repro shards"),
        open_level("host", clip_batches, shards, plans, SPEC) as source,
    ):
        list(source(plans[0], shards, SPEC, train=False))
    assert not list(tmp_path.rglob("*.array"))
    assert not list(tmp_path.rglob("*.lock"))


def test_unknown_level_names_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown level 'hots'.*host"), open_level("hots", clip_batches, "", (), SPEC):
        pass


def test_key_changes_with_the_shards(tmp_path):
    shards = write_shards(tmp_path / "shards", 2, 1)
    plans = (plan_clips(shards, ["F001", "F002"], SPEC),)
    before = resident.Sessions(shards, plans, SPEC).key
    assert resident.Sessions(shards, plans, SPEC).key == before
    other = write_shards(tmp_path / "other", 2, 1, frames=21)
    (shards / "F001" / "T1.parquet").write_bytes((other / "F001" / "T1.parquet").read_bytes())
    assert resident.Sessions(shards, plans, SPEC).key != before
