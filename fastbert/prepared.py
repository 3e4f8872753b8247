"""Prepared encoders: all blocks of a model in one native call, over weights packed once.

`Preparation` is what a model keeps. It packs the blocks' weights the first time they are run, packs
them again when any of them has changed, and says why where it cannot serve. On a GPU it keeps the
encoder of `fastbert.prepared_gpu` in the same way.

Precision follows the weights: float32 and float16 ones are multiplied in float32, bfloat16 ones as
bfloat16 with float32 sums, int8 ones with their rows quantised on the way in. The residual stream
stays float32 in all of them; attention is bfloat16 wherever its output projection is not float32.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from fastbert import native
from fastbert.backend import Plan
from fastbert.layers.block import Block
from fastbert.layers.linear import Int8Linear, Linear, Projection
from fastbert.layers.norm import LayerNorm
from fastbert.ops.activations import KERNEL_ACTIVATIONS
from fastbert.packing import PackedBatch
from fastbert.prepared_gpu import GpuEncoder

_OPS = ("attention_varlen", "add_layer_norm")
# Codes of csrc/common/types.h and csrc/cpu/encoder.h.
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_INT8 = 4
_PRECISIONS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 0, torch.int8: 2}


def supports(blocks: Sequence[Block], plan: Plan) -> str | None:
    """None when the blocks can be prepared for this plan, else the reason."""
    return _plan_reason(blocks, plan) or _block_reason(blocks)


def _plan_reason(blocks: Sequence[Block], plan: Plan) -> str | None:
    kinds = {type(block.out) for block in blocks} | {type(block.down) for block in blocks}
    linear = ["int8_linear" if kind is Int8Linear else "linear" for kind in kinds]
    for op in (*_OPS, *sorted(linear)):
        choice = plan.choice(op)
        if choice.backend == "reference" or (choice.backend != "cpu") == _on_cpu(plan):
            return f"the plan computes {op} on {choice.backend}"
    return None if plan.dtype in _DTYPES else f"there are no kernels for {plan.dtype}"


def _on_cpu(plan: Plan) -> bool:
    return plan.device.type == "cpu"


def _block_reason(blocks: Sequence[Block]) -> str | None:
    if not blocks:
        return "there are no blocks"
    first = blocks[0]
    for block in blocks:
        if block.distances is not None:
            return "relative positions are added to the scores"
        if _shape(block) != _shape(first):
            return "the blocks differ in shape or kind"
        for group in ((block.q, block.k, block.v), (block.out,), (block.up,), (block.down,)):
            kinds = {type(part) for part in group}
            if kinds != {Linear} and kinds != {Int8Linear}:
                names = ", ".join(sorted(kind.__name__ for kind in kinds))
                return f"a projection is computed by {names}"
    if first.activation not in KERNEL_ACTIVATIONS:
        return f"kernels do not compute the activation {first.activation!r}"
    if any(module._forward_hooks or module._forward_pre_hooks for module in _modules(blocks)):
        return "there are hooks on parts of the blocks"
    return None


@dataclass(frozen=True)
class StepTime:
    """Time of one step of one block in one pass, in seconds of wall time, all threads at work."""

    block: int
    step: str
    seconds: float


class PreparedEncoder:
    """All blocks of an encoder, packed for the instruction set in use.

    Args:
        blocks: the layers, which `supports` has nothing against.

    Several threads may call one encoder, or different ones, at the same time.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        extension = native.extension()
        first = blocks[0]
        self.hidden = first.q.in_features
        # The sources hold addresses only: what they point to must live until they are packed.
        alive: list[Tensor] = []
        self._encoder = extension.Encoder(
            [_block_source(extension, block, alive) for block in blocks],
            hidden=self.hidden,
            num_heads=first.num_heads,
            head_dim=first.head_dim,
            intermediate=first.up.out_features,
            activation=KERNEL_ACTIVATIONS[first.activation],
            pre_norm=first.pre_norm,
            scale=first.scale,
            attention_dtype=_attention_code(blocks),
        )
        alive.clear()

    @property
    def packed_bytes(self) -> int:
        """Memory of the packed weights."""
        return int(self._encoder.packed_bytes)

    @property
    def arena_bytes(self) -> int:
        """Memory kept for passes: as much as the largest so far needed, per concurrent caller."""
        return int(self._encoder.arena_bytes)

    def __call__(self, rows: Tensor, batch: PackedBatch) -> Tensor:
        """The rows after the last block.

        Args:
            rows: (batch.total, hidden), float32, bfloat16 or float16.
            batch: where the rows came from.

        Returns:
            (batch.total, hidden), rows.dtype.

        Raises:
            ValueError: when rows and batch do not fit together or to the encoder.
        """
        out = torch.empty((batch.total, self.hidden), dtype=rows.dtype)
        arguments, _alive = self._arguments(rows, batch)
        self._encoder.run(
            *arguments, out.data_ptr(), _DTYPES[rows.dtype], self.hidden, 0, batch.total
        )
        return out

    def padded(self, rows: Tensor, batch: PackedBatch) -> Tensor:
        """The same as (batch_size, seqlen, hidden), zero where a token was removed."""
        shape = (batch.batch_size, batch.seqlen, self.hidden)
        out = torch.empty(shape, dtype=rows.dtype)
        arguments, _alive = self._arguments(rows, batch)
        indices = batch.indices
        if indices is not None:
            indices = indices.contiguous()
            if indices.shape != (batch.total,) or indices.dtype is not torch.int64:
                raise ValueError("batch.indices must be int64, one entry per packed row.")
        self._encoder.run(
            *arguments,
            out.data_ptr(),
            _DTYPES[rows.dtype],
            self.hidden,
            0 if indices is None else indices.data_ptr(),
            batch.batch_size * batch.seqlen,
        )
        return out

    def profile(self, rows: Tensor, batch: PackedBatch) -> list[StepTime]:
        """One pass, and where its time went. Arguments are those of a call."""
        out = torch.empty((batch.total, self.hidden), dtype=rows.dtype)
        arguments, _alive = self._arguments(rows, batch)
        spent, threads = self._encoder.profile(
            *arguments, out.data_ptr(), _DTYPES[rows.dtype], self.hidden, 0, batch.total
        )
        steps = list(self._encoder.steps)
        return [
            StepTime(i // len(steps), steps[i % len(steps)], nanoseconds / threads * 1e-9)
            for i, nanoseconds in enumerate(spent)
        ]

    def _arguments(self, rows: Tensor, batch: PackedBatch) -> tuple[tuple[Any, ...], list[Tensor]]:
        """The leading arguments of a native call, and the tensors they point into."""
        if rows.device.type != "cpu" or rows.dtype not in _DTYPES:
            raise ValueError(
                "A prepared encoder takes float32, bfloat16 or float16 rows on the CPU, but it was "
                f"given {rows.dtype} on {rows.device}."
            )
        if rows.shape != (batch.total, self.hidden):
            raise ValueError(
                f"The rows must have shape ({batch.total}, {self.hidden}) for this batch and "
                f"encoder, but they have {tuple(rows.shape)}."
            )
        rows = rows if rows.stride(1) == 1 and rows.stride(0) >= self.hidden else rows.contiguous()
        cu_seqlens = batch.cu_seqlens.contiguous()
        if (
            cu_seqlens.dtype is not torch.int32
            or cu_seqlens.device.type != "cpu"
            or cu_seqlens.shape != (batch.batch_size + 1,)
        ):
            raise ValueError(
                f"cu_seqlens must be int32 ({batch.batch_size + 1},) on the CPU, but it is "
                f"{cu_seqlens.dtype} {tuple(cu_seqlens.shape)} on {cu_seqlens.device}."
            )
        alive = [rows, cu_seqlens]
        key_bias = 0
        if batch.key_bias is not None:
            bias = batch.key_bias.to(torch.float32).contiguous()
            if bias.shape != (batch.total,) or bias.device.type != "cpu":
                raise ValueError(
                    f"key_bias must have shape ({batch.total},) on the CPU, but it has "
                    f"{tuple(bias.shape)} on {bias.device}."
                )
            alive.append(bias)
            key_bias = bias.data_ptr()
        native.extension().set_num_threads(torch.get_num_threads())
        arguments = (
            rows.data_ptr(),
            _DTYPES[rows.dtype],
            max(rows.stride(0), self.hidden),
            batch.total,
            cu_seqlens.data_ptr(),
            batch.batch_size,
            batch.max_seqlen,
            key_bias,
        )
        return arguments, alive


class Preparation:
    """The prepared encoder of a model's blocks: made when first asked for, and again whenever a
    weight, the instruction set, the Plan of a GPU or the set of layers has changed since."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._state: _State | None = None

    def encoder(self, blocks: Sequence[Block], plan: Plan) -> PreparedEncoder | GpuEncoder | None:
        """The encoder for these blocks, None where `supports` has a reason against it."""
        if _plan_reason(blocks, plan) is not None:
            return None
        state = self._state
        if state is None or not state.holds(blocks, plan):
            with self._lock:
                state = self._state
                if state is None or not state.holds(blocks, plan):
                    self._state = None  # its packed weights go before the new ones come
                    state = self._state = _State(blocks, plan)
        return state.encoder

    def __deepcopy__(self, memo: Any) -> Preparation:
        return Preparation()

    def __reduce__(self) -> tuple[Any, ...]:
        return (Preparation, ())


class _State:
    """A prepared encoder, and what it was made from, in a form that is quick to compare."""

    def __init__(self, blocks: Sequence[Block], plan: Plan) -> None:
        self.kernels = _kernels(plan)
        self.modules = list(_modules(blocks))
        self.shapes = [_shape(block) for block in blocks]
        self.tensors = [
            (holder, name) for module in self.modules for holder, name in _holders(module)
        ]
        self.versions = self._versions()
        # Kept alive, so that no other weight can appear at the same address.
        self.kept = [
            holder[name].detach() for holder, name in self.tensors if holder[name] is not None
        ]
        self.encoder: PreparedEncoder | GpuEncoder | None = None
        if _block_reason(blocks) is None:
            self.encoder = PreparedEncoder(blocks) if _on_cpu(plan) else GpuEncoder(blocks, plan)

    def holds(self, blocks: Sequence[Block], plan: Plan) -> bool:
        modules = list(_modules(blocks))
        return (
            len(modules) == len(self.modules)
            and all(map(is_, modules, self.modules))
            and _kernels(plan) == self.kernels
            and not any(m._forward_hooks or m._forward_pre_hooks for m in modules)
            and [_shape(block) for block in blocks] == self.shapes
            and self._versions() == self.versions
        )

    def _versions(self) -> list[int]:
        # A tensor made under inference_mode counts no versions; its address has to do.
        versions: list[int] = []
        for holder, name in self.tensors:
            tensor = holder[name]
            if tensor is not None:
                versions.append(tensor.data_ptr())
                versions.append(0 if tensor.is_inference() else tensor._version)
        return versions


def _kernels(plan: Plan) -> Any:
    """What an encoder is prepared for, besides its weights: the instruction set, or the Plan."""
    return native.isa() if _on_cpu(plan) else plan


def _holders(module: nn.Module) -> Iterator[tuple[dict[str, Any], str]]:
    for holder in (module._parameters, module._buffers):
        for name in holder:
            yield holder, name


def _projections(block: Block) -> tuple[Projection, ...]:
    return (block.q, block.k, block.v, block.out, block.up, block.down)


def _modules(blocks: Sequence[Block]) -> Iterator[nn.Module]:
    for block in blocks:
        yield block.q
        yield block.k
        yield block.v
        yield block.out
        yield block.attention_norm
        yield block.up
        yield block.down
        yield block.output_norm


def _shape(block: Block) -> tuple[Any, ...]:
    return (
        block.num_heads,
        block.scale,
        block.activation,
        block.pre_norm,
        block.distances is None,
        block.q.in_features,
        block.q.out_features,
        block.k.out_features,
        block.v.out_features,
        block.up.out_features,
    )


def _attention_code(blocks: Sequence[Block]) -> int:
    exact = any(
        isinstance(block.out, Linear) and block.out.weight.dtype is not torch.bfloat16
        for block in blocks
    )
    return _DTYPES[torch.float32 if exact else torch.bfloat16]


def _block_source(extension: Any, block: Block, alive: list[Tensor]) -> Any:
    hidden = block.q.in_features

    def product(*parts: Projection) -> Any:
        return _product_source(extension, parts, alive)

    def norm(part: LayerNorm) -> Any:
        weight, bias = (_kept(tensor, alive) for tensor in (part.weight, part.bias))
        if weight.shape != (hidden,) or bias.shape != (hidden,):
            raise ValueError(
                f"A LayerNorm over rows of {hidden} has a weight of shape {tuple(weight.shape)} "
                f"and a bias of shape {tuple(bias.shape)}."
            )
        return extension.NormSource(
            weight=weight.data_ptr(),
            weight_dtype=_DTYPES[weight.dtype],
            bias=bias.data_ptr(),
            bias_dtype=_DTYPES[bias.dtype],
            eps=part.eps,
        )

    return extension.BlockSource(
        qkv=product(block.q, block.k, block.v),
        out=product(block.out),
        attention_norm=norm(block.attention_norm),
        up=product(block.up),
        down=product(block.down),
        output_norm=norm(block.output_norm),
    )


def _product_source(extension: Any, parts: Sequence[Projection], alive: list[Tensor]) -> Any:
    """Several projections of the same rows as one product."""
    quantised = [part for part in parts if isinstance(part, Int8Linear)]
    if quantised:
        weight = _joined([part.qweight for part in quantised], alive)
        scale = _joined([part.weight_scale for part in quantised], alive)
    else:
        weight = _joined([part.weight for part in parts if isinstance(part, Linear)], alive)
        scale = None
    biases = [part.bias for part in parts]
    bias = None
    if any(b is not None for b in biases):
        bias = _joined(
            [
                torch.zeros(part.out_features) if b is None else b.detach().float()
                for part, b in zip(parts, biases, strict=True)
            ],
            alive,
        )
    for name, tensor in (("weight_scale", scale), ("bias", bias)):
        if tensor is not None and tensor.shape != (weight.shape[0],):
            raise ValueError(
                f"A projection with {weight.shape[0]} outputs has a {name} of shape "
                f"{tuple(tensor.shape)}."
            )
    return extension.ProductSource(
        weight=weight.data_ptr(),
        dtype=_INT8 if weight.dtype is torch.int8 else _DTYPES[weight.dtype],
        n=weight.shape[0],
        k=weight.shape[1],
        stride=weight.shape[1],
        weight_scale=0 if scale is None else scale.data_ptr(),
        bias=0 if bias is None else bias.data_ptr(),
        bias_dtype=0,
        precision=_PRECISIONS[weight.dtype],
    )


def _joined(tensors: Sequence[Tensor], alive: list[Tensor]) -> Tensor:
    return _kept(tensors[0] if len(tensors) == 1 else torch.cat(list(tensors)), alive)


def _kept(tensor: Tensor, alive: list[Tensor]) -> Tensor:
    if tensor.device.type != "cpu":
        raise ValueError(f"A weight is on {tensor.device}, but the encoder is prepared on the CPU.")
    kept = tensor.detach().contiguous()
    alive.append(kept)
    return kept
