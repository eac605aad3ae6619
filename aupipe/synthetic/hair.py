"""Where hair grows on a head, and the sheet of it that hangs beside and behind the face."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from aupipe.synthetic.coordinates import Array, smoothstep
from aupipe.synthetic.identity import Identity

_DRAPE = (9, 33)  # rows and columns of the sheet of hanging hair
THICKNESS = {"bald": 0.0, "short": 0.03, "mid": 0.10, "bob": 0.12, "long": 0.12}  # on the scalp, decimetres


def hair_cover(x: Array, y: Array, z: Array, identity: Identity, rise: tuple[float, float] = (-0.1, 0.1)) -> Array:
    """How much of a point is under hair, 0–1: above the hairline, receding at the temples, behind the ears.

    It grows from 0 to 1 between two heights relative to the hairline, in face units.
    """
    across = np.abs(x)
    corner = 0.16 if identity.sex == "M" else 0.05  # men's hairlines recede at the temples
    corner += 0.9 * max(0.0, identity.hairline - 2.2)
    line = identity.hairline - 0.10 * across**2 + corner * smoothstep(across, 0.3, 1.2) * (1 - smoothstep(across, 1.5, 2.2))
    line += identity.sweep * np.tanh(2 * x - 1) + 0.04 * np.sin(4 * x + 9 * identity.hairline)  # combed to one side
    low, high = rise
    top = smoothstep(y - line, low, high) * smoothstep(z, 0.1, 0.3)
    if identity.wears_drape:  # combed back over the temples
        side = smoothstep(across, 1.6, 1.9) * smoothstep(y, -1.0, -0.4) * smoothstep(-z, -0.95, -0.8)
    else:
        side = smoothstep(across, 1.78, 2.12) * smoothstep(y, -0.25, 0.35) * smoothstep(-z, -0.98, -0.72)
    back = smoothstep(-z, -0.42, -0.22) * smoothstep(y, -2.3, -1.9)
    return np.clip(np.maximum(np.maximum(top, side), back), 0, 1)


def hang_drape(skin_V3: Array, eyes: float, length: float) -> Array:
    """Hair from the scalp to `length` below the height of the eyes, behind the ears and round the neck: points (N, 3)."""
    rows, columns = _DRAPE
    band = skin_V3[np.abs(skin_V3[:, 1] - eyes - 0.5) < 0.1]
    width, back = 1.04 * np.abs(band[:, 0]).max(), band[:, 2].min()
    middle = 0.12
    down, round_head = np.meshgrid(np.linspace(0, 1, rows), np.linspace(-1.85, 1.85, columns), indexing="ij")
    round_head = round_head * (0.8 + 0.2 * np.minimum(down * 4, 1))  # it comes out from behind the ears
    taper = 0.86 + 0.14 * np.minimum(down * 4, 1) + 0.05 * down * np.sin(3 * round_head) ** 2
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
