"""The base head unrolled into the atlas, so that skin can be painted as a function of face coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from aupipe.synthetic.coordinates import EYE_HALF_DISTANCE, Array
from aupipe.synthetic.head import ATLAS, Head, load_head
from aupipe.synthetic.mesh import SKIN

_BASE = 128
_WHOLE = (slice(None), slice(None))
_AXIS = 0.35  # depth z of the axis around which the atlas unrolls the head


@dataclass(frozen=True)
class Chart:
    """The face coordinates and masks of every texel of the atlas, (rows, columns) each; `covered` where skin lies.

    `normal` (rows, columns, 3) is the skin's, in the head's frame: x to its left, y up, z out of the face.
    """

    x: Array
    y: Array
    z: Array
    lips: Array
    lids: Array
    ears: Array
    covered: NDArray[np.bool_]
    normal: Array

    def wobble(self, rng: np.random.Generator) -> Array:
        """A slow variation over the skin (rows, columns), of unit standard deviation."""
        rows, columns = self.x.shape
        grid = rng.standard_normal((24, 20), dtype=np.float32)
        return cv2.resize(grid, (columns, rows), interpolation=cv2.INTER_CUBIC)

    def climb(self, height: Array, box: tuple[slice, slice] = _WHOLE) -> Array:
        """The gradient of a height over the skin (h, w), in face units: (h, w, 3), in the head's frame.

        `box` is the part of the atlas, rows and columns, that the height is given for.

        The atlas stretches the face, here more than there, and v runs down; so the steps from texel to texel are measured
        in space, and the gradient is the sum of their dual vectors, each times the climb along its step.
        """
        along_u, along_v = _differ(height)
        return along_u[..., None] * self._duals[0][box] + along_v[..., None] * self._duals[1][box]

    @cached_property
    def _duals(self) -> tuple[Array, Array]:
        """Vectors a, b (rows, columns, 3) along the skin with a·u = b·v = 1, a·v = b·u = 0 for its steps u, v per texel."""
        u, v = _differ(np.stack([self.x, self.y, self.z / np.float32(EYE_HALF_DISTANCE)], -1))
        uu, uv, vv = ((a * b).sum(-1, keepdims=True) for a, b in ((u, u), (u, v), (v, v)))
        area = uu * vv - uv * uv + 1e-12
        return ((vv * u - uv * v) / area).astype(np.float32), ((uu * v - uv * u) / area).astype(np.float32)


@lru_cache(maxsize=1)
def load_chart() -> Chart:
    """The base head unrolled into the atlas, so that skin can be painted as a function of face coordinates."""
    head = load_head()
    skin = head.triangles_T3[(head.part_R[head.triangles_T3] == SKIN).all(1)]
    (x, y, z), covered = _unroll(head, head.face[head.geometry_R], skin)
    masks = np.stack([head.lips_G, head.lids_G, head.ears], 1)[head.geometry_R]
    (lips, lids, ears), _ = _unroll(head, masks, skin)
    normal, _ = _unroll(head, head.normals(head.position_G3)[head.geometry_R], skin)
    return Chart(x, y, z, lips, lids, ears, covered, np.stack(normal, -1))


def _differ(values: Array) -> tuple[Array, Array]:
    """Central differences per texel along u (columns) and v (rows)."""
    down, across = np.gradient(values, axis=(0, 1))
    return np.asarray(across), np.asarray(down)


@dataclass(frozen=True, slots=True)
class Lightmap:
    """Which three render vertices (3, L) light each of the L texels of a coarse atlas, and their shares (3, L, 4)."""

    size: tuple[int, int]
    vertices: NDArray[np.intp]
    shares: Array

    def spread(self, values_R4: Array) -> Array:
        """Values of render vertices over the coarse atlas: (rows, columns, 4) float32."""
        parts = (np.take(values_R4, vertices, axis=0) for vertices in self.vertices)
        first, second, third = (cv2.multiply(part, shares) for part, shares in zip(parts, self.shares, strict=True))
        total = cv2.add(cv2.add(first, second, dst=first), third, dst=first)
        return total.reshape(*self.size, 4)


@lru_cache(maxsize=1)
def load_lightmap() -> Lightmap:
    """The base head's triangles, of all parts, in an atlas of a quarter of the size; gaps are lit as what is nearest.

    The chin's underside lies over the throat in the atlas, and the nose's over the lip. Which are seen? Those that face
    outwards: of triangles that share texels, they win.
    """
    head, size = load_head(), (ATLAS[0] // 4, ATLAS[1] // 4)
    triangles = head.triangles_T3[np.ptp(head.atlas[head.triangles_T3, 0], axis=1) < 0.5]  # none across the atlas's ends
    count = len(triangles)
    split = np.arange(3 * count, dtype=np.int32).reshape(-1, 3)
    # A triangle's number is drawn as two digits, because interpolation is only exact to some four decimals.
    digits = np.stack([*np.divmod(np.arange(count), _BASE), np.zeros(count)], 1) / _BASE
    corners = head.position_G3[head.geometry_R[triangles]]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    outwards = corners.mean(1) * [1, 0, 1] - [0, 0, _AXIS]
    facing = (normal * outwards).sum(1) / (np.linalg.norm(normal, axis=1) * np.linalg.norm(outwards, axis=1) + 1e-9)
    (drawn, covered), (number, _) = (
        _draw(head, triangles.ravel(), size, values.astype(np.float32), split, np.repeat(facing, 3))
        for values in (np.tile(np.eye(3), (count, 1)), np.repeat(digits, 3, axis=0))
    )
    _, nearest = cv2.distanceTransformWithLabels((~covered).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    source = np.zeros(nearest.max() + 1, np.int64)
    source[nearest[covered]] = np.flatnonzero(covered)
    texels = source[nearest.ravel()]
    first, second, _ = drawn.reshape(-1, 3)[texels].T
    high, low, _ = np.rint(_BASE * number.reshape(-1, 3)[texels]).astype(np.int64).T
    corners = triangles[_BASE * high + low]
    shares = np.repeat(np.stack([first, second, 1 - first - second])[..., None], 4, 2)
    return Lightmap(size, np.ascontiguousarray(corners.T.astype(np.intp)), shares.astype(np.float32))


def _unroll(head: Head, values_R3: Array, triangles: NDArray[np.int32]) -> tuple[list[Array], NDArray[np.bool_]]:
    low, high = values_R3.min(0), values_R3.max(0)
    scaled = ((values_R3 - low) / np.maximum(high - low, 1e-6)).astype(np.float32)
    # What lies outermost on the head stays on top.
    drawn, covered = _draw(head, np.arange(len(values_R3)), ATLAS, scaled, triangles, head.position_G3[head.geometry_R, 2])
    plain = drawn * np.maximum(high - low, 1e-6) + low
    return list(cv2.split(plain.astype(np.float32))), covered


def _draw(
    head: Head,
    vertices: NDArray[np.integer[Any]],
    size: tuple[int, int],
    values_V3: Array,
    triangles: NDArray[np.int32],
    height_V: Array,
) -> tuple[Array, NDArray[np.bool_]]:
    """Values 0–1 of render vertices, interpolated over the atlas at this size (rows, columns, 3), and where there are any.

    Of what shares a texel, the higher is seen.
    """
    rows, columns = size
    u, v = head.atlas[vertices].T
    depth = 1000 - height_V  # far from a camera with a long lens, so that perspective vanishes
    flat = np.stack([(2 * u - 1) * columns / rows * depth / 1000, (1 - 2 * v) * depth / 1000, -depth], 1)
    settings = cv2.TriangleRasterizeSettings()
    settings.setCullingMode(cv2.RASTERIZE_CULLING_NONE)
    settings.setShadingType(cv2.RASTERIZE_SHADING_SHADED)
    colour, distance = np.zeros((rows, columns, 3), np.float32), np.full((rows, columns), 5000, np.float32)
    lens, view = 2 * np.arctan(1 / 1000), np.eye(4, dtype=np.float32)
    colour, distance = cv2.triangleRasterize(
        flat.astype(np.float32), triangles, values_V3, colour, distance, view, lens, 1.0, 5000.0, settings
    )
    return colour, distance < 4999
