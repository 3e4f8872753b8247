"""The interface of prepared encoders: a whole pass as one call, whatever device it runs on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from fastbert.layers.embeddings import EmbeddingInput
from fastbert.layers.encoder import EncoderOutput
from fastbert.layers.score_bias import ScoreBias
from fastbert.runtime.packing import PackedBatch
from fastbert.runtime.plan import Plan

if TYPE_CHECKING:
    from fastbert.engine.encoder_cache import ModelSnapshot


@dataclass(frozen=True)
class Wanted:
    """Say which hidden states a caller reads, and in which form.

    Attributes:
        padded: the grid (batch, seqlen, hidden) is wanted rather than packed hidden states.
        first_column: column 0 of every sequence must be computed, even where it is masked; an
            encoder with a pooler pools it.
        keep_padding: masked tokens must be computed too, hidden only as keys.
    """

    padded: bool = False
    first_column: bool = False
    keep_padding: bool = False


PACKED = Wanted()
FIRST_COLUMN = Wanted(first_column=True)


@dataclass(frozen=True)
class ForwardContext:
    """Hold what one pass of a model stands on.

    Attributes:
        snapshot: the reading of the model that the pass uses.
        plan: the backends.
        differentiable: gradients will flow.
    """

    snapshot: ModelSnapshot
    plan: Plan
    differentiable: bool = False


class Encoder(Protocol):
    """A whole pass over weights that were prepared for one device.

    `EncoderCache` makes the right one for a model; callers need not know which it is.
    """

    @property
    def pools(self) -> bool:
        """Whether it computes the pooler too."""

    def encode(
        self,
        inputs: EmbeddingInput,
        batch: PackedBatch,
        wanted: Wanted,
        context: ForwardContext,
        bias: ScoreBias | None = None,
    ) -> EncoderOutput | None:
        """Compute embeddings, all layers and, where the encoder has it, the pooler.

        Args:
            inputs: indices over the padded grid, or embeddings in the place of word ids.
            batch: the tokens of that grid which are computed.
            wanted: the form of the result.
            context: the snapshot that the encoder was made from.
            bias: added to the attention scores of all layers, where `EncoderCache.computes` allows
                one.

        Returns:
            The result, or None, with nothing computed, when the model has changed since.

        Raises:
            IndexError: for an index outside its table.
        """
