"""The keys and values of one layer of a cache, and how tokens are added to them.

Shapes are those of transformers: keys and values are (batch, heads, tokens, head_dim).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastbert.layers.cache_room import LEAST_ROOM, Room, with_room, with_rows


def _in_place(*pairs: tuple[Tensor, Tensor]) -> bool:
    """Return whether memory may be written: where no gradient and no graph needs the old values."""
    if torch.compiler.is_compiling() or any(x.requires_grad for pair in pairs for x in pair):
        return False
    return all(
        old.dtype == new.dtype
        and old.device == new.device
        and old.shape[:2] == new.shape[:2]
        and old.shape[3] == new.shape[3]
        for old, new in pairs
    )


@dataclass
class CacheLayer:
    """The keys and values of one layer.

    Attributes:
        keys: (batch, heads, tokens, head_dim), None before the first update.
        values: of the same shape, None before the first update.
        room: the memory that they stand in, where more tokens can be added to it.
        reserved: the number of tokens that room is made for at least.
    """

    keys: Tensor | None = None
    values: Tensor | None = None
    room: Room | None = field(default=None, repr=False, compare=False)
    reserved: int = field(default=0, repr=False, compare=False)

    @property
    def is_initialized(self) -> bool:
        """Whether keys and values are stored."""
        return self.keys is not None

    def get_seq_length(self) -> int:
        """Return the number of tokens stored."""
        return 0 if self.keys is None else self.keys.shape[2]

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append tokens.

        Args:
            keys: (batch, heads, new tokens, head_dim).
            values: of the same shape.

        Returns:
            All keys and all values stored, the new ones last.
        """
        if self.keys is not None and self.values is not None:
            pairs = (self.keys, keys), (self.values, values)
            if _in_place(*pairs):
                keys, values = self._grown(*pairs)
            else:
                keys, values = (torch.cat(pair, dim=2) for pair in pairs)
        self.keys, self.values = keys, values
        return keys, values

    def _grown(
        self, keys: tuple[Tensor, Tensor], values: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Append to memory that has room left; copying all of it at every token would be slow."""
        held, end = keys[0].shape[2], keys[0].shape[2] + keys[1].shape[2]
        room = self.room
        if room is None or not room.holds(keys[0], values[0], end):
            self.room = None  # its memory goes before the new one's comes
            made = [with_room(old, self.capacity(end)) for old, _ in (keys, values)]
            room = self.room = Room(made[0], made[1])
        for memory, (_, new) in zip((room.keys, room.values), (keys, values), strict=True):
            memory[:, :, held:end] = new
        return room.show(end)

    def capacity(self, end: int) -> int:
        """Return how many tokens room is made for where `end` must fit."""
        return self.reserved if end <= self.reserved else max(2 * end, LEAST_ROOM)

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these sequences, in this order, with the room that there was behind them."""
        keys, values, room = self.keys, self.values, self.room
        if keys is None or values is None:
            return
        if room is None or not room.holds(keys, values, keys.shape[2]):
            order = torch.tensor(rows, dtype=torch.int64, device=keys.device)
            self.change(lambda x: x.index_select(0, order))
            return
        capacity = room.keys.shape[2]
        self.room = Room(with_rows(keys, rows, capacity), with_rows(values, rows, capacity))
        self.keys, self.values = self.room.show(keys.shape[2])

    def crop(self, tokens: int) -> None:
        """Keep the first tokens, and the room behind them where nobody else can read it."""
        keys, values, room = self.keys, self.values, self.room
        if keys is None or values is None or tokens >= keys.shape[2]:
            return
        if room is None or not room.holds(keys, values, keys.shape[2]):
            self.change(lambda x: x[:, :, :tokens])
            return
        del keys, values  # or they would count as somebody else's
        self.keys, self.values = room.show(tokens)
        if not room.alone():
            self.room = None

    def change(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replace the keys and the values, if there are any, by a function of each."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = function(self.keys), function(self.values)
