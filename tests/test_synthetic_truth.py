"""What is known about rendered frames: exact landmarks, where an AU shows, and a second way of moving."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from aupipe import assets
from aupipe.align import MIRROR_49, align, five_points
from aupipe.blazemesh import BlazeMesh
from aupipe.config import SyntheticConfig
from aupipe.schema import ConfigError
from aupipe.synthetic import truth
from aupipe.synthetic.camera import DISTANCE, HALF_HEIGHT
from aupipe.synthetic.head import load_head
from aupipe.synthetic.identity import draw_identity
from aupipe.synthetic.mesh import SKIN
from aupipe.synthetic.render import draw_triangles, pose_head, prepare_actor, project
from aupipe.synthetic.rig import (
    AUS,
    EXPRESSION_RECIPES,
    EXPRESSION_UNITS,
    FACE_UNITS,
    MIXED,
    RECIPES,
    build_rig,
    displace,
    recipe,
    region_mask,
)
from aupipe.synthetic.scene import Scene, act, film, set_scene

SPEC = SyntheticConfig(subjects=3, sessions=1, seconds=2.0, fps=5.0, size=256, corruption=0.0)


@pytest.fixture(scope="module")
def head():
    assets.fetch()
    return load_head()


@pytest.fixture(scope="module")
def actors(head):
    return [prepare_actor(SPEC.seed, subject) for subject in range(SPEC.subjects)]


def clear_scene(subject: int, angles: tuple[float, float, float] | None = None) -> Scene:
    """A subject's scene without noise, hands, glasses, blinks and expressions; posed alike in every frame on request."""
    scene = set_scene(SPEC, subject, 1)
    motion = scene.motion
    still = {name: 0 * getattr(motion, name) for name in ("intensity_NM", "uncoded_ND", "blink_N", "wink_N", "aside_NL")}
    if angles is not None:
        turned = np.tile(np.float32(angles), (len(motion.angles_N3), 1))
        still |= {"angles_N3": turned, "shift_N3": 0 * motion.shift_N3, "gaze_N2": 0 * motion.gaze_N2}
    camera = dataclasses.replace(scene.camera, noise=0.0, occluder=None, glasses=False)
    return dataclasses.replace(scene, camera=camera, motion=dataclasses.replace(motion, **still))


def express(scene: Scene, *aus: int, level: float = 5.0) -> Scene:
    intensity = scene.motion.intensity_NM.copy()
    intensity[:, [AUS.index(au) for au in aus]] = level
    return dataclasses.replace(scene, motion=dataclasses.replace(scene.motion, intensity_NM=intensity))


def straighten(actor, head):
    """The actor with the base head's own, symmetric shape in place of theirs, and with nothing to move."""
    rest = np.stack([head.position_G3, head.normals(head.position_G3)])[:, head.geometry_R]
    rig = dataclasses.replace(actor.rig, rest=rest.ravel().astype(np.float32), basis=0 * actor.rig.basis)
    return dataclasses.replace(actor, rig=rig)


def test_the_49_are_the_68_without_jaw_and_inner_mouth_corners(actors):
    scene = set_scene(SPEC, 0, 1)
    all_68, some = truth.landmarks(actors[0], scene, 3, "ibug68"), truth.landmarks(actors[0], scene, 3)
    assert (all_68.shape, some.shape, some.dtype) == ((68, 2), (49, 2), np.float32)
    np.testing.assert_array_equal(some, all_68[[k for k in range(17, 68) if k not in (60, 64)]])
    np.testing.assert_array_equal(five_points(some), five_points(all_68, "ibug68"))
    most = truth.landmarks(actors[0], scene, 3, "ibug66")
    np.testing.assert_array_equal(most, np.delete(all_68, [60, 64], 0))
    np.testing.assert_array_equal(five_points(some), five_points(most, "ibug66"))
    with pytest.raises(ConfigError, match="'five'; exact landmarks are known for ibug49, ibug66, ibug68"):
        truth.landmarks(actors[0], scene, 3, "five")


def test_mirrored_points_are_mirrored_vertices_of_the_skin(head):
    assert len(set(truth.VERTICES_68.tolist())) == 68
    assert (head.parts[truth.VERTICES_68] == SKIN).all()
    place = head.position_G3[truth.VERTICES_68]
    np.testing.assert_allclose(place[16::-1], place[:17] * [-1, 1, 1], atol=1e-4)
    some = place[truth.POINTS_49]
    np.testing.assert_allclose(some[MIRROR_49], some * [-1, 1, 1], atol=1e-4)
    np.testing.assert_allclose(place[64], place[60] * [-1, 1, 1], atol=1e-4)


def test_a_symmetric_head_has_symmetric_landmarks(actors, head):
    scene = clear_scene(0, (0.0, 0.0, 0.0))
    found = truth.landmarks(straighten(actors[0], head), scene, 0)
    width = scene.camera.size[1]
    np.testing.assert_allclose(found[MIRROR_49], found * [-1, 1] + [width - 1, 0], atol=0.02)


def test_landmarks_are_exact_under_pose(actors, head):
    """The turned and shifted vertices, projected by hand."""
    actor, scene = actors[1], set_scene(SPEC, 1, 1)
    height, width = scene.camera.size
    yaw, pitch, roll = truth.pose(scene, 4)
    np.testing.assert_array_equal(truth.pose(scene, 4), scene.motion.angles_N3[4])
    about_y = [[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]]
    about_x = [[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]]
    about_z = [[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]]
    turn = np.array(about_z) @ np.array(about_y) @ np.array(about_x)
    activation, _ = act(scene, 4)
    vertices = truth.render_vertices()[truth.VERTICES_68]
    np.testing.assert_array_equal(head.geometry_R[vertices], truth.VERTICES_68)
    place = actor.rig.pose(activation)[0][vertices].astype(float) - actor.pivot
    x, y, z = (place @ turn.T + actor.pivot - actor.centre + scene.motion.shift_N3[4] - [0, 0, DISTANCE]).T
    focal = height / (2 * HALF_HEIGHT / DISTANCE)
    by_hand = np.stack([(width - 1) / 2 - focal * x / z, (height - 1) / 2 + focal * y / z], 1)
    np.testing.assert_allclose(truth.landmarks(actor, scene, 4, "ibug68"), by_hand, atol=2e-3)


def test_a_projected_point_lies_in_the_pixel_where_the_renderer_draws_it():
    corners = np.float32([[-1, -1, -11], [1, -1, -11], [1, 1, -11], [-1, 1, -11]])
    triangles = np.int32([[0, 1, 2], [0, 2, 3], [2, 1, 0], [3, 2, 0]])
    where = project(corners, (256, 192))
    values = np.concatenate([where / 256, np.ones((4, 1))], 1).astype(np.float32)
    drawn, _ = draw_triangles((256, 192), corners, triangles, values)
    row, column = np.nonzero(drawn[..., 2] > 0.99)
    np.testing.assert_allclose(drawn[row, column, :2] * 256, np.stack([column, row], 1), atol=0.01)


def test_the_posed_head_covers_what_the_film_shows(actors):
    scene = clear_scene(2)
    scene = express(scene, 1, 4, 12, level=3.0)
    position, _ = pose_head(actors[2], *act(scene, 5))
    _, depth = draw_triangles(scene.camera.size, position, actors[2].triangles_T3, np.zeros((len(position), 3), np.float32))
    empty = dataclasses.replace(scene.camera, background=0 * scene.camera.background, blur=0.0, tone=None)
    picture = film(actors[2], dataclasses.replace(scene, camera=empty), 5)
    assert np.mean((picture.max(2) > 0) == (depth < 99)) > 0.99


@pytest.mark.parametrize(
    ("au", "points", "direction"),
    [
        (2, [0, 1, 8, 9], (0, -1)),
        (1, [4, 5], (0, -1)),
        (4, [3, 4, 5, 6], (0, 1)),
        (12, [31], (-1, -1)),
        (12, [37], (1, -1)),
        (15, [31, 37], (0, 1)),
        (25, [46, 47, 48], (0, 1)),
        (26, [39, 40, 41], (0, 1)),
    ],
)
def test_aus_move_their_landmarks(actors, au, points, direction):
    for subject, actor in enumerate(actors):
        scene = clear_scene(subject, (0.0, 0.0, 0.0))
        moved = truth.landmarks(actor, express(scene, au), 0) - truth.landmarks(actor, scene, 0)
        along = moved[points] * direction
        assert (along[:, np.array(direction) != 0] > 0.3).all()  # pixels
        still = range(10) if au > 9 else range(31, 49)
        assert np.abs(moved[list(still)]).max() < 0.05


def test_closing_the_eyes_brings_the_lids_together(actors):
    scene = clear_scene(0, (0.0, 0.0, 0.0))
    shut = dataclasses.replace(scene.motion, blink_N=np.ones_like(scene.motion.blink_N))
    wide, closed = (truth.landmarks(actors[0], s, 0) for s in (scene, dataclasses.replace(scene, motion=shut)))
    assert np.abs(closed[[20, 21, 26, 27], 1] - closed[[24, 23, 30, 29], 1]).max() < 0.5 * np.ptp(wide[19:25, 1])


def test_blazemesh_agrees(actors):
    landmarker, apart = BlazeMesh(), []
    for subject, actor in enumerate(actors):
        scene = set_scene(SPEC, subject, 1)
        for frame in (2, 9):
            exact, face = truth.landmarks(actor, scene, frame), landmarker.find_face(film(actor, scene, frame))
            if face is not None:
                apart.append(np.hypot(*(face.landmarks - exact).T).mean() / np.hypot(*(exact[19] - exact[28])))
    assert len(apart) >= 5
    assert np.mean(apart) < 0.06


# Landmarks of the 49 that lie outside of an AU's region.
ELSEWHERE = {
    **dict.fromkeys((1, 2), (*range(13, 19), *range(31, 49))),
    4: [*range(12, 19), *range(31, 49)],
    6: [2, 3, 4, 5, 6, 7, *range(10, 14), *range(43, 49)],
    7: [*range(19), *range(31, 49)],
    9: [0, 1, 2, 3, 6, 7, 8, 9, *range(38, 43), 46, 47, 48],
    10: [*range(12), *range(19, 31), *range(38, 43)],
    **dict.fromkeys((12, 14, 15, 17, 23, 24, 25, 26), (*range(12), 22, 21, 20, 25, 26, 27)),
}
# The largest share of the face, from hairline to chin, that an AU may take.
LARGEST = dict(zip(AUS, (0.4, 0.4, 0.5, 0.5, 0.25, 0.4, 0.35, 0.6, 0.45, 0.5, 0.3, 0.45, 0.45, 0.4, 0.6), strict=True))
FOREHEAD = 1.3  # height of the face in heights of what landmarks enclose
# Decimetres: the movements of AUs 1, 2, 4, 5, 6, 7, 9 and 10 over all vertices.
EXTENT = [0.3447, 0.3192, 0.7302, 0.6587, 1.1706, 0.7030, 1.2162, 0.6318]


@pytest.mark.parametrize("au", AUS)
def test_a_region_holds_the_change_that_its_au_makes(actors, au):
    shares = []
    for subject, angles in ((0, (0.3, 0.0, 0.05)), (1, (0.0, 0.15, 0.0)), (2, (-0.3, -0.1, 0.0))):
        neutral = express(clear_scene(subject, angles), *{6, 7, 25, 1} - {au}, level=2.0)
        moved = express(neutral, au, level=4.0)
        change = np.abs(film(actors[subject], moved, 0).astype(int) - film(actors[subject], neutral, 0)).sum(2)
        region = truth.region_image(actors[subject], moved, 0, au)
        assert (region.shape, region.dtype) == (change.shape, np.uint8)
        shows = region >= truth.SHOWS
        shares.append(change[shows].sum() / change.sum())
        places = truth.landmarks(actors[subject], moved, 0)
        column, row = np.rint(places[list(ELSEWHERE[au])]).astype(int).T
        assert not shows[row, column].any()
        box = np.prod(np.ptp(truth.landmarks(actors[subject], moved, 0, "ibug68"), axis=0))
        assert 0.02 < shows.sum() / (FOREHEAD * box) < LARGEST[au]
    assert np.mean(shares) > 0.97
    assert min(shares) > 0.95


def test_an_absent_au_has_an_empty_region(actors):
    assert truth.region_image(actors[0], clear_scene(0), 2, 12).max() == 0


def test_a_region_map_is_aligned_with_the_face(actors):
    scene = express(clear_scene(1, (0.2, 0.1, 0.1)), 12)
    image, points = film(actors[1], scene, 0), truth.landmarks(actors[1], scene, 0)
    aligned = align("face200", image, points)
    central = truth.region_map(actors[1], scene, 0, 12, size=176)
    whole = truth.region_map(actors[1], scene, 0, 12, warp=aligned.warp, size=200)
    assert (central.shape, central.dtype) == ((176, 176), np.uint8)
    assert np.abs(central.astype(int) - whole[12:188, 12:188]).max() <= 2
    small = truth.region_map(actors[1], scene, 0, 12)
    assert small.shape == (56, 56)
    corner = np.rint((aligned.landmarks[31] - 12 + 0.5) * 56 / 176 - 0.5).astype(int)
    assert small[corner[1], corner[0]] > 100
    assert small[:8].max() == 0


@pytest.mark.parametrize("au", RECIPES)
def test_the_second_rig_moves_each_au_inside_its_region(head, au):
    first, second = displace(head, au), displace(head, au, rig=EXPRESSION_UNITS)
    length = np.linalg.norm(second, axis=1)
    assert length.max() > 0.02  # decimetres: it can be seen
    assert length[region_mask(au) == 0].max() == 0
    if au not in EXPRESSION_RECIPES:
        assert au in (6, 19, 20, 28, 34)
        np.testing.assert_array_equal(first, second)
        return
    assert all(unit.startswith("expression-") for unit in recipe(au, EXPRESSION_UNITS))
    assert np.linalg.norm(second - first) > 0.15 * np.linalg.norm(first)
    assert (first * second).sum() > 0  # the same movement, by and large


def test_rigs_differ_and_only_in_how_they_move(actors):
    first = actors[1]
    other, mixed = (prepare_actor(SPEC.seed, 1, name) for name in (EXPRESSION_UNITS, MIXED))
    assert first.rig.gain == other.rig.gain == mixed.rig.gain
    np.testing.assert_array_equal(first.rig.rest, other.rig.rest)
    np.testing.assert_array_equal(first.skin.albedo, other.skin.albedo)
    moved, neutral = express(clear_scene(1), 12), clear_scene(1)
    np.testing.assert_array_equal(film(first, neutral, 0), film(other, neutral, 0))
    pictures = [film(actor, moved, 0).astype(int) for actor in (first, other, mixed)]
    assert min(np.abs(a - b).mean() for a, b in zip(pictures, pictures[1:] + pictures[:1], strict=True)) > 0.1
    with pytest.raises(ConfigError, match="known are face_units, expression_units, mixed"):
        prepare_actor(SPEC.seed, 1, "muscles")


def test_the_default_rig_moves_as_it_did(actors, head):
    """A second artist's shapes in the asset leave the draws of the first alone: movements stay as published."""
    assert prepare_actor(SPEC.seed, 0, FACE_UNITS).rig.basis.tobytes() == actors[0].rig.basis.tobytes()
    gains = [actors[0].rig.gain[au] for au in AUS]
    known = [1.076, 0.896, 1.029, 1.055, 1.026, 1.182, 0.857, 0.993, 0.776, 0.817, 1.015, 0.886, 0.883, 0.972, 1.061]
    np.testing.assert_allclose(gains, known, atol=1e-3)
    on_base = build_rig(head, draw_identity(SPEC.seed, 0), head.position_G3)
    extent = np.linalg.norm(on_base.basis.reshape(len(on_base.basis), 2, -1)[:8, 0], axis=1)
    np.testing.assert_allclose(extent, EXTENT, rtol=1e-3)
