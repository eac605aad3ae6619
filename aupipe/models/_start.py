"""Starting a network from the weights of another training, for other AUs too."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from aupipe.facs import AUSet
from aupipe.schema import ConfigError, DataError


@torch.no_grad()
def copy_weights(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    aus: tuple[AUSet, AUSet],
    au_map: Mapping[int, int] | None = None,
    *,
    prefix: str,
    per_au: tuple[str, ...],
) -> None:
    """Fill `network`, part `prefix` of a model, from a model's `weights`. `aus` are the network's own AUs and the weights'.

    In tensors whose names begin as one of `per_au` the AUs lie side by side, AU-major in the first dimension; there each
    AU takes its own part, or that of the AU which `au_map` names for it. Raises ConfigError if an AU has no part to start
    from, DataError if the weights are of another network.
    """
    own_aus, other = aus
    origin = [(au_map or {}).get(au, au) for au in own_aus]
    if missing := [au for au, of in zip(own_aus, origin, strict=True) if of not in other.numbers]:
        known = ", ".join(map(str, other))
        raise ConfigError(f"AU{missing[0]:02d} has no branch to start from among AUs {known}; name one in init.au_map")
    rows = torch.tensor([other.index(of) for of in origin])
    for name, own in network.state_dict().items():
        given = weights.get(prefix + name)
        if given is not None and name.startswith(per_au) and given.ndim and len(given) % len(other) == 0:
            given = given.unflatten(0, (len(other), -1))[rows.to(given.device)].flatten(0, 1)
        if given is None or given.shape != own.shape:
            raise DataError(f"the weights to start from are of another network: {prefix}{name} is absent or of another size")
        own.copy_(given)
