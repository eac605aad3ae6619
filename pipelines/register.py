"""Run and metrics → a version of the MLflow model aupipe-<corpus>-<recipe>, and data/registered/…json that names it.

The first fold listed in the experiment gets the alias `candidate`.
"""

import json
from pathlib import Path

from aupipe import tracking
from aupipe.schema import read_json, write_text
from pipelines._door import logger, opened, params, parse


def main() -> None:
    args = parse(__doc__, "recipe", "corpus", "fold")
    output = Path(f"data/registered/{args.corpus}/{args.recipe}/{args.fold}.json")
    with opened(output):
        first = params(args).experiment.folds[0]
        run = Path(f"runs/{args.corpus}/{args.recipe}/{args.fold}")
        mlflow_run = tracking.Tracker.of(run, read_json(run / "run.json", "train")).settle()
        results = Path(f"results/{args.corpus}/{args.recipe}/{args.fold}/metrics.json")
        figures = read_json(results, "evaluate")
        name = tracking.model_name(args.corpus, args.recipe)
        tags = tracking.lineage() | tracking.figures_as_tags(figures) | {"fold": args.fold, "recipe": args.recipe}
        version = tracking.register(
            run / "checkpoint", mlflow_run, name, tags, alias="candidate" if args.fold == first else None
        )
        made = {"model": name, "version": version, "fold": args.fold, "mlflow_run": mlflow_run}
        write_text(json.dumps(made, indent=1) + "\n", output)
        logger.info("registered %s version %d (%s)", name, version, args.fold)


if __name__ == "__main__":
    main()
