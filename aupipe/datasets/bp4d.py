"""BP4D, its FERA-2015 part and BP4D+: images per subject and task, and an occurrence file for each.

    Sequences*/F001/T1/0000.jpg            named with 3 or 4 digits, so frames are found by number, never by a made-up name
    2D+3D/F001.zip                         BP4D+: the same inside a zip per subject, which is read in place
    AUCoding/AU_OCC/F001_T1.csv            frame, then one column per AU; 0 absent, 1 present, 9 not coded
    AUCoding/AU_INT/AU06/F001_T1_AU06.csv  no header; frame, intensity 0–5, 9 not coded
    2DFeatures/F001_T1.mat                 HDF5: fit/pred, 49 points for each image, counted from 1

Labels cover the most expressive part of a recording only. Subjects are F001 and M001: two people, so the letter is part of
the id. All these stand in one folder or up to two folders down (BP4D-training, BP4D+_v0.2).
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from aupipe import archives
from aupipe.datasets import Partition, Session, note, tabulate
from aupipe.datasets._bp4d_tree import Key, Tree, find_tree
from aupipe.datasets._notes import fail, remark
from aupipe.datasets._tables import (
    INTENSITY_CODES,
    NULL,
    OCCURRENCE_CODES,
    Kept,
    LabelColumns,
    check_overlap,
    frame_columns,
    index_images,
    read_codes,
    read_lines,
    sniff_separator,
)
from aupipe.facs import AU_SETS, AUSet
from aupipe.schema import ConfigError, DataError

# The three parts behind every published three-fold table, one per line. JAA-Net's list files name a fold by the parts it
# trains on, ME-GraphAU's scripts number it; the subjects are the same.
_PARTS = """\
F001 M007 F018 F008 F002 M004 F010 F009 M012 M001 F016 M014 F023 M008
M011 F003 M010 M002 F005 F022 M018 M017 F013 M016 F020 F011 M013 M005
F007 F015 F006 F019 M006 M009 F012 M003 F004 F021 F017 M015 F014
"""
PUBLISHED = Partition(
    parts=tuple(frozenset(line.split()) for line in _PARTS.splitlines()),
    aliases={
        "jaanet-combine_1_2": 2,
        "jaanet-combine_1_3": 1,
        "jaanet-combine_2_3": 0,
        "megraphau-fold1": 2,
        "megraphau-fold2": 1,
        "megraphau-fold3": 0,
    },
)

# Frames of the coded spans on which the supplied landmarks are missing, first and last; JAA-Net leaves these 271 out (found
# by comparing its frame lists with ME-GraphAU's, which hold all coded frames).
LOST: dict[Key, tuple[tuple[int, int], ...]] = {
    ("F017", "T3"): ((198, 201), (203, 206), (209, 263), (265, 267), (269, 332), (335, 335)),
    ("F021", "T3"): ((223, 227),),
    ("F023", "T6"): ((1002, 1031),),
    ("M003", "T5"): ((844, 845),),
    ("M003", "T7"): ((1386, 1461),),
    ("M009", "T4"): ((749, 753), (755, 760)),
    ("M010", "T6"): ((942, 957),),
}

_AU_NAME = re.compile(r"(?:AU)?0*(\d{1,2})", re.ASCII | re.IGNORECASE)
_LEGACY_COLUMNS = 50  # from so many on, column N is AU N; below, the header names the AUs
_UNKNOWN = {"9": NULL}


class Dataset:
    """The BP4D layout, read for a set of AUs; by default the twelve of the published tables.

    frame_offset: image number − label number, 0 as in all public protocols; −1, as one project verified for its copy; or
    "auto", what the ends of the recordings speak for. coded_only: leave out images without a label row, which are two
    thirds of the corpus. mask_lost: take the frames on which the supplied landmarks are missing as not coded, as JAA-Net
    does. mask_occluded: take a frame as not coded where the last column of a legacy file says "occluded".
    landmarks: fill the manifest's column from 2DFeatures.
    """

    published: Partition | None = PUBLISHED
    landmark_scheme: str | None = "ibug49"

    def __init__(
        self,
        aus: AUSet | None = None,
        *,
        frame_offset: int | str = 0,
        coded_only: bool = False,
        mask_lost: bool = False,
        mask_occluded: bool = False,
        landmarks: bool = False,
    ) -> None:
        if frame_offset not in (0, -1, "auto") or isinstance(frame_offset, bool):
            raise ConfigError(f"bp4d: the option frame_offset is 0, -1 or auto, not {frame_offset!r}")
        self.aus = aus or AU_SETS["bp4d"]
        self.frame_offset, self.coded_only = frame_offset, coded_only
        self.mask_lost, self.mask_occluded, self.landmarks = mask_lost, mask_occluded, landmarks
        self._tree = Kept(self._look)

    def sessions(self, raw: Path, *, strict: bool = False) -> list[Session]:
        """Every recording that has frames or labels, whichever is there."""
        tree, _ = self._tree.look(raw, strict)
        for what, where, other in (("labels", tree.labels, tree.frames), ("frames", tree.frames, tree.labels)):
            if alone := sorted(set(where) - set(other)):
                names = ", ".join("/".join(key) for key in alone[:3]) + (", …" if len(alone) > 3 else "")
                missing = "frames" if what == "labels" else "labels"
                # Most tasks of BP4D+ are not coded; that is no oddity.
                note(f"{len(alone)} sessions have {what} and no {missing}: {names}", strict=strict and what == "labels")
        keys = sorted(set(tree.frames) | set(tree.labels))
        return [Session(*key, _text(tree.labels.get(key), raw), _text(tree.frames.get(key), raw)) for key in keys]

    def read_session(self, raw: Path, session: Session, *, strict: bool = False) -> pa.Table:
        """One row per frame that has a label or an image, in manifest_schema(aus). Raises DataError; see the module."""
        tree, offset = self._tree.of(raw)
        images = index_images(raw / session.frames, raw, strict=strict) if session.frames else {}
        numbers = np.array([n - offset for n in images], np.int64)  # as the label file would number them
        coded = LabelColumns()
        if session.labels is not None:
            path = raw / session.labels
            self._read_occurrence(path, coded, strict)
            if session.frames:
                check_overlap(str(path), coded.frames(), numbers, strict=strict)
                _remark_base(coded.frames(), images, offset)
        self._read_intensities(tree, session, coded, strict)
        frames = np.union1d(numbers, coded.frames())
        if self.coded_only:
            remark(f"{len(frames) - len(coded.frames())} images without a label row left out (coded_only)")
            frames = coded.frames()
        lost = LOST.get((session.subject, session.session), ()) if self.mask_lost else ()
        source = dict(zip(numbers.tolist(), images.values(), strict=True))
        columns: dict[str, Any] = {
            **frame_columns(frames, source),
            **coded.spread((*self.aus.columns, *self.aus.intensity_columns), frames, lost),
        }
        if self.landmarks:
            points = _read_points(tree.points.get((session.subject, session.session)), list(images), strict)
            columns["landmarks"] = [points.get(n + offset) for n in frames.tolist()]
        return tabulate(self, session, columns)

    def _look(self, raw: Path, strict: bool) -> tuple[Tree, int]:
        tree = find_tree(raw, strict, points=self.landmarks)
        return tree, _choose_offset(tree, raw) if self.frame_offset == "auto" else int(self.frame_offset)

    def _read_occurrence(self, path: Path, coded: LabelColumns, strict: bool) -> None:
        lines = read_lines(path)
        separator = sniff_separator(lines)
        header = [cell.strip() for cell in lines[0].rstrip(f" {separator}").split(separator)] if lines else []
        where = _find_columns(path, header)
        missing = [name for name, number in zip(self.aus.names, self.aus, strict=True) if number not in where]
        if missing:
            note(f"{path} has no column for {', '.join(missing)}; taken as not coded", strict=strict)
        present = [(c, where[n]) for c, n in zip(self.aus.columns, self.aus, strict=True) if n in where]
        drop = len(header) - 1 if self.mask_occluded and len(header) >= _LEGACY_COLUMNS else None
        frames, values = read_codes(
            path, lines, [p for _, p in present], OCCURRENCE_CODES | _UNKNOWN,
            width=len(header), skip=1, strict=strict, drop=drop,
        )  # fmt: skip
        for i, (column, _) in enumerate(present):
            coded.add(column, frames, values[:, i])

    def _read_intensities(self, tree: Tree, session: Session, coded: LabelColumns, strict: bool) -> None:
        key = (session.subject, session.session)
        for number, name, column in zip(self.aus, self.aus.names, self.aus.intensity_columns, strict=True):
            path = tree.intensities.get((key, number))
            if path is not None:
                codes = INTENSITY_CODES | _UNKNOWN
                try:
                    frames, values = read_codes(path, read_lines(path), [1], codes, width=2, strict=strict)
                except DataError as error:
                    fail(str(error), strict=strict)
                    continue
                coded.add(column, frames, values[:, 0])
            elif session.labels is not None and number in tree.intensity_folders:
                path = tree.intensity_folders[number] / f"{'_'.join(key)}_{name}.csv"
                note(f"{path} is missing; the intensity of {name} is taken as not coded there", strict=strict)


def _text(path: Path | None, raw: Path) -> str | None:
    return None if path is None else archives.relative(path, raw)


def _find_columns(path: Path, header: list[str]) -> dict[int, int]:
    """AU number → column. The first release has columns 0 … 99, where column N is AU N; later ones name some 35 AUs."""
    if len(header) >= _LEGACY_COLUMNS:
        if header != [str(n) for n in range(len(header))]:
            raise DataError(f"{path}, line 1: expected the header 0,1,2,…,{len(header) - 1}")
        return {n: n for n in range(1, len(header))}
    names = [_AU_NAME.fullmatch(cell) for cell in header[1:]]
    numbers = [int(name[1]) for name in names if name]
    if not numbers or len(numbers) != len(names) or len(set(numbers)) != len(numbers):
        raise DataError(f"{path}, line 1: expected a header that names the frame and then every AU once")
    return {number: column for column, number in enumerate(numbers, 1)}


def _remark_base(labelled: NDArray[np.int64], images: dict[int, str], offset: int) -> None:
    """Evidence on the numbering, which copies of the corpus may differ in: into the report, and a warning if it fails."""
    last = int(labelled[-1])
    if images and last + offset not in images and last + offset - 1 in images:
        note(f"the last label row, frame {last}, has no image {last + offset}, while {last + offset - 1} is there: "
             "labels may be counted from 1; see the option frame_offset")  # fmt: skip
    base = "there is an image 0" if 0 in images else "there is no image 0"
    remark(f"{base}; the last label row {'has' if last + offset in images else 'lacks'} its image")


def _choose_offset(tree: Tree, raw: Path) -> int:
    """−1 if more recordings end with a label one past their last image than with a label of it, else 0."""
    past, level = 0, 0
    for key in sorted(set(tree.labels) & set(tree.frames)):
        images = index_images(tree.frames[key], raw)
        lines = read_lines(tree.labels[key])
        last = lines[-1].split(sniff_separator(lines))[0].strip() if lines else ""
        if images and last.isdecimal():
            past, level = past + (int(last) == max(images) + 1), level + (int(last) == max(images))
    note(f"frame_offset: labels end one past the last image in {past} sessions and level with it in {level}; "
         f"taken as {-1 if past > level else 0}")  # fmt: skip
    return -1 if past > level else 0


def _read_points(path: Path | None, numbers: list[int], strict: bool) -> dict[int, NDArray[np.float32]]:
    """Image number → its 49 points, flat, from pixel 0; without those that the file lacks."""
    if path is None:
        return {}
    try:
        points = read_matlab_points(archives.read_bytes(path))
    except DataError as error:
        note(f"{path}: {error}", strict=strict)
        return {}
    # An entry for each image, in order; of a recording that lacks images, by number.
    names = sorted(numbers) if len(points) == len(numbers) else list(range(len(points)))
    return {n: p for n, p in zip(names, points, strict=True) if p is not None}


def read_matlab_points(data: bytes) -> list[NDArray[np.float32] | None]:
    """The 49 points of each frame, (98,) float32 x and y interleaved from pixel 0, of a MATLAB 7.3 file (HDF5) `fit/pred`.

    MATLAB stores arrays transposed, a struct's field as references to arrays, and an empty array as its two sizes; the
    points are counted from 1. Raises DataError for another file.
    """
    import h5py

    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            pred = file["fit"]["pred"][()]
            if pred.dtype == h5py.ref_dtype:
                frames = [file[reference][()] for reference in pred.ravel()]
            else:
                frames = list(pred)
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, IndexError) as error:
        raise DataError(f"no landmarks (MATLAB 7.3, fit/pred) can be read: {' '.join(str(error).split())}") from None
    return [_from_matlab(np.asarray(frame)) for frame in frames]


def _from_matlab(frame: NDArray[Any]) -> NDArray[np.float32] | None:
    if frame.shape not in ((2, 49), (49, 2)) or not np.issubdtype(frame.dtype, np.number):
        return None
    points = frame.T if frame.shape == (2, 49) else frame
    return np.ascontiguousarray(points, np.float32).ravel() - 1
