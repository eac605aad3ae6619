"""Cells of label tables → values: occurrences, intensities, probabilities, FACS strings, and what stands for "not coded"."""

from __future__ import annotations

import math
from dataclasses import dataclass

from aupipe.datasets._delimited import parse_number
from aupipe.datasets._facs_strings import INTENSITY_LETTERS, parse_facs
from aupipe.datasets._presets import INTENSITY, OCCURRENCE, PROBABILITY
from aupipe.facs import AUSet

NULL, UNNAMED = -1, -2  # not coded; absent if the AU belongs to the coded ones, else not coded
UNKNOWN = frozenset({"", "nan", "na", "n/a", "none", "null", "?"})
LEVELS = {"notactive": 0.0, "not active": 0.0, **{k.lower(): v for k, v in INTENSITY_LETTERS.items()}}
_WORDS = {"true": 1.0, "false": 0.0}
_MEANING = {
    OCCURRENCE: "no occurrence (0 or 1)",
    INTENSITY: "no intensity (0 to 5, or A to E)",
    PROBABILITY: "no probability (0 to 1)",
}


@dataclass(frozen=True, slots=True)
class Reading:
    """How cells become labels: the AUs wanted, further codes for "not coded", thresholds from which an AU counts as present,
    the coder whose rows are read (None: all), and whether points of the face are wanted too.
    """

    aus: AUSet
    unknown: frozenset[str] = frozenset()
    threshold: float = 1.0
    probability_threshold: float = 0.5
    coder: str | None = None
    landmarks: bool = False

    def is_unknown(self, cell: str) -> bool:
        return cell.lower() in UNKNOWN | self.unknown or str(parse_number(cell)) in self.unknown


class Codes(dict[str, float]):
    """Cell → value, NaN where unknown. Each text is parsed once, however many rows hold it; a wrong one is a KeyError."""

    def __init__(self, measure: str, reading: Reading) -> None:
        self._measure, self._reading = measure, reading
        self.meaning = _MEANING[measure]

    def parse(self, cell: str) -> float | None:
        return math.nan if self._reading.is_unknown(cell) else parse_cell(cell, self._measure)

    def __missing__(self, cell: str) -> float:
        value = self.parse(cell)
        if value is None:
            raise KeyError(cell)
        if len(self) < 100_000:
            self[cell] = value
        return value


class FacsCodes(dict[str, tuple[float, ...]]):
    """FACS string → occurrences and intensities of the wanted AUs, one after the other."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def __missing__(self, cell: str) -> tuple[float, ...]:
        aus, nan = self._reading.aus, math.nan
        if cell.lower() != "null" and self._reading.is_unknown(cell):
            values = (nan,) * (2 * len(aus))
        else:
            try:
                code = parse_facs(cell)
            except ValueError:
                raise KeyError(cell) from None
            rest = UNNAMED if code.complete else nan
            occurrence = (1.0 if au in code.present else nan if au in code.uncertain else rest for au in aus)
            values = (*occurrence, *(code.present.get(au, nan) for au in aus))
        self[cell] = values
        return values


def parse_cell(cell: str, measure: str) -> float | None:
    """The value of a cell in a measure, or None for one that is out of its range or no value."""
    lower = cell.lower()
    named = _WORDS.get(lower) if measure == OCCURRENCE else LEVELS.get(lower) if measure == INTENSITY else None
    number = parse_number(cell) if named is None else named
    if number is None or not 0 <= number <= (5 if measure == INTENSITY else 1):
        return None
    return None if measure == OCCURRENCE and not number.is_integer() else number
