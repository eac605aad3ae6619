"""Random small trees of every layout with random damage: a row for every image and label that is there, or one sentence.

What is there is found by looking at the disk once more, by names alone. `make soak` tries ten times as many trees.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from plain_labels import Labels, Plain, affwild2_rows, bp4d_occurrence, disfaplus, frame_and_intensity, lines_of, own_rows
from raw_trees import mutate, read_or_complain, zip_folder

from aupipe.archives import MARK
from aupipe.datasets import get_dataset, survey
from aupipe.facs import AUSet
from aupipe.schema import manifest_schema

TREES = 2500 if os.environ.get("AUPIPE_SOAK") else 120  # of each layout
AUS = (1, 4, 12)
PICTURE = b"\xff\xd8 an image, which no manifest looks into \xff\xd9"


@dataclass(frozen=True)
class Layout:
    """A layout of images and labels. who: its recordings, "subject/session".

    images, labels: where they are written, and the patterns by which they are found again, with the groups subject, session
    and frame. plain: how a label file is read; row: what it has for frame n. zips: folders that may be in a zip.
    """

    name: str
    who: tuple[str, ...]
    images: str
    find_image: str
    labels: str
    find_labels: str
    header: str
    row: Callable[[random.Random, int], str]
    plain: Callable[[str], Plain]
    zips: str
    consecutive: bool = False  # rows are frames from 1 on, whatever they say
    options: tuple[tuple[str, object], ...] = ()


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(
            "bp4d", ("F001/T1", "F001/T10", "M001/T1"),
            "Sequences/{subject}/{session}/{n:04d}.jpg",
            r"Sequences/(?P<subject>[FM]\d{3})(\.zip::[FM]\d{3})?/(?P<session>T\d+)/(?P<frame>\d+)\.jpg",
            "AUCoding/AU_OCC/{subject}_{session}.csv",
            r"AUCoding/AU_OCC/(?P<subject>[FM]\d{3})_(?P<session>T\d+)\.csv",
            "0,AU1,AU4,AU12\n", lambda rng, n: f"{n},{rng.choice('019')},{rng.choice('01')},9",
            lambda who: bp4d_occurrence(who, AUS), r"[FM]\d{3}",
        ),
        Layout(
            "disfa", ("SN001/left", "SN002/left"),
            "Videos_LeftCamera/{subject}/{n}.png",
            r"Videos_LeftCamera/(?P<subject>SN\d{3})(\.zip::SN\d{3})?/(?P<frame>\d+)\.png",
            "ActionUnit_Labels/{subject}/{subject}_au12.txt",
            r"ActionUnit_Labels/(SN\d{3})(\.zip::SN\d{3})?/(?P<subject>SN\d{3})_au12\.txt",
            "", lambda rng, n: f"{n + 1},{rng.choice('012345')}",
            lambda who: frame_and_intensity(who, "AU12", threshold=2), r"SN\d{3}",
        ),
        Layout(
            "disfaplus", ("SN001/A1", "SN001/Y2", "SN003/A1"),
            "Images/{subject}/{session}/{n:03d}.jpg",
            r"Images/(?P<subject>SN\d{3})(\.zip::SN\d{3})?/(?P<session>[AY]\d)/(?P<frame>\d+)\.jpg",
            "Labels/{subject}/{session}/AU12.txt",
            r"Labels/(?P<subject>SN\d{3})(\.zip::SN\d{3})?/(?P<session>[AY]\d)/AU12\.txt",
            "AU12\nframe intensity\n", lambda rng, n: f"{n:03d}.jpg  {rng.choice('012345')}",
            lambda who: disfaplus(who, "AU12"), r"SN\d{3}",
        ),
        Layout(
            "affwild2", ("v/v", "w/w_left", "w/w_right"),
            "cropped_aligned/{session}/{n:05d}.jpg",
            r"cropped_aligned/(?P<session>[^/]+?)(\.zip::[^/]+)?/(?P<frame>\d+)\.jpg",
            "annotations/AU_Set/Train_Set/{session}.txt",
            r"annotations/AU_Set/Train_Set/(?P<session>[^/]+)\.txt",
            "AU1,AU4,AU12\n", lambda rng, n: rng.choice(["-1,-1,-1", "0,1,0", "1,1,1", "0,0,0"]),
            affwild2_rows, r"[vw](_left|_right)?", True,
        ),
        Layout(
            "generic", ("P1/a", "P2/b"),
            "media/{session}/{n:04d}.jpg",
            r"media/(?P<session>[ab])/(?P<frame>\d+)\.jpg",
            "labels/{session}.csv",
            r"labels/(?P<session>[ab])\.csv",
            "frame,AU01_occ,AU04_occ,AU12_int\n", lambda rng, n: f"{n},{rng.choice('01')},,{rng.choice(['', '0', '3.5'])}",
            lambda who: own_rows({"AU01_occ": "AU01_c", "AU04_occ": "AU04_c", "AU12_int": "AU12_r"}, session=who), "$^",
            options=(("labels", "labels/{media_id}.csv"),),
        ),
    )
}  # fmt: skip


def plant(raw: Path, layout: Layout, rng: random.Random) -> None:
    """Random recordings with random frames, some of them without an image or a label."""
    for who in rng.sample(layout.who, rng.randint(1, len(layout.who))):
        subject, _, session = who.partition("/")
        frames = range(rng.randint(0, 1), rng.randint(2, 7))
        images = [n for n in frames if rng.random() < 0.9]
        rows = [layout.row(rng, n) for n in frames if layout.consecutive or rng.random() < 0.8]
        files = {layout.images.format(subject=subject, session=session, n=n): PICTURE for n in images}
        if rows and rng.random() < 0.9:
            text = layout.header + "\n".join(rows) + "\n"
            files[layout.labels.format(subject=subject, session=session)] = text.encode()
        for name, data in files.items():
            (raw / name).parent.mkdir(parents=True, exist_ok=True)
            (raw / name).write_bytes(data)
    if layout.name == "generic":
        (raw / "media.csv").write_text("media_id,path,kind,subject_id\na,media/a,frames,P1\nb,media/b,frames,P2\n")


def hurt(raw: Path, layout: Layout, rng: random.Random) -> None:
    """One random damage to a random file or folder."""
    found = sorted(path for path in raw.rglob("*") if path.name != "media.csv")
    files = [path for path in found if path.is_file() and not path.is_symlink()]
    if not files:
        return
    path, folder = rng.choice(files), rng.choice([path for path in found if path.is_dir()])
    tables = [p for p in files if re.fullmatch(layout.find_labels, p.relative_to(raw).as_posix())]
    table = rng.choice(tables) if tables else path
    if rng.random() < 0.4:
        path = table
    damage = rng.choice(DAMAGES)
    if damage == "zipped":
        names = [os.fsencode(p).isascii() for p in folder.rglob("*") if p.is_file()]
        if re.fullmatch(layout.zips, folder.name) and names and all(names):
            zip_folder(folder)
    elif damage in ON_FILES:
        ON_FILES[damage](path, rng)
    elif damage == "folder gone":
        shutil.rmtree(folder)
    else:
        STRAYS[damage](folder, path)


def _cut(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size + 1)])


def _again(path: Path, rng: random.Random) -> None:
    number = re.fullmatch(r"0*(\d+)", path.stem)
    name = f"{int(number[1]):07d}{path.suffix}" if number and rng.random() < 0.5 else f"{path.stem} (copy){path.suffix}"
    shutil.copy(path, path.with_name(name))


def _as_link(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to(rng.choice(["nowhere", path.name]))


def _as_folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _beside_mac(folder: Path, path: Path) -> None:
    (folder / "__MACOSX").mkdir(exist_ok=True)
    (folder / "__MACOSX" / path.name).write_bytes(b"\0")


ON_FILES: dict[str, Callable[[Path, random.Random], object]] = {
    "missing": lambda path, rng: path.unlink(),
    "truncated": _cut,
    "empty": lambda path, rng: path.write_bytes(b""),
    "other case": lambda path, rng: path.rename(path.with_suffix(path.suffix.upper())),
    "set aside": lambda path, rng: path.rename(path.with_name(rng.choice([f"{path.name}.bak", f"old_{path.name}x"]))),
    "again": _again,
    "a link that leads nowhere": _as_link,
    "a folder of its name": _as_folder,
    "byte-order mark": lambda path, rng: path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes()),
    "line ends": lambda path, rng: path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n")),
    "utf-16": lambda path, rng: path.write_bytes(path.read_bytes().decode("latin-1").encode("utf-16")),
    "mutated": lambda path, rng: path.write_bytes(mutate(path.read_bytes(), rng)),
}
STRAYS: dict[str, Callable[[Path, Path], object]] = {
    "file manager": lambda folder, path: (folder / ".DS_Store").write_bytes(b"\0"),
    "resource fork": lambda folder, path: shutil.copy(path, path.with_name(f"._{path.name}")),
    "unpacked on a Mac": _beside_mac,
    "a text": lambda folder, path: (folder / "readme.txt").write_text("about the data\n"),
    "a cover": lambda folder, path: (folder / "cover.jpg").write_bytes(PICTURE),
    "an empty folder": lambda folder, path: (folder / "new").mkdir(exist_ok=True),
    "no zip": lambda folder, path: (folder / "F001.zip").write_bytes(b"PK\3\4 and no more"),
    "a name that is no text": lambda folder, path: Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.jpg")).touch(),
    "a folder whose name is no text": lambda folder, path: (Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9"))).mkdir(
        exist_ok=True
    ),
    "a name of two lines": lambda folder, path: (folder / "two\nlines.csv").write_text("0\n"),
}
DAMAGES = (*ON_FILES, *STRAYS, "zipped", "zipped", "folder gone")


def on_disk(raw: Path) -> dict[str, bytes]:
    """Every file, in zips too, by its path; a link that leads nowhere is an empty one. Damaged zips hold none, and what file
    managers leave behind is none.
    """
    found = {}
    for path in sorted(raw.rglob("*")):
        if any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(raw).parts):
            continue
        name = os.fsencode(path.relative_to(raw)).decode("latin-1")
        if path.is_symlink():
            found[name] = b""
        elif path.is_file() and path.suffix.lower() == ".zip":
            found |= {f"{name}{MARK}{member}": data for member, data in _members(path).items()}
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def _members(path: Path) -> dict[str, bytes]:
    """The members of a zip, those that cannot be read as empty ones."""
    found = {}
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            found[member] = b""
            with contextlib.suppress(zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError):
                found[member] = archive.read(member)
    return found


def expect(raw: Path, layout: Layout, *, labels_too: bool) -> tuple[dict[tuple[str, int], bool], Labels] | None:
    """("subject/session", frame) → whether there is an image, of all that have an image or a label; and the labels.

    Without `labels_too` the label files are not looked at.
    """
    images: dict[str, set[int]] = {}
    labels: Labels = {}
    for name, data in on_disk(raw).items():
        if match := re.fullmatch(layout.find_image, name, re.IGNORECASE):
            images.setdefault(_who(layout, match), set()).add(int(match["frame"]))
        elif labels_too and (match := re.fullmatch(layout.find_labels, name, re.IGNORECASE)):
            found = layout.plain(_who(layout, match))(lines_of(data))
            if found is None:
                return None
            labels |= found
    if layout.name == "disfa":  # counted from 0 where there is an image 0
        images = {who: {n + (0 in numbers) for n in numbers} for who, numbers in images.items()}
    keys = {(who, n) for who, numbers in images.items() for n in numbers}
    return {key: key in keys for key in keys | labels.keys()}, labels


def _who(layout: Layout, match: re.Match[str]) -> str:
    """The recording whose subject or session a path names; of Aff-Wild2, whatever is called a video is one."""
    groups = match.groupdict()
    if layout.name == "affwild2":
        return f"{groups['session']}/{groups['session']}"

    def is_meant(who: str) -> bool:
        own = dict(zip(("subject", "session"), who.split("/"), strict=True))
        return all(groups.get(part, value).upper() == value.upper() for part, value in own.items())

    return next(who for who in layout.who if is_meant(who))


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_row_is_lost_whatever_the_tree_and_its_damage(tmp_path: Path, name: str) -> None:
    layout, read = LAYOUTS[name], 0
    for n in range(TREES):
        raw, rng = tmp_path / str(n), random.Random(n)
        raw.mkdir()
        plant(raw, layout, rng)
        for _ in range(rng.randint(0, 4)):
            hurt(raw, layout, rng)
        options = dict(layout.options)
        result = read_or_complain(lambda: survey(get_dataset(name, AUSet(AUS), options), raw), raw)  # noqa: B023
        malformed = result is not None and bool(result[1]["errors"])
        expected = expect(raw, layout, labels_too=not malformed) if result is not None else None
        shutil.rmtree(raw)
        if result is None:
            continue
        table, report = result
        assert table.schema == manifest_schema(AUSet(AUS))
        rows = {(f"{row['subject']}/{row['session']}", row["frame"]): row for row in table.to_pylist()}
        assert len(rows) == table.num_rows == report["rows"] == sum(entry["rows"] for entry in report["sessions"])
        assert report["missing"] == table["source"].null_count
        if expected is None:
            continue
        frames, labels = expected
        if malformed:
            assert {key for key, row in rows.items() if row["source"] is not None} == frames.keys(), n
            continue
        read += 1
        assert {key: row["source"] is not None for key, row in rows.items()} == frames, n
        for key, row in rows.items():
            for column in (c for c in table.column_names if c.startswith("AU")):
                value = labels.get(key, {}).get(column)
                assert row[column] == (None if value is None else np.float32(value)), (n, key, column)
    assert read > TREES / 4
