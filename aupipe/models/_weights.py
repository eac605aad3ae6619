"""Published weights of the backbones: a local safetensors file under torchvision's names, made once by docs/models.md.

Nothing is downloaded while training or predicting. The constants are the input normalisation of such weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from aupipe.schema import DataError

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of RGB in 0 to 1
IMAGENET_STD = (0.229, 0.224, 0.225)
CLASSIFIERS = ("fc.", "classifier.", "AuxLogits.")  # ImageNet's 1,000 classes: in the file and in no backbone of ours
SNIPPET = "make them with the converter snippet in docs/models.md"

_follow: ContextVar[bool] = ContextVar("weights_follow", default=False)


@contextlib.contextmanager
def weights_follow() -> Iterator[None]:
    """Models built within read no file of pretrained weights: a checkpoint, which holds them all, is about to be loaded."""
    token = _follow.set(True)
    try:
        yield
    finally:
        _follow.reset(token)


def load_pretrained(module: nn.Module, path: str | None) -> None:
    """Fill a trunk from the safetensors file at `path`; None leaves its random weights.

    The trunk may be all of the file, an ImageNet classifier aside, or a part of it with names under a prefix of their own,
    as in the model.safetensors of a checkpoint of ours. There every name and shape must agree: ResNet-18 refuses ResNet-34's
    file, although it holds all of ResNet-18's names. Raises DataError for a file that is absent, damaged or of another
    network.
    """
    if path is None or _follow.get():
        return
    try:
        tensors = load_file(Path(path).expanduser())
    except FileNotFoundError:
        raise DataError(f"the pretrained weights {path} are not here; {SNIPPET}") from None
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"the pretrained weights {path} cannot be read ({reason}); {SNIPPET}") from None
    fill_trunk(module, tensors, f"the pretrained weights {path}", f"; {SNIPPET}")


def fill_trunk(module: nn.Module, tensors: Mapping[str, Tensor], source: str, hint: str = "") -> None:
    """Fill a trunk from all the tensors of a network or of a part of one; see `load_pretrained`.

    `source` is what they are called in the DataError if they are of another network, `hint` what to do about it.
    """
    own = module.state_dict()
    first = next(iter(own))
    prefixes = [name.removesuffix(first) for name in tensors if name == first or name.endswith(f".{first}")]
    parts = [_part(tensors, prefix) for prefix in prefixes or [""]]
    part = min(parts, key=lambda given: len(_odd_names(own, given)))
    if odd := _odd_names(own, part):
        kind = type(module).__name__
        raise DataError(
            f"{source} are of another network than {kind}: {odd[0]} is on one side only or of another size{hint}"
        )
    module.load_state_dict(part, strict=False)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    named = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {name: tensor for name, tensor in named.items() if not name.startswith(CLASSIFIERS)}


def _odd_names(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    # Files older than BatchNorm's counter lack it; it takes no part in what a norm computes.
    missing = {name for name in own if not name.endswith("num_batches_tracked")} - given.keys()
    return sorted(missing | {name for name in given if name not in own or given[name].shape != own[name].shape})


def draw_kaiming(module: nn.Module) -> None:
    """Convolutions of deviation √(2 / (outputs · kernel area)) without bias, as ResNet's and EfficientNet's are begun."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
