"""What passes before a face: hands, mugs, glasses of water, phones, microphones and tissues, modelled as reliefs."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from aupipe.synthetic.coordinates import Array, floats, smoothstep
from aupipe.synthetic.hands import POSES, Hand
from aupipe.synthetic.identity import Identity
from aupipe.synthetic.relief import Point, Relief

_BOX = (-1.45, -3.7, 1.45, 1.75)  # left, bottom, right, top
_CENTRES: dict[str, Point] = {"open hand": (0, 1.0), "flat hand": (0, 1.0), "fist": (0, 0.75), "pointing hand": (-0.25, 1.5)}


def model(kind: str, rng: np.random.Generator, scale: float, identity: Identity) -> tuple[Relief, Point]:
    """A thing of KINDS with the hand and arm that belong to it, the arm downwards, and the point that it is placed by."""
    relief = Relief(_BOX, scale)
    hand = Hand(relief, identity, rng)
    if kind in POSES:
        hand.show(kind, rng)
        centre = _CENTRES[kind]
    else:
        width, held, front, centre = _THINGS[kind](relief, rng)
        hand.grip(width, held, front, thumb=kind in ("mug", "glass", "microphone"))
    _roughen(relief, rng)
    return relief, centre


def _roughen(relief: Relief, rng: np.random.Generator) -> None:
    """Spots and wrinkles of skin and cloth: smooth noise in colour and height, the same at every scale."""
    coarse, fine = (rng.standard_normal((n * 2, n), dtype=np.float32) for n in (14, 60))
    width, height = relief.size[::-1]
    noise = [cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) for grid in (coarse, fine)]
    relief.colour *= np.exp(0.04 * noise[0] + 0.04 * noise[1])[..., None]
    relief.height += np.float32(0.004) * noise[0]


def _column(relief: Relief, width: float) -> Array:
    """The height of an upright cylinder's side over each column (1, w)."""
    return np.sqrt(np.maximum((width / 2) ** 2 - relief.x**2, 0)).astype(np.float32)


def _box(left: float, bottom: float, right: float, top: float) -> Array:
    return floats([[left, bottom], [right, bottom], [right, top], [left, top]])


def _paint(rng: np.random.Generator) -> Array:
    return floats(np.clip(rng.uniform(0.03, 0.75) * np.exp(rng.normal(0, 0.5, 3)), 0.02, 0.85))


def _make_mug(relief: Relief, rng: np.random.Generator) -> tuple[float, float, float, Point]:
    width, tall, colour = float(rng.uniform(0.75, 0.9)), float(rng.uniform(0.85, 1.05)), _paint(rng)
    side = width / 2
    relief.slab(_box(-side, 0, side, tall), _column(relief, width), colour, round_=0.05, gloss=0.5)
    if rng.random() < 0.5:
        stripe, band = _paint(rng), float(rng.uniform(0.2, 0.5)) * tall
        relief.slab(_box(-side, band, side, band + 0.2), _column(relief, width) + 0.004, stripe, round_=0.01, gloss=0.5)
    relief.capsule(((-side + 0.05, tall), (side - 0.05, tall)), (0.035, 0.035), (0.12, 0.12), colour, gloss=0.5)
    for (x0, y0), (x1, y1) in zip(handle := [(-1, 0.75), (-1.5, 0.7), (-1.5, 0.3), (-1, 0.22)], handle[1:], strict=False):
        ends = ((side * x0, tall * y0), (side * x1, tall * y1))
        relief.capsule(ends, (0.06, 0.06), (0.0, 0.0), colour, gloss=0.5)
    return width, 0.45 * tall, 0.5 * width + 0.03, (0.0, 0.85 * tall)


def _make_glass(relief: Relief, rng: np.random.Generator) -> tuple[float, float, float, Point]:
    width, tall, level = float(rng.uniform(0.62, 0.75)), float(rng.uniform(1.0, 1.3)), float(rng.uniform(0.3, 0.8))
    side, drink = width / 2, floats(rng.choice([[0.5, 0.55, 0.55], [0.55, 0.3, 0.05], [0.2, 0.06, 0.03]]))
    body = floats([[-0.85 * side, 0], [0.85 * side, 0], [side, tall], [-side, tall]])
    relief.slab(body, _column(relief, width), floats([0.5, 0.55, 0.56]), round_=0.03, gloss=1.2)
    full = floats([[-0.84 * side, 0.06], [0.84 * side, 0.06], [0.93 * side, tall * level], [-0.93 * side, tall * level]])
    relief.slab(full, _column(relief, width) + 0.003, drink, round_=0.02, gloss=1.2)
    relief.capsule(((-side, tall), (side, tall)), (0.016, 0.016), (0.1, 0.1), floats([0.8, 0.85, 0.85]), gloss=1.0)
    held = 0.4 * tall
    relief.thin(0.35 + 0.5 * np.abs(relief.x) / side, (-0.02, tall + 0.05))
    return width, held, 0.5 * width + 0.03, (0.0, 0.85 * tall)


def _make_phone(relief: Relief, rng: np.random.Generator) -> tuple[float, float, float, Point]:
    colour = _paint(rng) if rng.random() < 0.4 else floats([0.02, 0.02, 0.025])
    relief.slab(_box(-0.37, -0.45, 0.37, 1.08), 0.12, colour, round_=0.05, gloss=0.25)
    relief.slab(_box(-0.33, 0.66, -0.03, 1.04), 0.135, 0.6 * colour, round_=0.03, gloss=0.3)
    for x, y in ((-0.25, 0.95), (-0.25, 0.76), (-0.11, 0.86)):
        relief.capsule(
            ((x, y), (x + 0.001, y)), (0.07, 0.07), (0.14, 0.14), floats([0.01, 0.01, 0.012]), flat=0.3, gloss=0.9
        )
    return 0.74, 0.0, 0.16, (0.0, 0.55)


def _make_microphone(relief: Relief, rng: np.random.Generator) -> tuple[float, float, float, Point]:
    dark = floats(np.full(3, rng.uniform(0.01, 0.06)))
    head = dark if rng.random() < 0.5 else floats([0.22, 0.22, 0.23])
    relief.capsule(((0.0, -0.9), (0.0, 0.55)), (0.10, 0.15), (0.0, 0.02), dark, gloss=0.3)
    relief.capsule(((0.0, 0.68), (0.0, 0.80)), (0.27, 0.25), (0.0, 0.0), head, gloss=0.15)
    relief.capsule(((-0.25, 0.63), (0.25, 0.63)), (0.04, 0.04), (0.14, 0.14), 1.5 * head, gloss=0.5)
    return 0.28, 0.0, 0.16, (0.0, 0.95)


def _make_tissue(relief: Relief, rng: np.random.Generator) -> tuple[float, float, float, Point]:
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    waves = sum(rng.normal(0, 0.035) * np.cos(n * angle + rng.uniform(0, 6)) for n in range(2, 11))
    edge = np.stack([0.5 * (1 + waves) * np.cos(angle), 0.42 + 0.52 * (1 + waves) * np.sin(angle)], 1)
    folds = rng.standard_normal((9, 9), dtype=np.float32)
    creased = np.abs(cv2.resize(folds, relief.size[::-1], interpolation=cv2.INTER_CUBIC))
    relief.slab(edge, 0.1, floats([0.72, 0.71, 0.70]) * np.float32(rng.uniform(0.8, 1.05)), round_=0.06)
    relief.crease(0.06 * (1 - smoothstep(creased, 0.0, 0.6)))
    return 0.6, 0.1, 0.16, (0.0, 0.5)


_THINGS: dict[str, Callable[[Relief, np.random.Generator], tuple[float, float, float, Point]]] = {
    "mug": _make_mug,
    "glass": _make_glass,
    "phone": _make_phone,
    "microphone": _make_microphone,
    "tissue": _make_tissue,
}
KINDS = (*POSES, *_THINGS)
