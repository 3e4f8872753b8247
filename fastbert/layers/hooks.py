"""Whether someone looks at what a module computes, or computes it instead."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_modules

from fastbert.layers.methods import DEFINED, replaced

# Of register_module_forward_hook and its like: they see every module of the process.
GLOBAL_FORWARD_HOOKS: tuple[dict[Any, Any], ...] = (
    torch_modules._global_forward_hooks,
    torch_modules._global_forward_pre_hooks,
)
GLOBAL_HOOKS: tuple[dict[Any, Any], ...] = (
    *GLOBAL_FORWARD_HOOKS,
    torch_modules._global_backward_hooks,
    torch_modules._global_backward_pre_hooks,
)


def forward_hooked(module: nn.Module) -> bool:
    """Whether hooks see the module's forward pass, or its forward was replaced."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or replaced(module)
        or any(GLOBAL_FORWARD_HOOKS)
    )


def hooked(module: nn.Module) -> bool:
    """Whether hooks see the module's forward or backward pass, or its forward was replaced."""
    if (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or any(GLOBAL_HOOKS)
    ):
        return True
    # What replaced() does, without its call: every pass asks several times.
    kind, own = type(module), vars(module)
    recorded = DEFINED.get(kind)
    if recorded is None or torch.compiler.is_compiling():
        return "forward" in own
    for owner, name, method in recorded.found:
        if getattr(owner, name) is not method or name in own:
            return True
    return False
