"""What an op is: one frozen record holding everything that is true of it on every backend."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from fastbert.ops.activations import Activation

Arguments = dict[str, Any]
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Traits:
    """The shapes and habits of a caller, as far as they decide which kernels can serve it.

    A field left at None is not known; an op judges only what it is told.

    Attributes:
        num_kv_heads: heads of keys and values, where groups of query heads share one.
        ops: names of the ops that the caller runs; None for all of `fastbert.ops.REGISTRY`.
    """

    num_heads: int | None = None
    head_dim: int | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    embedding_size: int | None = None
    activation: str | Activation | None = None
    attention_dropout: float = 0.0
    quantized: bool = False
    num_kv_heads: int | None = None
    ops: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Tolerance:
    """How far a kernel may be from the float64 reference.

    Attributes:
        bound: largest root mean square of the error, relative to that of the exact result.
        factor: largest ratio to the error of the reference computed in the kernel's own dtype.
    """

    bound: float
    factor: float = 2.0


# One rounding of the result costs 2^-9 / sqrt(3) = 1.1e-3 in bfloat16 and 1.4e-4 in float16, and
# the reference rounds its intermediate results as well.
STANDARD_TOLERANCES: Mapping[torch.dtype, Tolerance] = {
    torch.float32: Tolerance(1e-5),
    torch.bfloat16: Tolerance(8e-3),
    torch.float16: Tolerance(1e-3),
}


@dataclass(frozen=True)
class Case:
    """A sample call: `make(dtype)` gives the keyword arguments, always the same for one dtype."""

    name: str
    make: Callable[[torch.dtype], Arguments]


@dataclass(frozen=True)
class Mutation:
    """A wrong implementation that the op's own cases and tolerances must expose.

    Attributes:
        name: what is wrong, in a few words.
        function: takes the op's arguments, returns what the wrong kernel would.
        dtypes: where it is a mistake; accumulating in bfloat16 is none for a bfloat16 copy.
    """

    name: str
    function: Callable[..., Any]
    dtypes: tuple[torch.dtype, ...] = FLOATS


@dataclass(frozen=True)
class Op:
    """One operation of the package.

    Attributes:
        name: the torch.library name, `fastbert::<name>`; each backend is an overload of it.
        reference: plain differentiable torch, any floating dtype; the definition of the op. Its
            signature is the public one, from which the schema is made.
        check: takes a `Target` and the arguments of the reference, and returns the operands, the
            one structure that the function of every compiled backend takes.
        fake: shapes and dtypes of the results, for tracing without data; takes by name what it
            needs of the reference's arguments.
        supports: (backend, traits) -> None, or the reason why that backend cannot serve them.
        tolerances: per dtype of the floating inputs.
        cases: sample calls that tests and benchmarks share.
        mutations: wrong implementations that `cases` and `tolerances` must expose.
        differentiable: False where results are integers.
        reference_suffices: whether a Plan may take the reference without complaint where there is
            no kernel: it computes each row in a fixed order, and no model's pass waits for it.
    """

    name: str
    reference: Callable[..., Any]
    check: Callable[..., Any]
    fake: Callable[..., Any]
    supports: Callable[[str, Traits], str | None]
    tolerances: Mapping[torch.dtype, Tolerance]
    cases: Callable[[], Iterator[Case]]
    mutations: tuple[Mutation, ...]
    differentiable: bool = True
    reference_suffices: bool = False

    @property
    def doc(self) -> str:
        """What the op computes: the docstring of the reference."""
        return self.reference.__doc__ or ""

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """Names of the arguments, in order."""
        return tuple(inspect.signature(self.reference).parameters)

    @cached_property
    def schema(self) -> str:
        """Argument and result types in torch's schema language, without the name."""
        return schema_of(self.reference)


# Annotations of a reference in torch's schema language.
_SCHEMA_TYPES = {
    "Tensor": "Tensor",
    "Tensor | None": "Tensor?",
    "str | Activation": "str",
    "float": "float",
    "int": "SymInt",
    "bool": "bool",
}


def schema_of(reference: Callable[..., Any]) -> str:
    """Return the schema of an op, made from the annotations of its reference.

    Raises:
        KeyError: for an annotation that has no counterpart in a schema.
    """
    signature = inspect.signature(reference)
    arguments = []
    for name, parameter in signature.parameters.items():
        argument = f"{_SCHEMA_TYPES[parameter.annotation]} {name}"
        if parameter.default is not parameter.empty:
            argument += f"={parameter.default!r}"
        arguments.append(argument)
    results = [part.strip() for part in _results(signature.return_annotation)]
    returned = results[0] if len(results) == 1 else f"({', '.join(results)})"
    return f"({', '.join(arguments)}) -> {returned}"


def _results(annotation: str) -> list[str]:
    return annotation.removeprefix("tuple[").removesuffix("]").split(",")
