"""Where Aff-Wild2's files lie: the annotations of eight challenges, and image roots that came in batches."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aupipe import archives
from aupipe.archives import Entry
from aupipe.datasets._notes import note, remark
from aupipe.datasets._tables import read_lines
from aupipe.schema import ConfigError, DataError

_SETS = r"(AU|action_?unit)s?[ _]?(detection[ _]?challenge|set)(\.zip)?"
_SPLITS = {r"train(ing)?([ _]?set)?(\.zip)?": "train", r"val(idation)?([ _]?set)?(\.zip)?": "val"}
_MULTI_TASK = r"(training|validation)_set_annotations(.*)\.txt"
_TEST_NAMES = r".*action_?unit.*test_?set.*\.txt"
_CROPS, _BATCH = r"cropped.*", r"(cropped|batch|new_vids).*"
_VIDEO = r".*\.(mp4|avi|mov|mkv|m4v|webm)"
_MEDIA_FOLDERS = r"(cropped|batch|new_vids|videos?).*"  # no annotations in there, but a folder for every video
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
_EDITION = re.compile(rf"(\d+)(?:st|nd|rd|th)|({'|'.join(_ORDINALS)})", re.IGNORECASE)
_SUFFIX = re.compile(r"_(left|right)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Edition:
    """One set of annotations: where it is, of which challenge, and its label files as (side, path)."""

    place: str
    number: int
    multi_task: bool
    files: tuple[tuple[str, Entry], ...]


def strip_suffix(name: str) -> str:
    """The video that `name` is a face of: without _left or _right."""
    return _SUFFIX.sub("", name)


def choose_edition(raw: Path, wanted: str | None) -> Edition | None:
    """The annotations to read: those whose path holds the text `wanted`, else those of the latest challenge.

    Editions are never mixed, as they divide the videos differently. Raises ConfigError where none is as wanted.
    """
    found = sorted(_find_editions(raw), key=lambda e: (e.multi_task, -e.number))
    matching = [e for e in found if wanted is None or wanted.casefold() in e.place.casefold()]
    if wanted is not None and not matching:
        places = ", ".join(f"'{e.place}'" for e in found) or "none"
        raise ConfigError(f"affwild2: no annotations in {raw} have '{wanted}' in their path; there are {places}")
    if not matching:
        return None
    if others := [e.place for e in found if e is not matching[0]]:
        note(f"annotations are read from {matching[0].place}, and not from {', '.join(others)}; see the option annotations")
    return matching[0]


def _find_editions(raw: Path) -> Iterator[Edition]:
    for entry in archives.search(raw, _SETS, depth=4, skip=_MEDIA_FOLDERS):
        files: list[tuple[str, Entry]] = []
        for pattern, side in _SPLITS.items():
            for folder in archives.search(entry.path, pattern, depth=2):
                found = (e for e in archives.list_folder(folder.path) if e.name.lower().endswith(".txt"))
                files += [(side, e) for e in found]
        if files:
            place = archives.relative(entry.path, raw)
            yield Edition(place, _edition(place), False, tuple(files))
    multi_task: dict[tuple[Path, str], list[tuple[str, Entry]]] = {}
    for entry in archives.search(raw, _MULTI_TASK, depth=4, folders=False, skip=_MEDIA_FOLDERS):
        match = re.fullmatch(_MULTI_TASK, entry.name, re.IGNORECASE)
        assert match is not None
        side = "train" if match[1].lower() == "training" else "val"
        multi_task.setdefault((entry.path.parent, match[2]), []).append((side, entry))
    for files in multi_task.values():
        place = archives.relative(files[0][1].path, raw)
        yield Edition(place, _edition(place), True, tuple(files))


def _edition(place: str) -> int:
    """The number of the challenge in a path such as "Third ABAW Annotations"; 0 where there is none, as in the first two."""
    match = _EDITION.search(place)
    if match is None:
        return 0
    return int(match[1]) if match[1] else 1 + _ORDINALS.index(match[2].lower())


def find_crops(raw: Path) -> dict[str, Path]:
    """Video → its folder of crops. Of two the first counts: aligned crops before others, folders before zips.

    Copies are in the report; two places that hold different images of a video are noted.
    """
    roots = archives.search(raw, _CROPS, depth=4)
    found: dict[str, Path] = {}
    twice: list[tuple[Path, Path]] = []
    for root in sorted(roots, key=lambda e: ("aligned" not in e.name.lower(), e.name.lower().endswith(".zip"))):
        for entry in _video_folders(root, 3):
            name, path = entry.name.removesuffix(".zip"), archives.unwrap(entry.path)
            first = found.setdefault(name, path)
            if first != path:
                twice.append((first, path))
    _report_twice("images in two places", twice)
    return found


def _report_twice(what: str, twice: list[tuple[Path, Path]]) -> None:
    """Of pairs of places that hold a video: how many are copies, and how many differ."""
    copies = [pair for pair in twice if archives.same_content(*pair)]
    others = [pair for pair in twice if pair not in copies]
    if copies:
        remark(f"{len(copies)} videos have {what}, with the same bytes, such as {copies[0][0]} and {copies[0][1]}")
    if others:
        note(f"{len(others)} videos have {what}, which differ: {others[0][0]} and {others[0][1]} …; the first is taken")


def _video_folders(root: Entry, depth: int) -> Iterator[Entry]:
    for entry in archives.list_folder(root.path):
        if entry.folder and depth and re.fullmatch(_BATCH, entry.name, re.IGNORECASE):
            yield from _video_folders(entry, depth - 1)
        elif entry.folder:
            yield entry


def find_videos(raw: Path) -> dict[str, Path]:
    """Name without its ending → video file; of two the first counts, which is noted."""
    found: dict[str, Path] = {}
    twice: list[tuple[Path, Path]] = []
    for entry in archives.search(raw, _VIDEO, depth=4, folders=False, skip=_CROPS):
        first = found.setdefault(entry.name.rpartition(".")[0], entry.path)
        if first != entry.path:
            twice.append((first, entry.path))
    _report_twice("files in two places", twice)
    return found


def find_test_names(raw: Path) -> frozenset[str]:
    """The videos of the test set, of which the names alone are released."""
    files = archives.search(raw, _TEST_NAMES, depth=4, folders=False, skip=_MEDIA_FOLDERS)
    lines = (line.strip() for entry in files for line in read_lines(entry.path))
    return frozenset(line.removesuffix(".txt") for line in lines if line)


def divide(files: tuple[tuple[str, Entry], ...]) -> dict[str, tuple[str, Path]]:
    """Video → (side, label file), of an edition with a file for each video.

    Raises DataError for a video on both sides: what was learned from would be tested on.
    """
    found: dict[str, tuple[str, Path]] = {}
    for side, entry in files:
        name = entry.name.rpartition(".")[0]
        if found.setdefault(name, (side, entry.path))[0] != side:
            raise DataError(f"the video {name} is on both sides of the split: {found[name][1]} and {entry.path}; remove one")
    return found
