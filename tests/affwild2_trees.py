"""Trees in Aff-Wild2's layout as tests make them."""

import pytest
from raw_trees import add_images, read

HEADER = "AU1,AU2,AU4,AU6,AU7,AU10,AU12,AU15,AU23,AU24,AU25,AU26"
TREE = "6th ABAW Annotations/AU_Detection_Challenge"
ROWS = 6
UNCODED = 3  # the row that is −1 throughout


def row(n, columns=12):
    """Row n: AU number k of the header is on in every (k + 2)-nd row."""
    return [-1 if n == UNCODED else int(n % (k + 2) == 0) for k in range(columns)]


def expected(k, rows=ROWS):
    return [None if n == UNCODED else row(n)[k] for n in range(1, rows + 1)]


def add_labels(raw, video="video1", side="Train_Set", *, tree=TREE, rows=ROWS, header=HEADER, columns=12):
    path = raw / tree / side / f"{video}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [header, *(",".join(map(str, row(n, columns))) for n in range(1, rows + 1))]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def add_crops(raw, video="video1", numbers=range(1, ROWS + 1), root="cropped_aligned"):
    add_images(raw / root / video, [f"{n:05d}.jpg" for n in numbers])


@pytest.fixture(name="raw")
def make_raw(tmp_path):
    """video1: six rows, the third not coded, and six crops."""
    root = tmp_path / "affwild2"
    add_labels(root)
    add_crops(root)
    return root


def manifest(raw, **options):
    return read("affwild2", raw, **options)


def of(table, session):
    return table.filter([found == session for found in table["session"].to_pylist()])


def lines(text, *changes):
    found = text.split("\n")
    for number, line in changes:
        found[number - 1 : number] = [] if line is None else line if isinstance(line, list) else [line]
    return "\n".join(found)
