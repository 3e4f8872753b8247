"""Building the parts of an encoder where a table of names says, and finding them there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, cast

from torch import nn

from fastbert.layers.block import Block, CrossAttention, Distances
from fastbert.layers.embeddings import EmbeddingTables
from fastbert.layers.linear import Linear
from fastbert.layers.norm import LayerNorm
from fastbert.layers.parameter_tree import ParameterTree
from fastbert.layers.unfilled import weights_device
from fastbert.modeling.parameter_names import LAYER, AttentionNames, EncoderShape, ParameterNames

Part = TypeVar("Part", bound=nn.Module)


# Makes the branch that belongs at a path, with `N` for the layer of that number.
Maker = Callable[[str, int | None], nn.Module]


def bare(path: str, layer: int | None) -> nn.Module:
    """Make a branch that only holds its children."""
    return ParameterTree()


def plant(
    root: nn.Module,
    path: str,
    part: nn.Module | nn.Parameter,
    layer: int | None = None,
    make: Maker = bare,
) -> None:
    """Put a part where a path leads, and make the branches on the way that are not there yet.

    Args:
        root: what the path is counted from.
        path: as in ParameterNames.
        part: the module or parameter; it takes the place of what is there.
        layer: the number that `N` stands for.
        make: makes a branch.
    """
    names = path.split(".")
    owner = root
    for end, name in enumerate(names[:-1], 1):
        key = str(layer) if name == LAYER else name
        branch = owner._modules.get(key)
        if branch is None:
            inside = LAYER in names[:end]
            listed = names[end] == LAYER
            branch = (
                nn.ModuleList()
                if listed
                else make(".".join(names[:end]), layer if inside else None)
            )
            owner.add_module(key, branch)
        owner = branch
    setattr(owner, str(layer) if names[-1] == LAYER else names[-1], part)


def find(root: nn.Module, path: str | None, layer: int | None = None) -> nn.Module | None:
    """Follow a path to its part; None where there is none, or no path."""
    if path is None:
        return None
    found: nn.Module | None = root
    for name in path.split("."):
        found = getattr(found, str(layer) if name == LAYER else name, None)
        if found is None:
            return None
    return found


def part(kind: type[Part], root: nn.Module, path: str, layer: int | None = None) -> Part:
    """Follow a path to a part that must be there.

    Args:
        kind: what a family builds there. Someone may have put another module in its place, such as
            an adapter around it, which is returned as it is.
        root: what the path is counted from.
        path: as in ParameterNames.
        layer: the number that `N` stands for.

    Raises:
        AttributeError: when there is no such part.
    """
    found = find(root, path, layer)
    if found is None:
        where = path if layer is None else path.replace(f".{LAYER}", f".{layer}")
        raise AttributeError(
            f"This {type(root).__name__} has no part {where!r}; whatever replaces a layer must "
            "keep the names of its parts."
        )
    return cast(Part, found)


def cast_linear(found: nn.Module) -> Linear:
    """Take what stands in the place of a projection for one; `project` calls it whatever it is."""
    return cast(Linear, found)


def build_tables(
    root: nn.Module,
    names: ParameterNames,
    shape: EncoderShape,
    order: Sequence[str] = ("word", "position", "token_type", "language"),
    make: Maker = bare,
) -> None:
    """Build the embedding tables and their norm.

    Args:
        root: the encoder.
        names: where its parts belong.
        shape: its sizes.
        order: of the tables among the encoder's parameters.
        make: makes a branch.
    """
    sizes = {
        "word": (shape.vocabulary, shape.padding),
        "position": (shape.positions, shape.position_padding),
        "token_type": (shape.token_types, None),
        "language": (shape.languages, None),
    }
    for table in order:
        path: str | None = getattr(names, table)
        rows, padding = sizes[table]
        if path is not None and rows and find(root, path) is None:
            plant(root, path, _table(rows, shape.width, padding), make=make)
    plant(root, names.embedding_norm, LayerNorm(shape.width, shape.norm_eps), make=make)


def _table(rows: int, width: int, padding: int | None = None) -> nn.Embedding:
    return nn.Embedding(rows, width, padding, device=weights_device())


def build_layers(
    root: nn.Module, names: ParameterNames, shape: EncoderShape, make: Maker = bare
) -> None:
    """Build all layers, and the projection of the embeddings where the family has one.

    Raises:
        ValueError: when the shape asks for relative positions or cross-attention, for which the
            family has no names.
    """
    if shape.position_type != "absolute" and names.attention.distances is None:
        raise ValueError(
            f"{type(root).__name__} has no relative positions; position_embedding_type must be "
            f"'absolute', not {shape.position_type!r}."
        )
    if shape.cross_attention and names.cross_attention is None:
        raise ValueError(
            f"{type(root).__name__} has no cross-attention; leave add_cross_attention False."
        )
    if names.embedding_projection is not None and shape.projected:
        plant(root, names.embedding_projection, Linear(shape.width, shape.hidden), make=make)
    for path in _layer_paths(names, shape):
        head, below, _ = path.partition(f".{LAYER}")
        if below and find(root, head) is None:
            plant(root, head, nn.ModuleList(), make=make)
    for layer in range(shape.layers):
        _build_attention(root, names.attention, shape, layer, make)
        if names.cross_attention is not None and shape.cross_attention:
            _build_attention(root, names.cross_attention, shape, layer, make)
        plant(root, names.intermediate, Linear(shape.hidden, shape.intermediate), layer, make)
        plant(root, names.output, Linear(shape.intermediate, shape.hidden), layer, make)
        plant(root, names.output_norm, LayerNorm(shape.hidden, shape.norm_eps), layer, make)
    if names.position_bias is not None:
        plant(root, names.position_bias, _table(shape.buckets, shape.heads), make=make)


def _layer_paths(names: ParameterNames, shape: EncoderShape) -> Iterator[str]:
    attention = names.attention
    yield from (attention.query, attention.key, attention.value, attention.output, attention.norm)
    cross = names.cross_attention
    if cross is not None and shape.cross_attention:
        yield from (cross.query, cross.key, cross.value, cross.output, cross.norm)
    yield from (names.intermediate, names.output, names.output_norm)


def _build_attention(
    root: nn.Module, names: AttentionNames, shape: EncoderShape, layer: int, make: Maker
) -> None:
    hidden = shape.hidden
    for path in (names.query, names.key, names.value):
        plant(root, path, Linear(hidden, hidden), layer, make)
    if names.distances is not None and shape.position_type != "absolute":
        rows = 2 * shape.positions - 1
        plant(root, names.distances, _table(rows, shape.head_dim), layer, make)
    plant(root, names.output, Linear(hidden, hidden), layer, make)
    plant(root, names.norm, LayerNorm(hidden, shape.norm_eps), layer, make)


def layer_count(root: nn.Module, names: ParameterNames) -> int:
    """Count the layers that there are, whatever the configuration says.

    There are none where something else stands in the place of their list.
    """
    layers = find(root, names.attention.query.partition(f".{LAYER}")[0])
    return len(layers) if isinstance(layers, nn.ModuleList) else 0


def complete(root: nn.Module, names: ParameterNames, layer: int) -> bool:
    """Return whether a layer has the parts that a Block is read from."""
    own = names.attention
    paths = (own.query, own.key, own.value, own.output, names.intermediate, names.output)
    found = [find(root, path, layer) for path in paths]
    return all(hasattr(one, "out_features") for one in found)


def read_block(root: nn.Module, names: ParameterNames, shape: EncoderShape, layer: int) -> Block:
    """Read the parts of one layer."""
    own, cross = names.attention, names.cross_attention
    crossed = None
    if cross is not None and find(root, cross.query, layer) is not None:
        crossed = CrossAttention(
            q=part(Linear, root, cross.query, layer),
            k=part(Linear, root, cross.key, layer),
            v=part(Linear, root, cross.value, layer),
            out=part(Linear, root, cross.output, layer),
            norm=part(LayerNorm, root, cross.norm, layer),
        )
    table = find(root, own.distances, layer)
    query = part(Linear, root, own.query, layer)
    return Block(
        q=query,
        k=part(Linear, root, own.key, layer),
        v=part(Linear, root, own.value, layer),
        out=part(Linear, root, own.output, layer),
        attention_norm=part(LayerNorm, root, own.norm, layer),
        up=part(Linear, root, names.intermediate, layer),
        down=part(Linear, root, names.output, layer),
        output_norm=part(LayerNorm, root, names.output_norm, layer),
        # Fewer than the configuration says in a layer that was pruned.
        num_heads=query.out_features // shape.head_dim,
        scale=shape.head_dim**-0.5,
        activation=shape.activation,
        pre_norm=shape.pre_norm,
        cross=crossed,
        distances=(
            None
            if table is None
            else Distances(cast(nn.Embedding, table), shape.position_type == "relative_key_query")
        ),
    )


def read_tables(root: nn.Module, names: ParameterNames, shape: EncoderShape) -> EmbeddingTables:
    """Read the embedding tables; one that is not there adds nothing."""
    position = names.position if shape.position_type == "absolute" else None
    return EmbeddingTables(
        word=part(nn.Embedding, root, names.word),
        position=cast(nn.Embedding | None, find(root, position)),
        token_type=cast(nn.Embedding | None, find(root, names.token_type)),
        language=cast(nn.Embedding | None, find(root, names.language)),
        norm=part(LayerNorm, root, names.embedding_norm),
        projection=cast(Linear | None, find(root, names.embedding_projection)),
    )
