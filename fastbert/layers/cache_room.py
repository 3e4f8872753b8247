"""Memory of key/value caches with room behind what is stored, so that tokens are added in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastbert.runtime.pages import lasting

# The least number of tokens that room is made for; it doubles from there.
LEAST_ROOM = 64


@dataclass
class Room:
    """Memory for the keys and values of a layer, with room behind them.

    Attributes:
        keys: (batch, heads, capacity, head_dim).
        values: likewise.
        shown: the views of it that the layer last gave out.
    """

    keys: Tensor
    values: Tensor
    shown: tuple[Tensor, Tensor] | None = None

    def holds(self, keys: Tensor, values: Tensor, end: int) -> bool:
        """Return whether these very tensors are what was last given out, and `end` tokens fit.

        Others have been put in their place (a shorter text, another order of beams), and behind
        them may stand what someone else still reads.
        """
        if self.shown is None or keys is not self.shown[0] or values is not self.shown[1]:
            return False
        writable = torch.is_inference_mode_enabled() or not self.keys.is_inference()
        return writable and end <= self.keys.shape[2]

    def show(self, end: int) -> tuple[Tensor, Tensor]:
        """Return views of the first `end` tokens, and remember that they were given out."""
        self.shown = self.keys[:, :, :end], self.values[:, :, :end]
        return self.shown

    def alone(self) -> bool:
        """Return whether no tensor but these and those that were last given out has the memory.

        What stands behind the tokens shown may be written then. Whoever kept a longer tensor, a
        view, an array or a graph's saved tensor of it would see that.
        """
        count = getattr(torch._C, "_storage_Use_Count", None)
        if count is None or self.shown is None:
            return False
        for memory in (self.keys, self.values):
            storage = memory.untyped_storage()
            # The handle above, this tensor, what it is a view of, and what was given out.
            known = 3 + (memory._base is not None)
            if count(storage._cdata) != known:
                return False
        return True


def with_room(old: Tensor, capacity: int) -> Tensor:
    """Copy keys or values (batch, heads, tokens, head_dim) into memory for `capacity` tokens.

    A token's heads stand together in it, as attention reads them.
    """
    batch, heads, tokens, dim = old.shape
    memory = lasting((batch, capacity, heads, dim), old.dtype, old.device).transpose(1, 2)
    memory[:, :, :tokens] = old
    return memory


def with_rows(old: Tensor, rows: Sequence[int], capacity: int) -> Tensor:
    """Copy these sequences of keys or values, in this order, as with_room() copies all."""
    _, heads, tokens, dim = old.shape
    memory = lasting((len(rows), capacity, heads, dim), old.dtype, old.device).transpose(1, 2)
    for to, row in enumerate(rows):
        memory[to, :, :tokens] = old[row]
    return memory
