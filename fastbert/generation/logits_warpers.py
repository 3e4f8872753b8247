"""Changes of scores before a token is drawn: which tokens may be drawn, and how likely each is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastbert.generation.config import GenerationConfig

# Which tokens are left out, of scores (rows, vocabulary); bool of the same shape.
_Rule = Callable[[Tensor], Tensor]


def warpers(settings: GenerationConfig) -> list[Callable[[Tensor, Tensor], Tensor]]:
    """List the changes of scores that drawing asks for, in transformers' order.

    Args:
        settings: the settings of generate().

    Returns:
        Functions of ids so far (rows, length) and scores (rows, vocabulary) that return new scores.

    Raises:
        ValueError: for a temperature that is not positive, or shares that are none.
    """
    if settings.temperature <= 0:
        raise ValueError(
            "temperature must be positive; for the likeliest token use do_sample=False."
        )
    # Beam search must find as many candidates as it keeps.
    least = max(2, 1 + len(settings.ends())) if settings.num_beams > 1 else 1
    top_k, top_p, min_p = settings.top_k, settings.top_p, settings.min_p
    mass, epsilon, eta = settings.typical_p, settings.epsilon_cutoff, settings.eta_cutoff
    if top_k < 0 or top_k != int(top_k):
        raise ValueError(f"top_k is a number of tokens, or 0 for all, not {top_k!r}.")
    _check_share("top_p", top_p)
    rules: list[_Rule] = []
    if top_k:
        rules.append(lambda scores: _beyond_top_k(scores, max(int(top_k), least)))
    if top_p < 1.0:
        rules.append(lambda scores: _beyond_top_p(scores, top_p, least))
    if min_p is not None:
        _check_share("min_p", min_p)
        rules.append(lambda scores: _below_min_p(scores, min_p, least))
    if mass < 1.0:
        _check_share("typical_p", mass)
        rules.append(lambda scores: _untypical(scores, mass, least))
    if epsilon:
        _check_share("epsilon_cutoff", epsilon)
        rules.append(lambda scores: _unlikely(scores, scores.softmax(-1) < epsilon, least))
    if eta:
        _check_share("eta_cutoff", eta)
        rules.append(lambda scores: _unlikely(scores, _below_eta(scores, eta), least))
    return [
        lambda _, scores: scores / settings.temperature,
        *(_without(rule) for rule in rules),
    ]


def _check_share(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} is a share from 0 to 1, not {value!r}.")


def _without(rule: _Rule) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda _, scores: scores.masked_fill(rule(scores), -math.inf)


def _beyond_top_k(scores: Tensor, count: int) -> Tensor:
    return scores < scores.topk(min(count, scores.shape[1])).values[:, -1:]


def _beyond_top_p(scores: Tensor, share: float, least: int) -> Tensor:
    ordered, order = scores.sort(dim=-1)
    drop = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - share
    drop[:, -least:] = False
    return drop.scatter(1, order, drop)


def _below_min_p(scores: Tensor, share: float, least: int) -> Tensor:
    likely = scores.softmax(dim=-1)
    drop = likely < share * likely.amax(dim=-1, keepdim=True)
    kept = likely.topk(min(least, likely.shape[-1]), dim=-1).indices
    return drop.scatter(-1, kept, False)


def _untypical(scores: Tensor, mass: float, least: int) -> Tensor:
    """Leave out tokens whose surprise is far from the expected one (arXiv 2202.00666)."""
    log = scores.log_softmax(dim=-1)
    expected = -(log * log.exp()).nansum(-1, keepdim=True)
    distance, order = (-log - expected).abs().sort()
    reached = scores.gather(-1, order).softmax(dim=-1).cumsum(dim=-1)
    last = (reached < mass).sum(dim=1, keepdim=True).clamp(max=distance.shape[-1] - 1)
    drop = distance > distance.gather(1, last)
    drop[:, :least] = False
    return drop.scatter(1, order, drop)


def _below_eta(scores: Tensor, epsilon: float) -> Tensor:
    """Leave out tokens below a bound that falls with the entropy (arXiv 2210.15191)."""
    likely = scores.softmax(dim=-1)
    spread: Any = torch.distributions.Categorical(logits=scores)
    entropy: Tensor = spread.entropy()
    bound: Tensor = torch.exp(-entropy) * epsilon**0.5
    return likely < bound.clamp(max=epsilon)[:, None]


def _unlikely(scores: Tensor, drop: Tensor, least: int) -> Tensor:
    return drop & _beyond_top_k(scores, least)
