"""A checkpoint directory → AUs of any video, one row per frame, with the landmarker and alignment it was trained with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import nn

from aupipe import schema
from aupipe.align import align
from aupipe.checkpoint import Description, load_checkpoint
from aupipe.config import ALIGN_SIZE
from aupipe.facs import AUSet
from aupipe.landmarks import Follower, load_landmarker
from aupipe.pixels import read_middle
from aupipe.schema import DataError
from aupipe.video import Video, VideoFrame

CHUNK = 64  # frames in memory at a time, and faces per forward pass
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

        `progress(done, expected)` is called after each chunk. Raises DataError at the end if no frame had a face.
        """
        source, follower = Video(Path(video)), Follower()
        frames, done, found = iter(source), 0, 0
        while chunk := list(islice(frames, CHUNK)):
            table = self._predict_chunk(chunk, follower)
            done, found = done + len(chunk), found + sum(table["success"].to_pylist())
            if progress:
                progress(done, source.frame_count)
            yield table
        if not found:
            raise DataError(
                f"no face was found in any of the {done} frames of {video}; a face must be wider than about an eighth of "
                "the frame: crop the video around it and try again"
            )

    def predict_faces(self, faces_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Aligned faces (N, H, W, 3) uint8 RGB, of the checkpoint's alignment → probabilities (N, M).

        Temporal models read them as consecutive frames of one clip. Raises DataError for another shape or type.
        """
        size = ALIGN_SIZE[self.description.input.align]
        faces = np.asarray(faces_NHWC)
        if faces.shape[1:] != (size, size, 3) or faces.dtype != np.uint8:
            raise DataError(f"expected faces of shape (N, {size}, {size}, 3) uint8, got {faces.shape} {faces.dtype}")
        spec, whole = self.description.input, torch.from_numpy(np.ascontiguousarray(faces))
        with torch.inference_mode():
            clips = (read_middle(part, self.model, spec)[None] for part in whole.split(CHUNK))
            parts = [self.model(clip).logits_BTM[0] for clip in clips] if len(faces) else []
        return torch.cat(parts).float().sigmoid().numpy() if parts else np.zeros((0, len(self.aus)), np.float32)

    def _predict_chunk(self, chunk: list[VideoFrame], follower: Follower) -> pa.Table:
        found = [self._find(frame.image, follower) for frame in chunk]
        ok = np.array([face is not None for _, _, face in found])
        probs = np.full((len(chunk), len(self.aus)), np.nan, np.float32)
        if ok.any():
            probs[ok] = self.predict_faces(np.stack([face for _, _, face in found if face is not None]))
        columns: dict[str, Any] = {
            "frame": pa.array([frame.index + 1 for frame in chunk], pa.int64()),
            "face_id": pa.array([0] * len(chunk), pa.int32()),
            "timestamp": pa.array([round(frame.time_s, 6) for frame in chunk], pa.float64()),
            "confidence": pa.array([round(confidence, 4) for _, confidence, _ in found], pa.float64()),
            "success": pa.array(ok.astype(np.int8)),
            "status": pa.array([status for status, _, _ in found]),
        }
        for name, values in zip(self.aus.probability_columns, probs.T, strict=True):
            columns[name] = pa.array(values, pa.float32(), mask=~ok)
        for name, values in zip(self.aus.columns, probs.T, strict=True):
            columns[name] = pa.array((values >= THRESHOLD).astype(np.int8), mask=~ok)
        return pa.table(columns)

    def _find(self, image: NDArray[np.uint8], follower: Follower) -> tuple[str, float, NDArray[np.uint8] | None]:
        """(status, confidence, aligned face) of the face that the video is about."""
        face = follower.choose(load_landmarker(self.description.landmarker["name"]).find_faces(image))
        if face is None:
            return schema.NO_FACE, 0.0, None
        try:
            return schema.OK, face.confidence, align(self.description.input.align, image, face.landmarks).image
        except DataError:
            return schema.BAD_LANDMARKS, face.confidence, None


def write_csv(tables: Iterable[pa.Table], path: Path) -> int:
    """Write tables of rows as one CSV, which appears whole or not at all; return the number of rows. Nulls are empty."""
    from pyarrow import csv

    rows = 0
    with schema.replacing(path) as temporary, temporary.open("wb") as file:
        for table in tables:
            csv.write_csv(table, file, csv.WriteOptions(include_header=rows == 0, quoting_style="none"))
            rows += table.num_rows
    return rows
