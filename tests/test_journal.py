"""journal.py: nothing of what was appended is lost, and a server that is away or hangs is seen by nobody but the log."""

import json
import logging
import threading

import pytest

from aupipe.journal import Delivery, Journal


@pytest.fixture(name="journal")
def make_journal(tmp_path):
    return Journal(tmp_path / "tracking")


def test_entries_are_read_in_the_order_of_their_writing_by_another_process_too(journal):
    assert journal.entries() == []
    for n in range(3):
        assert journal.append({"n": n, "text": "a\nb ä"})
    assert [entry["n"] for entry in Journal(journal.directory).entries()] == [0, 1, 2]
    assert len(journal.path.read_bytes().split(b"\n")) == 4, "one line each"


def test_an_entry_that_is_not_wanted_is_not_written(journal):
    journal.append({"n": 1})
    before = journal.path.read_bytes()
    assert not journal.append({"n": 1}, unless=lambda entries: {"n": 1} in entries)
    assert journal.path.read_bytes() == before


@pytest.mark.parametrize("torn", [b'{"n": 2', b'{"n": 2}', b"{", b"\0\0\0"])
def test_what_a_killed_writer_left_of_a_line_goes(journal, torn):
    journal.append({"n": 1})
    with journal.path.open("ab") as file:
        file.write(torn)
    assert journal.entries() == [{"n": 1}]
    journal.append({"n": 3})
    assert journal.entries() == [{"n": 1}, {"n": 3}]


def test_a_damaged_line_keeps_its_place(journal):
    for n in range(3):
        journal.append({"n": n})
    journal.path.write_bytes(journal.path.read_bytes().replace(b'{"n": 1}', b'{"n\0 1]'))
    assert journal.entries() == [{"n": 0}, {}, {"n": 2}], "positions count lines"


def test_position_is_the_start_until_it_is_noted_and_where_the_note_is_damaged(journal):
    assert journal.position() == (None, 0)
    journal.append({"n": 0})
    journal.append({"n": 1})
    journal.note("run", 1)
    assert journal.position() == ("run", 1)
    assert journal.waiting() == 1
    for damage in ("", "{}", "[]", '{"target": "run"'):
        (journal.directory / "sent.json").write_text(damage)
        assert journal.position() == (None, 0)


def test_an_entry_is_on_the_disk_before_append_returns(journal, monkeypatch):
    synced = []
    monkeypatch.setattr("aupipe.journal.os.fsync", lambda file: synced.append(journal.path.read_bytes()))
    journal.append({"n": 1})
    assert [json.loads(data) for data in synced] == [{"n": 1}]


class Server:
    """Fails as long as it is told to, and can hang."""

    def __init__(self):
        self.error, self.calls, self.free = None, 0, threading.Event()
        self.free.set()

    def send(self):
        self.calls += 1
        assert self.free.wait(60)
        if self.error:
            raise self.error


def test_one_warning_when_a_server_goes_and_one_line_when_it_is_back(caplog):
    caplog.set_level(logging.INFO)
    server = Server()
    delivery = Delivery(server.send, "the server")
    assert delivery.attempt(60) is None
    server.error = ConnectionError("refused\nat the\tdoor")
    for _ in range(5):
        assert delivery.attempt(60, at_once=True) is server.error
    server.error = None
    assert delivery.attempt(60, at_once=True) is None
    server.error = ValueError()
    assert delivery.attempt(60, at_once=True) is server.error, "whatever it is"
    levels = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in levels] == ["WARNING", "INFO", "WARNING"]
    assert "the server does not answer" in levels[0][1]
    assert "(refused at the door)" in levels[0][1]
    assert server.calls == 8


def test_a_server_that_failed_is_left_alone_for_a_while(monkeypatch):
    server, clock = Server(), [0.0]
    monkeypatch.setattr("aupipe.journal.time.monotonic", lambda: clock[0])
    server.error = ConnectionError("no")
    failing = server.send

    def send():
        clock[0] += 2  # seconds that the failure takes
        failing()

    delivery = Delivery(send, "the server")
    delivery.attempt(60)
    clock[0] += 19
    assert delivery.attempt(60) is server.error
    assert server.calls == 1
    clock[0] += 2
    delivery.attempt(60)
    assert server.calls == 2, "one part in ten of the time is spent on it"


def test_a_server_that_hangs_is_not_waited_for():
    server = Server()
    server.free.clear()
    delivery = Delivery(server.send, "the server")
    assert isinstance(delivery.attempt(0.01), TimeoutError)
    for _ in range(3):
        assert isinstance(delivery.attempt(60), TimeoutError), "returns at once: the first try is still under way"
    assert server.calls == 1
    server.free.set()
    assert delivery.attempt(60, at_once=True) is None
    assert server.calls == 2, "what was appended in the meantime is sent too"
