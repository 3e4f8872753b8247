"""Modules that only hold other modules under the names that checkpoints use."""

from __future__ import annotations

from typing import Any

from torch import nn


class Tree(nn.Module):
    """A branch of the parameter tree: keyword arguments become children or parameters."""

    def __init__(self, /, **children: nn.Module | nn.Parameter | None) -> None:
        super().__init__()
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, *_: Any, **__: Any) -> Any:
        """Not computed here: the encoder reads the parameters through a Block.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "This part only holds parameters; call the model, whose encoder computes all layers."
        )
