"""Glasses: who wears which, and how they sit on a face.

They are fixed to the skull: points in the person's own coordinates at rest, which expressions do not move. Lengths are
decimetres. Sizes are those of opticians: lenses 44–56 mm wide, bridges of 15–21 mm, a front that leans in by 8–12° below.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aupipe.synthetic.coordinates import Array, floats, smoothstep
from aupipe.synthetic.head import Head
from aupipe.synthetic.identity import stream
from aupipe.synthetic.mesh import LEFT_EYE, RIGHT_EYE, SKIN

_SHARE = 0.2  # of the people
_POINTS = 48  # of a lens's outline
_BOW = 0.16  # how far the front bends round the face: depth by the square of the width
# Where the fit touches the face, in face coordinates X, Y and z: bridge, brows, cheeks, temples, ears.
_BRIDGE, _BROW, _CHEEK = (0.0, -0.05, 1.5), (1.0, 0.62, 1.45), (1.15, -0.75, 1.4)
_TEMPLE, _EAR = (2.33, 0.3, 0.7), (2.42, 0.3, 0.42)

# Kinds: shares, half widths, heights by width, squareness (2 is an ellipse), taper below, lift of the outer corner,
# thickness of the rim above and below (by the thickness drawn), and that thickness.
_KINDS: dict[
    str, tuple[float, tuple[float, float], tuple[float, float], float, float, float, float, tuple[float, float]]
] = {
    "round": (0.2, (0.22, 0.25), (0.88, 1.0), 2.0, 0.0, 0.0, 1.0, (0.012, 0.028)),
    "panto": (0.2, (0.23, 0.26), (0.78, 0.9), 2.6, 0.16, 0.02, 1.0, (0.018, 0.04)),
    "rectangle": (0.24, (0.25, 0.28), (0.5, 0.68), 4.5, 0.06, 0.01, 1.0, (0.014, 0.036)),
    "thick": (0.16, (0.25, 0.28), (0.68, 0.82), 3.4, 0.14, 0.045, 1.0, (0.042, 0.065)),
    "half-rim": (0.12, (0.25, 0.28), (0.52, 0.68), 3.4, 0.08, 0.0, 0.12, (0.022, 0.036)),
    "rimless": (0.08, (0.23, 0.26), (0.6, 0.75), 2.8, 0.05, 0.0, 0.5, (0.006, 0.009)),
}


@dataclass(frozen=True, slots=True)
class Glasses:
    """A pair of glasses on a person: points in their coordinates at rest (decimetres).

    lenses: inner and outer outlines of the rims, left and right of the image (2, 2, N, 3), and the frames of their middles
    (2, 4, 3): middle, right, up, forward · bridge: upper and lower edge (2, B, 3) · arms: upper and lower edges of the
    temples (2, 2, A, 3), from the front to the ear · colour, gloss: of the frame · tint: what a lens lets through (3,) ·
    coat: the colour of what it reflects (3,).
    """

    kind: str
    lenses: Array
    middles: Array
    bridge: Array
    arms: Array
    colour: Array
    gloss: float
    tint: Array
    coat: Array


def wears_glasses(seed: int, subject: int) -> bool:
    """Whether somebody does: the same in all sessions."""
    return bool(stream(seed, subject, "glasses").random() < _SHARE)


def fit_glasses(head: Head, position_G3: Array, seed: int, subject: int) -> Glasses | None:
    """The glasses of a person whose face at rest has these positions: a function of (seed, subject), None for most."""
    if not wears_glasses(seed, subject):
        return None
    rng = stream(seed, subject, "glasses")
    rng.random()  # whether they do
    kind = str(rng.choice(list(_KINDS), p=[shares[0] for shares in _KINDS.values()]))
    _, widths, heights, square, taper, lift, below, rims = _KINDS[kind]
    width = float(rng.uniform(*widths))
    shape = (width, width * float(rng.uniform(*heights)), square, taper, lift)
    rim = float(rng.uniform(*rims))
    outline = _outline(*shape)
    thickness = rim * (below + (1 - below) * smoothstep(outline[:, 1] / shape[1], -0.2, 0.3))
    flat = np.stack([outline - _normals(outline) * thickness[:, None], outline])
    eyes = np.stack([position_G3[head.parts == part].mean(0) for part in (RIGHT_EYE, LEFT_EYE)])
    apart = max(float(eyes[1, 0] - eyes[0, 0]) / 2 + 0.02, width + float(rng.uniform(0.075, 0.1)))
    down = float(rng.uniform(-0.01, 0.05))
    place = _Front(head, position_G3, eyes, apart, down, float(rng.uniform(0.14, 0.21)))
    lenses = np.stack([place(flat * [side, 1] + [side * apart, 0]) for side in (-1, 1)])
    colour, gloss = _draw_colour(rng, kind)
    tint, coat = _draw_lens(rng)
    return Glasses(
        kind,
        floats(lenses),
        floats(np.stack([place.frame(side * apart) for side in (-1, 1)])),
        floats(_shape_bridge(place, apart - width, shape[1], rim)),
        floats(np.stack([_shape_arm(head, position_G3, lenses[n, 1], side, rim) for n, side in enumerate((-1, 1))])),
        colour,
        gloss,
        tint,
        coat,
    )


class _Front:
    """The surface on which lenses lie: as near to the eyes as brows, bridge and cheeks allow, bent round the face."""

    def __init__(self, head: Head, position: Array, eyes: Array, apart: float, down: float, tilt: float) -> None:
        self.origin = np.array([eyes[:, 0].mean(), eyes[:, 1].mean() - down])
        self.tilt = tilt
        clear = [
            (_touch(head, position, _BRIDGE, 0), 0.04), (_touch(head, position, _BROW, 1), 0.06),
            (_touch(head, position, _BROW, -1), 0.06), (_touch(head, position, _CHEEK, 1), 0.03),
            (_touch(head, position, _CHEEK, -1), 0.03),
        ]  # fmt: skip
        front = max(float(position[head.parts == part, 2].max()) for part in (LEFT_EYE, RIGHT_EYE))
        self.z = front + 0.11 + _BOW * apart**2
        for point, gap in clear:
            surface = self(point[None, :2] - self.origin)[0]
            self.z += max(0.0, float(point[2] + gap - surface[2]))

    def __call__(self, flat: Array) -> Array:
        """Points (…, 3) of points right and up of the middle (…, 2)."""
        x, y = flat[..., 0], flat[..., 1]
        depth = self.z - _BOW * x**2 + np.sin(self.tilt) * y
        return np.stack([self.origin[0] + x, self.origin[1] + np.cos(self.tilt) * y, depth], -1)

    def frame(self, x: float) -> Array:
        """Middle, right, up and forward (4, 3) of a lens whose middle is so far to the right."""
        right, up = np.array([1, 0, -2 * _BOW * x]), np.array([0, np.cos(self.tilt), np.sin(self.tilt)])
        right /= np.linalg.norm(right)
        return np.stack([self(np.array([x, 0.0])), right, up, np.cross(right, up)])


def _touch(head: Head, position: Array, at: tuple[float, float, float], side: int) -> Array:
    """The point (3,) of the skin at these face coordinates of the base head, on the left, in the middle or on the right."""
    distance = (
        head.face * [0.31, 0.31, 1] - np.array([side * at[0] if side else at[0], at[1], at[2]]) * [0.31, 0.31, 1]
    ) ** 2
    skin = np.where(head.parts == SKIN, distance.sum(1), np.inf)
    return position[int(skin.argmin())].astype(float)


def _outline(width: float, height: float, square: float, taper: float, lift: float) -> Array:
    """A lens's edge (N, 2), its temple to the right."""
    angle = np.linspace(0, 2 * np.pi, _POINTS, endpoint=False)
    cos, sin = np.cos(angle), np.sin(angle)
    x = width * np.sign(cos) * np.abs(cos) ** (2 / square)
    y = height * np.sign(sin) * np.abs(sin) ** (2 / square)
    x *= 1 + taper * y / height
    corner = np.clip(x / width, 0, 1) ** 2 * np.clip(y / height, 0, 1)
    return np.stack([x, y + lift * corner], 1)


def _normals(outline: Array) -> Array:
    along = np.roll(outline, -1, 0) - np.roll(outline, 1, 0)
    normal = np.stack([along[:, 1], -along[:, 0]], 1)
    return normal / (np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9)


def _shape_bridge(place: _Front, half: float, height: float, rim: float) -> Array:
    """The two edges (2, B, 3) of what joins the lenses, a low arch over the nose."""
    x = np.linspace(-1, 1, 9)
    arch = height * 0.28 + 0.03 * (1 - x**2)
    thick = max(0.016, 0.8 * rim)
    edges = [np.stack([x * (half + 0.015), arch + offset], 1) for offset in (thick / 2, -thick / 2)]
    return place(np.stack(edges)) + np.array([0, 0, 0.02])


def _shape_arm(head: Head, position: Array, outer: Array, side: int, rim: float) -> Array:
    """The two edges (2, A, 3) of a temple, from the rim's outer edge along the head to the ear, and down behind it."""
    hinge = outer[np.abs(outer[:, 1] - np.quantile(outer[:, 1], 0.7)).argsort()[:8]]
    start = hinge[(side * hinge[:, 0]).argmax()]
    temple = _touch(head, position, _TEMPLE, side) + np.array([side * 0.05, 0, 0])
    ear = _touch(head, position, _EAR, side) + np.array([side * 0.03, 0, 0])
    rise = np.array([0, start[1] - temple[1], 0])
    corner = start + np.array([side * 0.035, 0, -0.02])
    corner[0] = side * max(side * corner[0], side * temple[0] - 0.09)
    back, behind = corner - np.array([0, 0, 0.06]), ear - np.array([0, 0.12, 0.12])
    way = np.stack([start, corner, back, temple + 0.7 * rise, ear + 0.3 * rise, behind])
    steps = np.linspace(0, len(way) - 1, 21)
    line = np.stack([np.interp(steps, np.arange(len(way)), way[:, k]) for k in range(3)], 1)
    half = np.interp(steps, [0, 2, 5], [1, 1, 0.6]) * max(0.013, 0.75 * rim)
    return np.stack([line + half[:, None] * [0, 1, 0], line - half[:, None] * [0, 1, 0]])


def _draw_colour(rng: np.random.Generator, kind: str) -> tuple[Array, float]:
    """Black, tortoiseshell, metal, or a colour; and its gloss."""
    metal = kind == "rimless" or rng.random() < (0.55 if kind in ("round", "half-rim", "rectangle") else 0.0)
    if metal:
        colours, gloss = [[0.30, 0.30, 0.32], [0.42, 0.33, 0.16], [0.06, 0.06, 0.07], [0.36, 0.22, 0.16]], 0.9
        colour = floats(colours[int(rng.integers(4))]) * np.float32(rng.uniform(0.7, 1.2))
    else:
        dark = [[0.008, 0.008, 0.009], [0.06, 0.028, 0.012], [0.015, 0.02, 0.05], [0.10, 0.01, 0.012], [0.35, 0.32, 0.28]]
        colour = floats(dark[int(rng.choice(5, p=[0.5, 0.25, 0.1, 0.08, 0.07]))]) * np.float32(rng.uniform(0.7, 1.5))
        gloss = 0.35
    return colour, gloss


def _draw_lens(rng: np.random.Generator) -> tuple[Array, Array]:
    """What it lets through and the colour of its coating; one in sixteen is lightly tinted, none hides the eyes."""
    tint = floats([0.955, 0.96, 0.955]) * np.float32(rng.uniform(0.97, 1.0))
    if rng.random() < 1 / 16:
        tint = floats([[0.62, 0.52, 0.42], [0.55, 0.57, 0.6], [0.75, 0.7, 0.5]][int(rng.integers(3))])
    coats = floats([[0.5, 1.0, 0.7], [0.6, 0.7, 1.0], [1.0, 1.0, 1.0]])
    return tint, coats[int(rng.integers(3))] * np.float32(rng.uniform(0.03, 0.12))
