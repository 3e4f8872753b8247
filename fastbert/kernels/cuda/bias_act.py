"""bias_act on CUDA."""

from __future__ import annotations

import torch
from torch import Tensor

from fastbert.kernels.cuda import _native
from fastbert.ops._op import Traits
from fastbert.ops.activations import unsupported_activation
from fastbert.ops.bias_act import BiasActOperands
from fastbert.ops.operands import address, row_stride


def supports(traits: Traits) -> str | None:
    """Return None, or why the kernel cannot serve these traits."""
    return unsupported_activation(traits.activation)


def bias_act(o: BiasActOperands) -> Tensor:
    """See `fastbert.ops.bias_act`."""
    x = o.x
    out = torch.empty((o.rows, o.width), dtype=x.dtype, device=x.device)
    _native.launch(
        "bias_act", x,
        x.data_ptr(), address(o.bias), out.data_ptr(), o.rows, o.width, row_stride(x), o.width,
        o.code, *o.activation,
    )  # fmt: skip
    return out
