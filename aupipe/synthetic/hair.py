"""Where hair grows on a head, and the sheet of it that hangs beside and behind the face."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from aupipe.synthetic.coordinates import Array, smoothstep
from aupipe.synthetic.identity import Identity

_DRAPE = (9, 33)  # rows and columns of the sheet of hanging hair
THICKNESS = {"bald": 0.0, "short": 0.03, "mid": 0.10, "bob": 0.12, "long": 0.12}  # on the scalp, decimetres


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


def hang_drape(skin_V3: Array, eyes: float, length: float) -> Array:
    """Hair from the scalp to `length` below the height of the eyes, behind the ears and round the neck: points (N, 3)."""
    rows, columns = _DRAPE
    band = skin_V3[np.abs(skin_V3[:, 1] - eyes - 0.5) < 0.1]
    width, back = 1.04 * np.abs(band[:, 0]).max(), band[:, 2].min()
    middle = 0.12
    down, round_head = np.meshgrid(np.linspace(0, 1, rows), np.linspace(-1.85, 1.85, columns), indexing="ij")
    taper = 0.88 + 0.12 * np.minimum(down * 5, 1) + 0.05 * down * np.sin(3 * round_head) ** 2
    x = width * np.sin(round_head) * taper
    z = middle - (middle - back) * np.cos(round_head) * taper * (1 - 0.25 * down)
    drop = (0.5 + length * (1 + 0.05 * np.sin(5 * round_head) + 0.04 * np.sin(17 * round_head))) * down
    return np.stack([x, eyes + 0.5 - drop, z], -1).reshape(-1, 3).astype(np.float32)


def weave_drape() -> NDArray[np.int32]:
    """The sheet's triangles (T, 3), of its own points."""
    rows, columns = _DRAPE
    grid = np.arange(rows * columns, dtype=np.int32).reshape(rows, columns)
    a, b, c, d = (g.ravel() for g in (grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]))
    return np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
