"""FACS codes as coders write them: `1+2+L4B`, `6+12C`, `4+L10+?`, `null`.

A token is `[LRTB]?NN[A-E]?[LRBU]?`, with `AU` allowed before the number and `?` on either side of it. Letters A to E are the
intensities 1 to 5 (FACS 2002). L, R, T, B and U say on which part of the face; the manifest has no sides, so they are read
and merged. Tokens are joined by `+`, comma, semicolon or space.
"""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass

from aupipe.facs import ACTION_UNITS

INTENSITY_LETTERS = {"A": 1.0, "B": 2.0, "C": 3.0, "D": 4.0, "E": 5.0}
SIDES = frozenset({"", "l", "r", "t", "b", "u", "left", "right", "top", "bottom", "both", "bilateral", "unilateral"})

_NEUTRAL = frozenset({"0", "00", "au0", "au00", "null", "neutral"})
_TOKEN = re.compile(
    r"(?P<before>\?)?(?:AU)?[LRTB]?(?:AU)?(?P<au>\d{1,2})(?P<level>[A-E])?[LRBU]?(?P<after>\?)?", re.IGNORECASE | re.ASCII
)
_JOINT = re.compile(r"[+,;\s]+")
# Codes that say what could not be seen (FACS 2002): what is out of sight there is not absent.
_UNSEEN = {70: {"brow"}, 71: {"eyes"}, 72: {"nose", "mouth", "chin"}, 73: None, 74: None}


@dataclass(frozen=True, slots=True)
class FacsCode:
    """What one string says.

    present: AU → intensity, NaN where none is written. uncertain: AUs of which the coder was not sure. complete: whether AUs
    that are not named were seen to be absent, if they were coded at all.
    """

    present: dict[int, float]
    uncertain: frozenset[int]
    complete: bool


@functools.lru_cache(maxsize=4096)  # coders repeat themselves: a long file holds a few hundred different strings
def parse_facs(text: str) -> FacsCode:
    """One FACS string. Raises ValueError, with the token that is none, for anything else; an empty string is none either."""
    tokens = [token for token in _JOINT.split(text.strip()) if token]
    if len(tokens) == 1 and tokens[0].lower() in _NEUTRAL:
        return FacsCode({}, frozenset(), True)
    if not tokens:
        raise ValueError("an empty string")
    present: dict[int, float] = {}
    uncertain: set[int] = set()
    complete = True
    for token in tokens:
        if token == "?":
            complete = False
            continue
        match = _TOKEN.fullmatch(token)
        if not match or int(match["au"]) == 0:
            raise ValueError(f"{token[:20]!r}")
        au = int(match["au"])
        if match["before"] or match["after"]:
            uncertain.add(au)
        elif au in _UNSEEN:
            uncertain |= _hidden(_UNSEEN[au])
        else:
            level = INTENSITY_LETTERS.get((match["level"] or "").upper(), math.nan)
            present[au] = _larger(present.get(au, math.nan), level)
    return FacsCode(present, frozenset(uncertain - set(present)), complete)


def parse_unit(text: str) -> tuple[int, float] | None:
    """A string that is one AU and nothing else, as the name of a tier is: its number and its intensity or NaN; else None."""
    match = _TOKEN.fullmatch(text.strip().replace(" ", "").replace("_", ""))
    if not match or match["before"] or match["after"] or int(match["au"]) == 0:
        return None
    return int(match["au"]), INTENSITY_LETTERS.get((match["level"] or "").upper(), math.nan)


def _hidden(regions: set[str] | None) -> set[int]:
    return {number for number, unit in ACTION_UNITS.items() if regions is None or unit.region in regions}


def _larger(a: float, b: float) -> float:
    """The larger of two intensities; a scored one is larger than none."""
    return b if math.isnan(a) or b > a else a
