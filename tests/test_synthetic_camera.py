"""What stands between a face and its label: glasses, hands and things, light, rooms, and the camera that sees it all."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest

from aupipe import assets
from aupipe.blazemesh import BlazeMesh
from aupipe.config import SyntheticConfig
from aupipe.synthetic import background, truth
from aupipe.synthetic.camera import Camera, look_through, set_up_camera, studio
from aupipe.synthetic.corruption import corrupt
from aupipe.synthetic.glasses import fit_glasses, wears_glasses
from aupipe.synthetic.head import load_head, shape_head
from aupipe.synthetic.identity import draw_identity
from aupipe.synthetic.lenses import draw_glasses
from aupipe.synthetic.light import Light, Shade, aim, draw_light
from aupipe.synthetic.mesh import LEFT_EYE, RIGHT_EYE
from aupipe.synthetic.motion import frame_rng
from aupipe.synthetic.occluders import _AWAY, draw_occluder, place_occluder, smear_out
from aupipe.synthetic.props import KINDS, model
from aupipe.synthetic.render import Pose, draw_triangles, place_head, pose_head, prepare_actor, project, render_frame
from aupipe.synthetic.rig import AUS, activate
from aupipe.synthetic.scene import film, set_scene, smear

SPEC = SyntheticConfig(subjects=30, sessions=2, seconds=2.0, fps=5.0, size=192, corruption=0.0)
WEARERS = [subject for subject in range(30) if wears_glasses(SPEC.seed, subject)]
SIZE = (192, 144)


@pytest.fixture(scope="module")
def head():
    assets.fetch()
    return load_head()


@pytest.fixture(scope="module")
def actor(head):
    return prepare_actor(SPEC.seed, WEARERS[0])


def show(actor, *, glasses: bool, aus: tuple[int, ...] = (), yaw: float = 0.0) -> np.ndarray:
    """An even picture at 192 pixels, int, so that differences can be taken."""
    camera = dataclasses.replace(studio(SIZE[0], np.float32([0.2, 0.2, 0.2])), glasses=glasses, blur=0.0)
    intensity = np.float32([5.0 * (au in aus) for au in AUS])
    pose = Pose((yaw, 0.0, 0.0))
    return render_frame(actor, camera, activate(intensity), intensity, pose, frame_rng(0, 0, 0, 0)).astype(int)


def worn(actor, **how) -> np.ndarray:
    """Where glasses change the picture, (H, W)."""
    return np.abs(show(actor, glasses=True, **how) - show(actor, glasses=False, **how)).max(2)


def locate(actor, points, yaw: float = 0.0) -> np.ndarray:
    matrix = place_head(actor, Pose((yaw, 0.0, 0.0)))
    return project((np.asarray(points).reshape(-1, 3) @ matrix[:, :3].T + matrix[:, 3]).astype(np.float32), SIZE)


# Glasses


def test_a_fifth_of_the_people_wear_glasses_of_several_kinds(head):
    wear = [subject for subject in range(400) if wears_glasses(3, subject)]
    assert 0.15 < len(wear) / 400 < 0.25
    _, position = shape_head(head, draw_identity(3, 0))
    kinds = [fit_glasses(head, position, 3, subject).kind for subject in wear[:60]]
    assert len(set(kinds)) >= 5
    assert fit_glasses(head, position, 3, next(n for n in range(400) if n not in wear)) is None


@pytest.mark.parametrize("subject", WEARERS[:4])
def test_glasses_sit_before_the_eyes_and_on_nobodys_skin(head, subject):
    position, _ = shape_head(head, draw_identity(SPEC.seed, subject))
    glasses = fit_glasses(head, position, SPEC.seed, subject)
    for n, part in enumerate((RIGHT_EYE, LEFT_EYE)):
        eye, rim = position[head.parts == part], glasses.lenses[n, 1]
        assert rim[:, 0].min() < eye[:, 0].min() < eye[:, 0].max() < rim[:, 0].max()
        assert rim[:, 1].min() < eye[:, 1].mean() < rim[:, 1].max()
        assert 0.05 < rim[:, 2].mean() - eye[:, 2].max() < 0.4
    assert (glasses.arms[0, :, -1, 2] < 0.7).all()  # they end beside the head
    again = fit_glasses(head, position, SPEC.seed, subject)
    np.testing.assert_array_equal(again.lenses, glasses.lenses)


def test_expressions_do_not_move_glasses(actor):
    neutral, moved = worn(actor), worn(actor, aus=(12, 25, 26))  # the lower face alone
    upper = slice(0, int(locate(actor, actor.glasses.lenses)[:, 1].max()))
    assert (neutral[upper] > 20).sum() > 150
    both, either = (f(neutral[upper] > 20, moved[upper] > 20).sum() for f in (np.logical_and, np.logical_or))
    assert both > 0.97 * either


def test_rims_are_where_they_are_projected(actor):
    change = worn(actor)
    column, row = np.rint(locate(actor, actor.glasses.lenses.mean(1))).astype(int).T  # between the rims' two edges
    assert np.median(change[row, column]) > 30
    assert change[: row.min() - 12].max() == 0
    assert change[row.max() + 12 :].max() == 0


@pytest.mark.parametrize("yaw", [-0.6, 0.6])
def test_temples_vanish_behind_the_turned_head(actor, yaw):
    pose, light = Pose((yaw, 0.0, 0.0)), studio(96, np.float32([0, 0, 0])).light
    position, _ = pose_head(actor, activate(np.zeros(len(AUS))), pose)
    _, depth = draw_triangles(SIZE, position, actor.triangles_T3, np.zeros((len(position), 3), np.float32))
    whole, short = actor.glasses, dataclasses.replace(actor.glasses, arms=actor.glasses.arms[:, :, :1].repeat(21, 2))

    def find_arms(behind: np.ndarray) -> np.ndarray:
        """What temples add to a white picture."""
        frames = [np.ones((*SIZE, 3), np.float32) for _ in range(2)]
        for frame, glasses in zip(frames, (whole, short), strict=True):
            draw_glasses(frame, glasses, place_head(actor, pose), light, behind, lambda points: project(points, SIZE))
        return np.abs(frames[0] - frames[1])[..., 0] > 0.25

    in_air, on_head = find_arms(np.full(SIZE, 100, np.float32)), find_arms(depth)
    far, near = (0, 1) if yaw < 0 else (1, 0)  # left and right of the image
    column, row = np.rint(locate(actor, whole.arms[far].mean(0)[11:18], yaw)).astype(int).T
    assert in_air[row, column].sum() >= 1  # the rest of it is behind the rim
    assert not on_head[row, column].any()
    column, row = np.rint(locate(actor, whole.arms[near].mean(0)[5:9], yaw)).astype(int).T
    assert on_head[row, column].all()


def test_glasses_are_off_where_truth_is_compared(actor):
    bare = dataclasses.replace(actor, glasses=None)
    np.testing.assert_array_equal(show(actor, glasses=False), show(bare, glasses=True))
    assert not studio(96, np.float32([0, 0, 0])).glasses
    scene = set_scene(SPEC, WEARERS[0], 1)
    off = dataclasses.replace(scene, camera=dataclasses.replace(scene.camera, glasses=False))
    np.testing.assert_array_equal(truth.region_image(actor, scene, 3, 12), truth.region_image(actor, off, 3, 12))
    assert np.abs(film(actor, scene, 3).astype(int) - film(actor, off, 3)).max() > 30


def test_the_landmarker_finds_faces_with_glasses(head):
    landmarker, found, tried = BlazeMesh(), 0, 0
    spec = dataclasses.replace(SPEC, size=256)
    for subject in WEARERS[:3]:
        wearer = prepare_actor(spec.seed, subject)
        for session in (1, 2, 3):
            scene = set_scene(spec, subject, session)
            if scene.camera.occluder is None:
                found, tried = found + (landmarker.find_face(film(wearer, scene, 4)) is not None), tried + 1
    assert tried >= 4
    assert found == tried


# Hands and things


def occluder_of(kind: str, subject: int = 1, scale: float = 64.0):
    """A thing of that kind as it is drawn for somebody, in studio light."""
    light, identity = studio(96, np.float32([0, 0, 0])).light, draw_identity(SPEC.seed, subject)
    for n in range(400):
        occluder = place_occluder(np.random.default_rng(n), 4.0, scale / 8, identity, light)
        if occluder.kind == kind:
            return place_occluder(np.random.default_rng(n), 4.0, scale, identity, light)
    raise AssertionError(kind)


def test_something_passes_in_three_of_ten_sessions():
    identity = draw_identity(SPEC.seed, 0)
    cameras = [set_up_camera(np.random.default_rng(n), 64, 5.0, identity) for n in range(300)]
    passing = [camera.occluder for camera in cameras if camera.occluder is not None]
    assert 0.23 < len(passing) / 300 < 0.37
    assert {occluder.kind for occluder in passing} == set(KINDS)
    assert all(0 <= occluder.middle <= 5 for occluder in passing)


@pytest.mark.parametrize("kind", KINDS)
def test_it_enters_covers_a_part_of_the_face_and_leaves(kind):
    occluder, light = occluder_of(kind), studio(192, np.float32([0, 0, 0])).light
    depth = np.full((240, 180), 11.0, np.float32)
    covered = []
    for share in (-1.01, -0.999, -0.3, 0.0, 0.4, 0.999):
        frame = np.full((192, 144, 3), 2.0, np.float32)
        second = occluder.middle + share * occluder.half_stay
        draw_occluder(frame, occluder, second, depth, light, 1 / 50, (0.0, 0.0))
        assert occluder.shows(second) == (abs(share) < 1)
        covered.append(float((frame != 2).any(2).mean()))
    assert covered[0] == covered[1] == covered[5] == 0
    assert 0.02 < covered[3] < 0.75
    assert covered[2] == covered[3] == covered[4]  # it rests


def test_its_way_is_smooth_and_its_speed_is_that_of_its_way():
    occluder = occluder_of("mug")
    seconds = np.linspace(occluder.middle - occluder.half_stay, occluder.middle + occluder.half_stay, 401)
    way, speed = np.array([occluder.travel(float(t)) for t in seconds]).T
    assert way[0] == pytest.approx(_AWAY)
    assert way[200] == 0
    np.testing.assert_allclose(np.gradient(way, seconds)[2:-2], speed[2:-2], atol=0.25)
    assert np.abs(np.diff(way)).max() < 0.06


def test_a_hand_has_the_skin_of_its_person():
    tones = sorted((draw_identity(SPEC.seed, n).melanin, n) for n in range(30))
    rng, light = np.random.default_rng(5), studio(96, np.float32([0, 0, 0])).light
    brightness = []
    for _, subject in (tones[0], tones[15], tones[-1]):
        relief, centre = model("open hand", rng, 64.0, draw_identity(SPEC.seed, subject))
        x, y = relief.find(centre)
        brightness.append(float(relief.light(light, 0.0)[int(y) + 10 : int(y) + 20, int(x) - 8 : int(x) + 8, :3].mean()))
    assert brightness[0] > brightness[1] > 1.2 * brightness[2]


def test_an_open_hand_has_fingers():
    relief, _ = model("open hand", np.random.default_rng(2), 100.0, draw_identity(SPEC.seed, 4))
    _, y = relief.find((0.0, 1.4))
    row = (relief.cover[int(y)] > 0.5).astype(int)
    assert (np.diff(row) == 1).sum() == 4  # fingers side by side, with gaps
    _, y = relief.find((0.0, 0.4))
    assert (np.diff((relief.cover[int(y)] > 0.5).astype(int)) == 1).sum() <= 2  # the palm, and perhaps the thumb


def test_light_shades_a_thing_from_its_side():
    relief, _ = model("mug", np.random.default_rng(3), 64.0, draw_identity(SPEC.seed, 4))
    dark, white = np.zeros(3, np.float32), np.ones(3, np.float32)
    x, y = relief.find((0.0, 0.8))
    sides = []
    for angle in (0.0, np.pi):  # the same light on the upright thing, and on one that stands on its head
        lit = relief.light(Light(aim(1.2, 0.0), aim(0, 0), white, dark, dark, 0.0), angle)
        sides.append([float(lit[int(y), int(x) + shift, :3].mean()) for shift in (-16, 16)])
    assert sides[0][1] > 1.5 * sides[0][0]
    assert sides[1][0] > 1.5 * sides[1][1]


# Light and rooms


def test_light_comes_from_all_sides_and_faces_are_exposed():
    lights = [draw_light(np.random.default_rng(n)) for n in range(300)]
    towards = np.array([light.towards for light in lights])
    np.testing.assert_allclose(np.linalg.norm(towards, axis=1), 1, atol=1e-5)
    x, y, z = towards.T
    shares = [np.mean(side) for side in (x < -0.5, x > 0.5, y < -0.1, y > 0.7, z < -0.1, z > 0.97)]
    shares.append(np.mean([light.shade is not None for light in lights]))
    assert min(shares) > 0.03
    warmth = [np.log(light.key[0] / light.key[2]) for light in lights]
    assert np.ptp(warmth) > 1.2
    falls = [light.fall(aim(0.0, 0.0)).mean() for light in lights]
    assert 0.45 < min(falls) < max(falls) < 1.7


def test_a_shadow_darkens_its_side_of_the_face():
    dark, white = np.zeros(3, np.float32), np.ones(3, np.float32)
    points = np.float32([[-0.6, 0, 0], [0.0, 0, 0], [0.6, 0, 0]])
    bare = Light(aim(0, 0), aim(0, 0), white, dark, dark, 0.0)
    assert bare.reach(points) is None
    shaded = dataclasses.replace(bare, shade=Shade(np.float32([1, 0, 0]), 0.0, 0.1, 0.7))
    np.testing.assert_allclose(shaded.reach(points), [1.0, 0.65, 0.3], atol=1e-5)


def test_a_shadow_reaches_the_picture(actor):
    camera = studio(192, np.float32([0.2, 0.2, 0.2]))
    shade = Shade(np.float32([1, 0, 0]), 0.0, 0.05, 0.8)
    pictures = []
    for light in (camera.light, dataclasses.replace(camera.light, shade=shade)):
        intensity = np.zeros(len(AUS), np.float32)
        lit = dataclasses.replace(camera, light=light)
        pictures.append(render_frame(actor, lit, activate(intensity), intensity, Pose(), frame_rng(0, 0, 0, 0)).astype(int))
    change = (pictures[0] - pictures[1]).mean(2)[70:130]
    assert np.abs(change[:, 40:64]).mean() < 2
    assert change[:, 80:104].mean() > 15


ROOMS = (
    background._paint_wall,
    background._paint_backdrop,
    background._paint_office,
    background._paint_lamps,
    background._paint_window,
    background._paint_outdoors,
)


@pytest.mark.parametrize("paint", ROOMS)
def test_rooms_are_the_same_at_every_size(paint):
    small, large = (paint(np.random.default_rng(8), size) for size in ((64, 48), (256, 192)))
    assert large.shape == (256, 192, 3)
    assert np.isfinite(large).all()
    shrunk = cv2.resize(large, (48, 64), interpolation=cv2.INTER_AREA)
    assert np.abs(shrunk - small).mean() < 0.06
    assert np.corrcoef(shrunk.ravel(), small.ravel())[0, 1] > 0.85


def test_rooms_differ():
    identity = draw_identity(SPEC.seed, 0)
    rooms = [
        background.paint_background(np.random.default_rng(n), (64, 48), np.float32(identity.cloth), 1.0) for n in range(60)
    ]
    means, spreads = [r[:40].mean() for r in rooms], [r[:40].std() for r in rooms]
    assert max(means) > 6 * min(means)
    assert min(spreads) < 0.06 < 0.2 < max(spreads)
    assert all(room.dtype == np.float32 and room.min() > 0 for room in rooms)


# The camera


def plain(**changes) -> Camera:
    return dataclasses.replace(studio(64, np.float32([0, 0, 0])), blur=0.0, exposure=1.0, **changes)


def test_movement_smears_along_its_way():
    point = np.zeros((41, 41, 3), np.float32)
    point[20, 20] = 1
    along = smear_out(point, (9.0, 3.0))
    assert along.sum() == pytest.approx(3, rel=1e-4)
    y, x = np.nonzero(along[..., 0] > 0.02)
    assert 7 <= np.ptp(x) <= 10
    assert 2 <= np.ptp(y) <= 4
    assert np.polyfit(x, y, 1)[0] == pytest.approx(1 / 3, abs=0.12)
    np.testing.assert_array_equal(smear_out(point, (0.5, 0.3)), point)


def test_a_faster_head_smears_more():
    scene = set_scene(SPEC, 0, 1)
    angles = np.zeros_like(scene.motion.angles_N3)
    angles[:, 0] = 0.3 * np.arange(len(angles))
    motion = dataclasses.replace(scene.motion, angles_N3=angles, shift_N3=0 * scene.motion.shift_N3)
    quick, slow = (
        smear(dataclasses.replace(scene, motion=motion, camera=dataclasses.replace(scene.camera, shutter=s)), 4)
        for s in (1 / 25, 1 / 250)
    )
    assert quick[0] == pytest.approx(0.3 * 5 / 25 * 192 / 3, rel=1e-4)  # radians a second, by seconds, by pixels
    assert quick[0] == pytest.approx(10 * slow[0], rel=1e-4)
    assert quick[1] == 0
    one = dataclasses.replace(SPEC, seconds=0.2, uncoded=0)
    assert smear(set_scene(one, 0, 1), 0) == (0.0, 0.0)


def test_noise_shows_more_in_the_dark_and_differs_between_frames():
    flat = np.full((64, 48, 3), 0.5, np.float32)
    flat[32:] = 0.02
    seen = [look_through(plain(noise=0.02), flat, np.random.default_rng(n), 1.0).astype(float) for n in (1, 1, 2)]
    np.testing.assert_array_equal(seen[0], seen[1])
    assert np.abs(seen[0] - seen[2]).mean() > 2
    light, dark = seen[0][:32].std(), seen[0][32:].std()
    assert 255 * 0.02 * 0.8 < light < 255 * 0.02 * 1.4
    assert dark > 1.2 * light
    np.testing.assert_allclose(seen[0][:32].mean(), 255 * np.sqrt(0.5), atol=1.5)


def test_what_a_camera_does_to_colour_and_tone():
    scene = np.full((64, 48, 3), 0.25, np.float32)
    scene[:32] = [0.4, 0.2, 0.1]
    as_it_is = look_through(plain(), scene, np.random.default_rng(0), 1.0)
    np.testing.assert_allclose(as_it_is[40, 20], 127.5, atol=1)
    grey = look_through(plain(colour=np.full((3, 3), 1 / 3, np.float32)), scene, np.random.default_rng(0), 1.0)
    assert np.ptp(grey.astype(int), axis=2).max() == 0
    vignette = np.ones((64, 48, 3), np.float32)
    vignette[:, :10] = 0.25
    darker = look_through(plain(vignette=vignette), scene, np.random.default_rng(0), 1.0)
    np.testing.assert_allclose(darker[40, 5], 64, atol=1)
    np.testing.assert_array_equal(darker[:, 10:], as_it_is[:, 10:])
    inverted = look_through(plain(tone=np.arange(256, dtype=np.uint8)[::-1].copy()), scene, np.random.default_rng(0), 1.0)
    np.testing.assert_array_equal(inverted, 255 - as_it_is)
    sharp = look_through(plain(sharpness=0.8), scene, np.random.default_rng(0), 1.0)
    assert np.ptp(sharp[..., 0].astype(int)) > np.ptp(as_it_is[..., 0].astype(int))


def test_cameras_are_drawn_widely_and_do_not_depend_on_the_size():
    identity = draw_identity(SPEC.seed, 0)
    cameras = [set_up_camera(np.random.default_rng(n), 64, 5.0, identity) for n in range(150)]
    assert min(c.exposure for c in cameras) < 0.65 < 1.3 < max(c.exposure for c in cameras)
    assert min(c.noise for c in cameras) < 0.004 < 0.018 < max(c.noise for c in cameras)
    assert {c.vignette is None for c in cameras} == {True, False}
    assert any(np.allclose(c.colour[0] / c.colour[0].sum(), c.colour[1] / c.colour[1].sum(), atol=1e-5) for c in cameras)
    for camera in cameras:
        assert (np.diff(camera.tone.astype(int)) >= 0).all()  # brighter is never darker
        assert camera.tone[-1] > 250
    small, large = (set_up_camera(np.random.default_rng(7), height, 5.0, identity) for height in (64, 128))
    for name in ("noise", "exposure", "jpeg_quality", "sharpness", "shutter", "flicker"):
        assert getattr(small, name) == getattr(large, name)
    np.testing.assert_array_equal(small.tone, large.tone)
    np.testing.assert_allclose(2 * small.blur, large.blur)


def test_spoilt_frames_are_spoilt_in_several_ways():
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 256, (96, 72, 3), dtype=np.uint8), (0, 0), 1.0)
    changes = [np.abs(corrupt(image, np.random.default_rng(n)).astype(int) - image) for n in range(200)]
    assert all(change.shape == image.shape for change in changes)
    spoilt = [change for change in changes if change.any()]
    assert 0.25 < len(spoilt) / 200 < 0.45
    local = [change.any(2).mean() < 0.25 for change in spoilt]
    assert 0.05 < np.mean(local) < 0.35
