"""Aff-Wild2: a folder of cropped faces per video, and a label file whose rows are its frames.

    cropped_aligned/VIDEO/00001.jpg         112 × 112, from 1; in several batches and roots; missing where no face was found
    6th ABAW Annotations/AU_Detection_Challenge/Train_Set/VIDEO.txt     or annotations/AU_Set/…: of any ABAW challenge
    training_set_annotations.txt            of a multi-task one: VIDEO/00001.jpg,valence,arousal,expression,AU1,AU2,…
    names_of_videos_in_each_test_set/…      names alone; the labels of the test set are not released
    batch1/VIDEO.mp4                        the videos themselves, read where there are no crops

A label file has a header, AU1,AU2,…, and then a row per frame: row k is image k. −1 is not coded, usually a whole row. Two
faces of one video are VIDEO_left and VIDEO_right. The people have no names, so a face of a video stands for its subject;
both faces of it are one group and stay together.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from aupipe import archives
from aupipe.datasets import Partition, Session, note, tabulate
from aupipe.datasets._affwild2_labels import Table, read_frame_rows, read_multi_task
from aupipe.datasets._affwild2_tree import (
    choose_edition,
    divide,
    find_crops,
    find_test_names,
    find_videos,
    strip_suffix,
)
from aupipe.datasets._notes import remark
from aupipe.datasets._tables import NULL, Kept, LabelColumns, check_overlap, frame_columns, index_images, list_video
from aupipe.facs import AU_SETS, AUSet
from aupipe.schema import ConfigError, DataError

Labels = dict[str, tuple[str, Path]]


@dataclass(slots=True)
class _Tree:
    """By name of video: side of the official split and label file; the rows of multi-task files; crops; the video file."""

    labels: Labels = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    crops: dict[str, Path] = field(default_factory=dict)
    videos: dict[str, Path] = field(default_factory=dict)
    test: frozenset[str] = frozenset()

    def two_faced(self) -> set[str]:
        """Videos of which more than one face is a session, so that the video alone does not say whose it is."""
        return {strip_suffix(name) for name in self.labels.keys() | self.crops.keys() if strip_suffix(name) != name}


class Dataset:
    """The Aff-Wild2 layout, by default with its twelve AUs.

    annotations: a part of the path of the annotations to read, where there are several; by default those of the latest
    challenge, multi-task ones last. media: crops, or videos, each with the other where a video lacks it. coded_only: leave
    out images without a label row, and videos without labels.
    """

    published: Partition | None = None  # the official sides are in the manifest's column `split`
    landmark_scheme: str | None = None

    def __init__(
        self, aus: AUSet | None = None, *, annotations: str | None = None, media: str = "crops", coded_only: bool = False
    ) -> None:
        if media not in ("crops", "videos"):
            raise ConfigError(f"affwild2: the option media is crops or videos, not {media!r}")
        if not isinstance(annotations, str | None):
            raise ConfigError(f"affwild2: the option annotations is a part of a path, not {annotations!r}")
        self.aus = aus or AU_SETS["affwild2"]
        self.annotations, self.media, self.coded_only = annotations, media, coded_only
        self._tree = Kept(self._look)

    def sessions(self, raw: Path, *, strict: bool = False) -> list[Session]:
        """Every video that has labels, crops or a file, with its official side, train, val or test, where it has one."""
        tree = self._tree.look(raw, strict)
        media = self._choose_media(tree)
        _report_halves(tree, media, strict)
        sides = dict.fromkeys(tree.test, "test") | {name: side for name, (side, _) in tree.labels.items()}
        paths = {name: path for name, (_, path) in tree.labels.items()}
        names = sorted(paths if self.coded_only else paths.keys() | media.keys())
        if left_out := media.keys() - set(names):
            remark(f"{len(left_out)} videos without labels left out (coded_only)")
        return [
            Session(n, n, _text(paths.get(n), raw), _text(media.get(n), raw), group=strip_suffix(n), split=sides.get(n))
            for n in names
        ]

    def read_session(self, raw: Path, session: Session, *, strict: bool = False) -> pa.Table:
        """One row per frame that has a label row or an image; frame k is row k and image k. Raises DataError."""
        coded, labelled = LabelColumns(), np.empty(0, np.int64)
        if session.labels is not None:
            path = raw / session.labels
            table = self._tree.of(raw).tables.get(session.session) or read_frame_rows(path)
            labelled = table.frames
            self._add_columns(coded, table, path, strict)
        source, is_video = self._list_frames(raw, session, labelled, strict)
        numbers = np.array(list(source), np.int64)
        if session.labels is not None:
            _compare(path, table, numbers, is_video, strict)
        frames = np.union1d(numbers, labelled)
        if self.coded_only and session.labels is not None:
            remark(f"{len(frames) - len(labelled)} images without a label row left out (coded_only)")
            frames = labelled
        columns: dict[str, Any] = {
            **frame_columns(frames, source, is_video=is_video),
            **coded.spread(self.aus.columns, frames),
        }
        return tabulate(self, session, columns)

    def _look(self, raw: Path, strict: bool) -> _Tree:
        tree = _Tree(crops=find_crops(raw), videos=find_videos(raw), test=find_test_names(raw))
        edition = choose_edition(raw, self.annotations)
        if edition is None:
            files = "folder AU_Detection_Challenge or AU_Set, and no training_set_annotations.txt"
            note(f"no annotations of AUs in {raw}: there is no {files}", strict=strict)
        elif edition.multi_task:
            tree.labels, tree.tables = _read_multi_task(edition.files, strict)
        else:
            tree.labels = divide(edition.files)
        return tree

    def _choose_media(self, tree: _Tree) -> dict[str, Path]:
        """Video → its crops or its file. The file of a video with two faces would show both, and is nobody's."""
        two_faced = tree.two_faced()
        videos = {name: path for name, path in tree.videos.items() if name not in two_faced}
        return tree.crops | videos if self.media == "videos" else videos | tree.crops

    def _list_frames(
        self, raw: Path, session: Session, labelled: NDArray[np.int64], strict: bool
    ) -> tuple[dict[int, str], bool]:
        """Frame, counted from 1 → its source; and whether that is a video."""
        if session.frames is None:
            return {}, False
        path = raw / session.frames
        if path != self._tree.of(raw).videos.get(session.session):
            return index_images(path, raw, strict=strict), False
        return dict.fromkeys(list_video(path, labelled, strict=strict), session.frames), True

    def _add_columns(self, coded: LabelColumns, table: Table, path: Path, strict: bool) -> None:
        missing = [name for name, au in zip(self.aus.names, self.aus, strict=True) if au not in table.aus]
        if missing:
            note(f"{path} has no column for {', '.join(missing)}; taken as not coded", strict=strict)
        for column, au in zip(self.aus.columns, self.aus, strict=True):
            if au in table.aus:
                coded.add(column, table.frames, table.codes[:, table.aus.index(au)])
        unknown = table.codes == NULL
        if mixed := int((unknown.any(1) & ~unknown.all(1)).sum()):
            note(f"{path}: {mixed} rows are −1 in some AUs and not in others; usually it is all", strict=strict)


def _read_multi_task(files: Collection[tuple[str, archives.Entry]], strict: bool) -> tuple[Labels, dict[str, Table]]:
    labels: Labels = {}
    tables: dict[str, Table] = {}
    for side, entry in files:
        for video, table in read_multi_task(entry.path, strict=strict).items():
            if video in labels:
                raise DataError(
                    f"the video {video} is on both sides of the split: {labels[video][1]} and {entry.path}; remove one"
                )
            labels[video], tables[video] = (side, entry.path), table
    return labels, tables


def _report_halves(tree: _Tree, media: dict[str, Path], strict: bool) -> None:
    """Labels without media, media without labels, and faces on both sides of the official split."""
    shared = tree.two_faced() & tree.videos.keys()
    if bare := sorted(tree.labels.keys() - media.keys()):
        both = sum(strip_suffix(name) in shared for name in bare)
        hint = f"; {both} of them are one of two faces in a video, for which the official crops are needed" if both else ""
        note(f"{len(bare)} videos have labels and no images: {', '.join(bare[:3])} …{hint}", strict=strict)
    if unlabelled := sorted(media.keys() - tree.labels.keys() - tree.test):
        note(f"{len(unlabelled)} videos have no labels and are not of the test set: {', '.join(unlabelled[:3])} …")
    sides: dict[str, set[str]] = {}
    for name, (side, _) in tree.labels.items():
        sides.setdefault(strip_suffix(name), set()).add(side)
    if leaks := sorted(name for name, both_sides in sides.items() if len(both_sides) > 1):
        note(f"faces of one video are on both sides of the official split: {', '.join(leaks)}", strict=strict)
    if known := sorted(tree.test & tree.labels.keys()):
        note(f"{len(known)} videos of the test set have labels: {', '.join(known[:3])} …", strict=strict)


def _compare(path: Path, table: Table, numbers: NDArray[np.int64], is_video: bool, strict: bool) -> None:
    """Rows against images. Crops lack the frames in which no face was found, so of those only the ends are compared."""
    if not len(numbers):
        return
    if is_video:
        check_overlap(str(path), table.frames, numbers, strict=strict)
        return
    if numbers[0] == 0:
        note(
            f"{path}: there is an image 0, though crops count from 1; images and rows may not belong together", strict=strict
        )
    coded = table.frames[(table.codes != NULL).any(1)]
    if (beyond := int((coded > numbers[-1]).sum())) > max(2, 0.005 * len(table.frames)):
        note(f"{path}: {beyond} of {len(table.frames)} rows are coded beyond the last image, {numbers[-1]}", strict=strict)
    missing, extra = (len(np.setdiff1d(*pair)) for pair in ((table.frames, numbers), (numbers, table.frames)))
    remark(f"{missing} of {len(table.frames)} label rows have no crop, {extra} crops have no row")


def _text(path: Path | None, raw: Path) -> str | None:
    return None if path is None else archives.relative(path, raw)
