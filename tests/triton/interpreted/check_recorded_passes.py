"""A GPU's prepared encoder over interpreted kernels: buckets larger than their batch change no bit.

The recorder runs the function again in place of a replay; what a CUDA graph adds needs a device.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fastbert.engine.gpu_encoder import GpuEncoder
from fastbert.kernels import kernel
from fastbert.layers.encoder import ForwardOptions, encode
from fastbert.layers.linear import Int8Linear
from fastbert.modeling.quantization import quantize_weight
from fastbert.models.bert import BertModel
from fastbert.ops.attention_varlen import OP
from fastbert.runtime.packing import PackedBatch
from fastbert.runtime.plan import build_plan
from fastbert.testing import parity

attention_varlen = kernel("triton", "attention_varlen")


@dataclasses.dataclass
class Again:
    run: Callable[[], None]

    def replay(self) -> None:
        self.run()


class Recorder:
    recordings = 0

    def busy(self) -> bool:
        return False

    @contextlib.contextmanager
    def turn(self, buffers: tuple[Tensor, ...]) -> Iterator[None]:
        yield

    def record(self, run: Callable[[], None]) -> Again:
        self.recordings += 1
        return Again(run)

    def settle(self) -> None:
        pass


def int8(part: Any) -> Int8Linear:
    out = Int8Linear(part.in_features, part.out_features)
    out.qweight, out.weight_scale = quantize_weight(part.weight)
    out.bias = torch.nn.Parameter(part.bias.clone(), requires_grad=False)
    return out


@pytest.mark.parametrize("kind", ["float16", "int8"])
def check_bits(kind: str) -> None:
    torch.manual_seed(0)
    dtype = torch.float16 if kind == "float16" else torch.float32
    config = BertModel.config_class(
        vocab_size=50, hidden_size=64, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=96, max_position_embeddings=64, initializer_range=0.1,
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False).eval().requires_grad_(False).to(dtype)
    blocks = list(model.blocks())
    if kind == "int8":
        names = ("q", "k", "v", "out", "up", "down")
        blocks = [
            dataclasses.replace(block, **{name: int8(getattr(block, name)) for name in names})
            for block in blocks
        ]
    plan = build_plan(model.traits(), "cpu", dtype, "triton", strict=True)
    recorder = Recorder()
    encoder = GpuEncoder(blocks, plan, recorder)
    with torch.inference_mode():
        for lengths in ([5, 0, 14, 1], [3, 6, 9]):
            batch = PackedBatch.from_lengths(lengths)
            rows = torch.randn(batch.total, 64).to(dtype)
            layers = encode(blocks, rows, batch, plan, ForwardOptions()).packed
            for _ in range(3):
                if encoder.graphs._buffers is not None:
                    encoder.graphs._buffers.rows[batch.total :] = float("nan")
                assert torch.equal(encoder(rows, batch), layers), lengths
    assert recorder.recordings == 1  # both batches fit into one bucket


def check_rows_behind_the_last_offset_are_nobody_s() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 40, 2, 32)
    offsets = torch.tensor([0, 9, 9, 30], dtype=torch.int32)
    given = {"q": q[:30], "k": k[:30], "v": v[:30], "cu_seqlens_q": offsets,
             "cu_seqlens_k": offsets, "max_seqlen_q": 21, "max_seqlen_k": 21,
             "scale": 0.2}  # fmt: skip
    for spoiled in (q, k, v):
        spoiled[30:] = float("nan")
    padded = torch.cat([offsets, offsets.new_full((4,), 30)])
    wide = attention_varlen(q, k, v, padded, padded, 32, 32, 0.2)
    assert torch.equal(wide[:30], attention_varlen(**given))
    assert parity(OP, attention_varlen, given, torch.float32).ok
