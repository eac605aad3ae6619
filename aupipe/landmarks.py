"""Who finds faces and their 49 landmarks, for corpora that supply none and for everybody's videos; and whose face counts.

A landmarker goes by its name: `blazemesh` and its variants, or `package.module:Class` for one of your own, a subclass of
`Landmarker` in any installed package. A session has one face: `Follower` picks it where a frame shows several.
"""

from __future__ import annotations

import abc
import functools
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aupipe.schema import ConfigError, DataError

SAME_FACE = 0.3  # overlap (intersection over union) from which two boxes are one face
_RIVAL = 0.5  # share of the largest face's area from which another may be the one that a session is about


@dataclass(frozen=True, slots=True)
class Face:
    """One face: box (4,) float32 as left, top, right, bottom; confidence in 0–1 that a face is there; landmarks (49, 2)
    float32, x and y, in the order of `ibug49`. Box and landmarks in pixels of the image, pixel centres at integers; they
    may lie outside of it.
    """

    box: NDArray[np.float32]
    confidence: float
    landmarks: NDArray[np.float32]

    @property
    def area(self) -> float:
        return float((self.box[2] - self.box[0]) * (self.box[3] - self.box[1]))

    def of_source(self, reduced: int) -> Face:
        """The face in the pixels of an image of which this one was reduced: pixel p stands for `reduced` pixels a side."""
        shift = (reduced - 1) / 2
        return Face(self.box * reduced + np.float32(shift), self.confidence, self.landmarks * reduced + np.float32(shift))


class Landmarker(abc.ABC):
    """What finds faces. `name` goes into every row; `fingerprint` differs wherever a landmark may come to lie elsewhere.

    Made without arguments, once per process. A face may depend on its image alone, never on those before: sessions are
    cut, and run in any order.
    """

    name: str

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Equal fingerprints give equal landmarks, such as a sha256 over model files and the version of the code."""

    @abc.abstractmethod
    def find_faces(self, image: NDArray[np.uint8]) -> list[Face]:
        """All faces of an image (H, W, 3) uint8 RGB, the most confident first."""

    def find_face(self, image: NDArray[np.uint8]) -> Face | None:
        """The largest face of an image (H, W, 3) uint8 RGB, or None."""
        return max(self.find_faces(image), key=lambda face: face.area, default=None)


class Follower:
    """The face that a session is about, frame by frame and in their order: by continuity, then by area.

    Of the faces at least half as large as the largest, that which overlaps the last one chosen the most; if none does, the
    largest. So two people side by side are not confused, and a bystander found in one frame is not followed for ever.
    """

    def __init__(self) -> None:
        self._last: NDArray[np.float32] | None = None

    def choose(self, faces: Sequence[Face]) -> Face | None:
        """One of a frame's faces, or None if it has none. Raises DataError for other landmarks than the 49 points."""
        if not faces:
            return None
        if (shape := np.shape(faces[0].landmarks)) != (49, 2):
            raise DataError(f"a landmarker gave landmarks of shape {shape}; they must be the 49 points (49, 2) of ibug49")
        largest = max(faces, key=lambda face: face.area)
        chosen = largest
        if self._last is not None and len(faces) > 1:
            rivals = [face for face in faces if face.area >= _RIVAL * largest.area]
            shared = overlap(self._last, np.stack([face.box for face in rivals]))
            if shared.max() >= SAME_FACE:
                chosen = rivals[int(shared.argmax())]
        self._last = chosen.box
        return chosen


def overlap(box: NDArray[Any], boxes: NDArray[Any]) -> NDArray[Any]:
    """Intersection over union of one box (4,) with boxes (n, 4)."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    common = np.clip(high - low, 0, None).prod(1)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - common
    return common / np.maximum(union, 1e-12)


@functools.cache
def load_landmarker(name: str) -> Landmarker:
    """The landmarker called `name`, one object per process.

    Raises ConfigError for an unknown name, or one of your own that is not installed or no Landmarker.
    """
    from aupipe.blazemesh import BlazeMesh, BlazeMeshLiteRT, BlazeMeshTiles

    known: dict[str, type[Landmarker]] = {kind.name: kind for kind in (BlazeMesh, BlazeMeshTiles, BlazeMeshLiteRT)}
    if ":" in name:
        return _import_landmarker(name)()
    if name not in known:
        raise ConfigError(f"unknown landmarker '{name}'; known are {', '.join(known)}, or your own as package.module:Class")
    return known[name]()


def _import_landmarker(name: str) -> type[Landmarker]:
    module, _, attribute = name.partition(":")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"cannot import the landmarker '{name}' ({error}); install its package or mend its name") from None
    if not (isinstance(kind, type) and issubclass(kind, Landmarker)):
        raise ConfigError(f"'{name}' is no landmarker: derive the class from aupipe.landmarks.Landmarker")
    if kind.__abstractmethods__:
        raise ConfigError(f"the landmarker '{name}' lacks {', '.join(sorted(kind.__abstractmethods__))}")
    return kind
