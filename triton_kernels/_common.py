"""What the kernels share: activations, rounding, and what launchers ask of the device."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
import triton.language as tl
from triton import knobs

from fastbert.ops.operands import Target
from fastbert.triton_kernels.configs import ROW_LIMIT

# Said aloud because triton 3.10 changes the default; results must not change with the version.
LAUNCH = {"enable_fp_fusion": True}


@triton.jit
def round_to_even(x):
    """Round to the nearest integer, ties to even, float32 values with |x| < 2^22.

    Adding 1.5 * 2^23 leaves no fraction bits, so the addition itself rounds; a libdevice call
    would not run under the interpreter.
    """
    return (x + 12582912.0) - 12582912.0


@triton.jit
def tanh_f32(x):
    """Compute tanh of float32: x + x^3 P(x^2) below 1, where 1 - 2/(e^2|x| + 1) would cancel.

    P is the Chebyshev fit of degree 7 of (tanh(x) - x) / x^3 on [0, 1]; evaluated in float32 the
    relative error of the whole stays under 8.6e-8 (swept over 200 000 points).
    """
    s = x * x
    p = tl.fma(s, 0.000143829646, -0.000927150599)
    p = tl.fma(s, p, 0.00321185845)
    p = tl.fma(s, p, -0.00870132446)
    p = tl.fma(s, p, 0.0218307786)
    p = tl.fma(s, p, -0.0539636239)
    p = tl.fma(s, p, 0.133333117)
    p = tl.fma(s, p, -0.333333343)
    near = tl.fma(x * s, p, x)
    a = tl.abs(x)
    far = 1.0 - 2.0 / (tl.exp(2.0 * a) + 1.0)
    return tl.where(a < 1.0, near, tl.where(x < 0, -far, far))


@triton.jit
def activate(x, ACTIVATION: tl.constexpr, a, b):
    """Activate float32 by a code of ``fastbert.ops.activations``; a and b are its parameters."""
    if ACTIVATION == 1:
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == 2:
        # 0.5 * (1 + tanh(u)) = 1 / (1 + e^-2u): no tanh needed, and no cancellation for u << 0.
        u = 0.7978845608028654 * tl.fma(0.044715 * x * x, x, x)
        x = x / (1.0 + tl.exp(-2.0 * u))
    elif ACTIVATION == 3:
        # Not maximum(): that would turn NaN into 0.
        x = tl.where(x < 0.0, 0.0, x)
    elif ACTIVATION == 4:
        x = x / (1.0 + tl.exp(-x))
    elif ACTIVATION == 5:
        x = tanh_f32(x)
    elif ACTIVATION == 6:
        x = tl.where(x < 0.0, a * x, x)
    elif ACTIVATION == 7:
        x = x / (1.0 + tl.exp(-(a * x)))
    return x


@triton.jit
def layer_norm_row(x, columns, keep, weight_ptr, bias_ptr, hidden, eps):
    """Normalise one float32 row held in registers: two-pass variance, correctly rounded 1/sqrt.

    Elements outside ``keep`` may hold anything. NaN and inf propagate to the whole row.
    """
    mean = tl.sum(tl.where(keep, x, 0.0), 0) / hidden
    centred = tl.where(keep, x - mean, 0.0)
    variance = tl.sum(centred * centred, 0) / hidden
    scale = tl.math.div_rn(1.0, tl.sqrt_rn(variance + eps))
    weight = tl.load(weight_ptr + columns, mask=keep, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, mask=keep, other=0.0).to(tl.float32)
    return tl.fma(centred * scale, weight, bias)


@triton.jit
def rms_scale(squares, width, eps):
    """Return 1 / sqrt(mean of squares + eps) from their sum, correctly rounded in both steps."""
    return tl.math.div_rn(1.0, tl.sqrt_rn(squares / width + eps))


@triton.jit
def expm1_below_zero(x):
    """Compute e^x - 1 of float32 x <= 0, where neither the difference nor a fast exp may round.

    2^n e^r - 1 = 2^n (e^r - 1) + (2^n - 1) with x = n log 2 + r. For |r| <= 0.35 the first term
    that the Taylor series of e^r - 1 leaves out is below 6e-10 of r. Below -100 the result is -1.
    """
    x = tl.maximum(x, -100.0)
    n = round_to_even(x * 1.4426950408889634)
    r = tl.fma(n, -1.42860677e-06, tl.fma(n, -0.693145751953125, x))
    p = tl.fma(r, 2.48015873e-05, 1.98412698e-04)
    p = tl.fma(r, p, 1.38888889e-03)
    p = tl.fma(r, p, 8.33333333e-03)
    p = tl.fma(r, p, 4.16666667e-02)
    p = tl.fma(r, p, 1.66666667e-01)
    p = tl.fma(r, p, 0.5)
    p = tl.fma(r * r, p, r)
    power = tl.exp2(n)
    return tl.fma(power, p, power - 1.0)


@triton.jit
def softplus(x):
    """Compute log(1 + e^x) of float32 without overflow, and without losing a small e^x.

    log(u) e / (u - 1) for u = 1 + e as rounded: what the rounding took from u, the quotient gives
    back (Kahan; Goldberg 1991, "What every computer scientist should know about floating-point
    arithmetic", theorem 4).
    """
    e = tl.exp(-tl.abs(x))
    u = 1.0 + e
    less = u - 1.0
    tail = tl.where(less == 0.0, e, tl.log(u) * e / tl.where(less == 0.0, 1.0, less))
    return tl.where(x > 0.0, x, 0.0) + tail


@triton.jit
def tile_of(pid, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """Return the tile (row, column) of program ``pid``.

    GROUP_M row blocks share each column block, so that a wave of programs reads a near-square piece
    of both operands and finds it in L2.
    """
    blocks_m = tl.cdiv(M, BLOCK_M)
    blocks_n = tl.cdiv(N, BLOCK_N)
    group = pid // (GROUP_M * blocks_n)
    first = group * GROUP_M
    height = tl.minimum(blocks_m - first, GROUP_M)
    inside = pid - group * GROUP_M * blocks_n
    return first + inside % height, inside // height


@triton.jit
def halves(tile):
    """Return the left and right halves of a tile; accumulators split without moving."""
    pair = tl.reshape(tile, (tile.shape[0], 2, tile.shape[1] // 2))
    return tl.split(tl.permute(pair, (0, 2, 1)))


@triton.jit
def store_tile(
    acc, bias_ptr, residual_ptr, out_ptr, offs_m, first_n, rows, width,
    residual_stride, out_stride, ACTIVATION: tl.constexpr, act_a, act_b,
    out_scale_ptr, out_zero_point_ptr,
):  # fmt: skip
    """Store activation(acc + bias) + residual, rounded or requantised: the epilogue of each gemm.

    acc is float32 (rows offs_m, columns first_n ...).
    """
    offs_n = first_n + tl.arange(0, acc.shape[1])
    keep = (offs_m < rows)[:, None] & (offs_n < width)[None, :]
    rows_out = offs_m.to(tl.int64)[:, None]
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + offs_n, mask=offs_n < width, other=0.0).to(tl.float32)
        acc += bias[None, :]
    acc = activate(acc, ACTIVATION, act_a, act_b)
    if residual_ptr is not None:
        residual = residual_ptr + rows_out * residual_stride + offs_n[None, :]
        acc += tl.load(residual, mask=keep, other=0.0).to(tl.float32)
    if out_scale_ptr is not None:
        scale = tl.load(out_scale_ptr + offs_m, mask=offs_m < rows, other=1.0)[:, None]
        zero_point = tl.load(out_zero_point_ptr + offs_m, mask=offs_m < rows, other=0)[:, None]
        # Values beyond the grid saturate; bounding them first keeps the rounding trick in range.
        steps = tl.clamp(tl.math.div_rn(acc, tl.broadcast_to(scale, acc.shape)), -1024.0, 1024.0)
        acc = tl.clamp(round_to_even(steps) + zero_point.to(tl.float32), 0.0, 255.0)
        acc = acc.to(tl.int32)
    out = out_ptr + rows_out * out_stride + offs_n[None, :]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=keep)


def target() -> Target:
    """Return where operands must be."""
    return Target("triton", "cpu" if interpreted() else "cuda")


def interpreted() -> bool:
    """Tell whether triton was imported with TRITON_INTERPRET=1, so that kernels run on the CPU."""
    return bool(knobs.runtime.interpret)


def architecture(device: torch.device) -> int:
    """Return the key of the configuration tables: 90 for as much shared memory as Hopper, or 80."""
    if device.type != "cuda":
        return 90
    # From 12.0 on, GPUs for desktops have the 99 KiB a block of 8.6 and 8.9.
    return 90 if 9 <= torch.cuda.get_device_capability(device)[0] < 12 else 80


def dot_precision(dtype: torch.dtype) -> str:
    """Return 'tf32' for float32 where torch's setting for matmul allows it, else 'ieee'."""
    if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return "ieee"


def on_device(tensor: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """Make the tensor's device current for a launch; triton launches on the current one."""
    if tensor.is_cuda and tensor.device.index != torch.cuda.current_device():
        return torch.cuda.device(tensor.device)
    return contextlib.nullcontext()


def check_row_width(op: str, hidden: int) -> None:
    """Raise a ValueError unless a row fits in the registers of one program."""
    reason = row_width_reason(hidden)
    if reason is not None:
        raise ValueError(f"{op}: {reason}; use another backend")


def row_width_reason(hidden: int | None) -> str | None:
    """Return why rows of this width have no kernel, or None."""
    if hidden is None or 0 < hidden <= ROW_LIMIT:
        return None
    return f"rows have {hidden} elements, the triton kernel holds 1 to {ROW_LIMIT} in registers"
