"""Hands and forearms, modelled as reliefs: the back of a hand in several poses, and a hand that holds something."""

from __future__ import annotations

import numpy as np

from aupipe.synthetic.coordinates import floats
from aupipe.synthetic.identity import Identity
from aupipe.synthetic.relief import Point, Relief
from aupipe.synthetic.skin import tint

# Knuckles of a right hand seen from its back, wrist at the origin, fingers up; index finger first. Lengths of fingers.
_KNUCKLES = ((-0.30, 0.90), (-0.10, 0.95), (0.10, 0.91), (0.28, 0.82))
_LENGTHS = (0.70, 0.79, 0.73, 0.57)
_PHALANGES = (0.46, 0.30, 0.24)  # shares of a finger's length
_RADII = (0.10, 0.085, 0.075, 0.066)  # at a finger's knuckle, joints and tip
# Curl of the four fingers 0–1, their spread in radians, and where the thumb's tip is.
POSES: dict[str, tuple[tuple[float, float, float, float], float, Point]] = {
    "open hand": ((0.12, 0.05, 0.08, 0.15), 0.16, (-0.72, 0.86)),
    "flat hand": ((0.15, 0.12, 0.12, 0.15), 0.02, (-0.42, 0.93)),
    "fist": ((0.95, 0.97, 0.97, 0.95), 0.02, (-0.30, 0.75)),
    "pointing hand": ((0.05, 0.9, 0.95, 0.95), 0.05, (-0.25, 0.82)),
}


class Hand:
    """Models hands and forearms of one person in a relief."""

    def __init__(self, relief: Relief, identity: Identity, rng: np.random.Generator) -> None:
        self.relief, self.cloth = relief, floats(identity.cloth)
        self.skin = floats(tint(floats(identity.melanin * rng.uniform(0.9, 1.1)), floats(rng.uniform(0.45, 0.7))))
        self.nail = floats(np.clip(self.skin * [1.12, 1.05, 1.05] + 0.03, 0, 1))
        self.bare = float(rng.uniform(0.15, 1.2))  # forearm that no sleeve covers

    def show(self, pose: str, rng: np.random.Generator) -> None:
        """The back of a hand in one of POSES, fingers up, wrist at the origin."""
        curls, spread, tip = POSES[pose]
        bent = np.clip(np.array(curls) + rng.normal(0, 0.07, 4), 0, 1)
        spread *= float(rng.uniform(0.6, 1.3))
        self._arm((0.0, 0.0), (0.0, -1.0))
        for n, (knuckle, length) in enumerate(zip(_KNUCKLES, _LENGTHS, strict=True)):
            self.relief.capsule(((0.55 * knuckle[0], 0.05), knuckle), (0.21, 0.13), (-0.02, 0.04), self.skin, flat=0.65)
            lean = spread * (n - 1.4) + 0.02 * (n - 1.5)
            self._finger(knuckle, length, float(bent[n]), (float(np.sin(lean)), float(np.cos(lean))))
        base = (-0.24, 0.22)
        bend = (0.55 * tip[0] + 0.45 * base[0] - 0.12, 0.45 * base[1] + 0.55 * tip[1] - 0.06)
        self.relief.capsule((base, bend), (0.17, 0.11), (-0.02, 0.03), self.skin, flat=0.8)
        self.relief.capsule((bend, tip), (0.105, 0.078), (0.03, 0.08), self.skin)
        self._finish(bend, tip, 0.078, 0.08)

    def grip(self, width: float, middle: float, front: float, *, thumb: bool) -> None:
        """A hand that holds something `width` wide at the height `middle` from its right side, fingers `front` before it."""
        edge = width / 2
        wrist = (edge + 0.16, middle - 0.62)
        self._arm(wrist, (0.25, -1.0))
        for n in range(4):
            y = middle + 0.27 - 0.18 * n
            knuckle = (edge + 0.12 - 0.015 * n, y)
            self.relief.capsule((wrist, knuckle), (0.2, 0.12), (0.0, 0.06), self.skin, flat=0.7)
            reach = min(width, 0.62) * (0.98, 1.06, 1.0, 0.82)[n]
            bend, tip = (edge - 0.3 * reach, y + 0.03), (edge - reach, y - 0.01)
            self.relief.capsule((knuckle, bend), (0.098, 0.088), (0.06, front), self.skin)
            self.relief.capsule((bend, tip), (0.088, 0.068), (front, front - 0.03), self.skin)
            self._finish(bend, tip, 0.068, front - 0.03)
        if thumb:
            ends = ((edge + 0.1, middle + 0.1), (edge - 0.05, middle + 0.52))
            self.relief.capsule(ends, (0.12, 0.08), (0.02, 0.1), self.skin)

    def _finger(self, knuckle: Point, length: float, curl: float, along: tuple[float, float]) -> None:
        """Three phalanges; one that curls is seen shortened, and its end comes towards or goes from the camera."""
        self.relief.stain(knuckle, (1.0, 0.0), (0.09, 0.06), floats([1.0, 0.86, 0.84]))
        point, height, pitch = knuckle, 0.05, 0.85 * curl
        for n, share in enumerate(_PHALANGES):
            pitch += curl * (0.0, 1.5, 1.0)[n]
            step = length * share * np.cos(pitch)
            onward = (point[0] + along[0] * step, point[1] + along[1] * step)
            drop = height - length * share * np.sin(pitch) * 0.55
            self.relief.capsule((point, onward), (_RADII[n], _RADII[n + 1]), (height, drop), self.skin)
            if curl < 0.6 and n < 2:
                for shift in (-0.022, 0.0, 0.022):
                    at = (onward[0] + shift * along[0], onward[1] + shift * along[1])
                    self.relief.stain(at, (-along[1], along[0]), (0.05, 0.008), floats([0.86, 0.82, 0.80]))
            last, point, height = point, onward, drop
        if curl < 0.6:
            self._finish(last, point, _RADII[-1], height)

    def _finish(self, joint: Point, tip: Point, radius: float, height: float) -> None:
        """The nail of a finger that ends at `tip`."""
        length = float(np.hypot(tip[0] - joint[0], tip[1] - joint[1])) + 1e-9
        right, up = (tip[0] - joint[0]) / length, (tip[1] - joint[1]) / length
        ends = (tip[0] - 0.035 * right, tip[1] - 0.035 * up), (tip[0] + 0.012 * right, tip[1] + 0.012 * up)
        top = height + 0.86 * radius
        self.relief.capsule(ends, (0.040, 0.038), (top, top - 0.01), self.nail, flat=0.3, gloss=0.25)
        self.relief.stain((tip[0] - 0.08 * right, tip[1] - 0.08 * up), (-up, right), (0.04, 0.01), floats([0.85, 0.8, 0.8]))

    def _arm(self, wrist: Point, along: Point) -> None:
        """The forearm from the wrist on, and its sleeve."""
        elbow = (wrist[0] + 3.6 * along[0], wrist[1] + 3.6 * along[1])
        cuff = (wrist[0] + self.bare * along[0], wrist[1] + self.bare * along[1])
        self.relief.capsule((wrist, elbow), (0.22, 0.42), (-0.06, -0.02), self.skin, flat=0.8)
        self.relief.capsule((cuff, elbow), (0.30, 0.56), (0.0, 0.02), self.cloth, flat=0.8)
