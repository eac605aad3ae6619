"""One person's head at rest: who they are, their shape, and the chart by which skin is painted on it.

Face coordinates, in which skin, masks and hairlines are written, have the eyes at (±1, 0), the mouth near Y = −1.95
and the brows near Y = 0.62. They are those of MakeHuman's base head: a point keeps them whatever the person's shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from aupipe.assets import head_mesh
from aupipe.synthetic.mesh import (
    HAIR,
    LASHES,
    LEFT_EYE,
    LOWER_TEETH,
    MOUTH,
    NECK,
    RIGHT_EYE,
    SKIN,
    TONGUE,
    UPPER_TEETH,
)

Array = NDArray[np.float32]
Shape = tuple[NDArray[np.uint16], Array]

EYE_HEIGHT, EYE_HALF_DISTANCE = 7.284, 0.308  # of the base head
ATLAS = (640, 512)  # rows, columns of the painted skin
TONES = ("light", "medium", "dark")
_TONE_LIMITS = (0.62, 1.15)  # melanin
_CROWN = 8.55
_DRAPE = (9, 33)  # rows and columns of the sheet of hanging hair
# Where each part that is not skin has its own patch of the atlas: left, top, width, height, as fractions.
PATCHES = {
    LEFT_EYE: (0.88, 0.01, 0.11, 0.088),
    RIGHT_EYE: (0.88, 0.11, 0.11, 0.088),
    UPPER_TEETH: (0.88, 0.22, 0.11, 0.045),
    LOWER_TEETH: (0.88, 0.275, 0.11, 0.045),
    TONGUE: (0.88, 0.33, 0.11, 0.03),
    LASHES: (0.88, 0.38, 0.11, 0.05),
    HAIR: (0.88, 0.46, 0.11, 0.2),
    MOUTH: (0.88, 0.68, 0.11, 0.08),
}
# These lengthen or point the skull beyond what people have, so they are drawn with less weight.
_CAPPED = ("head-scale-vert", "forehead/", "triangular")
_STREAM = {"shape": 1, "skin": 2, "rig": 3, "habit": 4}


def stream(seed: int, subject: int, concern: str) -> np.random.Generator:
    """A subject's own random numbers for one concern: shape, skin, rig or habit. Drawing more of one moves no other."""
    return np.random.default_rng([seed, subject, 1_000_000 + _STREAM[concern]])


def smoothstep(x: Array, low: float, high: float) -> Array:
    t = np.clip((x - low) / (high - low), 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who somebody is: the traits that shape, skin and hair depend on. `age` runs from 0 young to 1 old."""

    seed: int
    subject: int
    name: str
    femininity: float
    age: float
    ancestry: tuple[float, float, float]  # MakeHuman's macro shapes: african, asian, caucasian
    melanin: float
    hair: str
    hairline: float
    sweep: float
    drape: float
    cloth: tuple[float, float, float]

    @property
    def sex(self) -> str:
        return self.name[0]

    @property
    def wears_drape(self) -> bool:
        """Whether hair hangs down beside the face, `drape` decimetres below the eyes."""
        return self.hair in ("bob", "long")

    @property
    def tone(self) -> str:
        return TONES[sum(self.melanin >= limit for limit in _TONE_LIMITS)]


def name_subject(subject: int) -> str:
    """F001, M001, F002, …: 23 women to 18 men as in BP4D, with one number for a woman and a man on purpose."""
    women, total = 23, 41
    count = (subject + 1) * women // total
    is_woman = count > subject * women // total
    return f"F{count:03d}" if is_woman else f"M{subject + 1 - count:03d}"


def draw_identity(seed: int, subject: int) -> Identity:
    rng, name = stream(seed, subject, "shape"), name_subject(subject)
    ancestry = rng.dirichlet([0.6, 0.6, 0.6])
    leaning = 0.25 * float(rng.beta(1, 2))
    femininity = 1 - leaning if name[0] == "F" else leaning
    age = float(rng.beta(1, 2.2))
    melanin = float(np.clip(ancestry @ [1.75, 0.6, 0.35] + rng.normal(0, 0.15), 0.15, 2.2))
    styles = {"bald": (0.0, 0.14), "short": (0.06, 0.5), "mid": (0.14, 0.3), "bob": (0.36, 0.03), "long": (0.44, 0.03)}
    hair = str(rng.choice(list(styles), p=[w * femininity + m * (1 - femininity) for w, m in styles.values()]))
    hairline = float(rng.uniform(1.8, 2.3) - 0.25 * (1 - femininity) * age)
    sweep = float(rng.normal(0, 0.1))
    drape = float(rng.uniform(0.75, 1.25)) if hair == "bob" else 2.4
    red, green, blue = (float(v) for v in np.clip(rng.uniform(0.02, 0.4) + rng.normal(0, 0.07, 3), 0.01, 0.7))
    a, b, c = (float(w) for w in ancestry)
    return Identity(
        seed, subject, name, femininity, age, (a, b, c), melanin, hair, hairline, sweep, drape, (red, green, blue)
    )


@dataclass(frozen=True)
class Head:
    """The base head. G geometry vertices share positions, R render vertices also have a part, T triangles join those."""

    position_G3: Array
    geometry_R: NDArray[np.int32]
    part_R: NDArray[np.uint8]
    triangles_T3: NDArray[np.int32]
    lips_G: Array
    lids_G: Array
    shapes: dict[str, Shape]

    @cached_property
    def part_G(self) -> NDArray[np.uint8]:
        part = np.zeros(len(self.position_G3), np.uint8)
        part[self.geometry_R[::-1]] = self.part_R[::-1]  # skin, the lowest number, wins where parts meet
        return part

    @cached_property
    def face_G3(self) -> Array:
        """Face coordinates X, Y and the depth z of every geometry vertex."""
        x, y, z = self.position_G3.T
        return np.stack([x / EYE_HALF_DISTANCE, (y - EYE_HEIGHT) / EYE_HALF_DISTANCE, z], 1)

    @cached_property
    def atlas_R2(self) -> Array:
        """Where each render vertex finds its colour: (u, v) in 0–1. The face gets most of the width, the back little."""
        x, y, z = self.position_G3[self.geometry_R].T
        angle = np.arctan2(x, z - 0.35)
        u = 0.43 + 0.43 * np.tanh(1.6 * angle) / np.tanh(1.6 * np.pi)
        atlas = np.stack([u, (_CROWN - y) / (_CROWN - NECK + 0.05)], 1)
        for part, (left, top, width, height) in PATCHES.items():
            here = self.part_R == part
            flat = np.stack([x[here], -y[here]], 1)
            span = np.ptp(flat, axis=0) + 1e-6
            atlas[here] = [left, top] + (flat - flat.min(0)) / span * [width, height]
        return atlas.astype(np.float32)

    @cached_property
    def around_G(self) -> NDArray[np.int32]:
        """Triangles around each geometry vertex (G, 10), padded with the number of triangles."""
        corners = self.geometry_R[self.triangles_T3]
        order = np.argsort(corners.ravel(), kind="stable")
        degree = np.bincount(corners.ravel(), minlength=len(self.position_G3))
        first = np.r_[0, np.cumsum(degree)[:-1]]
        around = np.full((len(degree), 10), len(corners), np.int32)
        for k in range(10):
            has = degree > k
            around[has, k] = order[first[has] + k] // 3
        return around

    @cached_property
    def neighbours_G(self) -> NDArray[np.int32]:
        """Up to 12 vertices that share an edge with each (G, 12), padded with the vertex itself."""
        corners = self.geometry_R[self.triangles_T3]
        edges = np.concatenate([corners[:, [i, j]] for i in range(3) for j in range(3) if i != j])
        edges = np.unique(edges, axis=0)
        rank = np.arange(len(edges)) - np.searchsorted(edges[:, 0], edges[:, 0])
        table = np.repeat(np.arange(len(self.position_G3), dtype=np.int32)[:, None], 12, 1)
        fits = rank < 12
        table[edges[fits, 0], rank[fits]] = edges[fits, 1]
        return table

    def displacement(self, weights: dict[str, float]) -> Array:
        """The sum of weighted shapes, (G, 3)."""
        moved = np.zeros_like(self.position_G3)
        for name, weight in weights.items():
            index, offset = self.shapes[name]
            moved[index] += np.float32(weight) * offset
        return moved

    def normals(self, position_G3: Array) -> Array:
        """Unit normals of the geometry vertices, weighted by the area of the triangles around."""
        points = position_G3[self.geometry_R[self.triangles_T3]]
        faces = np.cross(points[:, 1] - points[:, 0], points[:, 2] - points[:, 0])
        total = np.concatenate([faces, np.zeros((1, 3), faces.dtype)])[self.around_G].sum(1)
        return (total / (np.linalg.norm(total, axis=1, keepdims=True) + 1e-9)).astype(np.float32)


@lru_cache(maxsize=1)
def load_head() -> Head:
    """The base head of the asset folder. Raises DataError where it has not been fetched."""
    with np.load(head_mesh()) as arrays:
        z = dict(arrays)
    bounds = zip(z["starts"][:-1], z["starts"][1:], strict=True)
    offset = z["offset"].astype(np.float32)
    shapes = {str(name): (z["index"][a:b], offset[a:b]) for name, (a, b) in zip(z["names"], bounds, strict=True)}
    lips, lids = (
        np.r_[z[name].astype(np.float32), np.zeros(_DRAPE[0] * _DRAPE[1], np.float32)] for name in ("lips", "lids")
    )
    drape, sheet = _hang_drape(z["position"], EYE_HEIGHT, 2.4), _weave_drape()
    geometry = np.r_[z["geometry"], len(z["position"]) + np.arange(len(drape), dtype=np.int32)]
    part = np.r_[z["part"], np.full(len(drape), HAIR, np.uint8)]
    triangles = np.concatenate([z["triangles"], sheet + np.int32(len(z["part"]))])
    return Head(np.concatenate([z["position"], drape]), geometry, part, triangles, lips, lids, shapes)


def shape_head(head: Head, identity: Identity) -> tuple[Array, Array]:
    """The person's head at rest, (G, 3): without their hair's volume, and with it."""
    rng = stream(identity.seed, identity.subject, "shape")
    rng.random(64)  # the traits were drawn from the beginning of this stream
    weights = _macro_weights(identity, rng) | _local_weights(head, rng)
    bare = head.position_G3 + head.displacement(weights)
    bare[head.part_G == UPPER_TEETH, 1] -= 0.03  # MakeHuman's hide behind the lip even where it is raised
    x, y, z = head.face_G3.T
    thickness = {"bald": 0.0, "short": 0.03, "mid": 0.10, "bob": 0.12, "long": 0.12}[identity.hair] * rng.uniform(0.7, 1.3)
    phase = rng.uniform(0, 6, 2)
    waves = 1 + 0.2 * np.sin(1.9 * x + phase[0]) * np.sin(7 * z + phase[1])
    volume = hair_cover(x, y, z, identity) * (head.part_G == SKIN) * thickness * waves
    haired = (bare + volume[:, None] * head.normals(bare)).astype(np.float32)
    eyes = float(bare[np.isin(head.part_G, (LEFT_EYE, RIGHT_EYE)), 1].mean())
    haired[head.part_G == HAIR] = _hang_drape(haired[head.part_G == SKIN], eyes, identity.drape)
    return bare.astype(np.float32), haired


def _hang_drape(skin_V3: Array, eyes: float, length: float) -> Array:
    """Hair from the scalp to `length` below the height of the eyes, behind the ears and round the neck: points (N, 3)."""
    rows, columns = _DRAPE
    band = skin_V3[np.abs(skin_V3[:, 1] - eyes - 0.5) < 0.1]
    width, back = 1.04 * np.abs(band[:, 0]).max(), band[:, 2].min()
    middle = 0.12
    down, round_head = np.meshgrid(np.linspace(0, 1, rows), np.linspace(-1.85, 1.85, columns), indexing="ij")
    taper = 0.88 + 0.12 * np.minimum(down * 5, 1) + 0.05 * down * np.sin(3 * round_head) ** 2
    x = width * np.sin(round_head) * taper
    z = middle - (middle - back) * np.cos(round_head) * taper * (1 - 0.25 * down)
    return np.stack([x, eyes + 0.5 - (0.5 + length) * down, z], -1).reshape(-1, 3).astype(np.float32)


def _weave_drape() -> NDArray[np.int32]:
    rows, columns = _DRAPE
    grid = np.arange(rows * columns, dtype=np.int32).reshape(rows, columns)
    a, b, c, d = (g.ravel() for g in (grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]))
    return np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])


def _macro_weights(identity: Identity, rng: np.random.Generator) -> dict[str, float]:
    weights = {}
    fullness = rng.normal(0, 0.3)
    for sex, share in (("female", identity.femininity), ("male", 1 - identity.femininity)):
        for age, part in (("young", 1 - identity.age), ("old", identity.age)):
            for ancestry, amount in zip(("african", "asian", "caucasian"), identity.ancestry, strict=True):
                weights[f"macro/{ancestry}-{sex}-{age}"] = amount * share * part
        weights[f"macro/universal-{sex}-young-averagemuscle-maxweight"] = share * max(0.0, fullness)
        weights[f"macro/universal-{sex}-young-averagemuscle-minweight"] = share * max(0.0, -fullness)
    return weights


def _local_weights(head: Head, rng: np.random.Generator) -> dict[str, float]:
    """Some 45 % of the local shapes, mildly; left and right go together, up to 15 % more or less."""
    weights: dict[str, float] = {}
    for name in head.shapes:
        if name.startswith(("macro/", "unit/")) or "/r-" in name:
            continue
        used, weight, ratio = rng.random() < 0.45, min(abs(rng.normal(0, 0.33)), 0.8), rng.uniform(0.85, 1.15)
        if not used:
            continue
        if name.startswith(("ears/", "asym/")):
            weight *= 0.5
        elif any(part in name for part in _CAPPED):
            weight = min(0.4 * weight, 0.3)
        elif name.startswith("head/"):
            weight *= 0.6
        weights[name] = weight
        mirrored = name.replace("/l-", "/r-")
        if mirrored != name and mirrored in head.shapes:
            weights[mirrored] = weight * ratio
    return weights


def hair_cover(x: Array, y: Array, z: Array, identity: Identity) -> Array:
    """How much of a point is under hair, 0–1: above the hairline, receding at the temples, behind the ears."""
    across = np.abs(x)
    corner = 0.16 if identity.sex == "M" else 0.05  # men's hairlines recede at the temples
    line = identity.hairline - 0.10 * across**2 + corner * smoothstep(across, 0.5, 1.3) * (1 - smoothstep(across, 1.6, 2.2))
    line += identity.sweep * np.tanh(2 * x - 1) + 0.04 * np.sin(4 * x + 9 * identity.hairline)  # combed to one side
    top = smoothstep(y - line, -0.12, 0.12) * (z > 0.2)
    side = smoothstep(across, 1.9, 2.15) * smoothstep(y, 0.0, 0.4) * smoothstep(-z, -0.95, -0.78)
    back = smoothstep(-z, -0.40, -0.25) * smoothstep(y, -2.3, -1.9)
    return np.clip(np.maximum(np.maximum(top, side), back), 0, 1)


@dataclass(frozen=True, slots=True)
class Chart:
    """The face coordinates and masks of every texel of the atlas, (rows, columns) each; `covered` where skin lies."""

    x: Array
    y: Array
    z: Array
    lips: Array
    lids: Array
    covered: NDArray[np.bool_]


@lru_cache(maxsize=1)
def load_chart() -> Chart:
    """The base head unrolled into the atlas, so that skin can be painted as a function of face coordinates."""
    head = load_head()
    skin = head.triangles_T3[(head.part_R[head.triangles_T3] == SKIN).all(1)]
    (x, y, z), covered = _unroll(head, head.face_G3[head.geometry_R], skin)
    masks = np.stack([head.lips_G, head.lids_G, np.zeros_like(head.lips_G)], 1)[head.geometry_R]
    (lips, lids, _), _ = _unroll(head, masks, skin)
    return Chart(x, y, z, lips, lids, covered)


def _unroll(head: Head, values_R3: Array, triangles: NDArray[np.int32]) -> tuple[list[Array], NDArray[np.bool_]]:
    rows, columns = ATLAS
    low, high = values_R3.min(0), values_R3.max(0)
    u, v = head.atlas_R2.T
    # Far from a camera with a long lens, so that perspective vanishes; what lies outermost on the head stays on top.
    depth = 1000 - head.position_G3[head.geometry_R, 2]
    flat = np.stack([(2 * u - 1) * columns / rows * depth / 1000, (1 - 2 * v) * depth / 1000, -depth], 1)
    settings = cv2.TriangleRasterizeSettings()
    settings.setCullingMode(cv2.RASTERIZE_CULLING_NONE)
    settings.setShadingType(cv2.RASTERIZE_SHADING_SHADED)
    colour, distance = np.zeros((rows, columns, 3), np.float32), np.full((rows, columns), 5000, np.float32)
    scaled = ((values_R3 - low) / np.maximum(high - low, 1e-6)).astype(np.float32)
    lens = 2 * np.arctan(1 / 1000)
    view = np.eye(4, dtype=np.float32)
    colour, distance = cv2.triangleRasterize(
        flat.astype(np.float32), triangles, scaled, colour, distance, view, lens, 1.0, 5000.0, settings
    )
    plain = colour * np.maximum(high - low, 1e-6) + low
    return list(cv2.split(plain.astype(np.float32))), distance < 4999
