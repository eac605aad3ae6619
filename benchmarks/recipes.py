"""Does every recipe train, learn and come back from its checkpoint? A table with a row for each.

Every recipe goes through the doors themselves (recipe, train --local, evaluate) in a folder of its own, on the shards and
folds of --data; finished rows stay, so an interrupted run goes on. Without names: all -demo recipes, those of DISFA on a
corpus of that name. `same`: the checkpoint, loaded anew, gives the test side's predictions again. Run, after `make demo`:

    python benchmarks/recipes.py /tmp/recipes --corpus synthetic-bp4d --fold fold1
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from aupipe.checkpoint import load_checkpoint
from aupipe.clips import ClipSpec, plan_clips
from aupipe.config import load_params
from aupipe.folds import load_folds, pick_fold
from aupipe.inference import predict_table
from aupipe.schema import read_json, read_table, write_text

ROOT = Path(__file__).parents[1]
COLUMNS = ("recipe", "parameters", "frame visits", "seconds", "val F1", "test F1", "AUC, unseen", "same")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("recipes", nargs="*")
    parser.add_argument("--corpus", default="synthetic-bp4d")
    parser.add_argument("--fold", default="fold1")
    parser.add_argument("--data", type=Path, default=Path("data"), help="where shards/ and folds/ are")
    parser.add_argument("--minimum", type=int, default=20_000, help="frame visits that a row should have at least")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    recipes = load_params(ROOT / "params.yaml", given.set).recipes
    demos = [n for n in recipes if n.endswith("-demo") and ("-disfa-" in n) == ("disfa" in given.corpus)]
    prepare(given.work, given.data.resolve())
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for name in given.recipes or demos:
        print("| " + " | ".join(cells(row_of(given, name), given.minimum)) + " |", flush=True)


def prepare(work: Path, data: Path) -> None:
    """A folder in which the doors can run: its data are links to those that are there."""
    (work / "data").mkdir(parents=True, exist_ok=True)
    for kind in ("shards", "folds"):
        link = work / "data" / kind
        if not link.exists():
            link.symlink_to(data / kind)


def row_of(given: argparse.Namespace, name: str) -> dict[str, Any]:
    """Train and evaluate a recipe, or take its row from an earlier run with the same key."""
    place, kept = f"{given.corpus}/{name}/{given.fold}", given.work / f"rows/{given.corpus}-{name}-{given.fold}.json"
    side = ["--corpus", given.corpus, "--fold", given.fold, "--recipe", name]
    params = ["--params", str(ROOT / "params.yaml"), *(word for one in given.set for word in ("--set", one))]
    started = time.monotonic()
    call(given.work, "recipe", "--recipe", name, *params)
    call(given.work, "train", *side, "--local")
    seconds = time.monotonic() - started
    run = read_json(given.work / "runs" / place / "run.json", "train")
    if kept.exists() and (row := json.loads(kept.read_text(encoding="utf-8")))["key"] == run["key"]:
        return row
    call(given.work, "evaluate", *side)
    row = {"recipe": name, "key": run["key"], "seconds": seconds} | measure(given, name, run["history"])
    write_text(json.dumps(row) + "\n", kept)
    return row


def call(work: Path, door: str, *words: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with (work / "log.txt").open("a") as log:
        done = subprocess.run([sys.executable, "-m", f"pipelines.{door}", *words], cwd=work, env=environment, stderr=log)
    if done.returncode:
        raise SystemExit(f"pipelines.{door} {' '.join(words)} failed; see the end of {work / 'log.txt'}")


def measure(given: argparse.Namespace, name: str, history: list[dict[str, Any]]) -> dict[str, Any]:
    place = f"{given.corpus}/{name}/{given.fold}"
    model, description = load_checkpoint(given.work / "runs" / place / "checkpoint")
    figures = read_json(given.work / "results" / place / "metrics.json", "evaluate")
    written = read_table(given.work / "results" / place / "predictions.parquet", "evaluate")
    recipe = load_params(ROOT / "params.yaml", given.set).recipe(name)
    shards = given.work / "data/shards" / given.corpus
    fold = pick_fold(load_folds(given.work / f"data/folds/{given.corpus}.json"), given.fold)
    spec = ClipSpec.of(recipe, description.au_set, recipe.phases[-1].batch)
    again = predict_table(model, description, plan_clips(shards, fold.test, spec), shards, spec)
    columns = description.au_set.probability_columns
    one, other = (np.stack([table[c].to_numpy(zero_copy_only=False) for c in columns]) for table in (written, again))
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "visits": round(sum(record["frames_per_s"] * record["seconds"] for record in history)),
        "val": max(record["val"]["f1"] or 0.0 for record in history),
        "test": figures["f1"],
        "auc": figures["auc"],
        "same": bool(np.allclose(one, other, atol=1e-5, equal_nan=True)),
    }


def cells(row: dict[str, Any], minimum: int) -> list[str]:
    visits = f"{row['visits']:,}" + ("" if row["visits"] >= minimum else " (too few)")
    figures = ["–" if row[key] is None else f"{row[key]:.3f}" for key in ("val", "test", "auc")]
    same = "yes" if row["same"] else "NO"
    return [row["recipe"], f"{row['parameters']:,}", visits, f"{row['seconds']:.0f}", *figures, same]


if __name__ == "__main__":
    main()
