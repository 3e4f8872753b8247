"""What a decoder keeps of itself between passes, and what its engine can hold.

The mechanism is that of encoders (`fastbert.engine.encoder_cache`): the model is read once, its
weights are packed once, and every pass compares the model with what was read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastbert.engine.cpu_decoder import CpuDecoder
from fastbert.engine.cpu_sources import DTYPES
from fastbert.engine.cpu_support import on_cpu
from fastbert.engine.decoder import Decoder, DecoderReading
from fastbert.engine.encoder_cache import EncoderCache, EncoderParts, ModelSnapshot, tensors_of
from fastbert.kernels import native
from fastbert.layers.activation import NamedActivation
from fastbert.layers.decoder_block import DecoderBlock
from fastbert.layers.hooks import forward_hooked
from fastbert.layers.linear import Int8Linear, Linear
from fastbert.ops.activations import unsupported_activation
from fastbert.runtime.plan import Plan
from fastbert.runtime.versions import stamp

_DTYPES = (torch.float32, torch.bfloat16)
_HEADS = (Linear, Int8Linear)


class DecoderSnapshot(ModelSnapshot):
    """One reading of a decoder, and of the projection to the vocabulary behind it.

    Args:
        model: the decoder.
        head: the projection, or what someone put in its place; None without one.
    """

    reading: DecoderReading

    def __init__(self, model: Any, head: nn.Module | None) -> None:
        self.lm_head = head
        plain = head is not None and type(head) in _HEADS and not forward_hooked(head)
        self.head = head if plain else None
        super().__init__(model)

    def refused(self, plan: Plan) -> str | None:
        """Return None where an engine can hold the decoder, else the reason, as a clause."""
        if not self.plain:
            return self.odd or "a replica's weights live for one pass"
        return self.reading.refused or _plan_reason(plan) or _parts_reason(self)

    def _read(self, model: Any) -> None:
        self.reading = model.read()

    def _named_modules(self, model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
        own: Iterable[tuple[str, nn.Module]] = model.named_modules()
        if self.lm_head is None:
            return own
        return chain(own, self.lm_head.named_modules(prefix="lm_head"))

    def _serve(self, plan: Plan) -> EncoderParts | None:
        return EncoderParts() if self.refused(plan) is None else None

    def _source(self) -> list[Any]:
        described: list[Any] = [native.isa(), self.head is None]
        for part in self._parts():
            described.append((id(part), type(part), getattr(part, "variance_epsilon", None)))
            described += [(id(tensor), stamp(tensor)) for tensor in tensors_of(part)]
        return described + [block.sizes() for block in self.reading.blocks]

    def _parts(self) -> Iterator[nn.Module]:
        yield self.reading.words
        yield from self._copied_parts()

    def _copied_tensors(self) -> Iterator[Tensor]:
        for part in self._copied_parts():
            yield from tensors_of(part)

    def _copied_parts(self) -> Iterator[nn.Module]:
        for block in self.reading.blocks:
            yield from block.parts()
        yield self.reading.norm
        if self.head is not None:
            yield self.head


class DecoderCache(EncoderCache):
    """The snapshot of a decoder and its engine; see EncoderCache."""

    def __init__(self) -> None:
        super().__init__()
        self._head: nn.Module | None = None

    def decoder_view(self, model: Any, head: nn.Module | None = None) -> DecoderSnapshot:
        """Return a snapshot of the decoder, possibly stale; see EncoderCache.view.

        Args:
            model: the decoder.
            head: the projection behind it, where one is known; it is remembered.
        """
        if head is not None and head is not self._head:
            with self._lock:
                self._head, self._view = head, None
        return cast(DecoderSnapshot, self.view(model))

    def decoder(self, view: DecoderSnapshot, plan: Plan) -> Decoder | None:
        """Return the engine of a view; None where `DecoderSnapshot.refused` has a reason.

        Raises:
            StaleModel: when it must be made, and the view holds no longer.
        """
        return cast("Decoder | None", self.encoder(view, plan))

    def _snapshot(self, model: Any) -> ModelSnapshot:
        return DecoderSnapshot(model, self._head)

    def _prepared(self, view: ModelSnapshot, served: EncoderParts) -> Any:
        assert isinstance(view, DecoderSnapshot)
        head = view.head
        assert head is None or isinstance(head, (Linear, Int8Linear))
        return CpuDecoder(view.reading, head, view.dtype)


def _plan_reason(plan: Plan) -> str | None:
    if not on_cpu(plan.device):
        return "it is not on the CPU"
    for choice in plan.choices:
        if choice.backend != "cpu" and choice.op in _OPS:
            return f"the plan computes {choice.op} on {choice.backend}"
    return None if plan.dtype in _DTYPES else f"there is no engine for {plan.dtype}"


_OPS = ("linear", "linear_w8a16")


def _parts_reason(view: DecoderSnapshot) -> str | None:
    reading = view.reading
    if not reading.blocks:
        return "there are no layers"
    first = reading.blocks[0]
    if any(block.sizes() != first.sizes() for block in reading.blocks):
        return "the layers differ in shape or kind"
    if first.num_heads % first.num_kv_heads or first.head_dim % 2:
        return "heads do not divide evenly"
    activation = first.activation
    if isinstance(activation, NamedActivation):
        reason = unsupported_activation(activation.name)
        if reason is not None:
            return reason
    words = reading.words.weight
    if words.dtype not in DTYPES or words.stride() != (words.shape[1], 1):
        return "the embedding table is of a kind that kernels do not read"
    for block in reading.blocks:
        if (reason := _block_reason(block, view.dtype)) is not None:
            return reason
    parts = [reading.words, reading.norm, *(p for block in reading.blocks for p in block.parts())]
    if view.head is not None:
        parts.append(view.head)
    for part in parts:
        if any(isinstance(vars(part).get(name), Tensor) for name in ("weight", "bias")):
            return "a weight is a plain attribute"
    if view.head is not None and _weight(view.head).dtype not in (view.dtype, torch.int8):
        return "the head has another precision than the layers"
    return None


def _block_reason(block: DecoderBlock, dtype: torch.dtype) -> str | None:
    for group in ((block.q, block.k, block.v), (block.out,), (block.up,), (block.down,)):
        if any(_weight(part).dtype not in (dtype, torch.int8) for part in group):
            return "layers have weights of different precisions"
        if len({type(part) for part in group}) > 1:
            return "projections of the same rows are of different kinds"
    return None


def _weight(part: nn.Module) -> Tensor:
    return part.qweight if isinstance(part, Int8Linear) else cast(Tensor, part.weight)
