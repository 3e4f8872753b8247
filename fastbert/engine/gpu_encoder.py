"""Prepared encoders on a GPU: all blocks of a model over the Plan's kernels, op by op.

They differ from the layers' own path in two ways: queries, keys and values come from one gemm over
joined weights (their own, which adjoin, or where they cannot, a copy), and passes over few tokens
are replayed from CUDA graphs. Every token goes through the arithmetic of the layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastbert.engine.adjoining import adjoining
from fastbert.engine.cuda_graphs import (
    CudaRecorder,
    Graphs,
    Recorder,
    Static,
)
from fastbert.engine.encoder import ForwardContext, Wanted
from fastbert.layers.block import Block
from fastbert.layers.embeddings import EmbeddingInput, embed_and_project
from fastbert.layers.encoder import EncoderOutput
from fastbert.layers.linear import Int8Linear, Linear, Projection
from fastbert.layers.norm import LayerNorm
from fastbert.layers.score_bias import ScoreBias
from fastbert.ops.activations import Activation
from fastbert.runtime.packing import PackedBatch
from fastbert.runtime.plan import Plan


@dataclass(frozen=True)
class _Projection:
    """One gemm of a layer as an op of the Plan, over weights that do not change.

    Attributes:
        plan: the backends.
        weight: the weight of a Linear, (out_features, in_features), or qweight of an Int8Linear.
        bias: (out_features,); None adds nothing.
        scale: weight_scale of an Int8Linear, float32 (out_features,); None for a Linear.
        packed: the weight in the kernel's own order; None where the kernel takes it as it is.
        factor: that of an Int8Linear, None for a Linear.
        repeated: that of an Int8Linear, None for a Linear.
    """

    plan: Plan
    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None
    packed: Tensor | None
    factor: Tensor | None = None
    repeated: Tensor | None = None

    @classmethod
    def of(cls, parts: Sequence[Projection], plan: Plan) -> _Projection:
        """Join projections of the same hidden states into one gemm, their outputs side by side."""
        bias = None
        if any(part.bias is not None for part in parts):
            bias = _joined([_bias(part, plan.dtype) for part in parts])
        if isinstance(parts[0], Int8Linear):
            int8 = [part for part in parts if isinstance(part, Int8Linear)]
            weight = _joined([part.qweight for part in int8])
            scale = _joined([part.weight_scale for part in int8])
            packed = plan.prepack("int8_linear", weight)
            factor, repeated = parts[0].factor, parts[0].repeated
            return cls(plan, weight, bias, scale, packed, factor, repeated)
        weight = _joined([part.weight for part in parts if isinstance(part, Linear)])
        return cls(plan, weight, bias, None, plan.prepack("linear", weight))

    def __call__(
        self, x: Tensor, activation: str | Activation = "none", residual: Tensor | None = None
    ) -> Tensor:
        if self.scale is None:
            return self.plan.linear(x, self.weight, self.bias, activation, residual, self.packed)
        return self.plan.int8_linear(
            x, self.weight, self.scale, self.bias, activation, residual, self.packed, self.factor,
            self.repeated,
        )  # fmt: skip


@dataclass(frozen=True)
class _Layer:
    """The projections and norms of one block, with queries, keys and values joined."""

    qkv: _Projection
    out: _Projection
    attention_norm: LayerNorm
    up: _Projection
    down: _Projection
    output_norm: LayerNorm


class GpuEncoder:
    """All blocks of an encoder over one Plan.

    Several threads may call one encoder, on any streams. While a caller records a CUDA graph, the
    encoder launches its kernels plainly, so that they become part of that graph.

    Args:
        blocks: the layers; `fastbert.engine.cpu_support.supports` must have no reason against them.
        plan: the backends; its device is where the weights are.
        recorder: records passes over few tokens; None for CUDA graphs on the plan's device.

    Attributes:
        hidden: size of a hidden state.
        graphs: the recorded passes.
    """

    def __init__(
        self, blocks: Sequence[Block], plan: Plan, recorder: Recorder | None = None
    ) -> None:
        first = blocks[0]
        self.hidden = first.q.in_features
        self._plan = plan
        self._block = first
        self._layers = [
            _Layer(
                _Projection.of((block.q, block.k, block.v), plan),
                _Projection.of((block.out,), plan),
                block.attention_norm,
                _Projection.of((block.up,), plan),
                _Projection.of((block.down,), plan),
                block.output_norm,
            )
            for block in blocks
        ]
        recorder = CudaRecorder(plan.device) if recorder is None else recorder
        self.graphs = Graphs(self._static, self.hidden, plan.dtype, plan.device, recorder)

    @property
    def pools(self) -> bool:
        """Whether the encoder computes the pooler too; it never does."""
        return False

    def encode(
        self,
        inputs: EmbeddingInput,
        batch: PackedBatch,
        wanted: Wanted,
        context: ForwardContext,
        bias: ScoreBias | None = None,
    ) -> EncoderOutput | None:
        """See Encoder.encode.

        The hidden states are packed, whatever form is wanted.

        Raises:
            ValueError: where something is to be added to the scores.
        """
        if bias is not None:
            raise ValueError(
                "The prepared encoder of a GPU adds nothing to attention scores; compute such a "
                "pass op by op."
            )
        snapshot = context.snapshot
        if not snapshot.holds(contents=True):
            return None
        hidden = embed_and_project(snapshot.tables, inputs.packed(batch), context.plan)
        return EncoderOutput(packed=self(hidden, batch))

    def __call__(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Compute all blocks.

        Args:
            hidden: (batch.total, hidden), packed hidden states in the plan's dtype, on its device.
            batch: where the tokens came from.

        Returns:
            The hidden states after the last block, (batch.total, hidden), in new memory.

        Raises:
            ValueError: when the hidden states do not fit the batch or the plan.
        """
        expected = (batch.total, self.hidden)
        if hidden.shape != expected or (hidden.dtype, hidden.device) != (
            self._plan.dtype,
            self._plan.device,
        ):
            raise ValueError(
                f"The hidden states must be {self._plan.dtype} {expected} on {self._plan.device} "
                f"for this batch and encoder, but they are {hidden.dtype} {tuple(hidden.shape)} on "
                f"{hidden.device}."
            )
        with torch.no_grad():
            replayed = self.graphs(hidden, batch)
            if replayed is not None:
                return replayed
            return self._static(Static(hidden, batch.cu_seqlens, batch.max_seqlen, batch.key_bias))

    def _static(self, given: Static) -> Tensor:
        hidden, block, plan = given.rows, self._block, self._plan
        for layer in self._layers:
            normed = layer.attention_norm(hidden, plan) if block.pre_norm else hidden
            qkv = layer.qkv(normed).view(hidden.shape[0], 3, block.num_heads, block.head_dim)
            q, k, v = qkv.unbind(1)
            context = plan.attention_varlen(
                q, k, v, given.cu_seqlens, given.cu_seqlens, given.longest, given.longest,
                block.scale, False, given.key_bias,
            ).flatten(1)  # fmt: skip
            if block.pre_norm:
                hidden = layer.out(context, residual=hidden)
                wide = layer.up(layer.output_norm(hidden, plan), block.activation)
                hidden = layer.down(wide, residual=hidden)
            else:
                hidden = layer.attention_norm(layer.out(context), plan, hidden)
                wide = layer.up(hidden, block.activation)
                hidden = layer.output_norm(layer.down(wide), plan, hidden)
        return hidden


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    if len(tensors) == 1:
        return tensors[0].detach()
    whole = adjoining(tensors)
    return torch.cat([t.detach() for t in tensors]) if whole is None else whole


def _bias(part: Projection, dtype: torch.dtype) -> Tensor:
    if part.bias is not None:
        return part.bias
    device = (part.weight_scale if isinstance(part, Int8Linear) else part.weight).device
    return torch.zeros(part.out_features, dtype=dtype, device=device)
