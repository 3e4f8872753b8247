"""The activation xIELU, whose two slopes are learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastbert.ops._op import STANDARD_TOLERANCES, Arguments, Case, Mutation, Op, Traits
from fastbert.ops._sample import Sampler
from fastbert.ops.operands import Target, by_rows, fits, operand, two_dimensional, wrong_kind


def xielu(x: Tensor, alpha_p: Tensor, alpha_n: Tensor, beta: Tensor, eps: Tensor) -> Tensor:
    """Compute xIELU of every element, in float32 or better.

    With p = softplus(alpha_p) and n = beta + softplus(alpha_n): p x^2 + beta x where x > 0, else
    n (expm1(min(x, eps)) - x) + beta x. At 0 that is n expm1(eps), not 0. Its derivative between
    eps and 0 is beta - n, since the minimum passes no gradient there.

    Args:
        x: (..., width), floating; kernels take (rows, width).
        alpha_p: one element of x.dtype, what is learned of the square's factor.
        alpha_n: one element of x.dtype, what is learned of the exponential's factor.
        beta: one element of x.dtype, the slope at 0.
        eps: one element of x.dtype, negative and near 0: where expm1 stops.

    Returns:
        x's shape and dtype.

    Source: Huang, Schlag 2024, "Deriving activation functions using integration", arXiv
    2411.13010.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    square, exponential = slopes(*(part.to(wide) for part in (alpha_p, alpha_n, beta)))
    rows, slope = x.to(wide), beta.to(wide)
    above = square * rows * rows + slope * rows
    below = (torch.expm1(torch.minimum(rows, eps.to(wide))) - rows) * exponential + slope * rows
    return torch.where(rows > 0, above, below).to(x.dtype)


def slopes(alpha_p: Tensor, alpha_n: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factors of the square and of the exponential; what a kernel folds beforehand."""
    return F.softplus(alpha_p), beta + F.softplus(alpha_n)


class XieluOperands(NamedTuple):
    """Checked operands of `xielu`.

    Attributes:
        code: of the dtype.
        rows, width: shape of x.
        x: (rows, width), by rows.
        alpha_p, alpha_n, beta, eps: one element each, of x.dtype; their values are not looked at,
            which would wait for the device.
    """

    code: int
    rows: int
    width: int
    x: Tensor
    alpha_p: Tensor
    alpha_n: Tensor
    beta: Tensor
    eps: Tensor


def check(
    target: Target, x: Tensor, alpha_p: Tensor, alpha_n: Tensor, beta: Tensor, eps: Tensor
) -> XieluOperands:
    """Return the operands of `xielu`.

    Raises:
        TypeError, ValueError: for operands that kernels do not take, with the reason.
    """
    x, code = operand("xielu", "x", x, target)
    rows, width = two_dimensional("xielu", "x", x)
    numbers = {"alpha_p": alpha_p, "alpha_n": alpha_n, "beta": beta, "eps": eps}
    for name, number in numbers.items():
        if not fits(number, x.dtype, x.device):
            raise wrong_kind("xielu", name, number, x.dtype, x.device)
        if number.numel() != 1:
            raise ValueError(
                f"xielu: {name} has shape {tuple(number.shape)}, expected a single element."
            )
    return XieluOperands(code, rows, width, by_rows(x), alpha_p, alpha_n, beta, eps)


def fake(*, x: Tensor, **_: object) -> Tensor:
    """Return an empty result."""
    return x.new_empty(x.shape)


def supports(backend: str, traits: Traits) -> str | None:
    """Return None, or why the backend's kernel cannot serve these traits."""
    return None


def _make(
    dtype: torch.dtype,
    *,
    rows: int,
    width: int,
    std: float = 1.0,
    mean: float = 0.0,
    alphas: tuple[float, float] = (0.2034, -1.0502),
    beta: float = 0.5,
) -> Arguments:
    sample = Sampler(rows * 1009 + width, dtype)
    return {
        "x": sample.normal(rows, width, std=std, mean=mean),
        "alpha_p": torch.tensor([alphas[0]], dtype=dtype),
        "alpha_n": torch.tensor([alphas[1]], dtype=dtype),
        "beta": torch.tensor(beta, dtype=dtype),
        "eps": torch.tensor(-1e-6, dtype=dtype),
    }


def cases() -> Iterator[Case]:
    """Yield the sample calls."""
    for rows, width in [(0, 8), (1, 1), (3, 7), (2, 8), (4, 16), (3, 17), (7, 37), (2, 1031)]:
        yield Case(f"{rows}x{width}", partial(_make, rows=rows, width=width))
    yield Case("wide", partial(_make, rows=5, width=65, std=20.0, alphas=(-1.5, 1.0)))
    yield Case("learned", partial(_make, rows=5, width=65, alphas=(1.5, 2.0), beta=0.25))
    yield Case("negative", partial(_make, rows=5, width=65, mean=-6.0))
    # Rounding shows in expm1 near 0 only; and zeros are what a wrong branch or eps shows in. There
    # the exponential's factor is large, so that float16 holds the result.
    yield Case("near-zero", partial(_make, rows=5, width=65, std=1e-3, alphas=(0.0, 9.0)))
    yield Case("zeros", partial(_make, rows=3, width=9, std=0.0, alphas=(0.2034, 1000.0)))


def _changed(**changes: Callable[[Any], Any]) -> Callable[..., Tensor]:
    def mutated(**arguments: Any) -> Tensor:
        return xielu(
            **{name: changes.get(name, lambda v: v)(value) for name, value in arguments.items()}
        )

    return mutated


def _rebuilt(
    factors: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = slopes,
    exponential: Callable[[Tensor], Tensor] = torch.expm1,
    from_zero: bool = False,
) -> Callable[..., Tensor]:
    """Return the op with other factors, another exponential or another branch at 0."""

    def mutated(x: Tensor, alpha_p: Tensor, alpha_n: Tensor, beta: Tensor, eps: Tensor) -> Tensor:
        rows, slope = x.float(), beta.float()
        p, n = factors(alpha_p.float(), alpha_n.float(), slope)
        below = (exponential(torch.minimum(rows, eps.float())) - rows) * n + slope * rows
        above = p * rows * rows + slope * rows
        return torch.where(rows >= 0 if from_zero else rows > 0, above, below).to(x.dtype)

    return mutated


def _exp_less_one(x: Tensor) -> Tensor:
    return torch.exp(x) - 1


def _beta_twice(alpha_p: Tensor, alpha_n: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    p, n = slopes(alpha_p, alpha_n, beta)
    return p + beta, n + beta


def _no_softplus(alpha_p: Tensor, alpha_n: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    return alpha_p, beta + alpha_n


def _without_beta(alpha_p: Tensor, alpha_n: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    p, n = slopes(alpha_p, alpha_n, beta)
    return p, n - beta


def _swapped(alpha_p: Tensor, alpha_n: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    return slopes(alpha_n, alpha_p, beta)


OP = Op(
    name="xielu",
    reference=xielu,
    check=check,
    fake=fake,
    supports=supports,
    tolerances=STANDARD_TOLERANCES,
    cases=cases,
    mutations=(
        Mutation("beta added twice", _rebuilt(_beta_twice)),
        Mutation("beta left out of the exponential's factor", _rebuilt(_without_beta)),
        Mutation("softplus forgotten", _rebuilt(_no_softplus)),
        Mutation("alphas swapped", _rebuilt(_swapped)),
        Mutation("zero belongs to the square", _rebuilt(from_zero=True)),
        Mutation("expm1 as exp - 1", _rebuilt(exponential=_exp_less_one), (torch.float32,)),
        Mutation("sign of eps", _changed(eps=lambda x: -x)),
        Mutation(
            "parameters ignored", _changed(alpha_p=torch.zeros_like, alpha_n=torch.zeros_like)
        ),
    ),
)
