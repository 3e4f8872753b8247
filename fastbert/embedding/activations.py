"""Activations of Dense modules, by the names that sentence-transformers saves them under."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastbert.ops.activations import Activation

# Where torch keeps the classes that make sense behind a projection; a Sequential, for example, is
# saved without what it held.
_HOMES = ("torch.nn.modules.activation", "torch.nn.modules.dropout")
_REFUSED = (nn.MultiheadAttention, nn.Softmax2d)
# They mix the values of one vector, along a dimension that torch picks by the number of dimensions.
ALONG_ROWS = (nn.Softmax, nn.Softmin, nn.LogSoftmax)


def activation_named(name: object, source: str | os.PathLike[str]) -> nn.Module:
    """Build the activation that the config.json of a Dense module names.

    Args:
        name: such as "torch.nn.modules.activation.Tanh". Its constructor's arguments are not saved,
            so it has their defaults, as in sentence-transformers.
        source: the name of the file in error messages.

    Raises:
        ValueError: for anything but an activation of torch that can be built without arguments.
    """
    short = str(name).rpartition(".")[2]
    found = getattr(nn, short, None) if isinstance(name, str) else None
    if isinstance(found, type) and issubclass(found, nn.Module) and found not in _REFUSED:
        home = found.__module__
        names = (f"{home}.{short}", f"torch.nn.{short}", f"torch.nn.modules.{short}")
        if name in names and (home in _HOMES or found is nn.Identity):
            try:
                made = found().eval()
            except TypeError:
                pass  # it cannot be built without arguments
            else:
                if isinstance(made, ALONG_ROWS):
                    made.dim = -1
                return made
    raise ValueError(
        f"{source} names the activation_function {name!r}; expected an activation of torch.nn that "
        "is built without arguments, such as 'torch.nn.modules.activation.Tanh'. Code of other "
        "packages is not run: compute with sentence-transformers, or replace the module's "
        "activation_function after loading."
    )


def fused(activation: nn.Module) -> str | Activation | None:
    """Return the activation as the op `linear` takes it; None where it must be called."""
    kind = type(activation)
    if kind is nn.Identity:
        return "none"
    if isinstance(activation, nn.GELU):
        return "gelu" if activation.approximate == "none" else "gelu_pytorch_tanh"
    if isinstance(activation, nn.LeakyReLU):
        return Activation("leaky_relu", (activation.negative_slope,))
    return {nn.Tanh: "tanh", nn.ReLU: "relu", nn.SiLU: "silu"}.get(kind)


def row_wise(activation: object) -> bool:
    """Return whether an activation is one of torch.nn, which computes each row by itself."""
    kind = type(activation)
    return kind is nn.Identity or kind.__module__ in _HOMES


def activated(activation: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """Apply an activation to rows (rows, width), each with the bits that it has alone.

    On a CPU, torch computes the last elements of a tensor, and of each thread's share of it, by
    other code than the elements before. So a row's bits would depend on where the row stands.
    """
    if rows.device.type != "cpu" or rows.shape[0] < 2:
        result: Tensor = activation(rows)
        return result
    return torch.cat([activation(row) for row in torch.split(rows, 1)])
