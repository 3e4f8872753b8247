"""What a model keeps of itself between passes, and how it notices that it has changed.

Reading a model's blocks and choosing its plan takes longer than many a pass through its kernels. So
both are read once into a `ModelSnapshot`, and the weights are packed once into a `CpuEncoder`.
Every pass compares the model with what was read: modules, parameters, buffers and configuration by
identity; weights by address and, where they were packed, by what `fastbert.runtime.versions` says
about writes to them. What goes unseen there must be told by `EncoderCache.clear()`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastbert.engine.cpu_encoder import (
    CpuEncoder,
    on_cpu,
    supports,
    supports_pooler,
    supports_tables,
)
from fastbert.engine.encoder import Encoder
from fastbert.engine.gpu_encoder import GpuEncoder
from fastbert.kernels import native
from fastbert.layers.linear import Int8Linear, Linear
from fastbert.layers.norm import LayerNorm
from fastbert.runtime.plan import Plan, build_plan, forced_backend
from fastbert.runtime.versions import readable_bytes, written

_ATTEMPTS = 4
Result = TypeVar("Result")


class StaleModel(Exception):
    """The model is no longer what the pass took it for; the pass must start again."""


@dataclass(frozen=True)
class EncoderParts:
    """What a prepared encoder can hold beside the blocks, and the Plan where it is a GPU's."""

    tables: bool = False
    pooler: bool = False
    plan: Plan | None = None


class ModelSnapshot:
    """One reading of an encoder model.

    Attributes:
        blocks, tables, pooler: its parts, as the families describe them.
        traits: what the choice of kernels depends on.
        device, dtype: of its parameters.
        parameters: all of them.
    """

    def __init__(self, model: Any) -> None:
        self.blocks = list(model.blocks())
        self.tables = model.tables()
        self.pooler: Linear | None = model.pooling()
        self.traits = model.traits()
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.parameters = tuple(model.parameters())
        self.plain = all(_plain(tensor) for _, tensor in model.named_tensors())
        # None: nothing can be watched, and the view serves for one pass.
        self.watch = _watch(model) if self.plain and native.reason() is None else None
        # What was last asked of plan(), and the answer.
        self._plan: tuple[tuple[Any, ...], Plan] | None = None
        self._served: dict[int, tuple[Plan, EncoderParts | None]] = {}
        self._tensors = [
            tensor
            for module in self._modules()
            for holder in (module._parameters, module._buffers)
            for tensor in holder.values()
            if tensor is not None
        ]

    def holds(self, contents: bool = False) -> bool:
        """Whether the model still is what was read: the same objects in the same memory, and, where
        asked for, nothing written to it."""
        return self.watch is None or bool(self.watch.unchanged(contents))

    def plan(self, backend: str, strict: bool, needs_grad: bool, batch_invariant: bool) -> Plan:
        """build_plan() for the model, at once where it is asked for the same thing again. Arguments
        and errors are those of build_plan()."""
        kind = self.device.type
        autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        settings = (backend, strict, needs_grad, batch_invariant)
        asked = (*settings, autocast, forced_backend(), native.isa())
        known = self._plan
        if known is not None and known[0] == asked:
            return known[1]
        plan = build_plan(self.traits, self.device, self.dtype, *settings)
        self._plan = (asked, plan)
        return plan

    def served(self, plan: Plan) -> EncoderParts | None:
        """What of the model a prepared encoder for this plan can hold, None when not even the
        blocks."""
        found = self._served.get(id(plan))
        if found is None:
            # The plan is kept, so that its id stays its own.
            found = self._served[id(plan)] = (plan, _served(self, plan))
        return found[1]

    def source(self) -> list[Any]:
        """What a prepared encoder is made from; equal where another one would be the same."""
        described: list[Any] = [native.isa(), self.tables.projection is None, self.pooler is None]
        for tensor in self._tensors:
            described.append((tensor.data_ptr(), written(tensor), tensor.shape, tensor.dtype))
        for module in self._modules():
            described.append((type(module), bool(module._forward_hooks), "forward" in vars(module)))
            described.append(bool(module._forward_pre_hooks))
            described.append(getattr(module, "eps", None))
        for block in self.blocks:
            described.append((block.num_heads, block.scale, block.activation, block.pre_norm))
        return described

    def kept(self) -> list[Tensor]:
        """The weights, held so that no others can appear at their addresses."""
        return [tensor.detach() for tensor in self._tensors]

    def _modules(self) -> Iterator[nn.Module]:
        for block in self.blocks:
            yield from (block.q, block.k, block.v, block.out, block.attention_norm)
            yield from (block.up, block.down, block.output_norm)
            if block.distances is not None:
                yield block.distances.table
        tables = self.tables
        for part in (tables.word, tables.position, tables.token_type, tables.language, tables.norm):
            if part is not None:
                yield part
        for part in (tables.projection, self.pooler):
            if part is not None:
                yield part


def _watch(model: nn.Module) -> Any:
    """A `_C.Watch` of a model."""
    # Empty dictionaries are only worth a look where an entry would mean something: each of them is
    # memory that a large model's pass has driven out of the caches.
    dicts: list[dict[Any, Any]] = [vars(model.config)]
    entries: list[tuple[dict[str, Any], str]] = []
    tensors: dict[int, Tensor] = {}
    for module in model.modules():
        dicts += [held for held in (module._modules, module._parameters, module._buffers) if held]
        if isinstance(module, nn.ModuleList) and not len(module):
            dicts.append(module._modules)
        if isinstance(module, (Linear, Int8Linear, LayerNorm, nn.Embedding)):
            dicts += [module._forward_hooks, module._forward_pre_hooks]
            entries.append((vars(module), "forward"))
        if isinstance(module, LayerNorm):
            entries.append((vars(module), "eps"))
        for holder in (module._parameters, module._buffers):
            tensors |= {id(tensor): tensor for tensor in holder.values() if tensor is not None}
    return native.extension().Watch(
        dicts,
        entries,
        [
            (t, not t.is_inference(), readable_bytes(t), t._cdata, t.untyped_storage()._cdata)
            for t in tensors.values()
        ],
        Tensor.data_ptr,
        Tensor._version,
    )


def _plain(tensor: Tensor) -> bool:
    """Whether a tensor has an address: no wrapper of torch.func, no fake one, no subclass."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout is torch.strided
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


class EncoderCache:
    """The view of a model and its prepared encoder: made when first asked for, and again whenever
    the model, the instruction set, the Plan of a GPU or a weight has changed since."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._view: ModelSnapshot | None = None
        self._entry: _Entry | None = None

    def view(self, model: Any) -> ModelSnapshot:
        """A view of the model, possibly stale: whoever uses it must have it checked before relying
        on the result, and raise StaleModel where it fails (see `retrying`)."""
        view = self._view
        if view is None or view.watch is None:
            with self._lock:
                view = self._view
                if view is None or view.watch is None:
                    view = self._view = ModelSnapshot(model)
        return view

    def stale(self, view: ModelSnapshot) -> StaleModel:
        """The error to raise where a view turns out to hold no more; the next one is new."""
        with self._lock:
            if self._view is view:
                self._view = None
            if view.device.type != "cpu":
                self._entry = None
        return StaleModel()

    def clear(self) -> None:
        """Forget the view and the packed weights."""
        with self._lock:
            self._view = self._entry = None

    def encoder(self, view: ModelSnapshot, plan: Plan) -> Encoder | None:
        """The prepared encoder of a view, None where `supports` has a reason against it.

        Raises:
            StaleModel: when it must be made, and the view holds no more.
        """
        served = view.served(plan)
        if served is None:
            return None
        ready = self._entry
        if ready is None or ready.view is not view or ready.served != served:
            with self._lock:
                ready = self._entry
                if ready is None or ready.view is not view or ready.served != served:
                    ready = self._renewed(view, served)
        return ready.encoder

    def ready(self, view: ModelSnapshot, plan: Plan) -> bool:
        """Whether a pass can run on the prepared encoder without packing changed weights again:
        they never were packed, or are as they were."""
        if view.served(plan) is None:
            return False
        return self._entry is None or (self._entry.view is view and view.holds(contents=True))

    def pools(self, view: ModelSnapshot, plan: Plan) -> bool:
        """Whether the prepared encoder of a view computes the pooler."""
        served = view.served(plan)
        return served is not None and served.pooler

    def _renewed(self, view: ModelSnapshot, served: EncoderParts) -> _Entry:
        if not view.holds(contents=True):
            raise self.stale(view)
        old, source = self._entry, view.source()
        if old is not None and old.served == served and old.source == source:
            self._entry = _Entry(view, served, source, old.encoder, old.kept)
            return self._entry
        self._entry = old = None  # its packed weights go before the new ones come
        kept = view.kept()
        encoder: CpuEncoder | GpuEncoder
        if served.plan is None:
            encoder = CpuEncoder(
                view.blocks,
                view.tables if served.tables else None,
                view.pooler if served.pooler else None,
            )
        else:
            encoder = GpuEncoder(view.blocks, served.plan)
        self._entry = _Entry(view, served, source, encoder, kept)
        return self._entry

    def __deepcopy__(self, memo: Any) -> EncoderCache:
        return EncoderCache()

    def __reduce__(self) -> tuple[Any, ...]:
        return (EncoderCache, ())


@dataclass(frozen=True)
class _Entry:
    """The prepared encoder of one view, and what it was made from."""

    view: ModelSnapshot
    served: EncoderParts
    source: list[Any]
    encoder: CpuEncoder | GpuEncoder
    kept: list[Tensor]


def _served(view: ModelSnapshot, plan: Plan) -> EncoderParts | None:
    if not view.plain or supports(view.blocks, plan) is not None:
        return None
    if not on_cpu(plan):
        return EncoderParts(plan=plan)
    return EncoderParts(
        supports_tables(view.tables, plan) is None,
        view.pooler is not None and supports_pooler(view.pooler, plan) is None,
    )


def retrying(model: nn.Module, run: Callable[[], Result]) -> Result:
    """Call run(), again when the model turns out to have changed since it was last read.

    Raises:
        RuntimeError: when it changes again and again meanwhile.
    """
    for _ in range(_ATTEMPTS):
        try:
            return run()
        except StaleModel:
            continue
    raise RuntimeError(
        f"This {type(model).__name__} changes while it runs: another thread writes to its weights "
        "or replaces its parts. Run it, or change it, one at a time."
    )
