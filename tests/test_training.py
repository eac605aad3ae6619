"""training.py: wherever a training is cut off, it goes on from there and ends as if it had not been."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_recipe, make_training
from safetensors.torch import load_file

from aupipe import checkpoint, loop
from aupipe.clips import clip_batches
from aupipe.progress import TIMINGS
from aupipe.schema import DataError

SGD = {"name": "sgd", "lr": 0.002, "decay": 0.5}
PHASES = [
    {"name": "warm", "epochs": 1, "batch": 8, "optimiser": {"name": "adam", "lr": 0.001}},
    {"name": "tune", "epochs": 2, "batch": 8, "optimiser": SGD},
]
DRML = {"name": "drml", "size": 90, "filters": 4, "later_filters": 4, "hidden": [16], "init": "he"}


def recipe(**changes):
    """DRML, whose dropout draws from torch's own random state at every step; three steps in each of three epochs."""
    given = {"input": {"align": "face112", "crop": 90, "normalise": "grey"}, "clip": {"frames": 2, "stride": 9}}
    return make_recipe(**{"model": DRML, "phases": PHASES, **given, **changes})


def figures(history):
    """The records without what depends on the machine."""
    return [{k: v for k, v in record.items() if k not in TIMINGS} for record in history]


def assert_same_end(one, other):
    for name in ("last", "checkpoint"):
        weights, wanted = (load_file(folder / name / "model.safetensors") for folder in (one, other))
        assert list(weights) == list(wanted)
        assert all(torch.equal(weights[k], wanted[k]) for k in wanted), name
    assert sorted(p.name for p in one.iterdir()) == ["checkpoint", "last"], "nothing is left behind"


class CutError(Exception):
    pass


def cut_at(step, seen=None):
    """A worker whose source of batches fails when the training's step of this number, of all epochs, is due."""
    made = 0

    def batches(*given, **how):
        nonlocal made
        if how["train"] and seen is not None:
            seen.append((how["epoch"], how["start"]))
        for batch in clip_batches(*given, **how):
            if how["train"] and made == step:
                raise CutError
            made += how["train"]
            yield batch

    return loop.Worker(batches=batches)


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory):
    """A training of two phases that nothing disturbed, and its history."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, loop.fit(make_training(shards, directory, recipe()))


@pytest.mark.parametrize(("step", "place"), [(2, (0, 2)), (5, (1, 2)), (6, (2, 0)), (8, (2, 2))])
def test_cut_off_at_a_step_it_goes_on_with_that_step(shards, tmp_path, whole, step, place):
    training = make_training(shards, tmp_path, recipe(), save_steps=1)
    with pytest.raises(CutError):
        loop.fit(training, cut_at(step))
    seen = []
    history = loop.fit(training, cut_at(None, seen))
    assert seen[0] == place
    assert figures(history) == figures(whole[1])
    assert_same_end(tmp_path, whole[0])


def test_steps_since_the_last_save_are_made_again(shards, tmp_path, whole):
    training = make_training(shards, tmp_path, recipe(), save_steps=2)
    for step in (4, 1, 3):
        with pytest.raises(CutError):
            loop.fit(training, cut_at(step))
    seen = []
    assert figures(loop.fit(training, cut_at(None, seen))) == figures(whole[1])
    assert seen[0] == (2, 0)
    assert_same_end(tmp_path, whole[0])


def test_random_states_count(shards, tmp_path, whole, monkeypatch):
    monkeypatch.setattr("aupipe.keeper.set_random_state", lambda *_: None)
    training = make_training(shards, tmp_path, recipe(), save_steps=1)
    with pytest.raises(CutError):
        loop.fit(training, cut_at(5))
    assert figures(loop.fit(training)) != figures(whole[1])


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import torch
torch.set_num_threads(1)
from conftest import make_training
from test_training import recipe
from aupipe import loop
loop.fit(make_training(Path(sys.argv[1]), Path(sys.argv[2]), recipe(), save_steps=1))
"""


def test_killed_with_all_its_processes_it_goes_on(shards, tmp_path, whole):
    run = tmp_path / "run"
    command = [sys.executable, "-c", SCRIPT, str(shards), str(run), str(Path(__file__).parent)]
    process = subprocess.Popen(command, start_new_session=True)
    while process.poll() is None and not steps_kept(run):
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was killed before it ended"
    assert figures(loop.fit(make_training(shards, run, recipe(), save_steps=1))) == figures(whole[1])
    assert_same_end(run, whole[0])


def steps_kept(run):
    progress = checkpoint.load_progress(run / "last")
    return progress and (progress["step"] or progress["history"])


def test_shard_that_becomes_unreadable_ends_the_training_and_loses_nothing(shards, tmp_path, whole):
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    shard, run = copy / "F002" / "T1.parquet", tmp_path / "run"
    bytes_before = shard.read_bytes()

    def batches(*given, **how):
        if how.get("epoch") == 1:
            shard.write_bytes(bytes_before[:1000])
        yield from clip_batches(*given, **how)

    training = make_training(copy, run, recipe(), save_steps=1)
    with pytest.raises(DataError, match=r"F002/T1\.parquet cannot be read.*dvc repro shards"):
        loop.fit(training, loop.Worker(batches=batches))
    assert len(checkpoint.load_progress(run / "last")["history"]) == 1
    shard.write_bytes(bytes_before)
    assert figures(loop.fit(training)) == figures(whole[1])
    assert_same_end(run, whole[0])


def test_phase_ends_when_val_gets_no_better(shards, tmp_path, monkeypatch):
    scores = iter([0.5, 0.6, 0.6, 0.4, 0.7, 0.1, 0.2, 0.3])
    run = loop.Pass.run

    def run_with_score(self, *given):
        record = run(self, *given)
        record["val"]["f1"] = next(scores)
        return record

    monkeypatch.setattr(loop.Pass, "run", run_with_score)
    patient = recipe(phases=[PHASES[0] | {"epochs": 9, "patience": 2}, PHASES[1] | {"patience": 5}])
    training = make_training(shards, tmp_path, patient)
    history = loop.fit(training)
    assert [r["phase"] for r in history] == ["warm"] * 4 + ["tune"] * 2
    assert [r["lr"] for r in history[4:]] == [0.002, 0.001], "the second phase begins with its own epoch 0"
    assert figures(loop.fit(training)) == figures(history), "and it is over, for a second run too"


def test_state_of_two_workers_serves_one(shards, tmp_path, whole):
    """Sums and random states of ranks: rank 0 takes the sum of what all have, the step is the next one of all."""
    training = make_training(shards, tmp_path, recipe(), save_steps=1)
    with pytest.raises(CutError):
        loop.fit(training, cut_at(4))
    ranks = checkpoint.load_ranks(tmp_path / "last")
    path = tmp_path / "last" / checkpoint.RANKS
    halves = torch.cat([ranks["sums_WN"] / 2] * 2)
    checkpoint.save_file({"sums_WN": halves, "random_WN": torch.cat([ranks["random_WN"], ranks["random_WN"] * 0])}, path)
    assert figures(loop.fit(training)) == figures(whole[1])
    assert_same_end(tmp_path, whole[0])


def test_records_say_where_the_seconds_went(whole):
    for record in whole[1]:
        assert {"wait", "step", "validate"} <= set(record["timings"])
        assert 0 <= record["wait"] <= 1
        assert record["wait"] == pytest.approx(record["timings"]["wait"] / record["seconds"])
        assert record["time"] == pytest.approx(time.time(), abs=3600)
    assert np.diff([record["time"] for record in whole[1]]).min() > 0


def test_on_start_is_called_once_and_records_are_told_when_they_are_kept(shards, tmp_path):
    calls = []

    def tell(record):
        calls.append((record["epoch"], len(checkpoint.load_progress(tmp_path / "last")["history"])))

    short = replace(make_training(shards, tmp_path, recipe()), on_start=lambda: calls.append("start"), on_epoch=tell)
    loop.fit(short)
    assert calls == ["start", (1, 1), (2, 2), (3, 3)]
