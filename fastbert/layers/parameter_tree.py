"""Modules that only hold other modules under the names that checkpoints use."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from fastbert.layers.parent import Parent


class ParameterTree(Parent):
    """A branch of the parameter tree: keyword arguments become children or parameters.

    A class with more than one use of its children derives from this and annotates them, so that
    reading one gives its type.
    """

    def __init__(self, /, **children: nn.Module | nn.Parameter | None) -> None:
        super().__init__()
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, *_: Any, **__: Any) -> Any:
        """Refuse to compute: the encoder reads the parameters through a Block.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "This part only holds parameters; call the model, whose encoder computes all layers."
        )

    def register_forward_hook(self, *args: Any, **kwargs: Any) -> Any:
        """Register a hook, and warn where it never runs; see nn.Module."""
        self._warn_of_hooks()
        return super().register_forward_hook(*args, **kwargs)

    def register_forward_pre_hook(self, *args: Any, **kwargs: Any) -> Any:
        """Register a hook, and warn where it never runs; see nn.Module."""
        self._warn_of_hooks()
        return super().register_forward_pre_hook(*args, **kwargs)

    def register_full_backward_hook(self, *args: Any, **kwargs: Any) -> Any:
        """Register a hook, and warn where it never runs; see nn.Module."""
        self._warn_of_hooks()
        return super().register_full_backward_hook(*args, **kwargs)

    def _warn_of_hooks(self) -> None:
        if type(self).forward is ParameterTree.forward:
            warnings.warn(
                "This part only holds parameters and is never called, so a hook on it never runs; "
                "take output_hidden_states or output_attentions, or hook its linear layers.",
                stacklevel=3,
            )
