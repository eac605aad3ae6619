"""trainer.py: several workers train as one, errors stay sentences, and whoever dies or hangs costs no step that was kept."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import make_recipe, make_training
from safetensors.torch import load_file

from aupipe import loop, stream, trainer
from aupipe.checkpoint import load_checkpoint, load_progress
from aupipe.keeper import written_alone
from aupipe.progress import TIMINGS
from aupipe.schema import ConfigError, DataError


def recipe(epochs):
    """Few and short clips: what is tested is who does the work, not what is learned. Four steps in each epoch."""
    phase = {"name": "train", "epochs": epochs, "batch": 8, "optimiser": {"name": "adam", "lr": 0.001}}
    return make_recipe(phases=[phase], clip={"frames": 2, "stride": 5})


def figures(history):
    """The records without what depends on the machine."""
    return [{k: v for k, v in record.items() if k not in TIMINGS} for record in history]


def assert_same_end(one, other):
    for name in ("last", "checkpoint"):
        weights, wanted = (load_file(folder / name / "model.safetensors") for folder in (one, other))
        assert all(torch.equal(weights[k], wanted[k]) for k in wanted), name
    assert sorted(p.name for p in one.iterdir()) == ["checkpoint", "last"], "nothing else is left, of Ray's neither"


def work_with(accidents, work, training, config):
    """The body of a worker in which something happens once, when its batch of (rank, epoch, step) is due."""
    source = stream.clip_stream

    @functools.wraps(source)
    def batches(*given, **how):
        for step, batch in enumerate(source(*given, **how), how.get("start", 0)):
            for (rank, epoch, at), (marker, accident) in accidents.items():
                if how["train"] and (how["rank"], how["epoch"], step) == (rank, epoch, at) and not marker.exists():
                    marker.touch()
                    accident()
            yield batch

    stream.clip_stream = batches
    try:
        work(training, config)
    finally:
        stream.clip_stream = source


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    time.sleep(10_000)


@pytest.fixture(scope="module")
def whole(cluster, shards, tmp_path_factory):
    """A training of two workers that nothing disturbed, and its history."""
    directory = tmp_path_factory.mktemp("two") / "run"
    return directory, trainer.train(make_training(shards, directory, recipe(2)), workers=2)


def test_two_workers_train_as_one(whole, shards, tmp_path):
    # They see the clips that one sees; only the statistics of batch normalisation are of half a batch each.
    directory, history = whole
    alone = loop.fit(make_training(shards, tmp_path, recipe(2)))
    for record, other in zip(history, alone, strict=True):
        assert record["train"]["loss"] == pytest.approx(other["train"]["loss"], rel=0.2)
        assert record["val"]["loss"] == pytest.approx(other["val"]["loss"], rel=0.2)
    assert load_progress(directory / "last")["history"] == history
    model, _ = load_checkpoint(directory / "checkpoint")
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_worker_that_dies_and_one_that_hangs_cost_no_step_that_was_kept(whole, shards, tmp_path, monkeypatch):
    died, hung = tmp_path / "died", tmp_path / "hung"
    accidents = {(1, 0, 2): (died, die), (0, 1, 3): (hung, hang)}
    monkeypatch.setattr(trainer, "_work", partial(work_with, accidents, trainer._work))
    training = make_training(shards, tmp_path / "run", recipe(2), save_steps=1, step_seconds=4)
    history = trainer.train(training, workers=2)
    assert died.exists()
    assert hung.exists()
    assert figures(history) == figures(whole[1])
    assert_same_end(tmp_path / "run", whole[0])


DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from conftest import make_training
from test_trainer import recipe
from aupipe import trainer
trainer.train(make_training(Path(sys.argv[1]), Path(sys.argv[2]), recipe(2), save_steps=1), workers=2)
"""


def test_driver_that_is_killed_goes_on_with_two_workers_or_one(whole, shards, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-c", DRIVER, str(shards), str(run), str(Path(__file__).parent)]
    address = stream.ray.get_runtime_context().gcs_address
    driver = subprocess.Popen(command, start_new_session=True, env={**os.environ, "RAY_ADDRESS": address})
    while driver.poll() is None and not (kept := load_progress(run / "last")):
        time.sleep(0.01)
    os.killpg(driver.pid, signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    assert len(kept["history"]) < 2, "in the middle of it"
    training = make_training(shards, run, recipe(2), save_steps=1)
    with written_alone(run):  # its workers are gone
        shutil.copytree(run, tmp_path / "one")
    assert figures(trainer.train(training, workers=2)) == figures(whole[1])
    assert_same_end(run, whole[0])
    alone = loop.fit(replace(training, directory=tmp_path / "one"))
    assert alone[-1]["val"]["loss"] == pytest.approx(whole[1][-1]["val"]["loss"], rel=0.2)
    assert alone[-1]["train"]["loss"] == pytest.approx(whole[1][-1]["train"]["loss"], rel=0.2)


def note_environment(path, record):
    """In the worker's own process: how it was set up."""
    words = [os.environ.get(name) for name in trainer.ALLOCATOR]
    path.write_text(json.dumps([words, torch.get_num_threads()]))


def test_workers_train_on_kept_features_and_are_set_up_for_it(cluster, shards, tmp_path, monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "3")  # what the user has set stays
    phase = {"name": "relations", "epochs": 1, "batch": 4, "optimiser": {"name": "sgd", "lr": 0.01}, "crops": 2}
    model = {"name": "stral", "c": 1, "variant": "gsf"}
    given = {"input": {"align": "face112", "crop": 96, "resize": 32}, "clip": {"frames": 5, "stride": 5}}
    frozen = make_recipe(model=model, phases=[phase], **given)
    note = tmp_path / "note.json"
    training = make_training(shards, tmp_path / "two", frozen, on_epoch=partial(note_environment, note))
    history = trainer.train(training, workers=2)
    kept = sorted(p.name for p in (tmp_path / "two" / "features").rglob("*.safetensors"))
    assert kept == sorted(["T1.safetensors", "T2.safetensors"] * 5), "each session once, whoever computed it"
    # The graph's norms see half a batch on each worker; the pass over val has none of that.
    alone = loop.fit(make_training(shards, tmp_path / "one", frozen, features=tmp_path / "two" / "features"))
    assert history[0]["train"]["loss"] == pytest.approx(alone[0]["train"]["loss"], rel=0.2)
    assert json.loads(note.read_text()) == [["4294967296", "4294967296", "3"], max(1, int(trainer.stream.cpus() // 2))]


def test_error_of_a_worker_is_its_own_sentence(cluster, shards, tmp_path):
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    training = make_training(copy, tmp_path / "run", recipe(1))
    (copy / "F002" / "T1.parquet").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"F002/T1\.parquet cannot be read.*dvc repro shards") as caught:
        trainer.train(training, workers=2)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "ray").exists()


@pytest.fixture(name="starts")
def make_starts(monkeypatch):
    """trainer.train without a cluster: what each start is to do, and the number of workers that each was given."""
    plans, sizes = [], []
    room = [4.0]

    def run(training, workers, gpu, patience):
        sizes.append((workers, patience))
        plans.pop(0)()

    def fail(error, *, room_left=None, step=None, last=None):
        def start():
            room[:] = room if room_left is None else [room_left]
            if step is not None:
                (last / "state.json").write_text(json.dumps({"param_groups": [], "progress": {"history": [], "step": step}}))
            raise error

        plans.append(start)

    monkeypatch.setattr(trainer.stream, "connect", lambda: None)
    monkeypatch.setattr(trainer, "_room", lambda gpu: 0.0 if gpu else room[0])
    monkeypatch.setattr(trainer, "_run", run)
    return fail, plans, sizes


def failure(*causes):
    return trainer.ray.train.v2.api.exceptions.WorkerGroupError("a long report\nof Ray's", dict(enumerate(causes)))


def finish(last):
    (last / "state.json").write_text(json.dumps({"param_groups": [], "progress": {"history": [{"epoch": 1}]}}))


@pytest.mark.parametrize(("room_left", "size"), [(4.0, 4), (3.0, 2), (2.5, 2), (1.0, 1), (0.0, 1)])
def test_workers_shrink_to_what_is_left_and_can_share_the_batch(starts, shards, tmp_path, room_left, size):
    fail, plans, sizes = starts
    training = make_training(shards, tmp_path, recipe(1))
    (tmp_path / "last").mkdir()
    fail(failure(RuntimeError("a node is gone")), room_left=room_left)
    plans.append(partial(finish, tmp_path / "last"))
    assert trainer.train(training, workers=4) == [{"epoch": 1}]
    assert sizes == [(4, trainer.PATIENCE), (size, 0)], "a cluster may take long to grow, but not to grow back"


@pytest.mark.parametrize(
    ("gpus", "asked", "used"),
    [
        (0, {}, (2, False)),
        (3, {}, (2, True)),  # three cannot share a batch of 8
        (8, {}, (8, True)),
        (16, {}, (8, True)),
        (8, {"gpu": False}, (2, False)),
        (8, {"workers": 4}, (4, True)),
        (0, {"workers": 4, "gpu": True}, (4, True)),  # the cluster may grow
    ],
)
def test_what_is_not_said_follows_from_what_the_cluster_has(shards, tmp_path, monkeypatch, gpus, asked, used):
    training, seen = make_training(shards, tmp_path, recipe(1)), []
    (tmp_path / "last").mkdir()
    monkeypatch.setattr(trainer.stream, "connect", lambda: None)
    monkeypatch.setattr(trainer, "_room", lambda gpu: float(gpus) if gpu else 2.0)
    monkeypatch.setattr(
        trainer, "_run", lambda _, workers, gpu, patience: (seen.append((workers, gpu)), finish(tmp_path / "last"))
    )
    trainer.train(training, **asked)
    assert seen == [used]


def test_restarts_that_come_no_further_end_with_the_worker_s_own_error(starts, shards, tmp_path):
    fail, _, sizes = starts
    (tmp_path / "last").mkdir()
    own = KeyError("of a model")
    for step in (1, 1, 1, 2, 2, 2, 2, 2):  # the fourth has come further: three more
        fail(failure(own), step=step, last=tmp_path / "last")
    with pytest.raises(KeyError) as caught:
        trainer.train(make_training(shards, tmp_path, recipe(1)), workers=2)
    assert caught.value is own
    assert len(sizes) == 3 + 1 + trainer.MAX_FAILURES


def test_workers_that_die_without_a_word_end_with_a_sentence(starts, shards, tmp_path):
    fail, _, _ = starts
    died = trainer.ray.exceptions.ActorDiedError()
    for error in (failure(died), died, trainer.ControllerError(died), failure(died)):
        fail(error)
    with pytest.raises(DataError, match=r"failed 4 times .*\(ActorDiedError.*goes on from what is kept in"):
        trainer.train(make_training(shards, tmp_path, recipe(1)), workers=2)


def test_error_of_the_user_s_is_not_tried_again(starts, shards, tmp_path):
    fail, _, sizes = starts
    fail(failure(RuntimeError("connection reset by peer"), DataError("the shard cannot be read")))
    with pytest.raises(DataError, match="the shard cannot be read"):
        trainer.train(make_training(shards, tmp_path, recipe(1)), workers=2)
    assert len(sizes) == 1


def test_batch_that_workers_cannot_share_is_refused_before_anything_starts(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer.stream, "connect", lambda: pytest.fail("Ray was started"))
    training = make_training(shards, tmp_path, recipe(1))
    with pytest.raises(ConfigError, match="phase 'train' has a batch of 8 clips, which 3 workers cannot share evenly"):
        trainer.train(training, workers=3)
    second = replace(training.recipe.phases[0], name="tune", batch=9)
    training = replace(training, recipe=replace(training.recipe, phases=(*training.recipe.phases, second)))
    with pytest.raises(ConfigError, match="phase 'tune' has a batch of 9"):
        trainer.train(training, workers=2)
