"""datasets/: the registry, the inventory, and BP4D's layout with the defects that copies of it have."""

import importlib
import inspect
import json
import logging
import os
import re
import shutil
from pathlib import Path

import pyarrow.compute as pc
import pytest
import yaml

from aupipe.check import LAYOUTS
from aupipe.config import Corpus, build
from aupipe.datasets import Partition, build_manifest, dataset_of, get_dataset, known_layouts, list_files, read_lines, survey
from aupipe.datasets._tables import NULL, read_codes
from aupipe.facs import AU_SETS, AUSet
from aupipe.schema import ConfigError, DataError, inventory_schema, manifest_schema

LEGACY_HEADER = ",".join(map(str, range(100)))
NAMED_AUS = (1, 2, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 22, 23, 24, 27, 28, *range(29, 40))


def legacy_row(frame, **codes):
    """A row of a legacy file, 9 everywhere but in the AUs given as AU6=1."""
    return ",".join([str(frame), *(str(codes.get(f"AU{n}", 9)) for n in range(1, 100))])


def add_images(raw, session, numbers, digits=4, root="Sequences"):
    folder = raw / root / session
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / f"{number:0{digits}d}.jpg").touch()


def add_labels(raw, name, data):
    path = raw / "AUCoding" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.fixture
def raw(tmp_path):
    """F001/T1: images 0–9, labels 3–7; AU06 has intensities and a 9 in frame 5."""
    root = tmp_path / "bp4d"
    add_images(root, "F001/T1", range(10))
    rows = [legacy_row(f, AU1=0, AU6=1 if f != 5 else 9, AU12=f % 2) for f in range(3, 8)]
    add_labels(root, "AU_OCC/F001_T1.csv", "\n".join([LEGACY_HEADER, *rows]) + "\n")
    add_labels(root, "AU_INT/AU06/F001_T1_AU06.csv", "3,0\n4,5\n5,9\n6,2\n7,1\n")
    return root


def manifest(raw, **options):
    return build_manifest(get_dataset("bp4d"), raw, **options)


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
    dataset = get_dataset(layout, AUSet((1, 12)))
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
    assert "F001/T1 are in" in caplog.text
    assert "Sequences_new" in caplog.text
    with pytest.raises(DataError, match="F001/T1 are in"):
        manifest(raw, strict=True)


def test_same_label_file_twice_is_no_oddity_and_another_one_is(raw):
    expected = manifest(raw)
    shutil.copy(raw / "AUCoding/AU_OCC/F001_T1.csv", raw / "AUCoding/F001_T1.csv")
    assert manifest(raw, strict=True) == expected
    add_labels(raw, "F001_T1.csv", tidy(raw) + legacy_row(9, AU1=1))
    assert manifest(raw) == expected, "the one in AU_OCC"
    with pytest.raises(DataError, match="labels of F001/T1 are in"):
        manifest(raw, strict=True)


def test_two_images_of_one_frame(raw):
    add_images(raw, "F001/T1", [7], digits=3)
    with pytest.raises(DataError, match=r"two images of frame 7.*0007\.jpg and 007\.jpg"):
        manifest(raw)


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


def tidy(raw):
    return (raw / "AUCoding/AU_OCC/F001_T1.csv").read_text()


VARIANTS = {
    "crlf": lambda text: text.replace("\n", "\r\n").encode(),
    "cr": lambda text: text.replace("\n", "\r").encode(),
    "bom": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "utf-16": lambda text: text.encode("utf-16"),
    "no last line end": lambda text: text.rstrip("\n").encode(),
    "blank lines": lambda text: text.replace("\n", "\n\n").encode() + b"\n \n,,,\n",
    "trailing commas": lambda text: text.replace("\n", ",,\n").encode(),
    "trailing comma in the header": lambda text: text.replace("\n", ",\n", 1).encode(),
    "spaces": lambda text: text.replace(",", " , ").encode(),
    "semicolons": lambda text: text.replace(",", ";").encode(),
    "tabs": lambda text: text.replace(",", "\t").encode(),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_label_file_as_others_save_it(raw, variant):
    expected = manifest(raw)
    add_labels(raw, "AU_OCC/F001_T1.csv", VARIANTS[variant](tidy(raw)))
    assert manifest(raw, strict=True) == expected


def test_named_header_of_later_releases(raw, caplog):
    expected = manifest(raw)
    rows = [
        ",".join([str(f), *(str({1: 0, 6: 9 if f == 5 else 1, 12: f % 2}.get(n, 9)) for n in NAMED_AUS)])
        for f in range(3, 8)
    ]
    header = ",".join(map(str, (1, *NAMED_AUS)))  # the frame's column is called 1 as well
    add_labels(raw, "AU_OCC/F001_T1.csv", "\n".join([header, *rows]))
    assert manifest(raw, strict=True) == expected
    beyond = get_dataset("bp4d", AUSet((6, 26)))
    assert build_manifest(beyond, raw)["AU26_c"].null_count == 10
    assert "no column for AU26" in caplog.text
    with pytest.raises(DataError, match="AU26"):
        build_manifest(beyond, raw, strict=True)


def replace_line(text, number, line):
    lines = text.split("\n")
    lines[number - 1] = line
    return "\n".join(lines)


ERRORS = {
    "unknown code": (lambda t: replace_line(t, 4, legacy_row(5, AU6=2)), r"F001_T1\.csv, line 4: '2' .* codes 0, 1, 9"),
    "blank code": (lambda t: replace_line(t, 4, legacy_row(5, AU6="")), "line 4: ''"),
    "frame coded in two ways": (
        lambda t: replace_line(t, 4, legacy_row(4)),
        "line 4: frame 4 was coded otherwise in line 3",
    ),
    "no number": (lambda t: replace_line(t, 4, legacy_row("x5")), "line 4: 'x5'"),
    "negative": (lambda t: replace_line(t, 2, legacy_row(-3)), "line 2: '-3'"),
    "enormous": (lambda t: replace_line(t, 6, legacy_row(10**12)), "line 6"),
    "short row": (lambda t: replace_line(t, 5, "6,0,1"), "line 5: 3 columns instead of 100"),
    "long row": (lambda t: replace_line(t, 5, legacy_row(6) + ",1"), "line 5: 101 columns instead of 100"),
    "no header": (lambda t: t.partition("\n")[2], "line 1: expected the header"),
    "wrong header": (lambda t: t.replace(",17,", ",71,", 1), "line 1"),
    "header only": (lambda t: t.partition("\n")[0], "no labelled frame"),
    "empty": (lambda t: "", "F001_T1.csv"),
    "a picture": (lambda t: b"\xff\xd8\xff\xe0" + bytes(range(256)) * 20, "F001_T1.csv"),
}


@pytest.mark.parametrize("error", ERRORS)
def test_malformed_labels_name_file_and_line(raw, error):
    change, message = ERRORS[error]
    add_labels(raw, "AU_OCC/F001_T1.csv", change(tidy(raw)))
    with pytest.raises(DataError, match=message) as caught:
        manifest(raw)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data", ["3,6\n", "3,-1\n", "3\n", "3,1,1\n", "4,1\n4,2\n", "frame,intensity\n3,1\n", "", "3,1.5\n"]
)
def test_malformed_intensities(raw, data):
    path = add_labels(raw, "AU_INT/AU06/F001_T1_AU06.csv", data)
    with pytest.raises(DataError, match=path.name):
        manifest(raw)


def test_frames_out_of_order_or_twice_are_put_in_order(raw, caplog):
    expected = manifest(raw)
    header, *rows = tidy(raw).splitlines()
    add_labels(raw, "AU_OCC/F001_T1.csv", "\n".join([header, rows[3], *rows[:3], rows[1], rows[4]]))
    assert manifest(raw) == expected
    assert "2 rows out of order, sorted; 1 rows twice with the same codes, kept once" in caplog.text
    with pytest.raises(DataError, match=r"F001_T1\.csv: 2 rows out of order"):
        manifest(raw, strict=True)


def test_codes_come_in_the_order_of_frames(tmp_path):
    lines = ["7,1,9", "3,0,1", "", "5,1,0,,", "3,0,1"]
    frames, values = read_codes(tmp_path / "a", lines, [2, 1], {"0": 0, "1": 1, "9": NULL}, width=3)
    assert frames.tolist() == [3, 5, 7]
    assert values.tolist() == [[1, 0], [0, 1], [NULL, 1]]


def test_every_malformed_file_is_in_the_log_before_the_run_ends(raw, caplog):
    for subject in ("F002", "F003"):
        add_images(raw, f"{subject}/T1", range(10))
        add_labels(raw, f"AU_OCC/{subject}_T1.csv", tidy(raw).replace("6,", "x,", 1) if subject == "F003" else "nothing")
    with pytest.raises(DataError, match=r"F002_T1\.csv.*and 1 more sessions") as caught:
        manifest(raw)
    assert "\n" not in str(caught.value)
    assert "F003_T1.csv, line 1" in caplog.text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: {"AU1": 0, "AU6": 1, "AU12": 0}, "same labels"),
        (lambda f: {}, "no frame is coded"),
    ],
)
def test_constant_or_uncoded_recording_is_a_suspect(raw, caplog, change, words):
    """AU 6 and 12 do not change, or everything is 9: likely the wrong file."""
    shutil.rmtree(raw / "AUCoding/AU_INT")
    rows = [legacy_row(f, **change(f)) for f in range(3, 8)]
    add_labels(raw, "AU_OCC/F001_T1.csv", "\n".join([LEGACY_HEADER, *rows]))
    _, report = survey(get_dataset("bp4d"), raw)
    assert any(words in note for note in report["sessions"][0]["notes"])
    assert f"1 sessions, F001/T1 among them: {'all coded' if change(0) else 'no frame'}" in caplog.text


def test_report_counts_what_is_there(raw):
    _, report = survey(get_dataset("bp4d"), raw)
    assert (report["subjects"], report["rows"], report["labelled"], report["images"], report["missing"]) == (1, 10, 5, 10, 0)
    aus = report["aus"]
    assert dict(zip(aus, report["coded"], strict=True)) | {1: 5, 6: 4, 12: 5} == dict(zip(aus, report["coded"], strict=True))
    assert dict(zip(aus, report["positive"], strict=True)) == {**dict.fromkeys(aus, 0), 6: 4, 12: 3}
    assert dict(zip(aus, report["intensities"], strict=True)) == {**dict.fromkeys(aus, 0), 6: 4}
    json.dumps(report, allow_nan=False)


def test_text_of_other_code_pages_is_read(tmp_path):
    for encoding in ("cp1252", "utf-16", "utf-8", "utf-8-sig"):
        (tmp_path / "a").write_bytes("Größe;1\r\n".encode(encoding))
        assert read_lines(tmp_path / "a") == ["Größe;1"]


def test_missing_intensity_file_is_null_and_not_zero(raw, caplog):
    (raw / "AUCoding/AU_INT/AU06/F001_T1_AU06.csv").unlink()
    assert manifest(raw)["AU06_r"].null_count == 10
    assert "F001_T1_AU06.csv is missing" in caplog.text
    with pytest.raises(DataError, match=r"F001_T1_AU06\.csv is missing"):
        manifest(raw, strict=True)


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


PAGE = (Path(__file__).parents[1] / "docs/data.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("layout", known_layouts())
def test_the_page_for_licence_holders_names_every_option(layout):
    kind = importlib.import_module(f"aupipe.datasets.{layout}").Dataset
    options = [p.name for p in inspect.signature(kind).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for name in set(options) - {"landmarks", "mask_lost"}:  # those are set by keys of the corpus
        assert re.search(rf"`{name}\b", PAGE), name


def test_corpora_on_the_page_can_be_copied_into_the_params():
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    corpora = {name: values for block in blocks for name, values in yaml.safe_load(block).items()}
    assert corpora.keys() == {"bp4dplus", "disfaplus", "my-videos"}
    for name, values in corpora.items():
        corpus = build(Corpus, values, name)
        dataset_of(corpus)
        assert "face112" in corpus.align, "what the recipe of the demo reads"
        assert name == "disfaplus" or not corpus.folds.published


def test_checks_on_the_page_are_of_layouts_with_published_counts():
    commands = re.findall(r"`aupipe check data/raw/(\w+) --layout (\w+)`", PAGE)
    assert {layout for _, layout in commands} == set(LAYOUTS)
    assert all(corpus == layout for corpus, layout in commands)
