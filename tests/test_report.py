"""report.py shows the figures that it was given, and says where there are none."""

import csv
import json

import cv2
import numpy as np
import pytest

from aupipe import report
from aupipe.metrics import evaluate
from aupipe.report import Result, load_results, table
from aupipe.schema import DataError


def make_metrics(blank=False):
    """Figures of AUs 1, 4 and 12 on drawn predictions; AU 12 never occurs. With `blank` nothing is coded at all."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (50, 3)) * [1, 1, 0]
    figures = evaluate(rng.random((50, 3)), labels, np.full((50, 3), not blank), [0.6, 0.2, 0.1])
    return figures | {"aus": [1, 4, 12], "frames_without_face": 3, "subjects": 2}


HISTORY = [
    {"epoch": n, "train": {"loss": 1 / n}, "val": {"loss": 2 / n, "f1": None if n == 1 else 0.5}} for n in (1, 2)
]  # fmt: skip


@pytest.fixture
def result():
    return Result("small", "fold1", make_metrics(), HISTORY)


def cells(line):
    return [cell.strip().strip("*") for cell in line.strip("|").split("|")]


def test_table_shows_the_figures_of_every_au(result):
    head, rule, *rows = table(result)[:5]
    m = result.metrics
    assert cells(rule) == ["---"] * len(cells(head)) == ["---"] * 10
    for j, row in enumerate(rows):
        shown = dict(zip(cells(head), cells(row), strict=True))
        expected = {
            "F1": m["per_au"]["f1"][j],
            "AUC": m["per_au"]["auc"][j],
            "accuracy": m["per_au"]["accuracy"][j],
            "F1 all-positive": m["all_positive"]["per_au"]["f1"][j],
            "F1 prior": m["prior"]["per_au"]["f1"][j],
            "accuracy prior": m["prior"]["per_au"]["accuracy"][j],
        }
        for name, value in expected.items():
            assert shown[name] == ("–" if value is None else f"{value:.3f}")
        assert shown["AU"] == str(m["aus"][j])
        assert shown["positives"] == str(m["per_au"]["support"][j])
        assert shown["coded"] == "50"
    assert [cells(row)[1] for row in rows] == ["inner brow raiser", "brow lowerer", "lip corner puller"]
    assert cells(rows[2])[2:4] == ["–", "–"], "AU 12 has no positive frame"


def test_last_lines_show_the_means_and_what_they_rest_on(result):
    mean, _, note = table(result)[5:]
    m = result.metrics
    values = [m["f1"], m["auc"], m["accuracy"], m["all_positive"]["f1"], m["prior"]["f1"], m["prior"]["accuracy"]]
    assert cells(mean) == ["mean", "2 AUs", *(f"{v:.3f}" for v in values), "", "50 frames"]
    assert note == "2 unseen subjects, 3 frames without a face left out, threshold 0.5."


def test_report_is_markdown_tables_and_a_chart_for_each_result(result, tmp_path):
    other = Result("large", "fold2", make_metrics(), HISTORY)
    report.write([result, other], "demo", tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# Results on demo\n")
    for one in (result, other):
        assert "\n".join(table(one)) in text
        chart = f"{one.recipe}-{one.fold}.png"
        assert f"## {one.recipe}, {one.fold}\n" in text
        assert f"]({chart})" in text
        image = cv2.imread(str(tmp_path / chart))
        assert image is not None
        assert image.std() > 10, "something is drawn"
    names = ["history.csv", "large-fold2.png", "per_au.csv", "report.md", "small-fold1.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names


def test_csv_files_hold_the_numbers(result, tmp_path):
    report.write([result], "demo", tmp_path)
    with (tmp_path / "per_au.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = ["recipe", "fold", "au", "f1", "accuracy", "precision", "recall", "support", "coded", "auc", "f1_all_positive"]
    assert list(rows[0]) == columns
    assert [row["au"] for row in rows] == ["AU01", "AU04", "AU12"]
    assert float(rows[1]["f1"]) == result.metrics["per_au"]["f1"][1]
    assert rows[2]["f1"] == rows[2]["auc"] == ""
    with (tmp_path / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["recipe", "fold", "epoch", "train_loss", "val_loss", "val_f1"]
    assert [row["val_f1"] for row in rows] == ["", "0.5"]


def test_chart_shows_the_figures(result, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(report.plt, "close", drawn.append)
    for n, one in enumerate((result, Result("small", "fold1", make_metrics(blank=True), HISTORY))):
        report.draw_bars(one, tmp_path / f"{n}.png")
    (axes,), (blank,) = (figure.axes for figure in drawn)
    f1, base, area = (
        result.metrics["per_au"]["f1"],
        result.metrics["all_positive"]["per_au"]["f1"],
        result.metrics["per_au"]["auc"],
    )
    assert [bar.get_height() for bar in axes.patches] == [*f1[:2], 0, *base[:2], 0]
    assert axes.lines[0].get_ydata().tolist() == area[:2]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["AU1", "AU4", "AU12"]
    assert len(blank.lines[0].get_ydata()) == 0


def test_result_without_any_figure_is_shown_all_the_same(tmp_path):
    report.write([Result("small", "fold1", make_metrics(blank=True), HISTORY)], "demo", tmp_path)
    assert "| **–** | **–** | **–** |" in (tmp_path / "report.md").read_text()
    assert cv2.imread(str(tmp_path / "small-fold1.png")) is not None


def test_results_are_read_from_where_the_stages_write_them(result, tmp_path):
    for recipe in ("a", "b"):
        for folder, name, values in (("results", "metrics", result.metrics), ("runs", "run", {"history": HISTORY})):
            path = tmp_path / folder / "demo" / recipe / "fold1" / f"{name}.json"
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps(values))
    found = load_results(tmp_path / "results", "demo", ("b", "a"), ("fold1",))
    assert [(r.recipe, r.fold) for r in found] == [("b", "fold1"), ("a", "fold1")]
    assert found[0].metrics == result.metrics
    assert found[0].history == HISTORY
    with pytest.raises(DataError, match=r"fold2/metrics\.json does not exist; run `dvc repro evaluate`"):
        load_results(tmp_path / "results", "demo", ("a",), ("fold1", "fold2"))
