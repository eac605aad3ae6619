"""blazemesh.py on drawn faces and on none: where, how many, how sure, and never by what came before."""

import sys

import cv2
import numpy as np
import pytest

from aupipe import assets, blazemesh
from aupipe.align import MIRROR_49, five_points
from aupipe.blazemesh import BlazeMesh, BlazeMeshLiteRT, BlazeMeshTiles
from aupipe.landmarks import load_landmarker
from aupipe.schema import DataError


def draw_face(canvas, x, y, half_width):
    """A simple frontal face, drawn into `canvas`; its eyes lie at y − 0.15 and x ± 0.3 half widths."""

    def ellipse(dx, dy, rx, ry, colour, start=0, end=360, thick=0.0):
        centre = (round((x + dx * half_width) * 16), round((y + dy * half_width) * 16))
        axes = (round(rx * half_width * 16), round(ry * half_width * 16))
        width = max(1, round(thick * half_width)) if thick else -1
        cv2.ellipse(canvas, centre, axes, 0, start, end, colour, width, cv2.LINE_AA, 4)

    ellipse(0, -0.15, 0.85, 1.15, (60, 40, 30))
    ellipse(0, 0, 0.72, 1.0, (214, 168, 140))
    for side in (-0.3, 0.3):
        ellipse(side, -0.15, 0.15, 0.07, (245, 245, 245))
        ellipse(side, -0.15, 0.06, 0.065, (60, 40, 30))
        ellipse(side, -0.15, 0.17, 0.09, (90, 60, 50), 180, 360, 0.02)
        ellipse(side, -0.30, 0.2, 0.07, (70, 45, 35), 200, 340, 0.05)
        ellipse(side * 0.3, 0.22, 0.04, 0.025, (120, 70, 60))
    ellipse(0, 0.2, 0.13, 0.06, (190, 135, 110), 0, 180, 0.02)
    ellipse(0, 0.5, 0.25, 0.08, (180, 80, 80))
    return canvas


def grey(height=480, width=640):
    return np.full((height, width, 3), 128, np.uint8)


@pytest.fixture(scope="module")
def mesh():
    return load_landmarker("blazemesh")


@pytest.mark.parametrize(("x", "y", "half_width"), [(320, 250, 120), (150, 150, 80), (480, 300, 160)])
def test_face_is_found_where_it_is(mesh, x, y, half_width):
    face = mesh.find_face(draw_face(grey(), x, y, half_width))
    assert face is not None
    assert 0.5 <= face.confidence <= 1
    assert face.landmarks.shape == (49, 2)
    assert face.landmarks.dtype == np.float32
    left, right, nose, mouth_left, mouth_right = five_points(face.landmarks)
    near = 0.12 * half_width
    np.testing.assert_allclose(left, [x - 0.3 * half_width, y - 0.15 * half_width], atol=near)
    np.testing.assert_allclose(right, [x + 0.3 * half_width, y - 0.15 * half_width], atol=near)
    np.testing.assert_allclose((mouth_left + mouth_right) / 2, [x, y + 0.5 * half_width], atol=near)
    assert left[1] < nose[1] < mouth_left[1]
    assert (face.box[:2] <= face.landmarks.min(0)).all()
    assert (face.box[2:] >= face.landmarks.max(0)).all()


def test_points_are_in_the_order_of_the_scheme(mesh):
    points = mesh.find_face(draw_face(grey(), 320, 240, 140)).landmarks
    # A drawn face is its own mirror image, so every point has its partner on the other side.
    np.testing.assert_allclose(points, (points * [-1, 1] + [640, 0])[MIRROR_49], atol=14)
    assert (np.diff(points[:10, 0]) > 0).all(), "brows from left to right"
    assert (np.diff(points[10:14, 1]) > 0).all(), "the nose from top to tip"
    assert (np.diff(points[14:19, 0]) > 0).all(), "nostrils from left to right"
    for start, upper, lower in ((19, (1, 2), (5, 4)), (25, (1, 2), (5, 4))):
        for above, below in zip(upper, lower, strict=True):
            assert points[start + above, 1] < points[start + below, 1]
    assert (np.diff(points[31:38, 0]) > 0).all(), "the upper lip from left to right"
    assert (np.diff(points[38:43, 0]) < 0).all(), "and the lower one back"
    assert (np.diff(points[43:46, 0]) > 0).all()
    assert (np.diff(points[46:49, 0]) < 0).all()


@pytest.mark.parametrize("angle", [-40, -20, 20, 40])
def test_tilted_face_keeps_its_points(mesh, angle):
    upright = draw_face(grey(), 320, 240, 120)
    turn = cv2.getRotationMatrix2D((320, 240), angle, 1.0)
    tilted = cv2.warpAffine(upright, turn, (640, 480), borderValue=(128, 128, 128))
    expected = mesh.find_face(upright).landmarks @ turn[:, :2].T + turn[:, 2]
    assert np.abs(mesh.find_face(tilted).landmarks - expected).mean() < 6


def test_size_of_the_image_does_not_matter(mesh):
    small = mesh.find_face(draw_face(grey(), 320, 240, 120)).landmarks
    large = mesh.find_face(draw_face(grey(1440, 1920), 960, 720, 360)).landmarks
    assert np.abs(large / 3 - small).mean() < 3
    portrait = mesh.find_face(draw_face(grey(640, 480), 240, 320, 120)).landmarks
    assert np.abs(portrait - small - [-80, 80]).mean() < 3


def test_every_face_is_listed_and_the_largest_chosen(mesh):
    image = draw_face(draw_face(grey(), 170, 250, 90), 460, 250, 130)
    faces = mesh.find_faces(image)
    assert len(faces) == 2
    assert faces[0].confidence >= faces[1].confidence
    assert mesh.find_face(image).area == max(face.area for face in faces)
    assert mesh.find_face(image).landmarks[:, 0].mean() > 350
    assert mesh.find_face(image[:, ::-1].copy()).landmarks[:, 0].mean() < 290


def test_nothing_is_found_where_there_is_none(mesh):
    rng = np.random.default_rng(0)
    images = [grey(), np.zeros((480, 640, 3), np.uint8), np.full((33, 500, 3), 255, np.uint8), grey(1, 1), grey(2, 3000)]
    images += [rng.integers(0, 256, (240, 320, 3), np.uint8) for _ in range(20)]
    for image in images:
        assert mesh.find_face(image) is None
        assert mesh.find_faces(image) == []


def test_result_depends_on_the_image_alone(mesh):
    images = [draw_face(grey(), 250 + 40 * i, 240, 90 + 15 * i) for i in range(4)] + [grey()]
    copies = [image.copy() for image in images]
    forwards = [mesh.find_face(image) for image in images]
    backwards = [BlazeMesh().find_face(image) for image in reversed(images)][::-1]
    assert forwards[-1] is None
    assert backwards[-1] is None
    for one, other in zip(forwards[:-1], backwards[:-1], strict=True):
        np.testing.assert_array_equal(one.landmarks, other.landmarks)
        assert one.confidence == other.confidence
    for image, copy in zip(images, copies, strict=True):
        np.testing.assert_array_equal(image, copy)


def test_view_of_an_array_is_read_like_a_copy(mesh):
    image = draw_face(grey(), 320, 240, 120)
    view = image[:, ::-1][:, ::-1]
    np.testing.assert_array_equal(mesh.find_face(view).landmarks, mesh.find_face(image).landmarks)


def test_anchors_are_the_centres_of_two_maps():
    anchors = blazemesh._anchors()
    assert anchors.shape == (896, 2)
    np.testing.assert_allclose(anchors[0], [1 / 32, 1 / 32])
    np.testing.assert_allclose(anchors[1], anchors[0])
    np.testing.assert_allclose(anchors[2], [3 / 32, 1 / 32])  # along x first
    np.testing.assert_allclose(anchors[512:518], [[1 / 16, 1 / 16]] * 6)
    np.testing.assert_allclose(anchors[-1], [15 / 16, 15 / 16])


def test_decoding_adds_the_anchor_and_keeps_what_scores():
    raw, logits = np.zeros((896, 16)), np.full((896, 1), -10.0)
    raw[512] = [12.8, -6.4, 64, 32, *range(12)]
    logits[512] = 3
    boxes, keypoints, scores = blazemesh._decode(raw, logits)
    centre, half = np.array([1 / 16 + 0.1, 1 / 16 - 0.05]), np.array([0.25, 0.125])
    np.testing.assert_allclose(boxes, [[*(centre - half), *(centre + half)]])
    np.testing.assert_allclose(keypoints[0, 1], 1 / 16 + np.array([2, 3]) / 128)
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-3)))


def test_overlapping_boxes_become_their_weighted_mean():
    boxes = np.array([[0.1, 0.1, 0.5, 0.5], [0.6, 0.6, 0.9, 0.9], [0.12, 0.1, 0.52, 0.5], [0.3, 0.3, 0.3, 0.3]])
    keypoints, scores = np.zeros((4, 6, 2)), np.array([0.6, 0.8, 0.9, 0.7])
    keypoints[0] = 1
    merged = blazemesh._merge_overlapping(boxes, keypoints, scores)
    assert [score for *_, score in merged] == [0.9, 0.8, 0.7]
    np.testing.assert_allclose(merged[0][0], (0.9 * boxes[2] + 0.6 * boxes[0]) / 1.5)
    np.testing.assert_allclose(merged[0][1], 0.4)
    np.testing.assert_allclose(merged[1][0], boxes[1])
    assert blazemesh._merge_overlapping(boxes[:0], keypoints[:0], scores[:0]) == []


def test_fingerprints_tell_models_and_variants_apart(mesh, tmp_path, monkeypatch):
    assert mesh.fingerprint == BlazeMesh().fingerprint
    assert len(mesh.fingerprint) == 64
    assert len({kind().fingerprint for kind in (BlazeMesh, BlazeMeshTiles, BlazeMeshLiteRT)}) == 3
    paths = (tmp_path / "a", tmp_path / "b")
    for path in paths:
        path.write_bytes(b"other")
    monkeypatch.setattr(assets, "face_models", lambda: paths)
    assert BlazeMesh().fingerprint != mesh.fingerprint


def test_model_that_does_not_run_is_one_sentence(tmp_path, monkeypatch):
    detector, mesh_model = assets.face_models()
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(detector.read_bytes()[:1000])
    for paths in ((broken, mesh_model), (mesh_model, detector), (tmp_path / "absent", mesh_model)):
        monkeypatch.setattr(assets, "face_models", lambda paths=paths: paths)
        with pytest.raises(DataError, match="aupipe assets"):
            BlazeMesh().find_face(grey())


@pytest.mark.parametrize(("x", "y"), [(100, 90), (330, 250), (560, 400)])
def test_small_face_is_found_in_a_part_of_the_image(mesh, x, y):
    image = draw_face(grey(), x, y, 22)
    assert mesh.find_face(image) is None
    faces = BlazeMeshTiles().find_faces(image)
    assert len(faces) == 1, "though several parts show it"
    assert 0.5 <= faces[0].confidence <= 1
    left, right, _, mouth_left, mouth_right = five_points(faces[0].landmarks)
    np.testing.assert_allclose((left + right) / 2, [x, y - 0.15 * 22], atol=5)
    np.testing.assert_allclose((mouth_left + mouth_right) / 2, [x, y + 0.5 * 22], atol=5)


def test_parts_are_looked_at_only_where_nobody_was_found(mesh, monkeypatch):
    image = draw_face(draw_face(grey(), 420, 250, 120), 100, 90, 22)
    tiles = BlazeMeshTiles()
    found, alone = tiles.find_faces(image), mesh.find_faces(image)
    assert len(found) == len(alone) == 1
    np.testing.assert_array_equal(found[0].landmarks, alone[0].landmarks)
    assert tiles.find_faces(grey()) == []
    assert tiles.find_faces(grey(3, 2)) == []


@pytest.mark.parametrize("extents", [(480, 640), (7, 1000), (1, 1)])
@pytest.mark.parametrize("count", [2, 3])
def test_parts_cover_the_image_and_share_a_quarter(extents, count):
    parts = list(blazemesh._tiles(extents, count))
    seen = np.zeros(extents, int)
    for rows, columns in parts:
        seen[rows, columns] += 1
    assert len(parts) == count**2
    assert seen.min() == 1 if min(extents) > count else seen.min() >= 1
    first, second = parts[0][1], parts[1][1]
    if extents[1] > 100:
        assert (first.stop - second.start) / (first.stop - first.start) == pytest.approx(0.25, abs=0.01)


def test_litert_gives_the_same_landmarks(mesh):
    pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed")
    image = draw_face(draw_face(grey(), 170, 250, 90), 460, 250, 130)
    for one, other in zip(mesh.find_faces(image), BlazeMeshLiteRT().find_faces(image), strict=True):
        np.testing.assert_allclose(other.landmarks, one.landmarks, atol=0.01)
        assert other.confidence == pytest.approx(one.confidence, abs=1e-4)
    assert BlazeMeshLiteRT().find_faces(grey()) == []


def test_litert_that_is_not_installed_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(DataError, match="pip install ai-edge-litert"):
        BlazeMeshLiteRT().find_face(grey())
