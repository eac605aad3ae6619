"""Where DISFA's files lie, in the many ways in which copies of it are unpacked, and its landmark files."""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aupipe import archives
from aupipe.datasets._notes import note, remark
from aupipe.datasets._tables import IMAGE_SUFFIXES, keep_first
from aupipe.schema import DataError

_VIDEO_ROOT = r"videos?_?(left|right)_?camera(\.zip)?"
_VIDEO = r"(left|right)_?video_?SN\d{3}.*\.(avi|mp4|mov|mkv|m4v|mpe?g|webm)"
_FRAME_FOLDER = r"((left|right)_?video_?)?SN\d{3}.*"
_LABEL_ROOT, _LABELS = r"action_?units?_?labels?(\.zip)?", r"SN\d{3}_au\d{1,2}\.txt"
_POINT_ROOT, _POINTS = r"landmarks?(_?points?)?(\.zip)?", r"(SN\d{3}_|l)\d{1,9}_lm\.mat"
_SUBJECT = re.compile(r"SN\d{3}", re.ASCII | re.IGNORECASE)
_SIDE = re.compile(r"(?<![a-z])(left|right)", re.IGNORECASE)
_NUMBER = re.compile(r"\d+", re.ASCII)
_MAX_POINTS_FILE = 2**16  # bytes; the corpus's own have some 1,200
_POINTS_SHAPE = (66, 2)
_FAR = 2.0**20  # pixels

Key = tuple[str, str]  # subject and camera


@dataclass(slots=True)
class Tree:
    """(subject, camera) → video or folder of images; subject → AU → label file; subject → folder of landmarks."""

    videos: dict[Key, Path] = field(default_factory=dict)
    images: dict[Key, Path] = field(default_factory=dict)
    labels: dict[str, dict[int, Path]] = field(default_factory=dict)
    points: dict[str, Path] = field(default_factory=dict)

    @property
    def media(self) -> dict[Key, Path]:
        """A video where there is one, as it is what was delivered."""
        return self.images | self.videos


def find_tree(raw: Path, default_camera: str, *, strict: bool = False) -> Tree:
    """Look for the corpus's folders up to three levels down. Images whose path names no camera are of `default_camera`."""
    tree = Tree()
    roots = [entry.path for entry in archives.search(raw, _LABEL_ROOT)]
    for root in roots or [raw]:
        for entry in archives.search(root, _LABELS, depth=5 if roots else 3, folders=False):
            numbers = _NUMBER.findall(entry.name)
            own = tree.labels.setdefault(_subject(entry.name), {})
            keep_first(own, int(numbers[1]), entry.path, f"labels of {_subject(entry.name)}", strict=strict)
    point_roots = [entry.path for entry in archives.search(raw, _POINT_ROOT)]
    for root in point_roots:
        folders = archives.search(root, r"SN\d{3}(\.zip)?")
        for entry in sorted(folders, key=lambda e: e.name.lower().endswith(".zip")):  # what was extracted comes first
            tree.points.setdefault(_subject(entry.name), entry.path)
    _find_videos(raw, tree, strict)
    _find_images(raw, tree, [*roots, *point_roots], default_camera, strict)
    return tree


def _find_videos(raw: Path, tree: Tree, strict: bool) -> None:
    roots = [entry.path for entry in archives.search(raw, _VIDEO_ROOT)]
    found = [entry for root in roots for entry in archives.search(root, _VIDEO, depth=4, folders=False)]
    for entry in (*found, *archives.search(raw, _VIDEO, depth=2, folders=False)):
        camera = "left" if entry.name.lower().startswith("left") else "right"
        keep_first(tree.videos, (_subject(entry.name), camera), entry.path, "videos of one recording", strict=strict)


def _find_images(raw: Path, tree: Tree, others: list[Path], default_camera: str, strict: bool) -> None:
    passed = 0
    for entry in archives.search(raw, _FRAME_FOLDER, depth=4):
        if any(str(entry.path).startswith((f"{root}/", f"{root}{archives.MARK}")) for root in others):
            continue
        sides = _SIDE.findall(archives.relative(entry.path, raw))
        key = _subject(entry.name), sides[-1].lower() if sides else default_camera
        folder = archives.unwrap(entry.path)
        if any(not e.folder and e.name.lower().endswith(IMAGE_SUFFIXES) for e in archives.list_folder(folder)):
            keep_first(tree.images, key, folder, "images of one recording", strict=strict)
            passed += key in tree.videos
    if passed:
        remark(f"{passed} folders of images are left out, because their videos are there too")


def _subject(name: str) -> str:
    match = _SUBJECT.search(name)
    assert match is not None, name
    return match[0].upper()


def read_landmarks(folder: Path, *, strict: bool = False) -> dict[int, NDArray[np.float32]]:
    """Frame, counted from 1, → its 66 points (132,), x and y interleaved from pixel 0, of a subject's folder.

    The number in a file's name is the frame's, counted from 0 where there is a file 0, as for most subjects, and from 1
    where there is none. Files that are missing, damaged, or hold no geometry leave their frames out.
    """
    files: dict[int, Path] = {}
    for entry in archives.search(folder, _POINTS, folders=False):
        keep_first(files, int(_NUMBER.findall(entry.name)[-1]), entry.path, "landmarks of one frame", strict=strict)
    shift = 1 if 0 in files else 0
    found, damaged, empty = {}, [], 0
    for number, path in sorted(files.items()):
        try:
            points = parse_landmarks(archives.read_bytes(path))
        except DataError as error:
            damaged.append(f"{path}: {error}")
            continue
        if points is None:
            empty += 1
        else:
            found[number + shift] = points
    remark(f"landmarks of {len(found)} frames, {empty} files without any; they are counted from {1 - shift}")
    if damaged:
        note(f"{len(damaged)} files of landmarks cannot be read, such as {damaged[0]}", strict=strict)
    return found


def parse_landmarks(data: bytes) -> NDArray[np.float32] | None:
    """The variable `pts` (66, 2) of a MATLAB 5 file, counted from 1 as MATLAB does, → (132,) float32 from pixel 0.

    None for points that are not finite, far out of any image or all in one place: a tracker's way of saying that it has
    none. Raises DataError for anything else. Nothing is unpickled; only a matrix of numbers of this very shape is read.
    """
    from scipy.io import loadmat, whosmat

    if len(data) > _MAX_POINTS_FILE:
        raise DataError(f"{len(data)} bytes are too many for a file of landmarks")
    points = np.empty((0, 0))
    try:
        with warnings.catch_warnings(action="error"):
            kinds = {name: (shape, kind) for name, shape, kind in whosmat(io.BytesIO(data))}
            if kinds.get("pts") in [(_POINTS_SHAPE, "double"), (_POINTS_SHAPE, "single")]:
                points = np.asarray(loadmat(io.BytesIO(data), variable_names=["pts"])["pts"], np.float64)
    except Exception as error:  # of any kind: SciPy parses what it is given, and a damaged file can say anything
        raise DataError(f"not a MATLAB 5 file that can be read ({type(error).__name__})") from None
    if points.shape != _POINTS_SHAPE:
        raise DataError("it holds no matrix `pts` of 66 points")
    if not (np.abs(points) < _FAR).all() or np.ptp(points, axis=0).max() < 1:
        return None
    return (points - 1).astype(np.float32).ravel()
