"""trainer.py: several workers train as one, errors stay sentences, and a killed worker costs an epoch at most."""

import json
import os
import shutil
import signal
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import make_recipe, make_training
from safetensors.torch import load_file

from aupipe import loop, trainer
from aupipe.checkpoint import load_checkpoint, load_progress
from aupipe.schema import ConfigError, DataError


def recipe(epochs):
    """Few and short clips: what is tested is who does the work, not what is learned."""
    phase = {"name": "train", "epochs": epochs, "batch": 8, "optimiser": {"name": "adam", "lr": 0.001}}
    return make_recipe(phases=[phase], clip={"frames": 2, "stride": 5})


def kill_once(marker, record):
    """After the first epoch this process dies as if the machine had failed; the marker keeps it from doing so again."""
    if record["epoch"] == 1 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def test_two_workers_survive_the_death_of_one(cluster, shards, tmp_path):
    marker, directory = tmp_path / "killed", tmp_path / "run"
    training = make_training(shards, directory, recipe(2), on_epoch=partial(kill_once, marker))
    history = trainer.train(training, workers=2)
    assert marker.exists(), "a worker was killed"
    assert [record["epoch"] for record in history] == [1, 2]
    assert load_progress(directory / "last")["history"] == history
    model, description = load_checkpoint(directory / "checkpoint")
    assert description == training.description
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert sorted(p.name for p in directory.iterdir()) == ["checkpoint", "last"], "nothing of Ray's is left"

    # Two processes see the clips that one sees; only the statistics of batch normalisation are of half a batch each.
    alone = loop.fit(make_training(shards, tmp_path / "alone", recipe(1)))
    assert history[0]["train"]["loss"] == pytest.approx(alone[0]["train"]["loss"], rel=0.2)
    assert load_file(directory / "checkpoint/model.safetensors").keys() == model.state_dict().keys()


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


def test_batch_that_workers_cannot_share_is_refused_before_anything_starts(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer.stream, "connect", lambda: pytest.fail("Ray was started"))
    training = make_training(shards, tmp_path, recipe(1))
    with pytest.raises(ConfigError, match="phase 'train' has a batch of 8 clips, which 3 workers cannot share evenly"):
        trainer.train(training, workers=3)
    second = replace(training.recipe.phases[0], name="tune", batch=9)
    training = replace(training, recipe=replace(training.recipe, phases=(*training.recipe.phases, second)))
    with pytest.raises(ConfigError, match="phase 'tune' has a batch of 9"):
        trainer.train(training, workers=2)
