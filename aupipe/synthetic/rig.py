"""Action Units as movements of the skin: which face units make an AU, where it may act, and what pairs do together.

The recipes follow the muscles of FACS 2002. A face unit reaches further than its muscle (the nose wrinkler's moves the
brow), so every movement is multiplied by a smooth mask of its AU's region: motion and region agree exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from aupipe.facs import AU_SETS
from aupipe.schema import ConfigError
from aupipe.synthetic.coordinates import Array, smoothstep
from aupipe.synthetic.head import Head, load_head
from aupipe.synthetic.identity import Identity, stream
from aupipe.synthetic.mesh import HAIR, LASHES, LOWER_TEETH, MOUTH, SKIN, TONGUE, UPPER_TEETH

AUS = AU_SETS["synthetic"].numbers
FACE_UNITS, EXPRESSION_UNITS, MIXED = RIGS = ("face_units", "expression_units", "mixed")


def _both(unit: str, weight: float) -> dict[str, float]:
    return {f"{unit}Left": weight, f"{unit}Right": weight}


# Full intensity (E) of each AU, as weights on the face units. Those from 45 on, and 5, 16 and 18, are not among AUS.
RECIPES: dict[int, dict[str, float]] = {
    1: {"browInnerUp": 1.5},
    2: _both("browOuterUp", 1.3),
    4: _both("browDown", 1.3),
    5: _both("eyeWide", 1.0),
    6: _both("cheekSquint", 1.3),
    7: _both("eyeSquint", 1.5),
    9: {**_both("noseSneer", 2.1), **_both("mouthUpperUp", 0.45)},
    10: _both("mouthUpperUp", 1.1),
    12: _both("mouthSmile", 0.85),
    14: _both("mouthDimple", 1.25),
    15: _both("mouthFrown", 1.3),
    16: _both("mouthLowerDown", 1.0),
    17: {"mouthShrugLower": 1.2, "mouthShrugUpper": 0.35},
    18: {"mouthPucker": 0.8, "mouthFunnel": 0.25},
    23: {"mouthRollLower": 0.4, "mouthRollUpper": 0.4, "mouthPucker": 0.35, **_both("mouthPress", 0.25)},
    24: {
        **_both("mouthPress", 0.65),
        "mouthRollLower": 0.6,
        "mouthRollUpper": 0.65,
        "mouthPucker": 0.15,
        **_both("mouthFrown", 0.25),
    },
    25: {**_both("mouthLowerDown", 0.6), **_both("mouthUpperUp", 0.3), "jawOpen": 0.06},
    26: {"jawOpen": 0.45},
    45: _both("eyeBlink", 1.0),
    19: {"tongueOut": 1.0},
    20: {**_both("mouthStretch", 0.8), **_both("mouthDimple", 0.45)},
    22: {"mouthFunnel": 0.5, "mouthPucker": 0.2},
    28: {"mouthRollLower": 1.1, "mouthRollUpper": 1.1},
    34: {"cheekPuff": 1.0},
}
# Movements to one side: full strength is to the left, and −1 to the right.
SIDEWAYS: dict[int, dict[str, float]] = {30: {"jawLeft": 0.6, "jawRight": -0.6, "mouthLeft": 0.3, "mouthRight": -0.3}}
# What moves besides AUS, blinks and gaze. Below 0, AU34 is AU35: cheeks that are sucked in.
UNCODED = (5, 16, 18, 19, 20, 22, 28, 30, 34)
LATERAL = (2, 10, 12, 14)  # coded AUs that may act on one side alone
_LIDS = (7, 45)  # a wink closes one eye
_SHUT = 0.85  # so far closed, lids show no tightening


def _expression(unit: str, weight: float) -> dict[str, float]:
    """Both sides of an expression unit: `eye-slit` is `expression-eye-left-slit` and `expression-eye-right-slit`."""
    part, name = unit.split("-", 1)
    return {f"expression-{part}-{side}-{name}": weight for side in ("left", "right")}


# The same AUs by another artist, on MakeHuman's expression units. These know no cheek raiser: AU6 stays with the face units.
# A negative parting presses the lips together.
EXPRESSION_RECIPES: dict[int, dict[str, float]] = {
    1: _expression("eyebrows-inner-up", 2.6),
    2: {**_expression("eyebrows-extern-up", 1.4), **_expression("eyebrows-up", 0.6)},
    4: _expression("eyebrows-down", 1.8),
    5: _expression("eye-opened-up", 1.5),
    7: _expression("eye-slit", 0.42),
    9: {**_expression("nose-elevation", 1.9), "expression-nose-compression": 1.5},
    10: {"expression-mouth-elevation": 1.2},
    12: {"expression-mouth-corner-puller": 1.5},
    14: {"expression-mouth-retraction": 1.3},
    15: {"expression-mouth-depression": 1.3},
    16: {"expression-mouth-depression-retraction": 0.8},
    17: {"expression-mouth-eversion": 0.9, "expression-mouth-depression": 0.7},
    18: {"expression-mouth-pursing": 0.8},
    22: {"expression-mouth-protusion": 0.9},
    23: {"expression-mouth-pursing": 0.45, "expression-mouth-parling": -0.8},
    24: {"expression-mouth-parling": -1.4, "expression-mouth-compression": 0.5, "expression-mouth-depression": 0.55},
    25: {"expression-mouth-parling": 1.1, "expression-mouth-depression-retraction": 0.35},
    26: {"expression-mouth-open": 0.45},
    45: _expression("eye-closure", 1.0),
}
GAZE = ("look left", "look right", "look up", "look down")
_GAZE_UNITS = {
    "look left": {"eyeLookOutLeft": 1.0, "eyeLookInRight": 1.0},
    "look right": {"eyeLookInLeft": 1.0, "eyeLookOutRight": 1.0},
    "look up": _both("eyeLookUp", 1.0),
    "look down": _both("eyeLookDown", 1.0),
}
# Each AU's region in face coordinates: |X| from, to, Y from, to; it fades over _FADE on the outside.
REGIONS: dict[int, tuple[float, float, float, float]] = {
    1: (-1, 1.35, 0.4, 3.0),
    2: (0.45, 2.6, 0.45, 3.0),
    4: (-1, 2.2, 0.2, 2.2),
    5: (0.2, 2.0, -0.3, 0.5),
    6: (0.25, 2.6, -1.55, 0.3),
    7: (0.25, 1.9, -0.6, 0.45),
    9: (-1, 1.25, -1.95, 0.3),
    10: (-1, 1.35, -2.0, -0.75),
    12: (-1, 2.6, -2.8, -0.55),
    14: (0.3, 2.2, -2.6, -1.3),
    15: (-1, 1.8, -3.1, -1.5),
    16: (-1, 1.3, -3.2, -1.8),
    17: (-1, 1.3, -3.6, -1.6),
    18: (-1, 1.5, -2.9, -1.3),
    23: (-1, 1.4, -2.8, -1.3),
    24: (-1, 1.4, -2.8, -1.3),
    25: (-1, 1.4, -3.0, -1.3),
    26: (-1, 9.0, -9.0, -0.9),
    45: (0.2, 2.0, -0.7, 0.6),
    19: (-1, 1.2, -3.2, -1.6),
    20: (-1, 2.2, -3.1, -1.3),
    22: (-1, 1.5, -3.0, -1.3),
    28: (-1, 1.4, -2.9, -1.3),
    30: (-1, 9.0, -9.0, -0.9),
    34: (-1, 2.6, -3.0, -0.8),
}
_FADE = 0.3
_MOUTH_AUS = (10, 12, 14, 15, 16, 17, 18, 19, 20, 22, 23, 24, 25, 26, 28, 30, 34)
_FAINT = (0.002, 0.007)  # decimetres at full intensity: below nothing moves, so that no region ends in imperceptible tails
_MIDDLE = 0.4  # |X| from which on a vertex belongs to one side alone
OBLIQUE = "1 with 4"  # raised and drawn together, the inner brow is oblique: corrugator loses its downward pull there
TOOTHY = "12 with 25"  # the lips that a smile has stretched part from corner to corner and bare the upper teeth
_TOOTHY_UNITS = {**_both("mouthLowerDown", 0.9), **_both("mouthUpperUp", 0.75)}
_KEYS: tuple[int | str, ...] = (*RECIPES, *GAZE, OBLIQUE, TOOTHY, *SIDEWAYS, *(f"{au} aside" for au in (*LATERAL, *_LIDS)))


@lru_cache(maxsize=32)
def region_mask(au: int) -> Array:
    """Where an AU may move the base head's geometry vertices, (G,) in 0–1. The mouth's inside follows mouth AUs whole."""
    head = load_head()
    x_low, x_high, y_low, y_high = REGIONS[au]
    x, y, _ = head.face.T
    across = np.abs(x)
    mask = smoothstep(across, x_low - _FADE, x_low) * (1 - smoothstep(across, x_high, x_high + _FADE))
    mask *= smoothstep(y, y_low - _FADE, y_low) * (1 - smoothstep(y, y_high, y_high + _FADE))
    inner = np.isin(head.parts, (UPPER_TEETH, LOWER_TEETH, TONGUE, MOUTH))
    mask[inner] = float(au in _MOUTH_AUS)
    mask[~inner & ~np.isin(head.parts, (SKIN, LASHES))] = 0
    return mask


@lru_cache(maxsize=1)
def side_weight() -> Array:
    """1 on the left half of the base head, −1 on the right one, smooth between, (G,)."""
    return 2 * smoothstep(load_head().face[:, 0], -_MIDDLE, _MIDDLE) - 1


def recipe(au: int, rig: str = FACE_UNITS) -> dict[str, float]:
    """Weights of an AU's units at full intensity, in one of the two pure rigs."""
    first = RECIPES | SIDEWAYS
    return EXPRESSION_RECIPES.get(au, first[au]) if rig == EXPRESSION_UNITS else first[au]


def displace(head: Head, au: int, style: dict[str, float] | None = None, rig: str = FACE_UNITS, tilt: float = 0.0) -> Array:
    """An AU's movement at full intensity, (G, 3): the rig's recipe, weighted by `style` per unit, inside its region.

    `tilt` is the share by which the left side moves more and the right one less in units that know no sides.
    """
    weights = {unit: weight * (style or {}).get(unit, 1.0) for unit, weight in recipe(au, rig).items()}
    sided = {f"unit/{unit}": weight for unit, weight in weights.items() if _side(unit)}
    whole = {f"unit/{unit}": weight for unit, weight in weights.items() if not _side(unit)}
    moved = head.displacement(sided) + head.displacement(whole) * (1 + np.float32(tilt) * side_weight())[:, None]
    moved *= region_mask(au)[:, None]
    return moved * smoothstep(np.linalg.norm(moved, axis=1), *_FAINT)[:, None]


def _side(unit: str) -> int:
    """1 for a unit of the left side, −1 for one of the right, 0 for one of both."""
    return 1 if unit.endswith("Left") or "-left-" in unit else -1 if unit.endswith("Right") or "-right-" in unit else 0


@dataclass(frozen=True, slots=True)
class Rig:
    """A person's face as positions and normals of R render vertices, linear in K activations: state = rest + a · basis.

    Normals are linearised too (each basis row is the change at full activation), which spares their recomputation.
    """

    rest: Array
    basis: Array
    gain: dict[int, float]

    def pose(self, activation_K: Array) -> tuple[Array, Array]:
        """Positions (R, 3) and normals (R, 3), nearly unit."""
        state = self.rest.copy()
        for k in np.flatnonzero(activation_K):  # few are active; and a library's threads would compete with other workers
            cv2.scaleAdd(self.basis[k], float(activation_K[k]), state, dst=state)
        positions, normals = state.reshape(2, -1, 3)
        return positions, normals


def build_rig(head: Head, identity: Identity, position_G3: Array, name: str = FACE_UNITS) -> Rig:
    """How this person moves: gain and left/right asymmetry per AU, and each shape's own share, vary between people.

    `name` is one of RIGS; "mixed" lies between the two others, elsewhere for each person and AU. Raises ConfigError for
    another name.
    """
    if name not in RIGS:
        raise ConfigError(f"unknown rig '{name}'; known are {', '.join(RIGS)}")
    rng = stream(identity.seed, identity.subject, "rig")
    normals = head.normals(position_G3)
    moved, gain = {}, {}
    for au in (*RECIPES, *SIDEWAYS):
        gain[au] = float(np.exp(rng.normal(0, 0.15)))
        style, _ = _draw_style(rng, au, FACE_UNITS, gain[au])
        moved[au] = displace(head, au, style)
    gain[45] = 1.0
    if name != FACE_UNITS:  # draws after the others, so that gains are the same in every rig
        for au in EXPRESSION_RECIPES:
            share = float(rng.random()) if name == MIXED else 1.0
            style, tilt = _draw_style(rng, au, EXPRESSION_UNITS, gain[au])
            moved[au] = (1 - share) * moved[au] + share * displace(head, au, style, EXPRESSION_UNITS, tilt)
    moves = _list_moves(head, moved)
    rows = [np.stack([move, head.normals(position_G3 + move) - normals])[:, head.geometry_R] for move in moves]
    rest = np.stack([position_G3, normals])[:, head.geometry_R]
    basis = np.stack(rows).reshape(len(moves), -1).astype(np.float32)
    return Rig(rest.ravel().astype(np.float32), basis, gain)


def _draw_style(rng: np.random.Generator, au: int, rig: str, gain: float) -> tuple[dict[str, float], float]:
    """The person's own factor per unit of the AU's recipe, and the asymmetry of units that know no sides.

    In the first rig those are at the midline and stay even.
    """
    asymmetry, style = float(rng.normal(0, 0.1)), {}
    for unit in recipe(au, rig):
        style[unit] = gain * (1 + asymmetry * _side(unit)) * float(np.exp(rng.normal(0, 0.08)))
    if au == 45:
        return dict.fromkeys(style, 1.0), 0.0  # everybody can close their eyes
    return style, asymmetry if rig == EXPRESSION_UNITS else 0.0


def _list_moves(head: Head, moved: dict[int, Array]) -> list[Array]:
    """The movement (G, 3) of each of _KEYS, from those of RECIPES and SIDEWAYS."""
    gaze = [head.displacement({f"unit/{unit}": w for unit, w in _GAZE_UNITS[name].items()}) for name in GAZE]
    oblique = -0.5 * moved[4] * (1 - smoothstep(np.abs(head.face[:, 0]), 0.5, 0.95))[:, None]
    toothy = head.displacement({f"unit/{unit}": w for unit, w in _TOOTHY_UNITS.items()}) * region_mask(25)[:, None]
    asides = [moved[au] * side_weight()[:, None] for au in (*LATERAL, *_LIDS)]
    pairs = [moved[au] for au in RECIPES]
    return [*pairs, *(_without_hair(head, move) for move in gaze), oblique, toothy, *(moved[au] for au in SIDEWAYS), *asides]


def _without_hair(head: Head, move_G3: Array) -> Array:
    return move_G3 * (head.parts != HAIR)[:, None]


def activate(
    intensity_M: Array,
    *,
    uncoded: Array | None = None,
    blink: float = 0.0,
    wink: float = 0.0,
    aside: Array | None = None,
    gaze: tuple[float, float] = (0.0, 0.0),
) -> Array:
    """Activations (K,) of a rig from intensities 0–5 of AUS, activations of UNCODED, eyelids 0–1, a wink −1–1 (1 closes the
    left eye), one-sidedness −1–1 of LATERAL (1 is the left side alone), and gaze right/up −1–1.

    AUs that share muscles do not add up: their pairs are settled here.
    """
    a: dict[int | str, float] = dict.fromkeys(_KEYS, 0.0)
    a.update({au: float(v) / 5 for au, v in zip(AUS, intensity_M, strict=True)})
    if uncoded is not None:
        a.update({au: float(v) for au, v in zip(UNCODED, uncoded, strict=True)})
    _share_mouth(a)
    left, right = max(blink, wink), max(blink, -wink)
    a[6] *= 1 - 0.4 * blink
    _close_eyes(a, left, right)
    a[OBLIQUE] = a[1] * a[4]
    a[TOOTHY] = a[12] * a[25]
    for au, side in zip(LATERAL, aside if aside is not None else (), strict=False):
        a[f"{au} aside"] = a[au] * float(side) / 2  # the strong side keeps the intensity, the weak one loses that share
        a[au] *= 1 - abs(float(side)) / 2
    across, up = gaze
    a["look right"], a["look left"] = max(across, 0.0), max(-across, 0.0)
    a["look up"], a["look down"] = max(up, 0.0) * (1 - blink), max(-up, 0.0) * (1 - blink)
    return np.array([a[key] for key in _KEYS], np.float32)


def weigh_folds(intensity_M: Array, activation_K: Array) -> dict[int, float | tuple[float, float]]:
    """How strongly each of AUS folds the skin, 0–1; of one that acts on one side more, on the right half and on the left."""
    strength: dict[int, float | tuple[float, float]] = {}
    for au, intensity in zip(AUS, intensity_M, strict=True):
        share = strength[au] = float(intensity) / 5
        if au in LATERAL and (aside := float(activation_K[_KEYS.index(f"{au} aside")])):
            whole = float(activation_K[_KEYS.index(au)])
            strong = share / (whole + abs(aside))
            strength[au] = (strong * (whole - aside), strong * (whole + aside))
    return strength


def _share_mouth(a: dict[int | str, float]) -> None:
    """Settle, in place, what pulls the same lips and cheeks."""
    shared = min(a[12], a[15])  # both pull the same corner
    a[12] -= 0.35 * shared
    a[15] -= 0.35 * shared
    a[26] *= 1 - 0.4 * a[23]
    for au in (16, 19, 22):  # which part the lips
        a[au] *= 1 - a[24]
    a[19] *= min(1.0, 2 * a[25])  # no tongue comes through closed lips
    for au in (28, 34):  # which need closed ones
        a[au] *= max(0.0, 1 - 2 * max(a[25], a[26]))


def _close_eyes(a: dict[int | str, float], left: float, right: float) -> None:
    """Set, in place, the eyelids and what they hide, where the two eyes are closed by so much."""
    narrow = max(a[7], 0.35 * a[6] * a[12])  # a real smile narrows the eyes; closed lids hide the tightener
    a[5] = max(0.6 * a[1] * a[2], a[5]) * (1 - max(left, right))
    tight_left, tight_right = (narrow * max(0.0, 1 - closed / _SHUT) for closed in (left, right))
    a[7], a["7 aside"] = (tight_left + tight_right) / 2, (tight_left - tight_right) / 2
    left, right = left * (1 - 0.35 * tight_left), right * (1 - 0.35 * tight_right)
    a[45], a["45 aside"] = (left + right) / 2, (left - right) / 2
