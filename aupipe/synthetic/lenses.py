"""Glasses in a frame: lenses, rims and temples drawn over a rendered face, with what they reflect and their shadow.

Outlines are drawn four times larger than the frame and averaged down, so that a rim may be thinner than a pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from aupipe.synthetic.coordinates import Array, floats
from aupipe.synthetic.glasses import Glasses
from aupipe.synthetic.light import Light, aim

Project = Callable[[Array], Array]
_FINER = 4
_CURVE = 1.25  # radius of the lenses' outer face, decimetres
_GAP = 0.14  # between rim and skin, across which the rim casts its shadow
_SKIRT = 0.10  # around the glasses, of what a frame redraws
_IN_FRONT = 0.03  # rims may lie so deep in the skin and be seen
_SCREEN = aim(0.12, -0.1)  # to a screen below the lens, which faces reflect as well as the key light
_PANE = floats([[-0.05, -0.075], [0.045, -0.07], [0.05, 0.075], [-0.045, 0.07]])  # what a lens shows of a window or a lamp


def draw_glasses(linear: Array, glasses: Glasses, matrix: Array, light: Light, depth: Array, project: Project) -> None:
    """Draw them on a frame (height, width, 3) of linear RGB.

    matrix: (3, 4), from the person's coordinates to the camera's · depth: of what has been rendered, in decimetres, of any
    size: glasses vanish behind it · project: from points (N, 3) before the camera to pixels (N, 2) of the frame.
    """
    view = _View(glasses, matrix, project, linear.shape[:2], depth)
    if view.empty:
        return
    here, finest = linear[view.rows, view.columns], 0.006 * len(linear)
    seen = view.find_seen()
    lens, rim = view.cover([rim[1:] for rim in view.rims]) * seen, view.cover([*view.rims, *view.bridge]) * seen
    frame = np.maximum(rim, view.cover(view.list_arms()))
    shadow = view.cast(np.maximum(frame, 0.2 * lens), light)
    here *= (1 - np.float32(0.45) * shadow * (1 - frame))[..., None]
    here *= 1 - lens[..., None] * (1 - glasses.tint)
    for towards, strength in ((light.towards, light.key), (_SCREEN, light.fill + 0.4 * light.ambient)):
        panes = view.list_panes(towards)
        if panes:
            glare = cv2.GaussianBlur(view.cover(panes) * lens, (0, 0), finest)
            here += glare[..., None] * (glasses.coat * strength)
    here += frame[..., None] * (view.shade(frame, light) - here)


class _View:
    """A pair of glasses before a camera: its outlines in pixels, and the part of the frame that it falls on."""

    def __init__(self, glasses: Glasses, matrix: Array, project: Project, size: tuple[int, ...], depth: Array) -> None:
        self.glasses, self.matrix, self.project = glasses, matrix, project
        self.scale = size[0] / 3  # pixels a decimetre
        self.placed, self.rims = self._place(glasses.lenses)
        self.arms = self._place(glasses.arms)
        _, edges = self._place(glasses.bridge)
        self.bridge = [np.concatenate([edges[0], edges[1, ::-1]])[None]]
        self.axes = glasses.middles @ matrix[:, :3].T
        self.axes[:, 0] += matrix[:, 3]
        every = np.concatenate([self.rims.reshape(-1, 2), self.arms[1].reshape(-1, 2)])
        reach = _SKIRT * self.scale
        left, top = np.clip(np.floor(every.min(0) - reach), 0, size[::-1]).astype(int)
        right, bottom = np.clip(np.ceil(every.max(0) + reach), 0, size[::-1]).astype(int)
        self.rows, self.columns = slice(int(top), int(bottom)), slice(int(left), int(right))
        self.size = (int(bottom - top), int(right - left))
        self.empty = min(self.size) <= 0
        self.depth, self.finer = depth, (depth.shape[0] / size[0], depth.shape[1] / size[1])

    def _place(self, points: Array) -> tuple[Array, Array]:
        """Points (…, 3) before the camera, and their pixels (…, 2)."""
        moved = points @ self.matrix[:, :3].T + self.matrix[:, 3]
        return moved, self.project(moved.reshape(-1, 3)).reshape(*points.shape[:-1], 2)

    def cover(self, groups: Sequence[Array]) -> Array:
        """The share of each pixel (h, w) that lies inside an odd number of a group's outlines (K, N, 2)."""
        high, wide = self.size
        sheet, corner = np.zeros((_FINER * high, _FINER * wide), np.uint8), [self.columns.start, self.rows.start]
        for outlines in groups:
            points = np.rint(16 * (_FINER * (outlines - corner + 0.5) - 0.5)).astype(np.int32)
            cv2.fillPoly(sheet, list(points), 255, cv2.LINE_8, 4)
        return cv2.resize(sheet, (wide, high), interpolation=cv2.INTER_AREA) * np.float32(1 / 255)

    def find_seen(self) -> Array:
        """1 where the front lies before what has been rendered: its inverse depth is nearly linear in the picture."""
        middle = self.rims.reshape(-1, 2).mean(0)
        across, down = ((self.rims - middle) / self.scale).reshape(-1, 2).T
        terms = np.stack([np.ones_like(across), across, down, across**2], 1)
        plane = np.linalg.lstsq(terms, -1 / self.placed[..., 2].ravel(), rcond=None)[0].astype(np.float32)
        y, x = (np.arange(s.start, s.stop, dtype=np.float32) for s in (self.rows, self.columns))
        x, y = (x - np.float32(middle[0])) / np.float32(self.scale), (y - np.float32(middle[1])) / np.float32(self.scale)
        nearness = (plane[0] + plane[2] * y)[:, None] + (plane[1] * x + plane[3] * x**2)[None]
        rows, columns = (self._look_up(s, n) for n, s in enumerate((self.rows, self.columns)))
        self.behind = self.depth[np.ix_(rows, columns)]
        return (1 / nearness < self.behind + np.float32(_IN_FRONT)).astype(np.float32)

    def _look_up(self, pixels: slice, axis: int) -> NDArray[np.intp]:
        middle = (np.arange(pixels.start, pixels.stop) + 0.5) * self.finer[axis]
        return np.minimum(middle.astype(np.intp), self.depth.shape[axis] - 1)

    def list_arms(self) -> list[Array]:
        """The pieces of the temples that nothing hides."""
        pieces: list[Array] = []
        for points, pixels in zip(*self.arms, strict=True):
            middle = pixels.mean(0)
            row, column = (
                np.clip((middle[:, 1 - axis] + 0.5) * self.finer[axis], 0, self.depth.shape[axis] - 1).astype(int)
                for axis in (0, 1)
            )
            seen = -points.mean(0)[:, 2] < self.depth[row, column] + 0.02
            quads = np.stack([pixels[0, :-1], pixels[0, 1:], pixels[1, 1:], pixels[1, :-1]], 1)
            pieces += list(quads[seen[:-1] & seen[1:], None])
        return pieces

    def list_panes(self, towards: Array) -> list[Array]:
        """Where the lenses, which are parts of a sphere, reflect a light in this direction: half-way to the camera's."""
        panes = []
        for middle, right, up, forward in self.axes:
            half = towards - middle / np.linalg.norm(middle)
            front = float(half @ forward)
            at = _CURVE * np.array([half @ right, half @ up]) / max(front, 1e-6)
            if front > 0.2 and np.abs(at).max() < 0.4:
                corners = at + _PANE
                points = middle + corners[:, :1] * right + corners[:, 1:] * up
                panes.append(self.project(points.astype(np.float32))[None])
        return panes

    def cast(self, dark: Array, light: Light) -> Array:
        """The shadow (h, w) on the head of what is so dark before it, on the side that the light does not come from."""
        front = max(0.4, float(light.towards[2]))
        x, y = -_GAP * self.scale * light.towards[:2] / front * [1, -1]
        moved = cv2.warpAffine(dark, floats([[1, 0, x], [0, 1, y]]), self.size[::-1])
        soft = cv2.GaussianBlur(moved, (0, 0), (0.012 + 0.04 * light.wrap) * self.scale)
        return np.asarray(soft * (self.behind < 99), np.float32)

    def shade(self, frame: Array, light: Light) -> Array:
        """The frame's own colour (h, w, 3) in this light, brighter along its upper edges."""
        front = self.axes[:, 3].mean(0)
        plain = self.glasses.colour * light.fall((front / np.linalg.norm(front)).astype(np.float32))
        step = max(1, round(0.012 * self.scale))
        above = np.zeros_like(frame)
        above[step:] = frame[:-step]
        edge = np.clip(frame - above, 0, 1)[..., None]
        return plain + edge * (np.float32(0.3 * self.glasses.gloss) * (light.key + light.ambient))
