"""The raw tree of a corpus → data/inventory/<corpus>.parquet: path, size and modification time of every file."""

from pathlib import Path

from aupipe.config import raw_root
from aupipe.datasets import list_files
from aupipe.schema import write_table
from pipelines._door import logger, opened, params, parse


def main() -> None:
    args = parse(__doc__, "corpus")
    output = Path(f"data/inventory/{args.corpus}.parquet")
    with opened(output):
        params(args).corpus(args.corpus)
        files = list_files(raw_root(args.corpus))
        write_table(files, output)
        logger.info("%s: %d files", raw_root(args.corpus), files.num_rows)


if __name__ == "__main__":
    main()
