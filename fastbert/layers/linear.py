"""Linear projections: nn.Linear's parameters, the product done by the Plan's op."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastbert.layers.hooks import hooked
from fastbert.layers.methods import as_defined, patched
from fastbert.layers.unfilled import weights_device
from fastbert.ops import DECODING
from fastbert.ops.activations import Activation
from fastbert.ops.operands import obstacle
from fastbert.runtime.plan import Choice, Plan, Traits, build_plan
from fastbert.runtime.tracing import untraced
from fastbert.runtime.versions import Contents, Gradients, Kept, stamp


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


class Prepacked(Kept):
    """A weight in a kernel's own order, made again whenever the weight has changed.

    Attributes:
        gradients: counts the backward passes that may reach the weight.
        doubtful: whether an adapter around another module that has the same weight may write to it
            in ways that torch does not count, so that all bytes are compared.
    """

    def __init__(self) -> None:
        self.gradients = Gradients()
        self.doubtful = False
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
        adapted = adapted or self.doubtful
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
            if weight.is_floating_point() and weight.dtype is not plan.dtype:
                return None  # the op says what it makes of two precisions
            if obstacle(weight, memory=False) is not None:
                return None
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


@as_defined
class Linear(nn.Linear):
    """activation(x @ weight.T + bias) + residual.

    Parameters are those of nn.Linear: weight (out_features, in_features), bias (out_features,).
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias, device=weights_device())
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
            x: (rows, in_features), or (..., in_features).
            plan: the backends; None for those of the pass that this is called in, and torch's own
                product outside of a pass.
            activation: as in the op `linear`.
            residual: (rows, out_features), added last.
            bias: False leaves the bias to a later op.

        Returns:
            (rows, out_features), or (..., out_features), x.dtype.
        """
        # Called as torch calls a linear layer: by somebody's module around this one, or by hand.
        adapted, leading = plan is None, x.shape[:-1]
        if plan is None:
            plan = _running.get()
            if plan is None or patched(nn.Linear):
                return super().forward(x)
        wide = x.dim() != 2
        x = x.reshape(-1, x.shape[-1]) if wide else x
        weight = self.weight
        out: Tensor = plan.linear(
            x,
            weight,
            self.bias if bias else None,
            activation,
            residual,
            self._prepacked.get("linear", weight, plan, adapted),
        )
        if torch.is_grad_enabled():
            if torch.compiler.is_compiling():
                self._prepacked.gradients.traced = True
            else:
                self._prepacked.gradients.follow(out)
        return out.reshape(*leading, weight.shape[0]) if wide else out


# What kernels read the buffers of an Int8Linear as.
INT8_DTYPES = {
    "qweight": torch.int8,
    "weight_scale": torch.float32,
    "factor": torch.float32,
    "repeated": torch.int32,
}
# Buffers of Int8Linear that stay float32 whatever the precision of the model.
FLOAT32_BUFFERS = ("weight_scale", "factor")


def as_int8_part(name: str, tensor: Tensor, in_features: int) -> Tensor:
    """Return a buffer of an Int8Linear in the dtype that kernels read it as.

    Args:
        name: of the buffer.
        tensor: what is to stand there. Floating scales of any precision become float32, column
            numbers of any width int32; a weight must be int8.
        in_features: the columns there are.

    Raises:
        ValueError: for another dtype, or a column that does not exist.
    """
    wanted = INT8_DTYPES[name]
    alike = tensor.is_floating_point() == wanted.is_floating_point and tensor.dtype != torch.bool
    if not alike or (wanted is torch.int8 and tensor.dtype is not wanted):
        raise ValueError(
            f"the {name} of an int8 projection is {str(wanted).removeprefix('torch.')}, not "
            f"{str(tensor.dtype).removeprefix('torch.')}; quantise and save the model again."
        )
    if name == "repeated" and tensor.numel() and not tensor.is_meta:
        least, largest = (int(value) for value in torch.aminmax(tensor))
        if least < 0 or largest >= in_features:
            raise ValueError(
                f"an int8 projection of {in_features} columns repeats the column "
                f"{least if least < 0 else largest}; quantise and save the model again."
            )
    return tensor.to(wanted)


def share_with(decoder: nn.Module | None, adapted: bool) -> None:
    """Tell a projection whether an adapter stands around the table that its weight is tied to.

    peft merges by `weight.data += x` into the table, and so into the projection.
    """
    if isinstance(decoder, Linear) and decoder._prepacked.doubtful != adapted:
        decoder._prepacked.doubtful = adapted


@as_defined
class Int8Linear(nn.Module):
    """A Linear whose weight is int8 with one scale per output channel.

    Attributes:
        op: "int8_linear", which rounds rows to 8 bits, or "linear_w8a16", which keeps 16.
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
    # What makes the weight where none is held, and what it made for passes that go op by op.
    _source: Callable[[bool], tuple[Tensor, Tensor]] | None = None
    _made: tuple[Tensor, Tensor] | None = None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        factor: bool = False,
        repeats: int = 0,
        wide_rows: bool = False,
    ) -> None:
        super().__init__()
        self.op = "linear_w8a16" if wide_rows else "int8_linear"
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

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, *rest: Any
    ) -> None:
        # With assign=True torch puts tensors here as they are, without it copies round in silence.
        errors = rest[-1]
        for name in INT8_DTYPES:
            given = state_dict.get(prefix + name)
            if isinstance(given, Tensor):
                try:
                    state_dict[prefix + name] = as_int8_part(name, given, self.in_features)
                except ValueError as error:
                    errors.append(f"{prefix}{name}: {error}")
                    state_dict[prefix + name] = self._buffers[name]  # It stays, whole.
        super()._load_from_state_dict(state_dict, prefix, metadata, *rest)

    @property
    def columns(self) -> int:
        """Columns of qweight: in_features, and those that stand in it once more."""
        repeated = self._buffers.get("repeated")
        return self.in_features + (0 if repeated is None else repeated.numel())

    def make_from(self, source: Callable[[bool], tuple[Tensor, Tensor]]) -> None:
        """Hold no weight, but make it each time that kernels pack it.

        A pass that calls this module, rather than a prepared encoder, keeps what it made.

        Args:
            source: returns qweight and weight_scale; True where they are needed for a moment only.
        """
        self._source, self._made = source, None
        self._buffers.update(qweight=None, weight_scale=None)

    def hold(self) -> None:
        """Hold the weight as buffers, as a projection does that makes none."""
        if self._source is not None:
            self._buffers["qweight"], self._buffers["weight_scale"] = self._weights()
            self._source = self._made = None

    def _weights(self) -> tuple[Tensor, Tensor]:
        """Return qweight and weight_scale, which are held from now on."""
        if self._source is None:
            return self.qweight, self.weight_scale
        if self._made is None:
            self._made = self._source(False)
        return self._made

    def parts(self) -> dict[str, Tensor]:
        """Return the buffers that kernels read, by name, in the dtypes that they read.

        Raises:
            ValueError: for a buffer of another shape, or in a dtype without a way there.
        """
        held = {name: self._buffers.get(name) for name in INT8_DTYPES}
        if self._source is not None:
            held["qweight"], held["weight_scale"] = self._made or self._source(True)
        found = {
            name: as_int8_part(name, tensor, self.in_features)
            for name, tensor in held.items()
            if tensor is not None
        }
        repeats = found["repeated"].numel() if "repeated" in found else 0
        shapes = {
            "qweight": (self.out_features, self.in_features + repeats),
            "weight_scale": (self.out_features,),
            "factor": (self.in_features,),
            "repeated": (repeats,),
        }
        for name, tensor in found.items():
            if tensor.shape != shapes[name]:
                raise ValueError(
                    f"The {name} of an int8 projection of {self.in_features} columns has the "
                    f"shape {tuple(tensor.shape)}, not {shapes[name]}."
                )
        return found

    def forward(
        self,
        x: Tensor,
        plan: Plan | None = None,
        activation: str | Activation = "none",
        residual: Tensor | None = None,
    ) -> Tensor:
        """As Linear.forward, with the rows of x quantised on the way in."""
        if plan is None:
            alone = Traits(quantized=True, ops=(self.op,))
            plan = _running.get() or build_plan(alone, x.device, x.dtype)
            return self.forward(x.reshape(-1, x.shape[-1]), plan).reshape(*x.shape[:-1], -1)
        wide, leading = x.dim() != 2, x.shape[:-1]
        gemm = plan.int8_linear if self.op == "int8_linear" else plan.linear_w8a16
        qweight, weight_scale = self._weights()
        out: Tensor = gemm(
            x.reshape(-1, x.shape[-1]) if wide else x,
            qweight,
            weight_scale,
            self.bias,
            activation,
            residual,
            self._prepacked.get(self.op, qweight, plan),
            self.factor,
            self.repeated,
        )
        return out.reshape(*leading, self.out_features) if wide else out

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


def current_plan() -> Plan | None:
    """Return the plan of the pass that this is called in; None outside of one."""
    return _running.get()


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
    """Let projections that are called without a plan take this one, within the block."""
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
    with running_on(plan):
        out = part(x)
    if activation != "none":
        out = plan.bias_act(out, None, activation)
    return out if residual is None else out + residual
