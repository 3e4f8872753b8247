"""The CPU kernels: torch tensors in, addresses and sizes on to `fastbert._C`.

Checks here are about tensors (dtype, device, shape, layout); the native drivers check sizes,
strides, offsets and ids again before they touch memory. A tensor whose columns are not adjacent is
copied. The number of threads is torch's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastbert.kernels import _check, native
from fastbert.ops._op import Traits
from fastbert.ops.activations import kernel_activation

_ABSENT = (0, 0, 0, 0)
_CPU = torch.device("cpu")
_INT8 = 4


def unavailable() -> str | None:
    """None when the kernels can run, else the reason."""
    return native.reason()


def supports(op: str, traits: Traits) -> str | None:
    """None when there is a kernel of this op for these traits, else the reason."""
    if not hasattr(native.extension(), _BINDINGS[op]):
        return f"this build has no {op}"
    return None


_BINDINGS = {
    "embed_layer_norm": "embed_layer_norm",
    "linear": "linear",
    "int8_linear": "int8_linear",
    "quantize_rows": "quantize_rows",
    "attention_varlen": "attention_varlen",
    "add_layer_norm": "layer_norm",
    "bias_act": "bias_act",
    "act_layer_norm": "layer_norm",
}


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
    operands = _check.row_norm("add_layer_norm", "cpu", x, x_bias, residual, weight, bias)
    return _layer_norm(operands, eps, 0, return_sum)


def act_layer_norm(
    x: Tensor, bias: Tensor | None, weight: Tensor, ln_bias: Tensor, eps: float, activation: str
) -> Tensor:
    """See `fastbert.ops.act_layer_norm`."""
    code = kernel_activation(activation)
    operands = _check.row_norm(
        "act_layer_norm", "cpu", x, bias, None, weight, ln_bias, ("bias", "ln_bias")
    )
    return _layer_norm(operands, eps, code, False)[0]


def bias_act(x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """See `fastbert.ops.bias_act`."""
    extension = native.threaded()
    code = _check.operand("bias_act", "x", x, "cpu")
    rows, columns = _check.two_dimensional("bias_act", "x", x)
    x = _check.by_rows(x)
    if bias is not None:
        bias = _check.vector("bias_act", "bias", bias, columns, x.dtype, x.device)
    out = torch.empty((rows, columns), dtype=x.dtype)
    extension.bias_act(
        x.data_ptr(),
        out.data_ptr(),
        _check.address(bias),
        rows,
        columns,
        _check.row_stride(x),
        columns,
        code,
        code,
        kernel_activation(activation),
    )
    return out


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
    packed: Tensor | None = None,
) -> Tensor:
    """See `fastbert.ops.linear`. Without `packed` the weight is packed for this one call."""
    operands = _check.product("linear", "cpu", x, weight, bias, residual)
    if packed is None:
        packed = linear_prepack(weight)
    return _product("linear", operands, packed, activation)


def int8_linear(
    x: Tensor,
    qweight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
    packed: Tensor | None = None,
    factor: Tensor | None = None,
    repeated: Tensor | None = None,
) -> Tensor:
    """See `fastbert.ops.int8_linear`. Without `packed` the weight is packed for this one call."""
    operands = _check.product(
        "int8_linear", "cpu", x, qweight, bias, residual, weight_scale, factor, repeated
    )
    if packed is None:
        packed = int8_linear_prepack(qweight)
    return _product("int8_linear", operands, packed, activation)


def linear_prepack(weight: Tensor) -> Tensor:
    """A weight (N, K) in the order that the kernels of the instruction set in use read it.

    float16 is kept as float32, which is what it is multiplied in. Packing reads the weight once and
    is worth keeping: layers keep the result until the weight's version, its address or the Plan's
    instruction set changes. A kernel of another instruction set refuses the result.

    Returns:
        uint8, opaque.
    """
    code = _check.operand("linear_prepack", "weight", weight, "cpu")
    return _packed("linear_prepack", weight, code, 0 if weight.dtype is torch.float16 else code)


def int8_linear_prepack(qweight: Tensor) -> Tensor:
    """As `linear_prepack`, for an int8 weight (N, K)."""
    if isinstance(qweight, Tensor) and qweight.dim() == 2:
        _check.weight_rows(
            "int8_linear_prepack", "qweight", qweight, qweight.shape[1], torch.int8, _CPU
        )
    elif not isinstance(qweight, Tensor):
        raise TypeError(
            f"int8_linear_prepack: a tensor was expected, got {type(qweight).__name__}."
        )
    return _packed("int8_linear_prepack", qweight, _INT8, _INT8)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `fastbert.ops.quantize_rows`."""
    extension = native.threaded()
    code = _check.operand("quantize_rows", "x", x, "cpu")
    rows, columns = _check.two_dimensional("quantize_rows", "x", x)
    x = _check.by_rows(x)
    quantised = torch.empty((rows, columns), dtype=torch.uint8)
    scale = torch.empty(rows, dtype=torch.float32)
    zero_point = torch.empty(rows, dtype=torch.int32)
    extension.quantize_rows(
        x.data_ptr(),
        quantised.data_ptr(),
        scale.data_ptr(),
        zero_point.data_ptr(),
        rows,
        columns,
        _check.row_stride(x),
        columns,
        code,
    )
    return quantised, scale, zero_point


def sums_segments(rows: Tensor) -> bool:
    """Whether `segment_sums` can take these rows, whose sums torch would give the same bits."""
    return (
        rows.device.type == "cpu"
        and rows.dtype in _check.CODES
        and not (rows.requires_grad and torch.is_grad_enabled())
        and native.reason() is None
    )


def segment_sums(x: Tensor, bounds: Tensor, divisors: Tensor | None = None) -> Tensor:
    """The sum of each segment of rows, divided by its divisor.

    torch has operators for it, whose threads go on spinning for milliseconds afterwards on the
    cores that the next pass of an encoder needs.

    Args:
        x: (rows, columns), float32, bfloat16 or float16.
        bounds: int64 (segments + 1,), ascending; segment s is rows bounds[s] up to bounds[s + 1].
        divisors: float32 (segments,), or None for plain sums.

    Returns:
        float32 (segments, columns). Rows are added one after the other, in float32; a segment
        without rows gives zeros.

    Raises:
        ValueError: when the arguments do not fit together.
    """
    op = "segment_sums"
    extension = native.threaded()
    code = _check.operand(op, "x", x, "cpu")
    rows, columns = _check.two_dimensional(op, "x", x)
    x = _check.by_rows(x)
    segments = max(bounds.numel() - 1, 0)
    bounds = _check.vector(op, "bounds", bounds, segments + 1, torch.int64, x.device)
    if divisors is not None:
        divisors = _check.vector(op, "divisors", divisors, segments, torch.float32, x.device)
    out = torch.empty((segments, columns), dtype=torch.float32)
    extension.segment_sums(
        x.data_ptr(),
        bounds.data_ptr(),
        _check.address(divisors),
        out.data_ptr(),
        rows,
        columns,
        segments,
        _check.row_stride(x),
        code,
    )
    return out


def attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    scale: float,
    causal: bool = False,
    key_bias: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """See `fastbert.ops.attention_varlen`."""
    o = _check.attention(
        "attention_varlen", "cpu", q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
        key_bias, bias,
    )  # fmt: skip
    q, k, v = o.q, o.k, o.v
    out = torch.empty((o.total_q, o.heads, o.dim), dtype=q.dtype)
    native.threaded().attention_varlen(
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        out.data_ptr(),
        o.code,
        o.total_q,
        o.total_k,
        o.heads,
        o.dim,
        q.stride(0),
        q.stride(1),
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        o.heads * o.dim,
        o.dim,
        o.cu_seqlens_q.data_ptr(),
        o.cu_seqlens_k.data_ptr(),
        o.batch,
        max_seqlen_q,
        max_seqlen_k,
        scale,
        causal,
        _check.address(o.key_bias),
        _check.address(o.bias),
        *o.bias_strides,
    )
    return out


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
    """See `fastbert.ops.embed_layer_norm`."""
    o = _check.embedding(
        "embed_layer_norm",
        "cpu",
        (input_ids, word),
        (position_ids, position_table),
        (token_type_ids, type_table),
        (language_ids, language_table),
        inputs_embeds,
        weight,
        bias,
    )
    out = torch.empty((o.rows, o.width), dtype=o.weight.dtype)
    native.threaded().embed_layer_norm(
        _addresses(o.word),
        _addresses(o.position),
        _addresses(o.token_type),
        _addresses(o.language),
        _check.address(o.embeds),
        _check.row_stride(o.embeds),
        out.data_ptr(),
        o.width,
        o.weight.data_ptr(),
        o.bias.data_ptr(),
        o.rows,
        o.width,
        o.code,
        o.code,
        o.code,
        eps,
    )
    return out


def _packed(op: str, weight: Tensor, code: int, packed_code: int) -> Tensor:
    extension = native.threaded()
    outer, inner = _check.two_dimensional(op, "weight", weight)
    weight = _check.by_rows(weight)
    packed = torch.empty(extension.packed_bytes(packed_code, outer, inner), dtype=torch.uint8)
    extension.pack_weight(
        (weight.data_ptr(), code, _check.row_stride(weight)),
        outer,
        inner,
        (packed.data_ptr(), packed.numel()),
    )
    return packed


def _product(op: str, o: _check.Product, packed: Tensor, activation: str) -> Tensor:
    x, code = o.x, o.code
    packed = _check.bytes_(op, "packed", packed, _CPU)
    out = torch.empty((o.rows, o.outer), dtype=x.dtype)
    scale: tuple[int, ...] = ()
    columns: dict[str, int] = {}
    if o.weight_scale is not None:
        scale = (o.weight_scale.data_ptr(),)
        columns = {
            "factor": _check.address(o.factor),
            "repeated": _check.address(o.repeated),
            "repeats": 0 if o.repeated is None else o.repeated.numel(),
        }
    getattr(native.threaded(), op)(
        (x.data_ptr(), code, _check.row_stride(x)),
        (packed.data_ptr(), packed.numel()),
        *scale,
        (_check.address(o.bias), code),
        kernel_activation(activation),
        (_check.address(o.residual), code, _check.row_stride(o.residual)),
        (out.data_ptr(), code, o.outer),
        o.rows,
        o.outer,
        o.inner,
        **columns,
    )
    return out


def _layer_norm(
    o: _check.RowNorm, eps: float, activation: int, return_sum: bool
) -> tuple[Tensor, Tensor]:
    x, residual, code = o.x, o.residual, o.code
    out = torch.empty((o.rows, o.width), dtype=x.dtype)
    total = torch.empty((o.rows, o.width) if return_sum else 0, dtype=x.dtype)
    native.threaded().layer_norm(
        x.data_ptr(),
        _check.address(residual),
        out.data_ptr(),
        total.data_ptr() if return_sum else 0,
        _check.address(o.x_bias),
        o.weight.data_ptr(),
        o.bias.data_ptr(),
        o.rows,
        o.width,
        _check.row_stride(x),
        o.width if residual is None else _check.row_stride(residual),
        o.width,
        o.width,
        code,
        code,
        code,
        code,
        eps,
        activation,
    )
    return out, total


def _addresses(lookup: _check.Lookup | None) -> tuple[int, int, int, int]:
    """A lookup as the extension takes it: ids, table, entries, row stride."""
    if lookup is None:
        return _ABSENT
    ids, table = lookup
    return ids.data_ptr(), table.data_ptr(), table.shape[0], _check.row_stride(table)
