"""The CPU kernels: torch tensors in, addresses and sizes on to `fastbert._C`.

Checks here are about tensors (dtype, device, shape, layout); the native drivers check sizes,
strides, offsets and ids again before they touch memory. A tensor whose columns are not adjacent is
copied. The number of threads is torch's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastbert.kernels import _check, native
from fastbert.ops._op import Traits
from fastbert.ops.activations import kernel_activation

if TYPE_CHECKING:
    from fastbert import _C

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
    native.use_torch_threads()
    code = _check.operand("bias_act", "x", x, "cpu")
    rows, columns = _check.two_dimensional("bias_act", "x", x)
    x = _check.by_rows(x)
    if bias is not None:
        bias = _check.vector("bias_act", "bias", bias, columns, x.dtype, x.device)
    out = torch.empty((rows, columns), dtype=x.dtype)
    args = native.library.ActArgs(
        x=x.data_ptr(),
        out=out.data_ptr(),
        bias=_check.address(bias),
        bias_dtype=code,
        rows=rows,
        columns=columns,
        x_stride=_check.row_stride(x),
        out_stride=columns,
        dtype=code,
        activation=kernel_activation(activation),
    )
    native.library.bias_act(args)
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
    native.use_torch_threads()
    code = _check.operand("quantize_rows", "x", x, "cpu")
    rows, columns = _check.two_dimensional("quantize_rows", "x", x)
    x = _check.by_rows(x)
    quantised = torch.empty((rows, columns), dtype=torch.uint8)
    scale = torch.empty(rows, dtype=torch.float32)
    zero_point = torch.empty(rows, dtype=torch.int32)
    args = native.library.QuantizeArgs(
        x=x.data_ptr(),
        dtype=code,
        rows=rows,
        k=columns,
        x_stride=_check.row_stride(x),
        q=quantised.data_ptr(),
        q_stride=columns,
        scale=scale.data_ptr(),
        zero_point=zero_point.data_ptr(),
    )
    native.library.quantize_rows(args)
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
    native.use_torch_threads()
    code = _check.operand(op, "x", x, "cpu")
    rows, columns = _check.two_dimensional(op, "x", x)
    x = _check.by_rows(x)
    segments = max(bounds.numel() - 1, 0)
    bounds = _check.vector(op, "bounds", bounds, segments + 1, torch.int64, x.device)
    if divisors is not None:
        divisors = _check.vector(op, "divisors", divisors, segments, torch.float32, x.device)
    out = torch.empty((segments, columns), dtype=torch.float32)
    args = native.library.SegmentArgs(
        x=x.data_ptr(),
        bounds=bounds.data_ptr(),
        divisors=_check.address(divisors),
        out=out.data_ptr(),
        rows=rows,
        columns=columns,
        segments=segments,
        x_stride=_check.row_stride(x),
        dtype=code,
    )
    native.library.segment_sums(args)
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
    native.use_torch_threads()
    over_batch, over_heads, over_queries = o.bias_strides
    args = native.library.AttentionArgs(
        q=q.data_ptr(),
        k=k.data_ptr(),
        v=v.data_ptr(),
        out=out.data_ptr(),
        dtype=o.code,
        total_q=o.total_q,
        total_k=o.total_k,
        num_heads=o.heads,
        head_dim=o.dim,
        q_row_stride=q.stride(0),
        q_head_stride=q.stride(1),
        k_row_stride=k.stride(0),
        k_head_stride=k.stride(1),
        v_row_stride=v.stride(0),
        v_head_stride=v.stride(1),
        out_row_stride=o.heads * o.dim,
        out_head_stride=o.dim,
        cu_seqlens_q=o.cu_seqlens_q.data_ptr(),
        cu_seqlens_k=o.cu_seqlens_k.data_ptr(),
        batch=o.batch,
        max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k,
        scale=scale,
        causal=causal,
        key_bias=_check.address(o.key_bias),
        bias=_check.address(o.bias),
        bias_batch_stride=over_batch,
        bias_head_stride=over_heads,
        bias_query_stride=over_queries,
    )
    native.library.attention_varlen(args)
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
    native.use_torch_threads()
    args = native.library.EmbedArgs(
        word=_lookup(o.word),
        embeds=_check.address(o.embeds),
        embeds_stride=_check.row_stride(o.embeds),
        position=_lookup(o.position),
        type=_lookup(o.token_type),
        language=_lookup(o.language),
        out=out.data_ptr(),
        out_stride=o.width,
        weight=o.weight.data_ptr(),
        weight_dtype=o.code,
        bias=o.bias.data_ptr(),
        bias_dtype=o.code,
        rows=o.rows,
        hidden=o.width,
        dtype=o.code,
        eps=eps,
    )
    native.library.embed_layer_norm(args)
    return out


def _packed(op: str, weight: Tensor, code: int, packed_code: int) -> Tensor:
    native.use_torch_threads()
    outer, inner = _check.two_dimensional(op, "weight", weight)
    weight = _check.by_rows(weight)
    size = native.library.packed_bytes(packed_code, outer, inner)
    packed = torch.empty(size, dtype=torch.uint8)
    native.library.pack_weight(
        weight=weight.data_ptr(),
        dtype=code,
        n=outer,
        k=inner,
        stride=_check.row_stride(weight),
        out=packed.data_ptr(),
        out_bytes=size,
    )
    return packed


def _product(op: str, o: _check.Product, packed: Tensor, activation: str) -> Tensor:
    x, code = o.x, o.code
    packed = _check.bytes_(op, "packed", packed, _CPU)
    out = torch.empty((o.rows, o.outer), dtype=x.dtype)
    native.use_torch_threads()
    args = native.library.GemmArgs(
        rows=o.rows,
        n=o.outer,
        k=o.inner,
        x=x.data_ptr(),
        x_dtype=code,
        x_stride=_check.row_stride(x),
        packed=packed.data_ptr(),
        bias=_check.address(o.bias),
        bias_dtype=code,
        activation=kernel_activation(activation),
        residual=_check.address(o.residual),
        residual_dtype=code,
        residual_stride=_check.row_stride(o.residual),
        out=out.data_ptr(),
        out_dtype=code,
        out_stride=o.outer,
        w_scale=_check.address(o.weight_scale),
    )
    if o.weight_scale is None:
        native.library.linear(args, packed.numel())
    else:
        native.library.int8_linear(args, packed.numel(), _columns(o))
    return out


def _columns(o: _check.Product) -> _C.InputColumns | None:
    if o.factor is None and o.repeated is None:
        return None
    return native.library.InputColumns(
        factor=_check.address(o.factor),
        repeated=_check.address(o.repeated),
        repeats=0 if o.repeated is None else o.repeated.numel(),
    )


def _layer_norm(
    o: _check.RowNorm, eps: float, activation: int, return_sum: bool
) -> tuple[Tensor, Tensor]:
    x, residual, code = o.x, o.residual, o.code
    out = torch.empty((o.rows, o.width), dtype=x.dtype)
    total = torch.empty((o.rows, o.width) if return_sum else 0, dtype=x.dtype)
    native.use_torch_threads()
    args = native.library.LayerNormArgs(
        x=x.data_ptr(),
        residual=_check.address(residual),
        out=out.data_ptr(),
        sum=total.data_ptr() if return_sum else 0,
        x_bias=_check.address(o.x_bias),
        x_bias_dtype=code,
        weight=o.weight.data_ptr(),
        weight_dtype=code,
        bias=o.bias.data_ptr(),
        bias_dtype=code,
        rows=o.rows,
        hidden=o.width,
        x_stride=_check.row_stride(x),
        residual_stride=_check.row_stride(residual),
        out_stride=o.width,
        sum_stride=o.width,
        dtype=code,
        activation=activation,
        eps=eps,
    )
    native.library.layer_norm(args)
    return out, total


def _lookup(lookup: _check.Lookup | None) -> _C.Lookup | None:
    if lookup is None:
        return None
    ids, table = lookup
    return native.library.Lookup(
        ids=ids.data_ptr(),
        table=table.data_ptr(),
        entries=table.shape[0],
        stride=_check.row_stride(table),
    )
