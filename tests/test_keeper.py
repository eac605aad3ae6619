"""keeper.py: what a full disk, a second writer and a hanging worker do to a training, and how workers agree on a save."""

import fcntl
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_training
from safetensors.torch import load_file
from test_training import CutError, assert_same_end, cut_at, figures, recipe

from aupipe import checkpoint, keeper, loop
from aupipe.keeper import Keeper, Watchdog, written_alone
from aupipe.progress import Progress
from aupipe.schema import DataError


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    return directory, loop.fit(make_training(shards, directory, recipe()))


@contextmanager
def full_disk(limit=20_000):
    """Files cannot grow past `limit` bytes: JSON can be written, weights cannot."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)


def test_full_disk_in_mid_training_costs_a_warning(shards, tmp_path, whole, caplog, monkeypatch):
    save, saves, states = Keeper.save, [], []

    def save_on_full_disk(self, *given, **how):
        saves.append(how)
        if len(saves) not in (2, 3, 4):  # in the first epoch, at its end, and in the second
            return save(self, *given, **how)
        with full_disk():
            save(self, *given, **how)
        states.append((checkpoint.load_progress(self.last)["step"], sorted(p.name for p in tmp_path.iterdir())))

    monkeypatch.setattr(Keeper, "save", save_on_full_disk)
    with caplog.at_level(logging.WARNING):
        history = loop.fit(make_training(shards, tmp_path, recipe(), save_steps=2))
    assert states == [(2, ["last"])] * 3, "the state before is whole, and nothing lies about"
    assert any(how.get("best") for how in saves[1:4]), "an epoch's end was among them"
    assert figures(history) == figures(whole[1])
    assert_same_end(tmp_path, whole[0])
    said = [r.getMessage() for r in caplog.records if r.name == "aupipe.keeper"]
    assert len(said) == 3
    assert "cannot write" in said[0]
    assert "training goes on" in said[0]


def test_the_best_epoch_is_written_when_there_is_room_again(shards, tmp_path, monkeypatch):
    training, run, kept = make_training(shards, tmp_path, recipe()), loop.Pass.run, {}

    def run_with_score(self, *given):
        record = run(self, *given)
        record["val"]["f1"] = [0.9, 0.5, 0.4][self.epoch]
        return record

    def save(self, *given, best, must):
        if best:
            kept.update({k: v.clone() for k, v in self.model.state_dict().items()})
            with full_disk():
                return write(self, *given, best=best, must=must)
        return write(self, *given, best=best, must=must)

    write = Keeper.save
    monkeypatch.setattr(Keeper, "save", save)
    monkeypatch.setattr(loop.Pass, "run", run_with_score)
    loop.fit(training)
    best = load_file(tmp_path / "checkpoint" / "model.safetensors")
    assert all(torch.equal(best[name], tensor) for name, tensor in kept.items())
    last = load_file(tmp_path / "last" / "model.safetensors")
    assert not all(torch.equal(best[name], last[name]) for name in best)


def test_full_disk_at_the_end_is_an_error_that_names_the_path(shards, tmp_path, whole):
    training = make_training(shards, tmp_path, recipe(), save_steps=1)
    with pytest.raises(CutError):
        loop.fit(training, cut_at(8))
    before = checkpoint.load_progress(tmp_path / "last")
    with full_disk(), pytest.raises(DataError, match=rf"cannot write {tmp_path}/\w+ \(.*make room or mend it and run"):
        loop.fit(training)
    assert checkpoint.load_progress(tmp_path / "last") == before
    assert figures(loop.fit(training)) == figures(whole[1]), "with room again it ends as if nothing had been"
    assert_same_end(tmp_path, whole[0])


def test_two_processes_never_train_in_one_directory(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(keeper, "LOCK_SECONDS", 0.5)
    training = make_training(shards, tmp_path / "run", recipe())
    (tmp_path / "run").mkdir()
    handle = os.open(tmp_path / "run", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(DataError, match=r"another process trains in .*run; end it or wait"):
        loop.fit(training)
    threading.Timer(0.1, os.close, [handle]).start()
    with written_alone(tmp_path / "run"):  # it waits for one that is about to end
        pass


HANGING = """
import sys, threading, time
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import torch
torch.set_num_threads(1)
from conftest import make_training
from test_training import recipe
from aupipe import loop
from aupipe.clips import clip_batches
def batches(*given, **how):
    for number, batch in enumerate(clip_batches(*given, **how)):
        if how["train"] and how["epoch"] == 1 and number == 2:
            time.sleep(10_000)
        yield batch
training = make_training(Path(sys.argv[1]), Path(sys.argv[2]), recipe(), save_steps=1, step_seconds=4)
loop.fit(training, loop.Worker(batches=batches))
"""


def test_worker_that_hangs_ends_itself_and_says_where(shards, tmp_path, whole):
    run = tmp_path / "run"
    command = [sys.executable, "-c", HANGING, str(shards), str(run), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert "nothing was done for 4 s" in done.stderr
    assert "in batches" in done.stderr, "where it was"
    progress = checkpoint.load_progress(run / "last")
    assert (len(progress["history"]), progress["step"]) == (1, 2)
    assert figures(loop.fit(make_training(shards, run, recipe()))) == figures(whole[1])
    assert_same_end(run, whole[0])


def test_watchdog_counts_what_it_sees(monkeypatch):
    ended, limits = threading.Event(), []
    monkeypatch.setattr(keeper.os, "_exit", lambda code: (limits.append(code), ended.set(), dog.ended.set()))
    monkeypatch.setattr(keeper.faulthandler, "dump_traceback", lambda: None)
    dog = Watchdog(0.04)
    dog.start()
    dog.begin()
    assert dog.left > 1000, "a first step has its time"
    dog.rest()
    assert dog.left == float("inf")
    assert not ended.is_set()
    dog.step()
    assert ended.wait(60)
    assert limits == [2]


class Group:
    """Workers in threads, whose `reduce` sums."""

    def __init__(self, world):
        self.arrays, self.world = {}, world
        self.barrier = threading.Barrier(world, timeout=60)

    def reduce(self, rank):
        def reduce(values):
            self.arrays[rank] = np.array(values, float)
            self.barrier.wait()
            total = sum(self.arrays[r] for r in range(self.world))
            self.barrier.wait()
            return total

        return reduce

    def run(self, function):
        threads = [threading.Thread(target=function, args=(rank,)) for rank in range(self.world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def make_keeper(training, group, rank, seed=0):
    torch.manual_seed(seed)
    worker = loop.Worker(rank=rank, world=group.world, reduce=group.reduce(rank))
    return Keeper(training, worker, training.description.new_model())


def test_workers_agree_on_the_steps_after_which_they_save(shards, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(keeper.time, "monotonic", lambda: now[0])
    training, told, made = make_training(shards, tmp_path, save_seconds=60), [], {0: [], 1: []}
    first, second = (Keeper(training, loop.Worker(rank=rank, world=2), torch.nn.Linear(1, 1)) for rank in (0, 1))
    first.worker = replace(first.worker, reduce=lambda values: (told.append(values), values)[1])
    second.worker = replace(second.worker, reduce=lambda values: told[-1])
    for step in range(2000):
        now[0] += 0.1 if step < 1000 else 0.5  # the second half is slower
        for rank, one in enumerate((first, second)):
            if one.is_due(step):
                made[rank].append(now[0])
        if made[0] and made[0][-1] == now[0]:
            first.saved = now[0]  # only the one that writes knows when
    assert made[0] == made[1]
    assert np.diff(made[0]).min() > 50
    assert np.diff(made[0]).max() < 160, "half of the way at the pace before, then anew"
    assert np.median(np.diff(made[0])) < 66
    assert len(told) < 100, "of 2000 steps: they hardly ever talk"


def test_saves_by_steps_follow_the_place_in_the_epoch(shards, tmp_path):
    keeper = Keeper(make_training(shards, tmp_path, save_steps=3), loop.Worker(), torch.nn.Linear(1, 1))
    assert [step for step in range(1, 10) if keeper.is_due(step)] == [3, 6, 9]


def test_a_state_holds_every_worker_s_share(shards, tmp_path):
    training, group = make_training(shards, tmp_path), Group(2)
    keepers = {}
    group.run(lambda rank: keepers.update({rank: make_keeper(training, group, rank)}))
    sums = [loop.Sums.from_array(np.arange(15.0) + 100 * rank, ["bce"]) for rank in (0, 1)]  # 4 × 3 counts and 3 more
    optimiser = torch.optim.SGD(keepers[0].model.parameters(), 0.1)
    group.run(lambda rank: keepers[rank].save(optimiser, Progress(step=3, sums=sums[rank], seconds={"wait": 0.5})))
    found = {}
    group.run(lambda rank: found.update({rank: make_keeper(training, group, rank, seed=1).load()}))
    for rank in (0, 1):
        np.testing.assert_array_equal(found[rank].sums.to_array(), sums[rank].to_array())
        assert (found[rank].step, found[rank].seconds) == (3, {"wait": 0.5})
    alone = Keeper(training, loop.Worker(), training.description.new_model())
    np.testing.assert_array_equal(alone.load().sums.to_array(), sums[0].to_array() + sums[1].to_array())
    assert all(torch.equal(a, b) for a, b in zip(alone.model.parameters(), keepers[0].model.parameters(), strict=True))
    three, parts = Group(3), {}
    three.run(lambda rank: parts.update({rank: make_keeper(training, three, rank)}))
    totals = {}
    three.run(lambda rank: totals.update({rank: parts[rank].load().sums.to_array()}))
    np.testing.assert_array_equal(sum(totals.values()), sums[0].to_array() + sums[1].to_array())
    assert parts[2].random is None, "a worker that was not there draws numbers of its own"


def test_random_numbers_go_on_and_differ_between_workers(shards, tmp_path):
    training, drawn = make_training(shards, tmp_path), []
    for rank in (0, 1):
        torch.manual_seed(training.seed)
        one = Keeper(training, loop.Worker(rank=rank, world=2), torch.nn.Linear(1, 1))
        one.draw_on()
        drawn.append(torch.rand(3))
    assert not torch.equal(*drawn)
    state = keeper.random_state("cpu")
    wanted = torch.rand(3)
    keeper.set_random_state(state, "cpu")
    assert torch.equal(torch.rand(3), wanted)


def test_every_worker_validates_with_the_statistics_that_are_kept(shards, tmp_path):
    training, group = make_training(shards, tmp_path), Group(2)
    keepers = {}
    group.run(lambda rank: keepers.update({rank: make_keeper(training, group, rank)}))
    for rank, one in keepers.items():
        for number, buffer in enumerate(one.model.buffers()):
            buffer.fill_(10 * rank + number)
    group.run(lambda rank: keepers[rank].share_buffers())
    for one in keepers.values():
        assert all((buffer == number).all() for number, buffer in enumerate(one.model.buffers()))
    assert len(list(one.model.buffers())) > 3
