"""pipelines.recipe and pipelines.train: a recipe that starts from another run makes that run, once, and shares it."""

import json
import shutil
import sys

import numpy as np
import pytest
import yaml
from conftest import AUS, STATS, write_shards
from safetensors.numpy import load_file

from aupipe import loop, tracking
from aupipe.journal import Journal
from aupipe.schema import DataError
from pipelines import evaluate as evaluate_door
from pipelines import recipe as recipe_door
from pipelines import register as register_door
from pipelines import train as train_door

SGD = {"name": "sgd", "lr": 0.01}
CORPORA = {name: {"layout": "bp4d", "aus": list(AUS), "align": ["face112"]} for name in ("demo", "other")}
RECIPES = {
    "al": {
        "model": {"name": "stral", "variant": "al", "c": 1},
        "input": {"align": "face112", "crop": 96, "resize": 32},
        "clip": {"frames": 1, "stride": 4},
        "phases": [{"name": "attention", "epochs": 1, "batch": 8, "optimiser": SGD}],
    },
    "gsf": {
        "base": "al",
        "model": {"variant": "gsf"},
        "clip": {"frames": 5, "stride": 5},
        "init": {"recipe": "al"},
        "phases": [{"name": "relations", "epochs": 1, "batch": 4, "optimiser": SGD, "crops": 2}],
    },
    "full": {"base": "gsf", "model": {"variant": "stral"}},
    "al-other": {"base": "al", "init": {"recipe": "al", "corpus": "demo", "au_map": {12: 4}}},
    "full-other": {"base": "full", "init": {"recipe": "al-other"}},
}


@pytest.fixture(name="house")
def make_house(tmp_path, monkeypatch):
    """A working directory with params, two corpora's shards and their folds, in which the doors run in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr(tracking, "_replay", lambda uri, journal: journal.note("run", len(journal.entries())))
    monkeypatch.setattr(train_door, "check_leaks", lambda *_: None)  # pictures of noise are twins of each other
    fold = {"train": ["F001", "F002"], "val": ["F003"], "test": ["F004"], "stats": STATS}
    second = fold | {"train": ["F002", "F003"], "val": ["F004"], "test": ["F001"]}
    for number, corpus in enumerate(CORPORA):
        write_shards(tmp_path / "data/shards" / corpus, subjects=4, sessions=1 + number)
        folds = [{"name": "fold1", **fold}, {"name": "fold2", **second}]
        (tmp_path / "data/folds").mkdir(exist_ok=True)
        (tmp_path / f"data/folds/{corpus}.json").write_text(json.dumps({"folds": folds}))
    return House(tmp_path, monkeypatch)


class House:
    def __init__(self, root, monkeypatch):
        self.root, self.patch = root, monkeypatch
        self.write(RECIPES)

    def write(self, recipes):
        experiment = {"recipes": ["al"], "corpora": ["demo"], "folds": ["fold1"]}
        params = {"seed": 1, "experiment": experiment, "corpora": CORPORA, "recipes": recipes}
        (self.root / "params.yaml").write_text(yaml.safe_dump(params))

    def door(self, module, **given):
        self.patch.setattr(sys, "argv", ["door", *(word for k, v in given.items() for word in (f"--{k}", *v.split()))])
        module.main()

    def train(self, recipe, corpus="demo", fold="fold1"):
        self.door(recipe_door, recipe=recipe)
        self.door(train_door, recipe=recipe, corpus=corpus, fold=fold, local="")
        return self.run(recipe, corpus, fold)

    def journal(self, recipe, corpus="demo", fold="fold1"):
        (folder,) = (self.root / "runs" / corpus / recipe / fold / "tracking").iterdir()
        return Journal(folder)

    def run(self, recipe, corpus="demo", fold="fold1"):
        path = self.root / "runs" / corpus / recipe / fold / "run.json"
        return json.loads(path.read_text()), path.stat().st_mtime_ns

    def weights(self, recipe, corpus="demo", fold="fold1"):
        return load_file(self.root / "runs" / corpus / recipe / fold / "checkpoint" / "model.safetensors")


def same_attention(one, other):
    names = [name for name in one if name.startswith("attention.")]
    return len(names) > 10 and all(np.array_equal(one[name], other[name]) for name in names)


def test_variants_share_the_run_that_they_start_from(house):
    house.train("gsf")
    first = house.run("al")
    assert first[0]["finished"]
    assert same_attention(house.weights("al"), house.weights("gsf"))
    house.train("full")
    assert house.train("al") == first, "its own stage finds it finished"
    stores = list((house.root / "runs/demo/al/fold1/features").iterdir())
    assert len(stores) == 1, "both variants read the same features"
    assert not list((house.root / "runs/demo").glob("*l*/fold1/last"))


def test_a_change_of_the_origin_reaches_what_starts_from_it(house):
    before = house.train("gsf")
    recipes = json.loads(json.dumps(RECIPES))
    recipes["al"] |= {"paper": "another", "section": "§9", "cost": "none", "expected": {"bp4d": 60.2}}
    house.write(recipes)
    assert house.train("gsf") == before, "what a recipe says of itself changes no training"
    recipes["al"]["loss"] = {"attention_l1": 0.01}
    house.write(recipes)
    after = house.train("gsf")
    assert after[0]["key"] != before[0]["key"]
    assert after[0]["history"] != before[0]["history"]
    resolved = json.loads((house.root / "data/recipes/gsf.json").read_text())
    assert resolved["origin"]["name"] == "al"
    assert resolved["origin"]["recipe"]["loss"]["attention_l1"] == 0.01
    assert {"code", "seed"} <= set(resolved["origin"])


def test_another_corpus_starts_from_mapped_branches(house):
    house.train("full-other", "other")
    old, new = house.run("al", "demo"), house.run("al-other", "other")
    assert old[0]["finished"]
    assert new[0]["finished"]
    assert same_attention(house.weights("al-other", "other"), house.weights("full-other", "other"))
    assert not (house.root / "runs/other/al").exists()
    description = json.loads((house.root / "runs/other/al-other/fold1/checkpoint/checkpoint.json").read_text())
    assert description["provenance"]["init"] == "runs/demo/al/fold1"
    assert description["provenance"]["init_key"] == old[0]["key"]


def refusal(house, capsys, door, **given):
    with pytest.raises(SystemExit) as stop:
        house.door(door, **given)
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert "Traceback" not in error
    return error[-1]


def test_frozen_variant_without_an_origin_is_refused(house, capsys):
    house.write(RECIPES | {"gsf": RECIPES["gsf"] | {"init": None}})
    text = refusal(house, capsys, recipe_door, recipe="gsf")
    assert text.startswith(
        "aupipe: this stral is trained on features that it does not learn itself; give the recipe an init"
    )
    tuned = RECIPES["gsf"] | {"init": None, "model": {"variant": "gsf", "finetune": True}}
    house.write(RECIPES | {"gsf": tuned})
    house.door(recipe_door, recipe="gsf")
    assert json.loads((house.root / "data/recipes/gsf.json").read_text())["origin"] is None


def test_origin_that_has_seen_the_test_side_is_refused(house, capsys):
    house.write(RECIPES | {"gsf": RECIPES["gsf"] | {"init": {"recipe": "al", "fold": "fold2"}}})
    house.door(recipe_door, recipe="gsf")
    text = refusal(house, capsys, train_door, recipe="gsf", corpus="demo", fold="fold1", local="")
    assert "gsf would start from runs/demo/al/fold2, which has seen 1 subjects of the test side of fold1" in text
    assert not (house.root / "runs/demo/al/fold2").exists()


def test_origin_of_another_model_is_refused(house, capsys):
    cnn = RECIPES["al"] | {"model": {"name": "attention_cnn"}, "init": {"recipe": "al"}}
    house.write(RECIPES | {"cnn": cnn})
    house.door(recipe_door, recipe="cnn")
    text = refusal(house, capsys, train_door, recipe="cnn", corpus="demo", fold="fold1", local="")
    assert "holds a model stral, from which attention_cnn cannot start; name another recipe in init" in text


def test_what_a_training_logs_is_what_it_keeps(house):
    state, _ = house.train("al")
    first, epoch, end = house.journal("al").entries()
    assert state["tracking"] == first
    assert (first["experiment"], first["name"], first["params"]["name"]) == ("aupipe-demo", "al fold1", "al")
    assert (epoch["step"], epoch["metrics"]["val.loss"]) == (1, state["history"][0]["val"]["loss"])
    assert {"wait", "frames_per_s", "system/cpu_utilization_percentage"} <= set(epoch["metrics"])
    assert end["status"] == "FINISHED"
    assert state["mlflow_run"] == "run"
    assert house.journal("al").waiting() == 0


def test_what_a_server_missed_is_sent_when_the_stage_runs_again(house):
    def refuse(uri, journal):
        raise ConnectionError("no server")

    told = tracking._replay
    house.patch.setattr(tracking, "_replay", refuse)
    state, written = house.train("al")
    assert (state["mlflow_run"], house.journal("al").waiting()) == (None, 3)
    house.patch.setattr(tracking, "_replay", told)
    assert house.train("al") == (state, written), "DVC's output stays as it is"
    assert house.journal("al").waiting() == 0


def test_killed_training_goes_on_in_the_run_that_it_had_begun(house, monkeypatch):
    house.write(RECIPES | {"al": RECIPES["al"] | {"phases": [RECIPES["al"]["phases"][0] | {"epochs": 3}]}})
    epoch, told = tracking.Tracker.epoch, []

    def die(self, record):
        """Before the second epoch is logged, though it is kept already."""
        told.append(record["epoch"])
        if len(told) == 2:
            raise KeyboardInterrupt
        epoch(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(tracking.Tracker, "epoch", die)
        with pytest.raises(KeyboardInterrupt):
            house.train("al")
    first = house.run("al")[0]
    assert not first.get("finished")
    state, _ = house.train("al")
    assert state["tracking"] == first["tracking"]
    entries = house.journal("al").entries()
    assert [entry["step"] for entry in entries if entry["kind"] == "metrics"] == [1, 2, 3]
    assert [entry["status"] for entry in entries if entry["kind"] == "status"] == ["KILLED", "RUNNING", "FINISHED"]
    logged = [entry["metrics"]["val.loss"] for entry in entries if entry["kind"] == "metrics"]
    assert logged == [record["val"]["loss"] for record in state["history"]]


def test_training_that_fails_is_a_failed_run(house, capsys):
    def fail(training):
        raise DataError("not a number in faces")

    house.patch.setattr(loop, "fit", fail)
    house.door(recipe_door, recipe="al")
    assert "not a number in faces" in refusal(house, capsys, train_door, recipe="al", corpus="demo", fold="fold1", local="")
    assert house.journal("al").entries()[-1]["status"] == "FAILED"


def test_refusing_server_ends_the_stage_before_anything_is_trained(house, capsys):
    house.patch.setattr(tracking, "_replay", lambda *_: (_ for _ in ()).throw(PermissionError("who are you?")))
    house.door(recipe_door, recipe="al")
    text = refusal(house, capsys, train_door, recipe="al", corpus="demo", fold="fold1", local="")
    assert text.startswith("aupipe: MLflow cannot be used at sqlite:///")
    assert "who are you?" in text
    assert not (house.root / "runs/demo/al/fold1/checkpoint").exists()


def test_gpus_are_taken_where_they_are_unless_told_otherwise(house, capsys):
    asked = []

    def train(training, **how):
        asked.append(how)
        return [{"epoch": 1, "val": {"f1": 0.5}}]

    house.patch.setattr(train_door.trainer, "train", train)
    house.door(recipe_door, recipe="al")
    for words in ({}, {"gpu": ""}, {"cpu": "", "workers": "3"}):
        house.door(train_door, recipe="al", corpus="demo", fold="fold1", **words)
        shutil.rmtree(house.root / "runs")
    both = {"recipe": "al", "corpus": "demo", "fold": "fold1", "gpu": "", "cpu": ""}
    assert "--gpu and --cpu exclude each other" in refusal(house, capsys, train_door, **both)
    assert asked == [{"workers": None, "gpu": None}, {"workers": None, "gpu": True}, {"workers": 3, "gpu": False}]


def test_level_is_handed_to_the_training_and_only_known_ones_are(house, capsys):
    levels = []
    house.patch.setattr(loop, "fit", lambda training: levels.append(training.level) or [{"epoch": 1, "val": {"f1": 0.5}}])
    house.door(recipe_door, recipe="al")
    house.door(train_door, recipe="al", corpus="demo", fold="fold1", local="", level="host")
    house.door(train_door, recipe="al", corpus="demo", fold="fold2", local="")
    assert levels == ["host", "auto"]
    assert "invalid choice: 'tape'" in refusal(
        house, capsys, train_door, recipe="al", corpus="demo", fold="fold1", local="", level="tape"
    )


def test_evaluation_needs_no_server_and_registration_says_that_it_does(house, capsys):
    stage = {"recipe": "al", "corpus": "demo", "fold": "fold1"}
    state, written = house.train("al")
    told = tracking._replay

    def refuse(uri, journal):
        raise ConnectionError("no server")

    house.patch.setattr(tracking, "_replay", refuse)
    house.door(evaluate_door, **stage)
    assert "test.f1" in house.journal("al").entries()[-1]["metrics"]
    assert house.journal("al").waiting() == 1
    text = refusal(house, capsys, register_door, **stage)
    assert text.startswith("aupipe: MLflow cannot be used at sqlite:///")
    assert text.endswith("(no server); start the server or correct MLFLOW_TRACKING_URI, and run `dvc repro register` again")
    house.patch.setattr(tracking, "_replay", told)
    house.patch.setattr(tracking, "register", lambda directory, run, *_, **__: 7)
    house.door(register_door, **stage)
    assert json.loads((house.root / "data/registered/demo/al/fold1.json").read_text())["mlflow_run"] == "run"
    assert house.journal("al").waiting() == 0
    assert house.run("al") == (state, written), "DVC's output stays as it is"


def test_run_that_was_trained_on_another_machine_is_told_whole_by_evaluate(house):
    house.train("al")
    before = house.journal("al").entries()
    shutil.rmtree(house.journal("al").directory)  # DVC brings the run and not its journal
    house.door(evaluate_door, recipe="al", corpus="demo", fold="fold1")
    start, epoch, end, results = house.journal("al").entries()
    assert start == before[0]
    assert (epoch["time"], epoch["step"]) == (before[1]["time"], 1), "the same point, if that server has it already"
    assert epoch["metrics"].items() <= before[1]["metrics"].items()
    assert end["status"] == "FINISHED"
    assert "test.f1" in results["metrics"]
