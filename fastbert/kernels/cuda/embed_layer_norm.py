"""embed_layer_norm on CUDA."""

from __future__ import annotations

import torch
from torch import Tensor

from fastbert.kernels.cuda import _native, _rows
from fastbert.ops._op import Traits
from fastbert.ops.embed_layer_norm import EmbeddingOperands
from fastbert.ops.operands import address, row_stride

_ABSENT = (0, 0, 0)


def supports(traits: Traits) -> str | None:
    """Return None, or why the kernel cannot serve these traits."""
    return _rows.width_reason(traits.embedding_size or traits.hidden_size)


def embed_layer_norm(o: EmbeddingOperands) -> Tensor:
    """See `fastbert.ops.embed_layer_norm`.

    An id without a row in its table gives a row of NaN: the host cannot raise without waiting for
    the device.
    """
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
    _native.launch(
        "embed_norm", out,
        address(o.embeds), row_stride(o.embeds), gathers, o.weight.data_ptr(),
        o.bias.data_ptr(), out.data_ptr(), o.rows, o.width, o.code, o.eps,
    )  # fmt: skip
    return out
