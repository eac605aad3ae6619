"""What is behind a sitter, out of focus, and the clothes below the head. Colours are linear RGB."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from aupipe.synthetic.coordinates import Array, floats, smoothstep

_Size = tuple[int, int]


def paint_background(rng: np.random.Generator, size: _Size, cloth: Array, share: float) -> Array:
    """One of several kinds of room, and the sitter's clothes, narrower by `share` in a wider frame: (height, width, 3).

    The same draws are made whatever the size.
    """
    kinds: tuple[Callable[[np.random.Generator, _Size], Array], ...] = (
        _paint_wall,
        _paint_backdrop,
        _paint_office,
        _paint_lamps,
        _paint_window,
        _paint_outdoors,
    )
    paint = kinds[int(rng.choice(len(kinds), p=[0.3, 0.16, 0.2, 0.1, 0.12, 0.12]))]
    middle, axes = (0.5, float(rng.uniform(1.1, 1.18))), (float(rng.uniform(0.56, 0.7)), float(rng.uniform(0.24, 0.3)))
    background = paint(rng, size)
    dress(background, middle, (axes[0] * share, axes[1]), cloth)
    return np.clip(background, 0.005, 1.6).astype(np.float32)


def dress(background: Array, middle: tuple[float, float], axes: tuple[float, float], cloth: Array) -> None:
    """Paint the shoulders: an ellipse, its place and size as fractions of the frame."""
    across, down = _grid(background.shape[:2])
    reach = ((across - middle[0]) / axes[0]) ** 2 + ((down - middle[1]) / axes[1]) ** 2
    edge = np.clip((1 - reach) * len(background) / 12, 0, 1)[..., None]
    shaded = cloth * (1 - 0.45 * np.clip(reach, 0, 1) ** 3)[..., None]
    background += edge * (shaded - background)


def _grid(size: tuple[int, ...]) -> tuple[Array, Array]:
    """Right and down as fractions of the frame, (1, width) and (height, 1)."""
    height, width = size
    return np.arange(width, dtype=np.float32)[None] / width, np.arange(height, dtype=np.float32)[:, None] / height


def _colour(rng: np.random.Generator, low: float, high: float, hue: float) -> Array:
    """A colour (3,) of a brightness between the two, more colourful with `hue`."""
    return floats(np.clip(rng.uniform(low, high) * np.exp(rng.normal(0, hue, 3)), 0.005, 1.2))


def _clouds(rng: np.random.Generator, size: _Size, grids: tuple[int, ...], fall: float = 0.6) -> Array:
    """Noise (height, width) of unit scale: grids of so many cells across, each `fall` as strong as the one before."""
    total = np.zeros(size, np.float32)
    for power, cells in enumerate(grids):
        coarse = rng.standard_normal((cells + cells // 3, cells), dtype=np.float32)
        total += np.float32(fall**power) * cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
    return total


def _soften(picture: Array, share: float) -> Array:
    """Out of focus by a share of the frame's height; blurred at a smaller size where that makes no difference."""
    sigma = share * len(picture)
    step = max(1, int(sigma / 2))
    small = cv2.resize(picture, None, fx=1 / step, fy=1 / step, interpolation=cv2.INTER_AREA) if step > 1 else picture
    small = cv2.GaussianBlur(small, (0, 0), max(0.4, sigma / step))
    return cv2.resize(small, picture.shape[1::-1], interpolation=cv2.INTER_LINEAR)


def _paint_wall(rng: np.random.Generator, size: _Size) -> Array:
    wall = np.float32(rng.uniform(0.03, 0.6)) + rng.normal(0, 0.04, 3).astype(np.float32)
    slope = _grid(size)[1] * np.float32(rng.normal(0, 0.12))
    return np.clip(wall + (0.05 * _clouds(rng, size, (5,)) + slope)[..., None], 0.01, 1)


def _paint_backdrop(rng: np.random.Generator, size: _Size) -> Array:
    """A studio's: from one colour to another, in a direction or round a spot of light."""
    hue = 0.45 if rng.random() < 0.3 else 0.12
    first, second = _colour(rng, 0.02, 0.6, hue), _colour(rng, 0.01, 0.5, hue)
    across, down = _grid(size)
    angle, spot, at = rng.uniform(0, 2 * np.pi), rng.random() < 0.5, rng.uniform(0.25, 0.75, 2)
    along = 0.5 + (across - 0.5) * np.cos(angle) + (down - 0.5) * np.sin(angle)
    round_it = 1.3 * np.hypot(across - at[0], down - at[1])
    mixed = smoothstep(round_it if spot else along, 0.0, 1.0)[..., None]
    return floats(first + mixed * (second - first))


def _paint_office(rng: np.random.Generator, size: _Size) -> Array:
    """A wall with shelves, frames, doors and screens: upright rectangles in perspective from nowhere in particular."""
    height, width = size
    room = np.empty((*size, 3), np.float32)
    room[:] = _colour(rng, 0.15, 0.65, 0.1)
    for _ in range(int(rng.integers(5, 14))):
        left, top, wide, tall = rng.uniform(-0.2, 0.95), rng.uniform(-0.2, 0.9), rng.gamma(2, 0.11), rng.gamma(2, 0.13)
        corners = np.array([[left, top], [left + wide, top], [left + wide, top + tall], [left, top + tall]])
        corners[:, 1] += (corners[:, 0] - 0.5) * rng.normal(0, 0.03)
        points = np.rint(corners * [width, height]).astype(np.int32)
        colour, border = _colour(rng, 0.02, 0.8, 0.18), _colour(rng, 0.02, 0.5, 0.1)
        cv2.fillConvexPoly(room, points, tuple(map(float, colour)))
        if rng.random() < 0.5:
            cv2.polylines(room, [points], True, tuple(map(float, border)), max(1, round(0.012 * height)))
    room *= np.exp(0.12 * _clouds(rng, size, (4,)))[..., None]
    return _soften(room, float(rng.uniform(0.003, 0.03)))


def _paint_lamps(rng: np.random.Generator, size: _Size) -> Array:
    """Lights in the dark, far out of focus: discs."""
    height, width = size
    night = np.empty((*size, 3), np.float32)
    night[:] = _colour(rng, 0.01, 0.12, 0.3)
    night *= np.exp(0.5 * _clouds(rng, size, (3, 6)))[..., None]
    radius = rng.uniform(0.015, 0.06)
    for _ in range(int(rng.integers(8, 40))):
        disc = np.zeros(size, np.float32)
        at = (int(rng.uniform(0, width)), int(rng.uniform(0, height)))
        colour = _colour(rng, 0.1, 0.9, 0.3)
        cv2.circle(disc, at, max(1, round(radius * rng.uniform(0.7, 1.2) * height)), 1.0, -1)
        night += disc[..., None] * colour
    return _soften(night, 0.006)


def _paint_window(rng: np.random.Generator, size: _Size) -> Array:
    """A wall with a bright window, its bars, and the light that spreads from it."""
    height, width = size
    room = np.empty((*size, 3), np.float32)
    room[:] = _colour(rng, 0.06, 0.4, 0.08)
    pane = np.zeros(size, np.float32)
    left, top = rng.uniform(-0.3, 0.8), rng.uniform(-0.1, 0.3)
    wide, tall = rng.uniform(0.25, 0.7), rng.uniform(0.3, 0.9)
    box = (np.array([left, top, left + wide, top + tall]) * [width, height, width, height]).astype(int)
    cv2.rectangle(pane, tuple(map(int, box[:2])), tuple(map(int, box[2:])), 1.0, -1)
    bars = int(rng.integers(0, 4))
    for n in range(1, bars + 1):
        x = int(box[0] + (box[2] - box[0]) * n / (bars + 1))
        cv2.line(pane, (x, int(box[1])), (x, int(box[3])), 0.1, max(1, round(0.02 * height)))
    outside = _colour(rng, 0.7, 1.5, 0.1) * np.exp(0.2 * _clouds(rng, size, (4, 9)))[..., None]
    glow = _soften(pane, 0.1)[..., None]
    pane = _soften(pane, float(rng.uniform(0.004, 0.015)))[..., None]
    return floats(room * (1 + 0.6 * glow) + pane * (outside - room))


def _paint_outdoors(rng: np.random.Generator, size: _Size) -> Array:
    """Sky above, leaves, earth or houses below: noise of many sizes."""
    sky, ground, other = _colour(rng, 0.4, 1.1, 0.05), _colour(rng, 0.03, 0.25, 0.1), _colour(rng, 0.05, 0.4, 0.14)
    sky[2] *= np.float32(rng.uniform(1.0, 1.5))
    ground[1] *= np.float32(rng.uniform(1.0, 1.5))
    horizon = rng.uniform(-0.3, 0.7)
    leaves, edge = _clouds(rng, size, (3, 6, 12, 24, 48), 0.75), _clouds(rng, size, (3, 7), 0.5)
    below = smoothstep(_grid(size)[1] - np.float32(horizon) + 0.08 * edge, -0.03, 0.03)[..., None]
    land = ground + smoothstep(leaves, -1.2, 1.6)[..., None] * (other - ground)
    return _soften(floats(sky * (1 + 0.08 * edge[..., None]) + below * (land - sky)), float(rng.uniform(0.004, 0.02)))
