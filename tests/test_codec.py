"""codec.py: a raw face is its pixels, a JPEG the same for every reader, and whoever reads one reads the other."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shard_builds import ALL, CORPUS, make_raw, make_stub, run  # noqa: F401 – fixtures

from aupipe import codec, leaks
from aupipe.clips import ClipSpec, clip_batches, plan_clips
from aupipe.codec import decode_face, decode_faces, encode_face, encode_jpeg, read_jpeg
from aupipe.config import Corpus
from aupipe.schema import ConfigError, DataError
from aupipe.shards import load_index

SIZE = 112


def draw(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, SIZE, SIZE, 3), np.uint8)


@pytest.mark.parametrize("size", [112, 200])
def test_no_jpeg_is_as_long_as_its_pixels(size):
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    assert len(encode_jpeg(noise, 100)) < 3 * size * size, "a raw face is known by its length"


def test_raw_faces_keep_every_pixel():
    face = draw(1)[0]
    assert len(encode_face(face, "raw", 95)) == 3 * SIZE * SIZE
    np.testing.assert_array_equal(decode_face(encode_face(face, "raw", 95), SIZE), face)
    jpeg = encode_face(face, "jpeg", 95)
    expected = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    np.testing.assert_array_equal(decode_face(jpeg, SIZE), expected)


@pytest.mark.parametrize("data", [b"", b"no picture", b"x" * (3 * SIZE * SIZE - 1)])
def test_what_is_no_face_is_none(data):
    assert decode_face(data, SIZE) is None
    assert decode_face(encode_jpeg(draw(1)[0], 95), 200) is None, "nor is a face of another size"


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize("codecs", [["jpeg"], ["raw"], ["jpeg", "raw"]])
@pytest.mark.parametrize("nulls", [(), (0, 5, 9), range(10)])
def test_a_column_becomes_pixels(codecs, nulls, kind):
    faces = draw(10)
    stored = [None if n in nulls else encode_face(face, codecs[n % len(codecs)], 95) for n, face in enumerate(faces)]
    column = pa.array([b"other", *stored, b"other"], kind).slice(1, 10)
    out = np.full((10, SIZE, SIZE, 3), 9, np.uint8)
    with ThreadPoolExecutor(2) as pool:
        decode_faces(column, out, ["shard"], pool)
    for n, data in enumerate(stored):
        np.testing.assert_array_equal(out[n], 0 if data is None else decode_face(data, SIZE))


def test_damaged_face_names_its_shard():
    stored = [encode_jpeg(face, 95) for face in draw(6)]
    stored[4] = stored[4][:50]
    with pytest.raises(DataError, match=r"the shard c holds.*dvc repro shards"):
        decode_faces(pa.array(stored), np.empty((6, SIZE, SIZE, 3), np.uint8), ["a", "b", "c"], None)


def test_a_page_shows_both_kinds():
    face = draw(1)[0]
    jpeg = encode_jpeg(face, 95)
    assert read_jpeg(jpeg, SIZE) == jpeg
    assert read_jpeg(face.tobytes(), SIZE) == jpeg


def test_unknown_codec_is_a_config_error():
    with pytest.raises(ConfigError, match=r"unknown codec 'png' of a corpus; known are jpeg, raw"):
        Corpus(layout="bp4d", aus="bp4d", codec="png")


def test_raw_shards_are_made_anew_and_read_without_a_decoder(stub, raw, tmp_path, monkeypatch):
    corpora = {name: replace(CORPUS, codec=name, jpeg_quality=100) for name in ("jpeg", "raw")}
    assert sorted(run(raw, tmp_path, corpora["jpeg"])) == ALL
    assert load_index(tmp_path)["codec"] == "jpeg"
    spec = ClipSpec(CORPUS.au_set, 3, 3, 1, "face112", 96, 4)
    subjects = [s["subject"] for s in load_index(tmp_path)["sessions"]]
    lossy = list(clip_batches(plan_clips(tmp_path, subjects, spec), tmp_path, spec, train=False))
    assert sorted(run(raw, tmp_path, corpora["raw"])) == ALL, "another codec is another shard"
    assert run(raw, tmp_path, corpora["raw"]) == []
    index = load_index(tmp_path)
    assert index["codec"] == "raw"
    stored = pq.read_table(tmp_path / index["sessions"][0]["path"])["face112"]
    assert stored.type == pa.binary(), "a plain column: a tensor column reads slower than a JPEG decodes"
    assert {len(face) for face in stored.to_pylist() if face} == {3 * SIZE * SIZE}
    monkeypatch.setattr(codec.cv2, "imdecode", lambda *_: pytest.fail("nothing is to be decoded"))
    exact = list(clip_batches(plan_clips(tmp_path, subjects, spec), tmp_path, spec, train=False))
    for one, other in zip(lossy, exact, strict=True):
        difference = np.abs(one.frames_BTHWC.astype(int) - other.frames_BTHWC)
        assert 0 < difference.mean() < 20, "the same faces, but for the loss"
        np.testing.assert_array_equal(one.labels_BTM, other.labels_BTM)
        np.testing.assert_array_equal(one.frames_BTHWC.any((2, 3, 4)), other.frames_BTHWC.any((2, 3, 4)))
    assert leaks._read_small(tmp_path, index["sessions"][1]["path"], 0, "face112") is not None
