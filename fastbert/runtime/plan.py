"""The Plan: the backend of every op, chosen once, with a reason for each one passed over."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastbert import kernels
from fastbert.errors import Unavailable
from fastbert.kernels import measured, native, training
from fastbert.kernels.registration import overload
from fastbert.ops import (
    ALL,
    REGISTRY,
    Traits,
    act_layer_norm,
    add_layer_norm,
    attention_grouped,
    attention_varlen,
    bias_act,
    channel_gate,
    depthwise_conv,
    embed_layer_norm,
    int8_linear,
    linear,
    linear_w8a16,
    qk_norm_rope,
    quantize_rows,
    rms_norm,
    segment_sums,
    xielu,
)
from fastbert.ops.activations import Activation, activate, unsupported_activation
from fastbert.ops.operands import Mixed, NotPlain, obstacle, unreadable
from fastbert.runtime.tracing import untraced

__all__ = [
    "BACKENDS",
    "Choice",
    "Plan",
    "Traits",
    "Unavailable",
    "build_plan",
    "forced_backend",
    "use_backend",
]

BACKENDS = ("auto", "reference", *kernels.NAMES)
# The backends that "auto" tries on a device; where nothing was measured, the first one that can
# serve is taken. Triton comes before CUDA because its compiler chooses the instructions, while the
# hand-written ones have yet to run on a GPU.
_PREFERENCE = {"cpu": ("cpu",), "cuda": ("triton", "cuda")}
_PROJECTIONS = ("linear", "int8_linear", "linear_w8a16")
_ATTENTION = ("attention_varlen", "attention_grouped")
# On a GPU torch's own gemm is cuBLAS. Under this name the reference of `linear` competes with the
# kernels for 16-bit gemms; it is chosen only where it was measured to be the fastest.
CUBLAS = "cublas"
_CUBLAS_DTYPES = (torch.bfloat16, torch.float16)
_log = logging.getLogger("fastbert")
# The backends on which torch computes, with an algorithm of its own choice.
_TORCH = ("reference", CUBLAS)
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
FORCED_BACKEND: contextvars.ContextVar[str | None] = contextvars.ContextVar("backend", default=None)


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Make every model use a backend within the block, whatever it was loaded with.

    Args:
        name: one of BACKENDS.

    Raises:
        ValueError: for a name that is not one of BACKENDS.
    """
    token = FORCED_BACKEND.set(_known(name))
    try:
        yield
    finally:
        FORCED_BACKEND.reset(token)


def forced_backend() -> str | None:
    """Return the backend of the innermost `use_backend` block, None outside of one."""
    return FORCED_BACKEND.get()


@dataclass(frozen=True)
class Choice:
    """The backend of one op.

    Attributes:
        op: name of the op.
        backend: "reference", "cpu", "cuda", "triton", or "cublas" for torch's own gemm on a GPU.
        isa: the instruction set or architecture that the kernel is compiled for, "" for the
            reference.
        passed_over: (backend, reason) for every backend that was not chosen.
        function: the callable, with the signature of the op's reference.
        note: a remark on the choice, "" for none.
        products: of a gemm on a GPU, the choices for the model's products that differ from this
            one, each with the shape of its weight, (out_features, in_features).
    """

    op: str
    backend: str
    isa: str
    passed_over: tuple[tuple[str, str], ...]
    function: Callable[..., Any]
    note: str = ""
    products: tuple[tuple[tuple[int, int], Choice], ...] = ()

    def of(self, weight: Tensor) -> Choice:
        """Return the choice for the product with a weight."""
        return dict(self.products).get(tuple(weight.shape), self)  # type: ignore[arg-type]

    @property
    def parts(self) -> tuple[Choice, ...]:
        """This choice, and those of the products that differ."""
        return (self, *(choice for _, choice in self.products))


class PlannedOp(Generic[Parameters, Result]):
    """An op as an attribute of a Plan: callable with the signature of its reference.

    A Plan keeps the chosen function under the op's name in its own dictionary, which Python reads
    before this attribute of the class; so a call costs no more than a call of that function.

    Args:
        reference: the reference of the op.
    """

    def __init__(self, reference: Callable[Parameters, Result]) -> None:
        self._reference = reference

    def __get__(self, plan: Plan | None, owner: type[Plan]) -> Callable[Parameters, Result]:
        """Return the reference; on a Plan, Python finds the Plan's own function first."""
        return self._reference


@dataclass(frozen=True)
class Plan:
    """One callable for every op, and why it was chosen. Layers receive it as an argument.

    Attributes:
        device: where the tensors are.
        dtype: of the activations.
        choices: one for every op of the traits, in the order of a forward pass.
        rows: attention and dropout of a pass with gradients or dropout.
    """

    device: torch.device
    dtype: torch.dtype
    choices: tuple[Choice, ...]
    rows: training.RowFunctions = training.BY_DEFINITION
    _by_op: dict[str, Choice] = field(init=False, repr=False, compare=False)

    embed_layer_norm = PlannedOp(embed_layer_norm.embed_layer_norm)
    linear = PlannedOp(linear.linear)
    int8_linear = PlannedOp(int8_linear.int8_linear)
    quantize_rows = PlannedOp(quantize_rows.quantize_rows)
    attention_varlen = PlannedOp(attention_varlen.attention_varlen)
    add_layer_norm = PlannedOp(add_layer_norm.add_layer_norm)
    bias_act = PlannedOp(bias_act.bias_act)
    act_layer_norm = PlannedOp(act_layer_norm.act_layer_norm)
    segment_sums = PlannedOp(segment_sums.segment_sums)
    rms_norm = PlannedOp(rms_norm.rms_norm)
    qk_norm_rope = PlannedOp(qk_norm_rope.qk_norm_rope)
    attention_grouped = PlannedOp(attention_grouped.attention_grouped)
    xielu = PlannedOp(xielu.xielu)
    linear_w8a16 = PlannedOp(linear_w8a16.linear_w8a16)
    depthwise_conv = PlannedOp(depthwise_conv.depthwise_conv)
    channel_gate = PlannedOp(channel_gate.channel_gate)

    def __post_init__(self) -> None:
        vars(self).update({choice.op: choice.function for choice in self.choices})
        object.__setattr__(self, "_by_op", {choice.op: choice for choice in self.choices})

    def choice(self, op: str) -> Choice:
        """Return the choice made for an op, by its name."""
        return self._by_op[op]

    def prepack(self, op: str, weight: Tensor) -> Tensor | None:
        """Pack a weight for this plan's kernel of a projection.

        Args:
            op: "linear", "int8_linear" or "linear_w8a16".
            weight: the weight, as the op takes it.

        Returns:
            The weight in the kernel's own, opaque order; None where the kernel takes it as it is.
        """
        choice = self.choice(op).of(weight)
        if choice.backend in _TORCH:
            return None
        packer = kernels.packer(choice.backend, op)
        return None if packer is None else packer(weight)

    @property
    def batch_invariant(self) -> bool:
        """Whether a text has the same bits alone, in any batch and with any padding.

        All kernels promise that; torch's own gemms do not.
        """
        return not self._by_torch()

    @property
    def by_reference(self) -> bool:
        """Whether the reference computes every op."""
        return all(choice.backend == "reference" for choice in self.choices)

    def _by_torch(self) -> list[str]:
        """Return the ops whose algorithm torch picks, perhaps by the batch."""
        return [
            choice.op
            for choice in self.choices
            if any(part.backend in _TORCH for part in choice.parts)
            and not ALL[choice.op].reference_suffices
        ]

    def lines(self, beside: Sequence[str] = ()) -> list[str]:
        """Describe the plan, line by line.

        Args:
            beside: what torch computes beside the ops of the plan, a clause for each.

        Returns:
            A line for every op (its name, backend, instruction set, and the backends passed over
            with the reasons), one for each reason that holds for all ops, and one on batch
            invariance.
        """
        common = set(self.choices[0].passed_over)
        for choice in self.choices:
            common &= set(choice.passed_over)
        lines = []
        for choice in self.choices:
            told = [f"not {n}: {why}" for n, why in choice.passed_over if (n, why) not in common]
            told += [choice.note] if choice.note else []
            head = f"{choice.op:<16}  {choice.backend:<9}  {choice.isa:<12}"
            lines.append(f"{head}  {'; '.join(told)}".rstrip())
            for (outer, inner), part in choice.products:
                told = [f"not {name}: {why}" for name, why in part.passed_over]
                told += [part.note] if part.note else []
                head = f"{f'  {inner} to {outer}':<16}  {part.backend:<9}  {part.isa:<12}"
                lines.append(f"{head}  {'; '.join(told)}".rstrip())
        for name, why in self.choices[0].passed_over:
            if (name, why) in common:
                lines.append(f"{'all of them':<16}  not {name}: {why}")
        for clause in beside:
            lines.append(f"{'on torch':<16}  {clause}")
        lines.append(f"{'batch invariant':<16}  {self._invariance(bool(beside))}")
        return lines

    def _invariance(self, beside: bool) -> str:
        if beside and not self._by_torch():
            return "no: torch computes a part of it, and may choose its algorithm by the batch"
        torchs = self._by_torch()
        if torchs:
            whole = all(part.backend in _TORCH for choice in self.choices for part in choice.parts)
            ops = "every op" if whole else ", ".join(torchs)
            return f"no: torch computes {ops}, and may choose its algorithm by the batch"
        always = ", as always on the CPU" if self.device.type == "cpu" else ""
        return f"yes: every op runs on a kernel that computes each row by itself{always}"

    def __str__(self) -> str:
        return "\n".join(self.lines())


def build_plan(
    traits: Traits,
    device: torch.device | str,
    dtype: torch.dtype,
    backend: str = "auto",
    strict: bool = False,
    needs_grad: bool = False,
    batch_invariant: bool = False,
) -> Plan:
    """Choose the backend of every op.

    Equal arguments get the same Plan back, without work. A Plan in which an op runs on the
    reference though a kernel was wanted is announced once, in one line, by the logger "fastbert".

    Args:
        traits: the shapes and options of the caller that decide which kernels can serve it.
        device: where the tensors are.
        dtype: of the activations.
        backend: one of BACKENDS; a `use_backend` block around the call overrides it.
        strict: whether to raise where an op would run on the reference without having been asked
            to.
        needs_grad: whether gradients are wanted, which only the reference gives.
        batch_invariant: whether to take our own kernels throughout, so that a text has the same
            bits alone and in any batch, also where cuBLAS was measured to be faster. The CPU
            kernels are batch invariant in any case.

    Raises:
        ValueError: for an unknown backend.
        Unavailable: with all the reasons, when the backend asked for cannot run here or, if strict,
            does not serve every op.
    """
    if torch.compiler.is_compiling():
        return _build_plan_untraced(
            traits, device, dtype, backend, strict, needs_grad, batch_invariant
        )
    device = torch.device(device)
    if device == torch.device("cuda"):
        device = torch.device("cuda", torch.cuda.current_device())
    wanted = _known(FORCED_BACKEND.get() or backend)
    autocast = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(
        device.type
    )
    duals = forward_ad._current_level >= 0
    plan, complaint = _build(
        _Question(traits, device, dtype, wanted, needs_grad, duals, autocast, batch_invariant),
        (native.isa(), native.slow()) if wanted != "reference" else ("", None),
    )
    if complaint:
        if strict:
            raise Unavailable(f"strict=True allows no fallback, but {complaint}.")
        _announce(complaint)
    return plan


# A compiled model asks for its Plan between graphs and gets the Plan that it had.
_build_plan_untraced = untraced(build_plan)


@dataclass(frozen=True)
class _Question:
    """The arguments of build_plan, resolved, and whether autocast is on.

    Attributes:
        traits: as in build_plan.
        device: as in build_plan, with its index.
        dtype: as in build_plan.
        wanted: the backend, that of a `use_backend` block where there is one.
        needs_grad: as in build_plan.
        forward_mode: whether forward-mode derivatives may be computed.
        autocast: whether autocast is on for the device.
        batch_invariant: as in build_plan.
    """

    traits: Traits
    device: torch.device
    dtype: torch.dtype
    wanted: str
    needs_grad: bool
    forward_mode: bool
    autocast: bool
    batch_invariant: bool

    @property
    def candidates(self) -> tuple[str, ...]:
        if self.wanted in kernels.NAMES:
            return (self.wanted,)
        return _PREFERENCE.get(self.device.type, ())


@functools.lru_cache(maxsize=256)
def _build(question: _Question, isa: tuple[str, str | None]) -> tuple[Plan, str]:
    """Build a plan.

    Args:
        question: the arguments of build_plan.
        isa: the instruction set in use, and why "auto" does not take it; they only tell cached
            plans apart.

    Returns:
        The plan, and the ops that fell back to the reference in it, as a text ("" for none).
    """
    wanted, device = question.wanted, question.device
    if wanted in kernels.NAMES:
        reason = kernels.missing(wanted, device)
        if reason is not None:
            raise Unavailable(
                f"The backend {wanted!r} was asked for and cannot run here: {reason}. "
                'Remove the cause, or use backend="auto" or "reference".'
            )
    absent = {name: kernels.missing(name, device) for name in kernels.NAMES}
    if wanted == "auto" and absent["cpu"] is None:
        absent["cpu"] = native.slow()
    names = question.traits.ops or tuple(REGISTRY)
    rows = _row_functions(question, absent["cpu"] is None)
    choices = tuple(_choose(op, question, absent, rows) for op in names)
    plan = Plan(device, question.dtype, choices, rows)
    complaint = _complaint(choices, wanted, question.candidates)
    if question.batch_invariant and not plan.batch_invariant:
        promised = "batch_invariant=True was asked for, which the reference does not promise"
        complaint = f"{complaint}; {promised}" if complaint else f"on the reference: {promised}"
    return plan, complaint


def _general_reason(question: _Question) -> str | None:
    if question.wanted == "reference":
        return "the reference was asked for"
    if question.forward_mode:
        return "forward-mode derivatives are wanted, and kernels have none"
    if question.needs_grad:
        reason = "gradients are wanted, and kernels have no backward pass"
        if question.device.type == "cpu" and question.traits.ops is None:
            reason += (
                "; an encoder in eval mode runs its forward pass on them all the same, and again "
                "here when gradients are asked for"
            )
        return reason
    if question.autocast:
        return "autocast is on, and only the reference follows it"
    return None


def _row_functions(question: _Question, kernels_run: bool) -> training.RowFunctions:
    if question.wanted == "reference" or question.device.type != "cpu":
        return training.BY_DEFINITION
    return training.BY_KERNELS if kernels_run else training.BY_TORCH


def _choose(
    op: str,
    question: _Question,
    absent: dict[str, str | None],
    rows: training.RowFunctions,
) -> Choice:
    traits, dtype, candidates = question.traits, question.dtype, question.candidates
    unknown = unsupported_activation(traits.activation) if op in _PROJECTIONS else None
    # A kernel still serves the gemm where it does not know the activation behind it.
    judged = replace(traits, activation=None) if unknown else traits
    general = _general_reason(question)
    able: list[str] = []
    reasons: dict[str, str] = {}
    for name in (*candidates, *(n for n in kernels.NAMES if n not in candidates)):
        reason = absent[name] or general
        if reason is None and name not in candidates:
            reason = f"backend={question.wanted!r} does not choose it here"
        if reason is None:
            reason = ALL[op].supports(name, judged) or kernels.refusal(
                name, op, judged, dtype, question.device
            )
        if reason is None:
            able.append(name)
        else:
            reasons[name] = reason
    if op == "linear" and question.device.type == "cuda":
        reason = general or _cublas_reason(question)
        if reason is None and able:
            able.append(CUBLAS)
        elif reason is not None:
            reasons[CUBLAS] = reason
    by_sequence = rows is not training.BY_DEFINITION and op in _ATTENTION
    if not able and by_sequence and question.needs_grad and not question.forward_mode:
        return Choice(op, "reference", "", tuple(reasons.items()), rows.attention, rows.note)
    if not able:
        return Choice(op, "reference", "", tuple(reasons.items()), ALL[op].reference)
    chosen = partial(_chosen, op, question, able, reasons, unknown)
    choice = chosen(None)
    if op not in _PROJECTIONS or question.device.type != "cuda":
        return choice
    parts = [(shape, chosen(shape)) for shape in _products(traits)]
    others = tuple(pair for pair in parts if pair[1].backend != choice.backend)
    if not others:
        return choice
    functions = {shape: part.function for shape, part in others}
    function = _by_product(functions, choice.function)
    return replace(choice, function=function, products=others)


def _chosen(
    op: str,
    question: _Question,
    able: list[str],
    reasons: dict[str, str],
    unknown: str | None,
    weight: tuple[int, int] | None,
) -> Choice:
    """Choose one of the backends that can serve.

    Args:
        op: name of the op.
        question: what was asked.
        able: the backends that can serve.
        reasons: why others cannot.
        unknown: why the gemm's activation has no kernel; None where it has one or there is none.
        weight: the shape of a gemm's weight, for one product alone; None for all of them.
    """
    chosen, slower = _fastest(op, question, able, weight)
    passed_over = tuple((reasons | slower).items())
    isa = kernels.instruction_set(chosen, question.device)
    if chosen == CUBLAS:
        note = "its bits may depend on the batch; batch_invariant=True takes a kernel"
        return Choice(op, chosen, isa, passed_over, ALL[op].reference, note)
    function = _entry(op, chosen)
    notes = []
    if unknown:
        function = _activation_behind(op, function)
        notes.append(f"{unknown}; the reference applies it to the product")
    if chosen == "cpu" and question.dtype == torch.float16:
        notes.append("float16 is stored, float32 is computed")
    return Choice(op, chosen, isa, passed_over, function, "; ".join(notes))


def _products(traits: Traits) -> list[tuple[int, int]]:
    """Return the shapes of the weights that an encoder's layers multiply with."""
    hidden, wide = traits.hidden_size, traits.intermediate_size
    if hidden is None:
        return []
    shapes = [(3 * hidden, hidden), (hidden, hidden)]
    return shapes if wide is None else [*shapes, (wide, hidden), (hidden, wide)]


def _by_product(
    functions: dict[tuple[int, int], Callable[..., Tensor]], otherwise: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    def call(x: Tensor, weight: Tensor, /, *args: Any, **kwargs: Any) -> Tensor:
        function = functions.get(tuple(weight.shape), otherwise)  # type: ignore[arg-type]
        return function(x, weight, *args, **kwargs)

    return call


def _cublas_reason(question: _Question) -> str | None:
    if question.wanted != "auto":
        return f"backend={question.wanted!r} does not choose it here"
    if question.dtype not in _CUBLAS_DTYPES:
        return "only 16-bit products are left to it"
    if question.batch_invariant:
        return "batch_invariant=True, and it picks its algorithm by the number of rows"
    return None


def _fastest(
    op: str, question: _Question, able: list[str], weight: tuple[int, int] | None
) -> tuple[str, dict[str, str]]:
    """Find the fastest of the backends that can serve.

    Returns:
        The backend, and for each other one the reason against it.
    """
    if len(able) == 1:
        return able[0], {}
    order = measured.ranking(
        measured.gpu(question.device), op, question.dtype, _size(op, question.traits), able,
        weight=weight,
    )  # fmt: skip
    if isinstance(order, str):
        return able[0], dict.fromkeys(able[1:], f"{able[0]} goes first by default; {order}")
    chosen = next(iter(order.ratios))
    slower = {}
    for name in able:
        if name != chosen:
            ratio = order.ratios.get(name)
            slower[name] = (
                f"not measured beside {chosen} on {order.where}"
                if ratio is None
                else f"{ratio:.2f} times as long as {chosen} on {order.where}"
            )
    return chosen, slower


def _size(op: str, traits: Traits) -> int | None:
    """Return the size by which an op's measurements are filed."""
    if op in _ATTENTION:
        return traits.head_dim
    if op == "embed_layer_norm":
        return traits.embedding_size or traits.hidden_size
    return traits.hidden_size


def _entry(op: str, backend: str) -> Callable[..., Any]:
    kernel, registered = kernels.kernel(backend, op), overload(op, backend)
    check, target, function = kernel.check, kernel.target, kernel.function
    reference = ALL[op].reference

    def call(*args: Any, **kwargs: Any) -> Any:
        if forward_ad._current_level >= 0:
            return reference(*args, **kwargs)
        # torch's dispatcher costs 2 to 6 us a call; only tracing and autograd need to see the call.
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            return registered(*map(_plain, args), **{k: _plain(v) for k, v in kwargs.items()})
        try:
            if torch.is_grad_enabled():
                odd = obstacle(args, tuple(kwargs.values()), memory=False)
                if odd is None:
                    return registered(
                        *map(_plain, args), **{k: _plain(v) for k, v in kwargs.items()}
                    )
                told = f"for {odd}"
            else:
                operands = check(target, *args, **kwargs)
                if obstacle(operands) is None:
                    return function(operands)
                error = unreadable(op, operands._asdict())
                if not isinstance(error, NotPlain):
                    raise error
                told = f"for such a tensor: {error}"
        except Mixed as mixture:
            told = f"for several precisions: {mixture}"
        _announce(f"{op} on the reference {told}")
        return reference(*args, **kwargs)

    return call


def _plain(value: Any) -> Any:
    """Return an argument as torch.library takes it: a parametrised activation as text."""
    return str(value) if isinstance(value, Activation) else value


def _activation_behind(op: str, gemm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    signature = inspect.signature(ALL[op].reference)

    def call(*args: Any, **kwargs: Any) -> Tensor:
        given = signature.bind(*args, **kwargs).arguments
        activation = given.get("activation", "none")
        if unsupported_activation(activation) is None:
            return gemm(**given)
        residual = given.pop("residual", None)
        out = activate(gemm(**{**given, "activation": "none"}), activation)
        return out if residual is None else out + residual

    return call


def _complaint(choices: tuple[Choice, ...], wanted: str, candidates: tuple[str, ...]) -> str:
    if wanted == "reference":
        return ""
    by_reason: dict[str, list[str]] = {}
    for choice in choices:
        reasons = dict(choice.passed_over)
        if choice.backend == "reference":
            if ALL[choice.op].reference_suffices:
                continue
            why = "; ".join(f"{name}: {reasons[name]}" for name in candidates)
            by_reason.setdefault(why or "no backend has kernels for this device", []).append(
                choice.op
            )
        elif "the reference applies it" in choice.note:
            by_reason.setdefault(choice.note, []).append(choice.op)
    parts = []
    for why, ops in by_reason.items():
        whole = all(choice.backend == "reference" for choice in choices)
        names = "every op" if whole and len(by_reason) == 1 else ", ".join(ops)
        parts.append(f"{names} on the reference ({why})")
    return "; ".join(parts)


@functools.cache
def _announce(complaint: str) -> None:
    _log.warning("fastbert runs %s", complaint)


def tell_of_torch(parts: Sequence[str], strict: bool, batch_invariant: bool) -> None:
    """Say that torch computes parts of a pass, to whoever asked for kernels or for their bits.

    Args:
        parts: a clause for each.
        strict: raise.
        batch_invariant: warn, once for the same parts.

    Raises:
        Unavailable: if strict.
    """
    named = "; ".join(parts)
    if strict:
        raise Unavailable(
            f"strict=True allows no fallback, but torch would compute a part of this pass: {named}."
        )
    if batch_invariant:
        _announce(
            "a part of the pass by torch, though batch_invariant=True was asked for: a text's bits "
            f"may depend on its batch, since {named}"
        )


def _known(name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"There is no backend {name!r}; choose one of {', '.join(BACKENDS)}.")
    return name
