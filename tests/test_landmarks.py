"""landmarks.py: landmarkers by their names, one's own among them, and the face that a session is about."""

import sys

import numpy as np
import pytest

from aupipe.blazemesh import BlazeMesh, BlazeMeshLiteRT, BlazeMeshTiles
from aupipe.config import LANDMARKS, Corpus
from aupipe.landmarks import Face, Follower, Landmarker, load_landmarker
from aupipe.schema import ConfigError, DataError

PLUGIN = """
import numpy as np
from aupipe.landmarks import Face, Landmarker

class Corners(Landmarker):
    name, fingerprint = "corners", "1"

    def find_faces(self, image):
        box = np.array([0, 0, image.shape[1], image.shape[0]], np.float32)
        return [Face(box, 0.5, np.zeros((49, 2), np.float32))]

class Unfinished(Landmarker):
    name = "unfinished"

class Other:
    pass
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    (tmp_path / "my_faces.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_faces"
    sys.modules.pop("my_faces", None)
    load_landmarker.cache_clear()


def test_landmarkers_go_by_their_names():
    for kind in (BlazeMesh, BlazeMeshTiles, BlazeMeshLiteRT):
        assert type(load_landmarker(kind.name)) is kind
        assert load_landmarker(kind.name) is load_landmarker(kind.name), "one per process: networks are read once"
    assert {kind.name for kind in (BlazeMesh, BlazeMeshTiles, BlazeMeshLiteRT)} < set(LANDMARKS)
    with pytest.raises(ConfigError, match=r"'dlib'.*blazemesh-tiles"):
        load_landmarker("dlib")


def test_landmarker_of_ones_own_is_imported(plugin):
    landmarker = load_landmarker(f"{plugin}:Corners")
    assert landmarker.fingerprint == "1"
    assert landmarker.find_face(np.zeros((4, 6, 3), np.uint8)).box.tolist() == [0, 0, 6, 4]
    assert Corpus(layout="bp4d", aus=(1,), landmarks=f"{plugin}:Corners").landmarks == "my_faces:Corners"


@pytest.mark.parametrize("name", ["my_faces:Absent", "absent_package:Corners", "my_faces:", ":Corners", "my_faces:Other",
                                  "my_faces:np", "os:getcwd"])  # fmt: skip
def test_what_is_no_landmarker_is_one_sentence(plugin, name):
    with pytest.raises(ConfigError, match=name):
        load_landmarker(name)


def test_landmarker_without_its_parts_is_refused(plugin):
    with pytest.raises(ConfigError, match=r"Unfinished.*fingerprint"):
        load_landmarker(f"{plugin}:Unfinished")


def make_face(x, side, confidence=0.9, points=49):
    return Face(np.array([x, 0, x + side, side], np.float32), confidence, np.full((points, 2), x, np.float32))


def follow(*frames):
    follower = Follower()
    return [None if (face := follower.choose(faces)) is None else face.landmarks[0, 0] for faces in frames]


def test_largest_face_is_chosen_first_and_none_of_none():
    assert follow([make_face(0, 50, 0.99), make_face(200, 80, 0.6)], []) == [200, None]


def test_face_is_followed_where_two_are_alike():
    both = [make_face(0, 80), make_face(200, 82)]
    assert follow(both) == [200]
    assert follow([make_face(0, 80)], both, both[::-1]) == [0, 0, 0], "whoever is named first"
    assert follow([make_face(0, 80)], [], both) == [0, None, 0], "and after a frame without a face"
    moved = [[make_face(20 * n, 80), make_face(300 - 20 * n, 85)] for n in range(6)]
    assert follow([make_face(0, 80)], *moved) == [0, 0, 20, 40, 60, 80, 100]


def test_bystander_is_not_followed_for_ever():
    main, bystander = make_face(0, 100), make_face(200, 60)
    assert follow([main, bystander], [bystander], [main, bystander]) == [0, 200, 0], "less than half as large"


def test_choice_does_not_depend_on_the_order_within_a_frame():
    rng = np.random.default_rng(0)
    frames = [[make_face(x, side) for x, side in rng.uniform(20, 90, (4, 2))] for _ in range(30)]
    assert follow(*frames) == follow(*[faces[::-1] for faces in frames])


def test_landmarks_of_another_scheme_are_refused():
    with pytest.raises(DataError, match=r"\(68, 2\).*ibug49"):
        Follower().choose([make_face(0, 50, points=68)])


def test_face_of_a_reduced_image_lies_at_the_centres_of_blocks():
    face = make_face(10, 20).of_source(4)
    assert face.box.tolist() == [41.5, 1.5, 121.5, 81.5]
    assert face.landmarks[0].tolist() == [41.5, 41.5]
    assert face.landmarks.dtype == face.box.dtype == np.float32
    assert issubclass(BlazeMesh, Landmarker)
