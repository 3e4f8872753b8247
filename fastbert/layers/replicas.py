"""Replicas of nn.DataParallel: copies of a model for one pass each, whose parameters are hidden."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn


def is_replica(module: nn.Module) -> bool:
    """Return whether a module is a replica that nn.DataParallel made for one pass."""
    return bool(vars(module).get("_is_replica"))


def parameters_held(module: nn.Module) -> Mapping[str, Tensor | None]:
    """Return a module's own parameters by name; a replica's are no parameters but plain tensors."""
    if not is_replica(module):
        return module._parameters
    former: Mapping[str, Tensor] = vars(module).get("_former_parameters", {})
    return {**module._parameters, **former}


def parameters_within(module: nn.Module) -> Iterator[Tensor]:
    """Yield all parameters of a module, each once; those of a replica too."""
    if not is_replica(module):
        yield from module.parameters()
        return
    seen: set[int] = set()
    for part in module.modules():
        for tensor in parameters_held(part).values():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor


def first_parameter_within(module: nn.Module) -> Tensor | None:
    """Return the first parameter of a module or a replica, as parameters_within() orders them.

    That takes 70 calls to the first one, since torch notes all modules and tensors on its way.
    """
    for tensor in parameters_held(module).values():
        if tensor is not None:
            return tensor
    for part in module._modules.values():
        found = None if part is None else first_parameter_within(part)
        if found is not None:
            return found
    return None
