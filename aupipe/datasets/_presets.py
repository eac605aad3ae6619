"""How tools and people name the columns of a table with one row per frame."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

OCCURRENCE, INTENSITY, PROBABILITY, LEVEL = "occurrence", "intensity", "probability", "level"
_KINDS = {
    "occ": OCCURRENCE, "c": OCCURRENCE, "": OCCURRENCE,
    "int": INTENSITY, "intensity": INTENSITY, "r": INTENSITY,
    "prob": PROBABILITY, "p": PROBABILITY,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class AUColumn:
    """What a column says: of which AU, in which measure, and for which side of the face ("" for the whole)."""

    au: int
    measure: str
    side: str


@dataclass(frozen=True, slots=True)
class Preset:
    """One tool's tables. Names are lower case, the first that is there counts.

    patterns: of AU columns, with the groups au, kind and side. measure: of columns whose pattern has no kind.
    time: names of the column of times → seconds per unit. base: the number of a video's first frame. positional: whether
    the numbers count frames, so that in a folder of images, too, they are positions and not names.
    """

    patterns: tuple[str, ...]
    frame: tuple[str, ...] = ("frame",)
    time: Mapping[str, float] = field(default_factory=dict)
    media: tuple[str, ...] = ("media_id",)
    face: tuple[str, ...] = ("face_id",)
    valid: tuple[str, ...] = ("valid",)
    unknown: frozenset[str] = frozenset()
    measure: str = OCCURRENCE
    base: int = 0
    positional: bool = False
    landmarks: bool = False
    tool: bool = False

    def parse_column(self, name: str) -> AUColumn | None:
        """What a column of that name says, or None for one that is not of an AU."""
        for pattern in self.patterns:
            match = re.fullmatch(pattern, name, re.IGNORECASE | re.ASCII)
            if match:
                groups = match.groupdict()
                measure = _KINDS[(groups.get("kind") or "").lower()] if "kind" in groups else self.measure
                return AUColumn(int(groups["au"]), measure, (groups.get("side") or "")[:1].upper())
        return None


PRESETS: dict[str, Preset] = {
    # Tables of one's own, and those that aupipe writes; PyAFAR's names are another spelling of them.
    "frame": Preset(
        patterns=(
            r"AU ?(?P<au>\d{1,2})(?:(?:_(?P<side>[LR]))?_(?P<kind>occ|int|prob|c|r|p))?",
            r"(?P<kind>occ|int)_au_?(?P<au>\d{1,2})",
        ),
        time={"time_s": 1.0},
        media=("media_id", "image_path", "path", "name"),
        valid=("valid", "success"),
    ),
    # RecorderCSV.cpp of OpenFace 2: frames from 1; a row with success = 0 has zeros for AUs, which nobody has seen.
    "openface": Preset(
        patterns=(r"AU(?P<au>\d{2})_(?P<kind>[crp])",),
        face=("face_id", "face"),
        valid=("success",),
        base=1,
        positional=True,
        landmarks=True,
    ),
    "pyfeat": Preset(
        patterns=(r"AU(?P<au>\d{1,2})",),
        media=("media_id", "input"),
        face=("identity", "face_id"),
        measure=PROBABILITY,
        positional=True,
        landmarks=True,
    ),
    # frame_time_in_ms holds seconds in some versions, so the numbers are used; the training lists have image_path.
    "libreface": Preset(
        patterns=(r"au_?(?P<au>\d{1,2})(?:_(?P<kind>intensity))?",),
        frame=("frame_idx", "frame"),
        media=("media_id", "image_path"),
        positional=True,
    ),
    "facereader": Preset(
        patterns=(r"Action Unit (?P<au>\d{1,2})(?: - .*?)?(?: - (?P<side>Left|Right))?",),
        frame=(),
        time={"video time": 1.0},
        unknown=frozenset({"fit_failed", "find_failed"}),
        measure=LEVEL,
        tool=True,
    ),
}  # fmt: skip
