"""The interface of prepared decoders: a whole pass as one call, from ids to scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from fastbert.layers.decoder_block import DecoderBlock
from fastbert.layers.kv_cache import DynamicCache
from fastbert.layers.rms_norm import RMSNorm


@dataclass(frozen=True)
class DecoderReading:
    """What an engine takes from a decoder.

    Attributes:
        blocks: its layers.
        words: the embedding table.
        norm: behind the last layer.
        refused: why the modules must be called instead, as a clause; None where they need not be.
    """

    blocks: tuple[DecoderBlock, ...]
    words: nn.Embedding
    norm: RMSNorm
    refused: str | None = None

    @property
    def called(self) -> bool:
        """Whether the modules are called."""
        return self.refused is not None


@dataclass(frozen=True)
class DecoderInput:
    """The tokens of a pass, without padding, one sequence behind the other.

    Attributes:
        ids: int64 (tokens,); None where embeds is given.
        embeds: (tokens, hidden), in place of ids.
        cu_seqlens: int32 (sequences + 1,), where sequences begin and end.
        cos, sin: float32 (tokens, head_dim / 2), of every token's angles.
        causal: whether later tokens are hidden.
        cache: the cache that is extended, one that `unwritable` has nothing against; None without.
        first: int64 (sequences,), how many columns of padding stand before each sequence's tokens
            in the cache.
        past: columns that the cache holds already.
        new: columns that the pass adds.
    """

    ids: Tensor | None
    embeds: Tensor | None
    cu_seqlens: Tensor
    cos: Tensor
    sin: Tensor
    causal: bool
    cache: DynamicCache | None = None
    first: Tensor | None = None
    past: int = 0
    new: int = 0

    @property
    def total(self) -> int:
        """Number of tokens."""
        return self.cos.shape[0]


@dataclass(frozen=True)
class DecoderWanted:
    """What a pass is to return.

    Attributes:
        tokens: int64 (rows,), of which tokens; None for all.
        scores: the scores of the vocabulary rather than hidden states.
    """

    tokens: Tensor | None = None
    scores: bool = False


class Decoder(Protocol):
    """A whole pass over weights that were prepared for one device.

    `DecoderCache` makes the right one for a model; callers need not know which it is.
    """

    @property
    def scores(self) -> bool:
        """Whether it holds a head that scores the vocabulary."""

    def decode(self, inputs: DecoderInput, wanted: DecoderWanted, watch: Any) -> Tensor | None:
        """Compute embeddings, all layers, the last norm and, where wanted, the scores.

        Args:
            inputs: the tokens.
            wanted: what is returned.
            watch: a `_C.Watch` of the model.

        Returns:
            (rows, hidden) or (rows, vocabulary); None, with nothing computed and the cache as it
            was, when the model has changed since the decoder was made.

        Raises:
            IndexError: for an id outside of the table.
            ValueError: for tokens that the cache has no room for.
        """
