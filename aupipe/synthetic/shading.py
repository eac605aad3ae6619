"""How a session's lights fall on a head: on its vertices, and on the relief of its folds. Colours are linear RGB."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np

from aupipe.synthetic.coordinates import Array, floats
from aupipe.synthetic.folds import Folds, Strength
from aupipe.synthetic.light import Light

_SHINE = 26
_REDDEN = floats([0.10, -0.01, -0.03])  # light that has passed through the skin, where shadow begins
_DARKEST = 0.02
_DIMMEST = 0.35  # of the light in a hollow
_ABOVE = floats([0, 0.35, 0])  # ambient light comes from above: 0.65 + 0.35 y


def light_vertices(normal_R3: Array, light: Light, reach_R: Array | None = None) -> tuple[Array, Array]:
    """Irradiance (R, 4) and gloss (R,): wrapped Lambert key, soft fill, ambient from above, Blinn–Phong highlight.

    Irradiance has a fourth channel, which is 1, because OpenCV is faster with four. `reach_R` is the share of the key light
    that reaches each vertex, where not all of it does.
    """
    half = light.towards + floats([0, 0, 1])
    turn = np.stack([light.towards, light.fill_towards, half / np.linalg.norm(half)])
    key, fill, shine = np.ascontiguousarray(cv2.transform(normal_R3[None], turn)[0].T)
    edge = (key - 0.02) / 0.18
    amounts = np.empty((len(normal_R3), 4), np.float32)
    amounts[:, 0] = np.maximum((key + light.wrap) / (1 + light.wrap), 0)
    amounts[:, 1] = np.clip(0.5 * fill + 0.5, 0, 1)
    amounts[:, 2] = 0.65 + 0.35 * normal_R3[:, 1]
    amounts[:, 3] = np.exp(-edge * edge)
    glossy = np.clip(shine, 0, 1) ** _SHINE * np.float32(light.gloss)
    if reach_R is not None:
        amounts[:, ::3] *= reach_R[:, None]
        glossy *= reach_R
    colours = np.zeros((4, 4), np.float32)
    colours[:3] = np.stack([light.key, light.fill, light.ambient, light.key * _REDDEN], 1)
    irradiance = cv2.transform(amounts[None], colours)[0]
    irradiance[:, 3] = 1
    return irradiance, glossy


def shade_folds(folds: Folds, strength: Mapping[int, Strength], light: Light, turn: Array) -> Array:
    """What folds of these strengths (0–1 per AU) do to the skin's brightness: factors (H, W) over `folds.bounds`.

    `turn` (3, 3) is the head's rotation. Each texel's irradiance with its normal tilted by the relief, through that of the
    smooth skin: a wall that faces the light is bright, the opposite one dark. Hollows are darker in any light.
    """
    key, fill, ambient = (float(colour.mean()) for colour in (light.key, light.fill, light.ambient))
    # In the head's frame, irradiance is two linear functions of a normal: the key light's, where above 0, and the rest.
    sums = np.zeros((4, 4), np.float32)
    sums[0, :3] = key / (1 + light.wrap) * light.towards @ turn
    sums[1, :3] = (0.5 * fill * light.fill_towards + ambient * _ABOVE) @ turn
    of_relief = sums.copy()
    sums[:2, 3] = key * light.wrap / (1 + light.wrap), 0.5 * fill + 0.65 * ambient  # the normal's fourth number is 1
    of_relief[3, 3] = 1
    lit, less = cv2.transform(folds.normal, sums), cv2.transform(folds.raise_relief(strength), of_relief)
    direct, around = cv2.extractChannel(lit, 0), cv2.extractChannel(lit, 1)
    less_direct, less_around, hollow = (cv2.extractChannel(less, k) for k in (0, 1, 3))
    smooth = _add_up(direct, around)
    tilted = _add_up(np.subtract(direct, less_direct, out=less_direct), np.subtract(around, less_around, out=less_around))
    np.divide(tilted, smooth, out=tilted)
    left = np.maximum(np.subtract(1, hollow, out=hollow), np.float32(_DIMMEST), out=hollow)  # where folds cross
    return np.multiply(tilted, left, out=tilted)


def _add_up(direct: Array, around: Array) -> Array:
    total = np.maximum(direct, 0) + around
    return np.maximum(total, np.float32(_DARKEST), out=total)
