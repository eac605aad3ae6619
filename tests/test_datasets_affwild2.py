"""datasets/affwild2: annotations of all challenges, image roots in batches, left and right faces, videos, and damage."""

import shutil

import pytest
from affwild2_trees import (
    ROWS,
    TREE,
    add_crops,
    add_labels,
    expected,
    make_raw,  # noqa: F401 – a fixture
    manifest,
    of,
)
from raw_trees import add_video, zip_folder

from aupipe.datasets import get_dataset, published_partition, survey
from aupipe.facs import AU_SETS, AUSet
from aupipe.schema import ConfigError, DataError, manifest_schema


def test_row_k_is_image_k(raw, caplog):
    table = manifest(raw, strict=True)
    assert table.schema == manifest_schema(AU_SETS["affwild2"])
    assert table["subject"].to_pylist() == table["session"].to_pylist() == ["video1"] * ROWS
    assert table["frame"].to_pylist() == [1, 2, 3, 4, 5, 6]
    assert table["source"].to_pylist() == [f"cropped_aligned/video1/{n:05d}.jpg" for n in range(1, 7)]
    assert table["index"].null_count == table["landmarks"].null_count == ROWS
    assert set(table["split"].to_pylist()) == {"train"}
    for k, column in enumerate(AU_SETS["affwild2"].columns):
        assert table[column].to_pylist() == expected(k)
    assert table["AU12_r"].null_count == ROWS
    assert not caplog.records


def test_columns_go_by_their_names(raw, caplog):
    add_labels(raw, header="AU26 ,AU25,AU24,AU23,AU15,AU12,AU10,AU7,AU6,AU4,AU2,AU1 ")
    table = manifest(raw, strict=True)
    assert table["AU01_c"].to_pylist() == expected(11)
    assert table["AU26_c"].to_pylist() == expected(0)
    add_labels(raw, header="AU1,AU2,AU4,AU6,AU12,AU15,AU20,AU25", columns=8)  # of the first challenge
    table = manifest(raw, aus=AUSet((1, 12, 20, 26)))
    assert table["AU20_c"].to_pylist() == expected(6)
    assert table["AU12_c"].to_pylist() == expected(4)
    assert table["AU26_c"].null_count == ROWS
    assert "no column for AU26" in caplog.text
    with pytest.raises(DataError, match="no column for AU26"):
        manifest(raw, aus=AUSet((26,)), strict=True)


@pytest.mark.parametrize("tree", [
    "annotations/AU_Set", "Third ABAW Annotations/AU_Detection_Challenge", "5th_ABAW_Annotations/AU_Detection_Challenge",
    "6th ABAW Annotations/AU_Detection_Challenge", "AU_Set", "labels/ABAW3/AU_detection_challenge",
])  # fmt: skip
@pytest.mark.parametrize("nested", ["", "Aff-Wild2 (original)"])
def test_annotation_trees_of_all_years(raw, tmp_path, tree, nested):
    whole = manifest(raw)
    moved = tmp_path / "moved"
    (moved / nested / tree).parent.mkdir(parents=True)
    shutil.move(raw / TREE, moved / nested / tree)
    shutil.move(raw / "cropped_aligned", moved / nested)
    table = manifest(moved, strict=True)
    assert table.drop_columns(["source"]) == whole.drop_columns(["source"])
    assert table["source"].null_count == 0


def test_the_latest_edition_counts_and_another_can_be_asked_for(raw, caplog):
    for tree in ("Third ABAW Annotations", "annotations"):
        add_labels(raw, tree=f"{tree}/{'AU_Set' if tree == 'annotations' else 'AU_Detection_Challenge'}", rows=4)
    add_labels(raw, "video2", tree="Third ABAW Annotations/AU_Detection_Challenge", side="Validation_Set")
    table = manifest(raw, strict=True)
    assert table["AU01_c"].to_pylist() == expected(0)
    assert set(table["session"].to_pylist()) == {"video1"}  # editions are never mixed
    assert "annotations are read from 6th ABAW Annotations/AU_Detection_Challenge, and not from Third ABAW" in caplog.text
    third = manifest(raw, annotations="third abaw")
    assert of(third, "video1")["AU01_c"].to_pylist() == [*expected(0, 4), None, None]
    assert set(of(third, "video2")["split"].to_pylist()) == {"val"}
    with pytest.raises(ConfigError, match=r"'seventh'.*'6th ABAW Annotations/AU_Detection_Challenge'"):
        manifest(raw, annotations="seventh")


@pytest.mark.parametrize("options", [{"media": "video"}, {"annotations": 6}, {"camera": "left"}])
def test_options_that_make_no_sense(raw, options):
    with pytest.raises(ConfigError, match="affwild2"):
        manifest(raw, **options)


def test_other_tasks_are_not_read(raw):
    for task in ("VA_Estimation_Challenge", "EXPR_Recognition_Challenge"):
        add_labels(raw, "video9", tree=f"6th ABAW Annotations/{task}")
    assert set(manifest(raw, strict=True)["session"].to_pylist()) == {"video1"}


def test_image_roots_are_merged_and_the_first_counts(raw, caplog):
    add_labels(raw, "video2")
    add_labels(raw, "video3", "Validation_Set")
    add_labels(raw, "video4")
    add_crops(raw, "video2", root="batch1/cropped_aligned")
    add_crops(raw, "video3", root="batch2/cropped_aligned_new_50_vids")
    add_crops(raw, "video4", root="cropped/batch2")
    add_crops(raw, "video1", root="cropped/batch1")
    add_crops(raw, "video2", root="cropped_aligned_new_50_vids")
    table = manifest(raw, strict=True)
    roots = {s: of(table, s)["source"].to_pylist()[0].rpartition("/")[0] for s in ("video1", "video2", "video3", "video4")}
    assert roots == {
        "video1": "cropped_aligned/video1",
        "video2": "cropped_aligned_new_50_vids/video2",
        "video3": "batch2/cropped_aligned_new_50_vids/video3",
        "video4": "cropped/batch2/video4",
    }
    assert "in two places" not in caplog.text
    _, report = survey(get_dataset("affwild2"), raw)
    assert any(note.startswith("2 videos have images in two places, with the same bytes") for note in report["notes"])
    (raw / "cropped/batch1/video1/00002.jpg").write_bytes(b"another")
    (raw / "batch1/cropped_aligned/video2/00007.jpg").touch()
    assert manifest(raw) == table, "of each video the first counts"
    assert "2 videos have images in two places, which differ" in caplog.text


def test_crops_and_annotations_in_zips(raw):
    whole = manifest(raw)
    zip_folder(raw / "6th ABAW Annotations")
    assert manifest(raw, strict=True) == whole
    zip_folder(raw / "cropped_aligned")
    table = manifest(raw, strict=True)
    assert table.drop_columns(["source"]) == whole.drop_columns(["source"])
    assert table["source"].to_pylist()[0] == "cropped_aligned.zip::cropped_aligned/video1/00001.jpg"


def test_missing_crops_are_rows_without_an_image(raw, caplog):
    for n in (2, 4, 5):
        (raw / f"cropped_aligned/video1/{n:05d}.jpg").unlink()
    table, report = survey(get_dataset("affwild2"), raw, strict=True)
    assert [source is None for source in table["source"].to_pylist()] == [False, True, False, True, True, False]
    assert table["AU01_c"].to_pylist() == expected(0)
    assert report["missing"] == 3
    assert "3 of 6 label rows have no crop, 0 crops have no row" in report["sessions"][0]["notes"]
    assert not caplog.records


@pytest.mark.parametrize("images", [5, 4])
def test_two_rows_more_than_images_are_usual(raw, images, caplog):
    shutil.rmtree(raw / "cropped_aligned")
    add_crops(raw, numbers=range(1, images + 1))
    table = manifest(raw, strict=True)
    assert table["source"].null_count == ROWS - images
    assert not caplog.records


def test_labels_far_beyond_the_last_image(raw, caplog):
    add_labels(raw, rows=10)
    table = manifest(raw)
    assert table["AU01_c"].to_pylist() == expected(0, 10)
    assert "4 of 10 rows are coded beyond the last image, 6" in caplog.text
    with pytest.raises(DataError, match="beyond the last image"):
        manifest(raw, strict=True)


def test_images_beyond_the_last_row_are_not_coded(raw, caplog):
    add_crops(raw, numbers=range(7, 11))
    table = manifest(raw, strict=True)
    assert table["AU01_c"].to_pylist() == [*expected(0), None, None, None, None]
    assert manifest(raw, coded_only=True)["frame"].to_pylist() == [1, 2, 3, 4, 5, 6]
    assert not caplog.records


def test_an_image_0_is_told(raw, caplog):
    add_crops(raw, numbers=[0])
    assert manifest(raw)["frame"].to_pylist() == [0, 1, 2, 3, 4, 5, 6]
    assert "there is an image 0" in caplog.text
    with pytest.raises(DataError, match="image 0"):
        manifest(raw, strict=True)


def test_padding_does_not_matter_and_a_number_is_there_once(raw):
    folder = raw / "cropped_aligned/video1"
    for n in range(1, ROWS + 1):
        (folder / f"{n:05d}.jpg").rename(folder / f"{n}.jpg")
    assert manifest(raw, strict=True)["source"].to_pylist()[5] == "cropped_aligned/video1/6.jpg"
    (folder / "006.jpg").touch()
    with pytest.raises(DataError, match=r"two images of frame 6.*006\.jpg and 6\.jpg"):
        manifest(raw, strict=True)
    assert manifest(raw)["source"].to_pylist()[5] == "cropped_aligned/video1/006.jpg"


def test_two_faces_of_a_video_are_subjects_of_one_group(raw):
    name = "135-24-1920x1080"
    for suffix in ("_left", "_right"):
        add_labels(raw, name + suffix)
        add_crops(raw, name + suffix)
    for face in ("video59", "video59_right"):
        add_labels(raw, face)
        add_crops(raw, face)
    table = manifest(raw, strict=True)
    assert table["subject"] == table["session"]
    for face in (f"{name}_left", f"{name}_right", "video59", "video59_right"):
        assert set(of(table, face)["group"].to_pylist()) == {name if face.startswith(name) else "video59"}
    assert of(table, f"{name}_left")["source"].to_pylist()[0] == f"cropped_aligned/{name}_left/00001.jpg"


def test_faces_of_a_video_on_both_sides_of_the_split(raw, caplog):
    for face, side in (("video5_left", "Train_Set"), ("video5_right", "Validation_Set")):
        add_labels(raw, face, side)
        add_crops(raw, face)
    manifest(raw)
    assert "on both sides of the official split: video5" in caplog.text
    with pytest.raises(DataError, match="official split: video5"):
        manifest(raw, strict=True)


def test_the_official_split_is_of_subjects(raw):
    for face, side in (("video5_left", "Train_Set"), ("video5_right", "Train_Set"), ("video6", "Validation_Set")):
        add_labels(raw, face, side)
        add_crops(raw, face)
    division = published_partition(get_dataset("affwild2"), manifest(raw))
    assert division.splits == {"train": {"video1", "video5_left", "video5_right"}, "val": {"video6"}}


def test_a_video_on_both_sides_of_the_split_is_an_error(raw):
    add_labels(raw, side="Validation_Set")
    with pytest.raises(DataError, match=r"video1 is on both sides.*Train_Set.*Validation_Set"):
        manifest(raw)


def test_videos_in_place_of_crops(raw):
    add_labels(raw, "7-60-1920x1080", rows=8)
    add_video(raw / "batch1/7-60-1920x1080.avi", 7)  # the official count is often one more
    table = of(manifest(raw, strict=True), "7-60-1920x1080")
    assert table["source"].to_pylist() == ["batch1/7-60-1920x1080.avi"] * 7 + [None]
    assert table["index"].to_pylist() == [0, 1, 2, 3, 4, 5, 6, None]
    assert table["AU01_c"].to_pylist() == expected(0, 8)
    add_video(raw / "batch1/video1.avi")
    assert manifest(raw)["source"].to_pylist()[-1].endswith(".jpg")
    assert manifest(raw, media="videos")["source"].to_pylist()[-1] == "batch1/video1.avi"


def test_a_video_of_two_faces_is_nobodys(raw, caplog):
    for suffix in ("_left", "_right"):
        add_labels(raw, f"video5{suffix}")
    add_video(raw / "batch2/video5.avi")
    table = manifest(raw)
    assert of(table, "video5_left")["source"].null_count == of(table, "video5_right")["source"].null_count == ROWS
    assert "2 of them are one of two faces" in caplog.text
    assert "video5" not in set(table["session"].to_pylist())


def test_a_video_that_cannot_be_opened_does_not_end_the_run(raw, caplog):
    add_labels(raw, "video2")
    (raw / "batch1").mkdir()
    (raw / "batch1/video2.mp4").write_bytes(b"no video")
    table = of(manifest(raw), "video2")
    assert table["source"].to_pylist() == ["batch1/video2.mp4"] * ROWS
    assert "video2.mp4 is not a video" in caplog.text


def test_videos_much_shorter_than_their_labels(raw, caplog):
    add_labels(raw, "video2")
    add_video(raw / "batch1/video2.avi", 3)
    assert of(manifest(raw), "video2")["source"].null_count == 3
    assert "3 of 6 labelled frames have no image" in caplog.text
    with pytest.raises(DataError, match=r"video2\.txt: 3 of 6"):
        manifest(raw, strict=True)


def test_halves_are_reported(raw, caplog):
    add_labels(raw, "video2", "Validation_Set")
    add_crops(raw, "video3")
    table = manifest(raw)
    assert of(table, "video2")["AU01_c"].to_pylist() == expected(0)
    assert of(table, "video2")["source"].null_count == ROWS
    assert of(table, "video3")["AU01_c"].null_count == ROWS
    assert set(of(table, "video3")["split"].to_pylist()) == {None}
    assert "1 videos have labels and no images: video2" in caplog.text
    assert "1 videos have no labels and are not of the test set: video3" in caplog.text
    with pytest.raises(DataError, match="video2"):
        manifest(raw, strict=True)
    assert set(manifest(raw, coded_only=True)["session"].to_pylist()) == {"video1", "video2"}


def test_the_test_set_has_names_alone(raw, caplog):
    folder = raw / "names_of_videos_in_each_test_set"
    folder.mkdir()
    (folder / "Action_Unit_Detection_Challenge_test_set_release.txt").write_bytes(b"video3\r\n7-60-1920x1080_left\r\n\r\n")
    (folder / "Expression_Classification_Challenge_test_set_release.txt").write_text("video1\n")
    for name in ("video3", "7-60-1920x1080_left"):
        add_crops(raw, name, [1, 2])
    table = manifest(raw, strict=True)
    assert set(of(table, "video3")["split"].to_pylist()) == {"test"}
    assert set(of(table, "7-60-1920x1080_left")["split"].to_pylist()) == {"test"}
    assert of(table, "video3")["AU01_c"].null_count == 2
    assert not caplog.records
    add_labels(raw, "video3")
    manifest(raw)
    assert "1 videos of the test set have labels: video3" in caplog.text


def test_crops_without_any_annotations(raw, caplog):
    shutil.rmtree(raw / "6th ABAW Annotations")
    assert manifest(raw)["AU01_c"].null_count == ROWS
    assert "no annotations of AUs" in caplog.text
    with pytest.raises(DataError, match="no annotations of AUs"):
        manifest(raw, strict=True)


def test_files_that_file_managers_leave_behind(raw, caplog):
    for name in ("cropped_aligned/.DS_Store", "cropped_aligned/video1/._00001.jpg", "cropped_aligned/video1/Thumbs.db",
                 f"{TREE}/Train_Set/._video1.txt", "__MACOSX/cropped_aligned/video8/._00001.jpg",
                 "cropped_aligned/__MACOSX/video7/00001.jpg", f"{TREE}/.DS_Store"):  # fmt: skip
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / name).write_bytes(b"\0\5\x16\7")
    assert set(manifest(raw, strict=True)["session"].to_pylist()) == {"video1"}
    assert not caplog.records


def test_names_in_another_form_of_unicode(raw):
    add_labels(raw, "v\u00eddeo")
    add_crops(raw, "vi\u0301deo")  # as a Mac writes it
    table = of(manifest(raw, strict=True), "v\u00eddeo")
    assert table["source"].null_count == 0
    assert all((raw / source).exists() for source in table["source"].to_pylist())
