"""datasets/disfaplus: the tree as delivered, trials that lack a part, malformed labels."""

import shutil

import pytest
from raw_trees import FRAMES, LEVELS, TWELVE, add_images, disfa_tree, read, zip_folder

from aupipe.datasets import get_dataset
from aupipe.facs import AU_SETS, AUSet
from aupipe.schema import ConfigError, DataError


def manifest(raw, **options):
    return read("disfaplus", raw, **options)


def add_trial(raw, subject="SN001", trial="A1_AU1_TrailNo_1", aus=TWELVE):
    add_images(raw / "Images" / subject / trial, [f"{n:03d}.jpg" for n in range(FRAMES)])
    for au in aus:
        path = raw / "Labels" / subject / trial / f"AU{au}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [f"{n:03d}.jpg  {LEVELS[n]}\n" for n in range(FRAMES)]
        path.write_text("".join([f"Intensity of AU{au}\n", "frame  intensity\n", *rows]))
    return raw


def test_disfaplus_as_delivered(tmp_path, caplog):
    raw = add_trial(tmp_path / "DISFAPlusDataset")
    table = manifest(raw, aus=AUSet((1, 12)), strict=True)
    assert table["subject"].to_pylist() == ["SN001"] * FRAMES
    assert table["session"].to_pylist() == ["A1_AU1_TrailNo_1"] * FRAMES
    assert table["frame"].to_pylist() == list(range(FRAMES))
    assert table["source"].to_pylist() == [f"Images/SN001/A1_AU1_TrailNo_1/{n:03d}.jpg" for n in range(FRAMES)]
    assert table["AU12_r"].to_pylist() == [LEVELS[n] for n in range(FRAMES)]
    assert table["AU12_c"].to_pylist() == [int(LEVELS[n] >= 2) for n in range(FRAMES)]
    assert table["index"].null_count == FRAMES
    assert not caplog.records
    assert get_dataset("disfaplus").landmark_scheme is None


def test_disfaplus_trials_without_an_au_or_a_half(tmp_path, caplog):
    raw = add_trial(tmp_path / "plus")
    add_trial(raw, "SN003", "Y2", aus=(1, 2))
    add_trial(raw, "SN004", "Y3", aus=())
    add_trial(raw, "SN007", "Y4")
    shutil.rmtree(raw / "Images/SN007")
    table = manifest(raw, aus=AUSet((1, 12)))
    assert table.num_rows == 4 * FRAMES
    assert table["AU12_c"].null_count == 2 * FRAMES  # of SN003's trial, and of SN004's
    assert table["AU01_c"].null_count == FRAMES
    assert table["source"].null_count == FRAMES
    assert "SN003/Y2 has no label file of AU12" in caplog.text
    assert "1 trials have images and no labels, such as SN004/Y3" in caplog.text
    assert "1 trials have labels and no images, such as SN007/Y4" in caplog.text
    with pytest.raises(DataError, match="SN007/Y4"):
        manifest(raw, strict=True)


def test_disfaplus_in_zips(tmp_path):
    raw = add_trial(tmp_path / "plus")
    whole = manifest(raw)
    zip_folder(raw / "Labels/SN001")
    assert manifest(raw, strict=True) == whole
    zip_folder(raw / "Images")
    table = manifest(raw, strict=True)
    assert table.drop_columns(["source"]) == whole.drop_columns(["source"])
    assert table["source"].to_pylist()[0] == "Images.zip::Images/SN001/A1_AU1_TrailNo_1/000.jpg"


PLUS_ERRORS = {
    "no header": ("000.jpg  0\n001.jpg  1\n", "line 1: expected 2 lines of header"),
    "one line of header": ("h\n000.jpg  0\n", "line 2"),
    "code": ("h\nh\n000.jpg  7\n", "line 3: '7'"),
    "no image": ("h\nh\n000.jpg  0\nabc  1\n", "line 4: .*'abc  1'"),
    "nothing": ("h\nh\n", "no labelled frame"),
    "conflict": ("h\nh\n000.jpg  0\n000.jpg  1\n", "line 4: frame 0"),
}


@pytest.mark.parametrize("error", PLUS_ERRORS)
def test_malformed_labels_of_disfaplus(tmp_path, error):
    raw = add_trial(tmp_path / "plus")
    data, message = PLUS_ERRORS[error]
    (raw / "Labels/SN001/A1_AU1_TrailNo_1/AU12.txt").write_text(data)
    with pytest.raises(DataError, match=rf"AU12\.txt.*{message}"):
        manifest(raw, strict=True)
    table = manifest(raw)
    assert table["AU12_r"].null_count == table.num_rows
    assert table["AU01_r"].null_count == 0


def test_the_same_people_in_both_corpora(tmp_path):
    raw, plus = disfa_tree(tmp_path / "disfa"), add_trial(tmp_path / "plus")
    assert set(read("disfa", raw)["subject"].to_pylist()) == set(manifest(plus)["subject"].to_pylist())
    assert get_dataset("disfaplus").aus == get_dataset("disfa").aus == AU_SETS["disfa"]
    with pytest.raises(ConfigError, match=r"disfaplus.*threshold"):
        get_dataset("disfaplus", None, {"threshold": 9})
