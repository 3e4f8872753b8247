"""The CUDA kernels: torch tensors in, addresses, sizes and the stream on to `fastbert._cuda`.

Only the ops over rows are here yet; what is not defined in this module has no kernel, and the Plan
says so. Checks here are about tensors; the native side checks sizes and strides again. Nothing
waits for the device.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastbert.errors import Unavailable
from fastbert.ops._op import Traits
from fastbert.ops.activations import kernel_activation, unsupported_activation

CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
# Elements of a row that fit in the registers of one block (csrc/cuda/launch.h).
ROW_LIMIT = 16384
_NO_TABLE = (0, 0, 0)


def unavailable() -> str | None:
    """None when the kernels can run, else the reason."""
    module, reason = _load()
    if module is None:
        return reason
    return module.unavailable() or None


def supports(op: str, traits: Traits) -> str | None:
    """None when there is a kernel of this op for these traits, else the reason."""
    module, reason = _load()
    if module is None:
        return reason
    widths = {
        "embed_layer_norm": (traits.embedding_size or traits.hidden_size,),
        "quantize_rows": (traits.hidden_size, traits.intermediate_size),
        "add_layer_norm": (traits.hidden_size,),
        "act_layer_norm": (traits.hidden_size,),
        "bias_act": (),
    }
    for width in widths[op]:
        if width is not None and not 0 < width <= ROW_LIMIT:
            return f"rows have {width} elements, the CUDA kernel holds 1 to {ROW_LIMIT}"
    if op in ("bias_act", "act_layer_norm"):
        return unsupported_activation(traits.activation)
    return None


def add_layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    residual: Tensor | None = None,
    x_bias: Tensor | None = None,
    return_sum: bool = False,
) -> tuple[Tensor, Tensor]:
    """See `fastbert.ops.add_layer_norm`."""
    return _row_norm("add_layer_norm", x, weight, bias, eps, residual, x_bias, return_sum, 0)


def act_layer_norm(
    x: Tensor, bias: Tensor | None, weight: Tensor, ln_bias: Tensor, eps: float, activation: str
) -> Tensor:
    """See `fastbert.ops.act_layer_norm`."""
    code = kernel_activation(activation)
    return _row_norm("act_layer_norm", x, weight, ln_bias, eps, None, bias, False, code)[0]


def bias_act(x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """See `fastbert.ops.bias_act`."""
    extension = _extension()
    x = _matrix("bias_act", "x", x)
    rows, width = x.shape
    bias = _vector("bias_act", "bias", bias, width, x)
    out = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    extension.bias_act(
        x.data_ptr(), _address(bias), out.data_ptr(), rows, width, _row_stride(x), width,
        CODES[x.dtype], kernel_activation(activation), *_target(x),
    )  # fmt: skip
    return out


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `fastbert.ops.quantize_rows`."""
    extension = _extension()
    x = _matrix("quantize_rows", "x", x)
    rows, width = x.shape
    q = torch.empty((rows, width), dtype=torch.uint8, device=x.device)
    scale = torch.empty(rows, dtype=torch.float32, device=x.device)
    zero_point = torch.empty(rows, dtype=torch.int32, device=x.device)
    extension.quantize_rows(
        x.data_ptr(), q.data_ptr(), scale.data_ptr(), zero_point.data_ptr(), rows, width,
        _row_stride(x), CODES[x.dtype], *_target(x),
    )  # fmt: skip
    return q, scale, zero_point


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
    extra_ids: Tensor | None = None,
    extra_table: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    padding_idx: int = -1,
    position_padding_idx: int = -1,
) -> Tensor:
    """See `fastbert.ops.embed_layer_norm`. An id without a row in its table gives a row of NaN: the
    host cannot raise without waiting for the device."""
    op = "embed_layer_norm"
    extension = _extension()
    weight = _like(op, "weight", weight)
    width = weight.shape[0]
    shift = _vector(op, "bias", bias, width, weight)
    if inputs_embeds is not None:
        inputs_embeds = _matrix(op, "inputs_embeds", inputs_embeds, width, weight)
        tokens = inputs_embeds.shape[0]
        input_ids = word = None
    elif input_ids is None or word is None:
        raise ValueError(
            f"{op}: needs either inputs_embeds, or input_ids together with their table."
        )
    else:
        tokens = input_ids.shape[0]
    gathers, kept = [], []
    for name, ids, table in (
        ("input_ids", input_ids, word),
        ("token_type_ids", token_type_ids, type_table),
        ("position_ids", position_ids, position_table),
        ("extra_ids", extra_ids, extra_table),
    ):
        if ids is None or table is None:
            gathers.append(_NO_TABLE)
            continue
        if ids.dtype != torch.int64 or ids.shape != (tokens,) or ids.device != weight.device:
            raise ValueError(
                f"{op}: {name} is {ids.dtype} {tuple(ids.shape)} on {ids.device}, expected int64 "
                f"({tokens},) on {weight.device}."
            )
        ids = ids.contiguous()
        table = _matrix(op, f"the table of {name}", table, width, weight).contiguous()
        kept += [ids, table]
        gathers.append((ids.data_ptr(), table.data_ptr(), table.shape[0]))
    out = torch.empty((tokens, width), dtype=weight.dtype, device=weight.device)
    extension.embed_norm(
        _address(inputs_embeds), 0 if inputs_embeds is None else _row_stride(inputs_embeds),
        gathers, weight.data_ptr(), _address(shift), out.data_ptr(), tokens, width,
        CODES[weight.dtype], eps, *_target(weight),
    )  # fmt: skip
    return out


def _row_norm(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    residual: Tensor | None,
    x_bias: Tensor | None,
    return_sum: bool,
    activation: int,
) -> tuple[Tensor, Tensor]:
    extension = _extension()
    x = _matrix(op, "x", x)
    rows, width = x.shape
    vectors = [
        _vector(op, name, vector, width, x)
        for name, vector in (("bias before the norm", x_bias), ("weight", weight), ("bias", bias))
    ]
    if residual is not None:
        residual = _matrix(op, "residual", residual, width, x)
        if residual.shape[0] != rows:
            raise ValueError(f"{op}: residual has {residual.shape[0]} rows, expected {rows}.")
    out = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    total = torch.empty_like(out) if return_sum else x.new_empty(0)
    extension.row_norm(
        op, x.data_ptr(), _address(vectors[0]), _address(residual), _address(vectors[1]),
        _address(vectors[2]), out.data_ptr(), total.data_ptr() if return_sum else 0, rows, width,
        _row_stride(x), 0 if residual is None else _row_stride(residual), width, CODES[x.dtype],
        activation, eps, *_target(x),
    )  # fmt: skip
    return out, total


@functools.cache
def _load() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("fastbert._cuda"), ""
    except ImportError as error:
        return None, (
            f"the CUDA library cannot be loaded ({error}); build with FASTBERT_CUDA=on on a "
            "machine that has nvcc"
        )


def _extension() -> Any:
    module, reason = _load()
    if module is None:
        raise Unavailable(f"CUDA kernels are not available: {reason}.")
    return module


def _like(op: str, name: str, x: Tensor, like: Tensor | None = None) -> Tensor:
    """x, known to be a CUDA tensor of a dtype the kernels compute: that of `like`, if given."""
    if x.device.type != "cuda":
        raise ValueError(
            f"{op}: the cuda kernels take CUDA tensors, {name} is on {x.device}; move it, or "
            "choose another backend."
        )
    if x.dtype not in CODES or (like is not None and x.dtype != like.dtype):
        expected = "float32, bfloat16 or float16" if like is None else str(like.dtype)
        raise TypeError(f"{op}: {name} is {x.dtype}, expected {expected}; convert it first.")
    if like is not None and x.device != like.device:
        raise ValueError(f"{op}: {name} is on {x.device}, expected {like.device}.")
    return x


def _matrix(
    op: str, name: str, x: Tensor, width: int | None = None, like: Tensor | None = None
) -> Tensor:
    """x, known to be (rows, width) with adjacent columns; copied if its layout demands it."""
    _like(op, name, x, like)
    if x.dim() != 2 or (width is not None and x.shape[1] != width):
        raise ValueError(
            f"{op}: {name} has shape {tuple(x.shape)}, expected (rows, "
            f"{'hidden' if width is None else width})."
        )
    if x.stride(1) == 1 and x.stride(0) >= x.shape[1]:
        return x
    return x.contiguous()


def _vector(op: str, name: str, x: Tensor | None, width: int, like: Tensor) -> Tensor | None:
    """x, known to be (width,) and contiguous; None stays None."""
    if x is None:
        return None
    _like(op, name, x, like)
    if x.shape != (width,):
        raise ValueError(f"{op}: {name} has shape {tuple(x.shape)}, expected ({width},).")
    return x.contiguous()


def _row_stride(x: Tensor) -> int:
    # What torch says of a single row may be anything.
    return max(x.stride(0), x.shape[1])


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _target(x: Tensor) -> tuple[int, int]:
    """(device, stream) of the launch: the current stream of x's device."""
    device = x.device.index
    return device, torch.cuda.current_stream(device).cuda_stream
