"""datasets/: the registry, the inventory, the report, and BP4D's sessions and images with the defects of their copies."""

import json
import logging
import os
import shutil

import pyarrow.compute as pc
import pytest
from bp4d_trees import (
    add_images,
    add_labels,
    legacy_row,
    make_raw,  # noqa: F401 – a fixture
    manifest,
    tidy,
)

from aupipe.datasets import Partition, build_manifest, get_dataset, known_layouts, list_files, survey
from aupipe.facs import AU_SETS, AUSet
from aupipe.schema import ConfigError, DataError, inventory_schema, manifest_schema


def labels_of(table, column):
    return dict(zip(table["frame"].to_pylist(), table[column].to_pylist(), strict=True))


def test_folder_is_the_registry():
    assert "bp4d" in known_layouts()
    assert get_dataset("bp4d").aus == AU_SETS["bp4d"]
    with pytest.raises(ConfigError, match="bp4d"):
        get_dataset("bp5d")
    with pytest.raises(ConfigError):
        get_dataset("../facs")


@pytest.mark.parametrize("layout", known_layouts())
def test_every_layout_keeps_its_promises(layout):
    options = {"members": {"a": "bp4d", "b": "disfa"}} if layout == "several" else None
    dataset = get_dataset(layout, AUSet((1, 12)), options)
    assert dataset.aus.numbers == (1, 12)
    assert dataset.published is None or isinstance(dataset.published, Partition)


def test_published_parts_of_bp4d():
    parts, aliases = get_dataset("bp4d").published.parts, get_dataset("bp4d").published.aliases
    assert [len(part) for part in parts] == [14, 14, 13]
    everyone = frozenset().union(*parts)
    assert everyone == {f"F{n:03d}" for n in range(1, 24)} | {f"M{n:03d}" for n in range(1, 19)}
    assert aliases["jaanet-combine_1_2"] == aliases["megraphau-fold1"] == 2, "trains on parts 1 and 2, tests on part 3"
    assert aliases["jaanet-combine_2_3"] == aliases["megraphau-fold3"] == 0
    assert "F014" in parts[2]
    assert "M005" in parts[1]
    assert "M008" in parts[0]


def test_rows_are_frames_of_labels_and_images(raw):
    table = manifest(raw)
    assert table.schema == manifest_schema(AU_SETS["bp4d"])
    assert table["frame"].to_pylist() == list(range(10))
    assert table["source"].to_pylist() == [f"Sequences/F001/T1/{n:04d}.jpg" for n in range(10)]
    assert labels_of(table, "AU06_c") == {0: None, 1: None, 2: None, 3: 1, 4: 1, 5: None, 6: 1, 7: 1, 8: None, 9: None}
    assert labels_of(table, "AU12_c") == {**dict.fromkeys(range(10)), 3: 1, 4: 0, 5: 1, 6: 0, 7: 1}
    assert labels_of(table, "AU06_r") == {**dict.fromkeys(range(10)), 3: 0.0, 4: 5.0, 6: 2.0, 7: 1.0}
    assert table["AU02_c"].null_count == table["AU12_r"].null_count == 10


def test_sessions_are_sorted_and_letters_kept(raw):
    for session, digits in (("M001/T2", 3), ("M001/T10", 4), ("F001/T2", 3)):
        add_images(raw, session, [1, 0], digits)
    table = manifest(raw)
    keys = list(zip(*(table[c].to_pylist() for c in ("subject", "session", "frame")), strict=True))
    assert keys == sorted(keys)
    assert {key[:2] for key in keys} == {("F001", "T1"), ("F001", "T2"), ("M001", "T2"), ("M001", "T10")}
    assert table["source"].to_pylist()[10:12] == ["Sequences/F001/T2/000.jpg", "Sequences/F001/T2/001.jpg"]


def test_other_aus_are_read_where_they_are_coded(raw):
    table = build_manifest(get_dataset("bp4d", AU_SETS["synthetic"]), raw)
    assert table.schema == manifest_schema(AU_SETS["synthetic"])
    assert table["AU26_c"].null_count == 10
    assert table["AU01_c"].null_count == 5


def test_labelled_frame_without_image_keeps_its_labels(raw, caplog):
    (raw / "Sequences/F001/T1/0004.jpg").unlink()
    table = manifest(raw, strict=True)
    assert table["source"].to_pylist()[4] is None
    assert table["AU06_c"].to_pylist()[4] == 1
    assert not caplog.records
    for n in (3, 5, 6):
        (raw / f"Sequences/F001/T1/{n:04d}.jpg").unlink()
    assert manifest(raw).num_rows == 10
    assert "4 of 5 labelled frames" in caplog.text
    with pytest.raises(DataError, match="4 of 5 labelled frames"):
        manifest(raw, strict=True)


def test_labels_without_a_recording_and_a_recording_without_labels_are_both_kept(raw, caplog):
    (raw / "Sequences/F001").rename(raw / "Sequences/F002")
    table, report = survey(get_dataset("bp4d"), raw)
    rows = {s: table.filter(pc.field("subject") == s) for s in ("F001", "F002")}
    assert rows["F001"]["frame"].to_pylist() == list(range(3, 8))
    assert rows["F001"]["source"].null_count == 5
    assert rows["F001"]["AU12_c"].to_pylist() == [1, 0, 1, 0, 1]
    assert rows["F002"].num_rows == 10
    assert rows["F002"]["AU12_c"].null_count == rows["F002"].num_rows
    first, second = report["sessions"]
    assert (first["labelled"], first["images"], first["missing"], first["notes"]) == (5, 0, 5, ["no frames"])
    assert (second["labelled"], second["images"], second["missing"], second["notes"]) == (0, 10, 0, ["no labels"])
    assert "1 sessions have labels and no frames: F001/T1" in caplog.text
    assert any("frames and no labels: F002/T1" in line for line in report["notes"])
    with pytest.raises(DataError, match="labels and no frames: F001/T1"):
        manifest(raw, strict=True)


@pytest.mark.parametrize("root", ["Sequences(2D+3D)", "sequences_2D+3D", "2D+3D"])
def test_usual_names_of_folders(raw, root):
    (raw / "Sequences").rename(raw / root)
    assert manifest(raw)["source"].to_pylist()[0] == f"{root}/F001/T1/0000.jpg"
    for file in (raw / "AUCoding/AU_OCC").iterdir():
        file.rename(raw / "AUCoding" / file.name)
    assert manifest(raw)["AU06_c"].null_count == 6


def test_recording_under_two_roots_is_read_once_and_reported(raw, caplog):
    expected = manifest(raw)
    add_images(raw, "F001/T1", range(3), root="Sequences_new")
    add_images(raw, "M001/T1", range(3), root="Sequences_new")
    table = manifest(raw)
    assert table.filter(pc.field("subject") == "F001") == expected
    assert table.num_rows == 13
    assert "images of F001/T1" in caplog.text
    assert "Sequences_new" in caplog.text
    with pytest.raises(DataError, match=r"images of F001/T1.* differ; the first is taken"):
        manifest(raw, strict=True)


def test_same_label_file_twice_is_no_oddity_and_another_one_is(raw):
    expected = manifest(raw)
    shutil.copy(raw / "AUCoding/AU_OCC/F001_T1.csv", raw / "AUCoding/F001_T1.csv")
    assert manifest(raw, strict=True) == expected
    add_labels(raw, "F001_T1.csv", tidy(raw) + legacy_row(9, AU1=1))
    assert manifest(raw) == expected, "the one in AU_OCC"
    with pytest.raises(DataError, match=r"labels of F001/T1.* differ; the first is taken"):
        manifest(raw, strict=True)


def test_two_images_of_one_frame(raw):
    add_images(raw, "F001/T1", [7], digits=3)
    with pytest.raises(DataError, match=r"two images of frame 7.*0007\.jpg and 007\.jpg"):
        manifest(raw, strict=True)
    assert manifest(raw).num_rows == 10
    assert "Sequences/F001/T1/0007.jpg" in manifest(raw)["source"].to_pylist()


def test_files_that_are_no_frames(raw, caplog):
    for name in (".DS_Store", "._0001.jpg", "Thumbs.db", "0001.obj", "notes.txt"):
        (raw / "Sequences/F001/T1" / name).touch()
    (raw / "AUCoding/AU_OCC/._F001_T1.csv").touch()
    assert manifest(raw, strict=True).num_rows == 10
    (raw / "Sequences/F001/T1/cover.jpg").touch()
    (raw / f"Sequences/F001/T1/{2**31}.jpg").touch()
    (raw / "AUCoding/AU_OCC/F001_T1 (copy).csv").touch()
    assert manifest(raw).num_rows == 10
    assert all(name in caplog.text for name in ("cover.jpg", f"{2**31}.jpg", "F001_T1 (copy).csv"))
    with pytest.raises(DataError):
        manifest(raw, strict=True)


def test_report_counts_what_is_there(raw):
    _, report = survey(get_dataset("bp4d"), raw)
    assert (report["subjects"], report["rows"], report["labelled"], report["images"], report["missing"]) == (1, 10, 5, 10, 0)
    aus = report["aus"]
    assert dict(zip(aus, report["coded"], strict=True)) | {1: 5, 6: 4, 12: 5} == dict(zip(aus, report["coded"], strict=True))
    assert dict(zip(aus, report["positive"], strict=True)) == {**dict.fromkeys(aus, 0), 6: 4, 12: 3}
    assert dict(zip(aus, report["intensities"], strict=True)) == {**dict.fromkeys(aus, 0), 6: 4}
    json.dumps(report, allow_nan=False)


def test_inventory_lists_what_counts(raw):
    for junk in (
        ".DS_Store",
        "Sequences/._x",
        "Sequences/Thumbs.db",
        "__MACOSX/a.csv",
        ".keys/secret.csv",
        "Sequences/.a/b",
    ):
        (raw / junk).parent.mkdir(parents=True, exist_ok=True)
        (raw / junk).touch()
    table = list_files(raw)
    assert table.schema == inventory_schema()
    paths = table["path"].to_pylist()
    assert paths == sorted(paths)
    assert len(paths) == 12
    assert "AUCoding/AU_OCC/F001_T1.csv" in paths
    row = table.slice(paths.index("AUCoding/AU_INT/AU06/F001_T1_AU06.csv"), 1).to_pylist()[0]
    assert row["size"] == 20
    assert row["mtime_ns"] == (raw / row["path"]).stat().st_mtime_ns


def test_inventory_follows_links_but_not_in_circles(raw, tmp_path, caplog):
    elsewhere = tmp_path / "elsewhere"
    add_images(elsewhere, "M001/T1", [0], root="")
    os.symlink(elsewhere, raw / "Sequences_more")
    os.symlink(raw, raw / "Sequences/loop")
    os.symlink(raw / "Sequences", elsewhere / "back")
    os.symlink(tmp_path / "nowhere", raw / "broken")
    os.symlink(raw / "self", raw / "self")
    caplog.set_level(logging.WARNING)
    paths = list_files(raw)["path"].to_pylist()
    assert "Sequences_more/M001/T1/0000.jpg" in paths
    assert not any(path.startswith("Sequences/loop/") for path in paths)
    assert len(paths) == len(set(paths)) < 50


def test_absent_or_empty_corpus_says_what_to_do(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name in ("absent", "empty", "file"):
        for call in (list_files, manifest):
            with pytest.raises(DataError, match=rf"{name}.*dvc repro synthesize.*AUPIPE_RAW") as caught:
                call(tmp_path / name)
            assert "\n" not in str(caught.value)
