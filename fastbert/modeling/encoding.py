"""What an encoder hands to a head: packed rows, and everything needed to finish the output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

from torch import Tensor

from fastbert.outputs import ModelOutput, finish
from fastbert.runtime.packing import PackedBatch
from fastbert.runtime.plan import Plan


class Options(TypedDict, total=False):
    """Keyword arguments that every forward takes besides its own.

    head_mask: (heads,) or (layers, heads), multiplies the attention weights; None keeps all.
    output_attentions, output_hidden_states, return_dict: None for the configuration's value.
    cache_position: accepted, not needed.
    """

    head_mask: Tensor | None
    output_attentions: bool | None
    output_hidden_states: bool | None
    return_dict: bool | None
    cache_position: Tensor | None


@dataclass(frozen=True)
class Encoding:
    """One pass through an encoder, before any head.

    Attributes:
        batch: where the rows stand in the padded grid.
        plan: the backends, for the head's own ops.
        packed: the last hidden states (batch.total, hidden), or
        grid: the same padded (batch, seqlen, hidden), zero where a token was removed.
        pooled: (batch, hidden), where the pass that made the rows computed the pooler too.
        cache: the key/value cache to return, None without one.
        hidden_states, attentions, cross_attentions: padded, where they were asked for.
    """

    batch: PackedBatch
    plan: Plan
    return_dict: bool
    packed: Tensor | None = None
    grid: Tensor | None = None
    pooled: Tensor | None = None
    cache: Any = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None

    @property
    def rows(self) -> Tensor:
        """The last hidden states, packed (batch.total, hidden)."""
        if self.packed is not None:
            return self.packed
        assert self.grid is not None
        return self.batch.pack(self.grid)

    def padded(self) -> Tensor:
        """The last hidden states (batch, seqlen, hidden), zero where a token was removed."""
        return self.batch.pad(self.rows) if self.grid is None else self.grid

    def first_rows(self) -> Tensor:
        """The last hidden state of column 0 of every sequence, (batch, hidden)."""
        if self.batch.batch_size == 0:
            return self.rows[:0]
        return self.rows.index_select(0, self.batch.first_token_rows())

    def finish(self, kind: type[ModelOutput], keep: tuple[str, ...] = (), **values: Any) -> Any:
        """The output of a forward: `values` and what else was asked for, as dataclass or tuple.

        Args:
            kind: the output class; it takes of the rest what it has fields for.
            keep: fields that hold their place in a tuple even when they are None.
        """
        rest = {
            "hidden_states": self.hidden_states,
            "attentions": self.attentions,
            "cross_attentions": self.cross_attentions,
            "past_key_values": self.cache,
        }
        names = kind.field_names()
        values.update((name, value) for name, value in rest.items() if name in names)
        return finish(kind(**values), self.return_dict, keep)
