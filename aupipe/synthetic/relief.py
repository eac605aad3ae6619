"""Hands and things as reliefs: what a camera sees of them is a height and a colour per pixel, lit by the scene's light.

Lengths are decimetres, x to the right and y up, and heights rise towards the camera.
"""

from __future__ import annotations

import cv2
import numpy as np

from aupipe.synthetic.coordinates import Array, floats
from aupipe.synthetic.light import Light

Point = tuple[float, float]
_EMPTY = -9.0  # the height where nothing is
_SMOOTH = 0.012  # sd of what joins parts that touch
_SHINE = 24


class Relief:
    """A picture in the making, `scale` pixels a decimetre, of the box (left, bottom, right, top)."""

    def __init__(self, box: tuple[float, float, float, float], scale: float) -> None:
        left, bottom, right, top = box
        self.scale = scale
        self.x = (left + np.arange(0.5, (right - left) * scale) / scale).astype(np.float32)[None]
        self.y = (top - np.arange(0.5, (top - bottom) * scale) / scale).astype(np.float32)[:, None]
        self.size = (self.y.size, self.x.size)
        self.height = np.full(self.size, _EMPTY, np.float32)
        self.cover = np.zeros(self.size, np.float32)
        self.colour = np.zeros((*self.size, 3), np.float32)
        self.gloss = np.zeros(self.size, np.float32)

    def find(self, point: Point) -> tuple[float, float]:
        """The pixel (x, y) that a point lies on."""
        return (point[0] - float(self.x[0, 0])) * self.scale, (float(self.y[0, 0]) - point[1]) * self.scale

    def capsule(
        self, ends: tuple[Point, Point], radii: tuple[float, float], heights: tuple[float, float], colour: Array,
        *, flat: float = 1.0, gloss: float = 0.0,
    ) -> None:  # fmt: skip
        """A round bar between two points, of two radii, its axis at two heights; flatter with `flat` below 1."""
        rows, columns = self._around(np.array(ends), max(radii))
        (x0, y0), (x1, y1) = ends
        right, up, length = x1 - x0, y1 - y0, (x1 - x0) ** 2 + (y1 - y0) ** 2 + 1e-9
        x, y = self.x[:, columns] - np.float32(x0), self.y[rows] - np.float32(y0)
        along = np.clip((x * np.float32(right) + y * np.float32(up)) / np.float32(length), 0, 1)
        away = np.hypot(x - along * np.float32(right), y - along * np.float32(up))
        radius = np.float32(radii[0]) + along * np.float32(radii[1] - radii[0])
        height = np.float32(heights[0]) + along * np.float32(heights[1] - heights[0])
        height += np.float32(flat) * np.sqrt(np.maximum(radius**2 - away**2, 0))
        self.put((rows, columns), (radius - away) * np.float32(self.scale) + 0.5, height, colour, gloss)

    def slab(
        self, corners: Array, height: Array | float, colour: Array, *, round_: float = 0.04, gloss: float = 0.0
    ) -> None:
        """A plate or a cylinder's side with these corners (N, 2), its edges rounded; `height` a number or per column."""
        rows, columns = self._around(corners, 0.02)
        region = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.uint8)
        pixels = np.array([self.find((float(x), float(y))) for x, y in corners]) - [columns.start, rows.start]
        cv2.fillPoly(region, [np.rint(16 * pixels).astype(np.int32)], 255, cv2.LINE_AA, 4)
        inside = cv2.distanceTransform((region > 127).astype(np.uint8), cv2.DIST_L2, 5) / np.float32(self.scale)
        bevel = np.minimum(inside / np.float32(round_) - 1, 0)
        columnwise = np.broadcast_to(np.asarray(height, np.float32), (1, self.size[1]))[:, columns]
        self.put((rows, columns), region / np.float32(255), columnwise - np.float32(round_) * bevel**2, colour, gloss)

    def put(self, where: tuple[slice, slice], cover: Array, height: Array, colour: Array, gloss: float) -> None:
        """Lay something on top of what is lower: cover (h, w) 0–1, its height, its colour (3,) or (h, w, 3)."""
        cover = np.clip(cover, 0, 1)
        share = np.where((cover > 0) & (height > self.height[where]), cover, 0)
        share[(share > 0) & (self.cover[where] == 0)] = 1  # nothing below to be mixed with
        self.colour[where] += share[..., None] * (colour - self.colour[where])
        self.gloss[where] += share * (np.float32(gloss) - self.gloss[where])
        self.height[where] = np.where(share > 0.5, height, self.height[where])
        np.maximum(self.cover[where], cover, out=self.cover[where])

    def stain(self, at: Point, along: Point, size: Point, factor: Array) -> None:
        """Multiply the colour by `factor` (3,) on a soft spot, `size` long and wide, its length in the direction `along`."""
        rows, columns = self._around(np.array([at]), 2.5 * max(size))
        x, y = self.x[:, columns] - np.float32(at[0]), self.y[rows] - np.float32(at[1])
        length = float(np.hypot(*along)) + 1e-9
        right, up = np.float32(along[0] / length), np.float32(along[1] / length)
        spot = np.exp(-(((x * right + y * up) / size[0]) ** 2) - ((y * right - x * up) / size[1]) ** 2)
        self.colour[rows, columns] *= 1 + spot[..., None] * (factor - 1)

    def thin(self, cover: Array, rows: tuple[float, float]) -> None:
        """Let light through what has been laid so far between two heights y; `cover` broadcasts over the picture."""
        here = (self.y > rows[0]) & (self.y < rows[1])
        self.cover *= np.where(here, np.minimum(cover, 1), 1)

    def crease(self, depth: Array) -> None:
        """Lower what is there by `depth` (h, w)."""
        self.height -= np.where(self.height > _EMPTY + 1, depth, 0)

    def mirror(self) -> None:
        """Exchange left and right."""
        self.x = -self.x[:, ::-1]
        for name in ("height", "cover", "colour", "gloss"):
            setattr(self, name, np.ascontiguousarray(getattr(self, name)[:, ::-1]))

    def light(self, light: Light, angle: float) -> Array:
        """The picture (h, w, 4) as it looks turned by `angle` (anticlockwise): linear RGB times cover, and cover."""
        there = (self.height > _EMPTY + 1).astype(np.float32)
        sigma = _SMOOTH * self.scale
        weight = cv2.GaussianBlur(there, (0, 0), sigma) + np.float32(1e-4)
        height = cv2.GaussianBlur(self.height * there, (0, 0), sigma) / weight
        normal = np.stack([-np.gradient(height, axis=1) * self.scale, np.gradient(height, axis=0) * self.scale, there], -1)
        normal /= np.linalg.norm(normal, axis=-1, keepdims=True) + np.float32(1e-6)
        cos, sin = np.cos(angle), np.sin(angle)
        normal = normal @ floats([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
        around = cv2.GaussianBlur(height * there, (0, 0), 7 * sigma) / (cv2.GaussianBlur(there, (0, 0), 7 * sigma) + 1e-4)
        open_ = 1 - np.clip(2.2 * (around - height), -0.05, 0.5)
        half = light.towards + floats([0, 0, 1])
        shine = np.clip(normal @ (half / np.linalg.norm(half)), 0, 1) ** _SHINE * self.gloss
        colour = self.colour * light.fall(normal) * open_[..., None] + shine[..., None] * light.key
        return np.dstack([colour * self.cover[..., None], self.cover]).astype(np.float32)

    def _around(self, points: Array, margin: float) -> tuple[slice, slice]:
        """Rows and columns that hold these points (N, 2) and a margin."""
        (left, top), (right, bottom) = (
            self.find((float(points[:, 0].min()), float(points[:, 1].max()))),
            self.find((float(points[:, 0].max()), float(points[:, 1].min()))),
        )
        reach = margin * self.scale + 1
        rows = np.clip([top - reach, bottom + reach + 1], 0, self.size[0]).astype(int)
        columns = np.clip([left - reach, right + reach + 1], 0, self.size[1]).astype(int)
        return slice(int(rows[0]), int(rows[1])), slice(int(columns[0]), int(columns[1]))
