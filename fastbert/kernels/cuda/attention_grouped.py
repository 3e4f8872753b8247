"""attention_grouped on CUDA: the forms of attention_varlen, and one of its own for single queries.

A sequence with a single query, as every step of decoding has, takes the latter whatever stands
beside it: its bits do not depend on neighbours. Its keys are cut into chunks, a block each, which
reads keys and values once for all heads of a group; a second kernel joins the chunks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastbert.kernels.cuda import _attention
from fastbert.ops._op import Traits
from fastbert.ops.attention_varlen import AttentionOperands

CHUNK = 256  # csrc/cuda/attention/attention.h, where a part of a head is dim + 2 floats


def supports(traits: Traits) -> str | None:
    """Return None, or why the kernel cannot serve these traits."""
    return _attention.supports(traits)


def attention_grouped(o: AttentionOperands) -> Tensor:
    """See `fastbert.ops.attention_grouped`. float32 is exact, and weights are, in single queries.

    Raises:
        ValueError: also for a head_dim other than 32, 64, 80, 96 or 128, and for scale <= 0.
    """
    chunks = max(1, -(-o.max_seqlen_k // CHUNK))
    # Until the launch; its stream is done with the memory before another tensor there is written.
    parts = None
    if chunks > 1:
        shape = (o.batch, o.heads, chunks, o.dim + 2)
        parts = torch.empty(shape, dtype=torch.float32, device=o.q.device)
    singles = _attention.SingleQueries(
        True, o.max_seqlen_q <= 1, chunks, 0 if parts is None else parts.data_ptr()
    )
    return _attention.attention("attention_grouped", o, singles)
