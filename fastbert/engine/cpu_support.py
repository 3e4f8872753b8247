"""What the CPU's prepared encoder can hold: a reason against every part that it cannot."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from fastbert.engine.cpu_sources import DTYPES
from fastbert.layers.block import Block
from fastbert.layers.embeddings import EmbeddingTables
from fastbert.layers.hooks import forward_hooked
from fastbert.layers.linear import Int8Linear, Linear, Projection
from fastbert.layers.norm import LayerNorm
from fastbert.ops.activations import unsupported_activation
from fastbert.ops.operands import short
from fastbert.runtime.plan import Plan

_OPS = ("attention_varlen", "add_layer_norm")


def supports(blocks: Sequence[Block], plan: Plan) -> str | None:
    """Return None when the blocks can be prepared for this plan, else the reason."""
    reason = _plan_reason(blocks, plan) or _block_reason(blocks)
    return reason or mixture(_modules(blocks), plan.dtype)


def supports_tables(tables: EmbeddingTables, plan: Plan) -> str | None:
    """Return None when these embeddings can be computed in the same call, else the reason."""
    choice = plan.choice("embed_layer_norm")
    if choice.backend != "cpu":
        return f"the plan computes embed_layer_norm on {choice.backend}"
    present = _tables(tables)
    for table in present:
        if type(table) is not nn.Embedding:
            return f"an embedding is computed by {type(table).__name__}"
        if table.weight.dtype != tables.word.weight.dtype or table.weight.dtype not in DTYPES:
            return "the tables differ in precision, or kernels do not know it"
        if table.weight.stride() != (table.weight.shape[1], 1):
            return "a table is not stored row by row"
    projection = tables.projection
    if projection is not None and (reason := _projection_reason(projection, plan)):
        return reason
    modules = [*present, tables.norm, *([] if projection is None else [projection])]
    return _part_reason(modules) or mixture(modules, plan.dtype)


def supports_pooler(pooler: nn.Module, plan: Plan) -> str | None:
    """Return None when the pooler can be computed in the same call, else the reason."""
    if type(pooler) is Int8Linear:
        return "the pooler's weights are int8"
    reason = _projection_reason(pooler, plan) or _part_reason([pooler])
    return reason or mixture([pooler], plan.dtype)


def mixture(modules: Iterable[nn.Module], dtype: torch.dtype) -> str | None:
    """Return a clause on a weight of another precision than the pass; None where there is none.

    Packing would round it. Norms may be float32 in any model: as torch takes them, they are read.
    """
    for module in modules:
        allowed = (dtype, torch.float32) if isinstance(module, LayerNorm) else (dtype,)
        for parameter in module.parameters(recurse=False):
            if parameter.dtype not in allowed:
                return f"a {type(module).__name__} is {short(parameter.dtype)}, not {short(dtype)}"
    return None


def _projection_reason(part: nn.Module, plan: Plan) -> str | None:
    if type(part) not in (Linear, Int8Linear):
        return f"a projection is computed by {type(part).__name__}"
    choice = plan.choice("int8_linear" if type(part) is Int8Linear else "linear")
    return None if choice.backend == "cpu" else f"the plan computes it on {choice.backend}"


def _part_reason(modules: Sequence[nn.Module]) -> str | None:
    for module in modules:
        if type(module) not in (Linear, Int8Linear, LayerNorm, nn.Embedding):
            return f"a part is computed by {type(module).__name__}"
        if forward_hooked(module):
            return "there are hooks on parts of the model, or the forward of a part was replaced"
        # As old-style weight_norm leaves it: such a weight is no parameter, and not followed.
        if any(isinstance(vars(module).get(name), Tensor) for name in ("weight", "bias")):
            return "a weight is a plain attribute"
    return None


def _tables(tables: EmbeddingTables) -> list[nn.Embedding]:
    all_tables = (tables.word, tables.position, tables.token_type, tables.language)
    return [table for table in all_tables if table is not None]


def _plan_reason(blocks: Sequence[Block], plan: Plan) -> str | None:
    kinds = {type(block.out) for block in blocks} | {type(block.down) for block in blocks}
    linear = ["int8_linear" if kind is Int8Linear else "linear" for kind in kinds]
    for op in (*_OPS, *sorted(linear)):
        choice = plan.choice(op)
        if choice.backend == "reference" or (choice.backend != "cpu") == on_cpu(plan.device):
            return f"the plan computes {op} on {choice.backend}"
    return None if plan.dtype in DTYPES else f"there are no kernels for {plan.dtype}"


def on_cpu(device: torch.device) -> bool:
    """Return whether a device is served by the CPU's native encoder, rather than by a GPU's."""
    return device.type == "cpu"


def _block_reason(blocks: Sequence[Block]) -> str | None:
    if not blocks:
        return "there are no blocks"
    first = blocks[0]
    for block in blocks:
        if block.distances is not None:
            return "relative positions are added to the scores"
        if _shape(block) != _shape(first):
            return "the blocks differ in shape or kind"
        for group in ((block.q, block.k, block.v), (block.out,), (block.up,), (block.down,)):
            kinds = {type(part) for part in group}
            if kinds != {Linear} and kinds != {Int8Linear}:
                names = ", ".join(sorted(kind.__name__ for kind in kinds))
                return f"a projection is computed by {names}"
            if not _quantised_alike(group):
                return "projections of the same rows quantise them differently"
    if unsupported_activation(first.activation) is not None:
        return f"kernels do not compute the activation {first.activation!r}"
    return _part_reason(list(_modules(blocks)))


def _quantised_alike(group: Sequence[Projection]) -> bool:
    first, *others = group
    for other in others:
        if not isinstance(first, Int8Linear) or not isinstance(other, Int8Linear):
            continue
        pairs = ((first.factor, other.factor), (first.repeated, other.repeated))
        for one, two in pairs:
            if one is None or two is None:
                if one is not two:
                    return False
            elif not torch.equal(one, two):
                return False
    return True


def _modules(blocks: Sequence[Block]) -> Iterator[nn.Module]:
    for block in blocks:
        yield block.q
        yield block.k
        yield block.v
        yield block.out
        yield block.attention_norm
        yield block.up
        yield block.down
        yield block.output_norm


def _shape(block: Block) -> tuple[object, ...]:
    return (
        block.num_heads,
        block.scale,
        block.activation,
        block.pre_norm,
        block.distances is None,
        block.q.in_features,
        block.q.out_features,
        block.k.out_features,
        block.v.out_features,
        block.up.out_features,
    )
