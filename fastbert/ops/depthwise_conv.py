"""A convolution of each channel by itself, with bias, activation and the means of the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastbert.ops._op import STANDARD_TOLERANCES, Arguments, Case, Mutation, Op, Traits
from fastbert.ops._sample import Sampler
from fastbert.ops.activations import (
    Activation,
    KernelActivation,
    activate,
    kernel_activation,
    unsupported_activation,
)
from fastbert.ops.operands import Target, channels_last, fits, operand, vector, wrong_kind

# Of windows, and between them, that kernels know.
SIDES = (3, 5)
_STRIDES = (1, 2)


def depthwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    before: int,
    after: int,
    activation: str | Activation,
) -> tuple[Tensor, Tensor]:
    """Compute activation(conv(x, weight) + bias) for every channel, and the means of that.

    Args:
        x: (batch, height, width, channels), floating.
        weight: (kernel, kernel, channels), x.dtype; kernels take a side of 3 or 5.
        bias: (channels,), x.dtype, or None.
        stride: between windows, in both directions; kernels take 1 or 2.
        before: zeros above and to the left of a map.
        after: zeros below and to the right.
        activation: as for `bias_act`.

    Returns:
        (batch, out_height, out_width, channels), x.dtype, and its means (batch, channels), float32
        or better, for squeeze-and-excitation.

    Source: Howard et al. 2017, "MobileNets"; Hu et al. 2018, "Squeeze-and-excitation networks".
    """
    maps = x.permute(0, 3, 1, 2)
    if before != after:
        maps, before = F.pad(maps, (before, after, before, after)), 0
    windows = weight.permute(2, 0, 1)[:, None]
    out = F.conv2d(maps, windows, bias, stride, before, groups=weight.shape[2])
    out = activate(out, activation).permute(0, 2, 3, 1)
    return out, out.to(torch.promote_types(x.dtype, torch.float32)).mean((1, 2))


class DepthwiseOperands(NamedTuple):
    """Checked operands of `depthwise_conv`.

    Attributes:
        code: of the dtype.
        batch, height, width, channels: shape of x.
        out_height, out_width: of the result.
        x: without gaps.
        weight: without gaps.
        bias: (channels,), or None.
        side: of the window.
        stride, before, after: as for `depthwise_conv`.
        activation: as kernels take it.
    """

    code: int
    batch: int
    height: int
    width: int
    channels: int
    out_height: int
    out_width: int
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    side: int
    stride: int
    before: int
    after: int
    activation: KernelActivation


def check(
    target: Target,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    before: int,
    after: int,
    activation: str | Activation,
) -> DepthwiseOperands:
    """Return the operands of `depthwise_conv`.

    Raises:
        TypeError, ValueError: for operands that kernels do not take, with the reason.
    """
    op = "depthwise_conv"
    x, code = operand(op, "x", x, target)
    batch, height, width, channels = channels_last(op, "x", x)
    if not fits(weight, x.dtype, x.device):
        raise wrong_kind(op, "weight", weight, x.dtype, x.device)
    side = weight.shape[0] if weight.dim() else 0
    if weight.shape != (side, side, channels) or side not in SIDES or stride not in _STRIDES:
        raise ValueError(
            f"{op}: weight has shape {tuple(weight.shape)} and stride is {stride}, expected "
            f"(3, 3, {channels}) or (5, 5, {channels}), and 1 or 2; the reference takes others."
        )
    if not (0 <= before < side and 0 <= after < side):
        raise ValueError(
            f"{op}: before and after are {before} and {after}, expected 0 to {side - 1} zeros."
        )
    out_height = (height + before + after - side) // stride + 1
    out_width = (width + before + after - side) // stride + 1
    if min(out_height, out_width) < 1:
        raise ValueError(
            f"{op}: a window of {side} does not fit into a map of {height} by {width} with "
            f"{before} and {after} zeros around it."
        )
    if bias is not None:
        bias = vector(op, "bias", bias, channels, x.dtype, x.device)
    return DepthwiseOperands(
        code, batch, height, width, channels, out_height, out_width, x.contiguous(),
        weight.contiguous(), bias, side, stride, before, after, kernel_activation(activation),
    )  # fmt: skip


def fake(
    *, x: Tensor, weight: Tensor, stride: int, before: int, after: int, **_: object
) -> tuple[Tensor, Tensor]:
    """Return empty results."""
    batch, height, width, channels = x.shape
    room = before + after - weight.shape[0]
    out = x.new_empty(
        (batch, (height + room) // stride + 1, (width + room) // stride + 1, channels)
    )
    dtype = torch.promote_types(x.dtype, torch.float32)
    return out, x.new_empty((batch, channels), dtype=dtype)


def supports(backend: str, traits: Traits) -> str | None:
    """Return None, or why the backend's kernel cannot serve these traits."""
    if backend != "cpu":
        return "torch's convolutions serve a GPU"
    return unsupported_activation(traits.activation)


def _make(
    dtype: torch.dtype,
    *,
    shape: tuple[int, int, int, int],
    side: int,
    stride: int,
    zeros: tuple[int, int],
    activation: str = "silu",
    bias: bool = True,
) -> Arguments:
    sample = Sampler(sum(shape) * 1009 + side, dtype)
    return {
        # No mean of a channel is near zero, where its relative error would be that of cancelling.
        "x": sample.normal(*shape, mean=0.5),
        "weight": sample.normal(side, side, shape[3], std=1 / side, mean=0.5 / side),
        "bias": sample.normal(shape[3]) if bias else None,
        "stride": stride,
        "before": zeros[0],
        "after": zeros[1],
        "activation": activation,
    }


def cases() -> Iterator[Case]:
    """Yield the sample calls."""
    for side, stride, zeros in (
        (3, 1, (1, 1)), (5, 1, (2, 2)), (3, 2, (0, 1)), (5, 2, (1, 2)), (3, 2, (1, 1)),
        (5, 2, (2, 2)), (3, 1, (0, 0)), (5, 1, (4, 0)),
    ):  # fmt: skip
        make = partial(_make, side=side, stride=stride, zeros=zeros)
        name = f"{side}x{side}-by-{stride}-zeros-{zeros[0]}-{zeros[1]}"
        # Widths around the outputs that a tile holds, channels around the lanes of a vector.
        for shape in ((1, 5, 5, 1), (2, 7, 19, 17), (1, 6, 11, 64), (3, 9, 8, 79)):
            yield Case(f"{name}-{'x'.join(map(str, shape))}", partial(make, shape=shape))
    make = partial(_make, shape=(2, 6, 6, 33), side=3, stride=1, zeros=(1, 1))
    yield Case("no-images", partial(make, shape=(0, 6, 6, 33)))
    yield Case("one-place", partial(make, shape=(1, 1, 1, 40)))
    yield Case("one-place-of-many-zeros", partial(make, shape=(1, 1, 1, 40), side=5, zeros=(2, 2)))
    yield Case("no-bias", partial(make, bias=False))
    for activation in ("none", "gelu", "relu", "leaky_relu(0.2)"):
        yield Case(activation, partial(make, activation=activation))


def _changed(**changes: Callable[[Arguments], Any]) -> Callable[..., tuple[Tensor, Tensor]]:
    def mutated(**arguments: Any) -> tuple[Tensor, Tensor]:
        return depthwise_conv(
            **arguments | {name: change(arguments) for name, change in changes.items()}
        )

    return mutated


def _mean_of_one_row(**arguments: Any) -> tuple[Tensor, Tensor]:
    out, means = depthwise_conv(**arguments)
    return out, out[:, -1].to(means.dtype).mean(1)


OP = Op(
    name="depthwise_conv",
    reference=depthwise_conv,
    check=check,
    fake=fake,
    supports=supports,
    tolerances=STANDARD_TOLERANCES,
    cases=cases,
    mutations=(
        Mutation("zeros before and behind exchanged", _changed(
            before=lambda given: given["after"], after=lambda given: given["before"])),
        Mutation("window transposed", _changed(
            weight=lambda given: given["weight"].transpose(0, 1))),
        Mutation("window turned round", _changed(weight=lambda given: given["weight"].flip(0, 1))),
        Mutation("bias dropped", _changed(bias=lambda given: None)),
        Mutation("activation dropped", _changed(activation=lambda given: "none")),
        Mutation("means of the last row alone", _mean_of_one_row),
    ),
)  # fmt: skip
