"""pipelines.recipe and pipelines.train: a recipe that starts from another run makes that run, once, and shares it."""

import json
import sys

import numpy as np
import pytest
import yaml
from conftest import AUS, STATS, write_shards
from safetensors.numpy import load_file

from aupipe import tracking
from pipelines import recipe as recipe_door
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
    monkeypatch.setattr(tracking, "start_run", lambda *_: "run")
    for name in ("end_run", "log_epoch"):
        monkeypatch.setattr(tracking, name, lambda *_: None)
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
