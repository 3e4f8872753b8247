"""attention_varlen on CUDA: wgmma on Hopper, mma.sync on what is older or newer."""

from __future__ import annotations

from torch import Tensor

from fastbert.kernels.cuda import _attention
from fastbert.ops._op import Traits
from fastbert.ops.attention_varlen import AttentionOperands

HEAD_DIMS = _attention.HEAD_DIMS


def supports(traits: Traits) -> str | None:
    """Return None, or why the kernel cannot serve these traits."""
    return _attention.supports(traits)


def attention_varlen(o: AttentionOperands) -> Tensor:
    """See `fastbert.ops.attention_varlen`. float32 is exact: never tf32, whatever torch's setting.

    Raises:
        ValueError: also for a head_dim other than 32, 64, 80, 96 or 128, and for scale <= 0.
    """
    return _attention.attention("attention_varlen", o, _attention.SingleQueries())
