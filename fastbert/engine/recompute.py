"""Gradients of passes that kernels computed: the backward pass computes them on the reference.

This serves models in eval mode that are called without torch.no_grad(), often by callers who want
only the result: the forward pass costs no more than without gradients and keeps no activations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
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
        The result; None where there is no prepared encoder, its weights keep changing, or hooks on
        them look at their gradients.

    Raises:
        StaleModel: when the model has changed since the snapshot was taken.
    """
    snapshot = reference.snapshot
    if any(map(_hooks_of, snapshot.parameters)):
        return None
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

    given = {f.name: getattr(inputs, f.name) for f in fields(inputs)}
    given = {name: tensor for name, tensor in given.items() if tensor is not None}

    def again(*aliases: Tensor) -> tuple[Tensor, ...]:
        cache.gradients.flowed()
        if any(map(_hooks_of, snapshot.parameters)):
            raise RuntimeError(
                f"A hook on a weight of this {type(model).__name__} came between its forward and "
                "its backward pass, and would run twice; register it before the forward pass."
            )
        if list(map(id, model.parameters())) != list(map(id, snapshot.parameters)):
            raise RuntimeError(
                f"A weight of this {type(model).__name__} was replaced between its forward and "
                "its backward pass, so that the gradients of the forward pass are lost."
            )
        tables, blocks = snapshot.tables, snapshot.blocks
        same = replace(inputs, **dict(zip(given, aliases, strict=True)))
        hidden = encode_inputs(tables, blocks, same, batch, reference.plan, options).packed
        assert hidden is not None
        found = (batch.pad(hidden) if wanted.padded else hidden,)
        if not pooled:
            return found
        first = hidden.index_select(0, batch.first_token_rows())
        assert snapshot.pooler is not None
        return (*found, project(snapshot.pooler, first, reference.plan, "tanh"))

    hidden, *rest = recomputed(compute, again, list(given.values()), snapshot.parameters)
    first = rest[0] if pooled else None
    if wanted.padded:
        return EncoderOutput(grid=hidden, pooled=first)
    return EncoderOutput(packed=hidden, pooled=first)


def _hooks_of(parameter: Tensor) -> Any:
    """Return what was hung on the gradient of a parameter, None or nothing where nothing was."""
    return parameter._backward_hooks


def recomputed(
    compute: Callable[[], tuple[Tensor, ...]],
    again: Callable[..., tuple[Tensor, ...]],
    given: Sequence[Tensor],
    leaves: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """Call compute(), and give its results the gradients of again().

    Args:
        compute: computes the results by kernels without a backward pass.
        again: computes the same results by differentiable ops; every backward pass calls it, with
            the tensors of `given`. Of what needs gradients it gets other tensors of the same
            values, since hooks on those of the caller run where autograd goes on from here.
        given: the inputs that both compute from. Changing one in place before the backward pass is
            an error, as in all of autograd.
        leaves: the parameters that they compute from, likewise; they have no hooks.

    Returns:
        The results of compute().
    """
    outputs: tuple[Tensor, ...] = _Recomputed.apply(  # type: ignore[no-untyped-call]
        compute, again, len(given), *given, *leaves
    )
    return outputs


class _Gate:
    """Lets no gradient through while it is entered."""

    closed = False

    def __enter__(self) -> None:
        self.closed = True

    def __exit__(self, *_: object) -> None:
        self.closed = False


def _apart(tensor: Tensor, gate: _Gate | None) -> Tensor:
    """Return a tensor in the place of one that needs gradients, apart from its graph.

    What the caller computed it from belongs to the caller's graph: autograd goes through that
    by itself, and hooks and parameters there must see the gradients once.

    Args:
        tensor: what the caller gave.
        gate: where gradients of gradients are wanted, for which both graphs must be one; closed
            while the first gradients are computed.
    """
    if not tensor.requires_grad:
        return tensor
    if gate is None:
        return tensor.detach().requires_grad_(True)
    passed: Tensor = _Passed.apply(gate, tensor)  # type: ignore[no-untyped-call]
    return passed


class _Passed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: _Gate, tensor: Tensor) -> Tensor:
        ctx.gate = gate
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, torch.zeros_like(gradient) if ctx.gate.closed else gradient


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, compute: Any, again: Any, given: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = compute()
        ctx.again, ctx.given = again, given
        # A result that nobody used has no gradient, and its own weights shall have none either.
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # autograd raises here where one was modified
        wanted = ctx.needs_input_grad[3:]
        twice = torch.is_grad_enabled()
        with torch.enable_grad():
            gate = _Gate()
            given = [_apart(t, gate if twice else None) for t in saved[: ctx.given]]
            outputs = ctx.again(*given)
        pairs = zip((*given, *saved[ctx.given :]), wanted, strict=True)
        inputs = [tensor for tensor, want in pairs if want]
        # Where only the pooler is trained, for example, the hidden states require no gradient.
        both = zip(outputs, gradients, strict=True)
        used = [(o, g) for o, g in both if g is not None and o.requires_grad]
        results, ends = [o for o, _ in used], [g for _, g in used]
        with gate:
            found = iter(
                torch.autograd.grad(results, inputs, ends, allow_unused=True, create_graph=twice)
            )
        return None, None, None, *(next(found) if want else None for want in wanted)
