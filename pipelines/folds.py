"""Manifest → data/folds/<corpus>.json: subject-exclusive folds with the label statistics of their train sides."""

import json
from pathlib import Path

from aupipe.datasets import dataset_of, published_partition
from aupipe.folds import leave_one_out, make_folds
from aupipe.schema import read_table, write_text
from pipelines._door import logger, opened, params, parse


def main() -> None:
    args = parse(__doc__, "corpus")
    output = Path(f"data/folds/{args.corpus}.json")
    with opened(output):
        given = params(args)
        corpus = given.corpus(args.corpus)
        manifest = read_table(Path(f"data/manifest/{args.corpus}.parquet"), "manifest")
        if corpus.folds.leave_one_out:
            folds = leave_one_out(manifest, given.seed, val_fraction=corpus.folds.val_fraction)
        else:
            published = published_partition(dataset_of(corpus), manifest) if corpus.folds.published else None
            folds = make_folds(manifest, corpus.folds.k, published, given.seed, val_fraction=corpus.folds.val_fraction)
        write_text(json.dumps({"folds": [fold.to_json() for fold in folds]}, indent=1) + "\n", output)
        for fold in folds:
            logger.info("%s: %d train, %d val, %d test subjects", fold.name, len(fold.train), len(fold.val), len(fold.test))


if __name__ == "__main__":
    main()
