"""datasets/several: corpora of different layouts as one, trained on some and tested on another, through the doors."""

import builtins
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import yaml
from conftest import make_recipe
from raw_trees import FRAMES, add_labels, add_video, disfa_tree, levels_of, read

from aupipe import shards
from aupipe.clips import ClipSpec, clip_batches, plan_clips
from aupipe.config import ConfigError, Corpus, build
from aupipe.datasets import get_dataset, survey
from aupipe.facs import AUSet
from aupipe.folds import load_folds
from aupipe.leaks import check_leaks
from aupipe.schema import DataError, manifest_schema

AUS = AUSet((1, 6, 9, 12))
MEMBERS = {"bp4d": "bp4d", "disfa": {"layout": "disfa", "threshold": 1}, "plus": "disfaplus"}


def bp4d_tree(root, subjects, frames=range(8)):
    """Noise of 64 pixels, AU 6 on in every second frame, AU 12 in every third; AU 9 is not coded."""
    import cv2

    for subject in subjects:
        folder = root / "Sequences" / subject / "T1"
        folder.mkdir(parents=True)
        for n in frames:
            noise = np.random.default_rng([int(subject[1:]), n]).integers(0, 256, (8, 8, 3), np.uint8)
            cv2.imwrite(str(folder / f"{n:04d}.jpg"), cv2.resize(noise, (64, 64), interpolation=cv2.INTER_CUBIC))
        rows = [f"{n},0,{n % 2},{int(n % 3 == 0)}" for n in frames]
        labels = root / f"AUCoding/AU_OCC/{subject}_T1.csv"
        labels.parent.mkdir(parents=True, exist_ok=True)
        labels.write_text("\n".join(["frame,AU1,AU6,AU12", *rows]) + "\n")
    return root


def disfaplus_tree(root, subject="SN001"):
    (root / f"Images/{subject}/A1").mkdir(parents=True)
    (root / f"Labels/{subject}/A1").mkdir(parents=True)
    (root / f"Images/{subject}/A1/000.jpg").touch()
    (root / f"Labels/{subject}/A1/AU12.txt").write_text("AU12\nframe intensity\n000.jpg  3\n")
    return root


@pytest.fixture
def raw(tmp_path):
    """A folder of links to three corpora."""
    bp4d_tree(tmp_path / "places/bp4d", ["F001", "M001"])
    disfa_tree(tmp_path / "places/disfa")
    disfaplus_tree(tmp_path / "places/plus")
    (tmp_path / "all").mkdir()
    for name in MEMBERS:
        (tmp_path / "all" / name).symlink_to(tmp_path / "places" / name)
    return tmp_path / "all"


def test_rows_are_those_of_the_corpora_under_names_of_their_own(raw):
    table = read("several", raw, aus=AUS, members=MEMBERS)
    assert table.schema == manifest_schema(AUS)
    alone = {
        "bp4d": read("bp4d", raw / "bp4d", aus=AUS),
        "disfa": read("disfa", raw / "disfa", aus=AUS, threshold=1),
        "plus": read("disfaplus", raw / "plus", aus=AUS),
    }
    assert table.num_rows == sum(own.num_rows for own in alone.values())
    for name, own in alone.items():
        rows = table.filter(pc.equal(table["part"], name))
        assert rows["subject"].to_pylist() == [f"{name}:{s}" for s in own["subject"].to_pylist()]
        assert rows["source"].to_pylist() == [s and f"{name}/{s}" for s in own["source"].to_pylist()]
        for column in set(table.column_names) - {"subject", "source", "group", "part", "split"}:
            assert rows[column].to_pylist() == own[column].to_pylist(), column
    assert alone["disfa"]["AU12_c"].to_pylist() == [int(level >= 1) for level in levels_of(12)], "its own option"
    assert alone["bp4d"]["AU09_c"].null_count == alone["bp4d"].num_rows, "not coded there, and null"
    groups = dict(zip(table["subject"].to_pylist(), table["group"].to_pylist(), strict=True))
    assert groups["disfa:SN001"] == groups["plus:SN001"] == "disfa:SN001", "the same person"
    assert groups["bp4d:M001"] == "bp4d:M001"


def test_media_that_two_corpora_share_by_name_are_read_in_their_own_folders(raw):
    report = survey(get_dataset("several", AUS, {"members": MEMBERS}), raw)[1]
    frames = {entry["subject"]: entry["frames"] for entry in report["sessions"]}
    assert frames["disfa:SN001"] == "disfa/Videos_LeftCamera/LeftVideoSN001_comp.avi"
    assert frames["plus:SN001"] == "plus/Images/SN001/A1"


@pytest.mark.parametrize("members", [
    None, {}, {"bp4d": "bp4d"}, ["bp4d", "disfa"], {"a/b": "bp4d", "c": "bp4d"}, {"a:b": "bp4d", "c": "bp4d"},
    {"a": "several", "b": "bp4d"}, {"a": "nothing", "b": "bp4d"}, {"a": {"threshold": 1}, "b": "bp4d"},
    {"a": {"layout": "disfa", "camera": "top"}, "b": "bp4d"}, {"a": {"layout": "bp4d", "camera": "left"}, "b": "bp4d"},
    {"..": "bp4d", "b": "bp4d"},
])  # fmt: skip
def test_members_that_make_no_sense(members):
    with pytest.raises(ConfigError):
        get_dataset("several", AUS, {"members": members})


def test_a_corpus_that_is_not_there_is_a_sentence(raw):
    (raw / "disfa").unlink()
    with pytest.raises(DataError, match=r"no folder .*all/disfa; link it.*ln -s"):
        read("several", raw, members=MEMBERS)


def test_a_malformed_file_costs_its_own_session_alone(raw):
    path = raw / "bp4d/AUCoding/AU_OCC/F001_T1.csv"
    path.write_text(path.read_text().replace("3,0,1,1", "3,0,7,1"))
    table, report = survey(get_dataset("several", AUS, {"members": MEMBERS}), raw)
    assert len(report["errors"]) == 1
    assert "F001_T1.csv, line 5: '7'" in report["errors"][0]
    rows = table.filter(pc.equal(table["subject"], "bp4d:F001"))
    assert rows.num_rows == rows["AU06_c"].null_count == 8


def write_params(path):
    """The corpus "both", of faces that are aligned already, with a fold for each of its two corpora."""
    corpus = {
        "layout": "several",
        "aus": list(AUS),
        "landmarks": "prealigned",
        "align": ["face112"],
        "options": {"members": {"bp4d": "bp4d", "disfa": "disfa"}},
        "folds": {"leave_one_out": True},
    }
    params = yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text())
    params["corpora"]["both"] = corpus
    params["experiment"]["corpora"] = ["both"]
    path.write_text(yaml.safe_dump(params))
    return build(Corpus, corpus, "both")


@pytest.mark.parametrize("stored", [False, True])
def test_trained_on_one_corpus_and_tested_on_the_other_through_the_doors(tmp_path, monkeypatch, stored):
    raw = tmp_path / "raw/both"
    bp4d_tree(raw / "bp4d", ["F001", "F002", "F003", "M001"])
    for n in range(1, 4):
        add_video(raw / f"disfa/Videos_LeftCamera/LeftVideoSN00{n}_comp.avi")
        add_labels(raw / f"disfa/ActionUnit_Labels/SN00{n}", f"SN00{n}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUPIPE_RAW", "raw")
    monkeypatch.setenv("AUPIPE_STORAGE", str(tmp_path / "store") if stored else "")
    monkeypatch.setattr(shards, "map_processes", builtins.map)
    write_params(tmp_path / "params.yaml")
    for door in ("inventory", "manifest", "shards", "folds"):
        monkeypatch.setattr(sys, "argv", [door, "--corpus", "both", *(["--local"] if door == "shards" else [])])
        importlib.import_module(f"pipelines.{door}").main()
    folds, folder = load_folds(tmp_path / "data/folds/both.json"), tmp_path / "data/shards/both"
    assert sorted(folds) == ["bp4d", "disfa"]
    fold = folds["disfa"]
    assert fold.test == ("disfa:SN001", "disfa:SN002", "disfa:SN003")
    assert sorted(fold.train + fold.val) == ["bp4d:F001", "bp4d:F002", "bp4d:F003", "bp4d:M001"]
    assert fold.stats.n_M.tolist() == [24, 24, 0, 24], "BP4D here does not code AU 9"
    assert len(json.loads((folder / "index.json").read_text())["sessions"]) == 7
    assert (folder / "bp4d:F001/T1.parquet").exists() != stored
    assert len(list((tmp_path / "store").rglob("*.parquet"))) == (7 if stored else 0)
    monkeypatch.delenv("AUPIPE_STORAGE")  # from here on the index says it all
    check_leaks(folder, fold)
    spec = ClipSpec.of(make_recipe(), AUS, 2)
    train, test = (plan_clips(folder, side, spec, train=side is fold.train) for side in (fold.train, fold.test))
    masks = {name: [] for name in ("train", "test")}
    for name, plan in (("train", train), ("test", test)):
        for batch in clip_batches(plan, folder, spec, train=name == "train"):
            masks[name].append(batch.mask_BTM[batch.real_BT])
            assert batch.frames_BTHWC[batch.real_BT].std() > 0 or name == "test"
    assert np.concatenate(masks["train"]).any(0).tolist() == [True, True, False, True]
    assert np.concatenate(masks["test"]).any(0).tolist() == [True, True, True, True]
    assert np.concatenate(masks["test"]).sum() == 3 * FRAMES * 4
    entry = next(e for e in shards.load_index(folder)["sessions"] if e["subject"] == "disfa:SN002")
    status = shards.read_window(folder, entry["path"], 0, FRAMES, 1, ["status"])["status"].to_pylist()
    assert status == ["ok"] * FRAMES
