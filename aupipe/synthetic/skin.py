"""Painting a person: skin, brows, scalp, eyes and teeth, all procedural, in the atlas. Colours are linear RGB.

Skin is two absorbing layers: its colour is exp(−(melanin · k_m + blood · k_h)), with the absorptions below per channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from aupipe.synthetic.chart import Chart, load_chart
from aupipe.synthetic.coordinates import Array, floats, smoothstep
from aupipe.synthetic.folds import Folds, fold_at_rest, paint_folds
from aupipe.synthetic.hair import hair_cover
from aupipe.synthetic.head import ATLAS, PATCHES
from aupipe.synthetic.identity import Identity, stream
from aupipe.synthetic.mesh import HAIR, LASHES, LEFT_EYE, LOWER_TEETH, MOUTH, RIGHT_EYE, TONGUE, UPPER_TEETH

_MELANIN_ABSORBS = floats([0.26, 0.42, 0.62])
_BLOOD_ABSORBS = floats([0.11, 0.52, 0.56])
_BARE = floats([0.90, 0.82, 0.78])
_IRISES = floats([[0.16, 0.09, 0.06], [0.11, 0.07, 0.05], [0.10, 0.18, 0.28], [0.13, 0.18, 0.12], [0.07, 0.04, 0.03]])


@dataclass(frozen=True, slots=True)
class Skin:
    """A person's atlas (rows, columns, 3) at rest and the folds that each AU adds to it."""

    albedo: Array
    folds: Folds


def paint_skin(identity: Identity, gain: dict[int, float]) -> Skin:
    """`gain`: how strongly this person moves each AU; their folds deepen with it."""
    rng, chart = stream(identity.seed, identity.subject, "skin"), load_chart()
    hair = _draw_hair_colour(identity, rng)
    colour = _paint_complexion(identity, chart, rng)
    colour = _cover(colour, _paint_brows(identity, chart, rng), hair)
    colour = _paint_scalp(colour, identity, chart, hair, rng)
    collar = -4.55 - 0.5 * np.exp(-((chart.x / 1.2) ** 2)) * (chart.z > 0.2)
    colour = _cover(colour, smoothstep(collar - chart.y, 0, 0.08), floats(identity.cloth))
    folds = paint_folds(identity, chart, gain, rng)
    colour *= (1 + fold_at_rest(identity, folds, rng))[..., None]
    colour[~chart.covered] = colour[chart.covered].mean(0)
    _put(colour, LEFT_EYE, eye := _paint_eye(identity, rng))
    _put(colour, RIGHT_EYE, eye[:, ::-1])
    _put(colour, UPPER_TEETH, teeth := _paint_teeth(rng))
    _put(colour, LOWER_TEETH, teeth[::-1])
    for part, shade in (
        (TONGUE, (0.30, 0.10, 0.10)),
        (LASHES, 0.5 * hair + 0.06 * (1 - identity.femininity)),
        (MOUTH, (0.07, 0.018, 0.02)),
    ):
        _put(colour, part, np.tile(floats(shade), (8, 8, 1)))
    _put(colour, HAIR, _paint_strands(hair, rng))
    return Skin(np.clip(colour, 0.003, 1).astype(np.float32), folds)


def tint(melanin: Array, blood: Array) -> Array:
    """The colour (…, 3) of skin with so much of its two pigments (…)."""
    return _BARE * np.exp(-(melanin[..., None] * _MELANIN_ABSORBS + blood[..., None] * _BLOOD_ABSORBS))


def cloud(rng: np.random.Generator, grids: tuple[int, ...], fall: float = 0.7) -> Array:
    """Noise over the atlas: grids of so many columns, each `fall` as strong as the one before; unit variance."""
    rows, columns = ATLAS
    total = np.zeros(ATLAS, np.float32)
    for power, grid in enumerate(grids):
        coarse = rng.standard_normal((max(2, grid * rows // columns), grid), dtype=np.float32)
        total += np.float32(fall**power) * cv2.resize(coarse, (columns, rows), interpolation=cv2.INTER_CUBIC)
    return total / total.std()


def _bump(x: Array, y: Array, at: tuple[float, float], size: tuple[float, float]) -> Array:
    return np.exp(-(((x - at[0]) / size[0]) ** 2) - ((y - at[1]) / size[1]) ** 2)


def _cover(colour: Array, amount: Array, over: Array) -> Array:
    return colour + amount[..., None] * (over - colour)


def _paint_complexion(identity: Identity, chart: Chart, rng: np.random.Generator) -> Array:
    across, y = np.abs(chart.x), chart.y
    coarse, fine = cloud(rng, (4, 8, 16, 32, 64, 128)), cloud(rng, (32, 64, 128, 256))
    grain = rng.standard_normal(ATLAS, dtype=np.float32)
    melanin = identity.melanin * (1 + 0.05 * coarse) + 0.035 * fine + 0.012 * grain
    blood = np.clip(rng.normal(0.5, 0.12), 0.25, 0.8) * (1 + 0.08 * coarse[::-1])
    blood += 0.28 * rng.uniform(0.2, 1) * _bump(across, y, (1.25, -0.95), (0.55, 0.5))
    blood += 0.30 * rng.uniform(0.2, 1) * _bump(across, y, (0, -1.0), (0.35, 0.35))
    melanin += rng.uniform(0.05, 0.3) * _bump(across, y, (0.9, -0.28), (0.45, 0.22)) + chart.lids * rng.uniform(0, 0.25)
    melanin += _paint_moles(rng)
    lips = cv2.GaussianBlur(chart.lips, (0, 0), 1.5)
    rouge = rng.uniform(0.3, 0.9) if identity.sex == "F" and rng.random() < 0.6 else 0.0
    blood += lips * (rng.uniform(0.5, 1.1) + rouge) * (1 + 0.12 * fine)
    melanin += lips * (0.12 * rng.uniform(0, 1) + 0.15 * identity.melanin)
    if identity.sex == "M":
        line = 1.3 + 0.45 * smoothstep(across, 0.5, 1.1) - 0.9 * smoothstep(across, 1.5, 2.3)  # cheek, then sideburn
        beard = smoothstep(-y - line, -0.1, 0.35) * (1 - smoothstep(-y, 3.1, 3.9)) * (1 - lips)
        beard *= smoothstep(chart.z, 0.35, 0.9)
        melanin += rng.uniform(0, 0.75) * beard * (0.35 + 0.25 * np.abs(grain))
    # The lid's crease, which the mesh does not have.
    crease = 0.27 - 0.55 * (across - 0.98) ** 2
    melanin += (0.9 - 0.6 * identity.ancestry[1]) * _bump(across, y - crease, (0.98, 0), (0.36, 0.035))
    return tint(melanin, blood)


def _paint_moles(rng: np.random.Generator) -> Array:
    spots = (rng.random(ATLAS, dtype=np.float32) < 0.002 * rng.random()).astype(np.float32)
    return cv2.GaussianBlur(spots, (0, 0), 1.2) * np.float32(4 * rng.uniform(0.2, 1))


def _draw_hair_colour(identity: Identity, rng: np.random.Generator) -> Array:
    fair = np.clip(rng.normal(0, 1), 0, 2.5) * (1 - np.clip(identity.melanin - 0.4, 0, 1))
    grey = 0.3 * np.clip(2 * identity.age - 1, 0, 1) * rng.uniform(0, 1)
    return floats([0.03, 0.022, 0.018]) + floats([0.14, 0.08, 0.035]) * fair + grey


def _paint_brows(identity: Identity, chart: Chart, rng: np.random.Generator) -> Array:
    """How much of the skin brow hairs cover: an arc that thins towards the temple, of slanted strands."""
    across, y = np.abs(chart.x), chart.y
    height, thickness = 0.62 + rng.normal(0, 0.06), rng.uniform(0.11, 0.19) * (1.15 - 0.5 * identity.femininity)
    density = rng.uniform(0.6, 1.0)
    arch = 0.16 * np.sin(np.clip((across - 0.3) / 1.5, 0, 1) * np.pi * 0.75) - 0.24 * np.clip(across - 1.35, 0, 1)
    along = np.clip((across - 0.28) / 1.5, 0, 1)
    width = thickness * (1 - 0.6 * along**2) + 0.02
    profile = np.exp(-(((y - height - arch) / width) ** 2))
    profile *= smoothstep(across, 0.22, 0.42) * (1 - smoothstep(across, 1.55, 1.82))
    noise = rng.standard_normal(ATLAS, dtype=np.float32)
    slant = np.eye(7, dtype=np.float32) * (2 / 7)
    strands = np.where(chart.x > 0, cv2.filter2D(noise, -1, slant[::-1].copy()), cv2.filter2D(noise, -1, slant))
    return np.clip(profile * density * (1.05 + 0.45 * strands), 0, 1) * 0.92 * (chart.z > 0.6)


def _paint_scalp(colour: Array, identity: Identity, chart: Chart, hair: Array, rng: np.random.Generator) -> Array:
    cover = hair_cover(chart.x, chart.y, chart.z, identity)
    tone = cloud(rng, (16, 32, 64, 128), 0.9)
    noise = rng.standard_normal(ATLAS, dtype=np.float32)
    strands = cv2.blur(noise, (1, 17)) * 4 + cv2.blur(noise[::-1], (3, 41)) * 5
    edge = 4 * cover * (1 - cover)
    cover = np.clip(cover + 0.14 * edge * strands, 0, 1) * (0.1 if identity.hair == "bald" else 1.0)
    locks = hair * np.clip(1 + 0.32 * strands + 0.18 * tone, 0.25, 3)[..., None]
    return _cover(colour, cover, locks)


def _paint_strands(hair: Array, rng: np.random.Generator) -> Array:
    streaks = cv2.blur(rng.standard_normal((128, 56), dtype=np.float32), (1, 31)) * 4
    return np.clip(hair * (1 + 0.35 * streaks)[..., None], 0.004, 1)


def _paint_eye(identity: Identity, rng: np.random.Generator) -> Array:
    across, down = np.meshgrid(np.linspace(-1, 1, 56, dtype=np.float32), np.linspace(-1, 1, 56, dtype=np.float32))
    radius, angle = np.hypot(across, down), np.arctan2(down, across)
    darkness = min(1.0, identity.melanin / 1.2)
    odds = np.array([0.3, 0.2, 0.22 * (1 - darkness) + 1e-3, 0.14 * (1 - darkness) + 1e-3, 0.1 + 0.6 * darkness])
    iris = _IRISES[rng.choice(5, p=odds / odds.sum())]
    white = floats([1.0, 0.97, 0.95]) * np.float32(0.62) * (1 - 0.3 * smoothstep(radius, 0.5, 1.0))[..., None]
    rays = 1 + 0.3 * np.sin(angle * 23 + rng.normal()) * (radius > 0.2)
    ring = iris * (rays * (1 - 0.55 * smoothstep(radius, 0.36, 0.47)))[..., None]
    eye = _cover(white, 1 - smoothstep(radius, 0.43, 0.50), ring)
    return _cover(eye, 1 - smoothstep(radius, 0.17, 0.23), floats([0.005, 0.005, 0.005]))


def _paint_teeth(rng: np.random.Generator) -> Array:
    """The upper row from the front, gum above: teeth along an arch narrow towards the sides, with gaps and round ends."""
    across, down = np.meshgrid(np.linspace(-1, 1, 112, dtype=np.float32), np.linspace(0, 1, 40, dtype=np.float32))
    arch = np.arcsin(np.clip(across, -0.999, 0.999)) / 0.24  # one tooth per unit
    inside = np.abs(arch - np.floor(arch) - 0.5) * 2  # 0 in a tooth's middle, 1 in a gap
    ivory = floats([0.86, 0.80, 0.69]) * np.float32(rng.uniform(0.85, 1.05))
    shade = (1 - 0.6 * smoothstep(inside, 0.78, 1.0)) * np.clip(1 - 0.10 * np.abs(arch), 0.25, 1)
    shade *= 1 - 0.9 * smoothstep(down + 0.10 * inside**3, 0.93, 1.0)
    gum = 1 - smoothstep(down - 0.06 * inside, 0.16, 0.26)
    return _cover(ivory * shade[..., None], gum, floats([0.40, 0.15, 0.14]))


def _put(atlas: Array, part: int, patch: Array) -> None:
    """Paint a patch with a margin of two texels, so that no neighbour shines in at its border."""
    left, top, width, height = PATCHES[part]
    rows, columns = ATLAS
    x0, y0 = max(0, int(left * columns) - 2), max(0, int(top * rows) - 2)
    x1, y1 = min(columns, round((left + width) * columns) + 2), min(rows, round((top + height) * rows) + 2)
    atlas[y0:y1, x0:x1] = cv2.resize(np.ascontiguousarray(patch, np.float32), (x1 - x0, y1 - y0))
