"""The CPU kernels: checked operands in, addresses and sizes on to `fastbert._C`.

Each function runs the op of its name; `check` of the op's file made its operands. The native
drivers check sizes, strides, offsets and ids again before they touch memory. The number of threads
is torch's.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastbert.kernels import native
from fastbert.ops._op import Traits
from fastbert.ops.activations import KernelActivation
from fastbert.ops.add_layer_norm import RowNormOperands
from fastbert.ops.attention_varlen import AttentionOperands
from fastbert.ops.bias_act import BiasActOperands
from fastbert.ops.channel_gate import GateOperands
from fastbert.ops.depthwise_conv import DepthwiseOperands
from fastbert.ops.embed_layer_norm import EmbeddingOperands, Lookup
from fastbert.ops.int8_linear import Int8LinearOperands
from fastbert.ops.linear import LinearOperands
from fastbert.ops.operands import (
    Target,
    address,
    by_rows,
    bytes_,
    matrix,
    obstacle,
    operand,
    row_stride,
    two_dimensional,
    unreadable,
    vector,
    weight_rows,
)
from fastbert.ops.qk_norm_rope import QkNormRopeOperands
from fastbert.ops.quantize_rows import QuantizeOperands
from fastbert.ops.rms_norm import RmsNormOperands
from fastbert.ops.segment_sums import SegmentOperands
from fastbert.ops.xielu import XieluOperands, slopes

if TYPE_CHECKING:
    from fastbert import _C

TARGET = Target("cpu", "cpu")
_CPU = torch.device("cpu")
_INT8 = 4
# The code of an activation (csrc/common/types.h) that is an op of its own here.
_XIELU = 8


# What the library was told last.
_threads = 0


def use_torch_threads() -> None:
    """Let the kernels use as many threads as torch does.

    Raises:
        Unavailable: when the library cannot be loaded, with the reason and the remedy.
    """
    global _threads
    threads = torch.get_num_threads()
    if threads != _threads:
        native.library.set_num_threads(threads)
        _threads = threads


def _renew_torch_threads() -> None:
    """Let a forked child use torch's threads.

    The library ends OpenMP's before a fork (csrc/cpu/forks.cpp). Here goes the pool behind them:
    of the new threads that find the parent's at once, torch 2.13 lets one replace it, and stops
    the others with "Invalid thread pool!". In the child there still is one thread only.
    """
    threads = torch.get_num_threads()
    if threads > 1:
        torch.set_num_threads(threads)


os.register_at_fork(after_in_child=_renew_torch_threads)


def unavailable() -> str | None:
    """Return None when the kernels can run, else the reason."""
    return native.reason()


def target() -> Target:
    """Return where operands must be."""
    return TARGET


def supports(op: str, traits: Traits) -> str | None:
    """Return None when there is a kernel of this op for these traits, else the reason."""
    if op not in globals() or not hasattr(native.extension(), _BINDINGS.get(op, op)):
        return f"this build has no {op}"
    return None


# Where the binding has another name than the op.
_BINDINGS = {
    "add_layer_norm": "layer_norm",
    "act_layer_norm": "layer_norm",
    "attention_grouped": "attention_varlen",
    "xielu": "bias_act",
}


def add_layer_norm(o: RowNormOperands) -> tuple[Tensor, Tensor]:
    """See `fastbert.ops.add_layer_norm`."""
    return _layer_norm(o)


def act_layer_norm(o: RowNormOperands) -> Tensor:
    """See `fastbert.ops.act_layer_norm`."""
    return _layer_norm(o)[0]


def bias_act(o: BiasActOperands) -> Tensor:
    """See `fastbert.ops.bias_act`."""
    use_torch_threads()
    code, rows, width, x, bias, (activation, a, b) = o
    out = torch.empty((rows, width), dtype=x.dtype, device=_CPU)
    args = native.library.ActArgs(
        x=x.data_ptr(),
        out=out.data_ptr(),
        bias=address(bias),
        bias_dtype=code,
        rows=rows,
        columns=width,
        x_stride=row_stride(x),
        out_stride=width,
        dtype=code,
        activation=activation,
        activation_a=a,
        activation_b=b,
    )
    native.library.bias_act(args)
    return out


def channel_gate(o: GateOperands) -> Tensor:
    """See `fastbert.ops.channel_gate`."""
    use_torch_threads()
    shape = (o.batch, o.height, o.width, o.channels)
    out = torch.empty(shape, dtype=o.x.dtype, device=_CPU)
    args = native.library.GateArgs(
        x=o.x.data_ptr(),
        gates=o.gates.data_ptr(),
        out=out.data_ptr(),
        batch=o.batch,
        places=o.height * o.width,
        channels=o.channels,
        dtype=o.code,
    )
    native.library.channel_gate(args)
    return out


def depthwise_conv(o: DepthwiseOperands) -> tuple[Tensor, Tensor]:
    """See `fastbert.ops.depthwise_conv`."""
    use_torch_threads()
    shape = (o.batch, o.out_height, o.out_width, o.channels)
    out = torch.empty(shape, dtype=o.x.dtype, device=_CPU)
    means = torch.empty((o.batch, o.channels), dtype=torch.float32, device=_CPU)
    activation, a, b = o.activation
    args = native.library.DepthwiseArgs(
        x=o.x.data_ptr(),
        out=out.data_ptr(),
        means=means.data_ptr(),
        weight=o.weight.data_ptr(),
        weight_dtype=o.code,
        bias=address(o.bias),
        bias_dtype=o.code,
        batch=o.batch,
        height=o.height,
        width=o.width,
        channels=o.channels,
        kernel=o.side,
        stride=o.stride,
        before=o.before,
        after=o.after,
        dtype=o.code,
        activation=activation,
        activation_a=a,
        activation_b=b,
    )
    native.library.depthwise_conv(args)
    return out, means


def clip_errors(rows: Tensor, scales: Tensor, largest: Tensor) -> Tensor:
    """See `fastbert.runtime.clipping.clip_errors`."""
    use_torch_threads()
    count, inner = two_dimensional("clip_errors", "rows", rows)
    rows = matrix("clip_errors", "rows", rows, count, inner, torch.float32, _CPU).contiguous()
    candidates = two_dimensional("clip_errors", "scales", scales)[1]
    scales = matrix("clip_errors", "scales", scales, count, candidates, torch.float32, _CPU)
    scales = scales.contiguous()
    largest = vector("clip_errors", "largest", largest, inner, torch.float32, _CPU)
    errors = torch.empty_like(scales)
    args = native.library.ClipArgs(
        x=rows.data_ptr(),
        rows=rows.shape[0],
        k=rows.shape[1],
        x_stride=rows.shape[1],
        largest=largest.data_ptr(),
        scale=scales.data_ptr(),
        candidates=scales.shape[1],
        error=errors.data_ptr(),
    )
    native.library.clip_errors(args)
    return errors


def linear(o: LinearOperands) -> Tensor:
    """See `fastbert.ops.linear`. Without `packed` the weight is packed for this one call."""
    packed = linear_prepack(o.weight) if o.packed is None else o.packed
    packed = bytes_("linear", "packed", packed, _CPU)
    out = torch.empty((o.rows, o.outer), dtype=o.x.dtype, device=_CPU)
    use_torch_threads()
    native.library.linear(_gemm_args(o, packed, out, 0, o.activation), packed.numel())
    return out


def int8_linear(o: Int8LinearOperands) -> Tensor:
    """See `fastbert.ops.int8_linear`. Without `packed` the weight is packed for this one call."""
    return _int8("int8_linear", o)


def linear_w8a16(o: Int8LinearOperands) -> Tensor:
    """See `fastbert.ops.linear_w8a16`; packed as for `int8_linear`."""
    return _int8("linear_w8a16", o)


def _int8(op: str, o: Int8LinearOperands) -> Tensor:
    packed = int8_linear_prepack(o.qweight) if o.packed is None else o.packed
    packed = bytes_(op, "packed", packed, _CPU)
    out = torch.empty((o.rows, o.outer), dtype=o.x.dtype, device=_CPU)
    columns = None
    if o.factor is not None or o.repeated is not None:
        columns = native.library.InputColumns(
            factor=address(o.factor),
            repeated=address(o.repeated),
            repeats=0 if o.repeated is None else o.repeated.numel(),
        )
    use_torch_threads()
    args = _gemm_args(o, packed, out, o.weight_scale.data_ptr(), o.activation)
    getattr(native.library, op)(args, packed.numel(), columns)
    return out


def linear_prepack(weight: Tensor) -> Tensor:
    """Return a weight (N, K) in the order that the kernels of the instruction set in use read it.

    float16 is kept as float32, which is what it is multiplied in. Packing reads the weight once and
    is worth keeping: layers keep the result until the weight's version, its address or the Plan's
    instruction set changes. A kernel of another instruction set refuses the result.

    Returns:
        uint8, opaque.
    """
    weight, code = operand("linear_prepack", "weight", weight, TARGET)
    return _packed("linear_prepack", weight, code, 0 if weight.dtype is torch.float16 else code)


def int8_linear_prepack(qweight: Tensor) -> Tensor:
    """Do what `linear_prepack` does, for an int8 weight (N, K)."""
    if isinstance(qweight, Tensor) and qweight.dim() == 2:
        weight_rows("int8_linear_prepack", "qweight", qweight, qweight.shape[1], torch.int8, _CPU)
    elif not isinstance(qweight, Tensor):
        raise TypeError(
            f"int8_linear_prepack: a tensor was expected, got {type(qweight).__name__}."
        )
    return _packed("int8_linear_prepack", qweight, _INT8, _INT8)


linear_w8a16_prepack = int8_linear_prepack


def quantize_rows(o: QuantizeOperands) -> tuple[Tensor, Tensor, Tensor]:
    """See `fastbert.ops.quantize_rows`."""
    code, rows, width, x = o
    use_torch_threads()
    quantised = torch.empty((rows, width), dtype=torch.uint8, device=_CPU)
    scale = torch.empty(rows, dtype=torch.float32, device=_CPU)
    zero_point = torch.empty(rows, dtype=torch.int32, device=_CPU)
    args = native.library.QuantizeArgs(
        x=x.data_ptr(),
        dtype=code,
        rows=rows,
        k=width,
        x_stride=row_stride(x),
        q=quantised.data_ptr(),
        q_stride=width,
        scale=scale.data_ptr(),
        zero_point=zero_point.data_ptr(),
    )
    native.library.quantize_rows(args)
    return quantised, scale, zero_point


def attention_varlen(o: AttentionOperands) -> Tensor:
    """See `fastbert.ops.attention_varlen`."""
    # Taken apart at once, which is cheaper than looking up 25 attributes.
    (
        code, total_q, total_k, heads, kv_heads, dim, batch, q, k, v, cu_seqlens_q, cu_seqlens_k,
        max_seqlen_q, max_seqlen_k, scale, causal, key_bias, bias,
        (over_batch, over_heads, over_queries),
    ) = o  # fmt: skip
    out = torch.empty((total_q, heads, dim), dtype=q.dtype, device=_CPU)
    q_row_stride, q_head_stride, _ = q.stride()
    k_row_stride, k_head_stride, _ = k.stride()
    v_row_stride, v_head_stride, _ = v.stride()
    use_torch_threads()
    args = native.library.AttentionArgs(
        q=q.data_ptr(),
        k=k.data_ptr(),
        v=v.data_ptr(),
        out=out.data_ptr(),
        dtype=code,
        total_q=total_q,
        total_k=total_k,
        num_heads=heads,
        head_dim=dim,
        group=heads // kv_heads if kv_heads else 1,
        q_row_stride=q_row_stride,
        q_head_stride=q_head_stride,
        k_row_stride=k_row_stride,
        k_head_stride=k_head_stride,
        v_row_stride=v_row_stride,
        v_head_stride=v_head_stride,
        out_row_stride=heads * dim,
        out_head_stride=dim,
        cu_seqlens_q=cu_seqlens_q.data_ptr(),
        cu_seqlens_k=cu_seqlens_k.data_ptr(),
        batch=batch,
        max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k,
        scale=scale,
        causal=causal,
        key_bias=address(key_bias),
        bias=address(bias),
        bias_batch_stride=over_batch,
        bias_head_stride=over_heads,
        bias_query_stride=over_queries,
    )
    native.library.attention_varlen(args)
    return out


def attention_grouped(o: AttentionOperands) -> Tensor:
    """See `fastbert.ops.attention_grouped`."""
    return attention_varlen(o)


def rms_norm(o: RmsNormOperands) -> tuple[Tensor, Tensor]:
    """See `fastbert.ops.rms_norm`."""
    out = torch.empty((o.rows, o.width), dtype=o.x.dtype, device=_CPU)
    total = torch.empty_like(out) if o.return_sum else None
    use_torch_threads()
    args = native.library.RmsNormArgs(
        x=o.x.data_ptr(),
        residual=address(o.residual),
        out=out.data_ptr(),
        sum=address(total),
        weight=o.weight.data_ptr(),
        weight_dtype=o.code,
        rows=o.rows,
        hidden=o.width,
        x_stride=row_stride(o.x),
        residual_stride=row_stride(o.residual),
        out_stride=o.width,
        sum_stride=o.width,
        dtype=o.code,
        eps=o.eps,
    )
    native.library.rms_norm(args)
    return out, out.new_empty(0) if total is None else total


def xielu(o: XieluOperands) -> Tensor:
    """See `fastbert.ops.xielu`."""
    numbers = (part.detach().reshape(()).float() for part in (o.alpha_p, o.alpha_n, o.beta, o.eps))
    alpha_p, alpha_n, beta, eps = numbers
    square, exponential = slopes(alpha_p, alpha_n, beta)
    out = torch.empty((o.rows, o.width), dtype=o.x.dtype, device=_CPU)
    use_torch_threads()
    args = native.library.ActArgs(
        x=o.x.data_ptr(),
        out=out.data_ptr(),
        rows=o.rows,
        columns=o.width,
        x_stride=row_stride(o.x),
        out_stride=o.width,
        dtype=o.code,
        activation=_XIELU,
        activation_a=float(square),
        activation_b=float(exponential),
        activation_c=float(beta),
        activation_d=float(eps),
    )
    native.library.bias_act(args)
    return out


def qk_norm_rope(o: QkNormRopeOperands) -> tuple[Tensor, Tensor]:
    """See `fastbert.ops.qk_norm_rope`."""
    q_out = torch.empty((o.tokens, o.heads, o.dim), dtype=o.q.dtype, device=_CPU)
    k_out = torch.empty((o.tokens, o.kv_heads, o.dim), dtype=o.q.dtype, device=_CPU)
    q_row_stride, q_head_stride, _ = o.q.stride()
    k_row_stride, k_head_stride, _ = o.k.stride()
    cos, sin = (part.contiguous() for part in (o.cos, o.sin))
    use_torch_threads()
    args = native.library.QkNormRopeArgs(
        q=o.q.data_ptr(),
        q_row_stride=q_row_stride,
        q_head_stride=q_head_stride,
        k=o.k.data_ptr(),
        k_row_stride=k_row_stride,
        k_head_stride=k_head_stride,
        q_out=q_out.data_ptr(),
        q_out_row_stride=o.heads * o.dim,
        q_out_head_stride=o.dim,
        k_out=k_out.data_ptr(),
        k_out_row_stride=o.kv_heads * o.dim,
        k_out_head_stride=o.dim,
        q_weight=o.q_weight.data_ptr(),
        q_weight_dtype=o.code,
        k_weight=o.k_weight.data_ptr(),
        k_weight_dtype=o.code,
        cos=cos.data_ptr(),
        sin=sin.data_ptr(),
        rope_stride=o.dim // 2,
        tokens=o.tokens,
        num_heads=o.heads,
        num_kv_heads=o.kv_heads,
        head_dim=o.dim,
        dtype=o.code,
        q_eps=o.eps,
        k_eps=o.eps,
    )
    native.library.qk_norm_rope(args)
    return q_out, k_out


def embed_layer_norm(o: EmbeddingOperands) -> Tensor:
    """See `fastbert.ops.embed_layer_norm`."""
    out = torch.empty((o.rows, o.width), dtype=o.weight.dtype, device=_CPU)
    use_torch_threads()
    args = native.library.EmbedArgs(
        word=_lookup(o.word),
        embeds=address(o.embeds),
        embeds_stride=row_stride(o.embeds),
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
        eps=o.eps,
    )
    native.library.embed_layer_norm(args)
    return out


def segment_sums(o: SegmentOperands) -> Tensor:
    """See `fastbert.ops.segment_sums`.

    torch's own operator leaves threads spinning for milliseconds on the cores that the next pass
    of an encoder needs.
    """
    out = torch.empty((o.segments, o.columns), dtype=torch.float32, device=_CPU)
    use_torch_threads()
    args = native.library.SegmentArgs(
        x=o.x.data_ptr(),
        bounds=o.bounds.data_ptr(),
        divisors=address(o.divisors),
        out=out.data_ptr(),
        rows=o.rows,
        columns=o.columns,
        segments=o.segments,
        x_stride=row_stride(o.x),
        dtype=o.code,
    )
    native.library.segment_sums(args)
    return out


def _packed(op: str, weight: Tensor, code: int, packed_code: int) -> Tensor:
    outer, inner = two_dimensional(op, "weight", weight)
    if obstacle(weight) is not None:
        raise unreadable(op, {"weight": weight})
    weight = by_rows(weight)
    size = native.library.packed_bytes(packed_code, outer, inner)
    packed = torch.empty(size, dtype=torch.uint8, device=_CPU)
    use_torch_threads()
    native.library.pack_weight(
        weight=weight.data_ptr(),
        dtype=code,
        n=outer,
        k=inner,
        stride=row_stride(weight),
        out=packed.data_ptr(),
        out_bytes=size,
    )
    return packed


def _gemm_args(
    o: LinearOperands | Int8LinearOperands,
    packed: Tensor,
    out: Tensor,
    weight_scale: int,
    function: KernelActivation,
) -> _C.GemmArgs:
    code, x, bias, residual, outer = o.code, o.x, o.bias, o.residual, o.outer
    return native.library.GemmArgs(
        rows=o.rows,
        n=outer,
        k=o.inner,
        x=x.data_ptr(),
        x_dtype=code,
        x_stride=row_stride(x),
        packed=packed.data_ptr(),
        bias=0 if bias is None else bias.data_ptr(),
        bias_dtype=code,
        activation=function.code,
        activation_a=function.a,
        activation_b=function.b,
        residual=0 if residual is None else residual.data_ptr(),
        residual_dtype=code,
        residual_stride=0 if residual is None else row_stride(residual),
        out=out.data_ptr(),
        out_dtype=code,
        out_stride=outer,
        w_scale=weight_scale,
    )


def _layer_norm(o: RowNormOperands) -> tuple[Tensor, Tensor]:
    x, residual, code, function = o.x, o.residual, o.code, o.activation
    out = torch.empty((o.rows, o.width), dtype=x.dtype, device=_CPU)
    total = torch.empty((o.rows, o.width) if o.return_sum else 0, dtype=x.dtype, device=_CPU)
    use_torch_threads()
    args = native.library.LayerNormArgs(
        x=x.data_ptr(),
        residual=address(residual),
        out=out.data_ptr(),
        sum=total.data_ptr() if o.return_sum else 0,
        x_bias=address(o.x_bias),
        x_bias_dtype=code,
        weight=o.weight.data_ptr(),
        weight_dtype=code,
        bias=o.bias.data_ptr(),
        bias_dtype=code,
        rows=o.rows,
        hidden=o.width,
        x_stride=row_stride(x),
        residual_stride=row_stride(residual),
        out_stride=o.width,
        sum_stride=o.width,
        dtype=code,
        activation=function.code,
        activation_a=function.a,
        activation_b=function.b,
        eps=o.eps,
    )
    native.library.layer_norm(args)
    return out, total


def _lookup(lookup: Lookup | None) -> _C.Lookup | None:
    if lookup is None:
        return None
    ids, table = lookup
    return native.library.Lookup(
        ids=ids.data_ptr(), table=table.data_ptr(), entries=table.shape[0], stride=row_stride(table)
    )
