"""Painting a person: skin, brows, scalp, eyes and teeth, all procedural, in the atlas. Colours are linear RGB.

Skin is two absorbing layers: its colour is exp(−(melanin · k_m + blood · k_h)), with the absorptions below per channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from aupipe.synthetic.chart import Chart, load_chart
from aupipe.synthetic.coordinates import Array, floats, smoothstep
from aupipe.synthetic.facial_hair import draw_hair_colour, paint_beard, paint_brows
from aupipe.synthetic.folds import Folds, halve, paint_folds
from aupipe.synthetic.hair import hair_cover
from aupipe.synthetic.head import ATLAS, PATCHES
from aupipe.synthetic.identity import Identity, stream
from aupipe.synthetic.mesh import HAIR, LASHES, LEFT_EYE, LOWER_TEETH, MOUTH, RIGHT_EYE, TONGUE, UPPER_TEETH

# Chosen, not measured: so that skin spans all six classes of the individual typology angle (ITA, Chardon 1991), from very
# light, over 55° (melanin 0.3 has 59°), to dark, under −30° (2.6 has −43°, 3.2 has −54°).
_MELANIN_ABSORBS = floats([0.58, 0.76, 0.86])
_BLOOD_ABSORBS = floats([0.11, 0.52, 0.56])
_BARE = floats([0.755, 0.66, 0.548])
_IRISES = floats([[0.16, 0.09, 0.06], [0.11, 0.07, 0.05], [0.10, 0.18, 0.28], [0.13, 0.18, 0.12], [0.07, 0.04, 0.03]])


@dataclass(frozen=True, slots=True)
class Skin:
    """A person's atlas, smooth, and the folds that years and each AU add to it.

    `albedo` (rows, columns, 4) is RGB, and 1; its first corner, where nothing of the head lies, is 0.
    """

    albedo: Array
    folds: Folds

    def halve(self) -> Skin:
        """The same skin in an atlas of half the size."""
        return Skin(halve(self.albedo), self.folds.halve())


def paint_skin(identity: Identity, gain: dict[int, float]) -> Skin:
    """`gain`: how strongly this person moves each AU; their folds deepen with it."""
    rng, chart = stream(identity.seed, identity.subject, "skin"), load_chart()
    grown, hair = draw_hair_colour(identity, rng)
    lips = cv2.GaussianBlur(chart.lips, (0, 0), 1.5)
    colour = _paint_complexion(identity, chart, lips, rng)
    beard = grown if identity.beard == "shadow" else hair
    colour = _cover(colour, paint_beard(identity, chart, lips, rng), 0.8 * beard)
    brows = grown + min(1.0, 0.8 * identity.grey) * (hair - grown)  # brows turn grey last
    colour = _cover(colour, paint_brows(identity, chart, rng), 0.7 * brows)
    colour = _paint_scalp(colour, identity, chart, hair, rng)
    collar = -4.55 - 0.5 * np.exp(-((chart.x / 1.2) ** 2)) * (chart.z > 0.2)
    colour = _cover(colour, smoothstep(collar - chart.y, 0, 0.08), floats(identity.cloth))
    folds = paint_folds(identity, chart, gain, rng)
    colour[~chart.covered] = colour[chart.covered].mean(0)
    _put(colour, LEFT_EYE, eye := _paint_eye(identity, rng))
    _put(colour, RIGHT_EYE, eye[:, ::-1])
    _put(colour, UPPER_TEETH, teeth := _paint_teeth(rng))
    _put(colour, LOWER_TEETH, teeth[::-1])
    for part, shade in (
        (TONGUE, (0.30, 0.10, 0.10)),
        (LASHES, 0.3 * grown + 0.03 * (1 - identity.femininity)),
        (MOUTH, (0.07, 0.018, 0.02)),
    ):
        _put(colour, part, np.tile(floats(shade), (8, 8, 1)))
    _put(colour, HAIR, _paint_strands(hair, rng))
    albedo = np.dstack([np.clip(colour, 0.003, 1), np.ones(ATLAS)]).astype(np.float32)
    albedo[:4, :4] = 0
    return Skin(albedo, folds)


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


def _paint_complexion(identity: Identity, chart: Chart, lips: Array, rng: np.random.Generator) -> Array:
    across, y = np.abs(chart.x), chart.y
    coarse, fine = cloud(rng, (4, 8, 16, 32, 64, 128)), cloud(rng, (32, 64, 128, 256))
    grain = rng.standard_normal(ATLAS, dtype=np.float32)
    melanin = identity.melanin * (1 + 0.04 * coarse) + 0.02 * fine + 0.007 * grain
    blood = np.clip(rng.normal(0.5, 0.12), 0.25, 0.8) * (1 + 0.08 * coarse[::-1])
    blood += 0.28 * rng.uniform(0.2, 1) * _bump(across, y, (1.25, -0.95), (0.55, 0.5))
    blood += 0.30 * rng.uniform(0.2, 1) * _bump(across, y, (0, -1.0), (0.35, 0.35))
    melanin += rng.uniform(0.02, 0.2) * _bump(across, y, (0.9, -0.28), (0.45, 0.22)) + chart.lids * rng.uniform(0, 0.15)
    melanin += _paint_spots(identity, chart, rng)
    rouge = rng.uniform(0.2, 0.6) if identity.sex == "F" and rng.random() < 0.5 else 0.0
    blood += lips * (rng.uniform(0.35, 0.8) + rouge) * (1 + 0.12 * fine)
    melanin += lips * (0.1 * rng.uniform(0, 1) + 0.12 * identity.melanin * rng.uniform(-0.6, 1))
    # The lid's crease, which the mesh does not have.
    crease = 0.27 - 0.55 * (across - 0.98) ** 2
    melanin += (0.5 - 0.33 * identity.ancestry[1]) * _bump(across, y - crease, (0.98, 0), (0.36, 0.035))
    return tint(melanin, blood)


def _paint_spots(identity: Identity, chart: Chart, rng: np.random.Generator) -> Array:
    """Extra melanin: moles; freckles on nose and cheeks of some whose skin is pale; blotches that come with years."""
    dots = rng.random((3, *ATLAS), dtype=np.float32)
    pale = 1 - smoothstep(floats(identity.melanin), 0.45, 0.9)
    freckled = rng.uniform(0.2, 1) * float(pale) if rng.random() < 0.35 else 0.0
    where = _bump(np.abs(chart.x), chart.y, (0.6, -0.75), (0.9, 0.6)) + 0.15
    moles = cv2.GaussianBlur((dots[0] < 0.002 * rng.random()).astype(np.float32), (0, 0), 1.2)
    freckles = cv2.GaussianBlur((dots[1] < 0.035 * freckled * where).astype(np.float32), (0, 0), 0.9)
    blotches = cv2.GaussianBlur((dots[2] < 0.0006 * identity.age * rng.random()).astype(np.float32), (0, 0), 3.0)
    return np.float32(2.4 * rng.uniform(0.2, 1)) * moles + np.float32(1.6) * freckles + np.float32(9) * blotches


def _paint_scalp(colour: Array, identity: Identity, chart: Chart, hair: Array, rng: np.random.Generator) -> Array:
    """Strands run down the columns of the atlas, which spread from the crown; each begins at its own height."""
    columns = ATLAS[1]
    noise = rng.standard_normal(ATLAS, dtype=np.float32)
    roots = [cv2.resize(rng.standard_normal((1, n), dtype=np.float32), (columns, 1)) for n in (columns, 120, 40)]
    ragged = 0.055 * roots[0] + 0.06 * roots[1] + 0.05 * roots[2]
    cover = hair_cover(chart.x, chart.y + ragged, chart.z, identity) * (1 - chart.ears)
    curls = smoothstep(floats(identity.ancestry[0]), 0.35, 0.75)
    straight = cv2.blur(noise, (1, 17)) * 4 + cv2.blur(noise[::-1], (3, 41)) * 5
    strands = straight + curls * (1.3 * cloud(rng, (128, 256)) - straight)
    fine = np.clip(cover + 0.3 * cover * (1 - cover) * (strands + noise), 0, 1)
    dense = {"bald": 0.08, "short": 0.9}.get(identity.hair, 1.0)
    contrast = 0.3 / (1 + 3 * hair.mean())  # light hairs shade each other less
    locks = hair * np.clip(1 + contrast * (strands + 0.6 * cloud(rng, (16, 32, 64, 128), 0.9)), 0.25, 2.5)[..., None]
    return _cover(colour, dense * fine, locks)


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
    ivory = floats([0.88, 0.80, 0.66]) * np.float32(rng.uniform(0.85, 1.05))
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
