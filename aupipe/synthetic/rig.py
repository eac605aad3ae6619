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


# Full intensity (E) of each AU, as weights on the face units. 5, 16, 18 and 45 move and are not coded.
RECIPES: dict[int, dict[str, float]] = {
    1: {"browInnerUp": 1.5},
    2: _both("browOuterUp", 1.3),
    4: _both("browDown", 1.3),
    5: _both("eyeWide", 1.0),
    6: _both("cheekSquint", 1.3),
    7: _both("eyeSquint", 1.5),
    9: _both("noseSneer", 1.5),
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
}


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
    1: (-1, 1.35, 0.25, 3.0),
    2: (0.45, 2.6, 0.2, 3.0),
    4: (-1, 2.2, 0.1, 2.2),
    5: (0.2, 2.0, -0.3, 0.5),
    6: (0.25, 2.6, -1.55, 0.3),
    7: (0.25, 1.9, -0.6, 0.45),
    9: (-1, 1.15, -1.6, 0.3),
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
}
_FADE = 0.3
_MOUTH_AUS = (10, 12, 14, 15, 16, 17, 18, 23, 24, 25, 26)
OBLIQUE = "1 with 4"  # raised and drawn together, the inner brow is oblique: corrugator loses its downward pull there
_KEYS: tuple[int | str, ...] = (*RECIPES, *GAZE, OBLIQUE)
_COLUMN = {key: k for k, key in enumerate(_KEYS)}


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


def recipe(au: int, rig: str = FACE_UNITS) -> dict[str, float]:
    """Weights of an AU's units at full intensity, in one of the two pure rigs."""
    return EXPRESSION_RECIPES.get(au, RECIPES[au]) if rig == EXPRESSION_UNITS else RECIPES[au]


def displace(head: Head, au: int, style: dict[str, float] | None = None, rig: str = FACE_UNITS) -> Array:
    """An AU's movement at full intensity, (G, 3): the rig's recipe, weighted by `style` per unit, inside its region."""
    weights = {f"unit/{unit}": weight * (style or {}).get(unit, 1.0) for unit, weight in recipe(au, rig).items()}
    return head.displacement(weights) * region_mask(au)[:, None]


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
    for au in RECIPES:
        gain[au], style = _draw_style(rng, au)
        moved[au] = displace(head, au, style)
    if name != FACE_UNITS:  # draws after the others, so that gains are the same in every rig
        for au in EXPRESSION_RECIPES:
            share = float(rng.random()) if name == MIXED else 1.0
            other = displace(head, au, _style_units(rng, au, EXPRESSION_UNITS, gain[au]), EXPRESSION_UNITS)
            moved[au] = (1 - share) * moved[au] + share * other
    gaze = {name: {f"unit/{unit}": w for unit, w in _GAZE_UNITS[name].items()} for name in GAZE}
    oblique = -0.5 * moved[4] * (1 - smoothstep(np.abs(head.face[:, 0]), 0.5, 0.95))[:, None]
    moves = [*moved.values(), *(_without_hair(head, head.displacement(gaze[name])) for name in GAZE), oblique]
    rows = [np.stack([move, head.normals(position_G3 + move) - normals])[:, head.geometry_R] for move in moves]
    rest = np.stack([position_G3, normals])[:, head.geometry_R]
    basis = np.stack(rows).reshape(len(moves), -1).astype(np.float32)
    return Rig(rest.ravel().astype(np.float32), basis, gain)


def _draw_style(rng: np.random.Generator, au: int) -> tuple[float, dict[str, float]]:
    gain = float(np.exp(rng.normal(0, 0.15)))
    style = _style_units(rng, au, FACE_UNITS, gain)
    return (1.0 if au == 45 else gain), style


def _style_units(rng: np.random.Generator, au: int, rig: str, gain: float) -> dict[str, float]:
    """The person's own factor per unit of the AU's recipe."""
    asymmetry, style = rng.normal(0, 0.1), {}
    for unit in recipe(au, rig):
        side = 1 if unit.endswith("Left") or "-left-" in unit else -1 if unit.endswith("Right") or "-right-" in unit else 0
        style[unit] = gain * (1 + asymmetry * side) * float(np.exp(rng.normal(0, 0.08)))
    return dict.fromkeys(style, 1.0) if au == 45 else style  # everybody can close their eyes


def _without_hair(head: Head, move_G3: Array) -> Array:
    return move_G3 * (head.parts != HAIR)[:, None]


def activate(
    intensity_M: Array,
    *,
    blink: float = 0.0,
    gaze: tuple[float, float] = (0.0, 0.0),
    speech: tuple[float, float] = (0.0, 0.0),
) -> Array:
    """Activations (K,) of a rig from intensities 0–5 of AUS, eyelids 0–1, gaze right/up −1–1, and speech (AU18, AU16).

    AUs that share muscles do not add up: their pairs are settled here.
    """
    a = dict.fromkeys(_KEYS, 0.0)
    a.update({au: float(v) / 5 for au, v in zip(AUS, intensity_M, strict=True)})
    shared = min(a[12], a[15])  # both pull the same corner
    a[12] -= 0.35 * shared
    a[15] -= 0.35 * shared
    a[26] *= 1 - 0.4 * a[23]
    a[7] = max(a[7], 0.35 * a[6] * a[12]) * (1 - blink)  # a real smile narrows the eyes; closed lids hide the tightener
    a[6] *= 1 - 0.4 * blink
    a[5] = 0.6 * a[1] * a[2] * (1 - blink)
    a[45] = blink * (1 - 0.35 * a[7])
    a[18], a[16] = speech[0], speech[1] * (1 - a[24])
    a[OBLIQUE] = a[1] * a[4]
    right, up = gaze
    a["look right"], a["look left"] = max(right, 0.0), max(-right, 0.0)
    a["look up"], a["look down"] = max(up, 0.0) * (1 - blink), max(-up, 0.0) * (1 - blink)
    return np.array([a[key] for key in _KEYS], np.float32)
