"""embed_layer_norm: gathers from up to four tables, their sum, and its LayerNorm.

One program per token. The sum runs in the order word, type, position, language, in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastbert.ops._op import Traits
from fastbert.ops.embed_layer_norm import EmbeddingOperands
from fastbert.triton_kernels import _common
from fastbert.triton_kernels.configs import row_block


@triton.jit
def _gathered(total, ids_ptr, table_ptr, table_rows, token, columns, keep, hidden):
    """Add table[ids[token]] to total; an id without a row adds NaN instead of foreign memory."""
    index = tl.load(ids_ptr + token)
    known = (index >= 0) & (index < table_rows)
    row = tl.where(known, index, 0).to(tl.int64)
    value = tl.load(table_ptr + row * hidden + columns, mask=keep, other=0.0)
    return total + tl.where(known, value.to(tl.float32), float("nan"))


@triton.jit
def embed_layer_norm_kernel(
    embeds_ptr,  # (tokens, hidden) or None
    word_ids_ptr, word_ptr,  # (tokens,) int64 and (word_rows, hidden), or None
    type_ids_ptr, type_ptr,
    position_ids_ptr, position_ptr,
    extra_ids_ptr, extra_ptr,
    weight_ptr,  # (hidden,)
    bias_ptr,  # (hidden,)
    out_ptr,  # (tokens, hidden)
    word_rows, type_rows, position_rows, extra_rows, hidden, eps, embeds_stride, out_stride,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Look up, add and normalise one token."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    keep = columns < hidden
    if embeds_ptr is not None:
        embeds_row = embeds_ptr + token * embeds_stride
        total = tl.load(embeds_row + columns, mask=keep, other=0.0).to(tl.float32)
    else:
        total = tl.zeros([BLOCK], tl.float32)
        total = _gathered(total, word_ids_ptr, word_ptr, word_rows, token, columns, keep, hidden)
    if type_ptr is not None:
        total = _gathered(total, type_ids_ptr, type_ptr, type_rows, token, columns, keep, hidden)
    if position_ptr is not None:
        total = _gathered(
            total,
            position_ids_ptr,
            position_ptr,
            position_rows,
            token,
            columns,
            keep,
            hidden,
        )
    if extra_ptr is not None:
        total = _gathered(total, extra_ids_ptr, extra_ptr, extra_rows, token, columns, keep, hidden)
    out = _common.layer_norm_row(total, columns, keep, weight_ptr, bias_ptr, hidden, eps)
    out = out.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + token * out_stride + columns, out, mask=keep)


def embed_layer_norm(o: EmbeddingOperands) -> torch.Tensor:
    """Compute LayerNorm of the sum of up to four lookups; see ``fastbert.ops.embed_layer_norm``.

    An id without a row in its table gives a row of NaN: the kernel reads nothing outside the table,
    and the host cannot raise without waiting for the device. Check ids before they go there.

    Raises:
        ValueError: for rows that do not fit in the registers of one program, and for a table
            without rows.
    """
    op = "embed_layer_norm"
    _common.check_row_width(op, o.width)
    operands: list[torch.Tensor | None] = []
    entries = []
    for name, lookup in (
        ("word", o.word),
        ("type_table", o.token_type),
        ("position_table", o.position),
        ("language_table", o.language),
    ):
        if lookup is None:
            operands += [None, None]
            entries.append(0)
            continue
        ids, table = lookup
        if table.shape[0] == 0:
            raise ValueError(f"{op}: {name} has no rows, expected at least one")
        operands += [ids, table.contiguous()]
        entries.append(table.shape[0])
    out = torch.empty((o.rows, o.width), dtype=o.weight.dtype, device=o.weight.device)
    if o.rows == 0:
        return out
    block, warps = row_block(o.width)
    embeds_stride = 0 if o.embeds is None else o.embeds.stride(0)
    with _common.on_device(o.weight):
        embed_layer_norm_kernel[(o.rows,)](
            o.embeds, *operands, o.weight, o.bias, out,
            *entries, o.width, o.eps, embeds_stride, out.stride(0),
            BLOCK=block, num_warps=warps, **_common.LAUNCH,
        )  # fmt: skip
    return out


def supports(traits: Traits) -> str | None:
    """Return None, or why the kernel cannot serve these traits."""
    width = traits.embedding_size if traits.embedding_size is not None else traits.hidden_size
    return _common.row_width_reason(width)
