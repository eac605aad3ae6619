"""Damage as real copies of the corpora have it, done on purpose and written down: what a reader makes of it can be checked.

Each kind is done to one recording and each recording suffers at most one, drawn by the seed. The numbers are those of the
project's list of defects. A subject-id collision (7) is inherent: F001 and M001 are two people.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aupipe.synthetic import damage_media as media
from aupipe.synthetic import damage_tables as tables
from aupipe.synthetic.recording import Damage, Recording, Written

_ALL, _FRAMES, _NUMBERED = ("bp4d", "disfa", "affwild2"), ("bp4d", "affwild2"), ("bp4d", "disfa")


@dataclass(frozen=True, slots=True)
class Defect:
    """A kind of damage: its number in the list, the layouts that can have it, and how it is done."""

    number: int
    layouts: tuple[str, ...]
    damage: Damage


def plan_defects(seed: int, layout: str, recordings: Sequence[Recording]) -> tuple[dict[Recording, str], list[str]]:
    """Which recording suffers which kind, and the kinds for which there are too few recordings."""
    kinds = [name for name, defect in TABLE.items() if layout in defect.layouts]
    order = np.random.default_rng([seed, len(recordings)]).permutation(len(recordings))
    chosen = {recordings[n]: kind for n, kind in zip(order.tolist(), kinds, strict=False)}
    return chosen, kinds[len(chosen) :]


def inject(written: Written, name: str, seed: int, recording: Recording) -> dict[str, Any]:
    """Do the damage to a recording on disk; returns the record of it, whose path is relative to the raw root."""
    rng = np.random.default_rng([seed, recording.subject, recording.session])
    path, detail = TABLE[name].damage(written, rng)
    written.owned = [owned for owned in written.owned if owned.exists()]
    where = path.relative_to(written.raw).as_posix()
    about = {"defect": name, "number": TABLE[name].number, "subject": recording.owner, "session": recording.name}
    return about | {"path": where, "detail": detail}


TABLE: dict[str, Defect] = {
    "truncated video": Defect(1, ("disfa",), media.truncate_video),
    "missing image": Defect(2, _FRAMES, media.lose_image),
    "labels one longer": Defect(3, _ALL, lambda written, rng: tables.lengthen(written, 1)),
    "labels much longer": Defect(4, _ALL, lambda written, rng: tables.lengthen(written, 3 + len(written.numbers) // 10)),
    "labels shorter": Defect(5, _ALL, tables.shorten),
    "empty image": Defect(6, _FRAMES, media.empty_image),
    "truncated image": Defect(6, _FRAMES, media.cut_image),
    "byte-order mark": Defect(8, _ALL, tables.mark_order),
    "trailing spaces": Defect(9, _ALL, lambda written, rng: tables.trail(written, "  ", "trailing spaces")),
    "trailing comma": Defect(9, _ALL, lambda written, rng: tables.trail(written, ",", "a trailing comma")),
    "blank last line": Defect(9, _ALL, tables.add_blank),
    "unknown intensity": Defect(11, ("bp4d",), tables.forget_intensity),
    "other padding": Defect(14, _FRAMES, media.pad_otherwise),
    "missing AU file": Defect(21, ("bp4d", "disfa"), tables.lose_table),
    "litter": Defect(23, _ALL, media.litter),
    "constant labels": Defect(27, _ALL, tables.hold_labels),
    "no labels": Defect(30, _ALL, tables.lose_labels),
    "no media": Defect(30, _ALL, media.lose_media),
    "repeated rows": Defect(12, _NUMBERED, tables.repeat_rows),
    "rows out of order": Defect(12, _NUMBERED, tables.disorder_rows),
    "semicolons": Defect(9, _ALL, lambda written, rng: tables.separate_by(written, ";", "semicolons")),
    "tabs": Defect(9, ("disfa",), lambda written, rng: tables.separate_by(written, "\t", "tabs")),
    "decimal commas": Defect(
        9, ("disfa",), lambda written, rng: tables.separate_by(written, ";", "semicolons and decimal commas", ",0")
    ),
    "UTF-16": Defect(8, _ALL, tables.widen),
    "named columns": Defect(13, ("bp4d",), tables.name_columns),
    "grey image": Defect(19, _FRAMES, media.grey_image),
    "turned image": Defect(18, ("bp4d",), media.turn_image),
    "two roots": Defect(34, _FRAMES, media.copy_to_second_root),
    "labels in a zip": Defect(22, ("disfa",), media.zip_labels),
}
