"""A frame: pose the rig, light its vertices and the skin between them, rasterise, fetch the skin's colour, develop.

Every frame is a function of (actor, scene, frame number) alone, so that any of them can be rendered by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from aupipe.synthetic.camera import DISTANCE, HALF_HEIGHT, Camera, Light, draw_occluder, look_through
from aupipe.synthetic.chart import load_lightmap
from aupipe.synthetic.coordinates import Array, floats, smoothstep
from aupipe.synthetic.folds import Strength
from aupipe.synthetic.glasses import Glasses, fit_glasses
from aupipe.synthetic.head import Head, load_head, shape_head
from aupipe.synthetic.identity import Identity, draw_identity
from aupipe.synthetic.lenses import draw_glasses
from aupipe.synthetic.mesh import HAIR, LASHES, LEFT_EYE, LOWER_TEETH, MOUTH, RIGHT_EYE, SKIN, TONGUE, UPPER_TEETH
from aupipe.synthetic.rig import FACE_UNITS, Rig, build_rig, weigh_folds
from aupipe.synthetic.shading import light_vertices, shade_folds
from aupipe.synthetic.skin import Skin, paint_skin

_LENS = 2 * float(np.arctan(HALF_HEIGHT / DISTANCE))
_VIEW = np.eye(4, dtype=np.float32)
_SHADED = {LASHES: 0.8, UPPER_TEETH: 0.95, LOWER_TEETH: 0.75, TONGUE: 0.5, MOUTH: 0.5}  # light that enters there
_OVERSAMPLE = 1.25  # rendered so much larger, then averaged down, which smooths edges
_FINE = 400  # pixels of height from which a frame shows more than half of the atlas's rows and columns
_SINK = 1.0015  # eyeballs are drawn so much further away, along the line of sight, so that they never pierce their lids
_BACK = -0.8  # triangles whose normals point further back are behind the head at every pose


@dataclass(frozen=True, slots=True)
class Pose:
    """Where the head is: yaw, pitch, roll in radians, and its shift in decimetres."""

    angles: tuple[float, float, float] = (0.0, 0.0, 0.0)
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Actor:
    """A person ready to be rendered, with their skin in full and at half the size, for frames that show no more of it.

    `textures` are scratch, one per size of the skin: each frame rewrites one of them.
    """

    identity: Identity
    rig: Rig
    skins: tuple[Skin, Skin]
    triangles_T3: NDArray[np.int32]
    atlas: Array
    occlusion_R: Array
    glossy_R: Array
    sink_R: Array
    pivot: Array
    centre: Array
    textures: tuple[Array, Array]
    glasses: Glasses | None

    @property
    def skin(self) -> Skin:
        return self.skins[0]


def prepare_actor(seed: int, subject: int, rig: str = FACE_UNITS) -> Actor:
    """Shape, rig and paint a person: a function of (seed, subject, name of the rig) alone, some 0.3 s."""
    cv2.setNumThreads(1)  # frames are spread over processes; OpenCV's own threads would only get in their way
    head, identity = load_head(), draw_identity(seed, subject)
    bare, position = shape_head(head, identity)
    moving = build_rig(head, identity, position, rig)
    skin = paint_skin(identity, moving.gain)
    skins = (skin, skin.halve())
    occlusion = _find_occlusion(head, bare)[head.geometry_R]
    occlusion *= np.array([_SHADED.get(part, 1.0) for part in head.part_R.tolist()])
    eyes = position[np.isin(head.parts, (LEFT_EYE, RIGHT_EYE))].mean(0)
    return Actor(
        identity,
        moving,
        skins,
        _select_triangles(head, identity, position),
        head.atlas,
        occlusion.astype(np.float32)[:, None],
        np.where(head.part_R <= LOWER_TEETH, occlusion, 0).astype(np.float32),
        np.where(np.isin(head.part_R, (LEFT_EYE, RIGHT_EYE)), _SINK, 1).astype(np.float32)[:, None],
        floats([0, eyes[1] - 1.0, 0.5]),
        floats([0, eyes[1] + 0.02, 0.5]),
        (skins[0].albedo.copy(), skins[1].albedo.copy()),
        fit_glasses(head, bare, seed, subject),
    )


def render_frame(
    actor: Actor,
    camera: Camera,
    activation_K: Array,
    intensity_M: Array,
    pose: Pose,
    rng: np.random.Generator,
    *,
    second: float = 0.0,
    flicker: float = 0.0,
    smear: tuple[float, float] = (0.0, 0.0),
) -> NDArray[np.uint8]:
    """One frame (height, width, 3) uint8 RGB. `rng` is the frame's own: its noise must not depend on other frames.

    `smear`: how far the head moves right and down during the exposure, in pixels.
    """
    position, normal = pose_head(actor, activation_K, pose)
    light = camera.light
    irradiance, gloss = light_vertices(normal, light, light.reach(position + floats([0, 0, DISTANCE])))
    irradiance[:, :3] *= actor.occlusion_R
    gloss *= actor.glossy_R
    strength = weigh_folds(intensity_M, activation_K)
    texture = _light_skin(actor, strength, light, pose, irradiance, coarse=camera.size[0] < _FINE)
    colour, depth = _rasterise(actor, camera.size, position, gloss, texture)
    linear = _compose(camera, colour)
    if camera.glasses and actor.glasses is not None:
        draw_glasses(linear, actor.glasses, place_head(actor, pose), light, depth, lambda p: project(p, camera.size))
    if camera.occluder is not None:
        draw_occluder(linear, camera.occluder, second, depth, light, camera.shutter, pose.shift[:2])
    return look_through(camera, linear, rng, 1 + camera.flicker * flicker, smear)


def pose_head(actor: Actor, activation_K: Array, pose: Pose) -> tuple[Array, Array]:
    """Positions (R, 3) in decimetres, the lens at 0, x to the right, y up, the head at negative z; and normals (R, 3)."""
    position, normal = actor.rig.pose(activation_K)
    return _transform(position, place_head(actor, pose)), _transform(normal, rotation(pose))


def place_head(actor: Actor, pose: Pose) -> Array:
    """(3, 4), from the head's own coordinates to the camera's."""
    turn = rotation(pose)
    moved = actor.pivot - actor.centre + floats(pose.shift) - floats([0, 0, DISTANCE]) - turn @ actor.pivot
    return np.concatenate([turn, moved[:, None]], 1)


def project(position_R3: Array, size: tuple[int, int]) -> Array:
    """Where posed points lie in a frame of `size` (height, width): (R, 2) float32 x, y, pixel centres at integers."""
    height, width = size
    focal = height / 2 * DISTANCE / HALF_HEIGHT
    x, y, z = position_R3.T
    return np.stack([width / 2 - 0.5 - focal * x / z, height / 2 - 0.5 + focal * y / z], 1).astype(np.float32)


def rotation(pose: Pose) -> Array:
    """The head's rotation (3, 3), from its own frame to the camera's."""
    yaw, pitch, roll = pose.angles
    cy, sy, cp, sp, cr, sr = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
    turns = (
        [[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]],
        [[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]],
        [[1, 0, 0], [0, cp, -sp], [0, sp, cp]],
    )
    return (np.array(turns[0]) @ np.array(turns[1]) @ np.array(turns[2])).astype(np.float32)


def _transform(points_R3: Array, matrix: Array) -> Array:
    return cv2.transform(points_R3[None], matrix)[0]


def _light_skin(
    actor: Actor, strength: Mapping[int, Strength], light: Light, pose: Pose, irradiance: Array, *, coarse: bool
) -> Array:
    """The atlas (rows, columns, 4) in this light, with folds of these strengths: RGB, and 1 where there is skin."""
    skin, texture = actor.skins[coarse], actor.textures[coarse]
    cv2.resize(load_lightmap().spread(irradiance), texture.shape[1::-1], dst=texture)
    np.multiply(skin.albedo, texture, out=texture)
    shade = shade_folds(skin.folds, strength, light, rotation(pose))
    top, bottom, left, right = skin.folds.bounds
    region = texture[top:bottom, left:right]
    np.multiply(region, cv2.merge([shade, shade, shade, np.ones_like(shade)]), out=region)
    return texture


def _rasterise(actor: Actor, size: tuple[int, int], position: Array, gloss: Array, texture: Array) -> tuple[Array, Array]:
    """Draw (u, v, gloss), larger than `size`; then the texture where (u, v) point, and gloss: RGB and cover; and depth."""
    full = (round(_OVERSAMPLE * size[0]), round(_OVERSAMPLE * size[1]))
    where = np.concatenate([actor.atlas, gloss[:, None]], 1)
    found, depth = draw_triangles(full, position * actor.sink_R, actor.triangles_T3, where)
    u, v, highlight = (cv2.extractChannel(found, k) for k in range(3))
    rows, columns = texture.shape[:2]
    u *= columns
    v *= rows
    u -= 0.5  # nothing is drawn where u and v are 0, and nothing lies in that corner of the atlas
    v -= 0.5
    colour = cv2.remap(texture, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return cv2.add(colour, cv2.merge([highlight, highlight, highlight, np.zeros_like(u)]), dst=colour), depth


def draw_triangles(
    size: tuple[int, ...], position: Array, triangles: NDArray[np.int32], values: Array
) -> tuple[Array, Array]:
    """Three values per render vertex, interpolated over what the camera sees, (height, width, 3); and the depth there."""
    buffer, depth = np.zeros((*size, 3), np.float32), np.full(size, 100, np.float32)
    return cv2.triangleRasterize(position, triangles, values, buffer, depth, _VIEW, _LENS, 0.5, 100.0, _settings())


def _compose(camera: Camera, colour: Array) -> Array:
    """The head before its background, at the camera's size; pixels on the outline are shared."""
    height, width = camera.size
    small = cv2.resize(colour, (width, height))
    behind = 1 - cv2.extractChannel(small, 3)
    seen = cv2.multiply(camera.background, cv2.merge([behind] * 3))
    return cv2.add(seen, cv2.cvtColor(small, cv2.COLOR_RGBA2RGB), dst=seen)


def _settings() -> Any:
    settings = cv2.TriangleRasterizeSettings()
    settings.setCullingMode(cv2.RASTERIZE_CULLING_CW)
    settings.setShadingType(cv2.RASTERIZE_SHADING_SHADED)
    return settings


def _select_triangles(head: Head, identity: Identity, position_G3: Array) -> NDArray[np.int32]:
    """What can be seen: long hair only on those who wear it, both sides of strands and lashes, no back of the head."""
    triangles, part = head.triangles_T3, head.part_R[head.triangles_T3].max(1)
    points = position_G3[head.geometry_R[triangles]]
    normal = np.cross(points[:, 1] - points[:, 0], points[:, 2] - points[:, 0])
    seen = normal[:, 2] > _BACK * np.linalg.norm(normal, axis=1)
    thin = np.isin(part, (LASHES, HAIR))
    keep = (seen | thin) & ((part != HAIR) | identity.wears_drape)
    sheets = triangles[keep & thin][:, [0, 2, 1]]
    return np.ascontiguousarray(np.concatenate([triangles[keep], sheets]).astype(np.int32))


def _find_occlusion(head: Head, position_G3: Array) -> Array:
    """How much ambient light reaches each vertex (G,): less in hollows (mean curvature), less on the eye under its lid."""
    normal, around = head.normals(position_G3), head.neighbours
    bend = ((position_G3[around].mean(1) - position_G3) * normal).sum(1)
    joined = (around != np.arange(len(around))[:, None]).sum(1)
    bend *= around.shape[1] / np.maximum(joined, 1)
    for _ in range(2):
        bend = 0.5 * bend + 0.5 * bend[around].mean(1)
    occlusion = np.where(head.parts == SKIN, 1 - np.clip(22 * bend, -0.08, 0.55), 1).astype(np.float32)
    for eye in (LEFT_EYE, RIGHT_EYE):
        here = head.parts == eye
        height = position_G3[here, 1]
        upper = (height - height.mean()) / (np.ptp(height) / 2)
        occlusion[here] = 1 - 0.55 * smoothstep(upper, 0.0, 0.6)
    return occlusion
