"""results/<corpus>/ → reports/<corpus>/: a Markdown table, a bar chart per AU and the numbers behind them as CSV."""

from pathlib import Path

from aupipe import report
from pipelines._door import logger, opened, params, parse


def main() -> None:
    args = parse(__doc__, "corpus")
    output = Path(f"reports/{args.corpus}")
    with opened(output):
        chosen = params(args).experiment
        results = report.load_results(Path("results"), args.corpus, chosen.recipes, chosen.folds)
        report.write(results, args.corpus, output)
        logger.info("%s: %d results", output / "report.md", len(results))


if __name__ == "__main__":
    main()
