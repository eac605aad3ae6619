"""inference.py: a row for every planned frame, whatever the model, the batches and the chunks."""

import json

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import AUS, describe, make_recipe, write_shards
from temporal_models import KINDS

from aupipe import inference, schema
from aupipe.clips import ClipSpec, plan_clips
from aupipe.pixels import read_middle
from aupipe.predictor import AUPredictor


def make_model(**constants):
    torch.manual_seed(0)
    model = describe(make_recipe()).new_model().eval()
    for name, value in constants.items():
        setattr(model, name, value)
    return model


def test_table_has_a_row_for_every_planned_frame(shards):
    spec = ClipSpec(AUS, 3, 3, 1, "face112", 64, 4)
    plan = plan_clips(shards, ["F002", "F005"], spec)
    model, description = make_model(), describe(make_recipe())
    table = inference.predict_table(model, description, plan, shards, spec)
    assert table.schema == schema.predictions_schema(AUS)
    sources = [pq.read_table(shards / path) for path in dict.fromkeys(plan["path"].to_pylist())]
    for column in ("subject", "session", "frame", "status", *AUS.columns):
        assert table[column].to_pylist() == [value for source in sources for value in source[column].to_pylist()]
    ok = np.array(table["status"].to_pylist()) == "ok"
    probs = np.stack([table[c].to_numpy() for c in AUS.probability_columns], 1)
    np.testing.assert_array_equal(np.isnan(probs), np.repeat(~ok[:, None], 3, 1))
    assert table["AU01_p"].null_count == 4, "null, not NaN"
    faces = [cv2.imdecode(np.frombuffer(j, np.uint8), 1)[:, :, ::-1] for s in sources for j in s["face112"].to_pylist() if j]
    expected = AUPredictor(model, description).predict_faces(np.stack(faces))
    np.testing.assert_allclose(probs[ok], expected, atol=1e-5)


SPEC = ClipSpec(AUS, 4, 4, 1, "face112", 64, 2)
RUNS = [[0, 9], [9, 1], [10, 13]]  # rows follow each other, frame numbers do not


@pytest.fixture(scope="module")
def gaps(tmp_path_factory):
    """Shards of two subjects whose sessions have three runs of frames each."""
    folder = write_shards(tmp_path_factory.mktemp("gaps"), subjects=2, frames=23)
    index = json.loads((folder / "index.json").read_text())
    for session in index["sessions"]:
        session["runs"] = RUNS
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def read_runs(model, shards, path):
    """Probabilities (rows, M) of a session: the model on each of its runs as a whole, zeros where there is no face."""
    jpegs = pq.read_table(shards / path)["face112"].to_pylist()
    black = np.zeros((112, 112, 3), np.uint8)
    faces = [cv2.imdecode(np.frombuffer(j, np.uint8), 1)[:, :, ::-1] if j else black for j in jpegs]
    frames = read_middle(torch.from_numpy(np.stack(faces)), model, make_recipe().input)[None]
    with torch.no_grad():
        runs = [model(frames[:, start : start + length]).logits_BTM[0] for start, length in RUNS]
    return torch.cat(runs).sigmoid().numpy()


def probabilities(table):
    return np.stack([table[c].to_numpy() for c in AUS.probability_columns], 1)


@pytest.mark.parametrize("kind", KINDS)
def test_temporal_models_read_whole_runs_of_frames_once(gaps, kind):
    model, plan = KINDS[kind]().eval(), plan_clips(gaps, ["F001", "F002"], SPEC)
    table = inference.predict_table(model, describe(make_recipe()), plan, gaps, SPEC, chunk=5)
    assert (model.featured, model.longest) == (4 * 23, 5), "each frame's features once, in the memory of a chunk"
    paths = list(dict.fromkeys(plan["path"].to_pylist()))
    expected = np.concatenate([read_runs(model, gaps, path) for path in paths])
    assert table["frame"].to_pylist() == list(range(10, 33)) * 4
    ok = np.array(table["status"].to_pylist()) == "ok"
    assert (~ok).sum() == 4
    np.testing.assert_allclose(probabilities(table)[ok], expected[ok], atol=1e-5)
    assert np.isnan(probabilities(table)[~ok]).all()
    assert table.schema == schema.predictions_schema(AUS)


@pytest.mark.parametrize("kind", ["two-sided", "recurrent"])
def test_neither_clips_nor_batches_nor_chunks_change_the_numbers(gaps, kind):
    model, description = KINDS[kind]().eval(), describe(make_recipe())
    tables = []
    for frames, batch, chunk in ((4, 2, 64), (1, 1, 1), (7, 3, 4), (64, 8, 13)):
        spec = ClipSpec(AUS, frames, frames, 1, "face112", 64, batch)
        plan = plan_clips(gaps, ["F002"], spec)
        tables.append(inference.predict_table(model, description, plan, gaps, spec, chunk=chunk))
    for table in tables[1:]:
        assert table.drop_columns(AUS.probability_columns) == tables[0].drop_columns(AUS.probability_columns)
        np.testing.assert_allclose(probabilities(table), probabilities(tables[0]), atol=1e-5)


@pytest.mark.parametrize("kind", ["causal", "two-sided", "recurrent"])
def test_context_is_the_run_even_where_it_is_not_planned(gaps, kind):
    model, description = KINDS[kind]().eval(), describe(make_recipe())
    plan = plan_clips(gaps, ["F001", "F002"], SPEC)
    whole = inference.predict_table(model, description, plan, gaps, SPEC)
    chosen = [21, 1, 12, 4]  # clips of several sessions and runs, in no order
    part = inference.predict_table(model, description, plan.take(pa.array(chosen)), gaps, SPEC)
    ends = np.cumsum(plan["frames"].to_numpy())
    rows = np.concatenate([np.arange(ends[clip] - plan["frames"][clip].as_py(), ends[clip]) for clip in chosen])
    expected = whole.take(pa.array(rows))
    names = [c for c in whole.column_names if c not in AUS.probability_columns]
    assert part.select(names).to_pylist() == expected.select(names).to_pylist()
    np.testing.assert_allclose(probabilities(part), probabilities(expected), atol=1e-5)
    assert np.nanstd(probabilities(part)) > 0.01, "the frames differ"
