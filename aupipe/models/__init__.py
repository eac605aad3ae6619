"""The models, one file per paper. The folder is the registry: a file `<name>.py` is the model `<name>`.

A model file exposes `Config`, a frozen dataclass with its options, and `Model(config, aus, stats)`, a torch module that
takes frames_BTCHW, already normalised by its own MEAN and STD, and returns an AUOutput. Frame models accept any T and treat
frames independently; temporal models say what they read before and after a frame, in the terms of `_sequences.py`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from aupipe.config import Recipe, build
from aupipe.facs import AUSet
from aupipe.schema import ConfigError, LabelStats


class AUOutput(NamedTuple):
    """What every model returns: logits, and where it has them attention maps in [0, 1], an auxiliary head's logits,
    intensities on FACS's scale, 0 (absent) to 5 (E), and logits of the joint state 2a + b of each pair of AUs.
    """

    logits_BTM: Tensor
    attention_BTMhw: Tensor | None = None
    aux_logits_BTM: Tensor | None = None
    intensity_BTM: Tensor | None = None
    relation_logits_BTMM4: Tensor | None = None


def list_models() -> tuple[str, ...]:
    """The names that a recipe's `model.name` may have."""
    return tuple(sorted(p.stem for p in Path(__file__).parent.glob("*.py") if not p.stem.startswith("_")))


def build_model(name: str, config: dict[str, Any], aus: AUSet, stats: LabelStats) -> nn.Module:
    """A model with fresh weights from torch's global random state. `config` holds the options, without the name.

    Raises ConfigError for an unknown model, an unknown option or a wrong type.
    """
    return _room(name).Model(check_config(name, config), aus, stats)


def check_config(name: str, config: dict[str, Any]) -> Any:
    """The model's own Config made of plain values, every option checked."""
    return build(_room(name).Config, {k: v for k, v in config.items() if k != "name"}, f"model {name}")


def check_recipe(recipe: Recipe) -> None:
    """Raises ConfigError if the model refuses its options, does not train a part that it has nothing to start from, has
    relations between AUs without a loss for them or the other way about, or is to compare a clip's only frame with others.
    """
    name = recipe.model["name"]
    config = check_config(name, recipe.model)
    if getattr(config, "has_relations", False) != (recipe.loss.relations > 0):
        raise ConfigError(
            "relations of AUs and their loss go together: set loss.relations > 0 for stage 2 of me_graphau, 0 for all else"
        )
    if recipe.clip.frames == 1 and getattr(config, "relative", "none") != "none":
        raise ConfigError(
            f"model.relative: {config.relative} reads a face against the other frames of its clip, and clip.frames is 1; "
            "set it to 8 or so, with a clip.interval that spreads them"
        )
    if recipe.init is None and getattr(config, "needs_init", False):
        raise ConfigError(
            f"this {name} is trained on features that it does not learn itself; give the recipe an init, the recipe that "
            "learns them, or set model.finetune: true"
        )


def model_code(name: str) -> list[Path]:
    """The source files whose change can change what the model computes."""
    folder = Path(__file__).parent
    return [folder / f"{name}.py", *sorted(folder.glob("_*.py"))]


def _room(name: str) -> Any:
    if name not in list_models():
        raise ConfigError(f"unknown model '{name}'; known are {', '.join(list_models())}")
    return importlib.import_module(f"{__name__}.{name}")
