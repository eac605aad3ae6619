"""datasets/bp4d.py: the three trees that BP4D comes in, its options, and the landmarks that come with it."""

import logging
import shutil
import zipfile

import h5py
import numpy as np
import pytest
from bp4d_trees import LEGACY_HEADER, add_images, add_labels, legacy_row

from aupipe.config import Corpus
from aupipe.datasets import build_manifest, dataset_of, get_dataset, survey
from aupipe.datasets.bp4d import LOST, read_matlab_points
from aupipe.schema import ConfigError, DataError


def make_tree(root, sequences="Sequences(2D+3D)", occurrence="AUCoding/AU_OCC", intensity="AUCoding/AU_INT"):
    """F001/T1 and M001/T8: images 0–9, labels 4–9 with AU12 in odd frames, intensities of AU06."""
    for subject, task, digits in (("F001", "T1", 4), ("M001", "T8", 3)):
        add_images(root, f"{subject}/{task}", range(10), digits, root=sequences)
        rows = [legacy_row(f, AU6=1, AU12=f % 2) for f in range(4, 10)]
        files = {
            f"{occurrence}/{subject}_{task}.csv": "\n".join([LEGACY_HEADER, *rows]),
            f"{intensity}/AU06/{subject}_{task}_AU06.csv": "".join(f"{f},{f % 6}\n" for f in range(4, 10)),
        }
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
    return root


def labels(table):
    return table.drop_columns("source")


@pytest.fixture
def raw(tmp_path):
    return make_tree(tmp_path / "bp4d")


def manifest(raw, strict=False, **options):
    return build_manifest(get_dataset("bp4d", options=options), raw, strict=strict)


TREES = {
    "full": {},
    "renamed": {"sequences": "Sequences_2D+3D"},
    "one deeper": {"sequences": "Sequences/Sequences(2D+3D)"},
    "no folder of sequences": {"sequences": "."},
    "FERA-2015": {"sequences": "BP4D-training", "occurrence": "AUCoding", "intensity": "AU Intensity Codes3.0"},
    "FERA-2015 inside": {
        "sequences": "BP4D-training",
        "occurrence": "BP4D-training/AUCoding",
        "intensity": "BP4D-training/AU Intensity Codes3.0",
    },
    "BP4D+": {
        "sequences": "BP4D+_v0.2/2D+3D",
        "occurrence": "BP4D+_v0.2/AUCoding/AU_OCC",
        "intensity": "BP4D+_v0.2/AUCoding/AU_INT",
    },
    "other case": {"sequences": "SEQUENCES", "occurrence": "aucoding/au_occ", "intensity": "aucoding/au_int"},
}


@pytest.mark.parametrize("tree", TREES)
def test_trees_that_the_corpus_comes_in(raw, tmp_path, tree):
    expected = manifest(raw)
    other = make_tree(tmp_path / "other", **TREES[tree])
    table = manifest(other, strict=True)
    assert labels(table) == labels(expected)
    sequences = TREES[tree].get("sequences", "Sequences(2D+3D)")
    prefix = "" if sequences == "." else f"{sequences}/"
    assert table["source"].to_pylist()[:1] == [f"{prefix}F001/T1/0000.jpg"]
    assert table["source"].to_pylist()[10:11] == [f"{prefix}M001/T8/000.jpg"]
    assert table["AU06_r"].to_pylist()[4:10] == [4, 5, 0, 1, 2, 3]
    assert expected["AU12_c"].to_pylist()[3:7] == [None, 0, 1, 0]


def zip_subjects(root, sequences, top):
    """A zip for each subject instead of its folder, members out of order, as in BP4D+."""
    for folder in sorted((root / sequences).iterdir()):
        with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
            for image in sorted(folder.rglob("*.jpg"), key=lambda p: p.name[::-1]):
                archive.write(image, f"{top.format(folder.name)}{image.parent.name}/{image.name}")
            archive.writestr("__MACOSX/._T1", b"")
        shutil.rmtree(folder)


@pytest.mark.parametrize("top", ["{}/", "", "2D+3D/{}/"])
def test_zips_of_subjects_are_read_in_place(raw, top):
    expected = manifest(raw)
    zip_subjects(raw, "Sequences(2D+3D)", top)
    table = manifest(raw, strict=True)
    assert labels(table) == labels(expected)
    assert table["source"].to_pylist()[:2] == [
        f"Sequences(2D+3D)/F001.zip::{top.format('F001')}T1/{n:04d}.jpg" for n in (0, 1)
    ]


def test_zip_that_was_extracted_is_not_read_twice(raw, caplog):
    expected = manifest(raw)
    shutil.copytree(raw / "Sequences(2D+3D)/F001", raw / "keep")
    zip_subjects(raw, "Sequences(2D+3D)", "{}/")
    shutil.move(raw / "keep", raw / "Sequences(2D+3D)/F001")
    table = manifest(raw)
    assert labels(table) == labels(expected)
    assert table["source"].to_pylist()[0] == "Sequences(2D+3D)/F001/T1/0000.jpg", "what was extracted"
    assert "F001.zip" not in caplog.text
    assert "F001.zip::F001/T1 is a copy of" in str(survey(get_dataset("bp4d"), raw)[1]["notes"])
    (raw / "Sequences(2D+3D)/F001/T1/0003.jpg").write_bytes(b"other")
    assert manifest(raw)["source"].to_pylist() == table["source"].to_pylist()
    assert "F001.zip::F001/T1 differ; the first is taken" in caplog.text


def test_damaged_zip_costs_its_own_subject_alone(raw, caplog):
    zip_subjects(raw, "Sequences(2D+3D)", "{}/")
    path = raw / "Sequences(2D+3D)/F001.zip"
    path.write_bytes(path.read_bytes()[:-30])
    table = manifest(raw)
    assert table.num_rows == 6 + 10, "labels of F001 are kept"
    assert table["source"].null_count == 6
    assert "F001.zip" in caplog.text
    with pytest.raises(DataError, match=r"F001\.zip"):
        manifest(raw, strict=True)


def test_names_with_an_extra_zero_or_none(raw):
    expected = manifest(raw)
    folder = raw / "Sequences(2D+3D)/F001/T1"
    for n, image in enumerate(sorted(folder.iterdir())):
        image.rename(folder / (f"{n:05d}.jpg" if n % 2 else f"{n}.JPG"))
    assert labels(manifest(raw, strict=True)) == labels(expected)


def shift_images(raw, by):
    for folder in sorted((raw / "Sequences(2D+3D)").glob("*/*")):
        images = sorted(folder.iterdir(), reverse=by > 0)
        for image in images:
            image.rename(folder / f"{int(image.stem) + by:04d}.jpg")


def test_frame_offset(raw):
    table = manifest(raw, frame_offset=-1)
    sources = dict(zip(table["frame"].to_pylist()[:10], table["source"].to_pylist()[:10], strict=True))
    assert sources == {n: f"Sequences(2D+3D)/F001/T1/{n - 1:04d}.jpg" for n in range(1, 11)}, "frame f is the image f − 1"
    assert table["AU12_c"].to_pylist()[:10] == [None, None, None, 0, 1, 0, 1, 0, 1, None]
    for wrong in (1, "automatic", True, 0.5):
        with pytest.raises(ConfigError, match="frame_offset is 0, -1 or auto"):
            get_dataset("bp4d", options={"frame_offset": wrong})


def test_frame_offset_by_the_ends_of_the_recordings(raw, caplog):
    """Labels that end level with the last image speak for 0, labels that end one past it for −1."""
    assert manifest(raw, frame_offset="auto") == manifest(raw)
    for folder in (raw / "Sequences(2D+3D)").glob("*/*"):
        (folder / sorted(p.name for p in folder.iterdir())[-1]).unlink()
    caplog.clear()
    assert manifest(raw, frame_offset="auto") == manifest(raw, frame_offset=-1)
    assert "one past the last image in 2 sessions and level with it in 0; taken as -1" in caplog.text


def test_report_gives_the_evidence_on_numbering(raw, caplog):
    _, report = survey(get_dataset("bp4d"), raw)
    notes = [note for session in report["sessions"] for note in session["notes"]]
    assert notes == ["there is an image 0; the last label row has its image"] * 2
    (raw / "Sequences(2D+3D)/F001/T1/0009.jpg").unlink()
    (raw / "Sequences(2D+3D)/F001/T1/0000.jpg").unlink()
    caplog.clear()
    _, report = survey(get_dataset("bp4d"), raw)
    assert "frame 9, has no image 9, while 8 is there" in caplog.text
    assert "there is no image 0; the last label row lacks its image" in report["sessions"][0]["notes"]


def test_occluded_frames_are_masked_only_if_asked(raw):
    """The last column of a legacy file."""
    path = raw / "AUCoding/AU_OCC/F001_T1.csv"
    lines = path.read_text().splitlines()
    lines[2] = lines[2][: -len("9")] + "1"
    path.write_text("\n".join(lines))
    assert manifest(raw)["AU12_c"].to_pylist()[:10] == [None] * 4 + [0, 1, 0, 1, 0, 1]
    masked = manifest(raw, mask_occluded=True)
    assert masked["AU12_c"].to_pylist()[:10] == [None] * 4 + [0, None, 0, 1, 0, 1]
    assert masked["AU06_r"].to_pylist()[5] == 5, "an intensity has its own file"


def test_frames_without_a_label_row_can_be_left_out(raw, caplog):
    table, report = survey(get_dataset("bp4d", options={"coded_only": True}), raw)
    assert table["frame"].to_pylist() == [*range(4, 10)] * 2
    assert "4 images without a label row left out (coded_only)" in report["sessions"][0]["notes"]
    (raw / "AUCoding/AU_OCC/M001_T8.csv").unlink()
    (raw / "AUCoding/AU_INT/AU06/M001_T8_AU06.csv").unlink()
    assert manifest(raw, coded_only=True).num_rows == 6, "a recording without labels has none to keep"


def write_points(path, frames):
    """As MATLAB 7.3 writes a struct array fit(1×n).pred: references to transposed arrays; an empty one is its sizes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        pred = file.create_dataset("fit/pred", (len(frames), 1), h5py.ref_dtype)
        for n, frame in enumerate(frames):
            data = np.zeros(2, np.uint64) if frame is None else np.asarray(frame, np.float64).T
            item = file.create_dataset(f"#refs#/{n}", data=data)
            if frame is None:
                item.attrs["MATLAB_empty"] = 1
            pred[n, 0] = item.ref


def make_points(n):
    return np.arange(98.0).reshape(49, 2) + 10 * n + 1


def test_landmarks_that_come_with_the_corpus(raw, caplog):
    frames = [make_points(n) if n != 5 else None for n in range(10)]
    write_points(raw / "2DFeatures/F001_T1.mat", frames)
    assert manifest(raw)["landmarks"].null_count == 20, "not asked for"
    table = manifest(raw, landmarks=True)
    assert table["landmarks"].null_count == 11, "frame 5, and M001, who has no file"
    for n in (0, 4, 9):
        np.testing.assert_array_equal(table["landmarks"][n].as_py(), make_points(n).ravel() - 1, "MATLAB counts from 1")
    moved = manifest(raw, landmarks=True, frame_offset=-1)
    assert moved["source"][4].as_py().endswith("0004.jpg")
    assert moved["landmarks"][4] == table["landmarks"][4], "landmarks are of the image, whatever its label"


def test_landmarks_of_a_recording_that_lacks_images_go_by_number(raw):
    write_points(raw / "2DFeatures/F001_T1.mat", [make_points(n) for n in range(10)])
    (raw / "Sequences(2D+3D)/F001/T1/0002.jpg").unlink()
    table = manifest(raw, landmarks=True)
    assert table["frame"].to_pylist()[:4] == [0, 1, 3, 4]
    np.testing.assert_array_equal(table["landmarks"][2].as_py(), make_points(3).ravel() - 1)


def test_plain_arrays_of_points_are_read_too(tmp_path):
    stack = np.stack([make_points(n) for n in range(3)])
    for name, data in (("a", stack), ("b", stack.transpose(0, 2, 1))):
        with h5py.File(tmp_path / name, "w") as file:
            file["fit/pred"] = data
        read = read_matlab_points((tmp_path / name).read_bytes())
        np.testing.assert_array_equal(np.stack(read), stack.reshape(3, 98) - 1)


@pytest.mark.parametrize("damage", ["cut", "text", "other", "empty"])
def test_damaged_landmarks_are_noted_and_the_labels_kept(raw, caplog, damage):
    path = raw / "2DFeatures/F001_T1.mat"
    write_points(path, [make_points(n) for n in range(10)])
    if damage == "other":
        with h5py.File(path, "w") as file:
            file["fit/points"] = np.zeros(3)
    else:
        path.write_bytes({"cut": path.read_bytes()[:3000], "text": b"hello", "empty": b""}[damage])
    table = manifest(raw, landmarks=True)
    assert table["landmarks"].null_count == table.num_rows == 20
    assert "F001_T1.mat" in caplog.text
    with pytest.raises(DataError, match=r"F001_T1\.mat"):
        manifest(raw, strict=True, landmarks=True)


def test_corpus_of_the_params_gives_its_options_to_the_reader():
    corpus = Corpus(layout="bp4d", aus="bp4d", options={"frame_offset": -1, "coded_only": True}, landmarks="supplied")
    dataset = dataset_of(corpus)
    assert (dataset.frame_offset, dataset.coded_only, dataset.landmarks) == (-1, True, True)
    assert dataset.landmark_scheme == "ibug49"
    assert not dataset_of(Corpus(layout="bp4d", aus="bp4d")).landmarks
    with pytest.raises(ConfigError, match=r"bp4d has no option 'offset'; known are frame_offset, coded_only"):
        get_dataset("bp4d", options={"offset": 1})


def test_named_sets_of_frames():
    """JAA-Net's list of frames and ME-GraphAU's differ by the 271 whose supplied landmarks are missing."""
    assert sum(last - first + 1 for ranges in LOST.values() for first, last in ranges) == 271
    corpus = Corpus(layout="bp4d", aus="bp4d", frames="landmarks")
    assert dataset_of(corpus).mask_lost
    assert not dataset_of(Corpus(layout="bp4d", aus="bp4d")).mask_lost
    with pytest.raises(ConfigError, match="known are coded, landmarks"):
        Corpus(layout="bp4d", aus="bp4d", frames="all")
    with pytest.raises(ConfigError, match="set its key frames"):
        Corpus(layout="bp4d", aus="bp4d", options={"mask_lost": True})


def test_frames_without_supplied_landmarks_are_masked_and_counted(tmp_path):
    raw = tmp_path / "bp4d"
    add_images(raw, "F021/T3", range(220, 230))
    add_labels(raw, "AU_OCC/F021_T3.csv", "\n".join([LEGACY_HEADER, *(legacy_row(f, AU1=1) for f in range(220, 230))]))
    table, report = survey(get_dataset("bp4d", options={"mask_lost": True}), raw)
    assert table["AU01_c"].to_pylist() == [1] * 3 + [None] * 5 + [1] * 2
    assert report["labelled"] == 5
    assert any(note.startswith("5 frames on which") for note in report["sessions"][0]["notes"])


def test_phantom_folders_are_no_sessions(raw):
    (raw / "Physiology/F042/T11").mkdir(parents=True)
    (raw / "Physiology/F042/T11/EDA.txt").write_text("0\n")
    (raw / "Sequences(2D+3D)/F001/T1_old").mkdir()
    caught = manifest(raw, strict=True)
    assert set(caught["subject"].to_pylist()) == {"F001", "M001"}


def test_unreadable_folder_is_reported_and_passed_over(raw, caplog, monkeypatch):
    """A cluster's permissions; to root, who runs tests in containers, everything is readable."""
    from aupipe import archives

    real = archives._list_directory

    def guarded(folder):
        if folder.name == "T1":
            raise DataError(f"cannot read the folder {folder}: Permission denied")
        return real(folder)

    monkeypatch.setattr(archives, "_list_directory", guarded)
    caplog.set_level(logging.WARNING)
    table = manifest(raw)
    assert table.num_rows == 16
    assert "T1: Permission denied" in caplog.text
    add_labels(raw, "x", "")
