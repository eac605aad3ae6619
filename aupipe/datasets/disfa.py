"""DISFA: one video per subject and camera, and a file of intensities for each subject and AU.

    Videos_LeftCamera/LeftVideoSN001_comp.avi       also Video_RightCamera/RightVideoSN001_Comp.avi
    LeftVideoSN001_comp/00001.png or SN001/0.png    frames that somebody extracted, counted from 1 or from 0
    ActionUnit_Labels/SN001/SN001_au1.txt           no header; frame from 1, intensity 0–5
    Landmark_Points/SN001/frame_lm/SN001_0000_lm.mat, l00001_lm.mat     MATLAB 5: `pts`, 66 points counted from 1

Copies differ in singular and plural, case and nesting, and all of it may still be in its zips. An AU occurs from intensity 2
on, as in the published tables. The people before both cameras are the same, and among them are those of DISFA+.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from aupipe import archives
from aupipe.datasets import Layout, Partition, Session, note, tabulate
from aupipe.datasets._disfa_tree import Tree, find_tree, read_landmarks
from aupipe.datasets._notes import fail, remark
from aupipe.datasets._tables import (
    INTENSITY_CODES,
    Kept,
    LabelColumns,
    check_overlap,
    frame_columns,
    index_images,
    list_video,
    read_codes,
    read_lines,
)
from aupipe.facs import AU_SETS, AUSet
from aupipe.schema import ConfigError, DataError

_log = logging.getLogger(__name__)

# The three parts behind the published three-fold tables, one per line. JAA-Net's list files name a fold by the parts it
# trains on, ME-GraphAU's scripts number it, LibreFace's folders count backwards; the subjects are the same.
_PARTS = """\
SN002 SN010 SN001 SN026 SN027 SN032 SN030 SN009 SN016
SN013 SN018 SN011 SN028 SN012 SN006 SN031 SN021 SN024
SN003 SN029 SN023 SN025 SN008 SN005 SN007 SN017 SN004
"""
PUBLISHED = Partition(
    parts=tuple(frozenset(line.split()) for line in _PARTS.splitlines()),
    aliases={
        **{"jaanet-combine_1_2": 2, "jaanet-combine_1_3": 1, "jaanet-combine_2_3": 0},
        **{"megraphau-fold1": 2, "megraphau-fold2": 1, "megraphau-fold3": 0},
        **{"libreface-0": 2, "libreface-1": 1, "libreface-2": 0},
    },
)

# frame-12.jpg, SN001_0012.png
_IMAGE = re.compile(r"(?:.*\D)?(\d+)\.(?:jpe?g|png|bmp|tiff?|webp)", re.ASCII | re.IGNORECASE)

# Where the tracker of the supplied landmarks lost the face, first and last frame; JAA-Net leaves these 4,670 frames out.
LOST: dict[str, tuple[tuple[int, int], ...]] = {
    "SN001": ((398, 420), (3190, 3243)),
    "SN002": ((800, 826),),
    "SN004": ((4541, 4555),),
    "SN006": ((1349, 1405),),
    "SN009": ((1736, 1808), (1851, 1885)),
    "SN011": ((4529, 4533), (4830, 4845)),
    "SN021": ((574, 616), (985, 1164), (1190, 1205), (1305, 1338), (1665, 1710), (1862, 2477), (2554, 4657), (4710, 4722)),
    "SN023": ((1021, 1049), (3378, 3557), (3584, 3668), (4547, 4621), (4741, 4772), (4825, 4845)),
    "SN025": ((4596, 4662), (4816, 4835)),
    "SN027": ((3461, 3494), (4738, 4785)),
    "SN028": ((1875, 1885), (4571, 4690)),
    "SN029": ((4090, 4543),),
    "SN030": ((939, 962), (1406, 1422), (2100, 2132), (2893, 2955)),
}


class Dataset:
    """The DISFA layout; by default the eight AUs of the published tables, of the twelve that are coded.

    camera: left, which the published tables and the supplied landmarks are of, right, or both as two sessions of a subject.
    threshold: the intensity from which on an AU occurs. frame_base: the number of the first of extracted images, 0 or 1;
    auto takes 0 where there is an image 0. mask_lost: take the frames on which the supplied landmarks were lost as not
    coded, as JAA-Net does. landmarks: fill the manifest's column from Landmark_Points.
    """

    published: Partition | None = PUBLISHED
    landmark_scheme: str | None = "ibug66"

    def __init__(
        self,
        aus: AUSet | None = None,
        *,
        camera: str = "left",
        threshold: int = 2,
        frame_base: int | str = "auto",
        mask_lost: bool = False,
        landmarks: bool = False,
    ) -> None:
        if camera not in ("left", "right", "both"):
            raise ConfigError(f"disfa: the option camera is left, right or both, not {camera!r}")
        if landmarks and camera != "left":
            raise ConfigError("disfa: landmarks are supplied for the left camera alone; set the landmarks to blazemesh")
        if frame_base not in (0, 1, "auto") or isinstance(frame_base, bool):
            raise ConfigError(f"disfa: the option frame_base is 0, 1 or auto, not {frame_base!r}")
        self.aus = aus or AU_SETS["disfa"]
        self.cameras = ("left", "right") if camera == "both" else (camera,)
        self.threshold, self.frame_base = check_threshold("disfa", threshold), frame_base
        self.mask_lost, self.landmarks = mask_lost, landmarks
        self._tree = Kept(lambda raw, strict: find_tree(raw, self.cameras[0], strict=strict))

    def sessions(self, raw: Path, *, strict: bool = False) -> list[Session]:
        """Every recording that has a video, images or labels; a session is named by its camera."""
        tree = self._tree.look(raw, strict)
        keys = {key for key in tree.media if key[1] in self.cameras}
        seen, other = {who for who, _ in keys}, {who for who, _ in tree.media}
        if alone := sorted(set(tree.labels) - seen):
            hint = "; the other camera's are there, see the option camera" if set(alone) & other else ""
            note(f"{len(alone)} subjects have labels and no video or images: {', '.join(alone[:3])} …{hint}", strict=strict)
        if unlabelled := sorted(seen - set(tree.labels)):
            note(f"{len(unlabelled)} subjects have no labels: {', '.join(unlabelled[:3])} …")
        note_uncoded(self.aus, tree.labels, raw, strict=strict)
        keys |= {(who, self.cameras[0]) for who in alone}
        return [
            Session(who, camera, _text(_folder(tree.labels.get(who)), raw), _text(tree.media.get((who, camera)), raw))
            for who, camera in sorted(keys)
        ]

    def read_session(self, raw: Path, session: Session, *, strict: bool = False) -> pa.Table:
        """One row per frame that has a label or an image, numbered from 1 as in the labels. Raises DataError."""
        tree = self._tree.of(raw)
        files = tree.labels.get(session.subject, {}) if session.labels is not None else {}
        coded = read_intensities(self, self.threshold, files, coded_aus(tree.labels), session, strict=strict)
        labelled = coded.frames()
        if len(labelled) and labelled[0] < 1:
            raise DataError(f"{raw / str(session.labels)} has a frame 0, but DISFA's labels count from 1; add 1 to each")
        source, is_video = self._list_frames(raw, session, labelled, strict)
        numbers = np.array(sorted(source), np.int64)
        if len(labelled) and session.frames is not None:
            check_overlap(str(raw / str(session.labels)), labelled, numbers, strict=strict)
            if len(labelled) != len(numbers):
                message = f"{session.labels}: {len(labelled)} labelled frames, and {len(numbers)} in {session.frames}"
                _log.info("%s", message)
                remark(message)
        frames = np.union1d(numbers, labelled)
        columns: dict[str, Any] = {
            **frame_columns(frames, source, is_video=is_video),
            **self._spread(coded, session, frames),
        }
        if self.landmarks:
            points = self._read_landmarks(tree, session, strict)
            columns["landmarks"] = [points.get(n) for n in frames.tolist()]
        return tabulate(self, session, columns)

    def _spread(self, coded: LabelColumns, session: Session, frames: NDArray[np.int64]) -> dict[str, pa.Array]:
        """The label columns over `frames`, null where asked to on the frames on which the landmarks were lost."""
        columns = coded.spread((*self.aus.columns, *self.aus.intensity_columns), frames)
        ranges = LOST.get(session.subject, ()) if self.mask_lost else ()
        lost = np.zeros(len(frames), bool)
        for first, last in ranges:
            lost |= (frames >= first) & (frames <= last)
        if not lost.any():
            return columns
        remark(f"{int(lost.sum())} frames on which the supplied landmarks were lost are taken as not coded (mask_lost)")
        return {name: pc.if_else(pa.array(lost), pa.scalar(None, c.type), c) for name, c in columns.items()}

    def _list_frames(
        self, raw: Path, session: Session, labelled: NDArray[np.int64], strict: bool
    ) -> tuple[dict[int, str], bool]:
        """Frame, counted from 1 → its source; and whether that is a video."""
        if session.frames is None:
            return {}, False
        path = raw / session.frames
        if (session.subject, session.session) in self._tree.of(raw).videos:
            return dict.fromkeys(list_video(path, labelled, strict=strict), session.frames), True
        images = index_images(path, raw, name=_IMAGE, strict=strict)
        base = self.frame_base
        if base == "auto":
            base = 0 if 0 in images else 1
            if not {0, 1} & set(images):
                note(f"{path} has no image 0 or 1; taken as counted from 1, see the option frame_base", strict=strict)
        remark(f"images are numbered {min(images, default=0)} to {max(images, default=0)}; counted from {base}")
        return {number + 1 - int(base): source for number, source in images.items()}, False

    def _read_landmarks(self, tree: Tree, session: Session, strict: bool) -> dict[int, NDArray[np.float32]]:
        folder = tree.points.get(session.subject)
        if folder is None:
            note(f"there is no folder of landmarks of {session.subject}", strict=strict)
            return {}
        return read_landmarks(folder, strict=strict)


def check_threshold(layout: str, threshold: int) -> int:
    """The option, if it is an intensity. Raises ConfigError."""
    if threshold not in (1, 2, 3, 4, 5) or isinstance(threshold, bool):
        raise ConfigError(f"{layout}: the option threshold is an intensity from 1 to 5, not {threshold!r}")
    return threshold


def coded_aus(labels: Mapping[Any, Mapping[int, Path]]) -> set[int]:
    """The AUs that any recording has a label file of."""
    return {au for files in labels.values() for au in files}


def note_uncoded(aus: AUSet, labels: Mapping[Any, Mapping[int, Path]], raw: Path, *, strict: bool) -> None:
    """Say once which of the wanted AUs no recording has a file of."""
    absent = [name for name, au in zip(aus.names, aus, strict=True) if au not in coded_aus(labels)]
    if labels and absent:
        note(f"{raw} has no label file of {', '.join(absent)}; taken as not coded", strict=strict)


def read_intensities(
    dataset: Layout,
    threshold: int,
    files: Mapping[int, Path],
    known: Container[int],
    session: Session,
    *,
    read_rows: Callable[[Path], list[str]] = read_lines,
    strict: bool,
) -> LabelColumns:
    """Intensity and occurrence of the dataset's AUs, from the label file of each; its rows are "frame,intensity".

    An AU that has no file here, but is `known` elsewhere, is noted: it is not coded, which is not the same as absent. So is
    one whose file is malformed.
    """
    coded, lengths = LabelColumns(), {}
    columns = zip(dataset.aus, dataset.aus.names, dataset.aus.columns, dataset.aus.intensity_columns, strict=True)
    for au, name, occurrence, intensity in columns:
        path = files.get(au)
        if path is None:
            if files and au in known:
                note(f"{session.subject}/{session.session} has no label file of {name}; taken as not coded", strict=strict)
            continue
        try:
            frames, values = read_codes(path, read_rows(path), [1], INTENSITY_CODES, width=2, strict=strict)
        except DataError as error:
            fail(str(error), strict=strict)
            continue
        coded.add(intensity, frames, values[:, 0])
        coded.add(occurrence, frames, (values[:, 0] >= threshold).astype(np.int8))
        lengths[name] = len(frames)
    if len(set(lengths.values())) > 1:
        shortest, longest = min(lengths, key=lengths.__getitem__), max(lengths, key=lengths.__getitem__)
        counts = f"{lengths[longest]} rows of {longest}, but {lengths[shortest]} of {shortest}"
        note(f"{session.subject}/{session.session} has {counts}", strict=strict)
    return coded


def _folder(files: dict[int, Path] | None) -> Path | None:
    return next(iter(files.values())).parent if files else None


def _text(path: Path | None, raw: Path) -> str | None:
    return None if path is None else archives.relative(path, raw)
