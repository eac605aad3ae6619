"""Corpora and builds of shards as tests make them."""

import cv2
import numpy as np
import pytest
from conftest import StubLandmarker

from aupipe import faces
from aupipe.config import Corpus
from aupipe.datasets import build_manifest, get_dataset, list_files
from aupipe.shards import build

CORPUS = Corpus(layout="bp4d", aus=(1, 6, 12), align=("face112",), max_bad_fraction=0.5)
# Frames of F001/T1: 4 is not in the corpus at all; what the others are made of decides what becomes of them.
KINDS = {1: "face", 2: "black", 3: "face", 5: "face", 6: "empty", 7: "white", 8: "absent", 9: "face"}


@pytest.fixture(name="stub")
def make_stub(monkeypatch):
    stub = StubLandmarker()
    monkeypatch.setattr(faces, "load_landmarker", lambda name: stub)
    return stub


@pytest.fixture(name="raw")
def make_raw(tmp_path):
    """A corpus in BP4D's layout: F001/T1 with the frames of KINDS, and M001/T1 and M002/T3 with five good frames each."""
    root = tmp_path / "bp4d"
    good = dict.fromkeys(range(5), "face")
    for subject, task, kinds in (("F001", "T1", KINDS), ("M001", "T1", good), ("M002", "T3", good)):
        write_session(root, subject, task, kinds)
    return root


def write_session(root, subject, task, kinds):
    folder = root / "Sequences" / subject / task
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(subject + task))
    for number, kind in kinds.items():
        level = {"black": 0, "white": 255}.get(kind)
        image = rng.integers(0, 256, (64, 64, 3), np.uint8) if level is None else np.full((64, 64, 3), level, np.uint8)
        if kind != "absent":
            (folder / f"{number:04d}.jpg").write_bytes(b"" if kind == "empty" else cv2.imencode(".jpg", image)[1].tobytes())
    labels = root / "AUCoding" / "AU_OCC" / f"{subject}_{task}.csv"
    labels.parent.mkdir(parents=True, exist_ok=True)
    # Columns AU 1, 6 and 12; frame 5 has no code for AU 6, frame 9 none at all.
    codes = {5: "1,9,0", 9: "9,9,9"}
    rows = [f"{n},{codes.get(n, f'{n % 2},1,0')}" for n in kinds]
    labels.write_text("\n".join(["0,1,6,12", *rows]) + "\n")


def inputs(raw):
    return build_manifest(get_dataset("bp4d", CORPUS.au_set), raw), list_files(raw)


class Counting:
    """A `map` in this process that notes which sessions were built, and dies after `limit` of them."""

    def __init__(self, limit=99):
        self.built, self.limit = [], limit

    def __call__(self, function, tasks):
        for task in tasks:
            if len(self.built) == self.limit:
                raise KeyboardInterrupt
            self.built.append("/".join(task.target.parts[-2:]))
            yield function(task)


def run(raw, out, corpus=CORPUS, manifest=None, limit=99):
    """Build, and return the sessions that were built anew."""
    table, inventory = inputs(raw)
    counting = Counting(limit)
    build(table if manifest is None else manifest, inventory, raw, out, corpus, map=counting)
    return counting.built


ALL = ["F001/T1", "M001/T1", "M002/T3"]
