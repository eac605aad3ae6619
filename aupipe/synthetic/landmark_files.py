"""Exact landmarks in the files in which BP4D and DISFA deliver theirs, with gaps as those have them.

BP4D's tracker left an HDF5 file (MATLAB 7.3) per recording, whose struct array `fit` has the 49 points of each image in its
field `pred`; DISFA's a MATLAB 5 file per frame, whose variable `pts` holds 66. Both count pixels from 1, as MATLAB does.
The same landmarks give the same bytes: nothing here holds a time of writing.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aupipe.synthetic.motion import POINTS, session_rng
from aupipe.synthetic.render import Actor
from aupipe.synthetic.scene import Scene
from aupipe.synthetic.truth import landmarks

KEPT, EMPTY, NOT_A_NUMBER, ZEROS = range(4)
LOST_SHARE = 0.01  # of the entries
_RUN = (1, 9)  # frames that a tracker loses at a time, from, to
_KINDS = {"ibug49": ((EMPTY, NOT_A_NUMBER, ZEROS), (0.6, 0.2, 0.2)), "ibug66": ((NOT_A_NUMBER, ZEROS), (0.5, 0.5))}
_HEADER_5 = b"MATLAB 5.0 MAT-file, Platform: synthetic, Created on: Thu Jan  1 00:00:00 1970"
_HEADER_73 = b"MATLAB 7.3 MAT-file, Platform: synthetic, Created on: Thu Jan  1 00:00:00 1970 HDF5 schema 1.00 ."
_TEXT, _BLOCK = 116, 512  # bytes of a MATLAB header's text, and before the HDF5 part of a 7.3 file


def track_points(actor: Actor, scene: Scene, scheme: str) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
    """Landmarks (N, K, 2) of every frame, counted from 1, NaN or 0 where they are lost; and which are (N,).

    `scheme` is "ibug49" or "ibug66". Raises ConfigError for one without exact landmarks.
    """
    fate = lose_points(scene, scheme)
    points = np.stack([landmarks(actor, scene, n, scheme) for n in range(scene.frames)]).astype(np.float64) + 1
    points[(fate == NOT_A_NUMBER) | (fate == EMPTY)] = np.nan
    points[fate == ZEROS] = 0
    return points, fate


def lose_points(scene: Scene, scheme: str) -> NDArray[np.int8]:
    """What became of each frame's landmarks (N,): some LOST_SHARE of them are lost, in short runs of one kind each."""
    rng, (kinds, odds) = session_rng(scene.seed, scene.subject, scene.session, POINTS), _KINDS[scheme]
    starts = rng.random(scene.frames) < LOST_SHARE / np.mean(_RUN)
    lengths, drawn = rng.integers(_RUN[0], _RUN[1] + 1, scene.frames), rng.choice(kinds, scene.frames, p=odds)
    fate = np.full(scene.frames, KEPT, np.int8)
    for n in np.flatnonzero(starts):
        fate[n : n + lengths[n]] = drawn[n]
    return fate


def write_points_49(path: Path, points_NK2: NDArray[np.float64], fate_N: NDArray[np.int8]) -> None:
    """A MATLAB 7.3 file of the struct array fit(1 … N), whose field `pred` is 49 × 2, or [] where it is EMPTY.

    In HDF5, MATLAB keeps matrices transposed, a struct array's field as references to its values under #refs#, and an empty
    matrix as its two sizes.
    """
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=_BLOCK, libver="earliest") as file:
        values = file.create_group("#refs#")
        references = np.empty((len(points_NK2), 1), h5py.ref_dtype)
        for n, (points, fate) in enumerate(zip(points_NK2, fate_N, strict=True)):
            data = np.zeros(2, np.uint64) if fate == EMPTY else np.ascontiguousarray(points.T)
            entry = values.create_dataset(f"pred{n + 1}", data=data, track_times=False)
            entry.attrs["MATLAB_class"] = np.bytes_("double")
            if fate == EMPTY:
                entry.attrs["MATLAB_empty"] = np.uint8(1)
            references[n, 0] = entry.ref
        fit = file.create_group("fit")
        fit.attrs["MATLAB_class"] = np.bytes_("struct")
        fit.create_dataset("pred", data=references, dtype=h5py.ref_dtype, track_times=False)
    with path.open("r+b") as file_:  # the block before the HDF5 part: text, no subsystem data, version 2.0, little endian
        file_.write(_HEADER_73.ljust(_TEXT) + bytes(8) + b"\x00\x02IM")


def encode_points_66(points_K2: NDArray[np.float64]) -> bytes:
    """A MATLAB 5 file with the variable `pts` (66, 2)."""
    from scipy.io import savemat

    file = io.BytesIO()
    savemat(file, {"pts": points_K2})
    return _HEADER_5.ljust(_TEXT) + file.getvalue()[_TEXT:]  # SciPy's own header says when it was written


def write_points_66(folder: Path, points_NK2: NDArray[np.float64], names: list[str]) -> None:
    """A file per frame into `folder`, which is made."""
    folder.mkdir(parents=True)
    for name, points in zip(names, points_NK2, strict=True):
        (folder / name).write_bytes(encode_points_66(points))
