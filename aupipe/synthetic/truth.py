"""What is known about a rendered frame because it was rendered: exact landmarks, the head's pose, where an AU shows.

Landmarks are fixed vertices of the skin. They were chosen once: on frontal and slightly turned, neutral and expressive
faces of 24 people, each point is the vertex that lies nearest, on average, to the point of the same name that BlazeMesh
finds. Left and right are mirrored vertices, the points of the midline lie on it, and the points of lids and lips turned out
to be vertices of their edges. `python benchmarks/truth.py --derive` repeats the choice.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from aupipe.align import align, warp_image
from aupipe.config import ALIGN_SIZE
from aupipe.schema import ConfigError
from aupipe.synthetic.coordinates import Array
from aupipe.synthetic.head import ATLAS, load_head
from aupipe.synthetic.mesh import SKIN
from aupipe.synthetic.render import Actor, Pose, draw_triangles, pose_head, project, rotation
from aupipe.synthetic.rig import AUS, weigh_folds
from aupipe.synthetic.scene import Scene, act
from aupipe.synthetic.shading import shade_folds

# Geometry vertices of the head (mesh.py) at the 68 points of iBUG's scheme.
VERTICES_68: NDArray[np.int64] = np.array(
    [
        *(871, 2260, 1589, 736, 1737, 1795, 1792, 1789, 1793),  # jaw, from the left of the image to the chin
        *(3974, 3977, 3979, 3925, 2968, 3783, 4436, 3088),
        *(1758, 1757, 231, 229, 233, 2518, 2514, 2516, 3944, 3945),  # brows
        *(169, 135, 201, 1631, 358, 314, 317, 2589, 2631),  # nose
        *(26, 8, 55, 1515, 1070, 1067, 3712, 2351, 2304, 2322, 3271, 3274),  # eyes
        *(424, 1848, 457, 466, 2728, 4029, 2696, 2751, 2757, 496, 490, 484),  # outer lip
        *(433, 472, 474, 2740, 2705, 2754, 494, 487),  # inner lip
    ]
)
VERTICES_68.setflags(write=False)
# iBUG's 68 points without the jaw and the inner corners of the mouth.
POINTS_49: NDArray[np.int64] = np.delete(np.arange(17, 68), [60 - 17, 64 - 17])
POINTS_49.setflags(write=False)
# The 68 without the inner corners of the mouth alone: DISFA's.
POINTS_66: NDArray[np.int64] = np.delete(np.arange(68), [60, 64])
POINTS_66.setflags(write=False)
_POINTS = {"ibug49": VERTICES_68[POINTS_49], "ibug66": VERTICES_68[POINTS_66], "ibug68": VERTICES_68}

SHOWS = 8  # of 255: from this value on a pixel of a region map counts as the AU's
_REACH = 0.06  # decimetres of movement that are drawn as 255
_TILT = 0.5  # change of a unit normal that is drawn as 255
_DEPTH = 0.5  # relative change of the skin's brightness by folds that is drawn as 255
_CROP = 176  # of the aligned 200 pixels: what models see of `face200`


def landmarks(actor: Actor, scene: Scene, frame: int, scheme: str = "ibug49") -> NDArray[np.float32]:
    """The landmarks (K, 2) of a frame as float32 x, y in its pixels, pixel centres at integers; K is 49, 66 or 68.

    They are where the vertices are, seen or hidden: by a hand, by the turned head or by pressed lips. Raises ConfigError
    for a scheme other than "ibug49", "ibug66" and "ibug68".
    """
    if scheme not in _POINTS:
        raise ConfigError(f"unknown landmark scheme '{scheme}'; exact landmarks are known for {', '.join(_POINTS)}")
    position, _ = pose_head(actor, *act(scene, frame))
    return project(position[render_vertices()[_POINTS[scheme]]], scene.camera.size)


def pose(scene: Scene, frame: int) -> NDArray[np.float32]:
    """Yaw, pitch, roll (3,) in radians: the nose to the right of the image, down, and the head turned anticlockwise."""
    return np.asarray(scene.motion.angles_N3[frame], np.float32)


def region_map(
    actor: Actor, scene: Scene, frame: int, au: int, *, warp: NDArray[np.float64] | None = None, size: int = 56
) -> NDArray[np.uint8]:
    """Where an AU shows in an aligned frame: `region_image` resampled to (size, size) uint8.

    `warp` (2, 3) takes the frame's pixels to those of the map. Without it, the map covers the central 176 pixels of the
    frame's face200, aligned by the exact landmarks.
    """
    image = region_image(actor, scene, frame, au)
    if warp is None:
        warp = _centre_warp(align("face200", cv2.merge([image] * 3), landmarks(actor, scene, frame)).warp, size)
    return warp_image(image, warp, size, border=(0, 0, 0))


def region_image(actor: Actor, scene: Scene, frame: int, au: int) -> NDArray[np.uint8]:
    """Where a coded AU shows in a frame (height, width) uint8: how much the frame without it would differ there.

    255 is a centimetre of movement, half a unit of change of the normal, or half the skin's brightness by folds, whichever
    is more; both the moved and the unmoved surface are drawn, because pixels change in both places. Movements that this AU
    brings about or holds back through others (rig.activate) belong to it. A hand before the face is not regarded. Takes
    some 20 ms at 256 pixels.
    """
    (moving, attitude), (still, _) = act(scene, frame), act(set_intensity(scene, frame, au, 0.0), frame)
    change = _measure_change(actor, moving - still)
    fold = _lay_out_fold(actor, scene, frame, au)
    strength = np.zeros(scene.camera.size, np.float32)
    for activation in (moving, still):
        np.maximum(strength, _draw_change(actor, scene, activation, attitude, change, fold), out=strength)
    blurred = 3 + 2 * int(np.ceil(scene.camera.blur))  # pixels across, over which the lens spreads a point
    spread = cv2.dilate(strength, np.ones((blurred, blurred), np.uint8))
    return cv2.convertScaleAbs(np.minimum(spread, 1), alpha=255)


def set_intensity(scene: Scene, frame: int, au: int, intensity: float) -> Scene:
    """The scene with one AU of one frame at this intensity (0–5)."""
    intensity_NM = scene.motion.intensity_NM.copy()
    intensity_NM[frame, AUS.index(au)] = intensity
    return replace(scene, motion=replace(scene.motion, intensity_NM=intensity_NM))


@lru_cache(maxsize=1)
def render_vertices() -> NDArray[np.intp]:
    """A render vertex (G,) of each geometry vertex: of its skin, where it has several."""
    head = load_head()
    vertices = np.zeros(len(head.position_G3), np.intp)
    skin = np.flatnonzero(head.part_R == SKIN)
    vertices[head.geometry_R] = np.arange(len(head.geometry_R))
    vertices[head.geometry_R[skin]] = skin
    return vertices


def _measure_change(actor: Actor, activation_K: Array) -> Array:
    """How far these activations move and tilt each render vertex (R,), 1 at _REACH or _TILT."""
    moved, tilted = np.linalg.norm((activation_K @ actor.rig.basis).reshape(2, -1, 3), axis=2)
    return np.maximum(moved / _REACH, tilted / _TILT).astype(np.float32)


def _lay_out_fold(actor: Actor, scene: Scene, frame: int, au: int) -> Array:
    """The AU's shading in the atlas (rows, columns), in the light of the frame, 1 at _DEPTH."""
    activation, attitude = act(scene, frame)
    folds, turn = actor.skin.folds, rotation(attitude)
    strength = weigh_folds(scene.motion.intensity_NM[frame], activation)
    with_it, without = (shade_folds(folds, s, scene.camera.light, turn) for s in (strength, strength | {au: 0.0}))
    fold = np.zeros(ATLAS, np.float32)
    top, bottom, left, right = folds.bounds
    fold[top:bottom, left:right] = np.abs(with_it - without) / np.float32(_DEPTH)
    return fold


def _draw_change(actor: Actor, scene: Scene, activation: Array, attitude: Pose, change_R: Array, fold: Array) -> Array:
    position, _ = pose_head(actor, activation, attitude)
    values = np.concatenate([actor.atlas, change_R[:, None]], 1)
    found, _ = draw_triangles(scene.camera.size, position, actor.triangles_T3, values)
    u, v, change = cv2.split(found)
    rows, columns = ATLAS
    shade = cv2.remap(fold, u * columns - 0.5, v * rows - 0.5, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.maximum(change, shade)


def _centre_warp(warp: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """An alignment's warp, continued to its central crop at `size` pixels."""
    scale, margin = size / _CROP, (ALIGN_SIZE["face200"] - _CROP) / 2
    shift = scale * (0.5 - margin) - 0.5
    return np.column_stack([scale * warp[:, :2], scale * warp[:, 2] + shift])
