"""Trees of corpora as tests make them: tiny videos, empty images and label files; and damage drawn at random."""

from __future__ import annotations

import itertools
import re
import shutil
import zipfile

import cv2
import numpy as np

from aupipe.datasets import build_manifest, get_dataset
from aupipe.schema import DataError

# A label file as others save it: the same text, other bytes.
SAVED_AS = {
    "crlf": lambda text: text.replace("\n", "\r\n").encode(),
    "cr": lambda text: text.replace("\n", "\r").encode(),
    "bom": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "utf-16": lambda text: text.encode("utf-16"),
    "no last line end": lambda text: text.rstrip("\n").encode(),
    "spaces": lambda text: text.replace(",", " , ").encode(),
    "semicolons": lambda text: text.replace(",", ";").encode(),
    "tabs": lambda text: text.replace(",", "\t").encode(),
}
TWELVE = (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26)
FRAMES = 6
LEVELS = [0, 1, 2, 3, 5, 4]
NUMBERS = [b"0", b"1", b"2", b"5", b"6", b"9", b"-1", b"1.0", b"0,0", b"3", b"12", b"", b"1e400", b"999999999", b"x", b"?"]
PIECES = [
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b",",
    b";",
    b"\t",
    b'"',
    b" ",
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"-",
    b".",
    b"?",
    b"a",
]


def add_video(path, frames=FRAMES):
    path.parent.mkdir(parents=True, exist_ok=True)
    video = cv2.VideoWriter(str(path), cv2.CAP_OPENCV_MJPEG, cv2.VideoWriter.fourcc(*"MJPG"), 20.0, (32, 24))
    assert video.isOpened()
    for n in range(frames):
        video.write(np.full((24, 32, 3), 5 * n, np.uint8))
    video.release()
    return path


def add_labels(folder, subject="SN001", aus=TWELVE, rows=FRAMES):
    folder.mkdir(parents=True, exist_ok=True)
    for au in aus:
        lines = [f"{n},{LEVELS[(n - 1 + au) % 6]}\n" for n in range(1, rows + 1)]
        (folder / f"{subject}_au{au}.txt").write_text("".join(lines))


def add_images(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def zip_folder(folder):
    """A folder → a zip beside it that holds it."""
    with zipfile.ZipFile(folder.with_name(f"{folder.name}.zip"), "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder.parent).as_posix())
    shutil.rmtree(folder)


def mutate(whole, rng):
    """Bytes changed by one to four cuts, insertions, repetitions, other numbers, or lines lost, repeated and swapped."""
    data = whole
    while data == whole:
        for _ in range(rng.randint(1, 4)):
            data = rng.choice([_splice, _renumber, _move_lines])(data, rng)
    return data


def _splice(data, rng):
    at, size = rng.randint(0, len(data)), rng.choice([0, 0, 1, 2, 30, 1000])
    inserted = rng.choice([rng.randbytes(rng.randint(0, 4)), rng.choice(PIECES), data[at : at + 30]])
    return data[:at] + inserted + data[at + size :]


def _renumber(data, rng):
    numbers = list(re.finditer(rb"\d+", data))
    if not numbers:
        return data
    one = rng.choice(numbers)
    return data[: one.start()] + rng.choice(NUMBERS) + data[one.end() :]


def _move_lines(data, rng):
    lines = data.splitlines(keepends=True) or [b""]
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    kind = rng.choice(["lost", "repeated", "swapped"])
    if kind == "swapped":
        lines[one], lines[other] = lines[other], lines[one]
    lines[one : one + 1] = {"lost": [], "repeated": [lines[one]] * 2, "swapped": [lines[one]]}[kind]
    return b"".join(lines)


def disfa_tree(root):
    """SN001: a video of six frames, and labels of all twelve AUs for them."""
    add_video(root / "Videos_LeftCamera/LeftVideoSN001_comp.avi")
    add_labels(root / "ActionUnit_Labels/SN001")
    return root


def levels_of(au):
    """The intensities that `add_labels` writes."""
    return [LEVELS[(n - 1 + au) % 6] for n in range(1, FRAMES + 1)]


def read(layout, raw, *, strict=False, aus=None, **options):
    return build_manifest(get_dataset(layout, aus, options), raw, strict=strict)


def check_rows(table, who, images):
    """Of `who`, a subject and session, a row for every image; frames ascending; codes that exist."""
    keys = zip(*(table[name].to_pylist() for name in ("subject", "session", "frame")), strict=True)
    frames = [frame for subject, session, frame in keys if f"{subject}/{session}" == who]
    assert set(images) <= set(frames)
    assert all(a < b for a, b in itertools.pairwise(frames))
    for name in table.column_names:
        if name.endswith("_c") and name.startswith("AU"):
            assert set(table[name].to_pylist()) <= {None, 0, 1}
        elif name.endswith("_r"):
            assert all(value is None or 0 <= value <= 5 for value in table[name].to_pylist())


def read_or_complain(call, name=""):
    """What `call` returns; or None where it raises a DataError, which must be one sentence that holds `name`."""
    message = ""
    try:
        return call()
    except DataError as error:
        message = str(error)
    assert message
    assert "\n" not in message
    assert str(name) in message
    return None
