"""Gradients of what kernels computed: the backward pass computes it again on the reference.

For models in eval mode that are called without torch.no_grad(), as people do who only want the
result: the forward pass costs what it costs without gradients, and keeps no activations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def recomputed(
    compute: Callable[[], tuple[Tensor, ...]],
    again: Callable[[], tuple[Tensor, ...]],
    leaves: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """compute(), whose gradients are those of again().

    Args:
        compute: the results, from kernels without a backward pass.
        again: the same by differentiable ops, called by every backward pass.
        leaves: what both are computed from, whether gradients flow there or not. Changing one in
            place before the backward pass is an error, as in all of autograd.
    """
    outputs: tuple[Tensor, ...] = _Recomputed.apply(compute, again, *leaves)
    return outputs


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compute: Any, again: Any, *leaves: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = compute()
        ctx.again = again
        ctx.save_for_backward(*leaves)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        leaves = ctx.saved_tensors  # raises where one was modified
        wanted = ctx.needs_input_grad[2:]
        inputs = [leaf for leaf, want in zip(leaves, wanted, strict=True) if want]
        twice = torch.is_grad_enabled()
        with torch.enable_grad():
            outputs = ctx.again()
        # Where only the pooler is trained, say, the rows it pools have no gradient.
        ends = [(o, g) for o, g in zip(outputs, gradients, strict=True) if o.requires_grad]
        results, given = [o for o, _ in ends], [g for _, g in ends]
        found = iter(
            torch.autograd.grad(results, inputs, given, allow_unused=True, create_graph=twice)
        )
        return None, None, *(next(found) if want else None for want in wanted)
