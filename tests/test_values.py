"""values.py: plain values become dataclasses or one sentence that names the key."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from aupipe.schema import ConfigError
from aupipe.values import build, nearest, to_json


@dataclass(frozen=True)
class Inner:
    size: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    inner: Inner
    rate: float = 0.5
    chosen: str | tuple[int, ...] = "all"
    more: dict[str, Inner] = field(default_factory=dict)
    maybe: int | None = None


def test_values_become_dataclasses_and_come_back():
    values = {"inner": {"size": 3, "names": ["a", "b"]}, "rate": 1, "chosen": [1, 2], "more": {"x": {"size": 1}}}
    outer = build(Outer, values, "file")
    assert outer == Outer(Inner(3, ("a", "b")), 1.0, (1, 2), {"x": Inner(1)})
    assert isinstance(outer.rate, float)
    assert build(Outer, json.loads(json.dumps(to_json(outer))), "file") == outer
    assert to_json({"p": Path("a/b"), 1: (Inner(1),)}) == {"p": "a/b", "1": [{"size": 1, "names": []}]}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([], "expected a mapping"),
        ({}, "the key 'inner' is missing"),
        ({"inner": {"size": 1}, "rat": 1}, "unknown key 'rat'; did you mean 'rate'?"),
        ({"inner": {"size": "1"}}, "inner: size: expected int, got '1'"),
        ({"inner": {"size": True}}, "inner: size: expected int, got True"),
        ({"inner": {"size": 1}, "more": {"x": {"siz": 1}}}, "more.x: unknown key 'siz'"),
        ({"inner": {"size": 1, "names": ["a", 2]}}, r"names\[1\]: expected str"),
        ({"inner": {"size": 1}, "rate": "fast"}, "rate: expected float"),
    ],
)
def test_wrong_values_are_named_with_their_place(values, words):
    with pytest.raises(ConfigError, match=words) as caught:
        build(Outer, values, "file")
    assert str(caught.value).startswith("file: ")


def test_nearest_name_or_all_of_them():
    assert nearest("dista", ["disfa", "bp4d"]) == "; did you mean 'disfa'?"
    assert nearest("xyz", ["disfa", "bp4d"]) == "; known are disfa, bp4d"
