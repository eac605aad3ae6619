"""Label files of every layout, mutated at random: the rows of a plain second reading, or one sentence; and none hangs.

Case n of a format is the same in every run. `make test` tries every tenth of the 10,000 cases, `make soak` all of them.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from plain_labels import (
    Labels,
    Plain,
    affwild2_multi_task,
    affwild2_rows,
    bp4d_occurrence,
    disfaplus,
    event_table,
    facereader,
    facs_rows,
    frame_and_intensity,
    lines_of,
    own_rows,
)
from raw_trees import add_images, check_rows, mutate, read_or_complain

from aupipe.datasets import get_dataset, survey
from aupipe.facs import AU_SETS, AUSet
from aupipe.schema import manifest_schema

CASES = 10_000
STEP = 1 if os.environ.get("AUPIPE_SOAK") else 10
SECONDS = 20  # of this process's own time, so that a busy machine does not matter; a file takes milliseconds
FRAMES = 6
AUS = (1, 4, 12)


@dataclass(frozen=True)
class Format:
    """A kind of label file. write: draw its text. name: where it lies. plain: the second reading. images: those of each
    session, numbered from `first`. others: files beside it, and `beside` how those with labels are read.
    """

    layout: str
    name: str
    write: Callable[[random.Random], str]
    plain: Plain
    images: dict[str, str]
    first: int = 0
    others: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    aus: tuple[int, ...] = AUS
    beside: dict[str, Plain] = field(default_factory=dict)


def table(header: str, row: Callable[[int], list[Any]], separator: str = ",", first: int = 0) -> str:
    rows = [separator.join(map(str, row(n))) for n in range(first, first + FRAMES)]
    return "\n".join([*([header] if header else []), *rows]) + "\n"


LEGACY = ",".join(map(str, range(100)))
NAMED = "frame,AU01,AU02,AU04,AU06,AU07,AU10,AU12"
BP4D = {"F001/T1": "Sequences/F001/T1/{:04d}.jpg"}
TWELVE = ",".join(f"AU{au}" for au in AU_SETS["affwild2"])
CLIP = {"P1/a": "a/{:04d}.jpg"}
MEDIA = {"media.csv": "media_id,path,kind,subject_id,fps\na,a,frames,P1,25\n"}
OWN: dict[str, Any] = {"layout": "generic", "name": "labels.csv", "images": CLIP, "others": MEDIA}
ACTION_UNITS = {
    "Action Unit 01 - Inner Brow Raiser": "AU01_r",
    "Action Unit 04 - Brow Lowerer": "AU04_r",
    "Action Unit 12 - Lip Corner Puller": "AU12_r",
}
ELAN = ["Tier", "Begin Time - hh:mm:ss.ms", "End Time - hh:mm:ss.ms", "Value"]


def any_of(*codes: Any) -> Callable[[random.Random], Any]:
    return lambda rng: rng.choice(codes)


OCCURRENCE, INTENSITY = any_of(0, 1, 9), any_of(0, 1, 2, 3, 4, 5)


def events(rng: random.Random, row: Callable[..., list[Any]], separator: str, unit: int) -> str:
    """Some events of at least a frame; onset and offset in milliseconds / unit, on no frame's edge or middle."""
    rows = []
    for _ in range(rng.randint(1, 4)):
        onset = rng.randrange(5, 160, 10)
        offset = onset + rng.randrange(50, 120, 10)
        rows.append(separator.join(map(str, row(rng.choice(AUS), onset / unit, offset / unit, rng.choice(["", "B", "D"])))))
    return "\n".join(rows) + "\n"


def elan_row(au: int, onset: float, offset: float, level: str) -> list[Any]:
    return [f"AU{au}", f"00:00:{onset:06.3f}", f"00:00:{offset:06.3f}", level]


FORMATS = {
    "bp4d, first release": Format(
        "bp4d", "AUCoding/AU_OCC/F001_T1.csv",
        lambda rng: table(LEGACY, lambda n: [n, *(OCCURRENCE(rng) for _ in range(99))]),
        bp4d_occurrence("T1", AUS), BP4D,
    ),
    "bp4d, later releases": Format(
        "bp4d", "AUCoding/AU_OCC/F001_T1.csv",
        lambda rng: table(NAMED, lambda n: [n, *(OCCURRENCE(rng) for _ in range(7))]),
        bp4d_occurrence("T1", AUS), BP4D,
    ),
    "bp4d, intensities": Format(
        "bp4d", "AUCoding/AU_INT/AU12/F001_T1_AU12.csv",
        lambda rng: table("", lambda n: [n, any_of(0, 1, 2, 3, 4, 5, 9)(rng)]),
        frame_and_intensity("T1", "AU12", "9"), BP4D,
        others={"AUCoding/AU_OCC/F001_T1.csv": table(NAMED, lambda n: [n, *"1100101"])},
        beside={"AUCoding/AU_OCC/F001_T1.csv": bp4d_occurrence("T1", AUS)},
    ),
    "disfa": Format(
        "disfa", "ActionUnit_Labels/SN001/SN001_au12.txt",
        lambda rng: table("", lambda n: [n, INTENSITY(rng)], first=1),
        frame_and_intensity("left", "AU12", threshold=2), {"SN001/left": "SN001/{:05d}.png"}, 1,
        others={"ActionUnit_Labels/SN001/SN001_au1.txt": table("", lambda n: [n, n % 6], first=1)},
        beside={"ActionUnit_Labels/SN001/SN001_au1.txt": frame_and_intensity("left", "AU01", threshold=2)},
    ),
    "disfaplus": Format(
        "disfaplus", "Labels/SN001/A1/AU12.txt",
        lambda rng: "AU12\nframe  intensity\n" + table("", lambda n: [f"{n:03d}.jpg", INTENSITY(rng)], "  "),
        disfaplus("A1", "AU12"), {"SN001/A1": "Images/SN001/A1/{:03d}.jpg"},
        others={"Labels/SN001/A1/AU1.txt": "AU1\nframe  intensity\n" + table("", lambda n: [f"{n:03d}.jpg", n % 6], "  ")},
        beside={"Labels/SN001/A1/AU1.txt": disfaplus("A1", "AU01")},
    ),
    "affwild2, a file per video": Format(
        "affwild2", "6th ABAW Annotations/AU_Detection_Challenge/Train_Set/v.txt",
        lambda rng: table(TWELVE, lambda n: [any_of(0, 1, -1)(rng) for _ in range(12)]),
        affwild2_rows("v"), {"v/v": "cropped_aligned/v/{:05d}.jpg"}, 1,
    ),
    "affwild2, multi-task": Format(
        "affwild2", "training_set_annotations.txt",
        lambda rng: table(
            f"image,valence,arousal,expression,{TWELVE}",
            lambda n: [f"v/{n:05d}.jpg", 0.5, -5, 3, *(any_of(0, 1, -1)(rng) for _ in range(12))], first=1,
        ),
        affwild2_multi_task, {"v/v": "cropped_aligned/v/{:05d}.jpg"}, 1,
    ),
    "own rows": Format(
        **OWN, options={"preset": "frame"},
        write=lambda rng: table(
            "media_id,frame,AU01_occ,AU12_int,valid",
            lambda n: ["a", n, any_of(0, 1, "")(rng), any_of(0, 1.5, "", 5)(rng), any_of(0, 1, 1)(rng)],
        ),
        plain=own_rows({"AU01_occ": "AU01_c", "AU12_int": "AU12_r"}, media="media_id", valid="valid"),
    ),
    "openface": Format(
        **OWN, options={"preset": "openface"}, first=1,
        write=lambda rng: table(
            "frame, face_id, timestamp, confidence, success, AU12_r, AU01_c, AU12_c",
            lambda n: [n, 0, n / 25, 0.98, any_of(0, 1, 1)(rng), rng.randrange(500) / 100, OCCURRENCE(rng) % 9, n % 2],
            ", ", first=1,
        ),
        plain=own_rows(
            {"AU01_c": "AU01_c", "AU12_c": "AU12_c", "AU12_r": "AU12_r"}, valid="success", same=("face_id",),
        ),
    ),
    "pyfeat": Format(
        **OWN, options={"preset": "pyfeat"},
        write=lambda rng: table(
            "frame,FaceScore,AU01,AU12,Identity,input",
            lambda n: [n, 0.9, rng.randrange(99) / 99, rng.randrange(99) / 99, "P", "a.mp4"],
        ),
        plain=own_rows({"AU01": "AU01_p", "AU12": "AU12_p"}, media="input", limit=0.5, same=("Identity",)),
    ),
    "libreface": Format(
        **OWN, options={"preset": "libreface"},
        write=lambda rng: table(
            "frame_idx,frame_time_in_ms,au_1,au_1_intensity", lambda n: [n, 40 * n, OCCURRENCE(rng) % 9, INTENSITY(rng)]
        ),
        plain=own_rows({"au_1": "AU01_c", "au_1_intensity": "AU01_r"}, frame="frame_idx"),
    ),
    "facereader": Format(
        **OWN, options={"preset": "facereader"},
        write=lambda rng: "Video analysis\nFace Model:\tGeneral\n\n" + table(
            "\t".join(["Video Time", "Neutral", *ACTION_UNITS]),
            lambda n: [f"00:00:{n / 25:06.3f}", 0.5, *(any_of("A", "NotActive", "E", "FIT_FAILED")(rng) for _ in AUS)], "\t",
        ),
        plain=facereader(ACTION_UNITS),
    ),
    "interval": Format(
        **OWN, options={"preset": "interval", "coded_aus": AUS},
        write=lambda rng: "media_id,au,onset_s,offset_s,intensity\n" + events(rng, lambda *cells: ["a", *cells], ",", 1000),
        plain=event_table(AUS, FRAMES, {
            "medium": "media_id", "au": "au", "onset": "onset_s", "offset": "offset_s", "intensity": "intensity",
        }, 1, ","),
    ),
    "elan": Format(
        **OWN, options={"preset": "elan", "coded_aus": AUS},
        write=lambda rng: "\t".join(ELAN) + "\n" + events(rng, elan_row, "\t", 1000),
        plain=event_table(
            AUS, FRAMES, dict(zip(("au", "onset", "offset", "intensity"), ELAN, strict=True)), 1, "\t"
        ),
    ),
    "datavyu": Format(
        **OWN, options={"preset": "datavyu", "coded_aus": AUS},
        write=lambda rng: "file,column,onset,offset,code01\n" + events(
            rng, lambda au, on, off, level: ["a", f"AU{au}", int(on), int(off), level], ",", 1
        ),
        plain=event_table(
            AUS, FRAMES,
            {"medium": "file", "au": "column", "onset": "onset", "offset": "offset", "intensity": "code01"}, 0.001, ",",
        ),
    ),
    "facs_strings": Format(
        **OWN, options={"preset": "facs_strings", "coded_aus": AUS},
        write=lambda rng: table(
            "media_id,frame,facs", lambda n: ["a", n, any_of("1+2+4B", "null", "12C", "1+12", "4A+12E")(rng)]
        ),
        plain=facs_rows(AUS),
    ),
}  # fmt: skip


RECORDINGS = ["a,a,frames,P1,25", "b,b,frames,P2,25"]
RECORDED = "".join(f"{name},{n},{n % 2}\n" for name in "ab" for n in range(FRAMES))


def media_table(lines: list[str]) -> Labels | None:
    """Of recordings that are listed as they were; of others nobody knows whose the rows are."""
    if lines[0] != MEDIA["media.csv"].split("\n")[0] or not set(filter(None, lines[1:])) <= set(RECORDINGS):
        return None
    listed = {line[0] for line in lines[1:] if line}
    return {(name, n): {"AU01_c": n % 2} for name in sorted(listed) for n in range(FRAMES)}


FORMATS["media table"] = Format(
    "generic", "media.csv", lambda rng: MEDIA["media.csv"].split("\n")[0] + "\n" + "\n".join(RECORDINGS) + "\n",
    media_table, CLIP | {"P2/b": "b/{:04d}.jpg"}, others={"labels.csv": "media_id,frame,AU01_occ\n" + RECORDED}, aus=(1,),
)  # fmt: skip


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    """An error where the block takes more than SECONDS of processor time."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {SECONDS} seconds of processor time")

    previous = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)


def cases_of(name: str) -> range:
    """The numbers of a format's cases; those of the tenth are among those of the whole."""
    own = list(FORMATS).index(name)
    return range(own * STEP, CASES, len(FORMATS) * STEP)


def write_tree(raw: Path, kind: Format, data: bytes) -> None:
    for pattern in kind.images.values():
        folder, _, name = pattern.rpartition("/")
        add_images(raw / folder, [name.format(n) for n in range(kind.first, kind.first + FRAMES)])
    for name, content in {**{n: text.encode() for n, text in kind.others.items()}, kind.name: data}.items():
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / name).write_bytes(content)


def plain_labels(kind: Format, data: bytes) -> Labels | None:
    """What a second reading finds in all the files."""
    labels = kind.plain(lines_of(data))
    for name, reading in kind.beside.items():
        for key, values in (reading(lines_of(kind.others[name].encode())) or {}).items():
            if labels is not None:
                labels[key] = labels.get(key, {}) | values
    return labels


def compare(rows: pa.Table, labels: Labels) -> None:
    """Every row of the plain reading is there with its labels, and no other label is."""
    found = {(row["session"], row["frame"]): row for row in rows.to_pylist()}
    assert labels.keys() <= found.keys()
    for key, row in found.items():
        expected = labels.get(key, {})
        for name in rows.column_names:
            if name.startswith("AU"):
                value = expected.get(name)
                assert row[name] == (None if value is None else np.float32(value)), (key, name)


@pytest.mark.parametrize("name", FORMATS)
def test_any_label_file_gives_its_rows_or_one_sentence(tmp_path: Path, name: str) -> None:
    kind, compared, refused = FORMATS[name], 0, 0
    for n in cases_of(name):
        rng = random.Random(n)
        whole = kind.write(rng).encode()
        data = mutate(whole, rng)
        raw = tmp_path / str(n)
        write_tree(raw, kind, data)
        with time_limit():
            found = read_or_complain(lambda: survey(get_dataset(kind.layout, AUSet(kind.aus), kind.options), raw), raw)  # noqa: B023
        shutil.rmtree(raw)  # there are thousands, and case n can be made again
        if found is None:
            refused += 1
            continue
        rows, report = found
        assert rows.schema == manifest_schema(AUSet(kind.aus))
        for who in kind.images if kind.name != "media.csv" else ():
            check_rows(rows, who, range(kind.first, kind.first + FRAMES))
        if report["errors"]:  # the file is passed over, and what lies beside it is not
            refused += 1
            assert all(kind.name in error and "\n" not in error for error in report["errors"])
            compare(rows, plain_labels(replace(kind, plain=lambda lines: {}), data) or {})
            continue
        labels = plain_labels(kind, data)
        if labels is not None:
            compared += 1
            compare(rows, labels)
    total = len(cases_of(name))
    assert compared > total / 20
    assert refused > total / 4
