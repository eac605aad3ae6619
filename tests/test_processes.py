"""The map over cores: every result once, errors as they were, a dead process as a sentence."""

from __future__ import annotations

import os

import pytest

from aupipe.processes import map_processes
from aupipe.schema import DataError


def square(number: int) -> int:
    return number * number


def refuse(number: int) -> int:
    if number == 2:
        raise DataError("the second is bad")
    return number


def die(number: int) -> int:
    os._exit(1)


def own_process(number: int) -> int:
    return os.getpid()


def test_every_task_gives_its_result_once() -> None:
    assert sorted(map_processes(square, list(range(7)))) == [n * n for n in range(7)]


def test_a_single_task_needs_no_other_process() -> None:
    assert list(map_processes(own_process, [0])) == [os.getpid()]


def test_an_error_of_a_task_is_raised_as_it_was() -> None:
    with pytest.raises(DataError, match="the second is bad"):
        list(map_processes(refuse, list(range(5))))


def test_a_dead_process_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)  # on one core there is no other process
    with pytest.raises(DataError, match="a worker process died"):
        list(map_processes(die, [1, 2]))
