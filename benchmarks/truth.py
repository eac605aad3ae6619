"""How exact landmarks and AU regions of rendered frames compare with what is seen in the pictures.

Run: python benchmarks/truth.py [subjects]; with --derive it chooses the landmarks' vertices anew instead.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from unittest import mock

import cv2
import numpy as np
from numpy.typing import NDArray

from aupipe import assets, blazemesh
from aupipe.align import MIRROR_49
from aupipe.blazemesh import MESH_TO_49, BlazeMesh
from aupipe.config import SyntheticConfig
from aupipe.synthetic import truth
from aupipe.synthetic.camera import studio
from aupipe.synthetic.coordinates import Array, floats
from aupipe.synthetic.head import Head, load_head
from aupipe.synthetic.mesh import SKIN
from aupipe.synthetic.motion import frame_rng
from aupipe.synthetic.render import Actor, Pose, draw_triangles, pose_head, prepare_actor, project, render_frame
from aupipe.synthetic.rig import AUS, activate
from aupipe.synthetic.scene import Scene, act, film, set_scene

REGIONS = {
    "brows": range(10),
    "nose": range(10, 19),
    "eyes": range(19, 31),
    "outer lip": range(31, 43),
    "inner lip": range(43, 49),
}
FRAME_STEP = 12  # of 24 frames a second
VISIBLE = 0.1  # grey levels per face pixel
# BlazeMesh's vertices at the 68 points, chosen by convention: jaw, the 49, and the inner corners of the mouth.
_JAW = (162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389)
MESH_TO_68 = np.array([*_JAW, *MESH_TO_49[:43], 78, *MESH_TO_49[43:46], 308, *MESH_TO_49[46:]])
# Who and what the vertices were chosen on: subjects of seed 0, AUs at intensity 4, and yaw, pitch, roll.
CHOSEN_ON = range(100, 124)
SHOWN = (
    ((), (0.0, 0.0, 0.0)),
    ((1, 2), (0.25, 0.0, 0.0)),
    ((4,), (-0.25, 0.0, 0.0)),
    ((12,), (0.0, 0.15, 0.0)),
    ((25, 26), (0.0, -0.15, 0.0)),
    ((15, 17), (0.0, 0.0, 0.0)),
)


def main(subjects: int) -> None:
    assets.fetch(print)
    cv2.setNumThreads(1)
    print_landmarks(subjects)
    print_regions(max(2, subjects // 6))


def print_landmarks(subjects: int) -> None:
    """BlazeMesh's distance from the exact landmarks, in per cent of the distance of the outer corners of the eyes."""
    found, missed = [], 0
    landmarker, spec = BlazeMesh(), SyntheticConfig(subjects=subjects, sessions=1, seconds=2, fps=24, corruption=0.0)
    for subject in range(subjects):
        actor, scene = prepare_actor(spec.seed, subject), set_scene(spec, subject, 1)
        for frame in range(0, scene.frames, FRAME_STEP):
            face, exact = landmarker.find_face(film(actor, scene, frame)), truth.landmarks(actor, scene, frame)
            if face is None:
                missed += 1
                continue
            found.append(np.hypot(*(face.landmarks - exact).T) / np.hypot(*(exact[19] - exact[28])))
    errors = 100 * np.array(found)
    print(f"{len(errors)} frames of {subjects} subjects at {spec.size} px, {missed} without a face found")
    print("landmarks    mean %  median %  95th %   (of the inter-ocular distance)")
    for name, points in {"all 49": range(49), **REGIONS}.items():
        part = errors[:, list(points)]
        print(f"{name:11s} {part.mean():7.2f} {np.median(part):9.2f} {np.quantile(part.mean(1), 0.95):7.2f}")


def print_regions(subjects: int) -> None:
    """Per AU: how much of the change of pixels lies in its region, and the region's share of the face.

    Frames in which a face pixel changes by less than VISIBLE on average are counted and left out: noise would decide there.
    """
    print("\nregions  change inside %      area %   outside, grey levels    frames that change")
    print("         mean    lowest     of the face  per face pixel          visibly, of all")
    rows: dict[int, list[tuple[float, float, float, float]]] = {au: [] for au in AUS}
    for actor, scene, frame in list_frames(subjects):
        face = draw_face(actor, scene, frame)
        for au in AUS:
            rows[au].append(measure_region(actor, scene, frame, au, face))
    for au, values in rows.items():
        measured = np.array(values)
        inside, area, outside, _ = measured[measured[:, 3] >= VISIBLE].T
        shares = f"{100 * inside.mean():6.2f} {100 * inside.min():8.2f} {100 * area.mean():12.1f}"
        print(f"AU{au:02d}    {shares} {outside.mean():14.3f} {len(inside):20d}/{len(measured)}")


def list_frames(subjects: int) -> Iterator[tuple[Actor, Scene, int]]:
    """Frames of several subjects and poses, without the sensor's noise, hands and glasses."""
    spec = SyntheticConfig(subjects=subjects, sessions=1, seconds=2, fps=24, corruption=0.0)
    for subject in range(subjects):
        actor, scene = prepare_actor(spec.seed, subject), set_scene(spec, subject, 1)
        camera = dataclasses.replace(scene.camera, noise=0.0, occluder=None, glasses=False)
        for frame in (7, 31):
            yield actor, dataclasses.replace(scene, camera=camera), frame


def measure_region(
    actor: Actor, scene: Scene, frame: int, au: int, face: NDArray[np.bool_]
) -> tuple[float, float, float, float]:
    """Share of the change inside the region, the region's share of the face, and the change per face pixel outside of the
    region and in all.

    The AU's intensity is the frame's, and at least 3; everything else stays as it is in the frame.
    """
    level = max(3.0, float(scene.motion.intensity_NM[frame, AUS.index(au)]))
    present, absent = truth.set_intensity(scene, frame, au, level), truth.set_intensity(scene, frame, au, 0.0)
    change = np.abs(film(actor, present, frame).astype(int) - film(actor, absent, frame)).sum(2)
    region = truth.region_image(actor, present, frame, au) >= truth.SHOWS
    inside, area = change[region].sum() / max(change.sum(), 1), (region & face).sum() / face.sum()
    outside, total = (values.sum() / 3 / face.sum() for values in (change[~region], change))
    return float(inside), float(area), float(outside), float(total)


def draw_face(actor: Actor, scene: Scene, frame: int) -> NDArray[np.bool_]:
    """Pixels of the face (height, width): skin and what it frames, from the hairline to the chin and from ear to ear."""
    head = load_head()
    x, y, z = head.face[head.geometry_R].T
    front = (np.abs(x) < 2.3) & (y > -3.6) & (y < 2.0) & (z > 0.4)
    position, _ = pose_head(actor, *act(scene, frame))
    values = np.repeat(front[:, None].astype(np.float32), 3, 1)
    drawn, _ = draw_triangles(scene.camera.size, position, actor.triangles_T3, values)
    return drawn[..., 0] > 0.5


def derive_vertices(height: int = 320) -> list[int]:
    """The vertices (68) nearest, on average over faces, to BlazeMesh's points; mirrored points share the choice."""
    head = load_head()
    _, y, z = head.face.T
    vertices = np.flatnonzero((head.parts == SKIN) & (z > -0.2) & (y > -4.2) & (y < 2))
    error, visible = _compare_vertices(vertices, height)
    twin = _find_twins(head, vertices)
    mirror = _mirror_68()
    score = error + error[mirror][:, twin]
    score[:, visible < 0.6] = np.inf
    chosen = np.zeros(68, int)
    for k in range(68):
        midline = np.where(twin == np.arange(len(twin)), 0, np.inf) if mirror[k] == k else 0
        chosen[k] = (score[k] + midline).argmin() if mirror[k] >= k else twin[chosen[mirror[k]]]
    return [int(v) for v in vertices[chosen]]


def _compare_vertices(vertices: NDArray[np.intp], height: int) -> tuple[Array, Array]:
    """Mean distance (68, V) of vertices from BlazeMesh's points, by the inter-ocular distance; how often seen (V,)."""
    landmarker, render = BlazeMesh(), truth.render_vertices()[vertices]
    error, visible, count = np.zeros((68, len(vertices))), np.zeros(len(vertices)), 0
    for subject in CHOSEN_ON:
        actor = prepare_actor(0, subject)
        camera = studio(height, floats(actor.identity.cloth))
        for aus, angles in SHOWN:
            intensity = floats([4.0 * (au in aus) for au in AUS])
            activation, pose = activate(intensity), Pose(angles)
            image = render_frame(actor, camera, activation, intensity, pose, frame_rng(0, 0, 0, 0))
            with mock.patch.object(blazemesh, "MESH_TO_49", MESH_TO_68):
                face = landmarker.find_face(image)
            if face is None:
                continue
            position, _ = pose_head(actor, activation, pose)
            places = project(position[render], camera.size)
            apart = np.linalg.norm(face.landmarks[:, None] - places[None], axis=2)
            error += apart / np.hypot(*(face.landmarks[36] - face.landmarks[45]))
            count += 1
            if not aus:
                visible += _is_seen(actor, camera.size, position, render, places)
    return error / count, visible / len(CHOSEN_ON)


def _is_seen(actor: Actor, size: tuple[int, int], position: Array, render: NDArray[np.intp], places: Array) -> Array:
    """Whether each of these vertices (V,) lies on the surface that the camera sees, 0 or 1."""
    _, depth = draw_triangles(size, position, actor.triangles_T3, np.zeros((len(position), 3), np.float32))
    column, row = np.clip(np.rint(places).astype(int), 0, np.array(size[::-1]) - 1).T
    return (depth[row, column] >= -position[render, 2] - 0.03).astype(float)


def _find_twins(head: Head, vertices: NDArray[np.intp]) -> NDArray[np.intp]:
    """The place, among these vertices (V,), of each one's mirror image."""
    place = {tuple(np.rint(p * 1e4).astype(int)): v for v, p in enumerate(head.position_G3[vertices])}
    return np.array([place[tuple(np.rint(p * [-1e4, 1e4, 1e4]).astype(int))] for p in head.position_G3[vertices]])


def _mirror_68() -> NDArray[np.int64]:
    """MIRROR_49, continued to the jaw and the inner corners of the mouth."""
    mirror = np.arange(68)
    mirror[:17], mirror[60], mirror[64] = np.arange(16, -1, -1), 64, 60
    inner = truth.POINTS_49
    mirror[inner] = inner[MIRROR_49]
    return mirror


if __name__ == "__main__":
    if "--derive" in sys.argv:
        derived = derive_vertices()
        same = sum(a == b for a, b in zip(derived, truth.VERTICES_68.tolist(), strict=True))
        print(f"{derived}\n{same} of 68 vertices are those of aupipe/synthetic/truth.py")
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
