"""Channels weighted by gates: the end of squeeze-and-excitation."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fastbert.ops._op import STANDARD_TOLERANCES, Arguments, Case, Mutation, Op, Traits
from fastbert.ops._sample import Sampler
from fastbert.ops.operands import Target, channels_last, matrix, operand


def channel_gate(x: Tensor, gates: Tensor) -> Tensor:
    """Compute x * sigmoid(gates), with one gate for each channel of an image.

    Args:
        x: (batch, height, width, channels), floating.
        gates: (batch, channels), x.dtype.

    Returns:
        As x.

    Source: Hu et al. 2018, "Squeeze-and-excitation networks".
    """
    return x * torch.sigmoid(gates)[:, None, None]


class GateOperands(NamedTuple):
    """Checked operands of `channel_gate`.

    Attributes:
        code: of the dtype.
        batch, height, width, channels: shape of x.
        x: without gaps.
        gates: (batch, channels), without gaps.
    """

    code: int
    batch: int
    height: int
    width: int
    channels: int
    x: Tensor
    gates: Tensor


def check(target: Target, x: Tensor, gates: Tensor) -> GateOperands:
    """Return the operands of `channel_gate`.

    Raises:
        TypeError, ValueError: for operands that kernels do not take, with the reason.
    """
    op = "channel_gate"
    x, code = operand(op, "x", x, target)
    batch, height, width, channels = channels_last(op, "x", x)
    gates = matrix(op, "gates", gates, batch, channels, x.dtype, x.device).contiguous()
    return GateOperands(code, batch, height, width, channels, x.contiguous(), gates)


def fake(*, x: Tensor, **_: object) -> Tensor:
    """Return an empty result."""
    return x.new_empty(x.shape)


def supports(backend: str, traits: Traits) -> str | None:
    """Return None, or why the backend's kernel cannot serve these traits."""
    return None if backend == "cpu" else "torch multiplies on a GPU"


def _make(dtype: torch.dtype, *, shape: tuple[int, int, int, int]) -> Arguments:
    sample = Sampler(sum(shape), dtype)
    return {"x": sample.normal(*shape), "gates": sample.normal(shape[0], shape[3], std=3.0)}


def cases() -> Iterator[Case]:
    """Yield the sample calls."""
    for shape in ((0, 3, 3, 8), (1, 1, 1, 1), (2, 3, 5, 7), (3, 2, 2, 16), (2, 4, 3, 79)):
        yield Case("x".join(map(str, shape)), partial(_make, shape=shape))
    # Enough for several threads.
    yield Case("wide", partial(_make, shape=(2, 9, 11, 260)))


def _without_sigmoid(x: Tensor, gates: Tensor) -> Tensor:
    return x * gates[:, None, None]


def _first_image_s(x: Tensor, gates: Tensor) -> Tensor:
    return channel_gate(x, gates[:1].expand_as(gates))


def _silu(x: Tensor, gates: Tensor) -> Tensor:
    return x * torch.nn.functional.silu(gates)[:, None, None]


OP = Op(
    name="channel_gate",
    reference=channel_gate,
    check=check,
    fake=fake,
    supports=supports,
    tolerances=STANDARD_TOLERANCES,
    cases=cases,
    mutations=(
        Mutation("sigmoid forgotten", _without_sigmoid),
        Mutation("the first image's gates for all", _first_image_s),
        Mutation("silu for sigmoid", _silu),
    ),
)
