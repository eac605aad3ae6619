"""Inputs that several tests share, all made here: shards whose labels can be seen in the pixels, and trainings on them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from aupipe import schema
from aupipe.facs import AUSet
from aupipe.shards import encode_jpeg

AUS = AUSet((1, 4, 12))
LANDMARKER = {"name": "blazemesh", "fingerprint": "0"}
STATS = {"rate": [0.4, 0.4, 0.4], "pearson": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], "n": [100, 95, 100]}


CLUSTERS = ("test_chaos", "test_infra_commands", "test_jobs", "test_nodes")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Clusters and jobs of their own take minutes, and on a busy machine more than Ray waits for its processes."""
    if not os.environ.get("AUPIPE_CLUSTERS"):
        for item in items:
            if item.path.stem in CLUSTERS:
                item.add_marker(pytest.mark.skip(reason="starts clusters and jobs of its own: make clusters"))


def write_shards(folder: Path, subjects: int = 6, sessions: int = 2, frames: int = 20, align: str = "face112") -> Path:
    """Shards of noise in which AU k brightens the k-th third of the picture; frame 3 has no face, frame 5 no AU4 code.

    Intensities are coded but for AU1's of frame 7, 0 to 4: above 2 where the AU is present.
    """
    entries = []
    for s in range(subjects):
        for t in range(sessions):
            rng = np.random.default_rng([s, t])
            entries.append(_write_session(folder, f"F{s + 1:03d}", f"T{t + 1}", frames, align, rng))
    index = {"aus": list(AUS), "align": [align], "landmarker": LANDMARKER, "sessions": entries}
    schema.write_text(json.dumps(index), folder / "index.json")
    return folder


def _write_session(folder: Path, subject: str, session: str, frames: int, align: str, rng: np.random.Generator) -> dict:
    size = {"face112": 112, "face200": 200}[align]
    labels = rng.random((frames, len(AUS))) < 0.4
    rows = []
    for number in range(frames):
        image = rng.integers(60, 100, (size, size, 3))
        for k, on in enumerate(labels[number]):
            image[:, k * size // 3 : (k + 1) * size // 3] += 90 * int(on)
        no_face, uncoded = number == 3, number == 5
        row = {"subject": subject, "session": session, "frame": number + 10, "source": f"{number}.jpg"}
        row |= {"status": schema.NO_FACE if no_face else schema.OK}
        row |= {align: None if no_face else encode_jpeg(image.astype(np.uint8), 90)}
        row |= {c: int(v) for c, v in zip(AUS.columns, labels[number], strict=True) if not (uncoded and c == "AU04_c")}
        row |= {c: 2.5 * v + number % 3 / 2 for c, v in zip(AUS.intensity_columns, labels[number], strict=True)}
        row |= {"AU01_r": None} if number == 7 else {}
        rows.append(row)
    layout = schema.shard_schema(AUS, (align,))
    table = pa.table({name: [row.get(name) for row in rows] for name in layout.names}, schema=layout)
    schema.write_table(table, folder / subject / f"{session}.parquet", compression="none")
    status = {schema.OK: frames - 1, schema.NO_FACE: 1}
    entry = {"path": f"{subject}/{session}.parquet", "subject": subject, "session": session, "rows": frames}
    return entry | {"status": status, "runs": [[0, frames]], "usable": [[0, 3], [4, frames - 4]]}


def make_recipe(**changes: Any) -> Any:
    """A small attention CNN: two epochs of 8 clips of 2 frames per step, 64-pixel crops, Adam."""
    from aupipe.config import Recipe, build

    phase = {"name": "train", "epochs": 2, "batch": 8, "optimiser": {"name": "adam", "lr": 0.001}}
    values = {
        "model": {"name": "attention_cnn"},
        "input": {"align": "face112", "crop": 64},
        "clip": {"frames": 2, "stride": 2},
        "phases": [phase],
    }
    return build(Recipe, values | changes, "recipe")


def describe(recipe: Any, /, **changes: Any) -> Any:
    """What a checkpoint of `recipe` on the shared shards says of itself."""
    from aupipe.checkpoint import Description

    values = {"model": recipe.model, "aus": AUS.numbers, "input": recipe.input, "landmarker": LANDMARKER, "stats": STATS}
    return Description(**values | changes)


def make_training(shards: Path, directory: Path, recipe: Any = None, **changes: Any) -> Any:
    """A training on four of the shared shards' subjects, validated on a fifth."""
    from aupipe.clips import ClipSpec, plan_clips
    from aupipe.loop import Training

    recipe = recipe or make_recipe()
    spec = ClipSpec.of(recipe, AUS, recipe.phases[0].batch)
    values = {
        "recipe": recipe,
        "description": describe(recipe),
        "directory": directory,
        "shards": shards,
        "train_plan": plan_clips(shards, ["F001", "F002", "F003", "F004"], spec, train=True),
        "val_plan": plan_clips(shards, ["F005"], spec),
        "seed": 3,
        "level": "stream",  # so that a test's own source of batches is asked
    }
    return Training(**values | changes)


class StubLandmarker:
    """Finds a face of fixed landmarks in any image that is not black; in a white one they all lie in one place."""

    name, fingerprint = "blazemesh", "0"

    def find_face(self, image: np.ndarray) -> Any:
        from aupipe.landmarks import Face

        points = np.random.default_rng(0).uniform(15, 49, (49, 2)).astype(np.float32)
        points[19:25], points[25:31], points[13], points[31], points[37] = (20, 24), (44, 24), (32, 36), (24, 46), (40, 46)
        if image.mean() > 250:
            points[:] = 30
        return Face(np.array([10, 10, 54, 54], np.float32), 0.75, points) if image.mean() > 5 else None

    def find_faces(self, image: np.ndarray) -> list[Any]:
        return [] if (face := self.find_face(image)) is None else [face]


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of finished shards: 6 subjects × 2 sessions × 20 frames at 112 pixels, AUs 1, 4 and 12."""
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def aus() -> AUSet:
    return AUS


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Threads of several processes that wait for each other on the same cores make a small training many times slower."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A Ray of this machine, one for all the tests that want it; its workers can import the tests."""
    from aupipe import stream

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        stream.connect()
        yield
        stream.ray.shutdown()
