"""tracking.py when the server is away: refused, broken, hanging, locked, removed; nothing is lost or there twice."""

import logging
import pickle
import shutil
import sqlite3
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from test_predictor import save_random_model

from aupipe import tracking
from aupipe.journal import Delivery, Journal
from aupipe.schema import ConfigError
from aupipe.tracking import MlflowClient, Tracker

AWAY = "http://127.0.0.1:1"


@pytest.fixture(scope="module", autouse=True)
def wait_for_busy_machines():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Delivery, "patience", 300.0)
        patch.setattr(Tracker, "patience", 300.0)
        yield


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """An MLflow database without runs: its tables take seconds to make, a copy does not."""
    file = tmp_path_factory.mktemp("tables") / "mlflow.db"
    Tracker(file.parent, "first", f"sqlite:///{file}").start("demo", "first", {}, {})
    return file


@pytest.fixture(name="database")
def copy_tables(tables, tmp_path):
    shutil.copy(tables, tmp_path / "mlflow.db")
    return tmp_path / "mlflow.db"


@pytest.fixture(name="tracker")
def begin_run(database, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "_monitors", list)  # the machine's use differs from call to call
    tracker = Tracker(tmp_path, "run", f"sqlite:///{database}")
    tracker.start("demo", "run", {"seed": 1}, {"git_commit": "abc"})
    return tracker


def record(epoch):
    return {"epoch": epoch, "time": 1000.0 + epoch, "val": {"f1": epoch / 10, "loss": 1.0}}


def points(uri, run, name="val.f1"):
    return [(point.step, point.value, point.timestamp) for point in MlflowClient(uri).get_metric_history(run, name)]


def expected(*epochs):
    return [(epoch, epoch / 10, 1_000_000 + 1000 * epoch) for epoch in epochs]


def moved(tracker, uri):
    return Tracker(tracker.directory, tracker.key, uri)


def test_training_goes_on_while_the_server_is_away_and_is_told_when_it_is_back(tracker, caplog):
    tracker.epoch(record(1))
    away = moved(tracker, AWAY)
    away.start("demo", "run", {}, {})
    for epoch in (2, 3, 4):
        away.epoch(record(epoch))
    assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 1, "one warning, not one per epoch"
    assert points(tracker.uri, tracker.run) == expected(1)
    again = moved(tracker, tracker.uri)
    again.epoch(record(5))
    again.end()
    assert points(tracker.uri, tracker.run) == expected(1, 2, 3, 4, 5)
    assert points(tracker.uri, tracker.run, "val.loss")[-1][:2] == (5, 1.0)
    assert MlflowClient(tracker.uri).get_run(tracker.run).info.status == "FINISHED"


def test_training_that_was_begun_and_ended_without_a_server_is_told_whole(database, tmp_path, caplog):
    away = Tracker(tmp_path, "run", AWAY)
    first = away.start("demo", "alone", {f"p{n}": n for n in range(250)}, {f"dvc/{n}": "x" for n in range(150)})
    for epoch in (1, 2):
        away.epoch(record(epoch))
    away.end()
    assert away.run is None
    assert f"4 records wait in {away.journal.path}" in caplog.text
    with pytest.raises(ConfigError, match=r"MLflow cannot be used at http://127.0.0.1:1 .*run `dvc repro register` again"):
        away.settle()
    tracker = Tracker(tmp_path, "run", f"sqlite:///{database}")
    run = MlflowClient(tracker.uri).get_run(tracker.settle())
    assert points(tracker.uri, tracker.run) == expected(1, 2)
    assert (run.info.run_name, run.info.status) == ("alone", "FINISHED")
    assert run.info.start_time == first["time"]
    assert run.info.end_time == tracker.journal.entries()[-1]["time"], "when the training ended, not when that was told"
    assert len(run.data.params) == 250
    assert run.data.tags["dvc/149"] == "x"


def runs(uri):
    client = MlflowClient(uri)
    return [run.info.run_id for run in client.search_runs([client.get_experiment_by_name("aupipe-demo").experiment_id])]


def test_what_was_sent_but_not_noted_is_sent_again_and_there_once(tracker, monkeypatch):
    """A process is killed after each of its entries has arrived and before it could note that."""
    run, known = tracker.run, runs(tracker.uri)
    for told in (lambda: tracker.epoch(record(1)), lambda: tracker.epoch(record(2)), lambda: tracker.end()):
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "note", lambda *_: (_ for _ in ()).throw(OSError("killed")))
            told()
            assert tracker.journal.waiting() > 0
        tracker.flush()
    (tracker.journal.directory / "sent.json").unlink()  # it had not even noted the run
    again = moved(tracker, tracker.uri)
    again.flush()
    assert again.run == run
    assert points(tracker.uri, run) == expected(1, 2)
    assert runs(tracker.uri) == known


def test_second_run_of_a_server_that_was_slow_goes_at_the_end(tracker):
    first = tracker.journal.entries()[0]
    client = MlflowClient(tracker.uri)
    experiment = client.get_run(tracker.run).info.experiment_id
    late = client.create_run(experiment, tags={tracking.RUN_TAG: first["key"]}).info.run_id
    assert late in runs(tracker.uri)
    tracker.epoch(record(1))
    tracker.end()
    assert late not in runs(tracker.uri)
    assert tracker.run in runs(tracker.uri)


def test_removed_database_is_made_anew_with_all_that_was_logged(tracker, tables, database):
    tracker.epoch(record(1))
    old = tracker.run
    database.unlink()
    shutil.copy(tables, database)  # as whoever finds none makes one
    tracker.epoch(record(2))
    assert tracker.run != old
    database.unlink()  # and one that nobody has made yet
    tracker.epoch(record(3))
    tracker.end()
    with sqlite3.connect(database) as connection:
        query = "SELECT step, value, timestamp FROM metrics WHERE key = 'val.f1' AND run_uuid = ? ORDER BY timestamp"
        assert connection.execute(query, [tracker.run]).fetchall() == expected(1, 2, 3)


def test_run_that_somebody_deleted_is_made_anew(tracker):
    tracker.epoch(record(1))
    old = tracker.run
    MlflowClient(tracker.uri).delete_run(old)
    tracker.epoch(record(2))
    assert tracker.run != old
    assert points(tracker.uri, tracker.run) == expected(1, 2)


def test_locked_database_is_not_waited_for(tracker, database):
    tracker.delivery.patience = 0.1
    lock = sqlite3.connect(database, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    for epoch in (1, 2, 3):
        tracker.epoch(record(epoch))
    assert tracker.journal.waiting() == 3
    lock.execute("ROLLBACK")
    lock.close()
    tracker.end()
    assert points(tracker.uri, tracker.run) == expected(1, 2, 3)


def test_entry_that_mlflow_never_takes_does_not_keep_the_others_back(tracker, caplog):
    tracker.epoch(record(1) | {"x" * 300: 1.0})
    tracker.epoch(record(2))
    assert points(tracker.uri, tracker.run) == expected(2)
    assert "MLflow takes no entry like" in caplog.text
    assert tracker.journal.waiting() == 0


def test_a_worker_of_another_process_goes_on_with_the_same_journal(tracker):
    copy = pickle.loads(pickle.dumps(tracker.epoch)).__self__
    copy.epoch(record(1))
    assert copy.run == tracker.run
    assert copy.uri == tracker.uri
    assert points(tracker.uri, tracker.run) == expected(1)


class Answer(BaseHTTPRequestHandler):
    """A server that gives to every request the same answer, or none."""

    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked += 1
        if self.server.status is None:
            self.server.over.wait(60)
            return
        self.send_response(self.server.status)
        self.send_header("Retry-After", "3600")
        self.end_headers()
        self.wfile.write(self.server.body)

    do_POST = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture(name="server")
def serve():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.asked, server.over, server.body = 0, threading.Event(), b"<html>"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.uri = f"http://somebody:secret@127.0.0.1:{server.server_port}"
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, None])
def test_broken_or_silent_server_is_waited_for(server, status, tmp_path, monkeypatch, caplog):
    server.status = status
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    tracker = Tracker(tmp_path, "run", server.uri)
    tracker.start("demo", "run", {}, {})
    assert server.asked == 1, "asked once, not for minutes"
    assert (tracker.run, tracker.journal.waiting()) == (None, 1)
    assert "does not answer; going on" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("status", "body"), [(401, b"who?"), (403, b'{"error_code": "PERMISSION_DENIED"}'), (404, b"<html>"), (200, b"<html>")]
)
def test_server_that_refuses_us_or_is_none_of_mlflow_is_an_error_at_the_start(server, status, body, tmp_path, caplog):
    server.status, server.body = status, body
    with pytest.raises(ConfigError, match=r"MLflow cannot be used at http://\*\*\*@127.*MLFLOW_TRACKING_URI") as caught:
        Tracker(tmp_path, "run", server.uri).start("demo", "run", {}, {})
    assert "secret" not in str(caught.value) + caplog.text
    assert "\n" not in str(caught.value)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    "uri", ["htpp://127.0.0.1", "http:/127.0.0.1", "mlruns", "no://db", "sqlite:////proc/none/mlflow.db"]
)
def test_uri_that_names_no_server_is_an_error_at_the_start(uri, tmp_path):
    with pytest.raises(ConfigError, match=r"MLflow cannot be used at .*correct MLFLOW_TRACKING_URI"):
        Tracker(tmp_path, "run", uri).start("demo", "run", {}, {})


def test_refusal_in_the_middle_of_a_training_stops_nothing(server, tracker, caplog):
    server.status = 401
    later = moved(tracker, server.uri)
    later.epoch(record(1))
    later.end()
    assert len([r for r in caplog.records if "going on" in r.getMessage()]) == 1
    moved(tracker, tracker.uri).flush()
    assert points(tracker.uri, tracker.run) == expected(1)


def test_registration_that_the_server_does_not_take_is_one_sentence(server, tmp_path, monkeypatch):
    checkpoint = save_random_model(tmp_path / "checkpoint", landmarker={"name": "blazemesh", "fingerprint": "0"})
    server.status = 500
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(
        ConfigError, match=r"^small was not registered at http://\*\*\*@127.*run `dvc repro register` again$"
    ):
        tracking.register(checkpoint, "0" * 32, "small", {}, alias=None)


def test_deleted_experiment_is_one_sentence(tracker, tmp_path):
    client = MlflowClient(tracker.uri)
    client.delete_experiment(client.get_experiment_by_name("aupipe-demo").experiment_id)
    with pytest.raises(ConfigError, match=r"experiment aupipe-demo is deleted.*mlflow experiments restore -x 1"):
        Tracker(tmp_path, "other", tracker.uri).start("demo", "run", {}, {})


def test_environment_wins_over_our_short_waits_and_is_left_as_it_was(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    with tracking._short_waits():
        assert tracking.os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
        assert tracking.os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"
    assert tracking.os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in tracking.os.environ
