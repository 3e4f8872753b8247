"""What a model keeps of itself between passes, and how it notices that it has changed.

Reading a model's blocks and choosing its plan takes longer than many a pass through its kernels. So
both are read once into a `ModelSnapshot`, and the weights are packed once into a `CpuEncoder`.
Every pass compares the model with what was read: modules, parameters, buffers and configuration by
identity; tensors by address, shape, strides and dtype; those that were copied also by version, and
by all their bytes where a fused optimizer may have written to them, which raises no version
(`fastbert.runtime.versions`). Only raw writes must be told, by `EncoderCache.clear()`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from fastbert.engine.adjoining import adjoin, read_in_place
from fastbert.engine.cpu_encoder import CpuEncoder
from fastbert.engine.cpu_sources import in_place
from fastbert.engine.cpu_support import mixture, on_cpu, supports, supports_pooler, supports_tables
from fastbert.engine.encoder import Encoder
from fastbert.engine.gpu_encoder import GpuEncoder
from fastbert.engine.reading import Reading
from fastbert.errors import Changing, Unavailable
from fastbert.kernels import native
from fastbert.layers.embeddings import EmbeddingTables
from fastbert.layers.encoder import ForwardOptions
from fastbert.layers.hooks import GLOBAL_FORWARD_HOOKS
from fastbert.layers.linear import Int8Linear
from fastbert.layers.methods import Methods, methods, overridable
from fastbert.layers.norm import LayerNorm
from fastbert.layers.replicas import is_replica, parameters_held
from fastbert.locks import Lock
from fastbert.ops.operands import obstacle
from fastbert.runtime.plan import FORCED_BACKEND, Plan, build_plan
from fastbert.runtime.versions import Contents, Gradients, Kept, stamp, uncounted, version

_ATTEMPTS = 4
# What is watched of modules that are not ours; the probability of dropout is looked at in training.
SETTINGS: dict[type[nn.Module], tuple[str, ...]] = {nn.Dropout: ("training",)}
Inputs = TypeVar("Inputs")
Form = TypeVar("Form")
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
        reading: its parts, as the families describe them; layers, tables and pooler are its own.
        blocks: the layers that kernels compute.
        on_grid: whether a part is called that may look at any token.
        traits: what the choice of kernels depends on.
        device, dtype: of its parameters.
        parameters: all of them.
        odd: names a tensor whose values do not lie at its address; None where there is none.
        plain: whether there is none.
        copied: the tensors whose contents a prepared encoder copies, by name.
        suspicious: whether `uncounted` holds for those, so that their bytes must be compared.
        watch: a `_C.Watch` of the model; None where nothing can be watched, and the snapshot serves
            for one pass.
        methods: those of its modules' classes.
        source: what a prepared encoder is made from; equal where another would be the same.
    """

    def __init__(self, model: Any) -> None:
        self._read(model)
        self.traits = model.traits()
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        modules = list(self._named_modules(model))
        self.modules = tuple(module for _, module in modules)
        self.modules += tuple(getattr(model, "beside", tuple)())
        self.methods = methods(self.modules)
        self._dropouts, self._backward_hooks = _for_training(self.modules)
        parameters, buffers = (
            {
                id(tensor): (f"{path}.{name}", tensor)
                for path, module in modules
                for name, tensor in held(module).items()
                if tensor is not None
            }
            for held in (parameters_held, operator.attrgetter("_buffers"))
        )
        # In the order of model.parameters().
        self.parameters = tuple(tensor for _, tensor in parameters.values())
        tensors = parameters | buffers
        self.odd = next(
            (f"{name} is {why}" for name, t in tensors.values() if (why := _odd(t)) is not None),
            None,
        )
        # A replica's tensors live for one pass only, so packing them would not pay.
        self.plain = self.odd is None and not is_replica(model)
        copied = {id(tensor) for tensor in self._copied_tensors()}
        self.copied = {tensors[key][0]: tensors[key][1] for key in tensors if key in copied}
        self.watch: native.library.Watch | None = None
        # A method that is another object at each look could be watched by nothing.
        if self.plain and native.reason() is None and self.methods.hold():
            self.watch = watch_of(model, self.modules, self.methods, copied)
        self.suspicious = False
        self.look()
        self.source = self._source() if self.plain else None
        # What was last asked of plan(), and the answer.
        self._plan: tuple[tuple[Any, ...], Plan] | None = None
        self._served: dict[int, tuple[Plan, EncoderParts | None]] = {}

    def _read(self, model: Any) -> None:
        self.reading: Any = model.read()
        reading: Reading = self.reading
        self.blocks = reading.blocks
        self.layers = reading.layers
        self.tables: Any = reading.tables
        self.pooler = reading.pooler
        self.on_grid = reading.on_grid

    def _named_modules(self, model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
        """Return all modules that a pass computes with, by name."""
        found: Iterable[tuple[str, nn.Module]] = model.named_modules()
        return found

    def look(self) -> None:
        """See whether versions tell of every write to the copied tensors."""
        self.suspicious = uncounted(self.copied.values())
        if self.watch is not None:
            self.watch.gradients_known = self.suspicious

    def holds(self, contents: bool = False) -> bool:
        """Return whether the model still is what was read: the same objects in the same memory.

        Args:
            contents: ask too whether nothing was written to what is copied. Gradients that came
                since count as written.
        """
        return self.watch is None or bool(self.watch.unchanged(contents))

    def as_trained(self, differentiable: bool) -> bool:
        """Return whether hooks and dropouts that only training asks for are those that were read.

        Args:
            differentiable: whether gradients will flow, which backward hooks look at.
        """
        dropouts, hooks = _for_training(self.modules)
        return dropouts == self._dropouts and (not differentiable or hooks == self._backward_hooks)

    def torch_parts(self) -> Iterator[str]:
        """Yield, as clauses, what torch computes in every pass, whatever the Plan says."""
        for why in self.reading.called:
            yield f"{why}, so it is called as a module"
        for why in self.reading.foreign:
            yield f"{why}, which is called for its product"
        if any(block.distances is not None for block in self.blocks):
            yield "relative positions are scored by torch"
        if (why := mixture(self._parts(), self.dtype)) is not None:
            yield f"{why}, so torch computes with it"

    def versions(self) -> list[int]:
        """Return how often each copied tensor was written to."""
        return [version(tensor) for tensor in self.copied.values()]

    def plan(self, backend: str, strict: bool, needs_grad: bool, batch_invariant: bool) -> Plan:
        """Return the model's Plan, at once where it is asked for the same thing again.

        Arguments and errors are those of build_plan().
        """
        if strict and self.odd is not None and (FORCED_BACKEND.get() or backend) != "reference":
            raise Unavailable(
                f"strict=True allows no fallback, but {self.odd}, which only the reference "
                "computes with."
            )
        kind = self.device.type
        autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        settings = (backend, strict, needs_grad, batch_invariant)
        known_isa = (native.isa(), native.slow())
        duals = forward_ad._current_level >= 0
        asked = (*settings, autocast, duals, FORCED_BACKEND.get(), known_isa)
        known = self._plan
        if known is not None and known[0] == asked:
            return known[1]
        plan = build_plan(self.traits, self.device, self.dtype, *settings)
        self._plan = (asked, plan)
        return plan

    def served(self, plan: Plan) -> EncoderParts | None:
        """Return what a prepared encoder for this plan can hold; None when not even the blocks."""
        found = self._served.get(id(plan))
        if found is None:
            # The plan is kept, so that its id stays its own.
            found = self._served[id(plan)] = (plan, self._serve(plan))
        return found[1]

    def _serve(self, plan: Plan) -> EncoderParts | None:
        return _served(self, plan)

    def kept(self) -> list[Tensor]:
        """Return the weights, held so that no others can appear at their addresses."""
        return [tensor.detach() for part in self._parts() for tensor in tensors_of(part)]

    def _source(self) -> list[Any]:
        described: list[Any] = [native.isa(), self.tables.projection is None, self.pooler is None]
        for part in self._parts():
            described.append((id(part), type(part), getattr(part, "eps", None)))
            described += [(id(tensor), stamp(tensor)) for tensor in tensors_of(part)]
        for block in self.blocks:
            described.append((block.num_heads, block.scale, block.activation, block.pre_norm))
        return described

    def _parts(self) -> Iterator[nn.Module]:
        yield from self._projections_and_norms()
        tables = self.tables
        if isinstance(tables, EmbeddingTables):
            found = (tables.word, tables.position, tables.token_type, tables.language)
            yield from (part for part in found if part is not None)
        for block in self.blocks:
            if block.distances is not None:
                yield block.distances.table

    def _projections_and_norms(self) -> Iterator[nn.Module]:
        for block in self.blocks:
            yield from (block.q, block.k, block.v, block.out, block.attention_norm)
            yield from (block.up, block.down, block.output_norm)
        if isinstance(self.tables, EmbeddingTables):
            yield self.tables.norm
        for part in (self.tables.projection, self.pooler):
            if part is not None:
                yield part

    def _copied_tensors(self) -> Iterator[Tensor]:
        """Yield the tensors whose contents a prepared encoder copies.

        The CPU's encoder packs all but tables and most vectors, which it reads in place; a GPU's
        sums int8 weights, and joins those of queries, keys and values that do not adjoin.
        """
        joined = {id(part): block for block in self.blocks for part in (block.q, block.k, block.v)}
        for part in self._projections_and_norms():
            block = joined.get(id(part))
            together = None if block is None else (block.q, block.k, block.v)
            if on_cpu(self.device):
                read = {id(vector) for vector in in_place(*(together or (part,)))}
                yield from (t for t in tensors_of(part) if id(t) not in read)
            elif isinstance(part, Int8Linear) or (together and not read_in_place(together)):
                yield from tensors_of(part)


def _for_training(modules: Sequence[nn.Module]) -> tuple[list[float], list[int]]:
    """Read the probability of every dropout, and count every module's backward hooks."""
    dropouts = [module.p for module in modules if isinstance(module, nn.Dropout)]
    hooks = [len(m._backward_hooks) + len(m._backward_pre_hooks) for m in modules]
    return dropouts, hooks


def tensors_of(part: nn.Module) -> Iterator[Tensor]:
    """Yield a module's own parameters and buffers."""
    for holder in (part._parameters, part._buffers):
        yield from (tensor for tensor in holder.values() if tensor is not None)


def watch_of(
    model: nn.Module,
    modules: Sequence[nn.Module],
    methods: Methods,
    copied: set[int],
    settings: Sequence[str] = (),
) -> native.library.Watch:
    """Make a `_C.Watch` of a model.

    Args:
        model: what is watched; it has a `config`.
        modules: all whose parts and tensors count, itself among them.
        methods: those of their classes.
        copied: the id of every tensor whose contents count.
        settings: attributes of every module that count, beside those that its class names.
    """
    # Empty dictionaries are only worth a look where an entry would mean something: each of them is
    # memory that a large model's pass has driven out of the caches.
    dicts: list[dict[Any, Any]] = [vars(model.config), *GLOBAL_FORWARD_HOOKS]
    dicts += getattr(model, "watched", list)()
    entries: list[tuple[dict[str, Any], str]] = [(vars(model), "config")]
    parts: list[nn.Module] = []
    tensors: dict[int, Tensor] = {}
    for module in modules:
        dicts += [held for held in (module._modules, module._parameters, module._buffers) if held]
        if isinstance(module, nn.ModuleList) and not len(module):
            dicts.append(module._modules)
        if module is model:
            continue  # whoever calls it runs its hooks
        parts.append(module)
        dicts += [module._forward_hooks, module._forward_pre_hooks]
        entries += [(vars(module), name) for name in overridable(module)]
        if isinstance(module, LayerNorm):
            entries.append((vars(module), "eps"))
        named: tuple[str, ...] = getattr(type(module), "settings", ())
        for name in (*SETTINGS.get(type(module), named), *settings):
            if name in vars(module):
                entries.append((vars(module), name))
        tensors |= {id(tensor): tensor for tensor in tensors_of(module)}
    return native.library.Watch(
        dicts,
        entries,
        list(methods.found),
        [model, *parts],
        [(t, key in copied, not t.is_inference(), t.is_leaf) for key, t in tensors.items()],
        Tensor.__dlpack_c_exchange_api__,
        Tensor._version,
        Tensor.grad,
    )


def _odd(tensor: Tensor) -> str | None:
    """Return None where native code can read a tensor's values in its memory, else what it is."""
    return obstacle(tensor, memory=tensor.device.type in ("cpu", "cuda"))


class EncoderCache(Kept):
    """The snapshot of a model and its prepared encoder.

    Both are made when first asked for, and again whenever the model, the instruction set, the Plan
    of a GPU or a weight has changed since.

    Attributes:
        gradients: counts the backward passes through the model; whoever makes a differentiable pass
            has them counted there.
    """

    def __init__(self) -> None:
        self.gradients = Gradients()
        self._lock = Lock()
        self._view: ModelSnapshot | None = None
        self._entry: _Entry | None = None
        # None until something was packed, then how the weights stood at the last eval pass with
        # gradients that came upon changed ones.
        self._met: tuple[Any, ...] | None = None

    def view(self, model: Any) -> ModelSnapshot:
        """Return a snapshot of the model, possibly stale.

        Whoever uses it must have it checked before relying on the result, and raise StaleModel
        where that fails (see `retrying`).
        """
        view = self._view
        if view is not None and view.watch is not None:
            return view
        with self._lock:
            view = self._view
            if view is None or view.watch is None:
                view = self._view = self._snapshot(model)
                self._keep_packed(view)
        return view

    def _snapshot(self, model: Any) -> ModelSnapshot:
        return ModelSnapshot(model)

    def _keep_packed(self, view: ModelSnapshot) -> None:
        """Keep packed weights for a new snapshot that gives the same ones.

        They wait while parts are called only because someone hooked them. An adapter around a part
        may be merged by a raw write, so packed weights do not outlast it.
        """
        entry = self._entry
        if entry is None or (view.reading.called and entry.view.modules == view.modules):
            return
        if view.plain:
            same = entry.view.source == view.source
            self._entry = replace(entry, view=view) if same else None

    def stale(self, view: ModelSnapshot) -> StaleModel:
        """Return the error to raise where a view is found to be stale; the next view is new."""
        with self._lock:
            if self._view is view:
                self._view = None
        return StaleModel()

    def outdated(self) -> bool:
        """Return whether the view holds no more; then the next one is new."""
        view = self._view
        if view is None or view.holds():
            return False
        self.stale(view)
        return True

    def clear(self) -> None:
        """Forget the view and the packed weights."""
        with self._lock:
            self._view = self._entry = self._met = None

    def encoder(self, view: ModelSnapshot, plan: Plan) -> Encoder | None:
        """Return the prepared encoder of a view; None where `supports` has a reason against it.

        Raises:
            StaleModel: when it must be made, and the view holds no longer.
        """
        served = view.served(plan)
        if served is None:
            return None
        entry = self._entry
        if entry is None or not entry.serves(view, served):
            with self._lock:
                entry = self._entry
                if entry is None or not entry.serves(view, served):
                    entry = self._packed(view, served)
        encoder: Encoder = entry.encoder
        return encoder

    @staticmethod
    def computes(options: ForwardOptions, device: torch.device) -> bool:
        """Return whether a prepared encoder does all that is asked for, gradients apart.

        Those for a GPU add nothing to the scores; nor do passes with gradients, which what is added
        may want too.
        """
        bias = options.bias
        plain = bias is None and options.position_bias is None
        constant = not options.differentiable and not (
            bias is not None and bias.requires_grad and torch.is_grad_enabled()
        )
        return (
            (plain or (constant and on_cpu(device)))
            and options.keys is None
            and options.head_mask is None
            and options.cross is None
            and options.cache is None
            and options.row_scale is None
            and options.recompute is None
            and not (options.causal or options.attentions or options.hidden_states)
            and options.hidden_dropout == options.attention_dropout == options.layer_dropout == 0.0
        )

    def settled_encoder(self, view: ModelSnapshot, plan: Plan) -> Encoder | None:
        """Return the prepared encoder for a pass in eval mode that wants gradients.

        Packing takes as long as several passes. So the weights are packed for the first such pass
        of all and, once they have changed, for the second one that meets them as they are: a loop
        that trains in between never packs.

        Returns:
            The encoder; None where the pass is to go op by op.

        Raises:
            StaleModel: when the encoder must be made, and the view holds no longer.
        """
        served = view.served(plan)
        if served is None or served.plan is not None:
            return None
        entry = self._entry
        if entry is not None and view.holds(contents=True) and entry.serves(view, served):
            encoder: Encoder = entry.encoder
            return encoder
        met, now = self._met, (self.gradients.count, view.versions())
        if met is not None:
            self._met = now
        return self.encoder(view, plan) if met is None or met == now else None

    def _packed(self, view: ModelSnapshot, served: EncoderParts) -> _Entry:
        if not view.holds(contents=True):
            raise self.stale(view)
        if served.plan is not None and self._adjoined(view):
            raise self.stale(view)  # the next one knows the weights where they are now
        self._entry = None  # its packed weights go before the new ones come
        self._met = ()
        kept, names = view.kept(), list(view.copied)
        contents = Contents(list(view.copied.values()), self.gradients, names)
        entry = self._entry = _Entry(view, served, self._prepared(view, served), contents, kept)
        return entry

    def _adjoined(self, view: ModelSnapshot) -> bool:
        """Move the weights of queries, keys and values together; return whether any was moved."""
        self._entry = None  # it holds them, perhaps, and goes in any case
        moved = [adjoin((block.q, block.k, block.v)) for block in view.blocks]
        return any(moved)

    def _prepared(self, view: ModelSnapshot, served: EncoderParts) -> Any:
        """Pack the weights of a view."""
        assert isinstance(view.tables, EmbeddingTables)
        if served.plan is not None:
            return GpuEncoder(view.blocks, served.plan)
        return CpuEncoder(
            view.blocks,
            view.tables if served.tables else None,
            view.pooler if served.pooler else None,
        )

    def __deepcopy__(self, memo: Any) -> Self:
        return type(self)()

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), ())


@dataclass(frozen=True)
class _Entry:
    """The prepared encoder of one view, and what it was made from."""

    view: ModelSnapshot
    served: EncoderParts
    encoder: Any  # what EncoderCache._prepared made of the view
    contents: Contents
    kept: list[Tensor]

    def serves(self, view: ModelSnapshot, served: EncoderParts) -> bool:
        """Return whether the encoder is of this view and holds what is asked for.

        Where versions do not tell, its weights are compared too.
        """
        if self.view is not view or (self.served is not served and self.served != served):
            return False
        if not self.contents.same(view.suspicious):
            return False
        if view.suspicious:
            view.look()
        return True


def _served(view: ModelSnapshot, plan: Plan) -> EncoderParts | None:
    if not view.plain or view.reading.called or supports(view.blocks, plan) is not None:
        return None
    tables = view.tables
    assert isinstance(tables, EmbeddingTables)
    if not on_cpu(plan.device):
        return EncoderParts(plan=plan)
    return EncoderParts(
        supports_tables(tables, plan) is None,
        view.pooler is not None and supports_pooler(view.pooler, plan) is None,
    )


def retrying(
    model: nn.Module,
    run: Callable[[Inputs, Form], Result],
    inputs: Inputs,
    form: Form,
    outdated: Callable[[], bool] | None = None,
) -> Result:
    """Call run(inputs, form), again when the model turns out to have changed since it was read.

    Args:
        model: for the error.
        run: computes; raises StaleModel where it finds that the model has changed.
        inputs: of the pass.
        form: of its results.
        outdated: whether what was read holds no more. Asked where inputs were refused, which may
            fit the model as it is now, and where a part lacks what it had.

    Raises:
        Changing: when it changes again and again meanwhile.
    """
    for _ in range(_ATTEMPTS):
        try:
            return run(inputs, form)
        except StaleModel:
            continue
        except (AttributeError, IndexError, ValueError):
            if outdated is None or not outdated():
                raise
    raise Changing(
        f"This {type(model).__name__} changes while it runs: another thread writes to its weights "
        "or replaces its parts. Run it, or change it, one at a time."
    )
