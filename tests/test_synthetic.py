"""The synthetic corpus on disk: BP4D's layout, resumed session by session, the same bytes in the end."""

from __future__ import annotations

import builtins
import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from aupipe import assets
from aupipe.config import SyntheticConfig
from aupipe.datasets import get_dataset
from aupipe.facs import AU_SETS
from aupipe.schema import DataError
from aupipe.synthetic import corpus
from aupipe.synthetic.scene import contact_sheet, set_scene

SPEC = SyntheticConfig(subjects=3, sessions=2, seconds=1.2, fps=5.0, size=96, uncoded=2, seed=11)
FRAMES = 6  # coded


def hash_tree(root: Path) -> dict[str, str]:
    files = (p for p in sorted(root.rglob("*")) if p.is_file())
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, dict]:
    assets.fetch()
    raw = tmp_path_factory.mktemp("raw") / "synthetic"
    return raw, corpus.render(SPEC, raw, map=builtins.map)


@pytest.fixture
def copy(made, tmp_path) -> Path:
    return Path(shutil.copytree(made[0], tmp_path / "synthetic"))


class Recorder:
    """A `map` that remembers which sessions it was given."""

    def __init__(self) -> None:
        self.sessions: list[tuple[int, int]] = []

    def __call__(self, function, tasks):
        self.sessions += [(task.subject, r.session) for task in tasks for r, _, _ in task.recordings]
        return builtins.map(function, tasks)


def test_frames_are_portrait_jpegs_numbered_from_zero(made):
    raw, _ = made
    assert sorted(p.name for p in (raw / "Sequences").iterdir()) == ["F001", "M001", "M002"]
    names = [p.name for p in sorted((raw / "Sequences/F001/T1").iterdir())]
    assert names == [f"{n:04d}.jpg" for n in range(FRAMES + 2)]
    assert (raw / "Sequences/M002/T2/007.jpg").is_file()  # an even man's files have three digits
    assert cv2.imread(str(raw / "Sequences/M001/T1/0000.jpg")).shape == (96, 72, 3)
    assert not (raw / ".making").exists()


def test_label_files_say_what_the_motion_did(made):
    raw, _ = made
    lost = 0
    for subject, name in enumerate(("M001", "F001", "M002")):
        for session in (1, 2):
            truth = set_scene(SPEC, subject, session).motion
            lines = (raw / f"AUCoding/AU_OCC/{name}_T{session}.csv").read_text().splitlines()
            assert lines[0] == ",".join(map(str, range(100)))
            rows = np.array([line.split(",") for line in lines[1:]], int)
            assert rows[:, 0].tolist() == list(range(2, 2 + FRAMES))
            coded = list(AU_SETS["synthetic"])
            others = [n for n in range(1, 100) if n not in coded]
            assert (rows[:, others] == 9).all()
            expected = (truth.intensity_NM[2:] >= 1).astype(int)
            expected[truth.unknown_NM[2:]] = 9
            np.testing.assert_array_equal(rows[:, coded], expected)
            lost += int(truth.unknown_NM[2:].sum())
    assert np.unique(expected).size > 1


def test_the_labels_of_the_demo_are_what_they_were():
    """Published numbers rest on them."""
    demo = SyntheticConfig(subjects=180, sessions=3, seconds=4, fps=4, size=256, uncoded=1, corruption=0.0, seed=1)
    digest = hashlib.sha256()
    for subject in range(6):
        for session in (1, 2, 3):
            occurrence, intensity, unknown = set_scene(corpus.settle(demo, "bp4d"), subject, session).labels()
            for labels in (intensity, unknown, occurrence):
                digest.update(labels.astype(np.int8).tobytes())
    assert digest.hexdigest() == "6f2a909173b66f993284c932f80e149a8ec55262023cc8738b8bf524a27b2252"


def test_the_files_are_what_they_were(made):
    raw, _ = made
    digest = hashlib.sha256()
    for path in sorted((raw / "AUCoding").rglob("*.csv")):
        digest.update(path.relative_to(raw).as_posix().encode() + b"\0" + path.read_bytes())
    assert digest.hexdigest() == "a5a94549bf5d92a2828ee2249a740fa2c99cd7417516392400d06952bef7e7a8"
    # A picture only up to the arithmetic of other machines.
    picture = cv2.imread(str(raw / "Sequences/F001/T2/0003.jpg"), cv2.IMREAD_GRAYSCALE)
    expected = [
        [44, 51, 52, 63, 74, 69], [43, 58, 53, 52, 57, 58], [44, 60, 73, 90, 74, 51], [44, 73, 105, 112, 102, 67],
        [39, 82, 96, 96, 79, 56], [32, 73, 97, 99, 86, 53], [38, 48, 93, 94, 78, 52], [56, 63, 82, 80, 54, 63],
    ]  # fmt: skip
    np.testing.assert_allclose(cv2.resize(picture, (6, 8), interpolation=cv2.INTER_AREA), expected, atol=2)


def test_intensity_files_agree_with_occurrence(made):
    raw, _ = made
    for au in (6, 10, 12, 14, 17):
        for path in sorted((raw / f"AUCoding/AU_INT/AU{au:02d}").iterdir()):
            levels = np.loadtxt(path, delimiter=",", dtype=int)
            name = path.stem.removesuffix(f"_AU{au:02d}")
            occurrence = np.loadtxt(raw / f"AUCoding/AU_OCC/{name}.csv", delimiter=",", dtype=int, skiprows=1)
            np.testing.assert_array_equal(levels[:, 0], occurrence[:, 0])
            known = levels[:, 1] != 9
            np.testing.assert_array_equal(known, occurrence[:, au] != 9)
            assert set(levels[known, 1]) <= set(range(6))
            np.testing.assert_array_equal(levels[known, 1] >= 1, occurrence[known, au] == 1)


def test_the_bp4d_reader_reads_it(made):
    raw, card = made
    dataset = get_dataset("bp4d", AU_SETS["synthetic"])
    sessions = dataset.sessions(raw)
    assert len(sessions) == 6
    tables = [dataset.read_session(raw, session) for session in sessions]
    positives = sum(int(np.nansum(table["AU12_c"].to_numpy())) for table in tables)
    assert positives == card["aus"]["AU12"]["positive"]
    assert all(table["source"].null_count == 0 for table in tables)
    assert all(table["AU12_c"].null_count >= 2 for table in tables)  # the frames before the coded span


def test_the_card_is_json_and_counts_what_is_there(made):
    raw, card = made
    assert json.loads(json.dumps(card)) == card
    assert card["counts"]["images"] == len(list(raw.glob("Sequences/*/*/*.jpg"))) == 6 * (FRAMES + 2)
    assert card["counts"]["frames"] == 6 * FRAMES
    assert card["counts"]["sex"] == {"F": 1, "M": 2}
    assert sum(card["counts"]["tone"].values()) == 3
    assert card["licence"].startswith("CC0-1.0")
    assert card["assets"]["head.npz"]["sha256"] == assets.provenance()["head.npz"]["sha256"]
    assert str(raw) not in json.dumps(card)


def test_two_processes_write_the_same_files_as_one(made, tmp_path):
    seen = []
    card = corpus.render(SPEC, tmp_path / "other", progress=lambda done, total: seen.append((done, total)))
    assert card == made[1]
    assert hash_tree(tmp_path / "other") == hash_tree(made[0])
    assert seen[0] == (0, 6)
    assert seen[-1] == (6, 6)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_what_is_there_is_kept(made, copy):
    before, recorder = hash_tree(copy), Recorder()
    assert corpus.render(SPEC, copy, map=recorder) == made[1]
    assert recorder.sessions == []
    assert hash_tree(copy) == before


@pytest.mark.parametrize("damage", ["frame lost", "frame cut", "labels lost", "key lost", "key unreadable"])
def test_a_damaged_session_alone_is_rendered_again(copy, damage):
    before, recorder = hash_tree(copy), Recorder()
    frame, labels, key = (
        copy / "Sequences/F001/T2/0003.jpg",
        copy / "AUCoding/AU_INT/AU06/F001_T2_AU06.csv",
        copy / ".keys/F001/T2",
    )
    {
        "frame lost": frame.unlink,
        "frame cut": lambda: frame.write_bytes(frame.read_bytes()[:100]),
        "labels lost": labels.unlink,
        "key lost": key.unlink,
        "key unreadable": lambda: key.write_text("{"),
    }[damage]()
    corpus.render(SPEC, copy, map=recorder)
    assert recorder.sessions == [(1, 2)]
    assert hash_tree(copy) == before


def test_a_killed_rendering_is_taken_up_again(copy):
    before, recorder = hash_tree(copy), Recorder()
    (copy / ".keys/M001/T1").unlink()
    shutil.rmtree(copy / "Sequences/M001/T1")
    half = copy / ".making/M001.T1.123/frames"
    half.mkdir(parents=True)
    (half / "0000.jpg").write_bytes(b"half")
    corpus.render(SPEC, copy, map=recorder)
    assert recorder.sessions == [(0, 1)]
    assert hash_tree(copy) == before


def test_more_subjects_and_sessions_leave_the_others_as_they_are(copy):
    before, recorder = hash_tree(copy), Recorder()
    larger = dataclasses.replace(SPEC, subjects=4, sessions=3)
    card = corpus.render(larger, copy, map=recorder)
    assert sorted(recorder.sessions) == [(0, 3), (1, 3), (2, 3), (3, 1), (3, 2), (3, 3)]
    after = hash_tree(copy)
    assert before.items() <= after.items()
    assert card["counts"]["sessions"] == 12


def test_sessions_of_an_earlier_spec_go_and_other_files_stay(copy):
    own = copy / "Sequences/M002/T9"
    own.mkdir()
    (own / "000.jpg").write_bytes(b"somebody else's")
    corpus.render(dataclasses.replace(SPEC, subjects=1, sessions=1), copy, map=builtins.map)
    assert sorted(p.relative_to(copy).as_posix() for p in copy.glob("Sequences/*/*")) == [
        "Sequences/M001/T1",
        "Sequences/M002/T9",
    ]
    assert (own / "000.jpg").read_bytes() == b"somebody else's"
    assert [p.name for p in (copy / "AUCoding/AU_OCC").iterdir()] == ["M001_T1.csv"]
    assert [p.relative_to(copy).as_posix() for p in copy.glob(".keys/*/*")] == [".keys/M001/T1"]


def test_another_seed_is_another_corpus(copy):
    recorder, before = Recorder(), hash_tree(copy)
    corpus.render(dataclasses.replace(SPEC, seed=12, subjects=1, sessions=1), copy, map=recorder)
    assert recorder.sessions == [(0, 1)]
    name = "Sequences/M001/T1/0003.jpg"
    assert hash_tree(copy)[name] != before[name]


def test_it_never_writes_where_other_data_lies(tmp_path):
    (tmp_path / "Sequences").mkdir()
    with pytest.raises(DataError, match="the generator did not write") as caught:
        corpus.render(SPEC, tmp_path, map=builtins.map)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["Sequences"]


def test_an_empty_folder_is_taken(tmp_path):
    tiny = SyntheticConfig(subjects=1, sessions=1, seconds=0.2, fps=5.0, size=64, uncoded=0)
    card = corpus.render(tiny, tmp_path, map=builtins.map)
    assert card["counts"]["images"] == card["counts"]["frames"] == 1
    assert (tmp_path / "Sequences/M001/T1/0000.jpg").is_file()


def test_without_the_head_there_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("AUPIPE_ASSETS", str(tmp_path / "none"))
    with pytest.raises(DataError, match="`aupipe assets`"):
        corpus.render(SPEC, tmp_path / "raw", map=builtins.map)
    assert not (tmp_path / "raw").exists()


def test_the_contact_sheet_has_a_row_per_person_and_a_caption_per_column():
    sheet = contact_sheet(0, (0, 1), columns=((), (12,)), height=96)
    assert sheet.shape == (20 + 2 * 96, 2 * 72, 3)
    assert sheet.dtype == np.uint8
    first, second = sheet[20:116], sheet[116:]
    assert np.abs(first.astype(int) - second).mean() > 5
    assert np.abs(first[:, :72].astype(int) - first[:, 72:]).max() > 40
