"""Linear projections: nn.Linear's parameters, the product done by the Plan's op."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastbert.layers.hooks import hooked
from fastbert.ops import DECODING
from fastbert.ops.activations import Activation
from fastbert.runtime.plan import Choice, Plan, Traits, build_plan
from fastbert.runtime.tracing import untraced
from fastbert.runtime.versions import Contents, Gradients, stamp


@dataclass(frozen=True)
class _Packed:
    """A packed weight and what it was packed from.

    The memory of its source is held, so that no other weight can appear at its address.
    """

    source: Tensor
    held: Tensor
    stamp: tuple[Any, ...]
    contents: Contents
    op: str
    choice: Choice
    packed: Tensor | None

    def serves(self, op: str, weight: Tensor, choice: Choice, doubtful: bool) -> bool:
        """Whether it still is what packing the weight would give.

        Args:
            op: what it is packed for.
            weight: the weight.
            choice: the op's backend.
            doubtful: whether its bytes are compared in any case.
        """
        return (
            self.source is weight
            and self.stamp == stamp(weight)
            and (self.op, self.choice) == (op, choice)
            and self.contents.same(
                doubtful or weight.is_inference() or (weight.is_leaf and weight.grad is not None)
            )
        )


class Prepacked:
    """A weight in a kernel's own order, made again whenever the weight has changed."""

    def __init__(self) -> None:
        self.gradients = Gradients()
        self._kept: _Packed | None = None

    def get(self, op: str, weight: Tensor, plan: Plan, adapted: bool = False) -> Tensor | None:
        """Return the packed weight for a plan; None where its backend takes the plain one.

        Args:
            op: what it is packed for.
            weight: the weight.
            plan: the backends.
            adapted: whether an adapter calls the projection. It may write to the weight in ways
                that torch does not count, as peft merges, so that all bytes are compared.
        """
        choice = plan.choice(op)
        if choice.backend == "reference":
            return None
        if torch.compiler.is_compiling():
            return _prepacked_untraced(self, op, weight, plan, adapted)
        return self.current(op, weight, plan, choice, adapted)

    def clear(self) -> None:
        """Forget the packed weight."""
        self._kept = None

    def current(
        self, op: str, weight: Tensor, plan: Plan, choice: Choice, adapted: bool
    ) -> Tensor | None:
        """Return the packed weight, packed again where the weight has changed."""
        kept = self._kept
        if kept is None or not kept.serves(op, weight, choice, adapted):
            self._kept = None  # its memory goes before the new one's comes
            name = f"The weight {tuple(weight.shape)} of a Linear"
            contents = Contents([weight], self.gradients, [name], adapted)
            place = (weight, weight.detach(), stamp(weight))
            kept = _Packed(*place, contents, op, choice, plan.prepack(op, weight))
            self._kept = kept
        return kept.packed

    def __deepcopy__(self, memo: Any) -> Prepacked:
        return Prepacked()

    def __reduce__(self) -> tuple[Any, ...]:
        return (Prepacked, ())


# Addresses and versions of the weight are compared, which a graph would freeze.
@untraced
def _prepacked_untraced(
    prepacked: Prepacked, op: str, weight: Tensor, plan: Plan, adapted: bool
) -> Tensor | None:
    return prepacked.current(op, weight, plan, plan.choice(op), adapted)


class Linear(nn.Linear):
    """activation(x @ weight.T + bias) + residual.

    Parameters are those of nn.Linear: weight (out_features, in_features), bias (out_features,).
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self._prepacked = Prepacked()

    def forward(
        self,
        x: Tensor,
        plan: Plan | None = None,
        activation: str | Activation = "none",
        residual: Tensor | None = None,
        bias: bool = True,
    ) -> Tensor:
        """One product.

        Args:
            x: (rows, in_features).
            plan: the backends; None for those of the pass that this is called in.
            activation: as in the op `linear`.
            residual: (rows, out_features), added last.
            bias: False leaves the bias to a later op.

        Returns:
            (rows, out_features), x.dtype.

        Raises:
            TypeError: without a plan outside of a model's pass.
        """
        adapted = plan is None
        plan, weight = _known() if plan is None else plan, self.weight
        rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        out: Tensor = plan.linear(
            rows,
            weight,
            self.bias if bias else None,
            activation,
            residual,
            self._prepacked.get("linear", weight, plan, adapted),
        )
        out = out if rows is x else out.reshape(*x.shape[:-1], weight.shape[0])
        if torch.is_grad_enabled():
            if torch.compiler.is_compiling():
                self._prepacked.gradients.traced = True
            else:
                self._prepacked.gradients.follow(out)
        return out


# Buffers of Int8Linear that stay float32 whatever the precision of the model.
FLOAT32_BUFFERS = ("weight_scale", "factor")


class Int8Linear(nn.Module):
    """A Linear whose weight is int8 with one scale per output channel.

    Attributes:
        qweight: int8 (out_features, in_features + repeats).
        weight_scale: float32 (out_features,).
        factor: float32 (in_features,), multiplies the rows before they are quantised; the weight
            was divided by it. None for none.
        repeated: int32 (repeats,), columns that qweight holds once more behind the others; a
            weight is the sum of its column's copies, times its row's scale. None for none.
        bias: (out_features,) in the precision of the activations, or None.
    """

    qweight: Tensor
    weight_scale: Tensor
    factor: Tensor | None
    repeated: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        factor: bool = False,
        repeats: int = 0,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        columns = in_features + repeats
        self.register_buffer("qweight", torch.zeros(out_features, columns, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(out_features, dtype=torch.float32))
        self.register_buffer(
            "factor", torch.ones(in_features, dtype=torch.float32) if factor else None
        )
        self.register_buffer(
            "repeated", torch.zeros(repeats, dtype=torch.int32) if repeats else None
        )
        self.bias = nn.Parameter(torch.zeros(out_features), requires_grad=False) if bias else None
        self._prepacked = Prepacked()

    def _apply(self, fn: Any, recurse: bool = True) -> Int8Linear:
        # model.to(torch.bfloat16) is meant for the activations; scales keep their precision.
        kept = {name: self._buffers[name] for name in FLOAT32_BUFFERS}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in kept.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != torch.float32:
                self._buffers[name] = old.to(new.device)
        return self

    def forward(
        self,
        x: Tensor,
        plan: Plan | None = None,
        activation: str | Activation = "none",
        residual: Tensor | None = None,
    ) -> Tensor:
        """As Linear.forward, with the rows of x quantised on the way in."""
        plan = _known() if plan is None else plan
        return plan.int8_linear(
            x,
            self.qweight,
            self.weight_scale,
            self.bias,
            activation,
            residual,
            self._prepacked.get("int8_linear", self.qweight, plan),
            self.factor,
            self.repeated,
        )

    def extra_repr(self) -> str:
        """Describe the projection as nn.Linear does."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )


Projection = Linear | Int8Linear
_PROJECTIONS = (Linear, Int8Linear)

# What calls of a Linear without a plan take: the plan of the pass, within a foreign module.
_running: ContextVar[Plan | None] = ContextVar("plan of the pass", default=None)


def _known() -> Plan:
    """Return the plan of the pass that this is called in."""
    plan = _running.get()
    if plan is None:
        raise TypeError(
            "Outside of a model's pass a projection does not know its kernels; give it a plan, "
            "such as model.plan()."
        )
    return plan


def plan_of_pass(x: Tensor) -> Plan:
    """Return the plan of the pass that this is called in, and the reference's outside of one.

    Args:
        x: what is computed with it.
    """
    plan = _running.get()
    if plan is not None:
        return plan
    return build_plan(Traits(ops=_ALONE), x.device, x.dtype, "reference")


# The ops of parts that can be called without their model.
_ALONE = ("linear", "int8_linear", "bias_act", *DECODING)


@contextmanager
def running_on(plan: Plan) -> Iterator[None]:
    """Let the parts that are called within the block find this plan."""
    token = _running.set(plan)
    try:
        yield
    finally:
        _running.reset(token)


def alone(part: nn.Module) -> bool:
    """Return whether one gemm may compute a projection with its activation and residual.

    It may where the projection is ours and nobody looks at its result before they are applied.
    """
    return type(part) in _PROJECTIONS and not hooked(part)


def project(
    part: nn.Module,
    x: Tensor,
    plan: Plan,
    activation: str | Activation = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """Compute activation(part(x)) + residual, whatever computes part(x).

    Args:
        part: a projection of ours, or what someone put in its place, such as an adapter around one
            or a plain nn.Linear.
        x: (tokens, in_features).
        plan: the backends.
        activation: as in the op `linear`.
        residual: (tokens, out_features), added last.

    Returns:
        (tokens, out_features), x.dtype.
    """
    out: Tensor
    if type(part) in _PROJECTIONS and not hooked(part):
        out = part(x, plan, activation, residual)
        return out
    # Their result, and what hooks see, is the projection alone, as in transformers.
    if isinstance(part, Linear | Int8Linear):
        out = part(x, plan)
    else:
        with running_on(plan):
            out = part(x)
    if activation != "none":
        out = plan.bias_act(out, None, activation)
    return out if residual is None else out + residual
