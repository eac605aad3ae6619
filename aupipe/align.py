"""Landmarks → similarity transform → aligned face: eyes level, always the same share of the face in the square.

`face200` is the crop of the AU literature, 200×200 from eye centres, nose tip and mouth corners, as in the alignment of
JAA-Net that STRAL and SAT-Net build on. `face112` fits the five-point template that face-recognition backbones expect.
What a square shows beyond the source image is grey; `face200-black` and `face200-reflect` name the other two ways.

Five points, wherever they are named: left eye, right eye, nose tip, left and right mouth corner, as seen in the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from aupipe.config import ALIGN_SIZE
from aupipe.schema import ConfigError, DataError

BORDER = (128, 128, 128)  # what lies outside the source image: the grey that normalisation maps to 0
ENLARGE = 2.9  # side of the 200×200 crop, in extents of its five points
MIN_EXTENT = 1.0  # source pixels; five points closer together than this hold no geometry

# Per scheme: the number of points, and the points whose mean is each of the five. The 49 points are iBUG's 68 without the
# jaw (0–16) and the inner mouth corners (60, 64); the 66 are the 68 without those two, which come after the ones used here.
_EYES_NOSE_MOUTH_49 = (range(19, 25), range(25, 31), (13,), (31,), (37,))
_EYES_NOSE_MOUTH_68 = (range(36, 42), range(42, 48), (30,), (48,), (54,))
_SCHEMES: dict[str, tuple[int, tuple[Iterable[int], ...]]] = {
    "ibug49": (49, _EYES_NOSE_MOUTH_49),
    "ibug66": (66, _EYES_NOSE_MOUTH_68),
    "ibug68": (68, _EYES_NOSE_MOUTH_68),
    "five": (5, ((0,), (1,), (2,), (3,), (4,))),
}

# Where the 49 points are in schemes that hold more.
INNER_49 = {
    "ibug49": np.arange(49),
    "ibug66": np.arange(17, 66),
    "ibug68": np.array([n for n in range(17, 68) if n not in (60, 64)]),
}
_MIN_COVERED = 4.0  # pixels that the points of a face cover at least, across and down

# The five points in a 112×112 face, as ArcFace and its successors use them.
TEMPLATE_52 = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])
_TEMPLATE_SIZE = 112

# MIRROR_49[k] is the point that k becomes in a mirrored image: landmarks[MIRROR_49] with x → width − 1 − x.
MIRROR_49: NDArray[np.int64] = np.array(
    [
        *(9, 8, 7, 6, 5, 4, 3, 2, 1, 0),  # brows
        *(10, 11, 12, 13, 18, 17, 16, 15, 14),  # nose
        *(28, 27, 26, 25, 30, 29, 22, 21, 20, 19, 24, 23),  # eyes
        *(37, 36, 35, 34, 33, 32, 31, 42, 41, 40, 39, 38),  # outer lip
        *(45, 44, 43, 48, 47, 46),  # inner lip
    ]
)
MIRROR_49.setflags(write=False)


@dataclass(frozen=True, slots=True)
class AlignedFace:
    """A face in a square: image (size, size, 3) uint8 RGB, landmarks (K, 2) float32 in its pixels, and the 2×3 map
    float64 that took source pixels there. Pixel centres are integers, in the source and in the square.
    """

    image: NDArray[np.uint8]
    landmarks: NDArray[np.float32]
    warp: NDArray[np.float64]


def align(name: str, image: NDArray[np.uint8], landmarks: ArrayLike, reduced: int = 1) -> AlignedFace:
    """Align by the name that a corpus gives: "face200", "face112", or one of their kinds that end in -black or -reflect.

    image (H, W, 3) uint8 RGB; landmarks (49, 2), x and y in its pixels. An image that was decoded `reduced` times smaller
    gives the same face from the same landmarks: these and the warp are in the pixels of the source all the same. Raises
    DataError for landmarks without geometry, ConfigError for an unknown name.
    """
    warp = find_warp(name, landmarks)
    return _cut_face(image, _as_points(landmarks, "ibug49"), warp, ALIGN_SIZE[name], reduced, name.partition("-")[2])


def find_warp(name: str, landmarks: ArrayLike) -> NDArray[np.float64]:
    """The 2×3 map of the alignment called `name` for landmarks (49, 2), from their pixels to the square's; as `align`."""
    if name not in ALIGN_SIZE:
        raise ConfigError(f"unknown alignment '{name}'; known are {', '.join(ALIGN_SIZE)}")
    return ALIGNMENTS[name.partition("-")[0]](five_points(landmarks), ALIGN_SIZE[name])


def scale_of(warp: NDArray[np.float64]) -> float:
    """How many pixels of the square one pixel of the source becomes."""
    return float(np.hypot(warp[0, 0], warp[1, 0]))


def align_face(
    image: NDArray[np.uint8], landmarks: ArrayLike, scheme: str = "ibug49", size: int = 200, enlarge: float = ENLARGE
) -> AlignedFace:
    """The square around the five points, rotated until the eyes are level; its side is `enlarge` × their extent.

    image (H, W, 3) uint8 RGB; landmarks (K, 2) in its pixels, K as in `scheme`. The five aligned points have a bounding
    box centred in the square, whose longer side is (size − 1) / enlarge pixels; the eye distance varies with the face.
    Raises DataError for landmarks that are not finite or lie in one place.
    """
    points = _as_points(landmarks, scheme)
    return _cut_face(image, points, _square_warp(five_points(points, scheme), size, enlarge), size)


def align_template(
    image: NDArray[np.uint8], landmarks: ArrayLike, scheme: str = "ibug49", size: int = _TEMPLATE_SIZE
) -> AlignedFace:
    """The least-squares similarity, never a reflection, from the five points to the ArcFace template (Umeyama 1991).

    image (H, W, 3) uint8 RGB; landmarks (K, 2) in its pixels, K as in `scheme`; the template scales with `size`.
    Raises DataError for landmarks that are not finite or lie in one place.
    """
    points = _as_points(landmarks, scheme)
    return _cut_face(image, points, _template_warp(five_points(points, scheme), size), size)


def resize_face(image: NDArray[np.uint8], size: int) -> AlignedFace:
    """An image (H, W, 3) that is an aligned face already, brought into a square of `size`; the warp is a scale and a shift.

    A picture that is not square is centred. There are no landmarks: (0, 2).
    """
    height, width = image.shape[:2]
    scale = size / max(height, width)
    # Pixel centres are integers, so the outer edges of an image of n pixels are −0.5 and n − 0.5.
    shift = [(size - scale * extent) / 2 + (scale - 1) / 2 for extent in (width, height)]
    warp = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    return AlignedFace(warp_image(image, warp, size), np.empty((0, 2), np.float32), warp)


def scheme_of(count: int) -> str | None:
    """The scheme that has this number of points, if there is one."""
    return next((name for name, (points, _) in _SCHEMES.items() if points == count), None)


def to_ibug49(landmarks: ArrayLike, scheme: str) -> NDArray[np.float64]:
    """The 49 points (49, 2) out of landmarks (K, 2) in a scheme that holds them: ibug49, ibug66 or ibug68.

    Raises DataError for another number of points or for values that are not finite, ConfigError for another scheme.
    """
    points = _as_points(landmarks, scheme)
    if scheme not in INNER_49:
        raise ConfigError(f"the 49 points cannot be taken out of the scheme '{scheme}'; known are {', '.join(INNER_49)}")
    return points[INNER_49[scheme]]


def are_plausible(landmarks: ArrayLike, height: int, width: int) -> bool:
    """Whether supplied landmarks (K, 2) can be those of a face in an image of this size.

    Trackers that lost a face leave NaN, zeros (−1 once the origin is moved) or points far outside, so: all are finite,
    none at the image's corner, the centre of the points is inside and most points are too, and they cover some pixels.
    """
    points = np.asarray(landmarks, np.float64)
    if not len(points) or not np.isfinite(points).all() or (np.abs(points) <= 1).all(1).any():
        return False
    limit = np.array([width, height]) - 0.5
    inside = ((points >= -0.5) & (points <= limit)).all(1)
    centre = points.mean(0)
    covered = np.ptp(points, 0).min() >= _MIN_COVERED
    return bool(inside.mean() >= 0.5 and (centre >= 0).all() and (centre <= limit).all() and covered)


def five_points(landmarks: ArrayLike, scheme: str = "ibug49") -> NDArray[np.float64]:
    """Eye centres, nose tip and mouth corners, (5, 2), of landmarks (K, 2) in `scheme`.

    Raises DataError for another number of points or for values that are not finite, ConfigError for an unknown scheme.
    """
    points = _as_points(landmarks, scheme)
    return np.stack([points[list(group)].mean(0) for group in _SCHEMES[scheme][1]])


def transform_points(points_K2: ArrayLike, warp: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (K, 2) through a 2×3 affine map."""
    return np.asarray(points_K2, np.float64) @ warp[:, :2].T + warp[:, 2]


def warp_image(
    image: NDArray[np.uint8],
    warp: NDArray[np.float64],
    size: int,
    border: tuple[int, int, int] = BORDER,
    mode: int = cv2.BORDER_CONSTANT,
) -> NDArray[np.uint8]:
    """Resample image (H, W, 3) into a square of `size` pixels by a 2×3 similarity from source to square, bilinearly.

    A strong reduction (below one half) first averages whole blocks of source pixels, because bilinear interpolation
    alone would skip most of them; the geometry stays exact.
    """
    block = int(1 / max(scale_of(warp), 1e-9))
    if block > 1:
        image, warp = _average_blocks(image, warp, size, block)
    square: Any = cv2.warpAffine(image, warp, (size, size), flags=cv2.INTER_LINEAR, borderMode=mode, borderValue=border)
    return square


def _average_blocks(
    image: NDArray[np.uint8], warp: NDArray[np.float64], size: int, block: int
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The part of the image that the square shows, every `block`×`block` pixels averaged into one, and its own warp."""
    height, width = image.shape[:2]
    corners = np.array([[0, 0], [size - 1, 0], [0, size - 1], [size - 1, size - 1]], np.float64)
    seen = transform_points(corners, cv2.invertAffineTransform(warp))
    limit = np.array([width, height])
    low = np.clip(np.floor(seen.min(0)) - 2 * block, 0, limit).astype(int)
    high = np.clip(np.ceil(seen.max(0)) + 2 * block, 0, limit).astype(int)
    block = int(min(block, *np.maximum(high - low, 1)))
    high = np.minimum(high + -(high - low) % block, limit)  # whole blocks, as far as the image goes
    part = image[low[1] : high[1], low[0] : high[0]]
    if part.size == 0:
        return image[:1, :1], warp
    missing = -np.array(part.shape[:2]) % block
    if missing.any():
        # Repeated edge pixels fill the last blocks up; they reach less than one block beyond the image.
        part = cv2.copyMakeBorder(part, 0, int(missing[0]), 0, int(missing[1]), cv2.BORDER_REPLICATE)
    small = cv2.resize(part, (part.shape[1] // block, part.shape[0] // block), interpolation=cv2.INTER_AREA)
    return small, _of_blocks(warp, block, low)


def _of_blocks(warp: NDArray[np.float64], block: int, origin: ArrayLike = 0) -> NDArray[np.float64]:
    """A map of source pixels as one of pixels that are `block` × `block` of them, counted from the source's `origin`.

    The centre of pixel p is the source point origin + block · p + (block − 1) / 2.
    """
    shift = np.broadcast_to(origin, 2) + (block - 1) / 2
    return np.column_stack([warp[:, :2] * block, warp[:, :2] @ shift + warp[:, 2]])


def _as_points(landmarks: ArrayLike, scheme: str) -> NDArray[np.float64]:
    if scheme not in _SCHEMES:
        raise ConfigError(f"unknown landmark scheme '{scheme}'; known are {', '.join(_SCHEMES)}")
    points = np.asarray(landmarks, np.float64)
    if points.shape != (_SCHEMES[scheme][0], 2):
        raise DataError(f"the scheme {scheme} has {_SCHEMES[scheme][0]} points (x, y); got an array of {points.shape}")
    if not np.isfinite(points).all():
        raise DataError("landmarks hold values that are not finite numbers")
    return points


def _square_warp(five: NDArray[np.float64], size: int, enlarge: float) -> NDArray[np.float64]:
    direction = five[1] - five[0]
    distance = float(np.hypot(*direction))
    if distance < MIN_EXTENT:
        raise DataError("landmarks have no usable geometry: the eyes lie in one place")
    cos, sin = direction / distance
    rotation = np.array([[cos, sin], [-sin, cos]])
    level = five @ rotation.T
    low, high = level.min(0), level.max(0)
    half = 0.5 * enlarge * (high - low).max()
    scale = (size - 1) / 2 / half
    return scale * np.column_stack([rotation, half - (low + high) / 2])


def _similarity(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least squares over w = a·z + b with complex a and b: every rotation, scale and shift, and no reflection."""
    z, w = source @ [1, 1j], target @ [1, 1j]
    z_mean, w_mean = z.mean(), w.mean()
    spread = np.sum(np.abs(z - z_mean) ** 2)
    if spread < MIN_EXTENT**2:
        raise DataError("landmarks have no usable geometry: the five points lie in one place")
    a = np.sum(np.conj(z - z_mean) * (w - w_mean)) / spread
    if abs(a) < 1e-9:
        raise DataError("landmarks have no usable geometry: the five points do not form a face")
    b = w_mean - a * z_mean
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def _template_warp(five: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    return _similarity(five, TEMPLATE_52 * (size / _TEMPLATE_SIZE))


# How each alignment finds its map, from the five points and the size of its square.
ALIGNMENTS: dict[str, Callable[[NDArray[np.float64], int], NDArray[np.float64]]] = {
    "face200": lambda five, size: _square_warp(five, size, ENLARGE),
    "face112": _template_warp,
}
# What fills the square beyond the source image: a colour, or the image's own mirror.
_OUTSIDE = {
    "": (BORDER, cv2.BORDER_CONSTANT),
    "black": ((0, 0, 0), cv2.BORDER_CONSTANT),
    "reflect": (BORDER, cv2.BORDER_REFLECT_101),
}


def _cut_face(
    image: NDArray[np.uint8],
    points: NDArray[np.float64],
    warp: NDArray[np.float64],
    size: int,
    reduced: int = 1,
    outside: str = "",
) -> AlignedFace:
    inside = (points >= -0.5) & (points <= reduced * np.array(image.shape[1::-1]) - 0.5)
    if not inside.all(1).any():
        raise DataError("landmarks have no usable geometry: every point lies outside the image")
    square = warp_image(image, warp if reduced == 1 else _of_blocks(warp, reduced), size, *_OUTSIDE[outside])
    return AlignedFace(square, transform_points(points, warp).astype(np.float32), warp)
