"""Figures and tables from metrics files: Markdown for people, CSV for `dvc plots`, a chart per AU."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no screen needed

from matplotlib import pyplot as plt

from aupipe.facs import ACTION_UNITS
from aupipe.schema import read_json, replacing, write_text

# Okabe and Ito's palette, which colour-blind readers can tell apart.
_MODEL, _BASELINE, _AUC = "#0072B2", "#E69F00", "#009E73"


@dataclass(frozen=True, slots=True)
class Result:
    """metrics.json of one recipe on one fold, and the history of its training."""

    recipe: str
    fold: str
    metrics: dict[str, Any]
    history: list[dict[str, Any]]


def load_results(results: Path, corpus: str, recipes: tuple[str, ...], folds: tuple[str, ...]) -> list[Result]:
    """Raises DataError if one of them has not been evaluated."""
    found = []
    for recipe in recipes:
        for fold in folds:
            path = results / corpus / recipe / fold / "metrics.json"
            run = results.parent / "runs" / corpus / recipe / fold / "run.json"
            metrics, history = read_json(path, "evaluate"), read_json(run, "train")["history"]
            found.append(Result(recipe, fold, metrics, history))
    return found


def write(results: list[Result], corpus: str, output: Path) -> None:
    """report.md, per_au.csv, history.csv and one chart per result in `output`."""
    parts = [f"# Results on {corpus}", ""]
    for result in results:
        chart = f"{result.recipe}-{result.fold}.png"
        with replacing(output / chart) as temporary:
            draw_bars(result, temporary)
        parts += [f"## {result.recipe}, {result.fold}", "", *table(result), "", f"![F1 and AUC per AU]({chart})", ""]
    write_text("\n".join(parts), output / "report.md")
    _write_csv(output / "per_au.csv", [row for result in results for row in _au_rows(result)])
    _write_csv(output / "history.csv", [row for result in results for row in _epoch_rows(result)])


def table(result: Result) -> list[str]:
    """The lines of a Markdown table: figures per AU beside the two baselines, with support, and the mean over AUs."""
    m = result.metrics
    lines = [
        "| AU | | F1 | AUC | accuracy | F1 all-positive | F1 prior | accuracy prior | positives | coded |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for j, number in enumerate(m["aus"]):
        figures = {name: values[j] for name, values in m["per_au"].items()}
        prior = m["prior"]["per_au"]
        cells = [figures["f1"], figures["auc"], figures["accuracy"], m["all_positive"]["per_au"]["f1"][j]]
        cells += [prior["f1"][j], prior["accuracy"][j]]
        counts = f"{figures['support']} | {figures['coded']}"
        lines.append(f"| {number} | {ACTION_UNITS[number].name} | {' | '.join(map(_cell, cells))} | {counts} |")
    means = [m["f1"], m["auc"], m["accuracy"], m["all_positive"]["f1"], m["prior"]["f1"], m["prior"]["accuracy"]]
    bold = " | ".join(f"**{_cell(v)}**" for v in means)
    lines.append(f"| **mean** | {m['aus_with_positives']} AUs | {bold} | | {m['frames']} frames |")
    note = f"{m['subjects']} unseen subjects, {m['frames_without_face']} frames without a face left out, threshold 0.5."
    return [*lines, "", note]


def draw_bars(result: Result, path: Path) -> None:
    """A bar chart per AU: F1 of the model and of the all-positive baseline, AUC as a dot."""
    m = result.metrics
    places = range(len(m["aus"]))
    figure, axes = plt.subplots(figsize=(9, 3.6), layout="constrained")
    f1, base = ([v or 0 for v in values] for values in (m["per_au"]["f1"], m["all_positive"]["per_au"]["f1"]))
    axes.bar([x - 0.2 for x in places], f1, 0.4, color=_MODEL, label="F1")
    axes.bar([x + 0.2 for x in places], base, 0.4, color=_BASELINE, label="F1, all-positive")
    known = [(x, v) for x, v in zip(places, m["per_au"]["auc"], strict=True) if v is not None]
    axes.plot([x for x, _ in known], [v for _, v in known], "o", color=_AUC, label="AUC")
    axes.axhline(0.5, color="0.8", linewidth=0.8, zorder=0)
    axes.set(xticks=list(places), xticklabels=[f"AU{n}" for n in m["aus"]], ylim=(0, 1), xlim=(-0.6, len(f1) - 0.4))
    axes.set_title(f"{result.recipe}, {result.fold}: mean F1 {_cell(m['f1'])}, mean AUC {_cell(m['auc'])}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(ncols=3, frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    figure.savefig(path, dpi=150, format="png")
    plt.close(figure)


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _au_rows(result: Result) -> list[dict[str, Any]]:
    m = result.metrics
    base = m["all_positive"]["per_au"]["f1"]
    return [
        {"recipe": result.recipe, "fold": result.fold, "au": f"AU{number:02d}"}
        | {name: values[j] for name, values in m["per_au"].items()}
        | {"f1_all_positive": base[j]}
        for j, number in enumerate(m["aus"])
    ]


def _epoch_rows(result: Result) -> list[dict[str, Any]]:
    return [
        {"recipe": result.recipe, "fold": result.fold, "epoch": record["epoch"], "train_loss": record["train"]["loss"]}
        | {"val_loss": record["val"]["loss"], "val_f1": record["val"]["f1"]}
        for record in result.history
    ]


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
