"""params → $AUPIPE_RAW/<corpus>/ and data/cards/<corpus>.json. A real corpus is never written to and only gets its card."""

import json
from pathlib import Path

from aupipe.config import raw_root, to_json
from aupipe.schema import write_text
from pipelines._door import logger, opened, params, parse, progress


def main() -> None:
    args = parse(__doc__, "corpus", local="render with a process pool instead of Ray")
    output = Path(f"data/cards/{args.corpus}.json")
    with opened(output):
        corpus = params(args).corpus(args.corpus)
        card = {"corpus": args.corpus, "layout": corpus.layout, "licence": corpus.licence}
        if corpus.synthetic is not None:
            from aupipe import stream
            from aupipe.synthetic.corpus import card_markdown, render

            with progress(f"rendering {args.corpus}") as report:
                made = render(
                    corpus.synthetic,
                    raw_root(args.corpus),
                    layout=corpus.layout,
                    map=None if args.local else stream.map_sessions,
                    progress=report,
                )
            card |= to_json(made)
            write_text(card_markdown(card), output.with_suffix(".md"))
            logger.info("%s: %s", raw_root(args.corpus), card.get("counts"))
        write_text(json.dumps(card, indent=1) + "\n", output)


if __name__ == "__main__":
    main()
