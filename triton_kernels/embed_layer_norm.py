"""embed_layer_norm: gathers from up to four tables, their sum, and its LayerNorm.

One program per token. The sum runs in the order word, type, position, language, in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastbert.ops._op import Traits
from fastbert.triton_kernels import _common
from fastbert.triton_kernels.configs import row_block


@triton.jit
def _gathered(total, ids_ptr, table_ptr, table_rows, token, columns, keep, hidden):
    """total + table[ids[token]]; an id without a row adds NaN instead of foreign memory."""
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


def embed_layer_norm(
    input_ids: torch.Tensor | None,
    word: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    position_ids: torch.Tensor | None = None,
    position_table: torch.Tensor | None = None,
    token_type_ids: torch.Tensor | None = None,
    type_table: torch.Tensor | None = None,
    language_ids: torch.Tensor | None = None,
    language_table: torch.Tensor | None = None,
    inputs_embeds: torch.Tensor | None = None,
    padding_idx: int = -1,
    position_padding_idx: int = -1,
) -> torch.Tensor:
    """LayerNorm(word[input_ids] + type[...] + position[...] + language[...]).

    Shapes: ids int64 (tokens,), each with a contiguous table (entries, hidden); inputs_embeds
    (tokens, hidden) instead of input_ids and word; weight, bias (hidden,); one dtype of float32,
    float16, bfloat16. padding_idx and position_padding_idx concern gradients only.

    An id without a row in its table gives a row of NaN: the kernel reads nothing outside the table,
    and the host cannot raise without waiting for the device. Check ids before they go there.

    Raises ValueError for shapes, dtypes and devices outside this.
    """
    op = "embed_layer_norm"
    if inputs_embeds is None and (input_ids is None or word is None):
        raise ValueError(f"{op}: needs inputs_embeds, or input_ids together with word")
    if inputs_embeds is not None:
        input_ids = word = None
    pairs = {
        "input_ids": (input_ids, word),
        "token_type_ids": (token_type_ids, type_table),
        "position_ids": (position_ids, position_table),
        "language_ids": (language_ids, language_table),
    }
    first = inputs_embeds if inputs_embeds is not None else input_ids
    assert first is not None
    tokens, hidden = first.shape[0], weight.shape[0]
    _common.check_device(op, first, weight=weight, bias=bias)
    _common.check_row_width(op, hidden)
    _common.check_dtype(op, "weight", weight, *_common.FLOAT_DTYPES)
    for name, vector in (("weight", weight), ("bias", bias)):
        _common.check_dtype(op, name, vector, weight.dtype)
        _common.check_shape(op, name, vector, (hidden,))
        _common.check_rows(op, name, vector)
    _common.check_dtype(op, "inputs_embeds", inputs_embeds, weight.dtype)
    _common.check_shape(op, "inputs_embeds", inputs_embeds, (tokens, hidden))
    _common.check_rows(op, "inputs_embeds", inputs_embeds)
    operands: list[torch.Tensor | None] = []
    entries = []
    for name, (ids, table) in pairs.items():
        if ids is None or table is None:
            operands += [None, None]
            entries.append(0)
            continue
        _common.check_device(op, first, **{name: ids, f"the table of {name}": table})
        _common.check_dtype(op, name, ids, torch.int64)
        _common.check_shape(op, name, ids, (tokens,))
        _common.check_rows(op, name, ids)
        _common.check_dtype(op, f"the table of {name}", table, weight.dtype)
        _common.check_shape(op, f"the table of {name}", table, (table.shape[0], hidden))
        if table.shape[0] == 0:
            raise ValueError(f"{op}: the table of {name} has no rows, expected at least one")
        if not table.is_contiguous():
            raise ValueError(
                f"{op}: the table of {name} is not contiguous; pass table.contiguous()"
            )
        operands += [ids, table]
        entries.append(table.shape[0])
    out = torch.empty((tokens, hidden), dtype=weight.dtype, device=weight.device)
    if tokens == 0:
        return out
    block, warps = row_block(hidden)
    embeds_stride = 0 if inputs_embeds is None else inputs_embeds.stride(0)
    with _common.on_device(weight):
        embed_layer_norm_kernel[(tokens,)](
            inputs_embeds, *operands, weight, bias, out,
            *entries, hidden, eps, embeds_stride, out.stride(0),
            BLOCK=block, num_warps=warps, **_common.LAUNCH,
        )  # fmt: skip
    return out


def supports(traits: Traits) -> str | None:
    """None, or why the kernel cannot serve these traits."""
    width = traits.embedding_size if traits.embedding_size is not None else traits.hidden_size
    return _common.row_width_reason(width)
