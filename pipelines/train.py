"""Recipe, shards and fold → runs/<corpus>/<recipe>/<fold>/: the selected checkpoint and run.json with its history.

A training that was killed goes on after its last finished epoch; one whose inputs changed begins anew.
"""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from aupipe import __version__, loop, tracking, trainer
from aupipe.checkpoint import Description
from aupipe.clips import ClipSpec, plan_clips
from aupipe.config import Recipe, build, code, fingerprint
from aupipe.facs import AUSet
from aupipe.folds import Fold, load_folds, pick_fold
from aupipe.leaks import check_leaks
from aupipe.schema import read_json, write_text
from aupipe.shards import INDEX, load_index
from pipelines._door import logger, opened, parse


def main() -> None:
    args = parse(
        __doc__,
        *("recipe", "corpus", "fold"),
        local="train in this process, without Ray",
        gpu="one GPU for each worker",
        workers="processes to train with (default 2)",
    )
    output = Path(f"runs/{args.corpus}/{args.recipe}/{args.fold}")
    with opened(output):
        source = Path(f"data/recipes/{args.recipe}.json")
        resolved = read_json(source, "recipe")
        recipe: Recipe = build(Recipe, resolved["recipe"], str(source))
        fold = pick_fold(load_folds(Path(f"data/folds/{args.corpus}.json")), args.fold)
        shards = Path(f"data/shards/{args.corpus}")
        key = fingerprint([resolved, fold.to_json()], [shards / INDEX, *code("clips", "loop", "losses", "checkpoint")])
        run = _open_run(output, key)
        if run.get("finished"):
            logger.info("%s is finished already", output)
            return
        check_leaks(shards, fold)
        description = _describe(recipe, shards, fold, args)
        run["mlflow_run"] = tracking.start_run(
            args.corpus, f"{args.recipe} {args.fold}", resolved, tracking.lineage(), run.get("mlflow_run")
        )
        write_text(json.dumps(run), output / "run.json")
        training = _plan(recipe, description, output, shards, fold, resolved["seed"], run["mlflow_run"])
        history = loop.fit(training) if args.local else trainer.train(training, args.workers or 2, gpu=args.gpu)
        tracking.end_run(run["mlflow_run"])
        write_text(json.dumps(run | {"finished": True, "history": history}, indent=1) + "\n", output / "run.json")
        shutil.rmtree(output / "last")
        best = max(history, key=lambda record: record["val"]["f1"] or 0)
        logger.info("%s: epoch %d of %d, val F1 %.3f", output, best["epoch"], len(history), best["val"]["f1"] or 0)


def _open_run(output: Path, key: str) -> dict[str, Any]:
    """The run in `output` if it was begun with the same inputs; otherwise what is there goes and a new one begins."""
    try:
        run = json.loads((output / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        run = {}
    if run.get("key") == key:
        return run
    shutil.rmtree(output, ignore_errors=True)
    return {"key": key}


def _describe(recipe: Recipe, shards: Path, fold: Fold, args: Any) -> Description:
    index = load_index(shards)
    return Description(
        model=recipe.model,
        aus=tuple(index["aus"]),
        input=recipe.input,
        landmarker=index["landmarker"],
        stats=fold.stats.to_json(),
        recipe=args.recipe,
        corpus=args.corpus,
        fold=args.fold,
        subjects={"train": list(fold.train), "val": list(fold.val)},
        provenance={"aupipe": __version__, **tracking.lineage()},
    )


def _plan(
    recipe: Recipe, description: Description, output: Path, shards: Path, fold: Fold, seed: int, mlflow_run: str
) -> loop.Training:
    spec = ClipSpec.of(recipe, AUSet(description.aus), recipe.phases[0].batch)
    train, val = (plan_clips(shards, side, spec, train=side is fold.train) for side in (fold.train, fold.val))
    logger.info("%d clips to train on, %d to validate", train.num_rows, val.num_rows)
    return loop.Training(
        recipe=recipe,
        description=description,
        directory=output.resolve(),
        shards=shards.resolve(),
        train_plan=train,
        val_plan=val,
        seed=seed,
        on_epoch=partial(tracking.log_epoch, tracking.tracking_uri(), mlflow_run),
    )


if __name__ == "__main__":
    main()
