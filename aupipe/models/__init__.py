"""The models, one file per paper. The folder is the registry: a file `<name>.py` is the model `<name>`.

A model file exposes `Config`, a frozen dataclass with its options, and `Model(config, aus, stats)`, a torch module that
takes frames_BTCHW, already normalised by its own MEAN and STD, and returns an AUOutput. Frame models accept any T and treat
frames independently.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from aupipe.config import build
from aupipe.facs import AUSet
from aupipe.schema import ConfigError, LabelStats


class AUOutput(NamedTuple):
    """What every model returns: logits, and where it has them attention maps in [0, 1] and an auxiliary head's logits."""

    logits_BTM: Tensor
    attention_BTMhw: Tensor | None = None
    aux_logits_BTM: Tensor | None = None


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


def model_code(name: str) -> list[Path]:
    """The source files whose change can change what the model computes."""
    folder = Path(__file__).parent
    return [folder / f"{name}.py", *sorted(folder.glob("_*.py"))]


def _room(name: str) -> Any:
    if name not in list_models():
        raise ConfigError(f"unknown model '{name}'; known are {', '.join(list_models())}")
    return importlib.import_module(f"{__name__}.{name}")
