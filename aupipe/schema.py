"""What every table on disk and every batch in memory looks like, and the two errors a user can meet.

Shape letters, used as suffixes of array names throughout the package:
B clips · T frames · C channels · H W pixels · h w attention map · M AUs · K landmarks · D width · N any frames

Labels are null on disk and a mask in memory: a corpus's own codes for "not coded" (9, −1, 999) end in its reader.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from aupipe.facs import AUSet


logger = logging.getLogger(__name__)


class ConfigError(Exception):
    """The user asked for something that cannot be: one sentence with what, where and the next command."""


class DataError(Exception):
    """A file is missing, damaged or not what it should be: one sentence with what, where and the next command."""


# One row for every frame that has a label or an image; these say what became of it.
OK, NO_FACE, BAD_LANDMARKS, UNREADABLE, MISSING = STATUSES = ("ok", "no_face", "bad_landmarks", "unreadable", "missing")

ROW_GROUP = 64  # frames: a random clip of 48 then costs at most two row groups

_FRAME_FIELDS = [
    pa.field("subject", pa.string(), nullable=False),
    pa.field("session", pa.string(), nullable=False),
    pa.field("frame", pa.int32(), nullable=False),  # the number in the corpus's label file
]


# Where a frame comes from, and what its corpus says of its subject; null where it says nothing.
_ORIGIN_FIELDS = [
    pa.field("source", pa.string()),  # POSIX path relative to the raw root; `path.zip::member` inside a zip
    pa.field("index", pa.int32()),  # 0-based position in decoding order within a video; null for image files
    pa.field("group", pa.string()),  # subjects of one group stay on one side of a fold; null: the subject alone
    pa.field("split", pa.string()),  # the official side: train, val or test
    pa.field("part", pa.string()),  # the part of a partition that came with the data
]


def _label_fields(aus: AUSet) -> list[pa.Field]:
    return [pa.field(c, pa.int8()) for c in aus.columns] + [pa.field(c, pa.float32()) for c in aus.intensity_columns]


def inventory_schema() -> pa.Schema:
    """Every file under a raw root: path relative to it (POSIX separators), bytes, modification time in ns."""
    return pa.schema([("path", pa.string()), ("size", pa.int64()), ("mtime_ns", pa.int64())])


def manifest_schema(aus: AUSet) -> pa.Schema:
    """One row per frame that has a label or an image; `source` is null where there is no image.

    `landmarks` are those that came with the corpus, (x, y) interleaved in source pixels from 0; their number tells the
    scheme. Null where none were asked for or none are there.
    """
    landmarks = pa.field("landmarks", pa.list_(pa.float32()))
    return pa.schema([*_FRAME_FIELDS, *_ORIGIN_FIELDS, landmarks, *_label_fields(aus)])


def shard_schema(aus: AUSet, alignments: tuple[str, ...]) -> pa.Schema:
    """One row per frame of one session: status, who found the face and how sure, one JPEG and warp per alignment, labels.

    `landmarks` are the 49 points (x, y interleaved) in source pixels; `<align>_warp` the 2×3 map from source to aligned
    pixels in row-major order, which takes the landmarks along. They are null, like the JPEG, where status is not ok (and
    a prealigned face has no landmarks); that is why the lists are not of a fixed size, which Arrow cannot read back from
    Parquet where one is null (apache/arrow#35692).
    """
    faces = []
    for align in alignments:
        faces += [pa.field(align, pa.binary()), pa.field(f"{align}_warp", pa.list_(pa.float32()))]
    return pa.schema(
        [
            *_FRAME_FIELDS,
            *_ORIGIN_FIELDS,
            pa.field("time_s", pa.float64()),  # time stamp of a video's frame, from the file
            pa.field("mode", pa.string()),  # how the image is stored: "rgb", "grey16", "cmyk", "palette", "video", …
            pa.field("status", pa.string(), nullable=False),
            pa.field("landmarker", pa.string()),  # who found the face: supplied, prealigned, or a landmarker's name
            pa.field("confidence", pa.float32()),  # of that landmarker; null where the corpus supplied the points
            pa.field("n_faces", pa.int32()),  # that the landmarker found in the image; null where it did not look
            pa.field("face_px", pa.float32()),  # longer side of the box around the 49 points, in source pixels
            pa.field("landmarks", pa.list_(pa.float32())),
            *faces,
            *_label_fields(aus),
        ]
    )


def predictions_schema(aus: AUSet) -> pa.Schema:
    """One row per evaluated frame: truth `AUxx_c`, null if not coded, and probability `AUxx_p`, null without a face."""
    truth = [pa.field(c, pa.int8()) for c in aus.columns]
    ours = [pa.field(c, pa.float32()) for c in aus.probability_columns]
    return pa.schema([*_FRAME_FIELDS, pa.field("status", pa.string(), nullable=False), *truth, *ours])


@dataclass(frozen=True, slots=True)
class Batch:
    """Clips as they travel to the device: whole aligned faces, uint8, with the crop still to be taken there.

    frames_BTHWC uint8 RGB, a tensor where it is pinned or on the device already · labels_BTM float32 (0 where masked) ·
    mask_BTM bool · crop_B2 int (top, left) ·
    mirror_B bool · seed_B what further random changes are drawn from · clip_B the row of the clip plan · real_BT bool,
    False for frames that only fill a short clip · features_BTMD float32, computed once, instead of frames, which then have
    no pixels · intensity_BTM float32 0–5, NaN where not coded, None unless asked for.
    """

    frames_BTHWC: NDArray[np.uint8]
    labels_BTM: NDArray[np.float32]
    mask_BTM: NDArray[np.bool_]
    crop_B2: NDArray[np.int64]
    mirror_B: NDArray[np.bool_]
    seed_B: NDArray[np.int64]
    clip_B: NDArray[np.int64]
    real_BT: NDArray[np.bool_]
    intensity_BTM: NDArray[np.float32] | None = None
    features_BTMD: NDArray[np.float32] | None = None

    def part(self, clips: slice) -> Batch:
        """Some of its clips."""
        values = (getattr(self, one.name) for one in fields(self))
        return Batch(*(None if value is None else value[clips] for value in values))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class LabelStats:
    """What a model may know of the labels: the train side's rates, correlations and counts of coded frames."""

    rate_M: NDArray[np.float64]
    pearson_MM: NDArray[np.float64]
    n_M: NDArray[np.int64]

    def to_json(self) -> dict[str, Any]:
        # JSON has no NaN: an undefined rate or correlation travels as null.
        rate, pearson = (np.ma.masked_invalid(values).tolist() for values in (self.rate_M, self.pearson_MM))
        return {"rate": rate, "pearson": pearson, "n": self.n_M.tolist()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> LabelStats:
        # float dtype turns None into NaN
        rate, pearson = np.array(values["rate"], float), np.array(values["pearson"], float)
        return cls(rate, pearson, np.array(values["n"], np.int64))


def au_weights(rate_M: NDArray[np.floating]) -> NDArray[np.float64]:
    """STRAL eq. 1: w_j = (1/o_j) / Σ_k (1/o_k), which sums to 1. An AU without a positive gets weight 0.

    Raises DataError if no AU has a positive.
    """
    rate = np.asarray(rate_M, float)
    seen = rate > 0
    if not seen.any():
        raise DataError("no AU has a positive on the train side, so nothing can be learned; check the labels and the fold")
    if not seen.all():
        logger.warning("AUs at positions %s have no positive on the train side: weight 0", np.flatnonzero(~seen).tolist())
    inverse = np.divide(1.0, rate, out=np.zeros_like(rate), where=seen)
    return inverse / inverse.sum()


class replacing:
    """Context manager: write to a neighbour of `path`, which takes its name only if the block ends without an error."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")

    def __enter__(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self.temporary

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            os.replace(self.temporary, self.path)
        else:
            self.temporary.unlink(missing_ok=True)


def write_table(table: pa.Table, path: Path, **options: Any) -> None:
    """Write Parquet in small row groups; the file appears whole or not at all. The same table gives the same bytes.

    Raises DataError where it cannot be written.
    """
    parts = (table.slice(start, ROW_GROUP) for start in range(0, table.num_rows, ROW_GROUP))
    write_stream(parts, table.schema, path, **options)


def write_stream(tables: Iterable[pa.Table], layout: pa.Schema, path: Path, **options: Any) -> None:
    """As `write_table`, of a table that comes in parts, one row group each, of which one is in memory at a time."""
    try:
        with replacing(path) as temporary, pq.ParquetWriter(temporary, layout, **options) as writer:
            for table in tables:
                writer.write_table(table, row_group_size=ROW_GROUP)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}; make room or mend it and run it again") from None


def write_text(text: str, path: Path) -> None:
    """Write UTF-8 text; the file appears whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_table(path: Path, made_by: str) -> pa.Table:
    """A whole table. Raises DataError where it is absent or damaged, naming the stage that makes it."""
    try:
        return pq.read_table(path)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; run `dvc repro {made_by}`") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} is damaged ({error}); delete it and run `dvc repro {made_by}`") from None


def read_json(path: Path, made_by: str) -> Any:
    """A JSON file. Raises DataError where it is absent or damaged, naming the stage that makes it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; run `dvc repro {made_by}`") from None
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); delete it and run `dvc repro {made_by}`") from None


def inside(root: Path, relative: str) -> Path:
    """`root / relative`, refused with a DataError if that would lie outside `root`; links that the user set are followed."""
    path = Path(os.path.normpath(root / relative))
    if not path.is_relative_to(os.path.normpath(root)):
        raise DataError(f"the path '{relative}' leads out of {root}; rebuild the manifest with `dvc repro manifest`")
    return path


def label_arrays(table: pa.Table, aus: AUSet) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Occurrence labels (N, M) float32 with 0 where not coded, and the mask (N, M) that says where they are coded."""
    columns = [table[c].combine_chunks() for c in aus.columns]
    labels = [c.fill_null(0).to_numpy(zero_copy_only=False) for c in columns]
    masks = [c.is_valid().to_numpy(zero_copy_only=False) for c in columns]
    return np.stack(labels, 1).astype(np.float32), np.stack(masks, 1)


def intensity_array(table: pa.Table, aus: AUSet) -> NDArray[np.float32]:
    """Intensities (N, M) float32, 0–5, NaN where not coded."""
    columns = [table[c].combine_chunks() for c in aus.intensity_columns]
    return np.stack([c.fill_null(np.nan).to_numpy(zero_copy_only=False) for c in columns], 1).astype(np.float32)


def iter_sessions(manifest: pa.Table) -> Iterator[pa.Table]:
    """The consecutive slices of a manifest that hold one session each."""
    if manifest.num_rows == 0:
        return
    keys = np.char.add(
        np.char.add(manifest["subject"].to_numpy(zero_copy_only=False).astype(str), "/"),
        manifest["session"].to_numpy(zero_copy_only=False).astype(str),
    )
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
    for start, stop in zip(starts, np.r_[starts[1:], len(keys)], strict=True):
        yield manifest.slice(int(start), int(stop - start))
