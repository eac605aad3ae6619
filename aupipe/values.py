"""Plain values, as YAML and JSON hold them → dataclasses, every key and type checked; and back."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args, get_origin

from aupipe.schema import ConfigError


def build(cls: Any, values: Any, where: str) -> Any:
    """Make the dataclass `cls` of plain values, checking every key and type. `where` names the place in messages."""
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected a mapping, got {values!r}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key '{key}'{nearest(str(key), fields)}")
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{where}: the key '{name}' is missing")
    hints = typing.get_type_hints(cls)
    try:
        return cls(**{key: _convert(hints[key], value, f"{where}: {key}") for key, value in values.items()})
    except ConfigError as error:
        known_place = str(error).startswith(where)
        raise ConfigError(str(error) if known_place else f"{where}: {error}") from None


def _convert_key(hint: Any, key: Any, where: str) -> Any:
    if hint is not int:
        return key
    # A whole number that was the key of a mapping comes back from JSON as text.
    return _convert(hint, int(key) if isinstance(key, str) and key.isdecimal() else key, where)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        wanted = [a for a in args if a is not type(None)]
        matching = [a for a in wanted if (get_origin(a) is tuple) == isinstance(value, list)] or wanted
        return _convert(matching[0], value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        return tuple(_convert(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected a mapping, got {value!r}")
        keys = {k: _convert_key(args[0], k, where) for k in value}
        return {keys[k]: v if args[1] is Any else _convert(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 takes 1e-3, without a point, for a string
        except ValueError:
            raise ConfigError(f"{where}: expected float, got {value!r}") from None
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ConfigError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value


def nearest(name: str, known: Iterable[str]) -> str:
    """What to add to the error about an unknown name: the known one that it resembles, else all of them."""
    names = [str(k) for k in known]
    close = difflib.get_close_matches(name, names, 1)
    return f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(names)}"


def to_json(value: Any) -> Any:
    """Dataclasses, tuples and paths as plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    return str(value) if isinstance(value, Path) else value
