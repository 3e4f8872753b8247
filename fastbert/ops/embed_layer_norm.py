"""Embedding lookups, their sum, and its LayerNorm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastbert.ops._op import STANDARD_TOLERANCES, Arguments, Case, Mutation, Op, Traits
from fastbert.ops._sample import Sampler
from fastbert.ops.add_layer_norm import layer_norm, one_pass_layer_norm, wrong_eps

SCHEMA = (
    "(Tensor? input_ids, Tensor? word, Tensor weight, Tensor bias, float eps, "
    "Tensor? position_ids=None, Tensor? position_table=None, Tensor? token_type_ids=None, "
    "Tensor? type_table=None, Tensor? language_ids=None, Tensor? language_table=None, "
    "Tensor? inputs_embeds=None, int padding_idx=-1, int position_padding_idx=-1) -> Tensor"
)


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
    """LayerNorm(word[input_ids] + type[...] + position[...] + language[...]), summed in that order.

    Args:
        input_ids: int64 (total,); None when inputs_embeds is given.
        word: (vocabulary, hidden), floating; None when inputs_embeds is given.
        weight, bias: (hidden,), of the LayerNorm.
        eps: added to the variance.
        position_ids, token_type_ids, language_ids: int64 (total,), each with its table
            (entries, hidden), or both None.
        inputs_embeds: (total, hidden), in place of word[input_ids].
        padding_idx, position_padding_idx: rows of word and position_table that receive no
            gradient; -1 for none. The result does not depend on them.

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


def fake(
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
    if inputs_embeds is not None:
        return inputs_embeds.new_empty(inputs_embeds.shape)
    assert input_ids is not None and word is not None
    return word.new_empty((input_ids.shape[0], word.shape[1]))


def supports(backend: str, traits: Traits) -> str | None:
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
    schema=SCHEMA,
    reference=embed_layer_norm,
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
