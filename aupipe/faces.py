"""The frames of a session and the face in each: found, or supplied with the corpus; decoded no larger than it has to be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aupipe.align import INNER_49, are_plausible, find_warp, scale_of, scheme_of, to_ibug49
from aupipe.config import Corpus
from aupipe.images import FrameReader, Picture
from aupipe.landmarks import Follower, Landmarker, load_landmarker
from aupipe.schema import DataError

SUPPLIED = "supplied"  # with the corpus; where points are missing or impossible, FALLBACK finds the face
PREALIGNED = "prealigned"  # the pictures are aligned faces, and nothing is looked for
FALLBACK = "blazemesh"
_ENOUGH = 640  # pixels of an image's longer side in which faces are looked for first


@dataclass(frozen=True, slots=True)
class Found:
    """Landmarks (49, 2) in pixels of the source, x and y; who found them, how sure, and among how many faces of the image:
    null for those supplied.
    """

    landmarks: NDArray[np.floating]
    landmarker: str
    confidence: float | None
    faces: int | None


class FaceReader:
    """Reads the rows of one session in their order. Nothing here raises for a bad file: the picture's status says it.

    A JPEG is decoded at a half, a quarter or an eighth of its size where its aligned faces come out smaller than that
    anyway; blocks of pixels then become their mean in the decoder, and not in the alignment.
    """

    def __init__(self, raw: Path, corpus: Corpus) -> None:
        self._frames, self._follower, self._corpus = FrameReader(raw), Follower(), corpus

    def read(self, source: str | None, index: int | None, points: list[float] | None) -> tuple[Picture, Found | None]:
        """A row's picture and the landmarks of its face, by the row's source, index and supplied points (x, y in turns)."""
        if self._corpus.landmarks == PREALIGNED:
            return self._frames.read(source, index), None
        supplied = _as_points(points) if self._corpus.landmarks == SUPPLIED else None
        if index is not None:
            picture = self._frames.read(source, index)
            return picture, self._find(picture, supplied)
        scale = None if supplied is None else self._scale(supplied)
        needs = {"min_scale": 0.0, "min_side": _ENOUGH} if scale is None else {"min_scale": scale}
        picture = self._frames.read(source, None, **needs)  # type: ignore[arg-type]
        found = self._find(picture, supplied)
        if picture.reduced > 1 and not self._suffices(picture, found):
            picture = self._frames.read(source, None)
            found = self._find(picture, supplied)
        return picture, found

    def _suffices(self, picture: Picture, found: Found | None) -> bool:
        """Whether the aligned faces take no more than a reduced picture still holds; without a face, all is looked at."""
        scale = None if found is None else self._scale(found.landmarks)
        return scale is not None and scale * picture.reduced <= 1

    def _scale(self, points: NDArray[np.floating]) -> float | None:
        """Pixels of the finest aligned face for one of the source; None for landmarks without geometry."""
        try:
            inner = to_ibug49(points, str(scheme_of(len(points))))
            return max(scale_of(find_warp(name, inner)) for name in self._corpus.align)
        except DataError:
            return None

    def _find(self, picture: Picture, supplied: NDArray[np.float64] | None) -> Found | None:
        """The landmarks supplied, if they can be those of a face in this picture, else the landmarker's own."""
        if picture.image is None:
            return None
        height, width = (picture.reduced * side for side in picture.image.shape[:2])
        if supplied is not None and are_plausible(supplied, height, width):
            return Found(to_ibug49(supplied, str(scheme_of(len(supplied)))), SUPPLIED, None, None)
        landmarker = landmarker_of(self._corpus.landmarks)
        faces = [face.of_source(picture.reduced) for face in landmarker.find_faces(picture.image)]
        face = self._follower.choose(faces)
        return None if face is None else Found(face.landmarks, landmarker.name, face.confidence, len(faces))


def landmarker_of(source: str) -> Landmarker:
    """The landmarker that a corpus names; for supplied landmarks, the one that fills in for those that are missing."""
    return load_landmarker(FALLBACK if source == SUPPLIED else source)


def identify(source: str) -> dict[str, str]:
    """What the landmarks of a corpus rest on, name and fingerprint; equal for equal landmarks."""
    return {"name": source, "fingerprint": "" if source == PREALIGNED else landmarker_of(source).fingerprint}


def _as_points(values: list[float] | None) -> NDArray[np.float64] | None:
    """The corpus's points (K, 2) of a frame, if there are as many as hold the 49."""
    points = np.array(values or [], np.float64).reshape(-1, 2)
    return points if scheme_of(len(points)) in INNER_49 else None
