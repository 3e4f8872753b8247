"""What distinguishes one family's encoder from another's: its names and its shape, as data."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, fields

from fastbert.ops.activations import Activation

# The component of a path that stands for the number of the layer.
LAYER = "N"


@dataclass(frozen=True)
class AttentionNames:
    """Paths of the parts of one attention of a layer; see ParameterNames.

    Attributes:
        query, key, value: projections of the hidden states.
        output: the projection of the context.
        norm: LayerNorm around the attention.
        distances: embeddings of relative positions, where position_type asks for them; None where
            the family has none.
    """

    query: str
    key: str
    value: str
    output: str
    norm: str
    distances: str | None = None


@dataclass(frozen=True)
class ParameterNames:
    """Paths of the parts of an encoder, as the family's checkpoints have them.

    A path is the name of a parameter without its last component (`.weight`, `.bias`), counted from
    the encoder. The component `N` stands for the number of the layer. None says that the family has
    no such part. The defaults are BERT's names.

    Attributes:
        word: table of word embeddings.
        position: table of absolute positions.
        token_type: table of token types; it may be the path of another table, which then serves for
            both.
        language: table of languages.
        embedding_norm: LayerNorm over the sum of all tables.
        embedding_projection: from the width of the tables to the hidden size; see
            EncoderShape.projected.
        attention: self-attention.
        cross_attention: attention to another encoder's hidden states, in decoders.
        intermediate: the projection up to the intermediate size.
        output: the projection back to the hidden size.
        output_norm: LayerNorm around the feed-forward part.
        position_bias: table of what the distance between two tokens adds to their scores, a column
            for each head; all layers share it.
        pooler: the projection of column 0 that a tanh follows.

    Raises:
        ValueError: for paths that would not give every part a place of its own.
    """

    word: str = "embeddings.word_embeddings"
    position: str | None = "embeddings.position_embeddings"
    token_type: str | None = "embeddings.token_type_embeddings"
    language: str | None = None
    embedding_norm: str = "embeddings.LayerNorm"
    embedding_projection: str | None = None
    attention: AttentionNames = AttentionNames(
        query="encoder.layer.N.attention.self.query",
        key="encoder.layer.N.attention.self.key",
        value="encoder.layer.N.attention.self.value",
        output="encoder.layer.N.attention.output.dense",
        norm="encoder.layer.N.attention.output.LayerNorm",
        distances="encoder.layer.N.attention.self.distance_embedding",
    )
    cross_attention: AttentionNames | None = AttentionNames(
        query="encoder.layer.N.crossattention.self.query",
        key="encoder.layer.N.crossattention.self.key",
        value="encoder.layer.N.crossattention.self.value",
        output="encoder.layer.N.crossattention.output.dense",
        norm="encoder.layer.N.crossattention.output.LayerNorm",
    )
    intermediate: str = "encoder.layer.N.intermediate.dense"
    output: str = "encoder.layer.N.output.dense"
    output_norm: str = "encoder.layer.N.output.LayerNorm"
    position_bias: str | None = None
    pooler: str | None = "pooler.dense"

    def __post_init__(self) -> None:
        layers = _paths(self, _OF_LAYERS)
        for where in ("attention", "cross_attention"):
            found = getattr(self, where)
            if found is not None:
                layers |= _paths(found, [one.name for one in fields(found)], f"{where}.")
        shared = _paths(self, _SHARED)
        if self.token_type == self.word:
            del shared["token_type"]
        for name, path in (layers | shared).items():
            _check_path(name, path, 1 if name in layers else 0)
        lists = {name: path.partition(f".{LAYER}")[0] for name, path in layers.items()}
        taken = list((layers | shared).items())
        for (name, path), (other, there) in itertools.combinations(taken, 2):
            if _holds(path, there) or _holds(there, path):
                raise ValueError(
                    f"{name} ({path!r}) and {other} ({there!r}) name one place, or one in the "
                    "other; every part of an encoder has a path of its own."
                )
        for (name, path), (other, there) in itertools.product(shared.items(), lists.items()):
            if _holds(there, path) or _holds(path, there):
                raise ValueError(
                    f"{name} ({path!r}) would stand in {there!r}, the list of the layers that "
                    f"{other} names, which holds layers alone."
                )


_OF_LAYERS = ("intermediate", "output", "output_norm")
_SHARED = (
    *("word", "position", "token_type", "language", "embedding_norm", "embedding_projection"),
    *("position_bias", "pooler"),
)


def _paths(names: object, wanted: Iterable[str], prefix: str = "") -> dict[str, str]:
    found = {prefix + name: getattr(names, name) for name in wanted}
    return {name: path for name, path in found.items() if path is not None}


def _holds(outer: str, inner: str) -> bool:
    return f"{inner}.".startswith(f"{outer}.")


def _check_path(name: str, path: str, numbers: int) -> None:
    """Check one path.

    Raises:
        ValueError: for a path that leads nowhere, or does not say which layer it belongs to.
    """
    parts = path.split(".")
    if not all(parts) or parts[0] == LAYER or parts[-1] in ("weight", "bias"):
        raise ValueError(
            f"{name} is {path!r}; a path is the name of a parameter without its last component "
            "(.weight, .bias), counted from the encoder, as in 'encoder.layer.N.output.dense'."
        )
    if parts.count(LAYER) != numbers:
        raise ValueError(
            f"{name} is {path!r}; "
            + (
                f"every layer has its own, so one component must be {LAYER!r}, the layer's number."
                if numbers
                else f"the encoder has one of it, so no component may be {LAYER!r}."
            )
        )


@dataclass(frozen=True)
class EncoderShape:
    """Sizes of an encoder and what it computes, as its configuration says.

    Attributes:
        vocabulary: rows of the table of words.
        positions: rows of the table of positions.
        token_types: rows of the table of token types; 0 for an encoder without one.
        languages: rows of the table of languages; 0 for an encoder without one.
        width: columns of the tables.
        hidden: width of the hidden states.
        layers: number of layers.
        heads: attention heads a layer; they share `hidden` evenly.
        intermediate: width of the feed-forward part.
        activation: of the feed-forward part: a name of `fastbert.ops.activations`, or an Activation
            where its formula has numbers of its own.
        norm_eps: added to the variance in every LayerNorm.
        padding: row of the table of words that is zero at first and gets no gradient.
        position_padding: the same of the table of positions.
        position_type: "absolute", "relative_key" or "relative_key_query".
        pre_norm: LayerNorm before attention and feed-forward part, rather than behind them.
        cross_attention: whether layers attend to another encoder's hidden states.
        projected: whether what the tables hold is projected to the hidden size, in families that
            have names for it.
        buckets: rows of the table of position biases.

    Raises:
        ValueError: for heads that do not divide the hidden size, and an unknown position_type.
    """

    vocabulary: int
    positions: int
    width: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    activation: str | Activation
    norm_eps: float
    token_types: int = 0
    languages: int = 0
    padding: int | None = None
    position_padding: int | None = None
    position_type: str = "absolute"
    pre_norm: bool = False
    cross_attention: bool = False
    projected: bool = True
    buckets: int = 0

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            raise ValueError(
                f"hidden_size ({self.hidden}) must be a multiple of num_attention_heads "
                f"({self.heads})."
            )
        if self.position_type not in ("absolute", "relative_key", "relative_key_query"):
            raise ValueError(
                "position_embedding_type is 'absolute', 'relative_key' or 'relative_key_query', "
                f"not {self.position_type!r}."
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads
