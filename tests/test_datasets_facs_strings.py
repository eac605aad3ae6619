"""datasets/generic: FACS strings."""

import re

import pytest
from own_recordings import (
    make_clip,  # noqa: F401 – a fixture
    make_raw,  # noqa: F401 – a fixture
    read,
    values,
    write,
)

from aupipe.schema import DataError


@pytest.mark.parametrize(
    ("text", "au1", "au4", "au12"),
    [
        ("1+12", (1, None), (0, 0), (1, None)),
        ("1, L12C", (1, None), (0, 0), (1, 3)),
        ("AU1 AU12e", (1, None), (0, 0), (1, 5)),
        ("12AL+12BR", (0, 0), (0, 0), (1, 2)),
        ("1+12?", (1, None), (0, 0), (None, None)),
        ("1+?", (1, None), (None, None), (None, None)),
        ("04D;T23", (0, 0), (1, 4), (0, 0)),
        ("null", (0, 0), (0, 0), (0, 0)),
        ("0", (0, 0), (0, 0), (0, 0)),
        ("", (None, None), (None, None), (None, None)),
        ("?", (None, None), (None, None), (None, None)),
        ("61+1", (1, None), (0, 0), (0, 0)),
        ("1+72", (1, None), (0, 0), (None, None)),
        ("12+72", (0, 0), (0, 0), (1, None)),
        ("73", (None, None), (None, None), (None, None)),
        ("99x", None, None, None),
        ("1++x", None, None, None),
        ("112", None, None, None),
        ("12F", None, None, None),
        ("0+12", None, None, None),
        ("smile", None, None, None),
    ],
)
def test_facs_strings(raw, text, au1, au4, au12):
    write(raw / "labels.csv", f'media_id,frame,facs\na,2,"{text}"\na,3,12A\n')
    if au1 is None:
        with pytest.raises(DataError, match=rf"labels\.csv, line 2: {re.escape(repr(text))} is no FACS code"):
            read(raw, preset="facs_strings", coded_aus=[1, 4, 12])
        return
    row = read(raw, preset="facs_strings", coded_aus=[1, 4, 12], strict=True).slice(2, 1).to_pylist()[0]
    assert [(row[f"AU{n}_c"], row[f"AU{n}_r"]) for n in ("01", "04", "12")] == [au1, au4, au12]
    row = read(raw, preset="facs_strings").slice(2, 1).to_pylist()[0]
    assert [row[f"AU{n}_c"] for n in ("01", "04", "12")] == [1 if c == 1 else None for c, _ in (au1, au4, au12)]


def test_list_of_images_and_facs_strings(tmp_path):
    write(tmp_path / "media.csv", "media_id,path,subject_id\n1,x/0001.jpg,P1\n2,x/0002.jpg,P2\n")
    for n in (1, 2):
        write(tmp_path / f"x/000{n}.jpg", b"")
    write(tmp_path / "label.txt", "0001.jpg 1+2+L4B\n0002.jpg null\n")
    table = read(tmp_path, preset="facs_strings", labels="label.txt", coded_aus=[1, 4, 12], strict=True)
    assert values(table, "AU04_r") == [2, 0]
    assert values(table, "AU12_c") == [0, 0]
    write(tmp_path / "label.txt", "0001.jpg happy\n")
    with pytest.raises(DataError, match=r"label\.txt, line 1: there is no column facs"):
        read(tmp_path, preset="facs_strings", labels="label.txt")
