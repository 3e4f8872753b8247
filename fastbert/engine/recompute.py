"""Gradients of passes that kernels computed: the backward pass computes them on the reference.

This serves models in eval mode that are called without torch.no_grad(), often by callers who want
only the result: the forward pass costs no more than without gradients and keeps no activations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastbert.engine.encoder import ForwardContext, Wanted
from fastbert.engine.encoder_cache import EncoderCache
from fastbert.layers.embeddings import EmbeddingInput
from fastbert.layers.encoder import EncoderOutput, ForwardOptions, encode_inputs
from fastbert.layers.linear import project
from fastbert.runtime.packing import PackedBatch


def recomputed_pass(
    model: nn.Module,
    cache: EncoderCache,
    inputs: EmbeddingInput,
    batch: PackedBatch,
    options: ForwardOptions,
    wanted: Wanted,
    reference: ForwardContext,
    kernels: ForwardContext,
) -> EncoderOutput | None:
    """Compute a pass on the prepared encoder whose gradients are computed layer by layer.

    Args:
        model: the encoder model, whose parameters must still be those of the snapshot when
            gradients are computed.
        cache: the model's prepared encoder.
        inputs: indices over the padded grid, or embeddings in the place of word ids.
        batch: the tokens of that grid that are computed.
        options: the options of the pass; only those that a prepared encoder serves.
        wanted: the form of the result.
        reference: the context of the backward pass.
        kernels: the context of the forward pass.

    Returns:
        The result; None where there is no prepared encoder, or its weights keep changing.

    Raises:
        StaleModel: when the model has changed since the snapshot was taken.
    """
    snapshot = reference.snapshot
    encoder = cache.settled_encoder(snapshot, kernels.plan)
    if encoder is None:
        return None
    pooled = wanted.first_column and encoder.pools

    def compute() -> tuple[Tensor, ...]:
        done = encoder.encode(inputs, batch, wanted, kernels)
        if done is None:
            raise cache.stale(snapshot)
        values = (done.grid if wanted.padded else done.packed, done.pooled)
        return tuple(value for value in values if value is not None)

    def again() -> tuple[Tensor, ...]:
        cache.gradients.flowed()
        if list(map(id, model.parameters())) != list(map(id, snapshot.parameters)):
            raise RuntimeError(
                f"A weight of this {type(model).__name__} was replaced between its forward and "
                "its backward pass, so that the gradients of the forward pass are lost."
            )
        tables, blocks = snapshot.tables, snapshot.blocks
        hidden = encode_inputs(tables, blocks, inputs, batch, reference.plan, options).packed
        assert hidden is not None
        found = (batch.pad(hidden) if wanted.padded else hidden,)
        if not pooled:
            return found
        first = hidden.index_select(0, batch.first_token_rows())
        assert snapshot.pooler is not None
        return (*found, project(snapshot.pooler, first, reference.plan, "tanh"))

    leaves = [*snapshot.parameters, *([] if inputs.embeds is None else [inputs.embeds])]
    hidden, *rest = recomputed(compute, again, leaves)
    first = rest[0] if pooled else None
    if wanted.padded:
        return EncoderOutput(grid=hidden, pooled=first)
    return EncoderOutput(packed=hidden, pooled=first)


def recomputed(
    compute: Callable[[], tuple[Tensor, ...]],
    again: Callable[[], tuple[Tensor, ...]],
    leaves: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """Call compute(), and give its results the gradients of again().

    Args:
        compute: computes the results by kernels without a backward pass.
        again: computes the same results by differentiable ops; every backward pass calls it.
        leaves: the tensors that both compute from, with or without requires_grad. Changing one in
            place before the backward pass is an error, as in all of autograd.

    Returns:
        The results of compute().
    """
    outputs: tuple[Tensor, ...] = _Recomputed.apply(  # type: ignore[no-untyped-call]
        compute, again, *leaves
    )
    return outputs


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compute: Any, again: Any, *leaves: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = compute()
        ctx.again = again
        # A result that nobody used has no gradient, and its own weights shall have none either.
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*leaves)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        leaves = ctx.saved_tensors  # autograd raises here where one was modified
        wanted = ctx.needs_input_grad[2:]
        inputs = [leaf for leaf, want in zip(leaves, wanted, strict=True) if want]
        twice = torch.is_grad_enabled()
        with torch.enable_grad():
            outputs = ctx.again()
        # Where only the pooler is trained, for example, the hidden states require no gradient.
        pairs = zip(outputs, gradients, strict=True)
        ends = [(o, g) for o, g in pairs if g is not None and o.requires_grad]
        results, given = [o for o, _ in ends], [g for _, g in ends]
        found = iter(
            torch.autograd.grad(results, inputs, given, allow_unused=True, create_graph=twice)
        )
        return None, None, *(next(found) if want else None for want in wanted)
