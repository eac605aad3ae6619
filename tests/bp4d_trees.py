"""Trees in BP4D's layout as tests make them."""

import pytest

from aupipe.datasets import build_manifest, get_dataset

LEGACY_HEADER = ",".join(map(str, range(100)))


def legacy_row(frame, **codes):
    """A row of a legacy file, 9 everywhere but in the AUs given as AU6=1."""
    return ",".join([str(frame), *(str(codes.get(f"AU{n}", 9)) for n in range(1, 100))])


def add_images(raw, session, numbers, digits=4, root="Sequences"):
    folder = raw / root / session
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / f"{number:0{digits}d}.jpg").touch()


def add_labels(raw, name, data):
    path = raw / "AUCoding" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.fixture(name="raw")
def make_raw(tmp_path):
    """F001/T1: images 0–9, labels 3–7; AU06 has intensities and a 9 in frame 5."""
    root = tmp_path / "bp4d"
    add_images(root, "F001/T1", range(10))
    rows = [legacy_row(f, AU1=0, AU6=1 if f != 5 else 9, AU12=f % 2) for f in range(3, 8)]
    add_labels(root, "AU_OCC/F001_T1.csv", "\n".join([LEGACY_HEADER, *rows]) + "\n")
    add_labels(root, "AU_INT/AU06/F001_T1_AU06.csv", "3,0\n4,5\n5,9\n6,2\n7,1\n")
    return root


def manifest(raw, **options):
    return build_manifest(get_dataset("bp4d"), raw, **options)


def tidy(raw):
    return (raw / "AUCoding/AU_OCC/F001_T1.csv").read_text()
