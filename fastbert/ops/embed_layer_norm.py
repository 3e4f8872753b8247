"""Embedding lookups, their sum, and its LayerNorm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastbert.ops._op import STANDARD_TOLERANCES, Arguments, Case, Mutation, Op, Traits
from fastbert.ops._sample import Sampler
from fastbert.ops.add_layer_norm import layer_norm, one_pass_layer_norm, wrong_eps
from fastbert.ops.operands import Target, by_rows, matrix, operand, two_dimensional, vector


def embed_layer_norm(
    input_ids: Tensor | None,
    word: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    position_ids: Tensor | None = None,
    position_table: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    type_table: Tensor | None = None,
    language_ids: Tensor | None = None,
    language_table: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    padding_idx: int = -1,
    position_padding_idx: int = -1,
) -> Tensor:
    """Compute LayerNorm(word[input_ids] + type[...] + position[...] + language[...]).

    The parts are added in that order.

    Args:
        input_ids: int64 (total,); None when inputs_embeds is given.
        word: (vocabulary, hidden), floating; None when inputs_embeds is given.
        weight: (hidden,), gain of the LayerNorm.
        bias: (hidden,), of the LayerNorm.
        eps: added to the variance.
        position_ids: int64 (total,), or None together with its table.
        position_table: (entries, hidden), or None.
        token_type_ids: int64 (total,), or None together with its table.
        type_table: (entries, hidden), or None.
        language_ids: int64 (total,), or None together with its table.
        language_table: (entries, hidden), or None.
        inputs_embeds: (total, hidden), in place of word[input_ids].
        padding_idx: row of word that receives no gradient; -1 for none. The result does not
            depend on it.
        position_padding_idx: the same for position_table.

    Returns:
        (total, hidden), the dtype of the tables.

    Raises:
        ValueError, IndexError: an id without a row in its table.
    """
    total = _sum(
        input_ids,
        word,
        position_ids,
        position_table,
        token_type_ids,
        type_table,
        language_ids,
        language_table,
        inputs_embeds,
        padding_idx,
        position_padding_idx,
    )
    return layer_norm(total, weight, bias, eps)


def _sum(
    input_ids: Tensor | None,
    word: Tensor | None,
    position_ids: Tensor | None = None,
    position_table: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    type_table: Tensor | None = None,
    language_ids: Tensor | None = None,
    language_table: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    padding_idx: int = -1,
    position_padding_idx: int = -1,
) -> Tensor:
    if inputs_embeds is not None:
        total = inputs_embeds
    elif input_ids is None or word is None:
        raise ValueError(
            "embed_layer_norm needs either inputs_embeds, or input_ids together with their table."
        )
    else:
        total = _lookup(input_ids, word, padding_idx)
    if token_type_ids is not None and type_table is not None:
        total = total + _lookup(token_type_ids, type_table)
    if position_ids is not None and position_table is not None:
        total = total + _lookup(position_ids, position_table, position_padding_idx)
    if language_ids is not None and language_table is not None:
        total = total + _lookup(language_ids, language_table)
    return total


def _lookup(ids: Tensor, table: Tensor, padding_idx: int = -1) -> Tensor:
    return F.embedding(ids, table, padding_idx if padding_idx >= 0 else None)


Lookup = tuple[Tensor, Tensor]


class EmbeddingOperands(NamedTuple):
    """Checked operands of `embed_layer_norm`.

    Attributes:
        code: of the dtype of tables, weight and bias.
        rows, width: shape of the result.
        embeds: (rows, width), by rows, in place of word; or None.
        word, token_type, position, language: (ids, table), or None.
        weight, bias, eps: of the LayerNorm.
    """

    code: int
    rows: int
    width: int
    embeds: Tensor | None
    word: Lookup | None
    token_type: Lookup | None
    position: Lookup | None
    language: Lookup | None
    weight: Tensor
    bias: Tensor
    eps: float


def check(
    target: Target,
    input_ids: Tensor | None,
    word: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    position_ids: Tensor | None = None,
    position_table: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    type_table: Tensor | None = None,
    language_ids: Tensor | None = None,
    language_table: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    padding_idx: int = -1,
    position_padding_idx: int = -1,
) -> EmbeddingOperands:
    """Return the operands of `embed_layer_norm`; the padding indices concern gradients only.

    Raises:
        TypeError, ValueError: for operands that kernels do not take, with the reason.
    """
    op = "embed_layer_norm"
    embeds = None
    if inputs_embeds is not None:
        first, code = operand(op, "inputs_embeds", inputs_embeds, target)
        rows, width = two_dimensional(op, "inputs_embeds", first)
        embeds, input_ids, word = by_rows(first), None, None
    elif input_ids is None or word is None:
        raise ValueError(
            f"{op}: either inputs_embeds, or input_ids together with their table, must be given."
        )
    else:
        first, code = operand(op, "word", word, target)
        width = two_dimensional(op, "word", first)[1]
        if not isinstance(input_ids, Tensor) or input_ids.dim() != 1:
            raise ValueError(f"{op}: input_ids must be a tensor of one dimension, packed.")
        rows = input_ids.shape[0]
    like = (rows, width, first.dtype, first.device)
    return EmbeddingOperands(
        code,
        rows,
        width,
        embeds,
        _checked("input_ids", "word", input_ids, word, *like),
        _checked("token_type_ids", "type_table", token_type_ids, type_table, *like),
        _checked("position_ids", "position_table", position_ids, position_table, *like),
        _checked("language_ids", "language_table", language_ids, language_table, *like),
        vector(op, "weight", weight, width, first.dtype, first.device),
        vector(op, "bias", bias, width, first.dtype, first.device),
        eps,
    )


def _checked(
    ids_name: str,
    table_name: str,
    ids: Tensor | None,
    table: Tensor | None,
    rows: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Lookup | None:
    op = "embed_layer_norm"
    if ids is None and table is None:
        return None
    if ids is None or table is None:
        given, absent = (table_name, ids_name) if ids is None else (ids_name, table_name)
        raise ValueError(f"{op}: {given} was given without {absent}; give both or neither.")
    ids = vector(op, ids_name, ids, rows, torch.int64, device)
    entries = table.shape[0] if isinstance(table, Tensor) and table.dim() == 2 else 0
    return ids, matrix(op, table_name, table, entries, width, dtype, device)


def fake(
    *,
    input_ids: Tensor | None = None,
    word: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    **_: object,
) -> Tensor:
    """Return an empty result."""
    if inputs_embeds is not None:
        return inputs_embeds.new_empty(inputs_embeds.shape)
    assert input_ids is not None and word is not None
    return word.new_empty((input_ids.shape[0], word.shape[1]))


def supports(backend: str, traits: Traits) -> str | None:
    """Return None, or why the backend's kernel cannot serve these traits."""
    return None


def _make(
    dtype: torch.dtype,
    *,
    total: int,
    hidden: int,
    tables: str = "wtp",
    eps: float,
    std: float = 1.0,
    mean: float = 0.0,
) -> Arguments:
    sample = Sampler(total * 1009 + hidden, dtype)
    out: Arguments = {
        "input_ids": None,
        "word": None,
        "weight": sample.around_one(hidden),
        "bias": sample.normal(hidden, std=0.5),
        "eps": eps,
    }
    if "i" in tables:
        out["inputs_embeds"] = sample.normal(total, hidden, std=std, mean=mean)
    else:
        out["input_ids"] = sample.ids(total, 57)
        out["word"] = sample.normal(57, hidden, std=std, mean=mean)
    for letter, ids, table, entries in (
        ("p", "position_ids", "position_table", 41),
        ("t", "token_type_ids", "type_table", 2),
        ("e", "language_ids", "language_table", 5),
    ):
        if letter in tables:
            out[ids] = sample.ids(total, entries)
            out[table] = sample.normal(entries, hidden, std=std)
    return out


def cases() -> Iterator[Case]:
    """Yield the sample calls."""
    make = partial(_make, eps=1e-12)
    sizes = [(0, 8), (3, 7), (2, 8), (5, 9), (1, 15), (4, 16), (3, 17), (2, 31), (7, 37), (13, 127)]
    for total, hidden in [*sizes, (3, 384), (5, 768), (2, 1031)]:
        yield Case(f"{total}x{hidden}", partial(make, total=total, hidden=hidden))
    for tables in ("w", "wt", "wp", "wpe", "wtpe", "i", "itp", "ipe"):
        yield Case(f"tables-{tables}", partial(make, total=11, hidden=97, tables=tables))
    for eps in (1e-12, 1e-5):
        yield Case(f"low-variance-{eps}", partial(make, total=4, hidden=768, std=1e-3, eps=eps))
    yield Case("large-mean", partial(make, total=8, hidden=768, mean=100.0))


def _changed(**changes: Callable[[Any], Any]) -> Callable[..., Tensor]:
    def mutated(**arguments: Any) -> Tensor:
        return embed_layer_norm(
            **{name: changes.get(name, lambda v: v)(value) for name, value in arguments.items()}
        )

    return mutated


def _shifted(ids: Tensor | None) -> Tensor | None:
    return None if ids is None else (ids - 1).clamp(min=0)


def _one_pass(
    input_ids: Tensor | None,
    word: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    **others: Any,
) -> Tensor:
    wide: dict[str, Any] = {
        name: value.to(torch.float32)
        if isinstance(value, Tensor) and value.is_floating_point()
        else value
        for name, value in {"word": word, **others}.items()
    }
    return one_pass_layer_norm(_sum(input_ids, **wide), weight, bias, eps).to(weight.dtype)


OP = Op(
    name="embed_layer_norm",
    reference=embed_layer_norm,
    check=check,
    fake=fake,
    supports=supports,
    tolerances=STANDARD_TOLERANCES,
    cases=cases,
    mutations=(
        Mutation("wrong eps", _changed(eps=wrong_eps)),
        Mutation("bias dropped", _changed(bias=torch.zeros_like)),
        Mutation("gain dropped", _changed(weight=torch.ones_like)),
        Mutation("positions ignored", _changed(position_table=lambda _: None)),
        Mutation("positions off by one", _changed(position_ids=_shifted)),
        Mutation("token types ignored", _changed(type_table=lambda _: None)),
        Mutation("language table ignored", _changed(language_table=lambda _: None)),
        Mutation("one-pass variance", _one_pass, (torch.float32,)),
    ),
)
