"""runlog.py: an epoch is an entry once, whatever is killed and told again; the end of a training is its status."""

import threading
import time

import pytest

from aupipe import runlog
from aupipe.runlog import RunLog, Sampler, flatten

RECORD = {
    "epoch": 1,
    "phase": "train",
    "time": 12.5,
    "lr": 0.5,
    "val": {"loss": 1, "f1": None},
    "timings": {"decode": 0.25},
    "wait": 0.125,
}


class Monitor:
    """Measures 1, 2, 3, …"""

    def __init__(self):
        self.values, self.now = [], 0

    def collect_metrics(self):
        self.now += 1
        self.values.append(self.now)

    def aggregate_metrics(self):
        return {"load": sum(self.values) / len(self.values)}

    def clear_metrics(self):
        self.values.clear()


def make_log(directory, key="one", **options):
    """A log whose server has everything at once."""
    return RunLog(directory, key, lambda journal: journal.note("run", len(journal.entries())), "the server", **options)


@pytest.fixture(name="log")
def begun(tmp_path):
    log = make_log(tmp_path)
    log.begin("demo", "small fold1", {"recipe": {"clip": {"frames": 2}}, "seed": 7}, {"git_commit": "abc"})
    return log


def test_a_run_is_begun_once(log, tmp_path):
    (first,) = log.journal.entries()
    assert first["experiment"] == "aupipe-demo"
    assert first["name"] == "small fold1"
    assert first["params"] == {"recipe.clip.frames": "2", "seed": "7"}
    assert first["tags"] == {"git_commit": "abc"}
    again = make_log(tmp_path).begin("demo", "small fold1", {}, {})
    assert again == first
    assert log.journal.entries() == [first]
    assert first["key"] == "one"
    assert make_log(tmp_path, "two").begin("demo", "other", {}, {})["name"] == "other", "another training of this folder"
    assert log.journal.entries() == [first]


def test_every_number_of_an_epoch_is_in_its_entry(log):
    log.epoch(RECORD | {"a name(1)": 3})
    entry = log.journal.entries()[-1]
    assert entry["metrics"] == {"lr": 0.5, "val.loss": 1.0, "timings.decode": 0.25, "wait": 0.125, "a name_1_": 3.0}
    assert (entry["step"], entry["time"]) == (1, 12500)
    assert log.journal.waiting() == 0


def test_an_epoch_is_logged_once_and_one_that_was_not_is_caught_up_with(log):
    log.epoch(RECORD)
    log.epoch(RECORD | {"time": 99.0})  # told again by a worker that had been killed
    history = [RECORD | {"epoch": n} for n in (1, 2, 3)]
    log.catch_up(history)
    log.catch_up(history)
    assert [entry["step"] for entry in log.journal.entries()[1:]] == [1, 2, 3]
    assert log.journal.entries()[1]["time"] == 12500


def test_results_are_logged_again_only_if_they_are_others(log):
    for f1 in (0.5, 0.5, 0.25):
        log.results({"f1": f1, "auc": None, "prior": {"f1": 0.25, "per_au": {"f1": [1, None]}}})
    metrics = [entry["metrics"] for entry in log.journal.entries()[1:]]
    assert metrics == [{"test.f1": 0.5, "test.prior.f1": 0.25}, {"test.f1": 0.25, "test.prior.f1": 0.25}]


def statuses(log):
    return [entry["status"] for entry in log.journal.entries() if entry["kind"] == "status"]


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")]
)
def test_the_end_of_a_training_is_its_status(log, error, status):
    if error is None:
        with log.until_the_end():
            pass
    else:
        with pytest.raises(error), log.until_the_end():
            raise error
    assert statuses(log) == [status]
    log.begin("demo", "small fold1", {}, {})
    log.begin("demo", "small fold1", {}, {})
    assert statuses(log) == [status, "RUNNING"]


def test_a_training_of_elsewhere_is_taken_over_whole_and_one_of_here_left_alone(log, tmp_path):
    log.epoch(RECORD)
    log.end()
    before = log.journal.entries()
    log.adopt(before[0], [RECORD])
    assert log.journal.entries() == before
    other = make_log(tmp_path / "clone")
    other.adopt(before[0], [RECORD])
    told = [{key: value for key, value in entry.items() if key != "time"} for entry in other.journal.entries()]
    assert told[0] == {key: value for key, value in before[0].items() if key != "time"}
    assert [entry["kind"] for entry in told] == ["start", "metrics", "status"]
    assert told[1]["metrics"] == {"lr": 0.5, "val.loss": 1.0, "timings.decode": 0.25, "wait": 0.125}


def test_a_full_disk_stops_no_training(log, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("aupipe.journal.os.fsync", full)
        log.epoch(RECORD)
    assert "No space left" in caplog.text
    log.catch_up([RECORD])
    assert [entry["step"] for entry in log.journal.entries()[1:]] == [1]


def test_use_of_the_machine_is_the_mean_since_the_last_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(runlog, "SAMPLING", 1000.0)
    log = make_log(tmp_path, monitors=lambda: [Monitor()])
    log.begin("demo", "run", {}, {})
    log.watch()
    log._sampler._collect()
    log.epoch(RECORD)
    log.epoch(RECORD | {"epoch": 2})
    loads = [entry["metrics"]["system/load"] for entry in log.journal.entries()[1:]]
    assert loads == [2.5, 4.0], "the first sample is of the time before"


def test_sampler_samples_by_itself_until_it_is_stopped(monkeypatch):
    monkeypatch.setattr(runlog, "SAMPLING", 0.001)
    monitor = Monitor()
    sampler = Sampler([monitor])
    while monitor.now < 10:
        pass
    sampler.stop()
    assert sampler.take()["system/load"] > 1


def test_nested_names_are_joined_by_dots():
    assert flatten({"a": {"b": {"c": 1}, "d": [2]}, "e": None}) == {"a.b.c": 1, "a.d": [2], "e": None}


def test_the_end_waits_for_a_long_delivery_as_long_as_it_goes_on(tmp_path, caplog):
    steps, passed = 5, threading.Semaphore(0)

    def send_slowly(journal):
        for sent in range(journal.position()[1], len(journal.entries())):
            assert passed.acquire(timeout=60)
            journal.note("run", sent + 1)

    log = RunLog(tmp_path, "one", send_slowly, "the server")
    log.begin("demo", "run", {}, {})
    log.catch_up([RECORD | {"epoch": n} for n in range(1, steps)])
    assert isinstance(log.deliver(0.01), TimeoutError), "nothing goes on"
    attempt = log.delivery.attempt

    def pass_one(*args, **options):
        """While the caller waits in vain, another entry arrives."""
        result, left = attempt(0.01, at_once=True, report=False), log.journal.waiting()
        passed.release()
        while log.journal.waiting() == left and left:
            time.sleep(0.001)
        return result

    log.delivery.attempt = pass_one
    assert log.deliver() is None
    assert log.journal.waiting() == 0
