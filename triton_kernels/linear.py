"""linear: activation(x @ weight.T + bias) + residual, the epilogue while the tile is in registers.

A row's result does not depend on the other rows or on how many there are: every output element is
one accumulator that takes k in ascending steps of the tensor-core instruction's depth, with no
split over k; BLOCK_K and the instruction depend on (architecture, dtype) alone; and the two tiles
(for few and for many rows) differ only in how many such accumulators a program owns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastbert.ops._op import Traits
from fastbert.ops.activations import KernelActivation, unsupported_activation
from fastbert.ops.linear import LinearOperands
from fastbert.ops.operands import by_rows
from fastbert.triton_kernels import _common
from fastbert.triton_kernels.configs import GROUP_M, linear_tile


@triton.jit
def _store(
    acc, weight_scale_ptr, bias_ptr, residual_ptr, out_ptr, offs_m, first_n, rows, width,
    residual_stride, out_stride, ACTIVATION: tl.constexpr, act_a, act_b, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Store in pieces of COLUMNS: a whole wide tile of erf does not fit in registers."""
    if acc.shape[1] > COLUMNS:
        left, right = _common.halves(acc)
        _store(
            left, weight_scale_ptr, bias_ptr, residual_ptr, out_ptr, offs_m, first_n, rows, width,
            residual_stride, out_stride, ACTIVATION, act_a, act_b, COLUMNS,
        )  # fmt: skip
        _store(
            right, weight_scale_ptr, bias_ptr, residual_ptr, out_ptr, offs_m,
            first_n + acc.shape[1] // 2, rows, width, residual_stride, out_stride, ACTIVATION,
            act_a, act_b, COLUMNS,
        )  # fmt: skip
    else:
        if weight_scale_ptr is not None:
            offs_n = first_n + tl.arange(0, acc.shape[1])
            scale = tl.load(weight_scale_ptr + offs_n, mask=offs_n < width, other=0.0)
            acc = tl.where(tl.abs(acc) < float("inf"), acc * scale[None, :], float("nan"))
        _common.store_tile(
            acc, bias_ptr, residual_ptr, out_ptr, offs_m, first_n, rows, width,
            residual_stride, out_stride, ACTIVATION, act_a, act_b, None, None,
        )  # fmt: skip


# A batch of one, or of a multiple of 16, would be compiled for itself, seconds in service.
@triton.jit(do_not_specialize=["rows"])
def linear_kernel(
    x_ptr,  # (rows, depth)
    weight_ptr,  # (width, depth), int8 where it has scales
    weight_scale_ptr,  # (width,) float32 or None
    bias_ptr,  # (width,) or None
    residual_ptr,  # (rows, width) or None
    out_ptr,  # (rows, width)
    rows, width, depth, act_a, act_b, x_stride, weight_stride, residual_stride, out_stride,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Compute one tile of the result."""
    tile_m, tile_n = _common.tile_of(tl.program_id(0), rows, width, BLOCK_M, BLOCK_N, GROUP)
    offs_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    # Rows past the end read the last one again: no mask in the loop, and they are never stored.
    row_m = tl.minimum(offs_m, rows - 1).to(tl.int64)[:, None]
    row_n = tl.minimum(offs_n, width - 1).to(tl.int64)[:, None]
    x = x_ptr + row_m * x_stride + offs_k[None, :]
    weight = weight_ptr + row_n * weight_stride + offs_k[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in range(0, depth, BLOCK_K):
        if EVEN_K:
            a = tl.load(x)
            b = tl.load(weight)
        else:
            inside = (offs_k < depth - k)[None, :]
            a = tl.load(x, mask=inside, other=0.0)
            b = tl.load(weight, mask=inside, other=0)
        if weight_scale_ptr is not None:
            b = b.to(a.dtype)
        acc = tl.dot(a, tl.trans(b), acc, input_precision=PRECISION)
        x += BLOCK_K
        weight += BLOCK_K
    _store(
        acc, weight_scale_ptr, bias_ptr, residual_ptr, out_ptr, offs_m, tile_n * BLOCK_N, rows,
        width, residual_stride, out_stride, ACTIVATION, act_a, act_b, COLUMNS,
    )  # fmt: skip


def linear(o: LinearOperands) -> torch.Tensor:
    """Compute activation(x @ weight.T + bias) + residual; see ``fastbert.ops.linear``.

    Sums are float32 and rounded once. float32 is IEEE, tf32 only where torch's own matmul setting
    says so. ``packed`` belongs to the cpu backend and is not looked at.
    """
    return multiplied(
        o.x, by_rows(o.weight), None, o.bias, o.activation, o.residual, o.x.dtype,
        _common.dot_precision(o.x.dtype),
    )  # fmt: skip


def multiplied(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    activation: KernelActivation,
    residual: torch.Tensor | None,
    dtype: torch.dtype,
    precision: str,
) -> torch.Tensor:
    """Compute activation(x @ (weight * weight_scale).T + bias) + residual.

    Args:
        x: (rows, depth), by rows.
        weight: (width, depth), by rows: of x.dtype, or int8 with scales.
        weight_scale: float32 (width,), or None.
        bias: (width,), or None.
        activation: as kernels take it.
        residual: (rows, width), by rows, or None.
        dtype: of the result.
        precision: of a product of float32, "ieee" or "tf32".

    Returns:
        (rows, width).
    """
    rows, depth = x.shape
    width = weight.shape[0]
    out = torch.empty((rows, width), dtype=dtype, device=x.device)
    if out.numel() == 0:
        return out
    code, a, b = activation
    wide = x.dtype == torch.float32
    if weight_scale is None:
        kind = "float32" if wide else "16-bit"
    else:
        kind = "w8a32" if wide else "w8a16"
    tile = linear_tile(_common.architecture(x.device), kind, rows).for_depth(depth)
    with _common.on_device(x):
        linear_kernel[(triton.cdiv(rows, tile.m) * triton.cdiv(width, tile.n),)](
            x, weight, weight_scale, bias, residual, out, rows, width, depth, a, b,
            x.stride(0), weight.stride(0), 0 if residual is None else residual.stride(0),
            out.stride(0),
            ACTIVATION=code, PRECISION=precision,
            EVEN_K=depth % tile.k == 0, BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_K=tile.k,
            GROUP=GROUP_M, COLUMNS=tile.columns, **tile.options, **_common.LAUNCH,
        )  # fmt: skip
    return out


def supports(traits: Traits) -> str | None:
    """Return None, or why the kernel cannot serve these traits."""
    return unsupported_activation(traits.activation)
