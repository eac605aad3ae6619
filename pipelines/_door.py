"""What the doors share: arguments, logging, one writer per output, progress for people and for logs."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aupipe.config import Params, errors_as_sentences, load_params

logger = logging.getLogger("pipelines")


def parse(description: str, *names: str, **options: str | tuple[Any, str]) -> argparse.Namespace:
    """Required `--name VALUE` for each of `names`, and --params and --set.

    An option with its help alone is a flag; one with (int, help) takes a number, with (choices, help) one of these words.
    """
    parser = argparse.ArgumentParser(description=description)
    for name in names:
        parser.add_argument(f"--{name}", required=True)
    for name, text in options.items():
        kind, text = text if isinstance(text, tuple) else (None, text)
        if kind is None:
            parser.add_argument(f"--{name}", help=text, action="store_true")
        elif isinstance(kind, type):
            parser.add_argument(f"--{name}", help=text, type=kind)
        else:
            parser.add_argument(f"--{name}", help=text, choices=kind)
    parser.add_argument("--params", default="params.yaml", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a value of the params")
    return parser.parse_args()


def params(arguments: argparse.Namespace) -> Params:
    return load_params(arguments.params, arguments.set)


@contextlib.contextmanager
def opened(output: Path) -> Iterator[None]:
    """Logging on, errors as sentences, and this process the only one that writes `output`; a second one waits."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    for library in ("ray", "mlflow", "alembic", "matplotlib", "git"):
        logging.getLogger(library).setLevel(logging.WARNING)
    with errors_as_sentences(), _locked(output):
        yield


@contextlib.contextmanager
def _locked(output: Path) -> Iterator[None]:
    output.parent.mkdir(parents=True, exist_ok=True)
    with (output.parent / f".{output.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("%s is being written by another process; waiting for it", output)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A callback (done, total): a bar where a person is watching, some twenty lines in a log where not."""
    if not sys.stderr.isatty():
        shown = -1

        def log(done: int, total: int) -> None:
            nonlocal shown
            if total and (step := 20 * done // total) != shown:
                shown = step
                logger.info("%s: %d of %d", title, done, total)

        yield log
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
