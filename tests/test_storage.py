"""storage.py: shards in an object store are those of a local disk, byte for byte, and give the same batches."""

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from conftest import LANDMARKER, make_recipe
from shard_builds import (
    ALL,
    CORPUS,
    Counting,
    inputs,
    make_raw,  # noqa: F401 – a fixture
    make_stub,  # noqa: F401 – a fixture
)

from aupipe import schema, shards, storage, stream
from aupipe.clips import ClipSpec, clip_batches, plan_clips
from aupipe.config import ConfigError
from aupipe.facs import AUSet
from aupipe.inspection import FaceReader, Material
from aupipe.schema import DataError
from aupipe.shards import build, load_index, read_window

# Here and not in a fixture: the workers of the cluster have the environment in which the first test that wants it starts it.
for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"):
    os.environ.setdefault(variable, "true")


@pytest.fixture(scope="module")
def server():
    """An S3 server of this machine, which wants no credentials in particular but some."""
    server_class = pytest.importorskip("moto.server").ThreadedMotoServer
    moto = server_class(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    pafs.S3FileSystem(endpoint_override=f"http://{host}:{port}", allow_bucket_creation=True).create_dir("bucket")
    yield f"{host}:{port}"
    moto.stop()


@pytest.fixture(params=["s3", "file"])
def root(request, tmp_path, monkeypatch):
    """A store that is still empty, as AUPIPE_STORAGE."""
    if request.param == "s3":
        url = f"s3://bucket/{uuid.uuid4()}?endpoint_override=http://{request.getfixturevalue('server')}"
    else:
        url = (tmp_path / "a store").as_uri()
    monkeypatch.setenv("AUPIPE_STORAGE", url)
    return url


@pytest.fixture
def store(root):
    return storage.store_of(Path("data/shards/bp4d"))


def run(raw, out, store, corpus=CORPUS, manifest=None, limit=99):
    """Build into a store, and return the sessions that were built anew."""
    table, inventory = inputs(raw)
    counting = Counting(limit)
    build(table if manifest is None else manifest, inventory, raw, out, corpus, store=store, map=counting)
    return counting.built


def contents(store):
    return {path: read_all(storage.join(store, path)) for path in storage.list_files(store)}


def read_all(address):
    system, path = storage._locate(address)
    return system.open_input_file(path).read()


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def without_places(index):
    return [{k: v for k, v in entry.items() if k != "path"} for entry in index["sessions"]]


def test_shards_in_a_store_are_those_of_a_disk(stub, raw, store, tmp_path):
    assert run(raw, tmp_path / "out", store) == run(raw, tmp_path / "local", None) == ALL
    assert names(tmp_path / "out") == ["F001/T1.key", "M001/T1.key", "M002/T3.key", "index.json"]
    index, local = (shards.read_json(tmp_path / name / "index.json", "shards") for name in ("out", "local"))
    assert index["store"] == store
    assert "store" not in local
    assert without_places(index) == without_places(local)
    found = contents(store)
    assert sorted(found) == sorted(entry["path"] for entry in index["sessions"])
    for entry, other in zip(index["sessions"], local["sessions"], strict=True):
        assert found[entry["path"]] == (tmp_path / "local" / other["path"]).read_bytes()
        address, columns = storage.join(store, entry["path"]), ["frame", "face112"]
        assert shards.local_path(address) == shards.local_path(other["path"]) == other["path"]
        window = read_window(tmp_path / "nowhere", address, 1, 2, 2, columns)
        assert window == pq.read_table(tmp_path / "local" / other["path"], columns=columns).take([1, 3])


def test_batches_are_those_of_a_disk_and_need_no_index_to_be_read(stub, raw, store, tmp_path, cluster):
    run(raw, tmp_path / "out", store)
    run(raw, tmp_path / "local", None)
    spec = ClipSpec.of(make_recipe(), AUSet((1, 6, 12)), 2)
    plans = [plan_clips(tmp_path / name, ["F001", "M001"], spec, train=True) for name in ("out", "local")]
    expected = list(clip_batches(plans[1], tmp_path / "local", spec, train=True, seed=5))
    nowhere = tmp_path / "of another node"  # a task of a cluster has the rows of the plan, and no checkout
    here = clip_batches(plans[0], nowhere, spec, train=True, seed=5)
    streamed = stream.clip_stream(plans[0], nowhere, spec, train=True, seed=5)
    for batches in (list(here), list(streamed)):
        assert len(batches) == len(expected) > 1
        for one, other in zip(batches, expected, strict=True):
            for name in ("frames_BTHWC", "labels_BTM", "mask_BTM", "crop_B2", "mirror_B", "clip_B"):
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_second_build_makes_nothing_and_a_killed_one_goes_on(stub, raw, store, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(raw, tmp_path / "out", store, limit=1)
    assert len(storage.list_files(store)) == 1
    assert run(raw, tmp_path / "out", store) == ALL[1:]
    before, index = contents(store), (tmp_path / "out/index.json").read_bytes()
    assert run(raw, tmp_path / "out", store) == []
    assert contents(store) == before
    assert (tmp_path / "out/index.json").read_bytes() == index


def test_lost_and_cut_off_objects_are_made_anew(stub, raw, store, tmp_path):
    run(raw, tmp_path / "out", store)
    before = contents(store)
    first, second, _ = sorted(before)
    storage.delete(storage.join(store, first))
    (tmp_path / "cut").write_bytes(before[second][:-9])
    storage.put(tmp_path / "cut", storage.join(store, second))
    assert run(raw, tmp_path / "out", store) == ALL[:2]
    assert contents(store) == before


def test_what_no_session_has_is_removed_and_nothing_else(stub, raw, store, tmp_path):
    (tmp_path / "mine").write_text("mine")
    storage.put(tmp_path / "mine", storage.join(store, "M001/note.txt"))
    run(raw, tmp_path / "out", store)
    before = contents(store)
    manifest, _ = inputs(raw)
    rest = manifest.filter([s != "M001" for s in manifest["subject"].to_pylist()])
    assert run(raw, tmp_path / "out", store, manifest=rest) == []
    assert contents(store) == {path: data for path, data in before.items() if "M001/T1" not in path}
    labels = raw / "AUCoding/AU_OCC/F001_T1.csv"
    labels.write_text(labels.read_text().replace("1,1,1,0", "1,0,1,0"))
    assert run(raw, tmp_path / "out", store) == ALL[:2]
    after = contents(store)
    assert len(after) == 4, "the session's old object is gone, and the note is still there"
    assert len(set(before) - set(after)) == 1


def test_moving_between_disk_and_store_leaves_one_copy_in_the_checkout(stub, raw, store, tmp_path):
    run(raw, tmp_path / "out", None)
    assert run(raw, tmp_path / "out", store) == ALL
    assert not list((tmp_path / "out").glob("*/*.parquet"))
    assert len(storage.list_files(store)) == 3
    assert run(raw, tmp_path / "out", None) == ALL
    assert len(list((tmp_path / "out").glob("*/*.parquet"))) == 3


UPLOAD = "import sys; from pathlib import Path; from aupipe.storage import put; put(Path(sys.argv[1]), sys.argv[2])"


def test_a_kill_in_the_middle_of_an_upload_leaves_nothing_half_written(root, store, tmp_path):
    """The upload reads from a pipe that delivers 20 MiB of a file and then stops, and dies waiting."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    address = storage.join(store, "F001/T1.parquet")
    process = subprocess.Popen([sys.executable, "-c", UPLOAD, str(pipe), address])
    with pipe.open("wb") as writer:
        writer.write(b"x" * (20 << 20))  # returns when all but the pipe's own buffer has been read
        writer.flush()
        process.send_signal(signal.SIGKILL)
        process.wait()
    left = storage.list_files(store)
    assert "F001/T1.parquet" not in left
    assert all(path.endswith(".tmp") for path in left)
    with pytest.raises(OSError, match="T1"):
        storage.open_parquet(address)


def test_a_failed_upload_leaves_nothing(root, store, tmp_path, monkeypatch):
    def fail(source, target, size):
        target.write(b"x" * (12 << 20))
        raise OSError("disk on fire")

    monkeypatch.setattr(storage.shutil, "copyfileobj", fail)
    (tmp_path / "file").write_bytes(b"y")
    with pytest.raises(DataError, match="disk on fire"):
        storage.put(tmp_path / "file", storage.join(store, "F001/T1.parquet"))
    assert storage.list_files(store) == {}


def test_names_are_taken_as_they_are(root, store, tmp_path):
    (tmp_path / "file").write_bytes(b"1")
    for name in ("bp4d:F001/a b.parquet", "50%/x#1.parquet", "ä/%20?.parquet"):
        storage.put(tmp_path / "file", storage.join(store, name))
        assert storage.list_files(store)[name] == 1
        assert read_all(storage.join(store, name)) == b"1"
        storage.delete(storage.join(store, name))
        storage.delete(storage.join(store, name))
        assert storage.list_files(store) == {}


def test_a_window_fetches_its_row_groups_alone(server, tmp_path, monkeypatch):
    """Counted in bytes that the server sends: one of forty row groups is a small part of the file."""
    monkeypatch.setenv("AUPIPE_STORAGE", f"s3://bucket/{uuid.uuid4()}?endpoint_override=http://{server}")
    store = storage.store_of(Path("data"))
    rows = 40 * schema.ROW_GROUP
    noise = np.random.default_rng(0).bytes(rows * 1000)
    table = schema.pa.table({"face": [noise[i * 1000 : (i + 1) * 1000] for i in range(rows)], "n": range(rows)})
    schema.write_table(table, tmp_path / "shard.parquet", compression="none", use_dictionary=False)
    storage.put(tmp_path / "shard.parquet", address := storage.join(store, "a.parquet"))
    sent = []
    system, path = storage._locate(address)

    class Counted:
        def open_input_file(self, path):
            file = system.open_input_file(path)
            read = lambda n=-1: sent.append(len(data := file.read(n))) or data  # noqa: E731
            return schema.pa.PythonFile(type("F", (), {
                "read": staticmethod(read), "seek": file.seek, "tell": file.tell, "size": file.size,
                "closed": False, "close": file.close, "readable": lambda s: True, "seekable": lambda s: True,
                "writable": lambda s: False,
            })(), mode="r")  # fmt: skip

    storage._read_footer(address)
    monkeypatch.setattr(storage, "_locate", lambda address: (Counted(), path))
    window = read_window(tmp_path, address, 10 * 64 + 5, 48, 1, ["face"])
    assert window["face"].to_pylist() == table["face"].slice(10 * 64 + 5, 48).to_pylist()
    assert 64_000 < sum(sent) < 3 * 64_000 < (tmp_path / "shard.parquet").stat().st_size / 10


def test_faces_of_a_page_come_out_of_the_store(stub, raw, store, tmp_path):
    run(raw, tmp_path / "data/shards/c", store)
    manifest, _ = inputs(raw)
    m = Material("c", tmp_path / "data", manifest, None, load_index(tmp_path / "data/shards/c"), None)
    faces = FaceReader(m)
    assert faces.statuses("M001", "T1") == ["ok"] * 5
    assert faces.image("M001", "T1", 2).startswith("data:image/jpeg;base64,")


def test_a_lost_object_is_a_sentence(stub, raw, store, tmp_path):
    run(raw, tmp_path / "out", store)
    path = load_index(tmp_path / "out")["sessions"][0]["path"]
    storage.delete(path)
    storage._read_footer.cache_clear()
    with pytest.raises(DataError, match=r"F001/T1-.*cannot be read.*dvc repro shards"):
        read_window(tmp_path / "out", path, 0, 1, 1, ["status"])


@pytest.mark.parametrize("path", ["../evil/T1.parquet", "/etc/passwd"])
def test_index_that_leads_out_of_its_folder_is_refused(tmp_path, path):
    entry = {"path": path, "subject": "F001", "session": "T1", "rows": 2, "runs": [[0, 2]], "usable": [[0, 2]]}
    index = {"aus": [1], "align": ["face112"], "landmarker": LANDMARKER, "sessions": [entry]}
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="leads out of"):
        read_window(tmp_path, load_index(tmp_path)["sessions"][0]["path"], 0, 1, 1, ["status"])


def test_where_the_store_of_a_folder_is(tmp_path, monkeypatch):
    monkeypatch.delenv("AUPIPE_STORAGE", raising=False)
    assert storage.store_of(Path("data/shards/c")) is None
    for root, expected in (
        (str(tmp_path / "a b"), (tmp_path / "a b").as_uri() + "/data/shards/c"),
        ("file:///x/", "file:///x/data/shards/c"),
        ("s3://b/p?region=eu-west-1&scheme=http", "s3://b/p/data/shards/c?region=eu-west-1&scheme=http"),
    ):
        monkeypatch.setenv("AUPIPE_STORAGE", root)
        assert storage.store_of(Path("data/shards/c")) == expected


@pytest.mark.parametrize("url", ["s3://key:secret@bucket/p", "teapot://x", "file:///a#b", "s3:///"])
def test_urls_that_make_no_store(monkeypatch, url):
    monkeypatch.setenv("AUPIPE_STORAGE", url)
    with pytest.raises(ConfigError, match="AUPIPE_STORAGE") as caught:
        storage.store_of(Path("data"))
    assert "secret" not in str(caught.value)


def test_a_server_that_is_not_there_is_a_sentence(monkeypatch):
    options = "endpoint_override=http://127.0.0.1:9&request_timeout=1&connect_timeout=1"
    monkeypatch.setenv("AUPIPE_STORAGE", f"s3://bucket/p?{options}")
    with pytest.raises((DataError, ConfigError), match="AUPIPE_STORAGE"):
        storage.list_files(storage.store_of(Path("data")))
