"""A checkpoint directory → AUs of any video, one row per frame, with the landmarker and alignment it was trained with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from aupipe import schema
from aupipe.align import align
from aupipe.checkpoint import Description, load_checkpoint
from aupipe.config import ALIGN_SIZE
from aupipe.facs import AUSet
from aupipe.landmarks import Follower, load_landmarker
from aupipe.models import AUOutput
from aupipe.models._sequences import CHUNK, Stream, infer, is_temporal
from aupipe.pixels import read_middle
from aupipe.schema import DataError
from aupipe.video import Video, VideoFrame

THRESHOLD = 0.5


@dataclass(frozen=True, slots=True)
class AUPredictor:
    """A model with everything that it needs to read a video."""

    model: nn.Module
    description: Description

    @classmethod
    def load(cls, directory: Path | str) -> AUPredictor:
        """Raises DataError for a damaged checkpoint, absent assets, or other face models than it was trained with."""
        model, description = load_checkpoint(Path(directory))
        if description.landmarker["name"] in ("supplied", "prealigned"):
            raise DataError(
                f"the checkpoint {directory} was trained on faces placed by what came with its corpus "
                f"({description.landmarker['name']}), which no video has; train on `landmarks: blazemesh` to predict videos"
            )
        landmarker = load_landmarker(description.landmarker["name"])
        if landmarker.fingerprint != description.landmarker["fingerprint"]:
            raise DataError(
                f"the checkpoint {directory} was trained on faces found by other models than those of this installation; "
                "run `aupipe assets` to fetch the right ones, or train anew with `dvc repro`"
            )
        return cls(model, description)

    @property
    def aus(self) -> AUSet:
        return self.description.au_set

    def predict(self, video: Path | str, progress: Callable[[int, int | None], None] | None = None) -> pa.Table:
        """All rows of `stream` in one table. Raises DataError for a file that is no video or shows no face at all."""
        return pa.concat_tables(self.stream(video, progress))

    def stream(self, video: Path | str, progress: Callable[[int, int | None], None] | None = None) -> Iterator[pa.Table]:
        """Rows in the columns of OpenFace, in chunks of constant size: frame (from 1), face_id, timestamp (s), confidence,
        success (0/1), status, AUxx_p and AUxx_c, which are null where no face was found.

        A temporal model reads the video as one sequence of frames in their order, whatever their times; its rows lag behind
        by the frames after a frame that it must see (`Stream.latency`). A frame without a face is zeros in it, as in
        training. A frame that the decoder had to patch up is `unreadable` and counts as one without: it may show a face, but
        one that is partly made up, and no model was trained on such; the pictures of a corpus are read in the same way.

        `progress(done, expected)` is called after each chunk read. Raises DataError at the end if no frame had a face.
        """
        source, rows = Video(Path(video)), _Rows(self)
        faces, done = map(rows.find, source), 0
        while chunk := list(islice(faces, CHUNK)):
            table = rows.push(chunk)
            done += len(chunk)
            if progress:
                progress(done, source.frame_count)
            if table.num_rows:
                yield table
        if (table := rows.close()).num_rows:
            yield table
        if not rows.found:
            damaged = f" ({rows.damaged} of them damaged)" if rows.damaged else ""
            raise DataError(
                f"no face was found in any of the {done} frames{damaged} of {video}; a face must be wider than about an "
                "eighth of the frame: crop the video around it and try again"
            )

    def predict_faces(self, faces_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Aligned faces (N, H, W, 3) uint8 RGB, of the checkpoint's alignment → probabilities (N, M).

        Temporal models read them as one sequence of consecutive frames. Raises DataError for another shape or type.
        """
        size = ALIGN_SIZE[self.description.input.align]
        faces = np.asarray(faces_NHWC)
        if faces.shape[1:] != (size, size, 3) or faces.dtype != np.uint8:
            raise DataError(f"expected faces of shape (N, {size}, {size}, 3) uint8, got {faces.shape} {faces.dtype}")
        if not len(faces):
            return np.zeros((0, len(self.aus)), np.float32)
        output = infer(self.model, (self._read(faces[i : i + CHUNK]) for i in range(0, len(faces), CHUNK)), CHUNK)
        return output.logits_BTM[0].float().sigmoid().numpy()

    def _read(self, faces_NHWC: NDArray[np.uint8]) -> Tensor:
        """Aligned faces as frames_BTCHW of one sequence."""
        return read_middle(torch.from_numpy(np.ascontiguousarray(faces_NHWC)), self.model, self.description.input)[None]


@dataclass(frozen=True, slots=True)
class _Row:
    """What stays of a frame while its row waits for probabilities."""

    index: int
    time_s: float
    status: str
    confidence: float


@dataclass(slots=True)
class _Rows:
    """A video's rows in the making: its frames go in, rows whose probabilities are final come out, in order."""

    predictor: AUPredictor
    found: int = 0  # frames with a face so far
    damaged: int = 0  # frames that the decoder patched up
    _waiting: list[_Row] = field(default_factory=list)
    _follower: Follower = field(default_factory=Follower)
    _stream: Stream = field(init=False)

    def __post_init__(self) -> None:
        self._stream = Stream(self.predictor.model, CHUNK)

    def find(self, frame: VideoFrame) -> NDArray[np.uint8] | None:
        """The aligned face that the video is about; its row waits for probabilities."""
        status, confidence, aligned = schema.NO_FACE, 0.0, None
        spec = self.predictor.description
        if frame.damaged:
            status = schema.UNREADABLE
            self.damaged += 1
        elif face := self._follower.choose(load_landmarker(spec.landmarker["name"]).find_faces(frame.image)):
            confidence = face.confidence
            try:
                status, aligned = schema.OK, align(spec.input.align, frame.image, face.landmarks).image
                self.found += 1
            except DataError:
                status = schema.BAD_LANDMARKS
        self._waiting.append(_Row(frame.index, frame.time_s, status, confidence))
        return aligned

    def push(self, faces: list[NDArray[np.uint8] | None]) -> pa.Table:
        """The rows that are final now that the faces of the next frames are known."""
        if is_temporal(self.predictor.model):
            size = ALIGN_SIZE[self.predictor.description.input.align]
            black = np.zeros((size, size, 3), np.uint8)
            sequence = np.stack([black if face is None else face for face in faces])
            return self._finish(self._stream.push(self.predictor._read(sequence)))
        # each frame alone: those without a face need not be read
        probs_NM = np.full((len(faces), len(self.predictor.aus)), np.nan, np.float32)
        if ok := [i for i, face in enumerate(faces) if face is not None]:
            probs_NM[ok] = self.predictor.predict_faces(np.stack([face for face in faces if face is not None]))
        return self._table(probs_NM)

    def close(self) -> pa.Table:
        """The rows that are left at the end of the video."""
        return self._finish(self._stream.close())

    def _finish(self, output: AUOutput | None) -> pa.Table:
        if output is None:
            return self._table(np.zeros((0, len(self.predictor.aus)), np.float32))
        return self._table(output.logits_BTM[0].float().sigmoid().numpy())

    def _table(self, probs_NM: NDArray[np.float32]) -> pa.Table:
        """The first rows that wait, with their probabilities, which are null without a face."""
        rows, self._waiting = self._waiting[: len(probs_NM)], self._waiting[len(probs_NM) :]
        ok = np.array([row.status == schema.OK for row in rows], bool)
        columns: dict[str, Any] = {
            "frame": pa.array([row.index + 1 for row in rows], pa.int64()),
            "face_id": pa.array([0] * len(rows), pa.int32()),
            "timestamp": pa.array([round(row.time_s, 6) for row in rows], pa.float64()),
            "confidence": pa.array([round(row.confidence, 4) for row in rows], pa.float64()),
            "success": pa.array(ok.astype(np.int8)),
            "status": pa.array([row.status for row in rows], pa.string()),
        }
        for name, values in zip(self.predictor.aus.probability_columns, probs_NM.T, strict=True):
            columns[name] = pa.array(values, pa.float32(), mask=~ok)
        for name, values in zip(self.predictor.aus.columns, probs_NM.T, strict=True):
            columns[name] = pa.array((values >= THRESHOLD).astype(np.int8), mask=~ok)
        return pa.table(columns)


def write_csv(tables: Iterable[pa.Table], path: Path) -> int:
    """Write tables of rows as one CSV, which appears whole or not at all; return the number of rows. Nulls are empty."""
    from pyarrow import csv

    rows = 0
    with schema.replacing(path) as temporary, temporary.open("wb") as file:
        for table in tables:
            csv.write_csv(table, file, csv.WriteOptions(include_header=rows == 0, quoting_style="none"))
            rows += table.num_rows
    return rows
