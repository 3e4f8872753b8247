"""What an op is: one frozen record holding everything that is true of it on every backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Arguments = dict[str, Any]
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Traits:
    """The shapes and habits of a caller, as far as they decide which kernels can serve it.

    A field left at None is not known; an op judges only what it is told.
    """

    num_heads: int | None = None
    head_dim: int | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    embedding_size: int | None = None
    activation: str | None = None
    attention_dropout: float = 0.0
    quantized: bool = False


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
        schema: argument and result types in torch's schema language, without the name.
        reference: plain differentiable torch, any floating dtype; the definition of the op.
        fake: shapes and dtypes of the results, for tracing without data.
        supports: (backend, traits) -> None, or the reason why that backend cannot serve them.
        tolerances: per dtype of the floating inputs.
        cases: sample calls that tests and benchmarks share.
        mutations: wrong implementations that `cases` and `tolerances` must expose.
        differentiable: False where results are integers.
    """

    name: str
    schema: str
    reference: Callable[..., Any]
    fake: Callable[..., Any]
    supports: Callable[[str, Traits], str | None]
    tolerances: Mapping[torch.dtype, Tolerance]
    cases: Callable[[], Iterator[Case]]
    mutations: tuple[Mutation, ...]
    differentiable: bool = True

    @property
    def doc(self) -> str:
        return self.reference.__doc__ or ""
