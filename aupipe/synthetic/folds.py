"""The skin's folds: what each AU draws on the face, as a signed shading map in the atlas (valley below 0, ridge above).

The lines follow the FACS manual's appearance changes. Older people have deeper folds, and keep a trace of them at rest:
a resting face that looks a little like an AU is what a detector must learn to see through.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import cv2
import numpy as np

from aupipe.synthetic.chart import Chart
from aupipe.synthetic.coordinates import Array
from aupipe.synthetic.head import ATLAS
from aupipe.synthetic.identity import Identity

Point = tuple[float, float]
# Per AU: lines in face coordinates (|X|, Y), their half width and depth. Both sides of the face get them.
_LINES: dict[int, list[tuple[list[Point], float, float]]] = {
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
        *(([(0.18, y), (0.42, y - 0.12)], 0.035, 0.7) for y in (-0.15, -0.35, -0.52)),
        ([(0, 0.0), (0.25, 0.03)], 0.05, 0.7),
        ([(0.5, -0.95), (0.66, -1.2)], 0.06, 0.8),
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
_FRONT = 0.55  # depth z behind which nothing folds
_MARGIN = 0.35  # face units around a line that its ridge reaches


@dataclass(frozen=True, slots=True)
class Folds:
    """Shading per AU inside its own rectangle (top, bottom, left, right), and the rectangle that holds them all."""

    maps: dict[int, tuple[tuple[int, int, int, int], Array]]
    bounds: tuple[int, int, int, int]

    def shade(self, strength: dict[int, float]) -> Array:
        """The sum over AUs of strength (0–1) times shading, over `bounds`."""
        top, bottom, left, right = self.bounds
        total = np.ones((bottom - top, right - left), np.float32)
        for au, (box, shading) in self.maps.items():
            amount = strength.get(au, 0.0)
            if amount > 0.02:
                part = total[box[0] - top : box[1] - top, box[2] - left : box[3] - left]
                part += np.float32(amount) * shading
        return total


def paint_folds(identity: Identity, chart: Chart, gain: dict[int, float], rng: np.random.Generator) -> Folds:
    depth = (0.27 + 0.5 * identity.age) * np.exp(rng.normal(0, 0.25))
    across, y = _ragged(chart, rng)
    maps = {}
    for au, lines in _LINES.items():
        shading = np.zeros(ATLAS, np.float32)
        for points, width, amount in lines:
            moved = [(px + rng.normal(0, 0.025) * (px > 0), py + rng.normal(0, 0.035)) for px, py in points]
            _draw_line(shading, across, y, moved, width, amount)
        if au == 14:
            shading -= 0.9 * np.exp(-((across - 1.02) ** 2 + (y + 1.93) ** 2) / 0.012)
        if au == 17:
            shading += _pit_chin(chart, rng)
        shading = np.clip(depth * gain[au] * shading, -0.85, 0.5) * (chart.z > _FRONT)
        maps[au] = _crop(shading)
    boxes = np.array([box for box, _ in maps.values()])
    bounds = tuple(int(v) for v in (boxes[:, 0].min(), boxes[:, 1].max(), boxes[:, 2].min(), boxes[:, 3].max()))
    return Folds(maps, bounds)  # type: ignore[arg-type]


def fold_at_rest(identity: Identity, folds: Folds, rng: np.random.Generator) -> Array:
    """The trace that the folds leave on the resting face, over the whole atlas."""
    rest = np.zeros(ATLAS, np.float32)
    for (top, bottom, left, right), shading in folds.maps.values():
        rest[top:bottom, left:right] += np.float32(max(0.0, rng.normal(0.25 * identity.age, 0.12))) * shading
    return np.clip(rest, -0.7, 0.4)


def _ragged(chart: Chart, rng: np.random.Generator) -> tuple[Array, Array]:
    """|X| and Y with a slow wobble, so that no fold is a ruler's line."""
    rows, columns = ATLAS
    grid = rng.standard_normal((2, 15, 12), dtype=np.float32) * np.float32(0.03)
    wobble = [cv2.resize(g, (columns, rows), interpolation=cv2.INTER_CUBIC) for g in grid]
    return np.abs(chart.x) + wobble[0], chart.y + wobble[1]


def _draw_line(shading: Array, across: Array, y: Array, points: list[Point], width: float, amount: float) -> None:
    """Add a valley along the curve through `points`, with a ridge beside it; it fades at both ends."""
    xs, ys = zip(*points, strict=True)
    box = (across > min(xs) - _MARGIN) & (across < max(xs) + _MARGIN) & (y > min(ys) - _MARGIN) & (y < max(ys) + _MARGIN)
    here = np.flatnonzero(box)
    distance, along = _measure(across.ravel()[here], y.ravel()[here], _smooth(points))
    closed = points[0][0] > 0  # a line that starts on the midline goes on across it
    fade = np.sqrt(np.sin(np.clip(along if closed else 0.5 + along / 2, 0.02, 0.98) * np.pi))
    valley = np.exp(-((distance / (1.15 * width)) ** 2))
    ridge = np.exp(-(((distance - 2.4 * width) / (1.5 * width)) ** 2))
    shading.ravel()[here] += np.float32(amount) * fade * (0.26 * ridge - valley)


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
    return 0.25 * np.exp(-((chart.x / 0.5) ** 2) - ((chart.y + 2.85) / 0.3) ** 2) * np.clip(pits[0] + pits[1], -2, 2)


def _crop(shading: Array) -> tuple[tuple[int, int, int, int], Array]:
    strong = np.abs(shading) > 0.01
    rows, columns = np.flatnonzero(strong.any(1)), np.flatnonzero(strong.any(0))
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    return (top, bottom, left, right), shading[top:bottom, left:right].astype(np.float32)
