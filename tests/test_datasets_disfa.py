"""datasets/disfa: trees as copies have them, both cameras, videos and images, and damage."""

import logging
import shutil

import av
import numpy as np
import pytest
from raw_trees import FRAMES, TWELVE, add_images, add_labels, add_video, disfa_tree, levels_of, read, zip_folder

from aupipe.datasets import get_dataset, known_layouts, survey
from aupipe.facs import AUSet
from aupipe.schema import ConfigError, DataError, manifest_schema
from aupipe.video import read_frames


@pytest.fixture
def raw(tmp_path):
    return disfa_tree(tmp_path / "disfa")


def manifest(raw, **options):
    return read("disfa", raw, **options)


def test_a_video_and_twelve_label_files(raw, caplog):
    table = manifest(raw, strict=True, aus=AUSet(TWELVE))
    assert table.schema == manifest_schema(AUSet(TWELVE))
    assert table["subject"].to_pylist() == ["SN001"] * FRAMES
    assert table["session"].to_pylist() == ["left"] * FRAMES
    assert table["frame"].to_pylist() == [1, 2, 3, 4, 5, 6]
    assert table["index"].to_pylist() == [0, 1, 2, 3, 4, 5]
    assert set(table["source"].to_pylist()) == {"Videos_LeftCamera/LeftVideoSN001_comp.avi"}
    for au in TWELVE:
        assert table[f"AU{au:02d}_r"].to_pylist() == levels_of(au)
        assert table[f"AU{au:02d}_c"].to_pylist() == [int(level >= 2) for level in levels_of(au)]
    assert table["landmarks"].null_count == FRAMES
    assert not caplog.records


@pytest.mark.parametrize(("threshold", "positive"), [(1, 5), (2, 4), (3, 3), (5, 1)])
def test_occurrence_is_an_intensity_from_the_threshold_on(raw, threshold, positive):
    assert sum(manifest(raw, threshold=threshold)["AU12_c"].to_pylist()) == positive


@pytest.mark.parametrize(
    "options",
    [{"threshold": 0}, {"threshold": 6}, {"threshold": True}, {"camera": "top"}, {"frame_base": 2}, {"frame_base": True},
     {"landmarks": True, "camera": "right"}, {"treshold": 2}],
)  # fmt: skip
def test_options_that_make_no_sense(raw, options):
    with pytest.raises(ConfigError, match=r"disfa.*(threshold|camera|frame_base|landmarks)"):
        manifest(raw, **options)


def test_published_parts():
    for layout in ("disfa", "disfaplus"):
        published = get_dataset(layout).published
        assert published.aliases["jaanet-combine_1_2"] == published.aliases["megraphau-fold1"] == 2
        assert published.aliases["megraphau-fold3"] == published.aliases["libreface-2"] == 0
        assert published.aliases["libreface-0"] == 2
    parts = get_dataset("disfa").published.parts
    assert [len(part) for part in parts] == [9, 9, 9]
    numbers = [*range(1, 14), 16, 17, 18, 21, *range(23, 33)]
    assert frozenset().union(*parts) == {f"SN{n:03d}" for n in numbers}
    assert ["SN002" in parts[0], "SN021" in parts[1], "SN004" in parts[2]] == [True] * 3
    plus = get_dataset("disfaplus").published.parts
    assert sorted(frozenset().union(*plus)) == [f"SN{n:03d}" for n in (1, 3, 4, 7, 9, 10, 13, 25, 27)]
    assert all(few <= many for few, many in zip(plus, parts, strict=True))  # the same person, the same part
    assert {"disfa", "disfaplus"} <= set(known_layouts())


TREES = {
    "singular video": ("Videos_LeftCamera", "Video_LeftCamera"),
    "lower case": ("Videos_LeftCamera", "videos_leftcamera"),
    "plural labels": ("ActionUnit_Labels", "ActionUnits_Labels"),
    "one level down": ("", "DISFA"),
    "two levels down": ("", "data/DISFA"),
    "double": ("ActionUnit_Labels", "ActionUnit_Labels/ActionUnit_Labels"),
    "double videos": ("Videos_LeftCamera", "Videos_LeftCamera/Videos_LeftCamera"),
    "video case": ("Videos_LeftCamera/LeftVideoSN001_comp.avi", "Videos_LeftCamera/leftvideosn001_Comp.AVI"),
    "spaces and accents": ("", "Ma the\u0301se (copie)/DISFA"),
    "labels in one folder": ("ActionUnit_Labels/SN001", "ActionUnit_Labels"),
    "label case": ("ActionUnit_Labels/SN001/SN001_au12.txt", "ActionUnit_Labels/SN001/sn001_AU12.TXT"),
}


@pytest.mark.parametrize("tree", TREES)
def test_folders_as_others_name_them(raw, tmp_path, tree):
    before, after = TREES[tree]
    whole = manifest(raw)
    moved = tmp_path / "moved"
    raw.rename(moved)
    (raw / after).parent.mkdir(parents=True, exist_ok=True)
    if before == "":
        moved.rename(raw / after)
    elif tree == "labels in one folder":
        shutil.copytree(moved / before, raw / after)
        shutil.rmtree(moved / before)
        shutil.copytree(moved, raw, dirs_exist_ok=True)
    else:
        source = moved / before
        kept = tmp_path / "kept"
        source.rename(kept)
        shutil.copytree(moved, raw, dirs_exist_ok=True)
        kept.rename(raw / after)
    table = manifest(raw, strict=True)
    assert table.drop_columns(["source"]) == whole.drop_columns(["source"])
    assert all((raw / source).is_file() for source in table["source"].to_pylist())


def test_the_corpus_in_the_zips_that_it_comes_in(raw):
    whole = manifest(raw)
    for name in ("Videos_LeftCamera", "ActionUnit_Labels"):
        zip_folder(raw / name)
    table = manifest(raw, strict=True)
    assert table.drop_columns(["source"]) == whole.drop_columns(["source"])
    member = "Videos_LeftCamera.zip::Videos_LeftCamera/LeftVideoSN001_comp.avi"
    assert set(table["source"].to_pylist()) == {member}


def test_zips_inside_a_folder_or_a_zip(raw):
    whole = manifest(raw)
    zip_folder(raw / "ActionUnit_Labels/SN001")
    assert manifest(raw, strict=True) == whole
    zip_folder(raw / "ActionUnit_Labels")
    assert manifest(raw, strict=True) == whole


def test_both_cameras_are_sessions_of_one_subject(raw):
    add_video(raw / "Video_RightCamera/RightVideoSN001_Comp.avi", FRAMES - 1)
    assert set(manifest(raw)["session"].to_pylist()) == {"left"}
    right = manifest(raw, camera="right")
    assert set(right["source"].to_pylist()) == {"Video_RightCamera/RightVideoSN001_Comp.avi", None}
    assert right["source"].to_pylist()[-1] is None
    both = manifest(raw, camera="both")
    assert set(both["subject"].to_pylist()) == {"SN001"}
    assert both["session"].to_pylist() == ["left"] * FRAMES + ["right"] * FRAMES
    assert both["AU12_c"].to_pylist() == 2 * manifest(raw)["AU12_c"].to_pylist()


def test_a_missing_camera_is_reported_with_the_other(raw, caplog):
    table = manifest(raw, camera="right")
    assert table["source"].null_count == table.num_rows == FRAMES
    assert "1 subjects have labels and no video" in caplog.text
    assert "option camera" in caplog.text
    with pytest.raises(DataError, match="option camera"):
        manifest(raw, camera="right", strict=True)


IMAGES = {
    "ME-GraphAU": ("img/SN001", "{}.png", 0),
    "JAA-Net": ("SN001", "{}.jpg", 0),
    "ffmpeg": ("SN001", "{:05d}.jpg", 1),
    "LibreFace": ("Videos_LeftCamera/LeftVideoSN001_comp", "LeftVideoSN001_comp_{:04d}.png", 1),
    "folder called like the video": ("Videos_LeftCamera/LeftVideoSN001_comp.avi", "frame-{}.jpg", 1),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_extracted_images(raw, kind, caplog):
    folder, name, base = IMAGES[kind]
    shutil.rmtree(raw / "Videos_LeftCamera")
    add_images(raw / folder, [name.format(n + base) for n in range(FRAMES)])
    table = manifest(raw, strict=True)
    assert table["frame"].to_pylist() == [1, 2, 3, 4, 5, 6]
    assert table["source"].to_pylist() == [f"{folder}/{name.format(n + base)}" for n in range(FRAMES)]
    assert table["index"].null_count == FRAMES
    assert not caplog.records


def test_images_of_a_camera_that_is_not_wanted(raw):
    shutil.rmtree(raw / "Videos_LeftCamera")
    add_images(raw / "Frames_RightCamera/SN001", [f"{n}.png" for n in range(FRAMES)])
    add_images(raw / "img/SN001", [f"{n}.jpg" for n in range(FRAMES)])
    assert manifest(raw)["source"].to_pylist()[0] == "img/SN001/0.jpg"
    assert manifest(raw, camera="right")["source"].to_pylist()[0] == "Frames_RightCamera/SN001/0.png"


def test_the_base_of_images_is_reported_and_can_be_set(raw, caplog):
    shutil.rmtree(raw / "Videos_LeftCamera")
    folder = raw / "SN001"
    add_images(folder, [f"{n}.png" for n in range(1, FRAMES)])  # without an image 0
    assert manifest(raw)["source"].to_pylist() == [*(f"SN001/{n}.png" for n in range(1, FRAMES)), None]
    assert manifest(raw, frame_base=0)["source"].to_pylist() == [None, *(f"SN001/{n}.png" for n in range(1, FRAMES))]
    _, report = survey(get_dataset("disfa"), raw)
    assert "images are numbered 1 to 5; counted from 1" in report["sessions"][0]["notes"]
    (folder / "1.png").unlink()
    assert manifest(raw)["source"].to_pylist()[:2] == [None, "SN001/2.png"]
    assert "no image 0 or 1" in caplog.text
    with pytest.raises(DataError, match="frame_base"):
        manifest(raw, strict=True)


def test_a_video_comes_before_images(raw):
    add_images(raw / "SN001", [f"{n}.png" for n in range(FRAMES)])
    table, report = survey(get_dataset("disfa"), raw, strict=True)
    assert table["source"].to_pylist()[0].endswith(".avi")
    assert "1 folders of images are left out" in report["notes"][0]


def test_two_images_of_one_frame(raw):
    shutil.rmtree(raw / "Videos_LeftCamera")
    add_images(raw / "SN001", [*(f"{n}.png" for n in range(FRAMES)), "0002.jpg"])
    with pytest.raises(DataError, match=r"two images of frame 2.*0002\.jpg and 2\.png"):
        manifest(raw, strict=True)
    table = manifest(raw)
    assert table.num_rows == FRAMES
    assert table["source"].to_pylist()[2] == "SN001/0002.jpg"


def test_two_videos_of_one_camera(raw, caplog):
    add_video(raw / "Video_LeftCamera/LeftVideoSN001_comp.avi", 2)
    assert manifest(raw).num_rows == FRAMES
    assert "the first is taken" in caplog.text
    with pytest.raises(DataError, match="the first is taken"):
        manifest(raw, strict=True)


@pytest.mark.parametrize(("frames", "rows"), [(FRAMES, FRAMES - 1), (FRAMES - 1, FRAMES), (FRAMES - 2, FRAMES)])
def test_lengths_that_differ_a_little_are_a_line_in_the_log(raw, frames, rows, caplog):
    add_video(raw / "Videos_LeftCamera/LeftVideoSN001_comp.avi", frames)
    add_labels(raw / "ActionUnit_Labels/SN001", rows=rows)
    caplog.set_level(logging.INFO)
    table = manifest(raw, strict=True)
    assert table["frame"].to_pylist() == [1, 2, 3, 4, 5, 6]
    assert table["source"].null_count == FRAMES - frames
    assert table["index"].to_pylist() == [*range(frames), *[None] * (FRAMES - frames)]
    assert table["AU12_c"].null_count == table["AU12_r"].null_count == FRAMES - rows  # never the last row again
    assert f"{rows} labelled frames, and {frames} in" in caplog.text


def test_labels_much_longer_than_the_video(raw, caplog):
    add_video(raw / "Videos_LeftCamera/LeftVideoSN001_comp.avi", 3)
    table = manifest(raw)
    assert table["AU12_r"].to_pylist() == levels_of(12)
    assert table["source"].null_count == 3
    assert "3 of 6 labelled frames have no image" in caplog.text
    with pytest.raises(DataError, match="3 of 6 labelled frames have no image"):
        manifest(raw, strict=True)


def test_the_codec_of_the_corpus_is_decoded(raw):
    path = raw / "Videos_LeftCamera/LeftVideoSN001_comp.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("cinepak", rate=20)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "rgb24"
        for n in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(np.full((24, 32, 3), 40 * n, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    table = manifest(raw, strict=True)
    assert table["index"].to_pylist() == list(range(FRAMES))
    brightness = [frame.image.mean() for frame in read_frames(path)]
    np.testing.assert_allclose(brightness, [40 * n for n in range(FRAMES)], atol=6)


def test_a_truncated_video_keeps_its_first_frames(raw):
    path = add_video(raw / "Videos_LeftCamera/LeftVideoSN001_comp.avi", 40)
    add_labels(raw / "ActionUnit_Labels/SN001", rows=40)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    table = manifest(raw)
    found = [source is not None for source in table["source"].to_pylist()]
    assert len(found) == 40
    assert 0 < sum(found) < 40
    assert found == sorted(found, reverse=True)
    assert table["AU12_c"].null_count == 0
    with pytest.raises(DataError, match="have no image"):
        manifest(raw, strict=True)


def test_a_video_that_cannot_be_opened_does_not_end_the_run(raw, caplog):
    add_video(raw / "Videos_LeftCamera/LeftVideoSN002_comp.avi")
    add_labels(raw / "ActionUnit_Labels/SN002", "SN002")
    (raw / "Videos_LeftCamera/LeftVideoSN001_comp.avi").write_bytes(b"not a video")
    table = manifest(raw)
    assert table.num_rows == 2 * FRAMES
    assert table["source"].null_count == 0  # whoever reads the frames says that they are unreadable
    assert "LeftVideoSN001_comp.avi is not a video" in caplog.text
    with pytest.raises(DataError, match="is not a video"):
        manifest(raw, strict=True)


def test_an_au_without_its_file_is_not_coded_and_not_absent(raw, caplog):
    add_video(raw / "Videos_LeftCamera/LeftVideoSN002_comp.avi")
    add_labels(raw / "ActionUnit_Labels/SN002", "SN002")
    (raw / "ActionUnit_Labels/SN001/SN001_au12.txt").unlink()
    table = manifest(raw)
    first = table.slice(0, FRAMES)
    assert first["AU12_c"].null_count == first["AU12_r"].null_count == FRAMES
    assert first["AU01_c"].null_count == table.slice(FRAMES)["AU12_c"].null_count == 0
    assert "SN001/left has no label file of AU12" in caplog.text
    with pytest.raises(DataError, match="AU12"):
        manifest(raw, strict=True)


def test_an_au_that_nobody_has_a_file_of_is_said_once(raw, caplog):
    add_video(raw / "Videos_LeftCamera/LeftVideoSN002_comp.avi")
    add_labels(raw / "ActionUnit_Labels/SN002", "SN002")
    table = manifest(raw, aus=AUSet((12, 14)))
    assert table["AU14_c"].null_count == 2 * FRAMES
    assert caplog.text.count("AU14") == 1
    with pytest.raises(DataError, match="AU14"):
        manifest(raw, aus=AUSet((12, 14)), strict=True)


def test_aus_of_different_length(raw, caplog):
    path = raw / "ActionUnit_Labels/SN001/SN001_au12.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))
    table = manifest(raw)
    assert table["AU12_r"].to_pylist() == [*levels_of(12)[:-2], None, None]
    assert table["AU25_r"].to_pylist() == levels_of(25)
    assert "6 rows of AU01, but 4 of AU12" in caplog.text


@pytest.mark.parametrize("lost", ["Videos_LeftCamera", "ActionUnit_Labels/SN001"])
def test_one_half_without_the_other_is_reported(raw, lost, caplog):
    shutil.rmtree(raw / lost)
    table = manifest(raw)
    assert table.num_rows == FRAMES
    if lost.startswith("Videos"):
        assert table["AU12_r"].to_pylist() == levels_of(12)
        assert table["source"].null_count == FRAMES
        assert "1 subjects have labels and no video or images: SN001" in caplog.text
    else:
        assert table["AU12_c"].null_count == FRAMES
        assert "1 subjects have no labels: SN001" in caplog.text


def test_nothing_of_disfa_says_what_to_do(raw):
    for child in list(raw.iterdir()):
        shutil.rmtree(child)
    (raw / "readme.txt").touch()
    with pytest.raises(DataError, match="no corpus in"):
        manifest(raw)


def test_files_that_file_managers_leave_behind(raw, caplog):
    for name in ("Videos_LeftCamera/._LeftVideoSN001_comp.avi", "ActionUnit_Labels/SN001/._SN001_au1.txt",
                 "ActionUnit_Labels/.DS_Store", "__MACOSX/ActionUnit_Labels/SN009/SN009_au1.txt", "Thumbs.db"):  # fmt: skip
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / name).write_bytes(b"\0\5\x16\7")
    assert manifest(raw, strict=True).num_rows == FRAMES
    assert not caplog.records


def test_links_in_circles(raw):
    (raw / "ActionUnit_Labels/loop").symlink_to(raw)
    (raw / "Videos_LeftCamera/self").symlink_to(raw / "Videos_LeftCamera/self")
    assert manifest(raw).num_rows == FRAMES


def test_a_damaged_zip_is_one_sentence(raw):
    zip_folder(raw / "ActionUnit_Labels")
    path = raw / "ActionUnit_Labels.zip"
    data = bytearray(path.read_bytes())
    data[60:100] = bytes(40)  # inside the first member
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"ActionUnit_Labels\.zip") as caught:
        manifest(raw, strict=True)
    assert "\n" not in str(caught.value)
