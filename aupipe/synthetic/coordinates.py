"""Face coordinates, in which skin, masks, regions and hairlines are written, and soft edges in them.

The eyes are at (±1, 0), the mouth near Y = −1.95, the brows near Y = 0.62, z is the depth in decimetres. They are those
of MakeHuman's base head: a point of the skin keeps them whatever the person's shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

EYE_HEIGHT, EYE_HALF_DISTANCE = 7.284, 0.308  # of the base head, decimetres


def floats(values: Sequence[Any] | Array | float) -> Array:
    """A float32 array: what OpenCV and the renderer work in."""
    return np.array(values, np.float32)


def smoothstep(x: Array, low: float, high: float) -> Array:
    """0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32)


def find_face(position_G3: Array) -> Array:
    """Face coordinates X, Y and depth z (G, 3) of points of the base head."""
    x, y, z = position_G3.T
    return np.stack([x / EYE_HALF_DISTANCE, (y - EYE_HEIGHT) / EYE_HALF_DISTANCE, z], 1)
