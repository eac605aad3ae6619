"""Damage as real copies of the corpora have it, done on purpose and written down: what a reader makes of it can be checked.

Each kind is done to one recording and each recording suffers at most one, drawn by the seed. The numbers are those of the
project's list of defects. A subject-id collision (7) is inherent: F001 and M001 are two people.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aupipe.synthetic.recording import Damage, Recording, Written

_ALL, _FRAMES = ("bp4d", "disfa", "affwild2"), ("bp4d", "affwild2")
_BOM = b"\xef\xbb\xbf"


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


def _images(written: Written) -> list[Path]:
    assert written.folder is not None
    return sorted(written.folder.iterdir())


def _pick_labelled(written: Written, rng: np.random.Generator) -> Path:
    """An image of a frame that has a label row, not the first or last of them if there are more."""
    labelled = [path for path in _images(written) if int(path.stem) in written.numbers]
    inner = labelled[1:-1] or labelled
    return inner[int(rng.integers(len(inner)))]


def _rewrite(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _truncate_video(written: Written, rng: np.random.Generator) -> tuple[Path, str]:
    assert written.video is not None
    data = written.video.read_bytes()
    kept = int(len(data) * rng.uniform(0.5, 0.8))
    written.video.write_bytes(data[:kept])
    return written.video, f"{kept} of {len(data)} bytes"


def _lose_image(written: Written, rng: np.random.Generator) -> tuple[Path, str]:
    path = _pick_labelled(written, rng)
    path.unlink()
    return path, f"frame {int(path.stem)} is labelled and has no image"


def _empty_image(written: Written, rng: np.random.Generator) -> tuple[Path, str]:
    path = _pick_labelled(written, rng)
    path.write_bytes(b"")
    return path, f"frame {int(path.stem)} has 0 bytes"


def _cut_image(written: Written, rng: np.random.Generator) -> tuple[Path, str]:
    path = _pick_labelled(written, rng)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path, f"frame {int(path.stem)} has {len(data) // 2} of {len(data)} bytes"


def _lengthen(written: Written, rows: int) -> tuple[Path, str]:
    """Label rows beyond the last frame, like the last one. Where rows are numbered, the numbers go on."""
    for n, table in enumerate(written.tables):
        lines = _lines(table)
        number, comma, rest = lines[-1].partition(",")
        is_numbered = int(number) == written.numbers[-1] and not (written.header and lines[0].startswith("AU"))
        new = [f"{int(number) + k}{comma}{rest}" if is_numbered else lines[-1] for k in range(1, rows + 1)]
        _rewrite(written.tables[n], lines + new)
    return written.tables[0], f"{rows} label rows more than frames, up to frame {written.numbers[-1] + rows}"


def _shorten(written: Written, rng: np.random.Generator) -> tuple[Path, str]:
    rows = max(1, min(3, len(written.numbers) - 1))
    for table in written.tables:
        _rewrite(table, _lines(table)[:-rows])
    return written.tables[0], f"{rows} label rows fewer than frames, the last of frame {written.numbers[-1] - rows}"


def _mark_order(written: Written, rng: np.random.Generator) -> tuple[Path, str]:
    for table in written.tables:
        table.write_bytes(_BOM + table.read_bytes().replace(b"\n", b"\r\n"))
    return written.tables[0], f"byte-order mark and CRLF in {len(written.tables)} tables"


def _trail(written: Written, ending: str, name: str) -> tuple[Path, str]:
    table = written.tables[0]
    _rewrite(table, [line + ending for line in _lines(table)])
    return table, f"{name} on every line"


def _add_blank(written: Written, rng: np.random.Generator) -> tuple[Path, str]:
    table = written.tables[0]
    table.write_text(table.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    return table, "a blank last line"


def _forget_intensity(written: Written, rng: np.random.Generator) -> tuple[Path, str]:
    table = written.tables[1:][int(rng.integers(len(written.tables) - 1))]
    lines = _lines(table)
    row = int(rng.integers(len(lines)))
    frame, _, before = lines[row].partition(",")
    lines[row] = f"{frame},9"
    _rewrite(table, lines)
    return table, f"frame {frame}: 9 instead of {before}"


def _pad_otherwise(written: Written, rng: np.random.Generator) -> tuple[Path, str]:
    images = _images(written)
    for image in images:
        image.rename(image.with_name(f"{int(image.stem)}.jpg"))
    return images[0].parent, "frame numbers in file names are not padded"


def _lose_table(written: Written, rng: np.random.Generator) -> tuple[Path, str]:
    table = written.tables[1:][int(rng.integers(len(written.tables) - 1))]
    table.unlink()
    return table, "the file of one AU is missing"


def _litter(written: Written, rng: np.random.Generator) -> tuple[Path, str]:
    media = written.folder or written.video
    assert media is not None
    shadow = written.raw / "__MACOSX" / media.relative_to(written.raw)
    names = [*(f".{ending}" for ending in ("DS_Store", f"_{media.name}")), "Thumbs.db"]
    if written.folder is not None:
        litter = [written.folder / name for name in (*names, f"._{_images(written)[0].name}")]
    else:  # beside the files of one AU each: a subject's own folder
        litter = [written.tables[0].with_name(name) for name in (*names, f"._{written.tables[0].name}")]
    litter.append(shadow.parent / f"._{media.name}")
    for path in litter:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\0\5\x16\7litter")
    written.owned += [path for path in litter if path.parent != written.folder]
    return litter[0].parent, ", ".join(path.relative_to(written.raw).as_posix() for path in litter)


def _hold_labels(written: Written, rng: np.random.Generator) -> tuple[Path, str]:
    """Every row like the first, but for its frame number."""
    for n, table in enumerate(written.tables):
        lines = _lines(table)
        head, rows = (lines[:1], lines[1:]) if written.header and n == 0 else ([], lines)
        has_number = not (head and head[0].startswith("AU"))
        same = rows[0].partition(",")[2]
        held = [f"{row.partition(',')[0]},{same}" if has_number else rows[0] for row in rows]
        _rewrite(table, head + held)
    return written.tables[0], "all rows are like the first"


def _lose_labels(written: Written, rng: np.random.Generator) -> tuple[Path, str]:
    for table in written.tables:
        table.unlink()
    return written.tables[0], "frames without labels"


def _lose_media(written: Written, rng: np.random.Generator) -> tuple[Path, str]:
    media = written.folder or written.video
    assert media is not None
    if written.folder is not None:
        for image in _images(written):
            image.unlink()
        written.folder.rmdir()
    for path in written.owned:
        if path.suffix == ".avi":
            path.unlink(missing_ok=True)
    return media, "labels without frames"


TABLE: dict[str, Defect] = {
    "truncated video": Defect(1, ("disfa",), _truncate_video),
    "missing image": Defect(2, _FRAMES, _lose_image),
    "labels one longer": Defect(3, _ALL, lambda written, rng: _lengthen(written, 1)),
    "labels much longer": Defect(4, _ALL, lambda written, rng: _lengthen(written, 3 + len(written.numbers) // 10)),
    "labels shorter": Defect(5, _ALL, _shorten),
    "empty image": Defect(6, _FRAMES, _empty_image),
    "truncated image": Defect(6, _FRAMES, _cut_image),
    "byte-order mark": Defect(8, _ALL, _mark_order),
    "trailing spaces": Defect(9, _ALL, lambda written, rng: _trail(written, "  ", "trailing spaces")),
    "trailing comma": Defect(9, _ALL, lambda written, rng: _trail(written, ",", "a trailing comma")),
    "blank last line": Defect(9, _ALL, _add_blank),
    "unknown intensity": Defect(11, ("bp4d",), _forget_intensity),
    "other padding": Defect(14, _FRAMES, _pad_otherwise),
    "missing AU file": Defect(21, ("bp4d", "disfa"), _lose_table),
    "litter": Defect(23, _ALL, _litter),
    "constant labels": Defect(27, _ALL, _hold_labels),
    "no labels": Defect(30, _ALL, _lose_labels),
    "no media": Defect(30, _ALL, _lose_media),
}
