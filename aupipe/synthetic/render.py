"""A frame: pose the rig, light its vertices, rasterise twice, fetch the skin's colour, develop.

Every frame is a function of (actor, scene, frame number) alone, so that any of them can be rendered by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from aupipe.synthetic.camera import DISTANCE, HALF_HEIGHT, Camera, Light, draw_occluder, look_through
from aupipe.synthetic.coordinates import Array, floats, smoothstep
from aupipe.synthetic.head import ATLAS, Head, load_head, shape_head
from aupipe.synthetic.identity import Identity, draw_identity
from aupipe.synthetic.mesh import HAIR, LASHES, LEFT_EYE, LOWER_TEETH, MOUTH, RIGHT_EYE, SKIN, TONGUE, UPPER_TEETH
from aupipe.synthetic.rig import AUS, FACE_UNITS, Rig, build_rig
from aupipe.synthetic.skin import Skin, paint_skin, tint

_LENS = 2 * float(np.arctan(HALF_HEIGHT / DISTANCE))
_VIEW = np.eye(4, dtype=np.float32)
_SHADED = {LASHES: 0.8, UPPER_TEETH: 0.8, LOWER_TEETH: 0.65, TONGUE: 0.5, MOUTH: 0.5}  # light that enters there
_REDDEN = floats([0.10, -0.01, -0.03])  # light that has passed through the skin, where shadow begins
_WRAP, _SHINE = 0.25, 18
_OVERSAMPLE = 1.25  # rendered so much larger, then averaged down, which smooths edges
_BACK = -0.8  # triangles whose normals point further back are behind the head at every pose


@dataclass(frozen=True, slots=True)
class Pose:
    """Where the head is: yaw, pitch, roll in radians, and its shift in decimetres."""

    angles: tuple[float, float, float] = (0.0, 0.0, 0.0)
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Actor:
    """A person ready to be rendered. `texture` is scratch: each frame rewrites the rectangle that holds the folds."""

    identity: Identity
    rig: Rig
    skin: Skin
    triangles_T3: NDArray[np.int32]
    atlas: Array
    occlusion_R: Array
    glossy_R: Array
    pivot: Array
    centre: Array
    texture: Array


def prepare_actor(seed: int, subject: int, rig: str = FACE_UNITS) -> Actor:
    """Shape, rig and paint a person: a function of (seed, subject, name of the rig) alone, some 0.3 s."""
    cv2.setNumThreads(1)  # frames are spread over processes; OpenCV's own threads would only get in their way
    head, identity = load_head(), draw_identity(seed, subject)
    bare, position = shape_head(head, identity)
    moving = build_rig(head, identity, position, rig)
    skin = paint_skin(identity, moving.gain)
    occlusion = _find_occlusion(head, bare)[head.geometry_R]
    occlusion *= np.array([_SHADED.get(part, 1.0) for part in head.part_R.tolist()])
    eyes = position[np.isin(head.parts, (LEFT_EYE, RIGHT_EYE))].mean(0)
    return Actor(
        identity,
        moving,
        skin,
        _select_triangles(head, identity, position),
        head.atlas,
        occlusion.astype(np.float32)[:, None],
        np.where(head.part_R <= LOWER_TEETH, occlusion, 0).astype(np.float32),
        floats([0, eyes[1] - 1.0, 0.5]),
        floats([0, eyes[1] + 0.02, 0.5]),
        skin.albedo.copy(),
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
) -> NDArray[np.uint8]:
    """One frame (height, width, 3) uint8 RGB. `rng` is the frame's own: its noise must not depend on other frames."""
    position, normal = pose_head(actor, activation_K, pose)
    irradiance, gloss = _shine(normal, camera.light, actor)
    size = tuple(round(_OVERSAMPLE * pixels) for pixels in camera.size)
    colour, cover = _rasterise(actor, size, position, irradiance, gloss, _apply_folds(actor, intensity_M))
    linear = _compose(camera, colour, cover)
    if camera.occluder is not None:
        hand = tint(floats(actor.identity.melanin), floats(0.7)) * camera.light.key
        draw_occluder(linear, camera.occluder, second, hand)
    return look_through(camera, linear, rng, 1 + flicker)


def pose_head(actor: Actor, activation_K: Array, pose: Pose) -> tuple[Array, Array]:
    """Positions (R, 3) in decimetres, the lens at 0, x to the right, y up, the head at negative z; and normals (R, 3)."""
    position, normal = actor.rig.pose(activation_K)
    turn = _rotation(*pose.angles)
    moved = actor.pivot - actor.centre + floats(pose.shift) - floats([0, 0, DISTANCE]) - turn @ actor.pivot
    return _transform(position, np.concatenate([turn, moved[:, None]], 1)), _transform(normal, turn)


def project(position_R3: Array, size: tuple[int, int]) -> Array:
    """Where posed points lie in a frame of `size` (height, width): (R, 2) float32 x, y, pixel centres at integers."""
    height, width = size
    focal = height / 2 * DISTANCE / HALF_HEIGHT
    x, y, z = position_R3.T
    return np.stack([width / 2 - 0.5 - focal * x / z, height / 2 - 0.5 + focal * y / z], 1).astype(np.float32)


def _rotation(yaw: float, pitch: float, roll: float) -> Array:
    cy, sy, cp, sp, cr, sr = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
    turns = (
        [[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]],
        [[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]],
        [[1, 0, 0], [0, cp, -sp], [0, sp, cp]],
    )
    return (np.array(turns[0]) @ np.array(turns[1]) @ np.array(turns[2])).astype(np.float32)


def _transform(points_R3: Array, matrix: Array) -> Array:
    return cv2.transform(points_R3[None], matrix)[0]


def _shine(normal_R3: Array, light: Light, actor: Actor) -> tuple[Array, Array]:
    """Irradiance (R, 3) and gloss (R,): wrapped Lambert key, soft fill, ambient from above, Blinn–Phong highlight."""
    half = light.towards + floats([0, 0, 1])
    facing = _transform(normal_R3, np.stack([light.towards, light.fill_towards, half / np.linalg.norm(half)]))
    key, fill, shine = cv2.split(facing[None])
    key, fill, shine = key[0], fill[0], shine[0]
    lit = np.clip((key + _WRAP) / (1 + _WRAP), 0, None)[:, None] * light.key
    lit += np.clip(0.5 * fill + 0.5, 0, 1)[:, None] * light.fill
    lit += (0.65 + 0.35 * normal_R3[:, 1:2]) * light.ambient
    lit += np.exp(-(((key - 0.02) / 0.18) ** 2))[:, None] * (light.key * _REDDEN)
    gloss = np.clip(shine, 0, 1) ** _SHINE * np.float32(light.gloss) * actor.glossy_R
    return lit * actor.occlusion_R, gloss


def _apply_folds(actor: Actor, intensity_M: Array) -> Array:
    strength = {au: float(v) / 5 for au, v in zip(AUS, intensity_M, strict=True)}
    top, bottom, left, right = actor.skin.folds.bounds
    shade = cv2.merge([actor.skin.folds.shade(strength)] * 3)
    region = actor.texture[top:bottom, left:right]
    np.multiply(actor.skin.albedo[top:bottom, left:right], shade, out=region)
    return actor.texture


def _rasterise(
    actor: Actor, size: tuple[int, ...], position: Array, irradiance: Array, gloss: Array, texture: Array
) -> tuple[Array, Array]:
    """Two passes, (u, v, gloss) and irradiance; then the skin's colour where (u, v) point, lit. Also what it covers."""
    where = np.concatenate([actor.atlas, gloss[:, None]], 1)
    found, depth = draw_triangles(size, position, actor.triangles_T3, where)
    light, _ = draw_triangles(size, position, actor.triangles_T3, irradiance)
    u, v, highlight = cv2.split(found)
    rows, columns = ATLAS
    u *= columns
    v *= rows
    u -= 0.5
    v -= 0.5
    colour = cv2.remap(texture, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    cv2.multiply(colour, light, dst=colour)
    cv2.add(colour, cv2.merge([highlight] * 3), dst=colour)
    cover = (depth < 99).astype(np.float32)
    return cv2.multiply(colour, cv2.merge([cover] * 3)), cover


def draw_triangles(
    size: tuple[int, ...], position: Array, triangles: NDArray[np.int32], values: Array
) -> tuple[Array, Array]:
    """Three values per render vertex, interpolated over what the camera sees, (height, width, 3); and the depth there."""
    buffer, depth = np.zeros((*size, 3), np.float32), np.full(size, 100, np.float32)
    return cv2.triangleRasterize(position, triangles, values, buffer, depth, _VIEW, _LENS, 0.5, 100.0, _settings())


def _compose(camera: Camera, colour: Array, cover: Array) -> Array:
    """The head before its background, at the camera's size; pixels on the outline are shared."""
    height, width = camera.size
    colour = cv2.resize(colour, (width, height), interpolation=cv2.INTER_AREA)
    cover = cv2.resize(cover, (width, height), interpolation=cv2.INTER_AREA)
    behind = cv2.multiply(camera.background, cv2.merge([1 - cover] * 3))
    return cv2.add(colour, behind, dst=behind)


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
