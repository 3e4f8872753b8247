"""embed_layer_norm on CUDA."""

from __future__ import annotations

import torch
from torch import Tensor

from fastbert.kernels import _check
from fastbert.kernels.cuda import _native, _rows
from fastbert.ops._op import Traits

_ABSENT = (0, 0, 0)


def supports(traits: Traits) -> str | None:
    """None, or why the kernel cannot serve these traits."""
    return _rows.width_reason(traits.embedding_size or traits.hidden_size)


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
    """See `fastbert.ops.embed_layer_norm`. An id without a row in its table gives a row of NaN: the
    host cannot raise without waiting for the device."""
    o = _check.embedding(
        "embed_layer_norm",
        _native.DEVICE,
        (input_ids, word),
        (position_ids, position_table),
        (token_type_ids, type_table),
        (language_ids, language_table),
        inputs_embeds,
        weight,
        bias,
    )
    # In the order in which they are added. The kernel reads whole tables, without gaps.
    lookups = [
        None if pair is None else (pair[0], pair[1].contiguous())
        for pair in (o.word, o.token_type, o.position, o.language)
    ]
    gathers = [
        _ABSENT if pair is None else (pair[0].data_ptr(), pair[1].data_ptr(), pair[1].shape[0])
        for pair in lookups
    ]
    out = torch.empty((o.rows, o.width), dtype=o.weight.dtype, device=o.weight.device)
    _native.extension().embed_norm(
        _check.address(o.embeds), _check.row_stride(o.embeds), gathers, o.weight.data_ptr(),
        o.bias.data_ptr(), out.data_ptr(), o.rows, o.width, o.code, eps, *_native.target(out),
    )  # fmt: skip
    return out
