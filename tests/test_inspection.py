"""inspection.py makes one page that stands alone, shows what is there, names what is not, and keeps real faces to itself."""

import json
import sys
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import AUS, write_shards

from aupipe import census, cli, inspection
from aupipe.schema import DataError, manifest_schema, write_table, write_text

CARD = {"corpus": "c", "layout": "bp4d", "licence": "by agreement"}
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """A page whose tags must nest; keeps the pictures, addresses, text and tag names."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.faces, self.addresses, self.words = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        found = dict(attrs)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action", "data")]
        if tag == "img":
            self.faces.append(found)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)


def write_corpus(data, card=CARD, subjects=4, folds=True, **options):
    """Shards of noise with their manifest, card and folds."""
    shards = write_shards(data / "shards" / "c", subjects=subjects, **options)
    names = [f.name for f in manifest_schema(AUS)]
    tables = [pq.read_table(path, columns=names) for path in sorted(shards.glob("*/*.parquet"))]
    write_table(pa.concat_tables(tables), data / "manifest" / "c.parquet")
    if card:
        write_text(json.dumps(card), data / "cards" / "c.json")
    if folds:
        fold = {"name": "fold1", "train": ["F001", "F002"], "val": ["F003"], "test": ["F004"], "stats": {}}
        write_text(json.dumps({"folds": [fold]}), data / "folds" / "c.json")
    return data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("data"))


def test_page_stands_alone_and_shows_no_real_face(data):
    text = inspection.compose("c", data)
    page = Page(text)
    assert page.faces == []
    assert "data:image" not in text
    assert page.addresses
    assert all(address.startswith("#") for address in page.addresses)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    assert "url(" not in text
    assert "@import" not in text
    assert "No face is on this page" in page.text
    assert "These people do not exist" not in page.text
    assert text == inspection.compose("c", data), "the same data give the same page"


def test_faces_are_shown_on_demand(data):
    page = Page(inspection.compose("c", data, include_faces=True))
    assert "faces of real people" in page.text
    pairs = [f for f in page.faces if "AU" in f["alt"]]
    assert len(pairs) == len(AUS) * inspection.PAIRS * 2
    strips = [f for f in page.faces if f["alt"] == "aligned face"]
    assert len(strips) == inspection.STRIPS * 10 - inspection.STRIPS, "every other of 20 frames, and one has no face"
    assert all(f["src"].startswith("data:image/jpeg;base64,") for f in page.faces)
    assert {a[:5] for a in page.addresses if not a.startswith("#")} == {"data:"}
    assert "no face" in page.text


def test_numbers_of_the_page_are_those_of_the_census(data):
    page = Page(inspection.compose("c", data))
    manifest = pq.read_table(data / "manifest" / "c.parquet")
    labels_NM = census.nan_labels(manifest, AUS)
    for row in census.occurrence_rates(labels_NM, census.number_subjects(manifest)):
        assert f"{100 * row['rate']:.1f} %" in page.text
    assert "subjects 4 people" in page.text
    assert "status no_face 8 an image" in page.text
    assert "fold1 2 80 1 40 1 40" in page.text
    assert "BP4D as published" in page.text
    assert "by agreement" in page.text


def test_phi_of_four_cells(tmp_path):
    """AUs 1 and 4: three times both, three times neither, once each alone: (3·3 − 1·1) / 16; a null counts in no cell."""
    data = write_corpus(tmp_path, subjects=1)
    path = data / "manifest" / "c.parquet"
    manifest = pq.read_table(path).slice(0, 9)
    first, second = [1, 1, 1, 0, 0, 0, 1, 0, 1], [1, 1, 1, 0, 0, 0, 0, 1, None]
    for name, values in zip(AUS.columns, (first, second, [0] * 9), strict=True):
        manifest = manifest.set_column(manifest.column_names.index(name), name, pa.array(values, pa.int8()))
    write_table(manifest, path)
    assert "AU 1 4 12 1 .50 – 4 .50 – 12 – –" in Page(inspection.compose("c", data)).text


@pytest.mark.parametrize(
    ("missing", "command"),
    [("cards/c.json", "synthesize"), ("shards/c/index.json", "shards"), ("folds/c.json", "folds")],
)
def test_what_is_missing_is_named_with_its_command(tmp_path, missing, command):
    data = write_corpus(tmp_path, subjects=2)
    (data / missing).unlink()
    page = Page(inspection.compose("c", data, include_faces=True))
    assert f"dvc repro {command}" in page.text
    assert bool(page.faces) == (command != "shards")


def test_manifest_alone_makes_a_page_and_none_is_an_error(tmp_path):
    data = write_corpus(tmp_path, card=None, subjects=2, folds=False)
    (data / "shards" / "c" / "index.json").unlink()
    assert Page(inspection.compose("c", data)).faces == []
    (data / "manifest" / "c.parquet").unlink()
    with pytest.raises(DataError, match=r"c\.parquet does not exist; run `dvc repro manifest`"):
        inspection.compose("c", data)


def test_shard_that_is_gone_costs_its_pictures_only(tmp_path):
    data = write_corpus(tmp_path, subjects=2)
    for path in (data / "shards" / "c").glob("*/*.parquet"):
        path.unlink()
    page = Page(inspection.compose("c", data, include_faces=True))
    assert page.faces == []
    assert "cannot be read" in page.text
    assert "Base rates" in page.text


def test_hostile_names_are_text(tmp_path):
    data = write_corpus(tmp_path, {**CARD, "licence": "<img src=http://x onerror=alert(1)>", "note": {"</td>": "<b>"}})
    path = data / "manifest" / "c.parquet"
    manifest = pq.read_table(path)
    names = pa.array([f'<script>alert("{s}")</script>' for s in manifest["subject"].to_pylist()])
    field = manifest.schema.field("subject")
    write_table(manifest.set_column(0, field, pa.chunked_array([names])), path)
    index = json.loads((data / "shards" / "c" / "index.json").read_text())
    for entry in index["sessions"]:
        entry["subject"] = f"<script>{entry['subject']}"
    write_text(json.dumps(index), data / "shards" / "c" / "index.json")
    page = Page(inspection.compose("c", data, include_faces=True))
    assert "script" not in page.tags
    assert page.faces == []
    assert page.text.count('<script>alert("F00') >= inspection.STRIPS
    assert "<script>F001" in page.text, "among the subjects with frames without a face"
    assert "<img src=http://x onerror=alert(1)>" in page.text


def test_nothing_coded_still_makes_a_page(tmp_path):
    data = write_corpus(tmp_path, subjects=2)
    path = data / "manifest" / "c.parquet"
    manifest = pq.read_table(path)
    for name in AUS.columns:
        nothing = pa.nulls(manifest.num_rows, pa.int8())
        manifest = manifest.set_column(manifest.column_names.index(name), name, nothing)
    write_table(manifest, path)
    page = Page(inspection.compose("c", data, include_faces=True))
    assert page.faces == []
    assert "No frame of any session is coded" in page.text


def test_rendered_people_are_shown_with_a_contact_sheet(tmp_path, monkeypatch):
    sheet = {"people": ["F001", "M001"], "columns": [("neutral", ["data:a", "data:b"]), ("AU 4", ["data:c", "data:d"])]}
    monkeypatch.setattr(inspection, "render_sheet", lambda card: sheet)
    data = write_corpus(tmp_path, {**CARD, "generator": {"version": "1"}, "params": {"fps": 25.0}}, subjects=2)
    page = Page(inspection.compose("c", data))
    assert "These people do not exist." in page.text
    assert [f["alt"] for f in page.faces[:4]] == ["F001, neutral", "M001, neutral", "F001, AU 4", "M001, AU 4"]
    assert len(page.faces) > 4
    assert "25 to the second" in page.text

    def fail(card):
        raise DataError("the head mesh is not there; run `aupipe assets`")

    monkeypatch.setattr(inspection, "render_sheet", fail)
    assert "run `aupipe assets`" in Page(inspection.compose("c", data)).text


def test_six_people_are_of_all_tones_and_both_sexes():
    from aupipe.synthetic.identity import draw_identity

    chosen = [draw_identity(1, subject) for subject in inspection.choose_people(1, 60)]
    assert len({p.subject for p in chosen}) == 6
    assert len({(p.tone, p.sex) for p in chosen}) == 6
    assert max(p.age for p in chosen) - min(p.age for p in chosen) > 0.3
    assert sorted(inspection.choose_people(1, 3)) == [0, 1, 2]


def test_pair_differs_in_as_few_other_aus_as_can_be():
    labels = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 1, 0], [np.nan, 1, 0]], np.float32)
    assert inspection.find_pair(labels, 0, np.full(5, True)) == (1, 3)
    assert inspection.find_pair(labels, 0, np.array([True, False, True, True, True])) == (0, 3)
    assert inspection.find_pair(labels, 0, np.array([False, False, True, True, True])) is None


def test_steps_are_interrupted_where_nothing_is_coded():
    x, values = np.array([0, 1, 2, 3, 4, 6]), np.array([0, 0, 2, np.nan, 5, 5], float)
    assert inspection.draw_steps(x, values) == "M0 5H1H2V3H3M4 0H5M6 0H7"
    assert inspection.draw_steps(x[:2], np.full(2, np.nan)) == ""


@pytest.mark.parametrize(
    ("value", "text"), [(0.423, ".42"), (-0.17, "−.17"), (-0.001, ".00"), (1.0, "1.00"), (-1.0, "−1.00"), (None, "–")]
)
def test_phi_is_short(value, text):
    assert inspection._phi(value) == text


def test_command_writes_the_page(tmp_path, monkeypatch, capsys):
    write_corpus(tmp_path / "data", subjects=2)
    monkeypatch.chdir(tmp_path)
    for arguments, place in ((["c"], "reports/c/corpus.html"), (["c", "-o", "x.html", "--include-faces"], "x.html")):
        monkeypatch.setattr(sys, "argv", ["aupipe", "inspect", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
        assert place in capsys.readouterr().err.replace("\n", "")
        assert bool(Page((tmp_path / place).read_text()).faces) == ("--include-faces" in arguments)
    monkeypatch.setattr(sys, "argv", ["aupipe", "inspect", "absent"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "dvc repro manifest" in capsys.readouterr().err
