"""check.py: a copy that agrees with what is published passes, and each way of differing is named with its likely cause."""

import shutil

import numpy as np
import pytest
from bp4d_trees import add_images

from aupipe import check
from aupipe.check import check_corpus
from aupipe.datasets import bp4d as bp4d_layout
from aupipe.datasets import disfa as disfa_layout
from aupipe.datasets import get_dataset
from aupipe.schema import ConfigError, DataError

BP4D_AUS = (1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24)


def test_tables_hold_together():
    """Sizes and sums as in the sources: parts, sequences, frames, and DISFA's histogram against its positives."""
    spans, counts = check._read_spans("bp4d"), check._read_counts("bp4d")
    assert len(spans) == 328
    assert sum(span.frames for span in spans.values()) == 146_847
    assert max(span.last for span in spans.values()) == 2992
    assert (spans["F001", "T1"].first, spans["F001", "T1"].last) == (2440, 2992)
    for number, part in enumerate(get_dataset("bp4d").published.parts, 1):
        own = [span for (subject, _), span in spans.items() if subject in part]
        assert len(own) == 8 * len(part)
        assert {span.part for span in own} == {str(number)}
        assert sum(span.frames for span in own) == counts[str(number), "frames"]
    assert sum(counts[p, "AU06"] for p in "123") == 67_676
    lost = {k: sum(b - a + 1 for a, b in r) for k, r in bp4d_layout.LOST.items()}
    of_parts = [sum(n for k, n in lost.items() if spans[k].part == p) for p in "123"]
    assert [counts[p, "frames"] - n for p, n in zip("123", of_parts, strict=True)] == [50_601, 50_166, 45_809], "JAA-Net's"
    for key, ranges in bp4d_layout.LOST.items():
        assert all(spans[key].first <= a <= b <= spans[key].last for a, b in ranges)

    spans, counts = check._read_spans("disfa"), check._read_counts("disfa")
    assert {subject for subject, _ in spans} == frozenset().union(*get_dataset("disfa").published.parts)
    lost = {s: sum(b - a + 1 for a, b in r) for s, r in disfa_layout.LOST.items()}
    for number, (part, kept) in enumerate(
        zip(get_dataset("disfa").published.parts, (43_173, 40_344, 42_627), strict=True), 1
    ):
        frames = sum(span.frames for (subject, _), span in spans.items() if subject in part)
        assert frames == counts[str(number), "frames"]
        assert frames - sum(lost.get(s, 0) for s in part) == kept, "JAA-Net's"
    for au in (1, 2, 4, 6, 9, 12, 25, 26):
        levels = [counts["all", f"AU{au:02d}={n}"] for n in range(6)]
        assert sum(levels) == 130_814
        assert sum(levels[2:]) == sum(counts[p, f"AU{au:02d}"] for p in "123")


def write_bp4d_labels(raw, spans, positives):
    """Label files in which the first frames of each part are the positive ones, as many as `positives` says."""
    left = dict(positives)
    (raw / "AUCoding/AU_OCC").mkdir(parents=True)
    for (subject, task), span in sorted(spans.items()):
        columns = [np.arange(span.first, span.last + 1)]
        for au in BP4D_AUS:
            count = min(left[span.part, f"AU{au:02d}"], span.frames)
            left[span.part, f"AU{au:02d}"] -= count
            columns.append((np.arange(span.frames) < count).astype(int))
        rows = [",".join(map(str, row)) for row in np.stack(columns, 1).tolist()]
        header = ",".join(map(str, (1, *BP4D_AUS)))
        (raw / f"AUCoding/AU_OCC/{subject}_{task}.csv").write_text("\n".join([header, *rows]))


def test_copy_of_the_published_size_passes(tmp_path):
    spans, counts = check._read_spans("bp4d"), check._read_counts("bp4d")
    write_bp4d_labels(tmp_path, spans, counts)
    for subject, task in spans:
        add_images(tmp_path, f"{subject}/{task}", [spans[subject, task].first])
    lines = check_corpus(tmp_path, "bp4d")
    differing = [line for line in lines if line.verdict != check.SAME]
    assert [line.what for line in differing] == ["coded frames without an image"]
    assert len(lines) == 4 + 1 + 4 + 1 + 12 * 4
    found = {line.what: line.found for line in lines}
    assert found["coded frames"] == 146_847
    assert found["AU12"] == 82_530
    assert found["AU24, part 3"] == 7_286


SPANS = {
    ("F001", "T1"): check._Span("1", 3, 12),
    ("F001", "T2"): check._Span("1", 1, 10),
    ("M001", "T1"): check._Span("2", 5, 14),
    ("M002", "T1"): check._Span("2", 1, 10),
}
COUNTS = {(p, f"AU{au:02d}"): 7 for p in "12" for au in BP4D_AUS} | {(p, "frames"): 20 for p in "12"}


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """A small corpus that agrees with a small publication."""
    monkeypatch.setattr(check, "_read_spans", lambda layout: SPANS)
    monkeypatch.setattr(check, "_read_counts", lambda layout: COUNTS)
    write_bp4d_labels(tmp_path, SPANS, COUNTS)
    for (subject, task), span in SPANS.items():
        add_images(tmp_path, f"{subject}/{task}", range(span.last + 3))
    assert {line.verdict for line in check_corpus(tmp_path, "bp4d")} == {check.SAME}
    return tmp_path


def differing(raw, **options):
    return {line.what: line for line in check_corpus(raw, "bp4d", options) if line.verdict == check.DIFFERS}


def edit(raw, name, change):
    path = raw / f"AUCoding/AU_OCC/{name}.csv"
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *change([row.split(",") for row in rows])]))


def joined(rows):
    return [",".join(map(str, row)) for row in rows]


def test_subject_without_images_is_a_missing_zip(raw):
    shutil.rmtree(raw / "Sequences/M002")
    lines = differing(raw)
    assert set(lines) == {"subjects with images", "coded frames without an image"}
    assert "images of M002 are missing: a zip" in lines["subjects with images"].cause
    assert (lines["coded frames without an image"].found, lines["subjects with images"].found) == (10, 2)
    assert "no image at all of M002/T1: a zip" in lines["coded frames without an image"].cause


def test_missing_and_foreign_subjects_are_named(raw):
    (raw / "AUCoding/AU_OCC/M002_T1.csv").unlink()
    shutil.copy(raw / "AUCoding/AU_OCC/F001_T1.csv", raw / "AUCoding/AU_OCC/F099_T1.csv")
    lines = differing(raw)
    assert "labels of M002 are missing" in lines["subjects with labels"].cause
    assert "F099 are not of this corpus" in lines["other subjects"].cause
    assert "no labels of M002/T1" in lines["coded recordings"].cause
    assert lines["coded frames, part 2"].found == 10
    assert "M002/T1" in lines["coded frames, part 2"].cause


def test_nines_that_were_counted_as_present_there_are_told(raw):
    edit(raw, "F001_T1", lambda rows: joined([[r[0], "9" if n < 2 else r[1], *r[2:]] for n, r in enumerate(rows)]))
    lines = differing(raw)
    assert set(lines) == {"AU01, part 1", "AU01"}
    assert (lines["AU01, part 1"].found, lines["AU01, part 1"].published) == (5, 7)
    assert "the 2 codes for unknown (9) were counted as present there" in lines["AU01, part 1"].cause


def test_nines_that_were_turned_into_ones_are_told(raw):
    edit(raw, "F001_T1", lambda rows: joined([[r[0], "1" if n >= 8 else r[1], *r[2:]] for n, r in enumerate(rows)]))
    line = differing(raw)["AU01, part 1"]
    assert line.found == 9, "seven, and the last two of ten"
    assert "nines were turned into ones" in line.cause
    assert str(line).startswith("differs AU01, part 1")


def test_shifted_frame_base_is_told(raw):
    for name in ("F001_T1", "F001_T2", "M001_T1", "M002_T1"):
        edit(raw, name, lambda rows: joined([[int(r[0]) + 1, *r[1:]] for r in rows]))
    lines = differing(raw)
    assert set(lines) == {"recordings whose coded frames are others"}
    assert (
        "frame numbers are 1 higher than published: a shifted frame base"
        in lines["recordings whose coded frames are others"].cause
    )


def test_images_that_end_one_early_are_told(raw):
    for (subject, task), span in SPANS.items():
        for image in (raw / f"Sequences/{subject}/{task}").iterdir():
            if int(image.stem) >= span.last:
                image.unlink()
    line = differing(raw)["coded frames without an image"]
    assert line.found == 4
    assert "of 4 recordings the last coded frame alone: images counted from 0 and labels from 1?" in line.cause
    assert not differing(raw, frame_offset=-1)


def test_lost_and_added_rows_are_told(raw):
    edit(raw, "M001_T1", lambda rows: joined(rows[:-2]))
    edit(raw, "F001_T2", lambda rows: joined([*rows, ["11", *"0" * 12]]))
    lines = differing(raw)
    assert "other frames are coded in F001/T2, M001/T1" in lines["recordings whose coded frames are others"].cause
    assert (lines["coded frames, part 1"].found, lines["coded frames, part 2"].found) == (21, 18)
    assert "M001/T1" in lines["coded frames, part 2"].cause


def write_disfa(raw, levels_of, subjects=("SN001", "SN002"), rows=20):
    (raw / "Videos_LeftCamera").mkdir(parents=True)
    for subject in subjects:
        add_images(raw, subject, range(rows), root="Frames_LeftCamera")
        folder = raw / "ActionUnit_Labels" / subject
        folder.mkdir(parents=True)
        for au in (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26):
            lines = [f"{n + 1},{level}" for n, level in enumerate(levels_of(au))]
            (folder / f"{subject}_au{au}.txt").write_text("\n".join(lines))


def test_disfa_is_compared_by_intensity_and_by_frames_with_landmarks(tmp_path, monkeypatch):
    spans = {("SN001", "left"): check._Span("1", 1, 20), ("SN002", "left"): check._Span("2", 1, 20)}
    counts = {(p, f"AU{au:02d}"): 10 for p in "12" for au in (1, 2, 4, 6, 9, 12, 25, 26)} | {(p, "frames"): 20 for p in "12"}
    for au in (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26):
        counts |= {("all", f"AU{au:02d}={level}"): n for level, n in enumerate((10, 10, 10, 10, 0, 0))}
    monkeypatch.setattr(check, "_read_spans", lambda layout: spans)
    monkeypatch.setattr(check, "_read_counts", lambda layout: counts)
    monkeypatch.setattr(disfa_layout, "LOST", {"SN002": ((3, 6),)})
    write_disfa(tmp_path, lambda au: [n // 5 for n in range(20)])
    lines = {line.what: line for line in check_corpus(tmp_path, "disfa")}
    assert lines["coded frames with landmarks (JAA-Net's)"].found == 36
    bad = {what for what, line in lines.items() if line.verdict == check.DIFFERS}
    assert not bad & {f"AU{au:02d} at intensity {n}" for au in (1, 5, 20) for n in range(6)}
    assert "AU01" not in bad
    path = tmp_path / "ActionUnit_Labels/SN001/SN001_au5.txt"
    path.write_text(path.read_text().replace(",3", ",5"))
    lines = {line.what: line for line in check_corpus(tmp_path, "disfa")}
    assert (lines["AU05 at intensity 3"].found, lines["AU05 at intensity 5"].found) == (5, 5)
    assert lines["AU05 at intensity 5"].verdict == check.DIFFERS
    twelve = {line.what: line for line in check_corpus(tmp_path, "disfa", {"threshold": 1})}
    assert twelve["AU01"].found == 30


def test_affwild2_is_checked_for_what_must_hold(tmp_path):
    header = ",".join(f"AU{au}" for au in (1, 2, 4, 6, 7, 10, 12, 15, 23, 24, 25, 26))
    rows = [",".join("1" * 12), ",".join(["-1"] * 12), ",".join(["-1", *"0" * 11])]
    for side, name in (("Train_Set", "video1"), ("Train_Set", "video2"), ("Validation_Set", "video3")):
        path = tmp_path / "annotations/AU_Set" / side / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([header, *rows[: 3 if name == "video2" else 2]]))
        add_images(tmp_path, name, [1, 2], 5, root="cropped_aligned")
    lines = {line.what: line for line in check_corpus(tmp_path, "affwild2")}
    assert (lines["labelled videos, train"].found, lines["labelled videos, val"].found) == (2, 1)
    assert (lines["labelled frames, train"].found, lines["labelled frames, val"].found) == (3, 1)
    assert lines["labelled videos, train"].verdict == check.NOTED
    assert lines["coded AUs"].verdict == check.SAME
    assert (lines["frames coded in part"].found, lines["frames coded in part"].verdict) == (1, check.DIFFERS)
    assert "video2" in lines["frames coded in part"].cause
    assert not any("multi-task" in what for what in lines)


def test_multi_task_train_set_is_compared(tmp_path, monkeypatch):
    header = "image,valence,arousal,expression," + ",".join(f"AU{au}" for au in (1, 2, 4, 6, 7, 10, 12, 15, 23, 24, 25, 26))
    ones, zeros, unknown = (",".join([cell] * 12) for cell in ("1", "0", "-1"))
    rows = [f"video1/{n:05d}.jpg,0.1,0.1,0,{codes}" for n, codes in enumerate((ones, zeros, unknown), 1)]
    (tmp_path / "training_set_annotations.txt").write_text("\n".join([header, *rows]))
    add_images(tmp_path, "video1", [1, 2, 3], 5, root="cropped_aligned")
    part = "multi-task train"
    counts = {(part, f"AU{au:02d}"): 1 for au in check._AUS["affwild2"]} | {(part, "frames"): 2, (part, "AU26"): 4}
    monkeypatch.setattr(check, "_read_counts", lambda layout: counts)
    lines = {line.what: line for line in check_corpus(tmp_path, "affwild2")}
    assert [w for w, line in lines.items() if line.verdict == check.DIFFERS] == [f"AU26, {part}"]
    assert lines[f"coded frames, {part}"].found == 2


def test_malformed_label_file_is_a_line_that_names_it(tmp_path):
    rows = "\n".join(f"{n},{n % 2}" for n in range(1, 5))
    for subject, text in (("F001", rows), ("F002", rows.replace("3,1", "3,7"))):
        add_images(tmp_path, f"{subject}/T1", range(1, 5))
        (tmp_path / "AUCoding/AU_OCC").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"AUCoding/AU_OCC/{subject}_T1.csv").write_text(f"frame,AU1\n{text}\n")
    line = check_corpus(tmp_path, "bp4d")[0]
    assert (line.what, line.found, line.verdict) == ("label files that are malformed", 1, check.DIFFERS)
    assert "F002_T1.csv, line 4: '7'" in line.cause


def test_what_cannot_be_checked_is_said(tmp_path):
    with pytest.raises(ConfigError, match="no published counts of the layout 'generic'"):
        check_corpus(tmp_path, "generic")
    with pytest.raises(ConfigError, match="bp4d has no option 'offset'"):
        check_corpus(tmp_path, "bp4d", {"offset": 1})
    with pytest.raises(DataError, match="no corpus in"):
        check_corpus(tmp_path / "absent", "bp4d")


def test_command_says_what_differs_and_exits_with_1(raw, monkeypatch, capsys):
    from aupipe import cli

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["aupipe", "check", str(raw), "--layout", "bp4d", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code, capsys.readouterr()

    code, printed = run()
    assert code == 0
    assert printed.out.count("\nok ") > 40
    assert "0 of 45 lines differ" in printed.err
    (raw / "Sequences/F001/T1/0007.jpg").unlink()
    code, printed = run("--short")
    assert code == 1
    assert printed.out.splitlines() == [str(differing(raw)["coded frames without an image"])]
    assert run("--option", "frame_offset=2")[0] == 2
    code, printed = run("--option", "x.y=2")
    assert (code, "not of the form name=value" in printed.err) == (2, True)
