"""A checkpoint is a directory that describes itself: weights as safetensors, everything else as JSON. Nothing is unpickled.

checkpoint.json holds the model's name and options, the AUs, the input geometry, the landmarker that found the faces, the
label statistics, the recipe and where it all came from; whoever loads it needs no params.yaml.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from aupipe.config import InputSpec, build, to_json
from aupipe.facs import AUSet
from aupipe.models import build_model
from aupipe.models._weights import weights_follow
from aupipe.schema import ConfigError, DataError, LabelStats

logger = logging.getLogger(__name__)

WEIGHTS, DESCRIPTION, STATE, STATE_DESCRIPTION = "model.safetensors", "checkpoint.json", "state.safetensors", "state.json"
RANKS = "ranks.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """What a checkpoint says of itself. `landmarker` is {name, fingerprint}; `provenance` is free, JSON-able."""

    model: dict[str, Any]
    aus: tuple[int, ...]
    input: InputSpec
    landmarker: dict[str, Any]
    stats: dict[str, Any]
    recipe: str = ""
    corpus: str = ""
    fold: str = ""
    subjects: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def au_set(self) -> AUSet:
        return AUSet(self.aus)

    def new_model(self) -> nn.Module:
        """A model of this kind with fresh weights, channels last in memory: twice as fast on CPUs in bf16."""
        model = build_model(self.model["name"], self.model, self.au_set, LabelStats.from_json(self.stats))
        return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def save_checkpoint(directory: Path, model: nn.Module, description: Description) -> None:
    """Write a checkpoint; the directory appears whole or not at all, and replaces an older one.

    Raises DataError where it cannot be written; the older one is then still there.
    """
    with _new_directory(directory) as temporary:
        _write_model(temporary, model, description)


def load_checkpoint(directory: Path) -> tuple[nn.Module, Description]:
    """The model, in eval mode, and its description. Raises DataError for a directory that is no whole checkpoint."""
    description = load_description(directory)
    with weights_follow():
        model = description.new_model()
    _load_weights(model, directory / WEIGHTS)
    return model.eval(), description


def load_description(directory: Path) -> Description:
    try:
        values = json.loads((directory / DESCRIPTION).read_text(encoding="utf-8"))
        return build(Description, values, str(directory / DESCRIPTION))
    except FileNotFoundError:
        raise DataError(f"{directory} is no checkpoint: it has no {DESCRIPTION}; train one with `dvc repro`") from None
    except (ValueError, ConfigError) as error:
        raise DataError(f"{directory} is a damaged checkpoint or of another version: {error}") from None


def save_state(
    directory: Path,
    model: nn.Module,
    description: Description,
    optimiser: torch.optim.Optimizer,
    progress: dict[str, Any],
    ranks: Mapping[str, Tensor] | None = None,
) -> None:
    """A checkpoint with what training needs to go on: the optimiser's state, JSON-able `progress`, and tensors with a row
    for each of the workers. Written and failing as `save_checkpoint` does.
    """
    with _new_directory(directory) as temporary:
        _write_model(temporary, model, description)
        state = optimiser.state_dict()
        tensors = {
            f"{parameter}.{name}": torch.as_tensor(value).contiguous()
            for parameter, values in state["state"].items()
            for name, value in values.items()
            if value is not None  # SGD without momentum keeps a None
        }
        save_file(tensors, temporary / STATE)
        save_file({name: tensor.contiguous() for name, tensor in (ranks or {}).items()}, temporary / RANKS)
        text = json.dumps({"param_groups": to_json(state["param_groups"]), "progress": progress})
        (temporary / STATE_DESCRIPTION).write_text(text, encoding="utf-8")


def load_progress(directory: Path) -> dict[str, Any] | None:
    """The `progress` of a state directory, None where there is no state. Raises DataError for a damaged one."""
    path = newest(directory) / STATE_DESCRIPTION
    return _read_state(path)["progress"] if path.exists() else None


def load_ranks(directory: Path) -> dict[str, Tensor]:
    """The tensors of a state directory that have a row for each worker."""
    return _read_tensors(newest(directory) / RANKS)


def load_weights(directory: Path, model: nn.Module) -> None:
    """Put the weights of a checkpoint or state directory into a model of the same kind."""
    _load_weights(model, directory / WEIGHTS)


@torch.no_grad()
def start_from(directory: Path, model: nn.Module, description: Description, au_map: Mapping[int, int] | None = None) -> None:
    """Put the weights of another training's checkpoint into a fresh model, of which `description` is.

    A model with a `start_from` of its own takes what it can use, for other AUs too; any other takes every tensor whose name
    and shape are one of its own. Raises DataError if the checkpoint is of another model or has nothing for it, ConfigError
    if it is of other AUs.
    """
    origin = load_description(directory)
    name, other = description.model["name"], origin.model["name"]
    if name != other and not getattr(model, "starts_from_any", False):
        raise DataError(f"{directory} holds a model {other}, from which {name} cannot start; name another recipe in init")
    weights = _read_tensors(directory / WEIGHTS)
    if hasattr(model, "start_from"):
        model.start_from(weights, origin.au_set, au_map)  # type: ignore[operator]
        return
    if au_map or origin.au_set != description.au_set:
        known, wanted = (", ".join(map(str, one.aus)) for one in (origin, description))
        raise ConfigError(f"a {name} for AUs {wanted} starts from the same AUs, without an au_map; {directory} has {known}")
    own = model.state_dict()
    shared = [key for key, tensor in weights.items() if key in own and own[key].shape == tensor.shape]
    if not shared:
        raise DataError(f"no tensor in {directory} has name and shape of one of this {name}; name another recipe in init")
    for key in shared:
        own[key].copy_(weights[key])
    logger.info("%d of %d tensors start from %s", len(shared), len(own), directory)


def load_optimiser(directory: Path, optimiser: torch.optim.Optimizer) -> None:
    """Put the saved state into an optimiser over the same parameters."""
    groups = _read_state(directory / STATE_DESCRIPTION)["param_groups"]
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in _read_tensors(directory / STATE).items():
        parameter, name = key.split(".", 1)
        state.setdefault(int(parameter), {})[name] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": groups})


def newest(directory: Path) -> Path:
    """Where the newest whole content of a directory is that this file writes; it is elsewhere only after a kill."""
    return next((p for p in (_sibling(directory, "new"), directory, _sibling(directory, "old")) if p.exists()), directory)


def settle(directory: Path) -> None:
    """End what a killed process left half done: the newest whole content takes its place, everything else goes.

    Only for the one process that writes there.
    """
    new, old = _sibling(directory, "new"), _sibling(directory, "old")
    if new.exists():
        _take_place(new, directory, old)
    elif old.exists() and not directory.exists():
        os.replace(old, directory)
    for left in (old, *directory.parent.glob(f".{directory.name}.*.tmp")):
        shutil.rmtree(left, ignore_errors=True)


class _new_directory:
    """Context manager: fill a neighbour of `directory`, which takes its place when the block ends without an error.

    A directory cannot replace a filled one in one step. So the new one is first named .<name>.new, whole and on the disk;
    then the old one makes room as .<name>.old; then the new one takes its name. Killed at any point, `newest` finds it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.temporary = _sibling(directory, f"{os.getpid()}.tmp")

    def __enter__(self) -> Path:
        try:
            settle(self.directory)
            self.temporary.mkdir(parents=True)
        except OSError as error:
            raise self._refusal(error) from None
        return self.temporary

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        try:
            if kind is None:
                for path in (*self.temporary.iterdir(), self.temporary):
                    _flush(path)
                new, old = _sibling(self.directory, "new"), _sibling(self.directory, "old")
                os.replace(self.temporary, new)
                _take_place(new, self.directory, old)
                return
        except OSError as problem:
            error = problem
        shutil.rmtree(self.temporary, ignore_errors=True)
        if isinstance(error, OSError | SafetensorError):  # the latter is what safetensors makes of a full disk
            raise self._refusal(error) from None

    def _refusal(self, error: Exception) -> DataError:
        reason = " ".join(str(error).split())[:200]
        return DataError(f"cannot write {self.directory} ({reason}); make room or mend it and run the same command again")


def _sibling(directory: Path, kind: str) -> Path:
    return directory.with_name(f".{directory.name}.{kind}")


def _take_place(new: Path, directory: Path, old: Path) -> None:
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        os.replace(directory, old)
    os.replace(new, directory)
    _flush(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    """Have a file or the names in a directory on the disk, so that they outlive the machine too."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_model(directory: Path, model: nn.Module, description: Description) -> None:
    save_file({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}, directory / WEIGHTS)
    (directory / DESCRIPTION).write_text(json.dumps(to_json(description), indent=1) + "\n", encoding="utf-8")


def _load_weights(model: nn.Module, path: Path) -> None:
    try:
        model.load_state_dict(_read_tensors(path))
    except RuntimeError as error:
        raise _refusal(path, error) from None


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise _refusal(path, error) from None


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {key: state[key] for key in ("param_groups", "progress")}
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"the state {path} is damaged ({error}); delete {path.parent} to begin anew") from None


def _refusal(path: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:300]
    return DataError(f"the weights in {path} are missing, damaged or of another model: {reason}")
