"""Modules that hold other modules, and take one of them back as one that was written to."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastbert.layers.methods import as_defined


class Parent(nn.Module):
    """A module whose children are replaced by adapters, and put back.

    peft merges an adapter by `weight.data += x`, which torch does not count, and then puts the
    projection back where the adapter was. So a module that takes another's place counts as written
    to, and whatever was packed from its weights is packed again.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        as_defined(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, nn.Module) and self._modules.get(name, value) is not value:
            for tensor in (*value.parameters(), *value.buffers()):
                if not tensor.is_inference():
                    torch.autograd.graph.increment_version(tensor)
        super().__setattr__(name, value)
