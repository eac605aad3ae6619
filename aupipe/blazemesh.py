"""BlazeFace and Face Mesh: faces and their 49 landmarks in any image, by two small networks in OpenCV's own engine.

`blazemesh` = BlazeFace, short range (a detector for faces above about an eighth of the image's longer side), then Face
Mesh (468 points) in a square around the face, of which 49 make up the iBUG scheme. `blazemesh-tiles` also looks for small
faces, in parts of those images in which there is no larger one. `blazemesh-litert` runs the same two networks in LiteRT, in
about half the time, if that is installed. A result depends on the image alone, never on the order of a video.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from aupipe import assets
from aupipe.align import transform_points, warp_image
from aupipe.landmarks import SAME_FACE, Face, Landmarker, overlap
from aupipe.schema import DataError

# Mesh vertices at the places of the 49 points, chosen by convention.
MESH_TO_49 = np.array(
    [
        *(70, 63, 105, 66, 107, 336, 296, 334, 293, 300),  # brows
        *(168, 197, 5, 4, 98, 97, 2, 326, 327),  # nose
        *(33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380),  # eyes
        *(61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181),  # outer lip
        *(82, 13, 312, 317, 14, 87),  # inner lip
    ]
)

_DETECTOR_SIZE, _MESH_SIZE, _MESH_POINTS = 128, 192, 468
_DETECTOR_OUTPUTS = {"regressors": (896, 16), "classificators": (896, 1)}
_MESH_OUTPUTS = {"conv2d_21": (_MESH_POINTS, 3), "conv2d_31": (1, 1)}
_OUTPUTS = (_DETECTOR_OUTPUTS, _MESH_OUTPUTS)
_MIN_LOGIT = 0.0  # of the detector, a score of one half, to look closer
_MIN_PRESENCE = 0.5  # of the mesh network, to believe that there is a face
_ROI_ENLARGE = 1.5  # side of the mesh network's square, in sides of the detector's box
_TILES, _TILE_OVERLAP = (2, 3), 0.25  # parts per side, one after the other; share of a side that neighbours have in common
_MAX_FACES = 16  # looked at closer per image, so that a crowd does not stop a video


@dataclass(frozen=True, slots=True)
class _Detection:
    """A box (4,) in image pixels, the direction of the eye line in radians, and the detector's score."""

    box: NDArray[np.float64]
    angle: float
    score: float


class BlazeMesh(Landmarker):
    """The landmarker named "blazemesh". The networks are read at first use; several threads may share one object.

    Raises DataError where the model files are absent or this OpenCV cannot run them.
    """

    name = "blazemesh"

    def __init__(self) -> None:
        self._lock = threading.Lock()  # a network of cv2.dnn holds the input of the call in progress

    _version = b""  # of the way the networks are used; "" since the first

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 over the two model files and the version: equal fingerprints give equal landmarks."""
        digest = hashlib.sha256()
        for path in assets.face_models():
            digest.update(path.read_bytes())
        digest.update(self._version)
        return digest.hexdigest()

    def find_faces(self, image: NDArray[np.uint8]) -> list[Face]:
        """All faces of an image (H, W, 3) uint8 RGB, the most confident first."""
        return self._look_closer(image, self._detect(image))

    def _look_closer(self, image: NDArray[np.uint8], detections: list[_Detection]) -> list[Face]:
        """The faces that the mesh network, too, believes in."""
        candidates = (self._fit_mesh(image, detection) for detection in detections[:_MAX_FACES])
        faces: list[Face] = []
        for face in sorted((face for face in candidates if face), key=lambda face: -face.confidence):
            # Two detections of one face end in almost the same mesh.
            if not faces or overlap(face.box, np.stack([other.box for other in faces])).max() < SAME_FACE:
                faces.append(face)
        return faces

    def _detect(self, image: NDArray[np.uint8]) -> list[_Detection]:
        square, scale_2, offset_2 = _letterbox(image)
        raw, logits = self._run(0, square / np.float32(127.5) - 1)
        boxes, keypoints, scores = _decode(raw, logits)
        found = []
        for box, points, score in _merge_overlapping(boxes, keypoints, scores):
            corners = (box.reshape(2, 2) * _DETECTOR_SIZE - offset_2) / scale_2
            eyes = (points[:2] * _DETECTOR_SIZE - offset_2) / scale_2
            across = eyes[1] - eyes[0]
            found.append(_Detection(corners.ravel(), float(np.arctan2(across[1], across[0])), score))
        return found

    def _fit_mesh(self, image: NDArray[np.uint8], detection: _Detection) -> Face | None:
        warp = _roi_warp(detection)
        if warp is None:
            return None
        square = warp_image(image, warp, _MESH_SIZE, border=(0, 0, 0))
        mesh, presence = self._run(1, square / np.float32(255))
        confidence = float(_sigmoid(presence)[0, 0])
        points = transform_points(mesh[:, :2], cv2.invertAffineTransform(warp)).astype(np.float32)
        if not confidence >= _MIN_PRESENCE or not np.isfinite(points).all():
            return None
        box = np.concatenate([points.min(0), points.max(0)])
        return Face(box, confidence, points[MESH_TO_49])

    def _run(self, which: int, input_HWC: NDArray[Any]) -> list[NDArray[np.float64]]:
        """The outputs of the detector (0) or the mesh network (1)."""
        with self._lock:
            return _forward(self._nets[which], input_HWC, _OUTPUTS[which])

    @functools.cached_property
    def _nets(self) -> tuple[Any, Any]:
        detector, mesh = assets.face_models()
        return (
            _load_net(str(detector), _DETECTOR_SIZE, _DETECTOR_OUTPUTS),
            _load_net(str(mesh), _MESH_SIZE, _MESH_OUTPUTS),
        )


class BlazeMeshTiles(BlazeMesh):
    """The landmarker named "blazemesh-tiles": where "blazemesh" finds nobody, it looks at parts of the image, larger first.

    Faces down to about a sixteenth of the image's longer side are found. Images without a face take 14 detections instead
    of one, and more of what is no face is taken for one.
    """

    name = "blazemesh-tiles"
    _version = b"tiles 1"

    def find_faces(self, image: NDArray[np.uint8]) -> list[Face]:
        faces = super().find_faces(image)
        for count in _TILES:
            if not faces:
                found = [face for tile in _tiles(image.shape[:2], count) for face in self._detect_in(image, *tile)]
                faces = self._look_closer(image, sorted(found, key=lambda face: -face.score))
        return faces

    def _detect_in(self, image: NDArray[np.uint8], rows: slice, columns: slice) -> list[_Detection]:
        corner = np.array([columns.start, rows.start] * 2, np.float64)
        return [replace(found, box=found.box + corner) for found in self._detect(image[rows, columns])]


class BlazeMeshLiteRT(BlazeMesh):
    """The landmarker named "blazemesh-litert": landmarks within a thousandth of a pixel of those of "blazemesh".

    Raises DataError where LiteRT is not installed.
    """

    name = "blazemesh-litert"
    _version = b"litert 1"

    def _run(self, which: int, input_HWC: NDArray[Any]) -> list[NDArray[np.float64]]:
        network = self._nets[which]
        indices = {output["name"]: output["index"] for output in network.get_output_details()}
        with self._lock:
            network.set_tensor(network.get_input_details()[0]["index"], input_HWC[None])
            network.invoke()
            return [np.array(network.get_tensor(indices[k]), np.float64).reshape(v) for k, v in _OUTPUTS[which].items()]

    @functools.cached_property
    def _nets(self) -> tuple[Any, Any]:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError:
            raise DataError("blazemesh-litert needs LiteRT: `pip install ai-edge-litert`, or use `blazemesh`") from None
        detector, mesh = (Interpreter(str(path), num_threads=1) for path in assets.face_models())
        for network in (detector, mesh):
            network.allocate_tensors()
        return detector, mesh


def _tiles(extents: tuple[int, ...], count: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of count × count parts of an image (height, width); neighbours share a quarter of their sides."""
    share = 1 / (count - _TILE_OVERLAP * (count - 1))
    sides = [max(1, round(share * extent)) for extent in extents]
    starts = [np.rint(np.linspace(0, n - side, count)).astype(int) for n, side in zip(extents, sides, strict=True)]
    for top in starts[0].tolist():
        for left in starts[1].tolist():
            yield slice(top, top + sides[0]), slice(left, left + sides[1])


def _load_net(path: str, size: int, outputs: dict[str, tuple[int, int]]) -> Any:
    """Read a network and try it once: some OpenCV engines load these files and then lose an output."""
    try:
        net = cv2.dnn.readNetFromTFLite(path, cv2.dnn.ENGINE_CLASSIC)
        _forward(net, np.zeros((size, size, 3), np.float32), outputs)
    except (cv2.error, AttributeError, ValueError) as error:
        raise DataError(
            f"OpenCV {cv2.__version__} cannot run the face model {path} ({' '.join(str(error).split())[:120]}); "
            "install opencv-python-headless 5.0, and fetch the models anew with `aupipe assets`"
        ) from None
    return net


def _forward(net: Any, input_HWC: NDArray[Any], outputs: dict[str, tuple[int, int]]) -> list[NDArray[np.float64]]:
    net.setInput(np.ascontiguousarray(input_HWC.transpose(2, 0, 1)[None], np.float32))
    results = net.forward(list(outputs))
    return [np.array(r, np.float64).reshape(shape) for r, shape in zip(results, outputs.values(), strict=True)]


def _letterbox(image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.float64]]:
    """The image in the middle of the detector's black square; there = scale · here + offset."""
    height, width = image.shape[:2]
    factor = _DETECTOR_SIZE / max(height, width)
    new_w, new_h = max(1, round(width * factor)), max(1, round(height * factor))
    left, top = (_DETECTOR_SIZE - new_w) // 2, (_DETECTOR_SIZE - new_h) // 2
    square = np.zeros((_DETECTOR_SIZE, _DETECTOR_SIZE, 3), np.uint8)
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    square[top : top + new_h, left : left + new_w] = cv2.resize(image, (new_w, new_h), interpolation=method)
    return square, np.array([new_w / width, new_h / height]), np.array([left, top], np.float64)


@functools.cache
def _anchors() -> NDArray[np.float64]:
    """Centres (896, 2) in the unit square: two anchors per cell of a 16×16 map, then six per cell of an 8×8 map."""
    maps = []
    for cells, per_cell in ((16, 2), (8, 6)):
        y, x = np.mgrid[:cells, :cells]
        maps.append(np.repeat(np.stack([x.ravel(), y.ravel()], 1) + 0.5, per_cell, axis=0) / cells)
    return np.concatenate(maps)


def _decode(
    raw: NDArray[np.float64], logits: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Boxes (n, 4), keypoints (n, 6, 2), both in the unit square, and scores (n,) of the anchors that see a face.

    `raw` (896, 16) is in pixels of the detector's square relative to the anchor: centre, width and height, six points.
    """
    seen = logits[:, 0] >= _MIN_LOGIT
    scores = _sigmoid(logits[seen, 0])
    values, anchors = raw[seen] / _DETECTOR_SIZE, _anchors()[seen]
    centre, extent = values[:, :2] + anchors, values[:, 2:4]
    boxes = np.concatenate([centre - extent / 2, centre + extent / 2], 1)
    return boxes, values[:, 4:].reshape(-1, 6, 2) + anchors[:, None], scores


def _merge_overlapping(
    boxes: NDArray[np.float64], keypoints: NDArray[np.float64], scores: NDArray[np.float64]
) -> list[tuple[NDArray[np.float64], NDArray[np.float64], float]]:
    """One box per face, best first: the mean of all boxes that overlap the best one, weighted by their scores.

    A mean instead of the winner alone, because it trembles less from frame to frame (Bazarevsky et al. 2019, §4).
    """
    merged = []
    left = np.argsort(-scores, kind="stable")
    while left.size:
        best = left[0]
        same = overlap(boxes[best], boxes[left]) > SAME_FACE
        same[0] = True  # even a box without extent, which overlaps nothing, leaves the queue
        group, left = left[same], left[~same]
        weights = scores[group] / scores[group].sum()
        merged.append((weights @ boxes[group], np.tensordot(weights, keypoints[group], 1), float(scores[best])))
    return merged


def _roi_warp(detection: _Detection) -> NDArray[np.float64] | None:
    """From image to the mesh network's square, upright and 1.5 times the box; None for a box without extent."""
    low, high = detection.box[:2], detection.box[2:]
    side = _ROI_ENLARGE * float((high - low).max())
    if not side >= 1 or not np.isfinite(detection.box).all():
        return None
    scale = _MESH_SIZE / side
    cos, sin = scale * np.cos(detection.angle), scale * np.sin(detection.angle)
    rotation = np.array([[cos, sin], [-sin, cos]])
    return np.column_stack([rotation, _MESH_SIZE / 2 - rotation @ ((low + high) / 2)])


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-np.clip(x, -80, 80)))
