"""stream.py: Ray carries the very batches that one process would read, and runs sessions anywhere."""

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import AUS, write_shards

from aupipe import order, stream
from aupipe.clips import ClipSpec, clip_batches, plan_clips
from aupipe.schema import Batch, DataError

SPEC = ClipSpec(AUS, frames=3, stride=3, interval=1, align="face112", crop=96, batch=6)

pytestmark = pytest.mark.usefixtures("cluster")


def assert_same(ours, theirs):
    ours, theirs = list(ours), list(theirs)
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        for field in dataclasses.fields(Batch):
            a, b = getattr(one, field.name), getattr(other, field.name)
            assert getattr(a, "dtype", None) == getattr(b, "dtype", None)
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "options", [{}, {"rank": 0, "world": 2, "epoch": 1}, {"rank": 1, "world": 2, "epoch": 1}, {"start": 2}]
)
@pytest.mark.parametrize("train", [True, False])
def test_streamed_batches_equal_those_of_one_process(shards, train, options):
    plan = plan_clips(shards, ["F001", "F002"], SPEC, train=train)
    kinds = [source(plan, shards, SPEC, train=train, seed=5, **options) for source in (stream.clip_stream, clip_batches)]
    assert_same(*kinds)


def test_intensities_are_streamed_too(shards):
    spec = dataclasses.replace(SPEC, intensity=True)
    plan = plan_clips(shards, ["F001", "F002"], spec, train=True)
    ours, theirs = (list(source(plan, shards, spec, train=True, seed=5)) for source in (stream.clip_stream, clip_batches))
    assert_same(ours, theirs)
    together = np.concatenate([batch.intensity_BTM for batch in ours])
    assert np.isfinite(together).any()
    assert np.isnan(together).any()


def test_ranks_step_together_whatever_the_blocks(shards, monkeypatch):
    """Ray's shuffle buffer made 8, 8, 8, 6, 8, 2 out of 40 rows in blocks of 30 and 10, and five steps out of one block:
    two ranks then wait for each other for ever (ray-project/ray#66085). The same blocks, ours.
    """
    spec = dataclasses.replace(SPEC, stride=1, batch=16)
    plan = plan_clips(shards, ["F001", "F002", "F003"], spec, train=True).slice(0, 80)
    barrier = threading.Barrier(2, timeout=120)

    def work(rank, task_frames):
        monkeypatch.setattr(stream, "TASK_FRAMES", task_frames)
        batches = stream.clip_stream(plan, shards, spec, train=True, seed=2, rank=rank, world=2)
        first = next(batches)  # the blocks are cut now

        def go_on():
            sizes = []
            for batch in (first, *batches):
                barrier.wait()  # as an all-reduce would
                sizes.append(len(batch.clip_B))
            return sizes

        return go_on

    ranks = [work(0, 90), work(1, 1000)]
    with ThreadPoolExecutor(2) as pool:
        sizes = [done.result() for done in [pool.submit(rank) for rank in ranks]]
    assert sizes == [[8] * 5] * 2


@pytest.mark.parametrize("rank", [0, 1])
def test_single_frames_are_streamed_in_pools(shards, monkeypatch, rank):
    monkeypatch.setattr(order, "POOL", 64)
    spec = dataclasses.replace(SPEC, frames=1, stride=1, batch=8)
    plan = plan_clips(shards, ["F001", "F002", "F003", "F004"], spec, train=True)
    assert plan.num_rows > 2 * order.POOL
    options = {"train": True, "seed": 1, "rank": rank, "world": 2, "start": 3}
    assert_same(*(source(plan, shards, spec, **options) for source in (stream.clip_stream, clip_batches)))


def test_a_pass_can_be_left_and_another_begun(shards):
    plan = plan_clips(shards, ["F001", "F002"], SPEC, train=True)
    before = {thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")}
    for _ in range(2):
        batches = stream.clip_stream(plan, shards, SPEC, train=True, seed=5)
        next(batches)
        batches.close()
    assert {thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")} <= before
    assert len(list(stream.clip_stream(plan, shards, SPEC, train=True, seed=5))) > 1


def test_rank_without_clips_gets_none(shards):
    plan = plan_clips(shards, ["F001"], SPEC).slice(0, 2)
    assert list(stream.clip_stream(plan, shards, SPEC, train=False, rank=1, world=2)) == []
    assert list(stream.clip_stream(plan, shards, SPEC, train=False, start=1)) == []


def square(number):
    if number == 13:
        raise DataError("13 cannot be squared")
    return number, number**2


def test_every_task_has_its_result():
    assert dict(stream.map_sessions(square, list(range(10)))) == {n: n**2 for n in range(10)}
    assert list(stream.map_sessions(square, [])) == []


def test_error_of_a_task_is_raised_as_it_was_there():
    with pytest.raises(DataError, match=r"^13 cannot be squared$"):
        list(stream.map_sessions(square, [13]))


@pytest.mark.parametrize("intensity", [False, True])
def test_damaged_shard_is_one_sentence(tmp_path, intensity):
    shards, spec = write_shards(tmp_path, 2, 1), dataclasses.replace(SPEC, intensity=intensity, batch=2)
    plan = plan_clips(shards, ["F002", "F001"], spec)
    (shards / "F001" / "T1.parquet").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"F001/T1\.parquet cannot be read.*dvc repro shards"):
        list(stream.clip_stream(plan, shards, spec, train=False))


class FakeRay:
    """Counts the tasks that were handed over and not yet asked for; two CPUs at first, four from the 20th result on."""

    def __init__(self, results=1000):
        self.flying, self.most, self.got, self.cancelled, self.results = [], [], 0, [], results

    def install(self, patch):
        patch.setattr(stream, "connect", lambda: None)
        patch.setattr(stream, "cpus", lambda: 2.0 if self.got < 20 else 4.0)
        patch.setattr(stream.ray, "remote", lambda **options: lambda function: type("Run", (), {"remote": self.submit}))
        patch.setattr(stream.ray, "wait", lambda waiting, num_returns: (waiting[-1:], waiting[:-1]))
        patch.setattr(stream.ray, "get", self.get)
        patch.setattr(stream.ray, "cancel", self.cancelled.append)
        return self

    def submit(self, folder, function, task):
        self.flying.append(task)
        self.most.append(len(self.flying))
        return task

    def get(self, task):
        self.flying.remove(task)
        self.got += 1
        if self.got > self.results:
            raise stream.ray.exceptions.WorkerCrashedError
        return task


def test_tasks_in_flight_do_not_grow_with_the_corpus(monkeypatch):
    fake = FakeRay().install(monkeypatch)
    taken = []

    def tasks():
        for n in range(1000):
            taken.append(n)
            yield n

    results = stream.map_sessions(square, tasks())
    assert next(results) == stream.IN_FLIGHT * 2 - 1
    assert len(taken) == stream.IN_FLIGHT * 2, "no task is made before there is room for it"
    assert sorted([stream.IN_FLIGHT * 2 - 1, *results]) == list(range(1000))
    assert max(fake.most[:18]) == stream.IN_FLIGHT * 2
    assert max(fake.most) == stream.IN_FLIGHT * 4, "nodes that join get work"
    assert not fake.cancelled


def test_a_worker_that_dies_is_a_sentence_and_ends_the_rest(monkeypatch):
    fake = FakeRay(results=5).install(monkeypatch)
    with pytest.raises(DataError, match=r"worker of Ray died \(WorkerCrashedError\).*run the same command again"):
        list(stream.map_sessions(square, list(range(100))))
    assert sorted(fake.cancelled) == sorted(fake.flying)
    assert len(fake.cancelled) == stream.IN_FLIGHT * 2 - 1
