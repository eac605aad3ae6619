"""The colour of somebody's hair, and the hair of their face: brows, beards, moustaches, stubble. Colours are linear RGB."""

from __future__ import annotations

import cv2
import numpy as np

from aupipe.synthetic.chart import Chart
from aupipe.synthetic.coordinates import Array, floats, smoothstep
from aupipe.synthetic.head import ATLAS
from aupipe.synthetic.identity import Identity

# Reflectance of hair from black to fair, red hair's, and white hair's.
_SHADES = floats(
    [[0.012, 0.010, 0.009], [0.035, 0.022, 0.015], [0.085, 0.050, 0.028], [0.19, 0.125, 0.065], [0.40, 0.29, 0.16]]
)
_RED, _WHITE = floats([0.23, 0.075, 0.025]), floats([0.52, 0.50, 0.47])
_STUBBLE = {"none": 0.0, "shadow": 0.22, "stubble": 0.5, "moustache": 0.08, "goatee": 0.12, "short": 0.92}


def draw_hair_colour(identity: Identity, rng: np.random.Generator) -> tuple[Array, Array]:
    """The colour (3,) that the hair grew in, and what it is now that some of it is white."""
    pale = identity.ancestry[2] * (1 - smoothstep(floats(identity.melanin), 0.6, 1.2))
    shade = np.clip(rng.normal(0.5, 0.4) + 3.4 * pale * rng.random(), 0, len(_SHADES) - 1)
    grown = floats([np.interp(shade, np.arange(len(_SHADES)), _SHADES[:, k]) for k in range(3)])
    if rng.random() < 0.14 * pale:
        grown = _RED * np.float32(rng.uniform(0.6, 1.5))
    warmth = floats(np.exp(rng.normal(0, 0.1) * np.array([1.0, 0.1, -0.6])))
    grown = grown * warmth * np.float32(np.exp(rng.normal(0, 0.2)))
    return grown, grown + np.float32(identity.grey) * (_WHITE * np.float32(rng.uniform(0.75, 1.15)) - grown)


def paint_brows(identity: Identity, chart: Chart, rng: np.random.Generator) -> Array:
    """How much of the skin brow hairs cover: an arc of slanted strands, thinner towards the temple.

    Straight or arched, high or low, thin or bushy, close together or far apart; a few people's meet.
    """
    across, y = np.abs(chart.x), chart.y
    height, arch = 0.62 + rng.normal(0, 0.07), rng.uniform(0.03, 0.17) * (0.7 + 0.6 * identity.femininity)
    thickness = float(np.exp(rng.normal(np.log(0.125), 0.3))) * (1.2 - 0.5 * identity.femininity)
    density, start, end = float(rng.beta(2.5, 1.2)), rng.uniform(0.2, 0.42), rng.uniform(1.62, 1.9)
    peak, drop, taper = rng.uniform(0.55, 0.8), rng.uniform(0.1, 0.4), rng.uniform(0.35, 0.85)
    along = np.clip((across - start) / (end - start), 0, 1)
    bow = arch * np.sin(np.clip(along / peak, 0, 1.6) * np.pi / 2) - drop * np.clip(along - peak, 0, 1) ** 1.3
    width = np.clip(thickness, 0.055, 0.24) * (1 - taper * along**1.5) + 0.02
    profile = np.exp(-(np.abs((y - height - bow) / width) ** 2.4))
    inner = smoothstep(across, start - 0.1, start + 0.12)
    if rng.random() < 0.05 * (1 - identity.femininity) + 0.01:
        inner = np.maximum(inner, np.float32(rng.uniform(0.2, 0.5)))
    profile = profile * inner * (1 - smoothstep(across, end - 0.25, end + 0.05))
    noise = rng.standard_normal(ATLAS, dtype=np.float32)
    slant = np.eye(9, dtype=np.float32) * (2.4 / 9)
    left, right = cv2.filter2D(noise, -1, slant[::-1].copy()), cv2.filter2D(noise, -1, slant)
    strands = left + smoothstep(-chart.x, -0.05, 0.05) * (right - left)
    cover = profile * (0.35 + 0.75 * density) * (1 + 0.5 * strands)
    return np.clip(cover, 0, 1) * 0.94 * (chart.z > 0.6)


def paint_beard(identity: Identity, chart: Chart, lips: Array, rng: np.random.Generator) -> Array:
    """How much of the skin a man's beard covers, from a shaved shadow to a short beard; 0 for women."""
    if identity.sex == "F":
        return np.zeros(ATLAS, np.float32)
    across, y = np.abs(chart.x), chart.y + 0.05 * chart.wobble(rng)
    high = rng.uniform(1.15, 1.75)  # how far below the eyes the beard ends on the cheek
    line = high + 0.45 * smoothstep(across, 0.5, 1.1) - (high - 0.4) * smoothstep(across, 1.5, 2.2)  # cheek, then sideburn
    whole = smoothstep(-y - line, -0.12, 0.3) * (1 - smoothstep(-y, 3.3, 3.9)) * smoothstep(chart.z, 0.3, 0.75)
    droop = 0.25 * across**2
    moustache = smoothstep(-y - droop, 1.38, 1.5) * (1 - smoothstep(-y - droop, 1.72, 1.92))
    moustache *= (1 - smoothstep(across, 0.85, 1.15)) * (0.6 + 0.4 * smoothstep(across, 0.02, 0.14))
    chin = smoothstep(-y, 2.3, 2.5) * (1 - smoothstep(-y, 3.3, 3.8)) * (1 - smoothstep(across, 0.5, 0.75))
    sides = smoothstep(across, 0.7, 0.85) * (1 - smoothstep(across, 0.95, 1.15)) * smoothstep(-y, 1.5, 1.75)
    chin = np.maximum(chin, 0.9 * sides * (1 - smoothstep(-y, 2.7, 3.1)))
    shape = whole * float(_STUBBLE[identity.beard]) * rng.uniform(0.7, 1.1)
    if identity.beard in ("moustache", "goatee"):
        shape = np.maximum(shape, moustache * rng.uniform(0.75, 0.95))
    if identity.beard == "goatee":
        shape = np.maximum(shape, chin * rng.uniform(0.75, 0.95))
    bare = 0.75 * np.exp(-((across / 0.16) ** 2) - ((y + 2.36) / 0.1) ** 2)  # below the middle of the lower lip
    noise = rng.standard_normal(ATLAS, dtype=np.float32)
    strands = 0.3 * noise + 2.2 * cv2.blur(noise[::-1], (2, 9))
    patchy = 1 + 0.12 * chart.wobble(rng)
    cover = shape * (1 - bare) * (1 - lips) * patchy * (1 + (0.25 + 0.35 * (1 - shape)) * strands)
    return np.clip(cover, 0, 0.95).astype(np.float32)
