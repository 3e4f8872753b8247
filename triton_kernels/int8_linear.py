"""int8_linear: rows quantised on the way in, an int8 gemm, and everything else in its epilogue.

Tensor cores multiply signed bytes, so the unsigned q of the contract is shifted: with
q' = q - 128 and zero_point' = zero_point - 128 the difference q' - zero_point' is unchanged, and

    sum_k (q - zero_point) w = sum_k q' w - zero_point' * sum_k w.

The row sums of the weight are exact integers, so the result equals the reference's integer product
bit for bit, whatever the tile: int32 holds it up to K = 65 793 (255 * 128 * K < 2^31). The int32
values never reach memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastbert.ops._op import Traits
from fastbert.ops.activations import unsupported_activation
from fastbert.ops.int8_linear import Int8LinearOperands, widened
from fastbert.ops.operands import CODES, by_rows, fits, vector, wrong_kind
from fastbert.ops.quantize_rows import QuantizeOperands
from fastbert.triton_kernels import _common
from fastbert.triton_kernels.configs import GROUP_M, linear_tile
from fastbert.triton_kernels.quantize_rows import quantize_rows

MAX_DEPTH = (2**31 - 1) // (255 * 128)


@triton.jit
def weight_sums_kernel(
    weight_ptr,  # (width, depth) int8
    sums_ptr,  # (width,) int32
    depth, weight_stride,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum one row of the weight."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    acc = tl.zeros([BLOCK], tl.int32)
    for start in range(0, depth, BLOCK):
        inside = start + columns < depth
        row_ptr = weight_ptr + row * weight_stride + start
        acc += tl.load(row_ptr + columns, mask=inside, other=0).to(tl.int32)
    tl.store(sums_ptr + row, tl.sum(acc, 0))


@triton.jit
def _dequantize(
    acc, scale, zero_point, weight_scale_ptr, weight_sums_ptr, bias_ptr, residual_ptr, out_ptr,
    out_scale_ptr, out_zero_point_ptr, offs_m, first_n, rows, width,
    residual_stride, out_stride, ACTIVATION: tl.constexpr, act_a, act_b, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Dequantise and store in pieces of COLUMNS: a wide tile of erf does not fit in registers."""
    if acc.shape[1] > COLUMNS:
        left, right = _common.halves(acc)
        _dequantize(
            left, scale, zero_point, weight_scale_ptr, weight_sums_ptr, bias_ptr, residual_ptr,
            out_ptr, out_scale_ptr, out_zero_point_ptr, offs_m, first_n, rows, width,
            residual_stride, out_stride, ACTIVATION, act_a, act_b, COLUMNS,
        )  # fmt: skip
        _dequantize(
            right, scale, zero_point, weight_scale_ptr, weight_sums_ptr, bias_ptr, residual_ptr,
            out_ptr, out_scale_ptr, out_zero_point_ptr, offs_m, first_n + acc.shape[1] // 2, rows,
            width, residual_stride, out_stride, ACTIVATION, act_a, act_b, COLUMNS,
        )  # fmt: skip
    else:
        offs_n = first_n + tl.arange(0, acc.shape[1])
        keep = offs_n < width
        acc -= zero_point * tl.load(weight_sums_ptr + offs_n, mask=keep, other=0)[None, :]
        weight_scale = tl.load(weight_scale_ptr + offs_n, mask=keep, other=0.0)[None, :]
        value = acc.to(tl.float32) * (scale * weight_scale)
        _common.store_tile(
            value, bias_ptr, residual_ptr, out_ptr, offs_m, first_n, rows, width,
            residual_stride, out_stride, ACTIVATION, act_a, act_b, out_scale_ptr,
            out_zero_point_ptr,
        )  # fmt: skip


# A batch of one, or of a multiple of 16, would be compiled for itself, seconds in service.
@triton.jit(do_not_specialize=["rows"])
def int8_linear_kernel(
    q_ptr,  # (rows, depth) int8, shifted by 128
    scale_ptr,  # (rows,) float32
    zero_point_ptr,  # (rows,) int32, shifted by 128
    weight_ptr,  # (width, depth) int8
    weight_scale_ptr,  # (width,) float32
    weight_sums_ptr,  # (width,) int32
    bias_ptr,  # (width,) or None
    residual_ptr,  # (rows, width) or None
    out_ptr,  # (rows, width), uint8 when requantised
    out_scale_ptr,  # (rows,) float32 or None
    out_zero_point_ptr,  # (rows,) int32 or None
    rows, width, depth, act_a, act_b, q_stride, weight_stride, residual_stride, out_stride,
    ACTIVATION: tl.constexpr, EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Compute one tile of the result."""
    tile_m, tile_n = _common.tile_of(tl.program_id(0), rows, width, BLOCK_M, BLOCK_N, GROUP)
    offs_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    # Rows past the end read the last one again: no mask in the loop, and they are never stored.
    row_m = tl.minimum(offs_m, rows - 1)
    row_n = tl.minimum(offs_n, width - 1)
    q = q_ptr + row_m.to(tl.int64)[:, None] * q_stride + offs_k[None, :]
    weight = weight_ptr + row_n.to(tl.int64)[:, None] * weight_stride + offs_k[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for k in range(0, depth, BLOCK_K):
        if EVEN_K:
            a = tl.load(q)
            b = tl.load(weight)
        else:
            inside = (offs_k < depth - k)[None, :]
            a = tl.load(q, mask=inside, other=0)
            b = tl.load(weight, mask=inside, other=0)
        acc = tl.dot(a, tl.trans(b), acc, out_dtype=tl.int32)
        q += BLOCK_K
        weight += BLOCK_K
    scale = tl.load(scale_ptr + row_m)[:, None]
    zero_point = tl.load(zero_point_ptr + row_m)[:, None]
    _dequantize(
        acc, scale, zero_point, weight_scale_ptr, weight_sums_ptr, bias_ptr, residual_ptr, out_ptr,
        out_scale_ptr, out_zero_point_ptr, offs_m, tile_n * BLOCK_N, rows, width,
        residual_stride, out_stride, ACTIVATION, act_a, act_b, COLUMNS,
    )  # fmt: skip


def weight_sums(qweight: torch.Tensor) -> torch.Tensor:
    """Return row sums of qweight, int8 (N, K), as int32 (N,): the ``packed`` of `int8_linear`."""
    op = "weight_sums"
    if not fits(qweight, torch.int8, qweight.device) or qweight.dim() != 2:
        raise wrong_kind(op, "qweight", qweight, torch.int8, qweight.device)
    width, depth = qweight.shape
    qweight = by_rows(qweight)
    sums = torch.empty(width, dtype=torch.int32, device=qweight.device)
    if width > 0:
        with _common.on_device(qweight):
            weight_sums_kernel[(width,)](
                qweight, sums, depth, qweight.stride(0), BLOCK=1024, num_warps=2, **_common.LAUNCH,
            )  # fmt: skip
    return sums


# What a layer keeps of its weight, under the name by which it asks for that.
int8_linear_prepack = weight_sums


def int8_linear(
    o: Int8LinearOperands, *, requantize: tuple[torch.Tensor, torch.Tensor] | None = None
) -> torch.Tensor:
    """See ``fastbert.ops.int8_linear``; everything after the exact gemm is float32, rounded once.

    Args:
        o: operands, whose ``packed`` is `weight_sums(qweight)`, computed when None.
        requantize: (scale float32 (rows,), zero_point int32 (rows,)) known beforehand; the result
            is then clamp(round(y / scale) + zero_point, 0, 255) as uint8, written straight from the
            accumulators. (A row's own range is not known to the program that holds one tile of it.)

    Raises:
        ValueError: for K + repeats beyond 65 793, where int32 sums could overflow.
    """
    op = "int8_linear"
    x, residual, device = o.x, o.residual, o.x.device
    repeats = 0 if o.repeated is None else o.repeated.numel()
    depth = o.inner + repeats
    if depth > MAX_DEPTH:
        raise ValueError(
            f"{op}: K is {depth}, expected at most {MAX_DEPTH}: int32 sums could overflow beyond"
        )
    sums = None
    if o.packed is not None:
        sums = vector(op, "packed", o.packed, o.outer, torch.int32, device)
    out_scale = out_zero_point = None
    dtype = x.dtype
    if requantize is not None:
        scale, zero_point = requantize
        out_scale = vector(op, "the scale of requantize", scale, o.rows, torch.float32, device)
        out_zero_point = vector(
            op, "the zero_point of requantize", zero_point, o.rows, torch.int32, device
        )
        dtype = torch.uint8
    out = torch.empty((o.rows, o.outer), dtype=dtype, device=device)
    if out.numel() == 0:
        return out
    wide = widened(x, o.factor, o.repeated)
    wide_operands = QuantizeOperands(CODES[wide.dtype], o.rows, depth, wide)
    q, scale, zero_point = quantize_rows(wide_operands, signed=True)
    qweight = by_rows(o.qweight)
    if sums is None:
        sums = weight_sums(qweight)
    code, a, b = o.activation
    tile = linear_tile(_common.architecture(device), "int8", o.rows).for_depth(depth)
    with _common.on_device(x):
        int8_linear_kernel[(triton.cdiv(o.rows, tile.m) * triton.cdiv(o.outer, tile.n),)](
            q, scale, zero_point, qweight, o.weight_scale, sums, o.bias, residual, out,
            out_scale, out_zero_point, o.rows, o.outer, depth, a, b,
            q.stride(0), qweight.stride(0), 0 if residual is None else residual.stride(0),
            out.stride(0),
            ACTIVATION=code, EVEN_K=depth % tile.k == 0,
            BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_K=tile.k, GROUP=GROUP_M, COLUMNS=tile.columns,
            **tile.options, **_common.LAUNCH,
        )  # fmt: skip
    return out


def supports(traits: Traits) -> str | None:
    """Return None, or why the kernel cannot serve these traits."""
    widest = max(traits.hidden_size or 1, traits.intermediate_size or 1)
    return unsupported_activation(traits.activation) or _common.row_width_reason(widest)
