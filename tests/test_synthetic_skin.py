"""Skin, folds, hair and faces at rest: relief that the light brings out, and people as different as people are."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from aupipe import assets
from aupipe.config import SyntheticConfig
from aupipe.synthetic.camera import studio
from aupipe.synthetic.chart import load_chart, load_lightmap
from aupipe.synthetic.coordinates import floats
from aupipe.synthetic.facial_hair import draw_hair_colour, paint_beard
from aupipe.synthetic.folds import paint_folds
from aupipe.synthetic.head import load_head, shape_head
from aupipe.synthetic.identity import draw_identity, stream
from aupipe.synthetic.render import Pose, prepare_actor, render_frame, rotation
from aupipe.synthetic.rig import AUS, activate, displace
from aupipe.synthetic.scene import act, set_scene
from aupipe.synthetic.shading import light_vertices, shade_folds
from aupipe.synthetic.skin import tint
from aupipe.synthetic.truth import VERTICES_68, render_vertices

PEOPLE = 200
LEFT, FRONT, RIGHT = ([-0.8, 0.2, 0.566], [0.0, 0.0, 1.0], [0.8, 0.2, 0.566])


@pytest.fixture(scope="module")
def head():
    assets.fetch()
    return load_head()


@pytest.fixture(scope="module")
def people(head):
    return [draw_identity(0, n) for n in range(PEOPLE)]


@pytest.fixture(scope="module")
def rest(head, people):
    """Landmarks (N, 68, 3) of people at rest."""
    return np.stack([shape_head(head, person)[0][VERTICES_68] for person in people])


@pytest.fixture(scope="module")
def actor(head):
    return prepare_actor(0, 11)  # of middle age: folds to see, and little relief at rest


def light_from(towards):
    """One lamp in a grey room."""
    light = studio(64, np.ones(3, np.float32)).light
    return dataclasses.replace(light, towards=floats(towards), fill=0 * light.fill)


def shade(actor, au: int, towards, angles=(0.0, 0.0, 0.0)) -> np.ndarray:
    """What an AU's folds add to the brightness of the resting skin."""
    turn, light = rotation(Pose(angles)), light_from(towards)
    return shade_folds(actor.skin.folds, {au: 1.0}, light, turn) - shade_folds(actor.skin.folds, {}, light, turn)


def test_a_height_climbs_where_the_face_does(head):
    """The height "how far to the left" and "how far up" climb to the left and up, but along the skin."""
    chart = load_chart()
    front = chart.covered & (np.abs(chart.x) < 1.6) & (np.abs(chart.y - 0.9) < 0.7) & (chart.z > 1.1)
    for axis, height in ((0, chart.x), (1, chart.y)):
        step = np.eye(3, dtype=np.float32)[axis]
        expected = step - chart.normal[front] * chart.normal[front][:, axis : axis + 1]
        apart = np.linalg.norm(chart.climb(height)[front] - expected, axis=1)
        assert np.median(apart) < 0.1


@pytest.mark.parametrize("au", [4, 12, 15])
def test_the_wall_that_faces_the_lamp_is_the_bright_one(actor, au):
    """Brightness as lit from one side, less that from the other: its sign is that of the slope's, walls facing the lamp."""
    folds = actor.skin.folds
    (top, bottom, left, right), relief = folds.maps[au]
    above, _, beside, _ = folds.bounds
    from_left, from_right = (shade(actor, au, lamp)[top - above : bottom - above, left - beside : right - beside]
                             for lamp in (LEFT, RIGHT))  # fmt: skip
    steep = np.abs(relief[..., 0]) > 0.5 * np.abs(relief[..., 0]).max()
    assert steep.sum() > 30
    # A height that climbs to the right of the picture (x) faces left.
    assert np.mean(np.sign(from_left - from_right)[steep] == np.sign(relief[..., 0])[steep]) > 0.98
    walls = np.corrcoef(relief[steep][:, 0], (from_left - from_right)[steep])
    assert walls[0, 1] > 0.8


@pytest.mark.parametrize("au", [1, 4, 12, 15])
def test_light_from_the_front_shows_a_fold_least(actor, au):
    contrast = [np.sqrt(np.mean(shade(actor, au, lamp) ** 2)) for lamp in (LEFT, FRONT, RIGHT, [0.0, 0.8, 0.6])]
    assert contrast[1] == min(contrast)
    assert contrast[1] > 0.005  # hollows are dark in any light
    assert max(contrast) > 1.15 * contrast[1]


def test_the_head_turns_before_the_lamp(actor):
    """A head that turns away from a lamp in front is lit as by a lamp that went round it."""
    turned = shade(actor, 4, FRONT, (0.6, 0.0, 0.0))
    lamp = rotation(Pose((0.6, 0.0, 0.0))).T @ floats(FRONT)
    walls = np.abs(turned) > 0.02
    assert walls.sum() > 100
    gone_round = shade(actor, 4, lamp)
    assert np.corrcoef(turned[walls], gone_round[walls])[0, 1] > 0.99
    other_way = shade(actor, 4, FRONT, (-0.6, 0.0, 0.0))
    assert np.corrcoef(turned[walls], other_way[walls])[0, 1] < np.corrcoef(turned[walls], gone_round[walls])[0, 1] - 0.3


def test_the_picture_shows_it(actor):
    """A frown: lit from the left and from the right, the sides of the furrow between the brows change places."""
    intensity = floats([5.0 * (au == 4) for au in AUS])
    camera, pictures = studio(400, floats(actor.identity.cloth)), []
    for lamp in (LEFT, RIGHT):
        lit = dataclasses.replace(camera, light=light_from(lamp), blur=0.0)
        frames = [render_frame(actor, lit, activate(floats(intensity)), level, Pose(), np.random.default_rng(0))
                  for level in (intensity, 0 * intensity)]  # fmt: skip
        pictures.append(frames[0].astype(float).mean(2) - frames[1].astype(float).mean(2))
    difference = pictures[0] - pictures[1]
    assert difference.max() > 8
    assert difference.min() < -8


def test_years_leave_their_mark(head, people):
    chart, gain = load_chart(), dict.fromkeys(range(1, 50), 1.0)
    depth = {}
    for age in (0.05, 0.95):
        rests = [paint_folds(dataclasses.replace(person, age=age), chart, gain, stream(0, person.subject, "skin")).rest
                 for person in people[:3]]  # fmt: skip
        depth[age] = np.mean([np.abs(rest).mean() for rest in rests])
    assert depth[0.95] > 3 * depth[0.05]


def test_the_coarse_atlas_is_lit_as_its_vertices_are(head):
    """Irradiance of a texel against that of its own normal, over the front of the face."""
    normal = head.normals(head.position_G3)[head.geometry_R]
    light = light_from(LEFT)
    spread = load_lightmap().spread(light_vertices(normal, light)[0])
    chart = load_chart()
    exact, _ = light_vertices(np.ascontiguousarray(chart.normal[2::4, 2::4].reshape(-1, 3)), light)
    x, y, z = (values[2::4, 2::4].ravel() for values in (chart.x, chart.y, chart.z))
    front = chart.covered[2::4, 2::4].ravel() & (np.abs(x) < 1.8) & (np.abs(y - 0.9) < 0.8) & (z > 0.9)
    apart = np.abs(spread.reshape(-1, 4)[front] - exact[front])[:, :3]
    assert front.sum() > 500
    assert apart.mean() < 0.02


def find_typology_angle(colour) -> np.ndarray:
    """The individual typology angle of linear sRGB (…, 3), in degrees: arctan((L* − 50) / b*), CIELAB under D65."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    t = np.asarray(colour) @ to_xyz.T / [0.9505, 1.0, 1.089]
    _, y, z = np.moveaxis(np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116), -1, 0)
    return np.degrees(np.arctan2(116 * y - 66, 200 * (y - z)))


def test_skin_spans_the_human_range(people):
    """Every class of the angle has people: dark, brown, tan, intermediate, light, very light (Chardon et al. 1991)."""
    pale, dark = find_typology_angle(tint(floats([0.3, 2.6]), floats([0.5, 0.5])))
    assert dark < -35 < 55 < pale
    angles = find_typology_angle(tint(floats([person.melanin for person in people]), np.full(PEOPLE, 0.5, np.float32)))
    assert np.histogram(angles, [-90, -30, 10, 28, 41, 55, 90])[0].min() >= PEOPLE // 20


def test_hair_is_black_brown_fair_red_grey_and_white(people):
    colours = np.stack([draw_hair_colour(person, stream(0, person.subject, "skin"))[1] for person in people])
    bright, warm = colours.mean(1), colours[:, 0] / colours[:, 2]
    shares = {
        "black": (bright < 0.02) & (warm < 2.5),
        "brown": (bright > 0.03) & (bright < 0.12) & (warm > 1.8),
        "fair": (bright > 0.15) & (warm > 1.9) & (colours[:, 1] / colours[:, 0] > 0.5),
        "red": (warm > 5) & (colours[:, 1] / colours[:, 0] < 0.45),
        "grey": (bright > 0.12) & (bright < 0.35) & (warm < 1.6),
        "white": (bright > 0.35) & (warm < 1.3),
    }
    assert min(int(share.sum()) for share in shares.values()) >= 3, {k: int(v.sum()) for k, v in shares.items()}


def test_some_men_have_beards_and_no_woman(people):
    chart = load_chart()
    chin = chart.covered & (np.abs(chart.x) < 0.3) & (np.abs(chart.y + 2.8) < 0.15)
    worn = {person.beard for person in people if person.sex == "M"}
    assert worn == {"none", "shadow", "stubble", "moustache", "goatee", "short"}
    assert {person.beard for person in people if person.sex == "F"} == {"none"}
    man = next(person for person in people if person.sex == "M")
    covers = [paint_beard(dataclasses.replace(man, beard=beard), chart, chart.lips, stream(0, 1, "skin"))[chin].mean()
              for beard in ("none", "shadow", "stubble", "short")]  # fmt: skip
    assert covers[0] == 0
    assert np.diff(covers).min() > 0.08


def standardise(points) -> np.ndarray:
    """Landmarks (…, K, 3) about their middle, of unit size."""
    centred = points - points.mean(-2, keepdims=True)
    return centred / np.sqrt((centred**2).sum(-1).mean(-1))[..., None, None]


def test_nobody_has_a_twin(rest):
    """The two people of 200 who are most alike differ more in shape than one person's frames differ from their mean."""
    shapes = standardise(rest)
    apart = np.sqrt(((shapes[:, None] - shapes[None]) ** 2).sum(3).mean(2))
    nearest = apart[~np.eye(PEOPLE, dtype=bool)].min()
    spec, own = SyntheticConfig(subjects=PEOPLE, sessions=1, seconds=4, fps=5.0, size=64), []
    vertices = render_vertices()[VERTICES_68]
    for subject in range(4):
        actor, scene = prepare_actor(0, subject), set_scene(spec, subject, 1)
        frames = standardise(np.stack([actor.rig.pose(act(scene, n)[0])[0][vertices] for n in range(scene.frames)]))
        own.append(np.sqrt(((frames - frames.mean(0)) ** 2).sum(2).mean(1)).mean())
    assert nearest > 1.1 * np.mean(own)


def look(points) -> np.ndarray:
    """Height of the brows, height of the mouth's corners over its middle, its width, and opening of the eyes, (…, 4)."""
    eyes = points[..., 42:48, :].mean(-2) - points[..., 36:42, :].mean(-2)
    y = points[..., 1]
    brows = y[..., 17:27].mean(-1) - y[..., [36, 39, 42, 45]].mean(-1)
    corners = y[..., [48, 54]].mean(-1) - y[..., [51, 57, 62, 66]].mean(-1)
    width = np.linalg.norm(points[..., 54, :] - points[..., 48, :], axis=-1)
    opening = y[..., [37, 38, 43, 44]].mean(-1) - y[..., [41, 40, 47, 46]].mean(-1)
    return np.stack([brows, corners, width, opening], -1) / np.linalg.norm(eyes, axis=-1)[..., None]


@pytest.mark.parametrize(
    ("feature", "aus", "share"),
    [(0, (4,), 0.8), (0, (1, 2), 0.6), (1, (15,), 0.5), (1, (12,), 0.45), (2, (18,), 0.6), (3, (7,), 0.5)],
)
def test_faces_at_rest_look_like_aus(head, rest, feature, aus, share):
    """One person in twenty has at rest such a share of the look that these AUs give an average face at full intensity."""
    base = head.position_G3
    effect = (look((base + sum(displace(head, au) for au in aus))[VERTICES_68]) - look(base[VERTICES_68]))[feature]
    spread = look(rest)[:, feature] - np.median(look(rest)[:, feature])
    assert np.quantile(spread / effect, 0.95) > share
