"""What passes before a session's face: when, on what path, and how it is drawn over a frame. Colours are linear RGB."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from aupipe.synthetic.coordinates import Array, floats
from aupipe.synthetic.identity import Identity
from aupipe.synthetic.light import Light
from aupipe.synthetic.props import KINDS, model

_HOLDS = 0.45  # share of its stay in which it does not travel
_AWAY = 3.6  # decimetres that it travels to be out of the picture
_LONGEST = 0.09  # of the frame's height: the longest blur of movement
_GAP = 0.12  # decimetres between it and the face, across which it casts a shadow
# Where each comes to rest, to the right of and above the middle of the eyes, in decimetres: mean and sd; and how it leans.
_PLACES = {
    "open hand": ((0.0, -0.5), (0.35, 0.4), 0.9),
    "flat hand": ((0.0, -0.6), (0.2, 0.25), 0.9),
    "fist": ((0.0, -1.0), (0.3, 0.2), 0.5),
    "pointing hand": ((0.1, -0.5), (0.4, 0.4), 0.5),
    "mug": ((0.0, -0.75), (0.08, 0.1), 0.15),
    "glass": ((0.0, -0.75), (0.08, 0.1), 0.15),
    "phone": ((0.1, -0.5), (0.35, 0.4), 0.3),
    "microphone": ((0.0, -0.85), (0.15, 0.12), 0.4),
    "tissue": ((0.0, -0.6), (0.1, 0.15), 0.3),
}


@dataclass(frozen=True, slots=True)
class Occluder:
    """Something that passes before the face: the time of its middle and half its stay in seconds.

    place: where it rests, right of and above the frame's centre in decimetres · away: the unit vector along which it
    comes and goes · sway: radians that it turns on the way · paint: its picture (h, w, 4), linear RGB times cover, and
    cover · anchor: the pixel of it that lies on its place.
    """

    kind: str
    middle: float
    half_stay: float
    place: tuple[float, float]
    away: tuple[float, float]
    sway: float
    paint: Array
    anchor: tuple[float, float]

    def shows(self, second: float) -> bool:
        """Whether it may be in the picture at that time."""
        return abs(second - self.middle) < self.half_stay

    def travel(self, second: float) -> tuple[float, float]:
        """How far from its place it is, in decimetres, and how fast it goes away, in decimetres a second."""
        phase = (second - self.middle) / self.half_stay
        t = min(1.0, max(0.0, (abs(phase) - _HOLDS) / (1 - _HOLDS)))
        speed = 6 * t * (1 - t) * _AWAY / ((1 - _HOLDS) * self.half_stay)
        return _AWAY * t * t * (3 - 2 * t), float(np.copysign(speed, phase))


def place_occluder(rng: np.random.Generator, seconds: float, scale: float, identity: Identity, light: Light) -> Occluder:
    """Draw what passes before a face in a session of `seconds`; `scale` is pixels a decimetre."""
    kind = KINDS[int(rng.choice(len(KINDS), p=[0.14, 0.14, 0.12, 0.12, 0.12, 0.06, 0.1, 0.1, 0.1]))]
    middle, half_stay = float(rng.uniform(0, seconds)), float(rng.uniform(0.5, 1.4))
    mean, sd, lean = _PLACES[kind]
    place = (float(rng.normal(mean[0], sd[0])), float(rng.normal(mean[1], sd[1])))
    left_handed, angle = bool(rng.random() < 0.5), float(np.clip(rng.normal(0, lean), -1.1, 1.1))
    if kind == "flat hand":  # across the mouth
        angle = float(np.copysign(rng.uniform(0.5, 1.15), angle))
    larger = float(rng.uniform(0.98, 1.15))  # nearer to the lens than the face
    relief, centre = model(kind, rng, scale * larger, identity)
    if left_handed:
        relief.mirror()
        centre = (-centre[0], centre[1])
    paint = relief.light(light, angle)
    paint, anchor = _turn(paint, relief.find(centre), angle)
    away = (float(np.sin(angle)), -float(np.cos(angle)))
    return Occluder(kind, middle, half_stay, place, away, float(rng.normal(0, 0.12)), paint, anchor)


def draw_occluder(linear: Array, occluder: Occluder, second: float, depth: Array, light: Light, shutter: float,
                  shift: tuple[float, float]) -> None:  # fmt: skip
    """Draw it where it is at that time, if it is in the picture.

    linear: the frame (height, width, 3) · depth: the head's, larger than 99 where there is none; of any size · shutter:
    seconds of exposure · shift: the head's, right and up in decimetres, which a hand on the face follows.
    """
    if not occluder.shows(second):
        return
    away, speed = occluder.travel(second)
    height, width = linear.shape[:2]
    scale = height / 3
    right, up = (p + a * away + s for p, a, s in zip(occluder.place, occluder.away, shift, strict=True))
    at = (width / 2 + right * scale, height / 2 - up * scale)
    found = _lay(occluder, at, occluder.sway * away / _AWAY, (height, width))
    if found is None:
        return
    (rows, columns), paint = found
    length = min(abs(speed) * shutter * scale, _LONGEST * height)
    paint = smear_out(paint, (length * occluder.away[0], -length * occluder.away[1]))
    head = (depth < 99).astype(np.float32)
    head = cv2.resize(head, (width, height), interpolation=cv2.INTER_LINEAR)[rows, columns]
    here = linear[rows, columns]
    dark = _cast(paint[..., 3], light, scale) * head
    here *= (1 - np.maximum(dark, 0) * (1 - paint[..., 3]))[..., None] * (1 - paint[..., 3:])
    here += paint[..., :3]


def smear_out(picture: NDArray[Any], smear: tuple[float, float]) -> NDArray[Any]:
    """Blur along a straight movement of so many pixels right and down; less than one changes nothing."""
    if np.hypot(*smear) < 1:
        return picture
    reach = int(np.ceil(max(map(abs, smear)) / 2))
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    for step in np.linspace(-0.5, 0.5, 4 * reach + 1):  # each point of the path is shared by the four pixels around it
        x, y = reach + step * smear[0], reach + step * smear[1]
        left, top = min(int(x), 2 * reach - 1), min(int(y), 2 * reach - 1)
        kernel[top : top + 2, left : left + 2] += np.outer([1 - y + top, y - top], [1 - x + left, x - left])
    return cv2.filter2D(picture, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE)


def _lay(
    occluder: Occluder, at: tuple[float, float], sway: float, size: tuple[int, int]
) -> tuple[tuple[slice, slice], Array] | None:
    """The part of the frame that the picture falls on, and the picture there; None outside of the frame."""
    cos, sin = np.cos(sway), np.sin(sway)
    turn = np.array([[cos, sin], [-sin, cos]])
    matrix = np.column_stack([turn, np.array(at) - turn @ occluder.anchor])
    high, wide = occluder.paint.shape[:2]
    corners = matrix @ np.array([[0, wide, wide, 0], [0, 0, high, high], [1, 1, 1, 1]])
    left, top = np.maximum(np.floor(corners.min(1)), 0).astype(int)
    right, bottom = np.minimum(np.ceil(corners.max(1)), size[::-1]).astype(int)
    if right <= left or bottom <= top:
        return None
    matrix[:, 2] -= [left, top]
    paint = cv2.warpAffine(occluder.paint, matrix, (int(right - left), int(bottom - top)), flags=cv2.INTER_LINEAR)
    return (slice(int(top), int(bottom)), slice(int(left), int(right))), paint


def _cast(cover: Array, light: Light, scale: float) -> Array:
    """How much darker (h, w) the face is where the thing before it keeps the key light off."""
    front = max(0.35, float(light.towards[2]))
    x, y = -_GAP * scale * light.towards[:2] / front * [1, -1]
    moved = cv2.warpAffine(cover, floats([[1, 0, x], [0, 1, y]]), cover.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
    return np.float32(0.45) * cv2.GaussianBlur(moved, (0, 0), (0.04 + 0.08 * light.wrap) * scale)


def _turn(paint: Array, anchor: tuple[float, float], angle: float) -> tuple[Array, tuple[float, float]]:
    """The picture turned by `angle` about its anchor, on a sheet that holds all of it; and where the anchor is then."""
    high, wide = paint.shape[:2]
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, sin], [-sin, cos]])
    corners = turn @ np.array([[0, wide, wide, 0], [0, 0, high, high]])
    low = corners.min(1)
    matrix = np.column_stack([turn, -low])
    size = np.ceil(np.ptp(corners, axis=1)).astype(int)
    turned = cv2.warpAffine(paint, matrix, (int(size[0]), int(size[1])), flags=cv2.INTER_LINEAR)
    x, y = turn @ np.array(anchor) - low
    return turned, (float(x), float(y))
