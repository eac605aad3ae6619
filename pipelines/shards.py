"""Manifest and raw tree → data/shards/<corpus>/: aligned faces, a file per session, found and cut on all cores or nodes.

With AUPIPE_STORAGE the files go there, and the index that names them stays here.
"""

from pathlib import Path

from aupipe import shards, storage, stream
from aupipe.config import raw_root
from aupipe.schema import read_table
from pipelines._door import opened, params, parse, progress


def main() -> None:
    args = parse(__doc__, "corpus", local="use a process pool instead of Ray")
    output = Path(f"data/shards/{args.corpus}")
    with opened(output), progress(f"aligning {args.corpus}") as report:
        shards.build(
            read_table(Path(f"data/manifest/{args.corpus}.parquet"), "manifest"),
            read_table(Path(f"data/inventory/{args.corpus}.parquet"), "inventory"),
            raw_root(args.corpus),
            output,
            params(args).corpus(args.corpus),
            store=storage.store_of(output),
            map=None if args.local else stream.map_sessions,
            progress=report,
        )


if __name__ == "__main__":
    main()
