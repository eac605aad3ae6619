"""clips.py: which windows are planned, in which order they come, and what is read for them."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import AUS, make_recipe, write_shards
from hypothesis import given, settings
from hypothesis import strategies as st

from aupipe import schema
from aupipe.clips import (
    ClipSpec,
    Epoch,
    clip_batches,
    draw_crops,
    plan_clips,
    plan_runs,
    read_clips,
    steps_per_epoch,
)
from aupipe.schema import DataError

SPEC = ClipSpec(AUS, frames=3, stride=2, interval=1, align="face112", crop=96, batch=4)

runs = st.lists(st.tuples(st.integers(0, 5), st.lists(st.booleans(), min_size=1, max_size=25)), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """Plan clips over sessions that are given as runs, each a list of whether its frames are usable."""
    folder = tmp_path_factory.mktemp("planned")

    def plan(sessions, spec, train):
        entries = []
        for n, session in enumerate(sessions):
            lengths = [len(flags) for _, flags in session]
            starts = np.cumsum([0, *lengths])
            usable = [[i, 1] for i, flag in enumerate(f for _, flags in session for f in flags) if flag]
            entry = {"path": f"S{n}/T.parquet", "subject": f"S{n}", "session": "T", "rows": int(starts[-1])}
            entries.append(entry | {"runs": [[int(a), b] for a, b in zip(starts, lengths, strict=False)], "usable": usable})
        (folder / "index.json").write_text(json.dumps({"align": ["face112"], "sessions": entries}))
        subjects = [entry["subject"] for entry in entries]
        try:
            return entries, plan_clips(folder, subjects, spec, train=train).to_pylist()
        except DataError:
            return entries, []

    return plan


def run_of(entry, row):
    return next(n for n, (start, length) in enumerate(entry["runs"]) if start <= row < start + length)


@settings(max_examples=80, deadline=None)
@given(
    sessions=st.lists(runs, min_size=1, max_size=4), T=st.integers(1, 12), stride=st.integers(1, 9), gap=st.integers(1, 4)
)
def test_evaluation_plan_covers_every_frame_once(planned, sessions, T, stride, gap):
    entries, plan = planned(sessions, replace(SPEC, frames=T, stride=stride, interval=gap), train=False)
    seen = {entry["path"]: [] for entry in entries}
    for clip in plan:
        rows = range(clip["start"], clip["start"] + clip["frames"])
        seen[clip["path"]] += rows
        entry = next(e for e in entries if e["path"] == clip["path"])
        assert 1 <= len(rows) <= T
        assert run_of(entry, rows[0]) == run_of(entry, rows[-1]), "a clip does not cross a gap"
    assert all(seen[entry["path"]] == list(range(entry["rows"])) for entry in entries)
    assert [clip["clip"] for clip in plan] == list(range(len(plan)))


@settings(max_examples=80, deadline=None)
@given(sessions=st.lists(runs, min_size=1, max_size=4), T=st.integers(1, 6), stride=st.integers(1, 5), gap=st.integers(1, 3))
def test_training_windows_never_cross_a_gap(planned, sessions, T, stride, gap):
    entries, plan = planned(sessions, replace(SPEC, frames=T, stride=stride, interval=gap), train=True)
    found = {(clip["path"], clip["start"]): clip["frames"] for clip in plan}
    assert len(found) == len(plan), "no window twice"
    expected = {}
    for entry in entries:
        usable = {row for row, _ in entry["usable"]}
        for start, length in entry["runs"]:
            # By definition: a window every `stride` frames, as long as it fits; one short window for a short run.
            starts = [s for s in range(0, length, stride) if s + (T - 1) * gap < length] or [0]
            for s in starts:
                rows = [start + s + t * gap for t in range(T) if s + t * gap < length]
                if usable & set(rows):
                    expected[entry["path"], start + s] = len(rows)
    assert found == expected


def test_plan_is_of_the_subjects_asked_for_in_the_order_of_the_index(shards):
    plan = plan_clips(shards, ["F003", "F001"], SPEC)
    assert plan["subject"].to_pylist() == ["F001"] * 14 + ["F003"] * 14
    assert plan["path"].to_pylist()[::7] == ["F001/T1.parquet", "F001/T2.parquet", "F003/T1.parquet", "F003/T2.parquet"]


@pytest.mark.parametrize(
    ("subjects", "spec", "reason"),
    [
        (["F001", "F099"], SPEC, "no shard of subject F099"),
        (["F001"], replace(SPEC, align="face200"), r"holds \['face112'\], not 'face200'"),
        ([], SPEC, "no usable frame"),
    ],
)
def test_what_cannot_be_planned_is_named(shards, subjects, spec, reason):
    with pytest.raises(DataError, match=reason):
        plan_clips(shards, subjects, spec, train=True)


def test_folder_without_an_index_holds_no_finished_shards(shards):
    with pytest.raises(DataError, match=r"index\.json does not exist; run `dvc repro shards`"):
        plan_clips(shards / "F001", ["F001"], SPEC)


def test_spec_is_what_the_recipe_says():
    recipe = make_recipe(clip={"frames": 5, "stride": 3, "interval": 2})
    assert ClipSpec.of(recipe, AUS, 9) == ClipSpec(AUS, 5, 3, 2, "face112", 64, 9)
    recipe = make_recipe(model={"name": "attention_cnn", "intensity": True}, loss={"intensity": 0.1})
    assert ClipSpec.of(recipe, AUS, 9).intensity


def test_crops_and_mirrors_are_drawn_per_clip():
    clips = np.arange(400)
    crops, mirror, seeds = draw_crops(clips, 16, Epoch(True, 7, 2))
    assert crops.min() == 0
    assert crops.max() == 16
    assert 150 < mirror.sum() < 250
    assert abs(np.corrcoef(crops.T)[0, 1]) < 0.2, "the two axes are drawn apart"
    shuffled = np.random.default_rng(0).permutation(clips)
    again = draw_crops(shuffled, 16, Epoch(True, 7, 2))
    np.testing.assert_array_equal(again[0], crops[shuffled])
    np.testing.assert_array_equal(again[1], mirror[shuffled])
    np.testing.assert_array_equal(again[2], seeds[shuffled])
    assert len(set(seeds.tolist())) == 400
    assert (draw_crops(clips, 16, Epoch(True, 7, 3))[0] != crops).any()
    assert (draw_crops(clips, 16, Epoch(True, 8, 2))[0] != crops).any()


def test_evaluation_takes_the_centre_unmirrored():
    crops, mirror, seeds = draw_crops(np.arange(5), 24, Epoch(False))
    assert crops.tolist() == [[12, 12]] * 5
    assert not mirror.any()
    assert not seeds.any()


@pytest.mark.parametrize("train", [True, False])
def test_workers_together_see_the_batches_of_one(shards, train):
    spec = replace(SPEC, intensity=True)
    plan = plan_clips(shards, ["F001", "F002"], spec, train=train)
    options = {"train": train, "seed": 1, "epoch": 2}
    alone = list(clip_batches(plan, shards, spec, **options))
    pairs = [list(clip_batches(plan, shards, spec, rank=rank, world=2, **options)) for rank in (0, 1)]
    assert len(alone) == steps_per_epoch(plan, SPEC.batch) == len(pairs[0])
    for whole, *halves in zip(alone, *pairs, strict=True):
        for name in schema.Batch.__slots__:
            parts = [getattr(half, name) for half in halves]
            together = None if parts[0] is None else np.concatenate(parts)
            np.testing.assert_array_equal(getattr(whole, name), together)
        assert whole.intensity_BTM is not None
        assert len(whole.clip_B) == 4
    later = list(clip_batches(plan, shards, spec, start=3, **options))
    assert [b.clip_B.tolist() for b in later] == [b.clip_B.tolist() for b in alone[3:]]
    np.testing.assert_array_equal(later[0].frames_BTHWC, alone[3].frames_BTHWC)


def test_crop_of_a_clip_does_not_depend_on_its_batch(shards):
    plan = plan_clips(shards, ["F001", "F002"], SPEC, train=True)
    seen = []
    for size in (4, 12):
        batches = clip_batches(plan, shards, replace(SPEC, batch=size), train=True, seed=1, epoch=4)
        drawn = [row for b in batches for row in zip(b.clip_B, b.crop_B2, b.mirror_B, strict=True)]
        seen.append({int(clip): (*crop.tolist(), bool(mirror)) for clip, crop, mirror in drawn})
    assert seen[0] == seen[1]


def read(shards, row, spec=SPEC, train=False):
    """The clip at a row of the evaluation plan of F001's first session, and the table that it comes from."""
    plan = plan_clips(shards, ["F001"], spec, train=train)
    batch = next(clip_batches(plan.slice(row, 1), shards, replace(spec, batch=1), train=train))
    return batch, pq.read_table(shards / "F001" / "T1.parquet")


def test_clip_holds_the_frames_and_labels_of_its_rows(shards):
    batch, table = read(shards, 2)
    labels, mask = schema.label_arrays(table, AUS)
    for t in range(3):
        face = cv2.imdecode(np.frombuffer(table["face112"][6 + t].as_py(), np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
        np.testing.assert_array_equal(batch.frames_BTHWC[0, t], face)
    np.testing.assert_array_equal(batch.labels_BTM[0], labels[6:9])
    np.testing.assert_array_equal(batch.mask_BTM[0], mask[6:9])
    assert batch.frames_BTHWC.dtype == np.uint8
    assert batch.real_BT.all()


@pytest.mark.parametrize("frames", [1, 3, 9, 64])
def test_context_of_a_plan_is_whole_runs_in_windows(tmp_path, frames):
    runs = {"S1/T.parquet": [[0, 9], [9, 1], [10, 4]], "S2/T.parquet": [[0, 7]], "S3/T.parquet": [[0, 5]]}
    sessions = [{"path": p, "subject": p[:2], "session": "T", "rows": 14, "runs": r, "usable": r} for p, r in runs.items()]
    (tmp_path / "index.json").write_text(json.dumps({"align": ["face112"], "sessions": sessions}))
    plan = plan_clips(tmp_path, ["S1", "S2", "S3"], SPEC)
    chosen = [
        (c["path"], c["start"]) in {("S2/T.parquet", 6), ("S1/T.parquet", 9), ("S1/T.parquet", 3)} for c in plan.to_pylist()
    ]
    windows = plan_runs(plan.filter(pa.array(chosen)), tmp_path, frames).to_pylist()
    assert [w["clip"] for w in windows] == list(range(len(windows)))
    assert all(1 <= w["frames"] <= frames and w["subject"] == w["path"][:2] for w in windows)
    seen, found = [], []
    for w in windows:
        seen += [(w["path"], row) for row in range(w["start"], w["start"] + w["frames"])]
        if w["ends"]:
            found.append(seen)
            seen = []
    touched = (("S1/T.parquet", 0, 9), ("S1/T.parquet", 9, 1), ("S2/T.parquet", 0, 7))
    assert found == [[(path, row) for row in range(start, start + length)] for path, start, length in touched]
    assert not seen


def test_frame_without_a_face_is_zeros_and_masked(shards):
    batch, _ = read(shards, 1)
    assert (batch.frames_BTHWC[0, 0] == 0).all()
    assert batch.frames_BTHWC[0, 1].any()
    np.testing.assert_array_equal(batch.mask_BTM[0], [[0, 0, 0], [1, 1, 1], [1, 0, 1]])
    assert (batch.labels_BTM[~batch.mask_BTM] == 0).all()
    assert batch.real_BT.all(), "it is a frame of the session all the same"


def test_short_clip_is_filled_and_the_filling_masked(shards):
    batch, table = read(shards, 6)
    assert batch.real_BT.tolist() == [[True, True, False]]
    np.testing.assert_array_equal(batch.frames_BTHWC[0, 2], batch.frames_BTHWC[0, 1])
    assert not batch.mask_BTM[0, 2].any()
    assert batch.mask_BTM[0, :2].all()
    np.testing.assert_array_equal(batch.labels_BTM[0, :2], schema.label_arrays(table, AUS)[0][18:20])


def test_intensities_come_if_asked_for_with_a_mask_of_their_own(shards):
    assert read(shards, 2)[0].intensity_BTM is None
    spec = replace(SPEC, intensity=True)
    batch, table = read(shards, 2, spec)
    expected = schema.intensity_array(table, AUS)
    np.testing.assert_array_equal(batch.intensity_BTM[0], expected[6:9])
    assert np.isnan(batch.intensity_BTM[0]).tolist() == [[False] * 3, [True, False, False], [False] * 3]
    assert batch.mask_BTM.all(), "the occurrence is coded where the intensity is not"
    assert batch.intensity_BTM.dtype == np.float32
    faceless, _ = read(shards, 1, spec)
    assert np.isnan(faceless.intensity_BTM[0]).all(1).tolist() == [True, False, False]
    assert faceless.intensity_BTM[0, 2].tolist() == expected[5].tolist(), "coded where AU4's occurrence is not"
    short, _ = read(shards, 6, spec)
    assert np.isnan(short.intensity_BTM[0]).all(1).tolist() == [False, False, True]


def test_corpus_without_intensities_is_named_before_training(tmp_path):
    shards = write_shards(tmp_path, 2, 1)
    spec = replace(SPEC, intensity=True)
    for path, kept in (("F001/T1.parquet", False), ("F002/T1.parquet", True)):
        table = pq.read_table(shards / path)
        for name in AUS.intensity_columns:
            if not kept:
                at = table.schema.get_field_index(name)
                table = table.set_column(at, table.schema.field(at), pa.nulls(len(table), pa.float32()))
        schema.write_table(table, shards / path)
    assert plan_clips(shards, ["F001", "F002"], spec, train=True).num_rows
    assert plan_clips(shards, ["F001"], spec).num_rows, "evaluation needs none"
    with pytest.raises(DataError, match=r"codes no intensity.*loss\.intensity"):
        plan_clips(shards, ["F001"], spec, train=True)


def test_interval_skips_frames_in_training_and_not_in_evaluation(shards):
    spec = replace(SPEC, interval=4)
    (trained, table), (evaluated, _) = (read(shards, 1, spec, train) for train in (True, False))
    labels, _ = schema.label_arrays(table, AUS)
    np.testing.assert_array_equal(trained.labels_BTM[0], labels[[2, 6, 10]])
    np.testing.assert_array_equal(evaluated.labels_BTM[0, 1:], labels[[4, 5]] * [[1, 1, 1], [1, 0, 1]])


def test_window_over_two_row_groups_is_read_whole(tmp_path):
    shards = write_shards(tmp_path, 1, 1, frames=70)
    batch, table = read(shards, 21)
    np.testing.assert_array_equal(batch.labels_BTM[0], schema.label_arrays(table, AUS)[0][63:66])


def damage(shards, row, jpeg):
    """Replace one face of F001/T1."""
    path = shards / "F001" / "T1.parquet"
    table = pq.read_table(path)
    faces = table["face112"].to_pylist()
    faces[row] = jpeg
    schema.write_table(
        table.set_column(table.schema.get_field_index("face112"), "face112", pa.array(faces, pa.binary())), path
    )


@pytest.mark.parametrize("jpeg", [b"", b"no picture", cv2.imencode(".jpg", np.zeros((9, 9, 3), np.uint8))[1].tobytes()])
def test_damaged_face_names_its_shard(tmp_path, jpeg):
    damage(write_shards(tmp_path, 1, 1), 7, jpeg)
    with pytest.raises(DataError, match=r"F001/T1\.parquet.*dvc repro shards"):
        read(tmp_path, 2)


@pytest.mark.parametrize("share", [None, 0, 0.5])
def test_damaged_or_absent_shard_is_named(tmp_path, share):
    path = write_shards(tmp_path, 1, 1) / "F001" / "T1.parquet"
    plan = plan_clips(tmp_path, ["F001"], SPEC)
    data = path.read_bytes()
    path.unlink()
    if share is not None:
        path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(DataError, match=r"F001/T1\.parquet cannot be read.*dvc repro shards"):
        read_clips(plan, tmp_path, SPEC, Epoch(False))
