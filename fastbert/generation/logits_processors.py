"""Changes that generate() makes to the scores of the next token before one is chosen."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastbert.generation.config import GenerationConfig

LogitsProcessor = Callable[[Tensor, Tensor], Tensor]


def processors(settings: GenerationConfig, prompt: int, padding: Tensor) -> list[LogitsProcessor]:
    """List the changes of scores that the settings ask for, in transformers' order.

    Args:
        settings: the settings of generate().
        prompt: length of the prompts.
        padding: (rows,), columns of padding before each prompt.

    Returns:
        Functions of ids so far (rows, length) and scores (rows, vocabulary) that return new scores.

    Raises:
        ValueError: for a temperature that is not positive.
    """
    steps: list[LogitsProcessor] = []
    if settings.repetition_penalty != 1.0:
        steps.append(
            lambda ids, scores: _penalise(ids, scores, settings.repetition_penalty, padding)
        )
    if settings.no_repeat_ngram_size > 0:
        steps.append(lambda ids, scores: _forbid_ngrams(ids, scores, settings.no_repeat_ngram_size))
    least = max(settings.min_length, prompt + (settings.min_new_tokens or 0))
    if least > prompt and settings.ends():
        steps.append(lambda ids, scores: _forbid_ends(ids, scores, settings.ends(), least))
    if settings.do_sample:
        if settings.temperature <= 0:
            raise ValueError(
                "temperature must be positive; for the likeliest token use do_sample=False."
            )
        steps.append(lambda _, scores: scores / settings.temperature)
        # Beam search must find as many candidates as it keeps.
        least_kept = max(2, 1 + len(settings.ends())) if settings.num_beams > 1 else 1
        if settings.top_k:
            steps.append(lambda _, scores: _top_k(scores, max(settings.top_k, least_kept)))
        if settings.top_p < 1.0:
            steps.append(lambda _, scores: _top_p(scores, settings.top_p, least_kept))
    return steps


def _penalise(ids: Tensor, scores: Tensor, penalty: float, padding: Tensor) -> Tensor:
    text = torch.arange(ids.shape[1], device=ids.device) >= padding[:, None]
    seen = torch.zeros(scores.shape, dtype=torch.long, device=scores.device)
    seen = seen.scatter_add(1, ids, text.long()) > 0
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def _forbid_ngrams(ids: Tensor, scores: Tensor, size: int) -> Tensor:
    scores = scores.clone()
    if ids.shape[1] < size:
        return scores
    for row, text in enumerate(ids.tolist()):
        tail = tuple(text[len(text) - size + 1 :])
        for start in range(len(text) - size + 1):
            if tuple(text[start : start + size - 1]) == tail:
                scores[row, text[start + size - 1]] = -float("inf")
    return scores


def _forbid_ends(ids: Tensor, scores: Tensor, ends: list[int], least: int) -> Tensor:
    if ids.shape[1] >= least:
        return scores
    return scores.index_fill(1, torch.tensor(ends, device=scores.device), -float("inf"))


def _top_k(scores: Tensor, count: int) -> Tensor:
    lowest = scores.topk(min(count, scores.shape[1])).values[:, -1:]
    return scores.masked_fill(scores < lowest, -float("inf"))


def _top_p(scores: Tensor, share: float, least: int) -> Tensor:
    ordered, order = scores.sort(dim=-1)
    drop = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - share
    drop[:, -least:] = False
    return scores.masked_fill(drop.scatter(1, order, drop), -float("inf"))
