"""The base head unrolled into the atlas, so that skin can be painted as a function of face coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from aupipe.synthetic.coordinates import Array
from aupipe.synthetic.head import ATLAS, Head, load_head
from aupipe.synthetic.mesh import SKIN


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
    (x, y, z), covered = _unroll(head, head.face[head.geometry_R], skin)
    masks = np.stack([head.lips_G, head.lids_G, np.zeros_like(head.lips_G)], 1)[head.geometry_R]
    (lips, lids, _), _ = _unroll(head, masks, skin)
    return Chart(x, y, z, lips, lids, covered)


def _unroll(head: Head, values_R3: Array, triangles: NDArray[np.int32]) -> tuple[list[Array], NDArray[np.bool_]]:
    rows, columns = ATLAS
    low, high = values_R3.min(0), values_R3.max(0)
    u, v = head.atlas.T
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
