"""The raw tree of a corpus → data/manifest/<corpus>.parquet: one row per frame that has a label or an image.

Beside it data/manifest/<corpus>.json, the report: what each session holds, and every oddity that was survived.
"""

import json
from pathlib import Path

from aupipe.config import raw_root
from aupipe.datasets import dataset_of, survey
from aupipe.schema import write_table, write_text
from pipelines._door import logger, opened, params, parse


def main() -> None:
    args = parse(__doc__, "corpus", strict="an oddity of the corpus is an error instead of a warning")
    output = Path(f"data/manifest/{args.corpus}.parquet")
    with opened(output):
        dataset = dataset_of(params(args).corpus(args.corpus))
        table, report = survey(dataset, raw_root(args.corpus), strict=args.strict)
        write_table(table, output)
        write_text(json.dumps(report, indent=1) + "\n", output.with_suffix(".json"))
        logger.info(
            "%s: %d frames of %d subjects, %d labelled, %d without an image; see %s",
            *(output, report["rows"], report["subjects"], report["labelled"], report["missing"]),
            output.with_suffix(".json"),
        )


if __name__ == "__main__":
    main()
