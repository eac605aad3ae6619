"""predictor.py: a row for every frame of a video, in OpenFace's columns, by the model and faces that it was trained with."""

import csv
import weakref
from dataclasses import replace
from fractions import Fraction

import av
import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import AUS, StubLandmarker, describe, make_recipe
from temporal_models import KINDS

from aupipe import predictor
from aupipe.align import align
from aupipe.checkpoint import save_checkpoint
from aupipe.predictor import AUPredictor, write_csv
from aupipe.schema import DataError
from aupipe.video import Video, VideoFrame

RECIPE = make_recipe()
COLUMNS = ["frame", "face_id", "timestamp", "confidence", "success", "status", *AUS.probability_columns, *AUS.columns]


def write_video(path, kinds, times=None):
    """A frame for each of `kinds`: "face", "black" (none is found) or "white" (its landmarks are bad); times in ms."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for number, kind in enumerate(kinds):
            coarse = rng.integers(0, 256, (8, 8, 3), np.uint8)
            image = {"black": coarse * 0, "white": coarse * 0 + 255}.get(kind, coarse)
            frame = av.VideoFrame.from_ndarray(cv2.resize(image, (64, 64), interpolation=cv2.INTER_NEAREST), "rgb24")
            frame.pts, frame.time_base = times[number] if times else 40 * number, stream.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def save_random_model(directory, **changes):
    """A checkpoint of an untrained model whose head is large, so that its probabilities differ between frames."""
    torch.manual_seed(0)
    description = describe(RECIPE, **changes)
    model = description.new_model()
    with torch.no_grad():
        model.head.weight.mul_(500)
    save_checkpoint(directory, model, description)
    return directory


@pytest.fixture
def stub(monkeypatch):
    stub = StubLandmarker()
    monkeypatch.setattr(predictor, "load_landmarker", lambda name: stub)
    return stub


@pytest.fixture
def loaded(stub, tmp_path):
    return AUPredictor.load(save_random_model(tmp_path / "checkpoint"))


def test_every_frame_has_its_row(loaded, tmp_path):
    times = [0, 40, 120, 160, 1000]
    video = write_video(tmp_path / "v.mp4", ["face", "black", "face", "white", "face"], times)
    table = loaded.predict(video)
    assert table.column_names == COLUMNS
    assert table["frame"].to_pylist() == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(table["timestamp"].to_pylist(), [0, 0.04, 0.12, 0.16, 1.0], atol=1e-6)
    assert table["status"].to_pylist() == ["ok", "no_face", "ok", "bad_landmarks", "ok"]
    assert table["success"].to_pylist() == [1, 0, 1, 0, 1]
    assert table["confidence"].to_pylist() == [0.75, 0, 0.75, 0.75, 0.75]
    assert set(table["face_id"].to_pylist()) == {0}
    for column in (*AUS.probability_columns, *AUS.columns):
        assert [value is None for value in table[column].to_pylist()] == [False, True, False, True, False]


def test_probabilities_are_of_the_aligned_faces(loaded, stub, tmp_path):
    video = write_video(tmp_path / "v.mp4", ["face"] * 6)
    table = loaded.predict(video)
    faces = [align("face112", frame.image, stub.find_face(frame.image).landmarks).image for frame in Video(video)]
    probs = np.stack([table[c].to_numpy() for c in AUS.probability_columns], 1)
    np.testing.assert_allclose(probs, loaded.predict_faces(np.stack(faces)), atol=1e-6)
    assert probs.std(0).min() > 1e-4, "the frames differ, so a shuffled row would show"
    for j, column in enumerate(AUS.columns):
        assert table[column].to_pylist() == [int(p >= 0.5) for p in probs[:, j]]


def test_faces_are_cut_in_the_middle_and_normalised_as_in_training(loaded):
    faces = np.random.default_rng(0).integers(0, 256, (5, 112, 112, 3), np.uint8)
    frames = torch.from_numpy(faces[:, 24:88, 24:88]).permute(0, 3, 1, 2)[None] / 255
    expected = loaded.model(frames).logits_BTM[0].sigmoid().detach().numpy()
    np.testing.assert_allclose(loaded.predict_faces(faces), expected, atol=1e-5)
    assert loaded.predict_faces(faces[:0]).shape == (0, 3)


def test_size_of_the_chunks_does_not_change_the_numbers(loaded, tmp_path, monkeypatch):
    video = write_video(tmp_path / "v.mp4", ["face", "face", "black", "face", "face", "black", "black", "face"])
    whole = loaded.predict(video)
    for size in (1, 3, 8):
        monkeypatch.setattr(predictor, "CHUNK", size)
        done = []
        parts = pa.concat_tables(loaded.stream(video, lambda *progress, done=done: done.append(progress)))
        assert done == [(min(n + size, 8), 8) for n in range(0, 8, size)]
        for column in COLUMNS:
            if column in AUS.probability_columns:
                np.testing.assert_allclose(parts[column].to_numpy(), whole[column].to_numpy(), atol=1e-6)
            else:
                assert parts[column].to_pylist() == whole[column].to_pylist()


def test_video_without_any_face_is_an_error_and_leaves_no_file(loaded, tmp_path):
    video = write_video(tmp_path / "v.mp4", ["black"] * 4 + ["white"])
    with pytest.raises(DataError, match=r"no face was found in any of the 5 frames.*crop the video"):
        write_csv(loaded.stream(video), tmp_path / "out.csv")
    assert not list(tmp_path.glob("*out.csv*"))
    with pytest.raises(DataError, match="no face"):
        loaded.predict(video)


@pytest.mark.parametrize(
    "faces",
    [
        np.zeros((2, 200, 200, 3), np.uint8),
        np.zeros((112, 112, 3), np.uint8),
        np.zeros((2, 3, 112, 112), np.uint8),
        np.zeros((2, 112, 112, 3), np.float32),
        np.zeros((2, 112, 112, 4), np.uint8),
        [],
    ],
)
def test_faces_of_another_shape_or_type_are_refused(loaded, faces):
    with pytest.raises(DataError, match=r"expected faces of shape \(N, 112, 112, 3\) uint8, got"):
        loaded.predict_faces(faces)


def test_checkpoint_of_other_face_models_is_refused(stub, tmp_path):
    directory = save_random_model(tmp_path / "checkpoint", landmarker={"name": "blazemesh", "fingerprint": "other"})
    with pytest.raises(DataError, match=r"faces found by other models.*aupipe assets"):
        AUPredictor.load(directory)
    AUPredictor.load(save_random_model(tmp_path / "checkpoint"))


def test_csv_has_a_header_all_rows_and_empty_cells(loaded, tmp_path):
    video = write_video(tmp_path / "v.mp4", ["face", "black", "face"])
    table = loaded.predict(video)
    assert write_csv([table.slice(0, 1), table.slice(1, 2)], tmp_path / "out.csv") == 3
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == COLUMNS
    assert [row["frame"] for row in rows] == ["1", "2", "3"]
    assert rows[1]["AU01_p"] == rows[1]["AU12_c"] == ""
    assert float(rows[2]["AU04_p"]) == pytest.approx(table["AU04_p"][2].as_py(), rel=1e-5)
    assert rows[0]["success"] == "1"


def test_csv_appears_whole_or_not_at_all(loaded, tmp_path):
    table = loaded.predict(write_video(tmp_path / "v.mp4", ["face"] * 2))

    def tables():
        yield table
        assert not (tmp_path / "out.csv").exists()
        raise DataError("cut off")

    with pytest.raises(DataError, match="cut off"):
        write_csv(tables(), tmp_path / "out.csv")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint", "v.mp4"]


def test_alignment_is_the_checkpoints(stub, tmp_path):
    changed = describe(RECIPE, input=replace(RECIPE.input, align="face200"))
    save_checkpoint(tmp_path / "checkpoint", changed.new_model(), changed)
    loaded = AUPredictor.load(tmp_path / "checkpoint")
    assert loaded.predict_faces(np.zeros((1, 200, 200, 3), np.uint8)).shape == (1, 3)
    assert loaded.predict(write_video(tmp_path / "v.mp4", ["face"])).num_rows == 1


@pytest.mark.parametrize("source", ["supplied", "prealigned"])
def test_model_of_faces_that_came_with_a_corpus_predicts_no_video(tmp_path, source):
    directory = save_random_model(tmp_path / "checkpoint", landmarker={"name": source, "fingerprint": "0"})
    with pytest.raises(DataError, match=rf"{source}.*landmarks: blazemesh"):
        AUPredictor.load(directory)


# Temporal models: a video is one sequence


class StubVideo:
    """The frames of a film between two of them, without the loss of a codec: "film:13:29", or "film" for all."""

    def __init__(self, film, path):
        ends = str(path).split(":")[1:]
        first, stop = map(int, ends or (0, len(film)))
        self.images, self.first, self.frame_count = film[first:stop], first, stop - first
        self.alive, self.most = [], 0

    def __iter__(self):
        for index, image in enumerate(self.images):
            picture = image.copy()
            self.alive = [one for one in self.alive if one() is not None] + [weakref.ref(picture)]
            self.most = max(self.most, len(self.alive))
            yield VideoFrame(index, (self.first + index) / 25, picture, damaged=bool((image == 7).all()))


def make_film(kinds):
    """Pictures of `kinds`, as in write_video; "damaged" ones are known by their colour."""
    rng, plain = np.random.default_rng(1), {"black": 0, "white": 255, "damaged": 7}
    coarse = (
        rng.integers(0, 256, (8, 8, 3), np.uint8) if k == "face" else np.full((8, 8, 3), plain[k], np.uint8) for k in kinds
    )
    return [cv2.resize(image, (64, 64), interpolation=cv2.INTER_NEAREST) for image in coarse]


FILM = make_film(["black", "face", "face", "white", *["face"] * 9, "black", "damaged", *["face"] * 25])
REACH = {"causal": (4, 0), "two-sided": (2, 5), "ahead": (0, 3), "recurrent": (40, 0), "whole": (40, 40)}


@pytest.fixture
def film(stub, monkeypatch):
    videos = []
    monkeypatch.setattr(predictor, "Video", lambda path: videos.append(StubVideo(FILM, path)) or videos[-1])
    return videos


def reader(kind):
    return AUPredictor(KINDS[kind]().eval(), describe(RECIPE))


def probabilities(table):
    return np.stack([table[c].to_numpy() for c in AUS.probability_columns], 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_video_is_one_sequence_in_which_a_missing_face_is_zeros(film, stub, kind):
    loaded = reader(kind)
    table = loaded.predict("film")
    status = ["no_face", "ok", "ok", "bad_landmarks", *["ok"] * 9, "no_face", "unreadable", *["ok"] * 25]
    assert table["status"].to_pylist() == status
    ok = np.array(status) == "ok"
    sequence = np.zeros((len(FILM), 112, 112, 3), np.uint8)
    for i in np.flatnonzero(ok):
        sequence[i] = align("face112", FILM[i], stub.find_face(FILM[i]).landmarks).image
    np.testing.assert_allclose(probabilities(table)[ok], loaded.predict_faces(sequence)[ok], atol=1e-5)
    assert np.isnan(probabilities(table)[~ok]).all()
    for column in (*AUS.probability_columns, *AUS.columns):
        assert [value is not None for value in table[column].to_pylist()] == ok.tolist()
    if kind != "whole":  # the mean of which is moved little
        sequence[~ok] = 128
        assert np.abs(probabilities(table) - loaded.predict_faces(sequence))[ok].max() > 1e-3, "the zeros are read"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 3, 64])
def test_rows_come_in_order_as_soon_as_they_are_final(film, monkeypatch, kind, size):
    loaded = reader(kind)
    whole = loaded.predict("film")
    monkeypatch.setattr(predictor, "CHUNK", size)
    tables, read = [], [0]
    for table in loaded.stream("film", lambda done, expected: read.append(done)):
        tables.append(table)
        lag = read[-1] - sum(t.num_rows for t in tables)
        future = REACH[kind][1]
        assert lag in ((min(read[-1], future),) if read[-1] < 40 else (future, 0)), "at the end the rest comes"
    parts = pa.concat_tables(tables)
    assert parts["frame"].to_pylist() == list(range(1, 41))
    assert parts.drop_columns(AUS.probability_columns) == whole.drop_columns(AUS.probability_columns)
    np.testing.assert_allclose(probabilities(parts), probabilities(whole), atol=1e-5)
    assert read[1:] == [min(n + size, 40) for n in range(0, 40, size)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_video_in_parts_is_the_whole_outside_the_halo(film, kind):
    loaded = reader(kind)
    whole = loaded.predict("film")
    past, future = REACH[kind]
    for first, stop in ((0, 13), (13, 29), (29, 40)):
        part = loaded.predict(f"film:{first}:{stop}")
        low, high = first + past if first else 0, stop - future if stop < 40 else 40
        same, rest = np.arange(max(low, first), max(low, min(high, stop))), slice(first, stop)
        np.testing.assert_allclose(probabilities(part)[same - first], probabilities(whole)[same], atol=1e-5)
        change = np.abs(probabilities(part) - probabilities(whole)[rest])
        lacking = (first and past) or (stop < 40 and future)
        assert (np.nanmax(change) > 1e-3) == bool(lacking), "frames at a cut lack their context, others nothing"
        assert part["timestamp"].to_pylist() == whole["timestamp"].to_pylist()[rest]


def test_memory_is_that_of_a_chunk_whatever_the_length(film, monkeypatch):
    monkeypatch.setattr(predictor, "CHUNK", 4)
    for kind in ("two-sided", "recurrent"):
        loaded = reader(kind)
        tables = list(loaded.stream("film"))
        assert film[-1].most <= 2, "pictures: the one that is read and the next"
        assert loaded.model.longest == 4, "frames in a pass"
        assert max(table.num_rows for table in tables) <= 4 + loaded.model.future


def test_frame_models_read_no_damaged_picture_either(film, loaded):
    table = loaded.predict("film")
    assert table["status"].to_pylist()[13:16] == ["no_face", "unreadable", "ok"]
    assert table["success"].to_pylist()[13:16] == [0, 0, 1]
    assert table["confidence"].to_pylist()[14] == 0
    assert table["AU01_p"].to_pylist()[14] is None
    with pytest.raises(DataError, match=r"no face was found in any of the 2 frames \(1 of them damaged\)"):
        loaded.predict("film:13:15")


def test_faces_are_one_sequence_to_a_temporal_model():
    faces = np.random.default_rng(0).integers(0, 256, (150, 112, 112, 3), np.uint8)
    loaded = reader("two-sided")
    frames = loaded._read(faces)
    expected = loaded.model(frames).logits_BTM[0].sigmoid().detach().numpy()
    np.testing.assert_allclose(loaded.predict_faces(faces), expected, atol=1e-5)
    assert loaded.predict_faces(faces[:1]).shape == (1, 3)
    assert loaded.predict_faces(faces[:0]).shape == (0, 3)
