"""The skin's folds: what each AU draws on the face, as relief in the atlas that the frame's own light brings out.

The lines follow the FACS manual's appearance changes. Older people have deeper folds, and keep a trace of them at rest:
a resting face that looks a little like an AU is what a detector must learn to see through.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from aupipe.synthetic.chart import Chart
from aupipe.synthetic.coordinates import Array, smoothstep
from aupipe.synthetic.head import ATLAS
from aupipe.synthetic.identity import Identity

Point = tuple[float, float]
Line = tuple[list[Point], float, float]
Box = tuple[int, int, int, int]
Strength = float | tuple[float, float]  # of an AU's folds; or of those on the right half of the face and on the left
# Per AU: lines in face coordinates (|X|, Y), their half width and depth. Both sides of the face get them.
_LINES: dict[int, list[Line]] = {
    1: [([(0, y), (0.6, y + 0.03), (1.05, y - 0.08)], 0.05, 0.55) for y in (1.05, 1.38, 1.7)],
    2: [([(0.75, y - 0.02), (1.3, y + 0.08), (1.95, y - 0.25)], 0.05, 0.5) for y in (1.05, 1.35, 1.65)],
    4: [
        ([(0.22, 0.85), (0.17, 0.45), (0.22, 0.12)], 0.05, 0.9),
        ([(0, 0.05), (0.25, 0.08)], 0.05, 0.5),
        ([(0.42, 0.8), (0.34, 0.5)], 0.045, 0.35),
    ],
    6: [
        *(([(1.78, -0.03), (2.25, y)], 0.035, 0.6) for y in (0.3, 0.02, -0.28)),
        ([(0.55, -0.55), (1.1, -0.68), (1.7, -0.5)], 0.07, 0.45),
    ],
    7: [([(0.55, -0.3), (1.0, -0.4), (1.55, -0.25)], 0.05, 0.55)],
    9: [
        *(([(0.14, y), (0.42, y - 0.14)], 0.04, 1.1) for y in (-0.12, -0.34, -0.54)),
        ([(0, 0.0), (0.25, 0.03)], 0.05, 0.9),
        ([(0.5, -0.9), (0.68, -1.2), (0.8, -1.4)], 0.06, 1.0),
    ],
    10: [([(0.5, -0.98), (0.72, -1.25), (0.95, -1.55)], 0.065, 0.75)],
    12: [
        ([(0.56, -1.05), (0.95, -1.45), (1.22, -1.85), (1.25, -2.15)], 0.07, 0.85),
        ([(1.45, -1.5), (1.55, -2.0)], 0.06, 0.25),
    ],
    14: [([(1.1, -1.75), (1.16, -2.1)], 0.045, 0.6)],
    15: [([(0.86, -2.02), (0.98, -2.25), (1.0, -2.5)], 0.05, 0.8)],
    17: [([(0, -2.5), (0.35, -2.52), (0.6, -2.42)], 0.07, 0.7)],
    23: [([(x, -1.72), (x + 0.02, -1.5)], 0.025, 0.45) for x in (0.1, 0.25, 0.42, 0.6)]
    + [([(x, -2.15), (x + 0.02, -2.32)], 0.025, 0.35) for x in (0.12, 0.35)],
    24: [([(0, -2.3), (0.4, -2.28), (0.7, -2.15)], 0.06, 0.5), ([(0.85, -1.95), (0.98, -2.0)], 0.04, 0.25)],
}
# What years alone draw: bags under the eyes, and the lines from the corners of the mouth down.
_OF_AGE: list[Line] = [
    ([(0.5, -0.36), (0.85, -0.56), (1.3, -0.52)], 0.06, 0.8),
    ([(0.9, -2.1), (1.02, -2.45), (1.05, -2.8)], 0.06, 0.7),
]
_FRONT = (0.45, 0.65)  # from this depth z on the skin folds, and wholly
_MARGIN = 0.35  # face units around a line that its ridge reaches
_STEEPEST = 1.2
_SHADOW = 0.9  # of the light from around that the bottom of a valley of depth 1 does not see
_FAINT = 5e-4


@dataclass(frozen=True, slots=True)
class Folds:
    """Relief (h, w, 4) per AU inside its own rectangle (top, bottom, left, right), and at rest inside one that holds all.

    Its channels are the slope in the head's frame (x, y, z; see Chart.climb) and how much of all light the hollow loses.
    `normal` (H, W, 4) is the smooth skin's over `bounds`, and a 1.
    """

    maps: dict[int, tuple[Box, Array]]
    bounds: Box
    rest: Array
    normal: Array

    def raise_relief(self, strength: Mapping[int, Strength]) -> Array:
        """The relief at rest and the sum over AUs of strength (0–1) times theirs, over `bounds`: (H, W, 4)."""
        top, _, left, _ = self.bounds
        total = self.rest.copy()
        for au, (box, relief) in self.maps.items():
            amount = strength.get(au, 0.0)
            if isinstance(amount, tuple):  # both halves of the face have the same lines, so that the middle is its midline's
                middle = relief.shape[1] // 2
                halves = list(zip((slice(middle), slice(middle, None)), amount, strict=True))
            else:
                halves = [(slice(None), amount)]
            for half, share in halves:
                if share > 0.02:
                    part = total[box[0] - top : box[1] - top, box[2] - left : box[3] - left][:, half]
                    cv2.scaleAdd(relief[:, half], share, part, dst=part)
        return total

    def halve(self) -> Folds:
        """The same folds in an atlas of half the size."""
        maps = {au: (_halve_box(box), halve(relief)) for au, (box, relief) in self.maps.items()}
        return Folds(maps, _halve_box(self.bounds), halve(self.rest), halve(self.normal))


def halve(image: Array) -> Array:
    """Means of 2 × 2 texels."""
    return cv2.resize(image, (image.shape[1] // 2, image.shape[0] // 2), interpolation=cv2.INTER_AREA)


def paint_folds(identity: Identity, chart: Chart, gain: dict[int, float], rng: np.random.Generator) -> Folds:
    """`gain`: how strongly this person moves each AU; their folds deepen with it."""
    depth = (0.15 + 0.6 * identity.age) * np.exp(rng.normal(0, 0.5))
    across, y = _ragged(chart, rng)
    maps = {}
    for au, lines in _LINES.items():
        height, hollow = _draw_lines(across, y, lines, rng)
        if au == 14:
            pit = np.exp(-((across - 1.02) ** 2 + (y + 1.93) ** 2) / 0.012)
            height, hollow = height - 0.1 * pit, hollow + 0.7 * pit
        if au == 17:
            height += 0.02 * _pit_chin(chart, rng)
        maps[au] = _carve(chart, height, hollow, depth * gain[au] * float(np.exp(rng.normal(0, 0.35))))
    aged = _carve(chart, *_draw_lines(across, y, _OF_AGE, rng), depth)
    total = np.zeros((*ATLAS, 4), np.float32)
    _add(total, identity.age * rng.uniform(0.3, 1.2), aged)
    for relief in maps.values():
        _add(total, max(0.0, rng.normal(0.25 * identity.age, 0.12)), relief)
    boxes = np.array([box for box, _ in (*maps.values(), aged)])
    top, bottom, left, right = boxes[:, 0].min(), boxes[:, 1].max(), boxes[:, 2].min(), boxes[:, 3].max()
    normal = cv2.merge([*cv2.split(chart.normal), np.ones(ATLAS, np.float32)])
    bounds = (int(top), int(bottom), int(left), int(right))
    return Folds(maps, bounds, total[top:bottom, left:right].copy(), normal[top:bottom, left:right].copy())


def _add(total: Array, share: float, relief: tuple[Box, Array]) -> None:
    (top, bottom, left, right), values = relief
    total[top:bottom, left:right] += np.float32(share) * values


def _ragged(chart: Chart, rng: np.random.Generator) -> tuple[Array, Array]:
    """|X| and Y with a slow wobble, so that no fold is a ruler's line."""
    rows, columns = ATLAS
    grid = rng.standard_normal((2, 15, 12), dtype=np.float32) * np.float32(0.03)
    wobble = [cv2.resize(g, (columns, rows), interpolation=cv2.INTER_CUBIC) for g in grid]
    return np.abs(chart.x) + wobble[0], chart.y + wobble[1]


def _draw_lines(across: Array, y: Array, lines: list[Line], rng: np.random.Generator) -> tuple[Array, Array]:
    """Height in face units and hollowness (rows, columns) of these lines, as this person has them."""
    height, hollow = np.zeros(ATLAS, np.float32), np.zeros(ATLAS, np.float32)
    for points, width, amount in lines:
        moved = [(px + rng.normal(0, 0.025) * (px > 0), py + rng.normal(0, 0.035)) for px, py in points]
        _draw_line(height, hollow, across, y, moved, width, amount * float(np.exp(rng.normal(0, 0.25))))
    return height, hollow


def _draw_line(
    height: Array, hollow: Array, across: Array, y: Array, points: list[Point], width: float, amount: float
) -> None:
    """Add a valley along the line, between ridges of the skin that it displaces."""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    box = (across > min(xs) - _MARGIN) & (across < max(xs) + _MARGIN) & (y > min(ys) - _MARGIN) & (y < max(ys) + _MARGIN)
    here = np.flatnonzero(box)
    distance, along = _measure(across.ravel()[here], y.ravel()[here], _smooth(points))
    closed = points[0][0] > 0  # a line that starts on the midline goes on across it
    fade = np.float32(amount) * np.sqrt(np.sin(np.clip(along if closed else 0.5 + along / 2, 0.02, 0.98) * np.pi))
    valley = np.exp(-((distance / (1.15 * width)) ** 2))
    ridge = np.exp(-(((distance - 2.4 * width) / (1.5 * width)) ** 2))
    height.ravel()[here] += np.float32(1.15 * width) * fade * (0.35 * ridge - valley)
    hollow.ravel()[here] += fade * valley


def _carve(chart: Chart, height: Array, hollow: Array, depth: float) -> tuple[Box, Array]:
    """Relief (h, w, 4) of a height and a hollowness, made so many times deeper, and the rectangle where there is any."""
    top, bottom, left, right = _bound(((np.abs(height) > _FAINT) | (hollow > _FAINT)) & (chart.z > _FRONT[0]))
    box = (slice(top, bottom), slice(left, right))
    front = smoothstep(chart.z[box], *_FRONT) * chart.covered[box]
    slope = np.float32(depth) * chart.climb(height[box], box)
    x, y, z = cv2.split(slope)
    steepness = np.sqrt(x * x + y * y + z * z)
    keep = front * np.minimum(1, _STEEPEST / np.maximum(steepness, 1e-6))
    dark = np.clip(np.float32(_SHADOW * depth) * hollow[box], 0, 0.65) * front
    return (top, bottom, left, right), cv2.merge([x * keep, y * keep, z * keep, dark])


def _measure(x: Array, y: Array, points: list[Point]) -> tuple[Array, Array]:
    """Distance from a polyline, and how far along it the nearest point lies, 0–1."""
    nearest, along = np.full(x.shape, 9, np.float32), np.zeros_like(x)
    count = len(points) - 1
    for i, ((x0, y0), (x1, y1)) in enumerate(itertools.pairwise(points)):
        dx, dy = x1 - x0, y1 - y0
        t = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy + 1e-9), 0, 1)
        distance = np.hypot(x - x0 - t * dx, y - y0 - t * dy)
        closer = distance < nearest
        nearest[closer], along[closer] = distance[closer], (i + t[closer]) / count
    return nearest, along


def _smooth(points: list[Point]) -> list[Point]:
    """Catmull–Rom: two more points between each pair."""
    if len(points) < 3:
        return points
    padded = np.array([points[0], *points, points[-1]])
    curve = []
    for a, b, c, d in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        for t in (0.0, 1 / 3, 2 / 3):
            step = 2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3
            curve.append((float(step[0]) / 2, float(step[1]) / 2))
    return [*curve, points[-1]]


def _pit_chin(chart: Chart, rng: np.random.Generator) -> Array:
    """The chin's orange peel."""
    rows, columns = ATLAS
    pits = [cv2.resize(rng.standard_normal((n, n), dtype=np.float32), (columns, rows)) for n in (60, 110)]
    return np.exp(-((chart.x / 0.5) ** 2) - ((chart.y + 2.85) / 0.3) ** 2) * np.clip(pits[0] + pits[1], -2, 2)


def _bound(there: NDArray[np.bool_]) -> Box:
    """The smallest rectangle of even rows and columns, two texels wider all round."""
    rows, columns = np.flatnonzero(there.any(1)), np.flatnonzero(there.any(0))
    top, left = (max(0, int(n[0]) // 2 * 2 - 2) for n in (rows, columns))
    bottom, right = (min(size, int(n[-1]) // 2 * 2 + 4) for n, size in zip((rows, columns), ATLAS, strict=True))
    return top, bottom, left, right


def _halve_box(box: Box) -> Box:
    return (box[0] // 2, box[1] // 2, box[2] // 2, box[3] // 2)
