"""A real MLflow server over PostgreSQL and an S3 store, all of this machine: trainings that see it go, hang, come back."""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.fs as pafs
import pytest
from test_predictor import save_random_model

from aupipe import tracking
from aupipe.journal import Delivery
from aupipe.landmarks import load_landmarker
from aupipe.predictor import AUPredictor
from aupipe.schema import ConfigError
from aupipe.tracking import MlflowClient, Tracker

psycopg2 = pytest.importorskip("psycopg2", reason="psycopg2-binary is not installed (pip install -e '.[dev]')")
moto_server = pytest.importorskip("moto.server", reason="moto is not installed (pip install -e '.[dev]')")

PATIENCE = 120  # seconds, a safety net: a server that is not there by then will not come


def find_program(name):
    """Of PATH, or of Debian's packages, which keep the programs of a server out of it."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: float(path.parts[-3]))
    program = shutil.which(name) or (str(found[-1]) if found else None)
    return program or pytest.skip(f"no PostgreSQL here: there is no {name} (apt-get install postgresql)")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(ready, process):
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert process.poll() is None, "it ended at once"
        with suppress(Exception):
            return ready()
        time.sleep(0.1)
    raise AssertionError("it did not start")


@pytest.fixture(scope="module")
def database():
    """PostgreSQL of a user without rights, on 127.0.0.1 with a password; its URI."""
    initdb, postgres = find_program("initdb"), find_program("postgres")
    folder = Path(tempfile.mkdtemp(prefix="aupipe-postgres-"))  # not below pytest's own, which only its user may enter
    password, port = secrets.token_hex(8), free_port()
    (folder / "password").write_text(password)
    nobody = pwd.getpwnam("nobody") if os.getuid() == 0 else None  # PostgreSQL refuses to be root
    who = {} if nobody is None else {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    if nobody is not None:
        for path in (folder, folder / "password"):
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
    how = who | {"cwd": folder, "env": {"PATH": os.environ["PATH"], "LC_ALL": "C"}}
    words = ["-D", "data", "-U", "aupipe", "-E", "UTF8", "-A", "scram-sha-256", "--pwfile=password", "--no-sync"]
    subprocess.run([initdb, *words], check=True, capture_output=True, **how)
    options = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": folder, "fsync": "off"}
    settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([postgres, "-D", "data", *settings], stdout=log, stderr=log, **how)
    uri = f"postgresql://aupipe:{password}@127.0.0.1:{port}/postgres"
    try:
        wait_until(lambda: psycopg2.connect(uri).close(), process)
        yield SimpleNamespace(uri=uri, password=password)
    finally:
        process.send_signal(signal.SIGINT)  # ends its connections
        process.wait(PATIENCE)
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def store():
    """An S3 store with a bucket for models; the environment in which MLflow finds it."""
    moto = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    keys = {"access_key": "some", "secret_key": "one"}
    files = pafs.S3FileSystem(endpoint_override=f"http://{host}:{port}", allow_bucket_creation=True, **keys)
    files.create_dir("models")
    names = {"MLFLOW_S3_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "some", "AWS_SECRET_ACCESS_KEY": "one"}
    yield SimpleNamespace(files=files, environment=names | {"AWS_DEFAULT_REGION": "us-east-1"})
    moto.stop()


class Server:
    """`mlflow server` with what infra/compose.yaml gives it; whole process groups are stopped and started."""

    def __init__(self, database, store, folder):
        self.port, self.folder = free_port(), folder
        self.uri = f"http://127.0.0.1:{self.port}"
        backend = database.uri.replace("postgresql://", "postgresql+psycopg2://")
        options = {"host": "127.0.0.1", "port": self.port, "workers": 1, "backend-store-uri": backend}
        options |= {"artifacts-destination": "s3://models"}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        self.command = [sys.executable, "-m", "mlflow", "server", *words]
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        self.environment |= store.environment | {"MLFLOW_DISABLE_TELEMETRY": "true"}
        self.environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # evaluation jobs of language models
        self.process = None

    def start(self):
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                self.command, env=self.environment, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        wait_until(lambda: urllib.request.urlopen(f"{self.uri}/health", timeout=5).close(), self.process)

    def signal(self, number):
        os.killpg(self.process.pid, number)

    def kill(self):
        self.signal(signal.SIGKILL)
        self.process.wait(PATIENCE)


@pytest.fixture(scope="module")
def server(database, store, tmp_path_factory):
    server = Server(database, store, tmp_path_factory.mktemp("server"))
    try:
        server.start()
        yield server
    finally:
        if server.process is not None and server.process.poll() is None:
            server.kill()


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")  # this machine may be busy
    monkeypatch.setattr(Delivery, "patience", 300.0)
    monkeypatch.setattr(Tracker, "patience", 300.0)


def record(epoch):
    return {"epoch": epoch, "time": 1000.0 + epoch, "val": {"f1": epoch / 10}, "wait": 0.1}


def rows(database, run):
    """The points of val.f1 as PostgreSQL has them."""
    with psycopg2.connect(database.uri) as connection, connection.cursor() as cursor:
        query = "SELECT step, value, timestamp FROM metrics WHERE key = 'val.f1' AND run_uuid = %s ORDER BY step"
        cursor.execute(query, [run])
        return cursor.fetchall()


def expected(last):
    return [(epoch, epoch / 10, 1_000_000 + 1000 * epoch) for epoch in range(1, last + 1)]


def test_a_server_that_is_killed_hangs_and_comes_back_has_everything_once(server, database, store, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    tracker = Tracker(tmp_path, "run")
    tracker.start("demo", "run", {"seed": 1}, {"git_commit": "abc"})
    for epoch in (1, 2):
        tracker.epoch(record(epoch))
    assert rows(database, tracker.run) == expected(2)

    server.kill()
    for epoch in (3, 4):
        tracker.epoch(record(epoch))
    begun = Tracker(tmp_path, "begun")
    begun.start("demo", "begun", {"seed": 2}, {})
    begun.epoch(record(1))
    assert (tracker.journal.waiting(), begun.journal.waiting(), begun.run) == (2, 2, None)

    server.start()
    tracker.flush()
    begun.end()
    assert rows(database, tracker.run) == expected(4)
    assert rows(database, begun.run) == expected(1)

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    server.signal(signal.SIGSTOP)
    for epoch in (5, 6):
        tracker.epoch(record(epoch))
    assert tracker.journal.waiting() == 2
    server.signal(signal.SIGCONT)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    tracker.end()  # what the server read while it hung it does now, too
    tracker.results({"f1": 0.5})
    assert rows(database, tracker.run) == expected(6)

    client = MlflowClient(server.uri)
    runs = client.search_runs([client.get_experiment_by_name("aupipe-demo").experiment_id])
    assert {run.info.run_name: run.info.status for run in runs} == {"run": "FINISHED", "begun": "FINISHED"}
    assert len(runs) == 2
    run = client.get_run(tracker.run)
    assert (run.data.params, run.data.metrics["test.f1"], run.data.metrics["wait"]) == ({"seed": "1"}, 0.5, 0.1)
    assert "system/cpu_utilization_percentage" in run.data.metrics
    assert [point.step for point in client.get_metric_history(tracker.run, "val.f1")] == [1, 2, 3, 4, 5, 6]


def test_what_postgres_has_already_is_not_there_twice(server, database, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    tracker = Tracker(tmp_path, "run")
    tracker.start("twice", "run", {"seed": 1}, {})
    for epoch in (1, 2, 3):
        tracker.epoch(record(epoch))
    first = tracker.run
    tracker.journal.note(first, 1)  # killed before it had noted the epochs
    tracker.flush()
    (tracker.journal.directory / "sent.json").unlink()  # or even the run
    tracker.flush()
    assert (tracker.run, tracker.journal.waiting()) == (first, 0)
    assert rows(database, first) == expected(3)


def test_a_model_goes_to_the_object_store_and_predicts_from_there(server, store, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    tracker = Tracker(tmp_path, "run")
    tracker.start("models", "run", {}, {})
    landmarker = {"name": "blazemesh", "fingerprint": load_landmarker("blazemesh").fingerprint}
    checkpoint = save_random_model(tmp_path / "checkpoint", landmarker=landmarker)
    assert tracking.register(checkpoint, tracker.settle(), "aupipe-models-small", {"fold": "fold1"}, alias="candidate") == 1
    kept = [file.path for file in store.files.get_file_info(pafs.FileSelector("models", recursive=True))]
    assert any(path.endswith("model.safetensors") for path in kept)
    assert not list(tmp_path.glob("mlartifacts*")), "nothing of it is kept here"
    faces = np.random.default_rng(0).integers(0, 256, (2, 112, 112, 3), np.uint8)
    probs = tracking.load_predictor("models:/aupipe-models-small@candidate").predict_faces(faces)
    np.testing.assert_array_equal(probs, AUPredictor.load(checkpoint).predict_faces(faces))


def test_postgres_without_a_server_takes_a_run_and_refuses_a_wrong_password(server, database, tmp_path):
    backend = database.uri.replace("postgresql://", "postgresql+psycopg2://")
    tracker = Tracker(tmp_path, "run", backend)
    tracker.start("direct", "run", {}, {})
    tracker.epoch(record(1))
    assert rows(database, tracker.run) == expected(1)
    with pytest.raises(ConfigError, match=r"MLflow cannot be used at postgresql.*authentication failed") as caught:
        Tracker(tmp_path, "other", backend.replace(database.password, "wrong")).start("direct", "run", {}, {})
    assert "wrong" not in str(caught.value)
