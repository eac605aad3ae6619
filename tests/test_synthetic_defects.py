"""Damage done on purpose: a damaged corpus beside the same whole one differs as the card says, and in nothing else."""

from __future__ import annotations

import builtins
import dataclasses
import functools
import hashlib
import io
import re
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from aupipe import assets
from aupipe.config import SyntheticConfig
from aupipe.datasets import build_manifest, get_dataset
from aupipe.facs import AU_SETS
from aupipe.synthetic import corpus
from aupipe.synthetic.card import card_markdown
from aupipe.synthetic.defects import TABLE
from aupipe.synthetic.render import prepare_actor

LAYOUTS = ("bp4d", "disfa", "affwild2")
SPEC = SyntheticConfig(subjects=3, sessions=2, seconds=1.6, fps=5.0, size=64, uncoded=2, seed=11)
DAMAGED = {
    "bp4d": dataclasses.replace(SPEC, subjects=7, sessions=4, size=64),
    "disfa": dataclasses.replace(SPEC, subjects=20, sessions=1, size=64),
    "affwild2": dataclasses.replace(SPEC, subjects=5, sessions=4, size=64),
}
TREES = {"Sequences(2D+3D)": "Sequences", "Video_LeftCamera": "Videos_LeftCamera", "6th ABAW": "Third ABAW",
         "ActionUnits_Labels": "ActionUnit_Labels", "_Comp.avi": "_comp.avi",
         "Landmark_Points/Landmark_Points": "Landmark_Points"}  # fmt: skip


def hash_tree(root: Path) -> dict[str, str]:
    files = (p for p in sorted(root.rglob("*")) if p.is_file())
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture
def one_face(monkeypatch):
    """Everybody has the first person's face: labels do not depend on it, and it is prepared once."""
    assets.fetch()
    monkeypatch.setattr(corpus, "prepare_actor", lambda seed, subject, rig: _prepare(seed))


@functools.cache
def _prepare(seed: int):
    return prepare_actor(seed, 0)


def contents(root: Path) -> dict[str, bytes]:
    """Path under the usual names → bytes, of all files but keys."""
    found = {}
    for path in sorted(p for p in root.rglob("*") if p.is_file() and ".keys" not in p.parts):
        name = path.relative_to(root).as_posix()
        for unusual, usual in TREES.items():
            name = name.replace(unusual, usual)
        found[name] = path.read_bytes()
    return found


def numbers(data: bytes) -> list[str]:
    return data.decode().splitlines()


def belongs(path: str, defect: dict) -> bool:
    """Whether a file is of a recording."""
    owner, session = defect["subject"], defect["session"]
    if owner.startswith("person"):
        return re.search(rf"/(\._)?{re.escape(session)}(/|\.txt|$)", path) is not None
    if owner.startswith("SN"):
        return owner in path
    return f"{owner}_{session}" in path or f"/{owner}/{session}/" in path or path.endswith(f"/{owner}/._{session}")


def decode(data: bytes, kind: int = cv2.IMREAD_COLOR) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), kind)


def check_damage(defect: dict, clean: dict[str, bytes], found: dict[str, bytes], where: str) -> None:
    """The files of one recording, before and after."""
    kind = defect["defect"]
    gone, new = sorted(clean.keys() - found.keys()), sorted(found.keys() - clean.keys())
    changed = sorted(path for path in clean.keys() & found.keys() if clean[path] != found[path])
    tables = [path for path in clean if not path.endswith((".jpg", ".avi", ".mat"))]
    if kind in ("missing image", "missing AU file"):
        assert (gone, new, changed) == ([where], [], [])
    elif kind == "empty image":
        assert (gone, new, changed, found[where]) == ([], [], [where], b"")
    elif kind in ("truncated image", "truncated video"):
        assert (gone, new, changed) == ([], [], [where])
        assert clean[where].startswith(found[where])
        assert 0 < len(found[where]) < len(clean[where])
    elif kind in ("labels one longer", "labels much longer", "labels shorter"):
        assert (gone, new, changed) == ([], [], sorted(tables))
        longer = {len(numbers(found[t])) - len(numbers(clean[t])) for t in tables}
        expected = {"labels one longer": 1, "labels much longer": 3, "labels shorter": -3}[kind]
        assert longer == {expected}
        assert defect["detail"].startswith(f"{abs(expected)} label rows")
    elif kind == "byte-order mark":
        assert (gone, new, changed) == ([], [], sorted(tables))
        assert all(found[t] == b"\xef\xbb\xbf" + clean[t].replace(b"\n", b"\r\n") for t in tables)
    elif kind == "UTF-16":
        assert (gone, new, changed) == ([], [], sorted(tables))
        assert all(found[t].startswith(b"\xff\xfe") and found[t].decode("utf-16").encode() == clean[t] for t in tables)
    elif kind in ("semicolons", "tabs", "decimal commas"):
        assert (gone, new, changed) == ([], [], sorted(tables))
        mark, ending = {"semicolons": (";", ""), "tabs": ("\t", ""), "decimal commas": (";", ",0")}[kind]
        assert all(numbers(found[t]) == [row.replace(",", mark) + ending for row in numbers(clean[t])] for t in tables)
    elif kind in ("repeated rows", "rows out of order"):
        assert (gone, new, changed) == ([], [], sorted(tables))
        for table in tables:
            before, after = numbers(clean[table]), numbers(found[table])
            assert set(after) == set(before)
            frames = [int(row.partition(",")[0]) for row in after if row != before[0] or "AU_OCC" not in table]
            if kind == "repeated rows":
                assert 1 <= len(after) - len(before) <= 3
            else:
                assert sorted(after) == sorted(before)
                assert frames != sorted(frames)
            assert (after[0] == before[0]) or "AU_OCC" not in table  # the header stays where it is
    elif kind == "named columns":
        assert (gone, new, changed) == ([], [], [where])
        header, *rows = (row.split(",") for row in numbers(found[where]))
        assert header[:4] == ["1", "1", "2", "4"]
        assert len(header) == len(set(header)) + 1 < 50
        for row, old in zip(rows, numbers(clean[where])[1:], strict=True):
            assert row == [old.split(",")[n] for n in (0, *map(int, header[1:]))]
    elif kind == "grey image":
        assert (gone, new, changed) == ([], [], [where])
        assert decode(found[where], cv2.IMREAD_UNCHANGED).ndim == 2
        assert cv2.PSNR(decode(found[where]), cv2.cvtColor(cv2.cvtColor(decode(clean[where]), 6), 8)) > 30
    elif kind == "turned image":
        assert (gone, new, changed) == ([], [], [where])
        lying = decode(found[where], cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        assert lying.shape[:2] == decode(clean[where]).shape[1::-1]
        assert cv2.PSNR(decode(found[where]), decode(clean[where])) > 30  # upright by its tag
    elif kind == "two roots":
        assert (gone, changed) == ([], [])
        assert {Path(p).parent.as_posix() for p in new} == {where}
        media = {Path(p).name: clean[p] for p in clean if p.endswith(".jpg")}
        assert {Path(p).name: found[p] for p in new} == media
    elif kind == "labels in a zip":
        assert (gone, new, changed) == (sorted(tables), [where], [])
        with zipfile.ZipFile(io.BytesIO(found[where])) as file:
            held = {name: file.read(name) for name in file.namelist()}
        assert held == {"/".join(t.split("/")[-2:]): clean[t] for t in tables}
    elif kind in ("trailing spaces", "trailing comma", "blank last line"):
        assert (gone, new, changed) == ([], [], [where])
        ending = {"trailing spaces": b"  \n", "trailing comma": b",\n"}.get(kind)
        assert found[where] == (clean[where].replace(b"\n", ending) if ending else clean[where] + b"\n")
    elif kind == "unknown intensity":
        assert (gone, new) == ([], [])
        assert changed in ([where], [])  # it may have been a 9
        assert re.match(r"frame (\d+): 9", defect["detail"])[1] + ",9" in numbers(found[where])
    elif kind == "other padding":
        assert [int(Path(p).stem) for p in gone] == sorted(int(Path(p).stem) for p in new)
        assert all(not Path(p).stem.startswith("0") or Path(p).stem == "0" for p in new)
        assert changed == []
    elif kind == "litter":
        assert (gone, changed) == ([], [])
        assert {Path(p).name for p in new} >= {".DS_Store", "Thumbs.db"}
        assert any(p.startswith("__MACOSX/") for p in new)
    elif kind == "constant labels":
        assert (gone, new) == ([], [])
        cells = [[row.split(",") for row in numbers(found[t])] for t in tables]
        first = 0 if where.endswith(".txt") and "ABAW" in where else 1
        for table, rows in zip(tables, cells, strict=True):
            rows = rows[1:] if "AU_OCC" in table or "ABAW" in table else rows
            assert len({tuple(row[first:]) for row in rows}) == 1
    else:
        media = [path for path in clean if path.endswith((".jpg", ".avi"))]
        assert (gone, new, changed) == (sorted(tables if kind == "no labels" else media), [], [])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_recorded_damage_is_the_damage_on_disk(tmp_path, one_face, layout):
    spec = DAMAGED[layout]
    corpus.render(spec, tmp_path / "clean", layout=layout, map=builtins.map)
    hurt = dataclasses.replace(spec, defects=4)
    card = corpus.render(hurt, tmp_path / "hurt", layout=layout, map=builtins.map)
    clean, found = contents(tmp_path / "clean"), contents(tmp_path / "hurt")
    injected = card["defects"]["injected"]
    assert sorted(d["defect"] for d in injected) == sorted(k for k, d in TABLE.items() if layout in d.layouts)
    assert len({(d["subject"], d["session"]) for d in injected}) == len(injected)
    assert card["defects"]["left_out"] == []
    for defect in injected:
        where = functools.reduce(lambda path, pair: path.replace(*pair), TREES.items(), defect["path"])
        before = {path: clean.pop(path) for path in list(clean) if belongs(path, defect)}
        after = {path: found.pop(path) for path in list(found) if belongs(path, defect)}
        assert before
        check_damage(defect, before, after, where)
    assert found == clean  # nothing else was touched
    assert all((tmp_path / "hurt" / name).is_dir() for name in card["defects"]["tree"])
    kept = hash_tree(tmp_path / "hurt")
    again: list = []
    assert corpus.render(hurt, tmp_path / "hurt", layout=layout, map=lambda _, tasks: again.extend(tasks) or []) == card
    assert again == []
    assert hash_tree(tmp_path / "hurt") == kept
    assert all(d["path"] in card_markdown(card) for d in injected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_our_own_readers_survive_all_of_it(tmp_path, one_face, layout):
    """Every recording that has frames is in the manifest, and those that are not damaged have the labels of the truth."""
    whole, hurt = (dataclasses.replace(DAMAGED[layout], defects=seed, landmarks=False) for seed in (None, 4))
    tables = []
    for name, spec in (("clean", whole), ("hurt", hurt)):
        card = corpus.render(spec, tmp_path / name, layout=layout, map=builtins.map)
        dataset = get_dataset(layout, AU_SETS["synthetic"] if layout == "bp4d" else None)
        tables.append(build_manifest(dataset, tmp_path / name))
    clean, damaged = (dict(_rows(table, dataset.aus.columns)) for table in tables)
    kinds = {(d["subject"], d["session"]): d["defect"] for d in card["defects"]["injected"]}
    harmless = {"byte-order mark", "UTF-16", "semicolons", "tabs", "decimal commas", "trailing spaces", "trailing comma",
                "blank last line", "litter", "other padding", "grey image", "turned image", "two roots", "labels in a zip",
                "repeated rows", "rows out of order", "named columns", "empty image", "truncated image"}  # fmt: skip
    compared = 0
    for key, rows in clean.items():
        kind = next((kind for where, kind in kinds.items() if _same(where, key)), "none")
        if kind in harmless | {"none"}:
            assert damaged[key] == rows, kind
            compared += kind != "none"
    assert compared >= 8


def _rows(table, columns):
    keys = list(zip(table["subject"].to_pylist(), table["session"].to_pylist(), strict=True))
    frames = list(zip(table["frame"].to_pylist(), *(table[c].to_pylist() for c in columns), strict=True))
    for key in dict.fromkeys(keys):
        yield key, [row for own, row in zip(keys, frames, strict=True) if own == key]


def _same(where: tuple[str, str], key: tuple[str, str]) -> bool:
    """Whether a defect's recording is a manifest's session, whose names are the reader's."""
    owner, name = where
    return name in key if owner.startswith("person") else owner == key[0] if owner.startswith("SN") else where == key


def test_without_damage_again_the_corpus_is_whole(tmp_path, one_face):
    spec = dataclasses.replace(SPEC, subjects=2, sessions=1, size=64)
    corpus.render(spec, tmp_path / "clean", map=builtins.map)
    few = corpus.render(dataclasses.replace(spec, defects=1), tmp_path / "hurt", map=builtins.map)
    assert len(few["defects"]["injected"]) == 2
    assert len(few["defects"]["left_out"]) == sum("bp4d" in d.layouts for d in TABLE.values()) - 2
    corpus.render(spec, tmp_path / "hurt", map=builtins.map)
    assert hash_tree(tmp_path / "hurt") == hash_tree(tmp_path / "clean")
