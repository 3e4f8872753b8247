"""Prepared encoders on a GPU: all blocks of a model over the Plan's kernels, op by op.

Against the layers' own path, queries, keys and values are one product over joined weights (their
copies cost a third of the attention's weights in memory), and passes over few tokens are replayed
from CUDA graphs. The arithmetic of a row is that of the layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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
from fastbert.runtime.packing import PackedBatch
from fastbert.runtime.plan import Plan


@dataclass(frozen=True)
class _Product:
    """One product of a layer as an op of the Plan, over weights that stay as they are."""

    plan: Plan
    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None
    packed: Tensor | None
    factor: Tensor | None = None
    repeated: Tensor | None = None

    @classmethod
    def of(cls, parts: Sequence[Projection], plan: Plan) -> _Product:
        """Several projections of the same rows as one product."""
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
        self, x: Tensor, activation: str = "none", residual: Tensor | None = None
    ) -> Tensor:
        if self.scale is None:
            return self.plan.linear(x, self.weight, self.bias, activation, residual, self.packed)
        return self.plan.int8_linear(
            x, self.weight, self.scale, self.bias, activation, residual, self.packed, self.factor,
            self.repeated,
        )  # fmt: skip


@dataclass(frozen=True)
class _Layer:
    qkv: _Product
    out: _Product
    attention_norm: LayerNorm
    up: _Product
    down: _Product
    output_norm: LayerNorm


class GpuEncoder:
    """All blocks of an encoder over one Plan.

    Args:
        blocks: the layers, which `fastbert.engine.cpu_support.supports` has nothing against.
        plan: the backends; its device is where the weights are.
        recorder: records passes over few tokens; by default CUDA graphs on that device.

    Several threads may call one encoder, on any streams. Within another's recording of a CUDA
    graph it launches kernels plainly, so that they become part of that graph.
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
                _Product.of((block.q, block.k, block.v), plan),
                _Product.of((block.out,), plan),
                block.attention_norm,
                _Product.of((block.up,), plan),
                _Product.of((block.down,), plan),
                block.output_norm,
            )
            for block in blocks
        ]
        recorder = CudaRecorder(plan.device) if recorder is None else recorder
        self.graphs = Graphs(self._static, self.hidden, plan.dtype, plan.device, recorder)

    @property
    def pools(self) -> bool:
        """Whether it computes the pooler too: no."""
        return False

    def encode(
        self, inputs: EmbeddingInput, batch: PackedBatch, wanted: Wanted, context: ForwardContext
    ) -> EncoderOutput | None:
        """Compute one pass; see `fastbert.engine.encoder.Encoder.encode`.

        The hidden states are packed whatever form is wanted.
        """
        snapshot = context.snapshot
        if not snapshot.holds(contents=True):
            return None
        hidden = embed_and_project(snapshot.tables, inputs.packed(batch), context.plan)
        return EncoderOutput(packed=self(hidden, batch))

    def __call__(self, rows: Tensor, batch: PackedBatch) -> Tensor:
        """The rows after the last block.

        Args:
            rows: (batch.total, hidden) in the plan's dtype, on its device.
            batch: where the rows came from.

        Returns:
            (batch.total, hidden), new memory.

        Raises:
            ValueError: when the rows do not fit the batch or the plan.
        """
        expected = (batch.total, self.hidden)
        if rows.shape != expected or (rows.dtype, rows.device) != (
            self._plan.dtype,
            self._plan.device,
        ):
            raise ValueError(
                f"The rows must be {self._plan.dtype} {expected} on {self._plan.device} for this "
                f"batch and encoder, but they are {rows.dtype} {tuple(rows.shape)} on "
                f"{rows.device}."
            )
        with torch.no_grad():
            replayed = self.graphs(rows, batch)
            if replayed is not None:
                return replayed
            return self._static(Static(rows, batch.cu_seqlens, batch.max_seqlen, batch.key_bias))

    def _static(self, given: Static) -> Tensor:
        rows, block, plan = given.rows, self._block, self._plan
        for layer in self._layers:
            normed = layer.attention_norm(rows, plan) if block.pre_norm else rows
            qkv = layer.qkv(normed).view(rows.shape[0], 3, block.num_heads, block.head_dim)
            q, k, v = qkv.unbind(1)
            context = plan.attention_varlen(
                q, k, v, given.cu_seqlens, given.cu_seqlens, given.longest, given.longest,
                block.scale, False, given.key_bias,
            ).flatten(1)  # fmt: skip
            if block.pre_norm:
                rows = layer.out(context, residual=rows)
                hidden = layer.up(layer.output_norm(rows, plan), block.activation)
                rows = layer.down(hidden, residual=rows)
            else:
                rows = layer.attention_norm(layer.out(context), plan, rows)
                hidden = layer.up(rows, block.activation)
                rows = layer.output_norm(layer.down(hidden), plan, rows)
        return rows


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0].detach() if len(tensors) == 1 else torch.cat([t.detach() for t in tensors])


def _bias(part: Projection, dtype: torch.dtype) -> Tensor:
    if part.bias is not None:
        return part.bias
    device = (part.weight_scale if isinstance(part, Int8Linear) else part.weight).device
    return torch.zeros(part.out_features, dtype=dtype, device=device)
