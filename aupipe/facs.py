"""Action Units: numbers, names, muscles and regions (FACS 2002), and the ordered sets that the corpora code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from aupipe.schema import ConfigError


@dataclass(frozen=True, slots=True)
class ActionUnit:
    """One facial movement: its FACS number, name, the muscles that make it, and where it shows."""

    number: int
    name: str
    muscles: str
    region: str  # brow, eyes, cheek, nose, mouth or chin


_TABLE = (
    ActionUnit(1, "inner brow raiser", "frontalis, pars medialis", "brow"),
    ActionUnit(2, "outer brow raiser", "frontalis, pars lateralis", "brow"),
    ActionUnit(4, "brow lowerer", "corrugator supercilii, depressor supercilii, procerus", "brow"),
    ActionUnit(5, "upper lid raiser", "levator palpebrae superioris", "eyes"),
    ActionUnit(6, "cheek raiser", "orbicularis oculi, pars orbitalis", "cheek"),
    ActionUnit(7, "lid tightener", "orbicularis oculi, pars palpebralis", "eyes"),
    ActionUnit(9, "nose wrinkler", "levator labii superioris alaeque nasi", "nose"),
    ActionUnit(10, "upper lip raiser", "levator labii superioris", "mouth"),
    ActionUnit(12, "lip corner puller", "zygomaticus major", "mouth"),
    ActionUnit(14, "dimpler", "buccinator", "mouth"),
    ActionUnit(15, "lip corner depressor", "depressor anguli oris", "mouth"),
    ActionUnit(16, "lower lip depressor", "depressor labii inferioris", "mouth"),
    ActionUnit(17, "chin raiser", "mentalis", "chin"),
    ActionUnit(18, "lip pucker", "incisivii labii superioris and inferioris", "mouth"),
    ActionUnit(20, "lip stretcher", "risorius", "mouth"),
    ActionUnit(23, "lip tightener", "orbicularis oris", "mouth"),
    ActionUnit(24, "lip pressor", "orbicularis oris", "mouth"),
    ActionUnit(25, "lips part", "depressor labii, or relaxed mentalis or orbicularis oris", "mouth"),
    ActionUnit(26, "jaw drop", "masseter, relaxed", "chin"),
    ActionUnit(28, "lip suck", "orbicularis oris", "mouth"),
    ActionUnit(43, "eyes closed", "relaxation of levator palpebrae superioris", "eyes"),
    ActionUnit(45, "blink", "relaxation of levator palpebrae and contraction of orbicularis oculi", "eyes"),
)
ACTION_UNITS: dict[int, ActionUnit] = {unit.number: unit for unit in _TABLE}


@dataclass(frozen=True, slots=True)
class AUSet:
    """An ordered set of AU numbers: the meaning of the M axis of every tensor and of the AU columns of a table.

    Raises ConfigError for an unknown, repeated or absent number.
    """

    numbers: tuple[int, ...]

    def __post_init__(self) -> None:
        unknown = [n for n in self.numbers if n not in ACTION_UNITS]
        if unknown:
            raise ConfigError(f"unknown AU {unknown[0]}; known are {', '.join(map(str, ACTION_UNITS))}")
        if not self.numbers or len(set(self.numbers)) != len(self.numbers):
            raise ConfigError(f"an AU set needs distinct numbers, at least one; got {list(self.numbers)}")

    @classmethod
    def named(cls, aus: str | Iterable[int]) -> AUSet:
        """`aus`: the name of an entry of AU_SETS, or the numbers themselves."""
        if not isinstance(aus, str):
            return cls(tuple(aus))
        if aus not in AU_SETS:
            raise ConfigError(f"unknown AU set '{aus}'; known are {', '.join(AU_SETS)}, or give a list of numbers")
        return AU_SETS[aus]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"AU{n:02d}" for n in self.numbers)

    @property
    def columns(self) -> tuple[str, ...]:
        """Occurrence columns, 0/1 or null: AU01_c …"""
        return tuple(f"{name}_c" for name in self.names)

    @property
    def intensity_columns(self) -> tuple[str, ...]:
        """Intensity columns, 0–5 or null: AU01_r …"""
        return tuple(f"{name}_r" for name in self.names)

    @property
    def probability_columns(self) -> tuple[str, ...]:
        """Our probabilities, 0–1 or null: AU01_p …"""
        return tuple(f"{name}_p" for name in self.names)

    def index(self, number: int) -> int:
        return self.numbers.index(number)

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)


# The orders in which the corpora's papers print their tables (STRAL §IV-A; ABAW §4.1).
AU_SETS: dict[str, AUSet] = {
    "bp4d": AUSet((1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24)),
    "disfa": AUSet((1, 2, 4, 6, 9, 12, 25, 26)),
    "affwild2": AUSet((1, 2, 4, 6, 7, 10, 12, 15, 23, 24, 25, 26)),
    "synthetic": AUSet((1, 2, 4, 6, 7, 9, 10, 12, 14, 15, 17, 23, 24, 25, 26)),
}
