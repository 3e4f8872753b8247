"""The prepared decoder of a CPU: a whole pass as one native call, over weights packed once.

Precision follows the weights: float32 ones are multiplied in float32, bfloat16 ones as bfloat16
with float32 sums. The residual stream stays float32 in both; queries, keys and values have the
precision of the model, as a cache holds them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastbert.engine.cpu_sources import (
    DTYPES,
    block_sizes,
    projection_size,
    projection_source,
    table_source,
    weight_source,
)
from fastbert.engine.decoder import DecoderInput, DecoderReading, DecoderWanted
from fastbert.kernels import cpu, native
from fastbert.layers.activation import XIELU
from fastbert.layers.cache_places import CacheSizes, opened, show
from fastbert.layers.decoder_block import DecoderBlock
from fastbert.layers.linear import Projection
from fastbert.layers.rms_norm import RMSNorm
from fastbert.ops.activations import kernel_activation
from fastbert.ops.operands import obstacle, unreadable
from fastbert.ops.xielu import slopes

if TYPE_CHECKING:
    from fastbert import _C

_XIELU = 8  # as in csrc/common/types.h


class CpuDecoder:
    """All layers of a decoder, and what stands around them, packed for the instruction set in use.

    Args:
        reading: what is packed; `fastbert.engine.decoder_support` has nothing against it.
        head: the projection to the vocabulary; None without one.
        dtype: of the model, and so of its results and caches.

    Several threads may call one decoder, with caches of their own.
    """

    def __init__(
        self, reading: DecoderReading, head: Projection | None, dtype: torch.dtype
    ) -> None:
        cpu.use_torch_threads()
        first = reading.blocks[0]
        self.dtype = dtype
        self.hidden = first.q.in_features
        self.vocabulary = None if head is None else head.out_features
        self._block, self._layers = first, len(reading.blocks)
        # Read in place. Whatever a caller does to its own, these stay where they are.
        self._kept: list[Tensor] = []
        act = first.activation
        code = _XIELU if isinstance(act, XIELU) else kernel_activation(act.name).code
        shape = native.library.DecoderShape(
            hidden=self.hidden,
            num_heads=first.num_heads,
            num_kv_heads=first.num_kv_heads,
            head_dim=first.head_dim,
            intermediate=first.up.out_features,
            activation=code,
            scale=first.scale,
            attention=DTYPES[dtype],
        )
        self._decoder = self._packed(shape, reading, head)

    def _packed(
        self, shape: _C.DecoderShape, reading: DecoderReading, head: Projection | None
    ) -> _C.Decoder:
        """Pack one part after the other, as CpuEncoder does."""
        sizes = [size for block in reading.blocks for size in block_sizes(block)]
        sizes += [] if head is None else [projection_size((head,))]
        alive: list[Tensor] = []
        packer = native.library.DecoderPacker(
            shape,
            table_source(reading.words, self.hidden, self._kept),
            DTYPES[reading.words.weight.dtype],
            _norm_source(reading.norm, self.hidden, alive),
            sizes,
        )
        alive.clear()
        for block in reading.blocks:
            packer.add_block(_block_source(block, self._kept, alive))
            alive.clear()
        if head is not None:
            packer.set_head(projection_source((head,), self._kept, alive))
            alive.clear()
        return packer.finish()

    @property
    def scores(self) -> bool:
        """Whether it holds a head that scores the vocabulary."""
        return self.vocabulary is not None

    @property
    def packed_bytes(self) -> int:
        """Memory of the packed weights."""
        return int(self._decoder.packed_bytes)

    @property
    def arena_bytes(self) -> int:
        """Memory kept for passes: as much as the largest so far needed, per concurrent caller."""
        return int(self._decoder.arena_bytes)

    def decode(
        self, inputs: DecoderInput, wanted: DecoderWanted, watch: _C.Watch | None = None
    ) -> Tensor | None:
        """Compute one pass in one native call; see `fastbert.engine.decoder.Decoder.decode`."""
        given: dict[str, object] = {
            name: x for name, x in vars(inputs).items() if isinstance(x, Tensor)
        }
        if obstacle(*given.values()) is not None:
            raise unreadable("decoder", given)
        alive: list[Tensor] = []
        total = inputs.total
        ids, embeds = inputs.ids, inputs.embeds
        source = native.library.DecoderInput(
            ids=0 if ids is None else _vector("ids", ids, torch.int64, total, alive),
            x=0 if embeds is None else self._rows(embeds, total, alive),
            dtype=0 if embeds is None else DTYPES[embeds.dtype],
            x_stride=self.hidden,
            total=total,
            cu_seqlens=_vector("cu_seqlens", inputs.cu_seqlens, torch.int32, None, alive),
            batch=inputs.cu_seqlens.shape[0] - 1,
            cos=self._angles("cos", inputs.cos, total, alive),
            sin=self._angles("sin", inputs.sin, total, alive),
            causal=inputs.causal,
            cache=self._places(inputs, alive),
        )
        out, results = self._results(total, wanted, alive)
        if not self._decoder.run(source, results, torch.get_num_threads(), watch):
            return None
        if inputs.cache is not None:
            show(inputs.cache, inputs.past, inputs.past + inputs.new, inputs.first)
        return out

    def _results(
        self, total: int, wanted: DecoderWanted, alive: list[Tensor]
    ) -> tuple[Tensor, _C.DecoderOutput]:
        tokens = wanted.tokens
        rows = total if tokens is None else tokens.shape[0]
        width = self.vocabulary if wanted.scores else self.hidden
        if width is None:
            raise ValueError("This decoder was prepared without a head, so it scores nothing.")
        out = torch.empty((rows, width), dtype=self.dtype, device="cpu")
        address = out.data_ptr()
        results = native.library.DecoderOutput(
            tokens=0 if tokens is None else _vector("tokens", tokens, torch.int64, rows, alive),
            rows=rows,
            dtype=DTYPES[self.dtype],
            hidden=0 if wanted.scores else address,
            hidden_stride=self.hidden,
            scores=address if wanted.scores else 0,
            scores_stride=width,
        )
        return out, results

    def _rows(self, embeds: Tensor, total: int, alive: list[Tensor]) -> int:
        if embeds.shape != (total, self.hidden) or embeds.dtype not in DTYPES:
            raise ValueError(
                f"Embeddings must be floating, of shape {(total, self.hidden)}, but they are "
                f"{embeds.dtype} {tuple(embeds.shape)}."
            )
        alive.append(embeds.contiguous())
        return alive[-1].data_ptr()

    def _angles(self, name: str, x: Tensor, total: int, alive: list[Tensor]) -> int:
        shape = (total, self._block.head_dim // 2)
        if x.shape != shape or x.dtype is not torch.float32:
            raise ValueError(f"{name} must be float32 {shape}, not {x.dtype} {tuple(x.shape)}.")
        alive.append(x.contiguous())
        return alive[-1].data_ptr()

    def _places(self, inputs: DecoderInput, alive: list[Tensor]) -> _C.CachePlaces | None:
        cache, block = inputs.cache, self._block
        if cache is None:
            return None
        batch, end = inputs.cu_seqlens.shape[0] - 1, inputs.past + inputs.new
        sizes = CacheSizes(self._layers, batch, block.num_kv_heads, block.head_dim, self.dtype, end)
        table = opened(cache, sizes)
        starts = torch.arange(0, table.rows, max(table.capacity, 1), device="cpu")
        held = torch.full((batch,), inputs.past, device="cpu")
        if inputs.first is not None:
            starts, held = starts + inputs.first, (held - inputs.first).clamp(min=0)
        alive.append(table.addresses)
        return native.library.CachePlaces(
            layers=table.addresses.data_ptr(),
            rows=table.rows,
            row_stride=table.row_stride,
            head_stride=table.head_stride,
            places=_vector("places", starts, torch.int64, batch, alive),
            held=_vector("held", held, torch.int64, batch, alive),
        )


def _vector(
    name: str, x: Tensor, dtype: torch.dtype, length: int | None, alive: list[Tensor]
) -> int:
    """Return the address of a vector of indices, which is appended to `alive`."""
    if x.dtype is not dtype or x.dim() != 1 or length not in (None, x.shape[0]):
        raise ValueError(f"{name} must be {dtype} ({length},), not {x.dtype} {tuple(x.shape)}.")
    if x.device.type != "cpu":
        raise ValueError(f"{name} must be on the CPU, not on {x.device}.")
    alive.append(x.contiguous())
    return alive[-1].data_ptr()


def _block_source(
    block: DecoderBlock, kept: list[Tensor], alive: list[Tensor]
) -> _C.DecoderBlockSource:
    """Describe the weights of one layer."""
    hidden, dim = block.q.in_features, block.head_dim
    activation = block.activation
    numbers: dict[str, float] = {}
    if isinstance(activation, XIELU):
        given = (activation.alpha_p, activation.alpha_n, activation.beta)
        square, exponential = slopes(*(x.detach().double() for x in given))
        numbers = {
            "activation_a": float(square),
            "activation_b": float(exponential),
            "activation_c": float(activation.beta),
            "activation_d": float(activation.eps),
        }
    else:
        kernel = kernel_activation(activation.name)
        numbers = {"activation_a": kernel.a, "activation_b": kernel.b}
    return native.library.DecoderBlockSource(
        attention_norm=_norm_source(block.attention_norm, hidden, alive),
        qkv=projection_source((block.q, block.k, block.v), kept, alive),
        query_norm=_norm_source(block.q_norm, dim, alive),
        key_norm=_norm_source(block.k_norm, dim, alive),
        out=projection_source((block.out,), kept, alive),
        feedforward_norm=_norm_source(block.feedforward_norm, hidden, alive),
        up=projection_source((block.up,), kept, alive),
        down=projection_source((block.down,), kept, alive),
        **numbers,
    )


def _norm_source(norm: RMSNorm, width: int, alive: list[Tensor]) -> _C.RmsNormSource:
    weight, code = weight_source(norm.weight, width, alive)
    return native.library.RmsNormSource(weight=weight, weight_dtype=code, eps=norm.variance_epsilon)
