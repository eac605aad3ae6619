"""Recipe, shards and fold → runs/<corpus>/<recipe>/<fold>/: the selected checkpoint and run.json with its history.

A training that was killed goes on from its newest state; one whose inputs changed begins anew. The run that it
starts from (init) is trained first, by the same rules, if it is not there: its own stage then finds it finished.
"""

import json
import shutil
import uuid
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from aupipe import __version__, loop, tracking, trainer
from aupipe.checkpoint import Description, load_progress
from aupipe.clips import ClipSpec, plan_clips
from aupipe.config import Recipe, build, code, fingerprint
from aupipe.facs import AUSet
from aupipe.folds import Fold, load_folds, pick_fold
from aupipe.leaks import check_leaks
from aupipe.resident import LEVELS
from aupipe.schema import ConfigError, read_json, write_text
from aupipe.shards import INDEX, load_index
from pipelines._door import logger, opened, parse

CODE = ("checkpoint", "clips", "codec", "features", "keeper", "loop", "losses", "optimisers", "order", "pixels", "progress",
        "training")  # fmt: skip
WORDS = ("paper", "section", "expected", "cost")  # what a recipe says of itself and no training depends on

Fit = Callable[[loop.Training], list[dict[str, Any]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What is trained on what, as `data/recipes/<recipe>.json` has it, and where; the run that it starts from, with it."""

    resolved: dict[str, Any]
    recipe: Recipe
    corpus: str
    fold: Fold
    origin: "Run | None"

    @property
    def output(self) -> Path:
        return Path(f"runs/{self.corpus}/{self.resolved['name']}/{self.fold.name}")

    @property
    def shards(self) -> Path:
        return Path(f"data/shards/{self.corpus}")

    @property
    def key(self) -> str:
        """The hash of everything that the result depends on, the run that it starts from included."""
        recipe = {k: v for k, v in self.resolved["recipe"].items() if k not in WORDS}
        substance = {k: v for k, v in self.resolved.items() if k != "origin"} | {"recipe": recipe}
        origin = None if self.origin is None else self.origin.key
        files = [self.shards / INDEX, *code(*CODE)]
        if (weights := self.recipe.model.get("weights")) is not None and Path(weights).is_file():
            files.append(Path(weights))
        return fingerprint([substance, self.fold.to_json(), origin], files)


def main() -> None:
    args = parse(
        __doc__,
        *("recipe", "corpus", "fold"),
        local="train in this process, without Ray",
        gpu="one GPU for each worker (default where there are GPUs)",
        cpu="leave the GPUs alone",
        workers=(int, "processes to train with (default: one for each GPU, or 2)"),
        level=(LEVELS, "where faces wait for their turn: read anew, decoded in memory, or on the device (default auto)"),
    )
    with opened(Path(f"runs/{args.corpus}/{args.recipe}/{args.fold}")):
        source = Path(f"data/recipes/{args.recipe}.json")
        run = _plan_run(read_json(source, "recipe"), args.corpus, args.fold)
        _train(run, _pick_fit(args), args.level or "auto")


def _pick_fit(args: Namespace) -> Fit:
    """Who trains, and on what; where neither --gpu nor --cpu is said, what is there."""
    if args.gpu and args.cpu:
        raise ConfigError("--gpu and --cpu exclude each other; give one of them, or neither to take what is there")
    if args.local:
        device = "cuda" if args.gpu else "cpu" if args.cpu else None
        return loop.fit if device is None else partial(loop.fit, worker=loop.Worker(device=device))
    return partial(trainer.train, workers=args.workers, gpu=True if args.gpu else False if args.cpu else None)


def _plan_run(resolved: dict[str, Any], corpus: str, fold: str) -> Run:
    recipe: Recipe = build(Recipe, resolved["recipe"], f"the recipe {resolved['name']}")
    init = recipe.init
    origin = None if init is None else _plan_run(resolved["origin"], init.corpus or corpus, init.fold or fold)
    side = pick_fold(load_folds(Path(f"data/folds/{corpus}.json")), fold)
    if origin is not None and origin.corpus == corpus and (seen := {*origin.fold.train, *origin.fold.val} & {*side.test}):
        raise ConfigError(
            f"{resolved['name']} would start from {origin.output}, which has seen {len(seen)} subjects of the test side of "
            f"{fold}; name no fold in its init, or one of another corpus"
        )
    return Run(resolved=resolved, recipe=recipe, corpus=corpus, fold=side, origin=origin)


def _train(run: Run, fit: Fit, level: str) -> None:
    """Train what the run starts from, then the run; what is finished already stays."""
    if run.origin is not None:
        with opened(run.origin.output):
            _train(run.origin, fit, level)
    output = run.output
    state = _open_run(output, run.key)
    tracker = tracking.Tracker(output, state["tracking"]["key"])
    if state.get("finished"):
        logger.info("%s is finished already", output)
        _tidy(output)
        tracker.flush()
        return
    check_leaks(run.shards, run.fold)
    title = f"{run.resolved['name']} {run.fold.name}"
    write_text(json.dumps(state), output / "run.json")
    state["tracking"] = tracker.start(run.corpus, title, run.resolved, tracking.lineage())
    write_text(json.dumps(state | {"mlflow_run": tracker.run}), output / "run.json")
    tracker.catch_up((load_progress(output / "last") or {}).get("history", []))
    with tracker.until_the_end():
        history = fit(_plan(run, tracker, level))
        tracker.catch_up(history)
    state |= {"mlflow_run": tracker.run, "finished": True, "history": history}
    write_text(json.dumps(state, indent=1) + "\n", output / "run.json")
    _tidy(output)
    best = max(history, key=lambda record: record["val"]["f1"] or 0)
    logger.info("%s: epoch %d of %d, val F1 %.3f", output, best["epoch"], len(history), best["val"]["f1"] or 0)


def _tidy(output: Path) -> None:
    """Only an unfinished training needs its state."""
    for state in output.glob("last*"):
        shutil.rmtree(state)


def _open_run(output: Path, key: str) -> dict[str, Any]:
    """The run in `output` if it was begun with the same inputs; otherwise what is there goes and a new one begins."""
    try:
        run = json.loads((output / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        run = {}
    if run.get("key") == key:
        return run
    shutil.rmtree(output, ignore_errors=True)
    return {"key": key, "tracking": {"key": uuid.uuid4().hex}}


def _describe(run: Run) -> Description:
    index = load_index(run.shards)
    provenance = {"aupipe": __version__, **tracking.lineage()}
    if run.origin is not None:
        provenance |= {"init": str(run.origin.output), "init_key": run.origin.key}
    return Description(
        model=run.recipe.model,
        aus=tuple(index["aus"]),
        input=run.recipe.input,
        landmarker=index["landmarker"],
        stats=run.fold.stats.to_json(),
        recipe=run.resolved["name"],
        corpus=run.corpus,
        fold=run.fold.name,
        subjects={"train": list(run.fold.train), "val": list(run.fold.val)},
        provenance=provenance,
    )


def _plan(run: Run, tracker: tracking.Tracker, level: str) -> loop.Training:
    recipe, fold, description = run.recipe, run.fold, _describe(run)
    spec = ClipSpec.of(recipe, AUSet(description.aus), recipe.phases[0].batch)
    train, val = (plan_clips(run.shards, side, spec, train=side is fold.train) for side in (fold.train, fold.val))
    logger.info("%s: %d clips to train on, %d to validate", run.output, train.num_rows, val.num_rows)
    first = None if run.origin is None else run.origin.output.resolve()
    return loop.Training(
        recipe=recipe,
        description=description,
        directory=run.output.resolve(),
        shards=run.shards.resolve(),
        train_plan=train,
        val_plan=val,
        seed=run.resolved["seed"],
        origin=None if first is None or recipe.init is None else loop.Origin(first / "checkpoint", recipe.init.au_map),
        features=None if first is None else first / "features",  # beside the weights, for all that start from them
        on_start=tracker.watch,
        on_epoch=tracker.epoch,
        level=level,
    )


if __name__ == "__main__":
    main()
