"""The raw tree of a corpus → data/manifest/<corpus>.parquet: one row per frame that has a label or an image."""

from pathlib import Path

from aupipe.config import raw_root
from aupipe.datasets import build_manifest, get_dataset
from aupipe.schema import write_table
from pipelines._door import logger, opened, params, parse


def main() -> None:
    args = parse(__doc__, "corpus", strict="an oddity of the corpus is an error instead of a warning")
    output = Path(f"data/manifest/{args.corpus}.parquet")
    with opened(output):
        corpus = params(args).corpus(args.corpus)
        dataset = get_dataset(corpus.layout, corpus.au_set)
        table = build_manifest(dataset, raw_root(args.corpus), strict=args.strict)
        write_table(table, output)
        logger.info("%s: %d frames of %d subjects", output, table.num_rows, len(set(table["subject"].to_pylist())))


if __name__ == "__main__":
    main()
