"""Checkpoint and test side → results/<corpus>/<recipe>/<fold>/: predictions.parquet and metrics.json.

The one stage that looks at the test side; nothing is chosen by what it finds.
"""

import json
from pathlib import Path

import numpy as np

from aupipe import inference, metrics, tracking
from aupipe.checkpoint import load_checkpoint
from aupipe.clips import ClipSpec, plan_clips
from aupipe.config import Recipe, build
from aupipe.folds import load_folds, pick_fold
from aupipe.schema import label_arrays, read_json, write_table, write_text
from pipelines._door import logger, opened, parse


def main() -> None:
    args = parse(__doc__, "recipe", "corpus", "fold")
    output = Path(f"results/{args.corpus}/{args.recipe}/{args.fold}")
    with opened(output):
        run = Path(f"runs/{args.corpus}/{args.recipe}/{args.fold}")
        source = Path(f"data/recipes/{args.recipe}.json")
        recipe: Recipe = build(Recipe, read_json(source, "recipe")["recipe"], str(source))
        fold = pick_fold(load_folds(Path(f"data/folds/{args.corpus}.json")), args.fold)
        model, description = load_checkpoint(run / "checkpoint")
        shards = Path(f"data/shards/{args.corpus}")
        spec = ClipSpec.of(recipe, description.au_set, recipe.phases[-1].batch)
        table = inference.predict_table(model, description, plan_clips(shards, fold.test, spec), shards, spec)
        labels, mask = label_arrays(table, description.au_set)
        probs = np.stack([table[c].to_numpy() for c in description.au_set.probability_columns], 1)
        found = ~np.isnan(probs).any(1)
        figures = metrics.evaluate(probs, labels, mask & found[:, None], fold.stats.rate_M)
        figures |= {"aus": list(description.aus), "frames_without_face": int((~found).sum()), "subjects": len(fold.test)}
        write_table(table, output / "predictions.parquet")
        write_text(json.dumps(figures, indent=1) + "\n", output / "metrics.json")
        tracker = tracking.Tracker.of(run, read_json(run / "run.json", "train"))
        tracker.results({k: figures[k] for k in ("f1", "auc", "accuracy", "all_positive", "prior")})
        logger.info(
            "%s: mean F1 %s (all positive %s), mean AUC %s",
            output,
            figures["f1"],
            figures["all_positive"]["f1"],
            figures["auc"],
        )


if __name__ == "__main__":
    main()
