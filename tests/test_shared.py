"""shared.py: one copy for all, made once, removed by the last, and nobody trips over what a killed process left."""

import multiprocessing
import os
import signal
import stat

import numpy as np
import pytest

from aupipe import shared


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("AUPIPE_SCRATCH", str(tmp_path))
    return tmp_path / f"aupipe-{os.getuid()}"


def fill(value):
    def write(array):
        array[:] = value

    return write


def never(array):
    pytest.fail("it was there already")


def test_the_first_fills_and_the_last_removes(scratch):
    with shared.open_array("a", (3, 4), fill(7)) as one:
        with shared.open_array("a", (3, 4), never) as other:
            np.testing.assert_array_equal(one, other)
            assert other.shape == (3, 4)
            assert not other.flags.writeable
        assert one.tolist() == [[7] * 4] * 3, "still there"
        assert shared.exists("a")
        assert stat.S_IMODE(scratch.stat().st_mode) == 0o700, "faces are nobody else's business"
    assert not shared.exists("a")
    assert not list(scratch.iterdir())


def test_failed_filling_leaves_nothing_and_can_be_tried_again(scratch):
    def fail(array):
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"), shared.open_array("a", (3,), fail):
        pass
    assert not list(scratch.iterdir())
    with shared.open_array("a", (3,), fill(1)) as array:
        assert array.tolist() == [1, 1, 1]


def hold(name, ready):
    with shared.open_array(name, (1000,), fill(5)):
        ready.set()
        signal.pause()


def die_filling(ready):
    def stop(array):
        ready.set()
        signal.pause()

    with shared.open_array("half", (1000,), stop):
        pass


@pytest.mark.parametrize("target", [hold, die_filling])
def test_what_a_killed_process_left_is_used_or_removed(scratch, target):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=target, args=("whole", ready) if target is hold else (ready,))
    process.start()
    assert ready.wait(60)
    with shared.open_array("other", (5,), fill(2)):
        assert len(list(scratch.glob("*.lock"))) == 2, "what is in use stays"
    process.kill()
    process.join(60)
    if target is hold:
        with shared.open_array("whole", (1000,), never) as array:
            assert set(array.tolist()) == {5}
    else:
        with shared.open_array("half", (1000,), fill(3)) as array:
            assert set(array.tolist()) == {3}
        with shared.open_array("other", (5,), fill(2)):
            pass
    assert not list(scratch.iterdir())


def test_left_over_array_goes_when_another_is_made(scratch):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=("whole", ready))
    process.start()
    assert ready.wait(60)
    process.kill()
    process.join(60)
    with shared.open_array("other", (5,), fill(2)):
        assert not list(scratch.glob("whole*"))


def test_no_room_is_an_os_error(scratch, monkeypatch):
    with pytest.raises(OSError, match="have no room in"), shared.open_array("a", (1 << 60,), never):
        pass
    assert not list(scratch.glob("*.array"))


def test_a_folder_of_somebody_else_is_not_used(tmp_path, scratch, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    scratch.symlink_to(elsewhere)
    with pytest.raises(OSError, match="no room"), shared.open_array("a", (3,), never):
        pass


def test_free_memory_heeds_the_container(tmp_path, monkeypatch):
    whole = shared.free_memory()
    assert whole > 0
    numbers = {"MemAvailable:": 9000, "inactive_file": 50}
    files = {"memory.max": 1000, "memory.current": 300}
    monkeypatch.setattr(shared, "_read_number", lambda path, name="", unit=1: numbers.get(name, files.get(path.name)))
    assert shared.free_memory() == 750
    files["memory.max"] = None
    assert shared.free_memory() == 9000
