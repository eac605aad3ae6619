"""faces.py: pictures no larger than their faces need them, the same faces as of whole pictures, and who found them."""

import cv2
import numpy as np
import pytest
from test_blazemesh import draw_face, grey
from test_video import write_video

from aupipe import faces
from aupipe.align import align, find_warp, scale_of
from aupipe.config import Corpus
from aupipe.faces import FaceReader, identify
from aupipe.images import read_image
from aupipe.landmarks import Face, Landmarker, load_landmarker

CORPUS = Corpus(layout="bp4d", aus=(1,), align=("face200", "face112"))
SUPPLIED = Corpus(layout="bp4d", aus=(1,), align=("face200",), landmarks="supplied")


def write(folder, name, image):
    cv2.imwrite(str(folder / name), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    return name


def large_face(half_width=360, seed=0):
    """A face in 1280×1040 pixels with the grain of a sensor."""
    canvas = draw_face(grey(1280, 1040), 500, 620, half_width).astype(float)
    grain = np.random.default_rng(seed).normal(0, 4, canvas.shape)
    return np.clip(canvas + grain, 0, 255).astype(np.uint8)


def eye_distance(points):
    return float(np.linalg.norm(points[19] - points[28]))


def test_large_face_is_found_at_half_the_size_and_where_it_was(tmp_path):
    name = write(tmp_path, "a.jpg", large_face())
    picture, found = FaceReader(tmp_path, CORPUS).read(name, None, None)
    assert picture.reduced == 2
    assert picture.image.shape == (640, 520, 3)
    assert found.landmarker == "blazemesh"
    whole = read_image(tmp_path / name)
    face = load_landmarker("blazemesh").find_face(whole)
    moved = np.linalg.norm(found.landmarks - face.landmarks, axis=1) / eye_distance(face.landmarks)
    assert moved.mean() < 0.01, "of the distance of the outer eye corners"
    assert np.abs((found.landmarks - face.landmarks).mean(0)).max() < 1.5, "and no shift of half a block"
    assert found.confidence == pytest.approx(face.confidence, abs=0.02)


def test_aligned_face_of_a_reduced_picture_is_that_of_the_whole(tmp_path):
    name = write(tmp_path, "a.jpg", cv2.GaussianBlur(large_face(), (0, 0), 1.5))
    picture, found = FaceReader(tmp_path, CORPUS).read(name, None, None)
    for one in CORPUS.align:
        small = align(one, picture.image, found.landmarks, picture.reduced)
        whole = align(one, read_image(tmp_path / name), found.landmarks)
        np.testing.assert_array_equal(small.warp, whole.warp)
        np.testing.assert_array_equal(small.landmarks, whole.landmarks)
        difference = small.image.astype(float) - whole.image
        assert np.abs(difference).mean() < 1
        moved = np.roll(whole.image, 1, 1).astype(float) - whole.image
        assert np.abs(difference).mean() < np.abs(moved).mean() / 3, "a pixel's shift would show"


def test_face_too_small_for_the_reduced_picture_is_taken_from_the_whole(tmp_path):
    name = write(tmp_path, "a.jpg", large_face(130))
    picture, found = FaceReader(tmp_path, CORPUS).read(name, None, None)
    assert picture.reduced == 1
    face = load_landmarker("blazemesh").find_face(read_image(tmp_path / name))
    np.testing.assert_array_equal(found.landmarks, face.landmarks)
    assert found.confidence == face.confidence


def test_nobody_is_said_of_the_whole_picture_only(tmp_path, monkeypatch):
    sizes = []

    class Nobody(Landmarker):
        name, fingerprint = "nobody", "0"

        def find_faces(self, image):
            sizes.append(image.shape[:2])
            return []

    monkeypatch.setattr(faces, "load_landmarker", lambda name: Nobody())
    picture, found = FaceReader(tmp_path, CORPUS).read(write(tmp_path, "a.jpg", large_face()), None, None)
    assert found is None
    assert picture.status == "ok"
    assert sizes == [(640, 520), (1280, 1040)]


@pytest.mark.parametrize("size", [(600, 480), (1281, 1040)])
def test_small_and_odd_pictures_are_read_whole(tmp_path, size):
    image = cv2.resize(large_face(), size[::-1])
    picture, found = FaceReader(tmp_path, CORPUS).read(write(tmp_path, "a.jpg", image), None, None)
    assert picture.reduced == 1
    assert found is not None


def face_points(image):
    return load_landmarker("blazemesh").find_face(image).landmarks


@pytest.mark.parametrize(("half_width", "reduced"), [(480, 4), (360, 2), (130, 1)])
def test_supplied_landmarks_decide_how_small_a_picture_may_be(tmp_path, monkeypatch, half_width, reduced):
    image = large_face(half_width)
    points = face_points(image).astype(float)
    monkeypatch.setattr(faces, "load_landmarker", lambda name: pytest.fail("nobody has to look"))
    scale = scale_of(find_warp("face200", points))
    assert reduced == max(n for n in (1, 2, 4, 8) if n * scale <= 1)
    picture, found = FaceReader(tmp_path, SUPPLIED).read(write(tmp_path, "a.jpg", image), None, points.ravel().tolist())
    assert picture.reduced == reduced
    assert (found.landmarker, found.confidence) == ("supplied", None)
    np.testing.assert_array_equal(found.landmarks, points)


@pytest.mark.parametrize("points", [None, [5.0] * 98, [float("nan")] * 98, [1.0] * 10, [0.0] * 136])
def test_landmarks_that_cannot_be_are_found_anew(tmp_path, points):
    reader = FaceReader(tmp_path, SUPPLIED)
    picture, found = reader.read(write(tmp_path, "a.jpg", large_face()), None, points)
    assert found.landmarker == "blazemesh"
    assert picture.reduced == 2


def test_face_does_not_depend_on_the_frames_before(tmp_path):
    names = [write(tmp_path, f"{n}.jpg", large_face(130 + 60 * n, n)) for n in range(5)]
    results = []
    for order in (names, names[::-1]):
        reader = FaceReader(tmp_path, CORPUS)
        results.append({name: reader.read(name, None, None) for name in order})
    for name in names:
        (picture, found), (other, again) = results[0][name], results[1][name]
        assert picture.reduced == other.reduced
        np.testing.assert_array_equal(picture.image, other.image)
        np.testing.assert_array_equal(found.landmarks, again.landmarks)


def test_session_stays_with_one_of_two_people(tmp_path, monkeypatch):
    class Two(Landmarker):
        name, fingerprint, calls = "two", "0", 0

        def find_faces(self, image):
            self.calls += 1
            sides = (50, 52) if self.calls % 2 == 0 else (52, 50)
            boxes = [np.array([x, 10, x + side, 10 + side], np.float32) for x, side in zip((0, 60), sides, strict=True)]
            return [Face(box, 0.9, np.full((49, 2), box[0], np.float32)) for box in boxes]

    two = Two()
    monkeypatch.setattr(faces, "load_landmarker", lambda name: two)
    write_video(tmp_path / "a.mp4", 8)
    reader = FaceReader(tmp_path, CORPUS)
    chosen = [reader.read("a.mp4", n, None)[1] for n in range(8)]
    assert [found.landmarks[0, 0] for found in chosen] == [0] * 8, "though the other is a little larger now and then"
    assert [found.faces for found in chosen] == [2] * 8


def test_prealigned_pictures_are_read_whole_and_nobody_looks(tmp_path, monkeypatch):
    monkeypatch.setattr(faces, "load_landmarker", lambda name: pytest.fail("no landmarker is needed"))
    corpus = Corpus(layout="affwild2", aus=(1,), align=("face112",), landmarks="prealigned")
    picture, found = FaceReader(tmp_path, corpus).read(write(tmp_path, "a.jpg", large_face()), None, None)
    assert (picture.reduced, found) == (1, None)
    assert picture.image.shape == (1280, 1040, 3)


def test_picture_that_is_none_has_its_status(tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    reader = FaceReader(tmp_path, CORPUS)
    for source, status in ((None, "missing"), ("absent.jpg", "missing"), ("empty.jpg", "unreadable")):
        picture, found = reader.read(source, None, None)
        assert (picture.status, found) == (status, None)


def test_what_landmarks_rest_on_is_named():
    fingerprint = load_landmarker("blazemesh").fingerprint
    assert identify("blazemesh") == {"name": "blazemesh", "fingerprint": fingerprint}
    assert identify("supplied") == {"name": "supplied", "fingerprint": fingerprint}, (
        "which fills in where points are missing"
    )
    assert identify("prealigned") == {"name": "prealigned", "fingerprint": ""}
    assert identify("blazemesh-tiles")["fingerprint"] != fingerprint
