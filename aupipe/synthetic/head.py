"""One person's head at rest: the base mesh, and the shape that an identity gives it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from aupipe.assets import head_mesh
from aupipe.synthetic.coordinates import EYE_HEIGHT, Array, find_face, smoothstep
from aupipe.synthetic.hair import THICKNESS, hair_cover, hang_drape, weave_drape
from aupipe.synthetic.identity import (
    Identity,
    stream,
    weigh_local_shapes,
    weigh_macro_shapes,
    weigh_resting_expression,
)
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

Shape = tuple[NDArray[np.uint16], Array]

ATLAS = (640, 512)  # rows, columns of the painted skin
_CROWN = 8.55
_THROAT = 0.5
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
    def parts(self) -> NDArray[np.uint8]:
        """The part (G,) that a geometry vertex belongs to."""
        part = np.zeros(len(self.position_G3), np.uint8)
        part[self.geometry_R[::-1]] = self.part_R[::-1]  # skin, the lowest number, wins where parts meet
        return part

    @cached_property
    def face(self) -> Array:
        """Face coordinates X, Y and the depth z of every geometry vertex, (G, 3)."""
        return find_face(self.position_G3)

    @cached_property
    def ears(self) -> Array:
        """Where the ears are, (G,) in 0–1: what moves when they are shifted."""
        moved = np.linalg.norm(self.displacement({"ears/l-ear-trans-down": 1.0, "ears/r-ear-trans-down": 1.0}), axis=1)
        return smoothstep(moved / moved.max(), 0.45, 0.85)

    @cached_property
    def atlas(self) -> Array:
        """Where each render vertex finds its colour: (u, v) in 0–1. The face gets most of the width, the back little."""
        x, y, z = self.position_G3[self.geometry_R].T
        angle = np.arctan2(x, z - 0.35)
        u = 0.43 + 0.43 * np.tanh(1.6 * angle) / np.tanh(1.6 * np.pi)
        # Below the chin the skin runs back to the throat, not down: there, depth makes up for height.
        back = _THROAT * (1 - smoothstep(y, 6.25, 6.6)) * (1.2 - np.clip(z, 0.4, 1.2))
        atlas = np.stack([u, (_CROWN - y + back) / (_CROWN - NECK + 0.05 + 0.8 * _THROAT)], 1)
        for part, (left, top, width, height) in PATCHES.items():
            here = self.part_R == part
            flat = np.stack([x[here], -y[here]], 1)
            span = np.ptp(flat, axis=0) + 1e-6
            atlas[here] = [left, top] + (flat - flat.min(0)) / span * [width, height]
        return atlas.astype(np.float32)

    @cached_property
    def around(self) -> NDArray[np.int32]:
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
    def neighbours(self) -> NDArray[np.int32]:
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
        total = np.concatenate([faces, np.zeros((1, 3), faces.dtype)])[self.around].sum(1)
        return (total / (np.linalg.norm(total, axis=1, keepdims=True) + 1e-9)).astype(np.float32)


@lru_cache(maxsize=1)
def load_head() -> Head:
    """The base head of the asset folder. Raises DataError where it has not been fetched."""
    with np.load(head_mesh()) as arrays:
        z = dict(arrays)
    bounds = zip(z["starts"][:-1], z["starts"][1:], strict=True)
    offset = z["offset"].astype(np.float32)
    shapes = {str(name): (z["index"][a:b], offset[a:b]) for name, (a, b) in zip(z["names"], bounds, strict=True)}
    drape, sheet = hang_drape(z["position"], EYE_HEIGHT, 2.4), weave_drape()
    lips, lids = (np.r_[z[name].astype(np.float32), np.zeros(len(drape), np.float32)] for name in ("lips", "lids"))
    geometry = np.r_[z["geometry"], len(z["position"]) + np.arange(len(drape), dtype=np.int32)]
    part = np.r_[z["part"], np.full(len(drape), HAIR, np.uint8)]
    triangles = np.concatenate([z["triangles"], sheet + np.int32(len(z["part"]))])
    return Head(np.concatenate([z["position"], drape]), geometry, part, triangles, lips, lids, shapes)


def shape_head(head: Head, identity: Identity) -> tuple[Array, Array]:
    """The person's head at rest, (G, 3): without their hair's volume, and with it."""
    rng = stream(identity.seed, identity.subject, "shape")
    weights = weigh_macro_shapes(identity, rng) | weigh_local_shapes(head.shapes, rng)
    weights |= weigh_resting_expression(stream(identity.seed, identity.subject, "rest"))
    bare = head.position_G3 + head.displacement(weights)
    bare[head.parts == UPPER_TEETH, 1] -= 0.03  # MakeHuman's hide behind the lip even where it is raised
    x, y, z = head.face.T
    thickness = THICKNESS[identity.hair] * rng.uniform(0.7, 1.3)
    phase = rng.uniform(0, 6, 2)
    waves = 1 + 0.25 * np.sin(1.9 * x + phase[0]) * np.sin(7 * z + phase[1])
    cover = hair_cover(x, y, z, identity, (-0.1, 0.15) if identity.fringe else (0.0, 0.9))  # it lies close at the hairline
    volume = cover * (1 - head.ears) * (head.parts == SKIN) * thickness * waves
    haired = (bare + volume[:, None] * head.normals(bare)).astype(np.float32)
    eyes = float(bare[np.isin(head.parts, (LEFT_EYE, RIGHT_EYE)), 1].mean())
    haired[head.parts == HAIR] = hang_drape(haired[head.parts == SKIN], eyes, identity.drape)
    return bare.astype(np.float32), haired
