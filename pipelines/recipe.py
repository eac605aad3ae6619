"""params.yaml → data/recipes/<recipe>.json: the recipe with its bases resolved, its seed, and a hash of its model's code.

The recipe that it starts from (init) is in it in the same form. The stages that train depend on this file, so a change of a
base or of an origin reaches its variants and nothing else.
"""

import json
from pathlib import Path
from typing import Any

from aupipe.config import Params, fingerprint, to_json
from aupipe.models import check_recipe, model_code
from aupipe.schema import write_text
from pipelines._door import opened, params, parse


def main() -> None:
    args = parse(__doc__, "recipe")
    output = Path(f"data/recipes/{args.recipe}.json")
    with opened(output):
        write_text(json.dumps(_resolve(params(args), args.recipe), indent=1) + "\n", output)


def _resolve(given: Params, name: str) -> dict[str, Any]:
    recipe = given.recipe(name)
    check_recipe(recipe)
    code = fingerprint(None, model_code(recipe.model["name"]))
    origin = None if recipe.init is None else _resolve(given, recipe.init.recipe)
    return {"name": name, "seed": given.seed, "recipe": to_json(recipe), "code": code, "origin": origin}


if __name__ == "__main__":
    main()
