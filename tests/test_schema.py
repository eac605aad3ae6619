"""schema.py: files appear whole or not at all, paths stay inside, labels are null on disk and a mask in memory."""

import json
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import AUS
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from aupipe import schema
from aupipe.schema import DataError, LabelStats, au_weights, inside, iter_sessions, label_arrays, replacing, write_table

# Positive frames of the three parts of BP4D and DISFA, and the AU weights that ME-GraphAU publishes for the pairs of parts
# that its folds 1, 2 and 3 train on (its weights sum to the number of AUs, STRAL's to 1).
BP4D_POSITIVES = [
    [8322, 8172, 10085, 21055, 29862, 29183, 28277, 20274, 7664, 16080, 8023, 7076],
    [10223, 6568, 9870, 23312, 27651, 27954, 26187, 25762, 10024, 18379, 8657, 7867],
    [12497, 10370, 9800, 23309, 23103, 30133, 28066, 22339, 7181, 15947, 7608, 7286],
]
BP4D_WEIGHTS = """\
1.342985 1.689665 1.248091 .561356 .433044 .435894 .457287 .541004 1.408054 .722762 1.493145 1.666711
1.191051 1.337315 1.246995 .558933 .468168 .418041 .440099 .581900 1.670360 .774237 1.586367 1.726535
1.132895 1.519623 1.308560 .552098 .507140 .443118 .474432 .535111 1.496040 .749851 1.582501 1.698632"""
DISFA_POSITIVES = [
    [1839, 1125, 5119, 2360, 1218, 4503, 10850, 4902],
    [1469, 879, 6653, 3558, 1287, 6187, 13206, 4123],
    [3198, 3640, 8161, 4409, 2968, 6161, 12191, 2508],
]
DISFA_WEIGHTS = """\
1.422290 2.347771 .399672 .795021 1.878217 .440125 .195583 .521322
1.390215 1.469573 .527298 1.034498 1.672842 .656650 .303915 .945009
1.510590 1.560063 .475896 .884891 1.656857 .570937 .277589 1.063177"""
CORPORA = {
    "bp4d": (BP4D_POSITIVES, [50631, 50182, 46034], BP4D_WEIGHTS),
    "disfa": (DISFA_POSITIVES, [43604, 43605, 43605], DISFA_WEIGHTS),
}


@pytest.mark.parametrize("corpus", CORPORA)
@pytest.mark.parametrize(("fold", "parts"), [(0, (0, 1)), (1, (0, 2)), (2, (1, 2))])
def test_weights_are_those_published_by_megraphau(corpus, fold, parts):
    positives, frames, text = CORPORA[corpus]
    printed = np.array(text.splitlines()[fold].split(), float)
    rate = np.array(positives)[list(parts)].sum(0) / np.array(frames)[list(parts)].sum()
    np.testing.assert_allclose(au_weights(rate) * len(printed), printed, rtol=1e-5)


def test_weights_are_inverse_rates_that_sum_to_one():
    # STRAL eq. 1 by hand: 1/o = (2, 4, 10), sum 16.
    np.testing.assert_allclose(au_weights(np.array([0.5, 0.25, 0.1])), [2 / 16, 4 / 16, 10 / 16], rtol=1e-15)


def test_au_without_positives_gets_no_weight_and_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        weights = au_weights(np.array([0.0, 0.2, 0.2, np.nan]))
    np.testing.assert_array_equal(weights, [0, 0.5, 0.5, 0])
    assert "[0, 3]" in caplog.text


@pytest.mark.parametrize("rates", [[0.0, 0.0], [np.nan, np.nan]])
def test_no_positive_at_all_is_an_error(rates):
    with pytest.raises(DataError, match="no AU has a positive"):
        au_weights(np.array(rates))


@given(arrays(float, 12, elements=st.floats(1e-6, 1)))
def test_weights_sum_to_one_for_any_rates(rates):
    assert au_weights(rates).sum() == pytest.approx(1)


def test_error_inside_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "sub" / "table.txt"
    schema.write_text("old", path)

    def fail():
        with replacing(path) as temporary:
            temporary.write_text("half of it")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["table.txt"]


def test_new_file_takes_its_name_only_at_the_end(tmp_path):
    path = tmp_path / "table.txt"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.parent == path.parent, "a rename is atomic on one file system only"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_table_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "table.parquet"
    write_table(pa.table({"a": [1]}), path)
    before = path.read_bytes()
    with pytest.raises(Exception, match=r"compression|codec|Unsupported"):
        write_table(pa.table({"a": [2]}), path, compression="no such")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_same_table_gives_the_same_bytes_in_small_row_groups(tmp_path):
    table = pa.table({"a": list(range(200)), "b": [None, "x"] * 100})
    for name in ("one", "other"):
        write_table(table, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    file = pq.ParquetFile(tmp_path / "one")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [64, 64, 64, 8]
    assert file.read() == table


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "..", "a/b/../../../raw2/x"])
def test_path_that_leads_out_is_refused(tmp_path, path):
    with pytest.raises(DataError, match="leads out"):
        inside(tmp_path / "raw", path)


def test_path_inside_is_kept(tmp_path):
    assert inside(tmp_path, "a/b.jpg") == tmp_path / "a/b.jpg"
    assert inside(tmp_path, "a/../b.jpg") == tmp_path / "b.jpg"
    (tmp_path / "link").symlink_to("/")
    assert inside(tmp_path, "link/x") == tmp_path / "link/x", "a link is the user's own doing"


def test_uncoded_labels_are_masked_zeros():
    table = pa.table({"AU01_c": pa.chunked_array([[1, None], [0]], pa.int8()), "AU04_c": pa.array([None, 1, 0], pa.int8())})
    labels, mask = label_arrays(table, type(AUS)((4, 1)))
    np.testing.assert_array_equal(labels, [[0, 1], [1, 0], [0, 0]])
    np.testing.assert_array_equal(mask, [[False, True], [True, False], [True, True]])
    assert labels.dtype == np.float32
    assert mask.dtype == bool


def test_sessions_are_consecutive_rows_of_one_subject_and_session():
    subjects, sessions = list("AAABBA"), ["T1", "T1", "T2", "T2", "T2", "T2"]
    table = pa.table({"subject": subjects, "session": sessions, "n": range(6)})
    parts = [part["n"].to_pylist() for part in iter_sessions(table)]
    assert parts == [[0, 1], [2], [3, 4], [5]]
    assert list(iter_sessions(table.slice(0, 0))) == []


def test_statistics_survive_json_with_their_undefined_figures():
    pearson = np.array([[1, np.nan], [np.nan, np.nan]])
    stats = LabelStats(np.array([0.25, np.nan]), pearson, np.array([8, 0]))
    text = json.dumps(stats.to_json(), allow_nan=False)
    back = LabelStats.from_json(json.loads(text))
    np.testing.assert_array_equal(back.rate_M, stats.rate_M)
    np.testing.assert_array_equal(back.pearson_MM, stats.pearson_MM)
    np.testing.assert_array_equal(back.n_M, stats.n_M)


def test_label_columns_are_null_or_small_numbers_in_every_table():
    for layout in (schema.manifest_schema(AUS), schema.shard_schema(AUS, ("face112",)), schema.predictions_schema(AUS)):
        assert [layout.field(c).type for c in AUS.columns] == [pa.int8()] * 3
        assert all(layout.field(c).nullable for c in AUS.columns)
        assert not layout.field("frame").nullable
    assert schema.shard_schema(AUS, ("face112", "face200")).names.count("face200") == 1
    assert schema.STATUSES == ("ok", "no_face", "bad_landmarks", "unreadable", "missing")


def test_stream_of_parts_is_written_as_the_whole_table_is(tmp_path):
    table = pa.table({"x": list(range(150)), "y": [str(n) for n in range(150)]})
    alive = []

    def parts():
        for start in range(0, 150, schema.ROW_GROUP):
            alive.append((tmp_path / "b.parquet").exists())
            yield table.slice(start, schema.ROW_GROUP)

    write_table(table, tmp_path / "a.parquet")
    schema.write_stream(parts(), table.schema, tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert alive == [False] * 3, "the file takes its name when it is whole"
    assert pq.ParquetFile(tmp_path / "b.parquet").num_row_groups == 3
    schema.write_stream([], table.schema, tmp_path / "empty.parquet")
    assert pq.read_table(tmp_path / "empty.parquet").num_rows == 0


def test_part_that_cannot_be_made_leaves_no_file(tmp_path):
    def parts():
        yield pa.table({"x": [1]})
        raise DataError("no second part")

    with pytest.raises(DataError, match="no second part"):
        schema.write_stream(parts(), pa.schema([("x", pa.int64())]), tmp_path / "a.parquet")
    assert list(tmp_path.iterdir()) == []


def test_manifest_columns_are_all_in_a_shard():
    manifest, shard = schema.manifest_schema(AUS), schema.shard_schema(AUS, ("face112",))
    for name in manifest.names:
        assert shard.field(name).type == manifest.field(name).type
