"""archives.py: one way of naming files in folders, in zips and in zips of zips, whatever the spelling of their names."""

import io
import os
import unicodedata
import zipfile

import pytest

from aupipe import archives
from aupipe.archives import (
    Entry,
    exists,
    find,
    list_folder,
    locate,
    on_disk,
    read_bytes,
    relative,
    same_content,
    search,
    split_zip,
)
from aupipe.schema import DataError


def make_zip(files, method=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.fixture
def raw(tmp_path):
    """The same folder of frames on disk, in a zip whose members are out of order, and in a zip inside a zip."""
    root = tmp_path / "raw"
    (root / "Frames/T10").mkdir(parents=True)
    for name in ("10.jpg", "9.jpg", "0.jpg", ".DS_Store", "Thumbs.db"):
        (root / "Frames" / name).write_bytes(name.encode())
    members = {n: n.encode() for n in ("__MACOSX/._a", "F001/T10/a.jpg", "F001/10.jpg", "F001/9.jpg", "F001/._9.jpg")}
    (root / "F001.zip").write_bytes(make_zip(members | {"F001/0.jpg": b"0.jpg"}))
    (root / "all.ZIP").write_bytes(make_zip({"deep/F002.zip": make_zip({"T1/5.jpg": b"five"}), "read.me": b"me"}))
    return root


def test_folder_and_zip_list_alike_and_by_number(raw):
    for place in (raw / "Frames", raw / "F001.zip::F001"):
        assert [(e.name, e.folder) for e in list_folder(place)] == [
            ("0.jpg", False), ("9.jpg", False), ("10.jpg", False), ("T10", True)
        ]  # fmt: skip
    assert list_folder(raw / "F001.zip") == [Entry("F001", str(raw / "F001.zip::F001"), True)]
    assert [e.name for e in list_folder(raw)] == ["all.ZIP", "F001.zip", "Frames"]
    assert all(e.folder for e in list_folder(raw)), "a zip counts as a folder"
    deep = list_folder(raw / "all.ZIP::deep/F002.zip")
    assert deep == [Entry("T1", str(raw / "all.ZIP::deep/F002.zip::T1"), True)]


def test_every_entry_can_be_read_by_its_path(raw):
    def files(folder):
        for entry in list_folder(folder):
            yield from files(entry.path) if entry.folder else [entry.path]

    found = {relative(path, raw): read_bytes(path) for path in files(raw)}
    assert found["F001.zip::F001/9.jpg"] == b"F001/9.jpg"
    assert found["all.ZIP::deep/F002.zip::T1/5.jpg"] == b"five"
    assert len(found) == 9
    for source, data in found.items():
        path = locate(raw, source)
        assert exists(path)
        assert read_bytes(path) == data
        with on_disk(path) as file:
            assert file.read_bytes() == data
            assert file.name == path.name.rpartition("::")[2]
    assert not exists(raw / "F001.zip::F001/11.jpg")
    assert not exists(raw / "absent.zip::a")
    assert not exists(raw / "absent")


def test_copy_of_a_member_goes_when_it_is_not_needed(raw):
    with on_disk(raw / "F001.zip::F001/9.jpg") as file:
        assert file.exists()
    assert not file.exists()
    with on_disk(raw / "Frames/9.jpg") as file:
        assert file == raw / "Frames/9.jpg"


def test_names_are_compared_composed_and_without_case(raw):
    split = unicodedata.normalize("NFD", "Jürgen")
    (raw / split).mkdir()
    (raw / "n.zip").write_bytes(make_zip({f"{split}/1.jpg": b"1"}))
    for folder in (raw, raw / "n.zip"):
        (entry,) = find(folder, "jÜrgen")
        assert entry.name == "Jürgen"
        assert entry.path.name.endswith(split), "the spelling on disk"
    assert list_folder(find(raw / "n.zip", "Jürgen")[0].path)[0].name == "1.jpg"


def test_search_goes_so_deep_and_no_deeper(raw):
    for place in ("a/b/Labels", "Labels/inner/labels", "a/b/c/LABELS", "labels.d"):
        (raw / place).mkdir(parents=True)
    assert [relative(e.path, raw) for e in search(raw, "labels")] == ["Labels", "a/b/Labels"]
    assert [relative(e.path, raw) for e in search(raw, "t1")] == []
    assert [relative(e.path, raw) for e in search(raw, "t1", depth=4)] == ["all.ZIP::deep/F002.zip::T1"]
    assert [e.name for e in search(raw, r"\d\.jpg", folders=False)] == ["0.jpg", "9.jpg", "0.jpg", "9.jpg"]


def test_links_in_a_circle_end_and_unreadable_folders_are_passed_over(raw):
    os.symlink(raw, raw / "Frames/loop")
    os.symlink(raw / "self", raw / "self")
    (raw / "damaged.zip").write_bytes(b"PK\x03\x04 no zip at all")
    assert {e.name for e in search(raw, "Frames", depth=9)} == {"Frames"}
    with pytest.raises(DataError, match=r"damaged\.zip"):
        list_folder(raw / "damaged.zip")


@pytest.mark.parametrize("source", ["../x", "a/../../x", "../x.zip::a", "/etc/passwd"])
def test_no_source_leads_out_of_the_root(raw, source):
    with pytest.raises(DataError, match="leads out"):
        locate(raw, source)


def test_member_of_a_zip_cannot_lead_out(raw):
    (raw.parent / "secret").write_text("secret")
    assert not exists(locate(raw, "F001.zip::../../secret"))
    assert not exists(locate(raw, "F001.zip::/etc/passwd"))


def test_what_cannot_be_read_is_one_sentence(raw):
    data = bytearray((raw / "F001.zip").read_bytes())
    at = data.index(b"F001/9.jpg") + 12
    data[at : at + 6] = bytes(6)
    (raw / "broken.zip").write_bytes(bytes(data))
    wrong = ["absent", "Frames", "F001.zip::absent", "absent.zip::a", "broken.zip::F001/9.jpg", "F001.zip::F001/9.jpg::x"]
    for source in wrong:
        with pytest.raises(DataError) as caught:
            read_bytes(raw / source)
        assert "\n" not in str(caught.value)
        assert source.partition("::")[0] in str(caught.value)
    for source in ("F001.zip::absent", "broken.zip::F001/9.jpg"):
        with pytest.raises(DataError, match=source), on_disk(raw / source):
            pass


def test_zip_that_was_replaced_is_read_anew(raw):
    path = raw / "F001.zip::F001/9.jpg"
    assert read_bytes(path) == b"F001/9.jpg"
    (raw / "F001.zip").write_bytes(make_zip({"F001/9.jpg": b"another one"}))
    assert read_bytes(path) == b"another one"
    assert [e.name for e in list_folder(raw / "F001.zip::F001")] == ["9.jpg"]


def test_directory_of_a_zip_is_read_once(raw, monkeypatch):
    opened = []
    archives._open.cache_clear()
    archives._index.cache_clear()
    monkeypatch.setattr(zipfile, "ZipFile", lambda *a, real=zipfile.ZipFile: opened.append(a) or real(*a))
    for _ in range(3):
        for entry in list_folder(raw / "F001.zip::F001"):
            if not entry.folder:
                read_bytes(entry.path)
    assert len(opened) == 1
    archives._open.cache_clear()


def test_split_zip():
    assert split_zip("a/b.jpg")[1] == ()
    assert split_zip("a/B.ZIP::c::d.jpg") == (archives.Path("a/B.ZIP"), ("c::d.jpg",))
    assert split_zip("a::b.jpg") == (archives.Path("a::b.jpg"), ()), "only behind a zip is it a mark"


def test_a_zip_that_holds_one_folder_stands_for_it(raw, tmp_path):
    assert archives.unwrap(raw / "F001.zip") == raw / "F001.zip::F001"
    for whole in (raw / "all.ZIP", raw / "F001.zip::F001", raw / "Frames"):
        assert archives.unwrap(whole) == whole
    (tmp_path / "torn.zip").write_bytes(b"PK")
    assert archives.unwrap(tmp_path / "torn.zip") == tmp_path / "torn.zip"


def test_names_that_are_no_text_are_left_out_and_logged(raw, caplog):
    (raw / os.fsdecode(b"caf\xe9.jpg")).touch()
    (raw / "café.jpg").touch()
    assert [e.name for e in list_folder(raw)] == ["all.ZIP", "café.jpg", "F001.zip", "Frames"]
    assert "its name is no UTF-8 text" in caplog.text


def test_a_link_to_itself_is_a_file_that_cannot_be_read(raw):
    (raw / "Frames/7.jpg").symlink_to("7.jpg")
    assert list_folder(raw / "Frames")[1] == Entry("7.jpg", str(raw / "Frames/7.jpg"), False)
    with pytest.raises(DataError, match=r"7\.jpg"):
        read_bytes(raw / "Frames/7.jpg")


def test_copies_are_told_from_others_wherever_they_lie(tmp_path):
    files = {f"{n:04d}.jpg": bytes([n]) * (n + 1) for n in range(40)}
    folders = {}
    for kind, changes in {
        "one": {}, "copy": {}, "longer": {"0007.jpg": b"more"}, "other": {"0000.jpg": b"x"}, "fewer": {"0039.jpg": None},
    }.items():  # fmt: skip
        own = {name: data for name, data in (files | changes).items() if data is not None}
        folders[kind] = tmp_path / kind / "v"
        folders[kind].mkdir(parents=True)
        for name, data in own.items():
            (folders[kind] / name).write_bytes(data)
        (tmp_path / kind / "flat.zip").write_bytes(make_zip(own))
        (tmp_path / kind / "deep.zip").write_bytes(make_zip({f"v/{name}": data for name, data in own.items()}))
    (folders["copy"] / ".DS_Store").write_bytes(b"junk")
    for kind in folders:
        for place in ("v", "flat.zip", "deep.zip::v"):
            same = same_content(folders["one"], tmp_path / kind / place)
            assert same == (kind in ("one", "copy")), (kind, place)
    assert same_content(folders["one"] / "0003.jpg", tmp_path / "copy/deep.zip::v/0003.jpg")
    assert not same_content(folders["one"] / "0000.jpg", folders["other"] / "0000.jpg")
    assert not same_content(folders["one"], tmp_path / "nowhere")
    (tmp_path / "copy/flat.zip").write_bytes(b"no zip")
    assert not same_content(folders["one"], tmp_path / "copy/flat.zip")
