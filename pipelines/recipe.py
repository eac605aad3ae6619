"""params.yaml → data/recipes/<recipe>.json: the recipe with its bases resolved, its seed, and a hash of its model's code.

The stages that train depend on this file, so a change of a base reaches its variants and nothing else.
"""

import json
from pathlib import Path

from aupipe.config import fingerprint, to_json
from aupipe.models import check_config, model_code
from aupipe.schema import write_text
from pipelines._door import opened, params, parse


def main() -> None:
    args = parse(__doc__, "recipe")
    output = Path(f"data/recipes/{args.recipe}.json")
    with opened(output):
        given = params(args)
        recipe = given.recipe(args.recipe)
        check_config(recipe.model["name"], recipe.model)
        code = fingerprint(None, model_code(recipe.model["name"]))
        values = {"name": args.recipe, "seed": given.seed, "recipe": to_json(recipe), "code": code}
        write_text(json.dumps(values, indent=1) + "\n", output)


if __name__ == "__main__":
    main()
