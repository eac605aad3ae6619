"""Several corpora as one: a folder, or a link to one, for each corpus, each read by the reader of its own layout.

    bp4d/ …, disfa/ …       named as in the option `members`, which says of each what its layout is

A subject is called corpus:subject, so that F001 of one corpus is not F001 of another. A frame has the labels that its own
corpus codes, and null for all other AUs. The column `part` is the corpus: with `folds: {leave_one_out: true}` each corpus is
tested on by a model of the others. Whoever is in DISFA and in DISFA+ is one group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from aupipe.datasets import Layout, Partition, Session, get_dataset, note
from aupipe.facs import AU_SETS, AUSet
from aupipe.schema import ConfigError, DataError, manifest_schema

# Layouts that show the same people under the same names, whatever the corpus is called.
_PEOPLE = {"disfa": "disfa", "disfaplus": "disfa"}


class Dataset:
    """The layout of a folder of corpora.

    members: name of a corpus and of its folder → its layout, or a mapping of its layout and that layout's options, such as
    {layout: disfa, threshold: 1}; `people` in it names those who may be in several corpora under the same names.
    """

    published: Partition | None = None
    landmark_scheme: str | None = None

    def __init__(self, aus: AUSet | None = None, *, members: Mapping[str, str | Mapping[str, Any]] | None = None) -> None:
        if not isinstance(members, Mapping) or len(members) < 2:
            raise ConfigError(f"several: the option members names two corpora or more and their layouts, not {members!r}")
        self.aus = aus or AU_SETS["synthetic"]
        self._members: dict[str, Layout] = {}
        self._people: dict[str, str] = {}
        for name, value in members.items():
            options = dict(value) if isinstance(value, Mapping) else {"layout": value}
            layout = options.pop("layout", None)
            if layout == "several" or not isinstance(layout, str) or not _is_name(name):
                raise ConfigError(f"several: the member {name!r} needs a name without / and : and a layout, not {value!r}")
            self._people[name] = str(options.pop("people", _PEOPLE.get(layout, name)))
            self._members[name] = get_dataset(layout, self.aus, options)

    def sessions(self, raw: Path, *, strict: bool = False) -> list[Session]:
        """Every recording of every corpus. Raises DataError for a corpus whose folder is not there."""
        found = []
        for name, dataset in self._members.items():
            if not (raw / name).is_dir():
                raise DataError(f"there is no folder {raw / name}; link it to the corpus: ln -s PLACE {raw / name}")
            sessions = dataset.sessions(raw / name, strict=strict)
            if not sessions:
                note(f"{raw / name} holds no session of its layout", strict=strict)
            found += [_outer(session, name, self._people[name]) for session in sessions]
        return found

    def read_session(self, raw: Path, session: Session, *, strict: bool = False) -> pa.Table:
        """The rows of one session as its own reader gives them, under the names that it has here. Raises DataError."""
        name, _, subject = session.subject.partition(":")
        inner = replace(session, subject=subject, labels=_inner(session.labels), frames=_inner(session.frames))
        table = self._members[name].read_session(raw / name, inner, strict=strict)
        changed: dict[str, Any] = {
            column: pa.repeat(pa.scalar(getattr(session, column), pa.string()), table.num_rows)
            for column in ("subject", "group", "part", "split")
        }
        changed["source"] = pc.binary_join_element_wise(name, table["source"], "/")
        return pa.table({c: changed.get(c, table[c]) for c in table.column_names}, schema=manifest_schema(self.aus))


def _outer(session: Session, name: str, people: str) -> Session:
    """A session of a corpus as one of the folder of corpora."""
    return replace(
        session,
        subject=f"{name}:{session.subject}",
        labels=session.labels and f"{name}/{session.labels}",
        frames=session.frames and f"{name}/{session.frames}",
        group=f"{people}:{session.group or session.subject}",
        part=name,
        split=None,
    )


def _inner(path: str | None) -> str | None:
    return path and path.partition("/")[2]


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and not {"/", ":"} & set(name)
