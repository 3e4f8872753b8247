"""Changes that generate() makes to the scores of the next token before one is chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastbert.generation.config import GenerationConfig

LogitsProcessor = Callable[[Tensor, Tensor], Tensor]
# From the number of a prompt and the ids of a text, those of the tokens that may follow.
PrefixAllowedTokens = Callable[[int, Tensor], Iterable[int]]


def processors(
    settings: GenerationConfig,
    prompt: int,
    padding: Tensor,
    limit: int,
    prefix_allowed_tokens_fn: PrefixAllowedTokens | None = None,
) -> list[LogitsProcessor]:
    """List the changes of scores for whichever way a token is chosen, in transformers' order.

    Args:
        settings: the settings of generate().
        prompt: length of the prompts.
        padding: (rows,), columns of padding before each prompt.
        limit: length at which every text ends.
        prefix_allowed_tokens_fn: says which tokens may follow a text; None allows all.

    Returns:
        Functions of ids so far (rows, length) and scores (rows, vocabulary) that return new scores.

    Raises:
        ValueError: for settings that name no tokens where tokens are wanted.
    """
    steps: list[LogitsProcessor] = []
    ends = settings.ends()
    if settings.sequence_bias is not None:
        steps.append(SequenceBias(_biases(settings.sequence_bias)))
    if settings.repetition_penalty != 1.0:
        penalty = _above_zero("repetition_penalty", settings.repetition_penalty)
        steps.append(lambda ids, scores: _penalise(ids, scores, penalty, padding))
    if settings.no_repeat_ngram_size > 0:
        steps.append(lambda ids, scores: _forbid_ngrams(ids, scores, settings.no_repeat_ngram_size))
    if settings.bad_words_ids is not None:
        words = _words(settings.bad_words_ids)
        # A text may always end.
        steps.append(SequenceBias({w: -math.inf for w in words if w not in {(e,) for e in ends}}))
    new = settings.min_new_tokens
    least = settings.min_length if new is None else prompt + new
    if least > prompt and ends:
        steps.append(lambda ids, scores: _forbid_ends(ids, scores, ends, least))
    if prefix_allowed_tokens_fn is not None:
        allowed, beams = prefix_allowed_tokens_fn, settings.num_beams
        steps.append(lambda ids, scores: _only_allowed(ids, scores, allowed, beams))
    first, last = settings.forced_bos_token_id, settings.forced_eos_token_id
    if first is not None:
        steps.append(lambda ids, scores: _force_at(ids, scores, [first], 1))
    if last is not None:
        forced = last if isinstance(last, list) else [last]
        steps.append(lambda ids, scores: _force_at(ids, scores, forced, limit - 1))
    if settings.remove_invalid_values:
        steps.append(lambda _, scores: _finite(scores))
    if settings.exponential_decay_length_penalty is not None:
        start, factor = _decay(settings.exponential_decay_length_penalty, ends)
        steps.append(lambda ids, s: _favour_ends(ids, s, ends, start + prompt, factor))
    if settings.suppress_tokens is not None:
        never = _tokens("suppress_tokens", settings.suppress_tokens)
        steps.append(lambda _, scores: _forbid(scores, never))
    if settings.begin_suppress_tokens is not None:
        begin = _tokens("begin_suppress_tokens", settings.begin_suppress_tokens)
        at = prompt + (prompt == 1 and first is not None)
        steps.append(lambda ids, s: _forbid(s, begin) if ids.shape[1] == at else s)
    return steps


class SequenceBias:
    """Adds a bias to the score of the token that would complete a sequence.

    Args:
        biases: what is added, by sequences of token ids.
    """

    def __init__(self, biases: Mapping[tuple[int, ...], float]) -> None:
        self._biases = dict(biases)

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Return new scores.

        Args:
            ids: (rows, length), so far.
            scores: (rows, vocabulary).

        Raises:
            ValueError: for tokens that the model does not score.
        """
        words = scores.shape[1]
        beyond = sorted({token for one in self._biases for token in one if token >= words})
        if beyond:
            raise ValueError(
                f"The model scores {words} tokens, but bad_words_ids or sequence_bias name "
                f"{', '.join(map(str, beyond))}; leave those out."
            )
        bias = torch.zeros_like(scores)
        for sequence, value in self._biases.items():
            before = torch.tensor(sequence[:-1], dtype=ids.dtype, device=ids.device)
            if len(before) > ids.shape[1]:
                continue
            matches = (ids[:, ids.shape[1] - len(before) :] == before).all(dim=1)
            # No product: a bias of minus infinity would make NaN of the rows without a match.
            added = torch.zeros_like(bias[:, 0]).masked_fill(matches, value)
            bias[:, sequence[-1]] += added
        return scores + bias


def _is_token(token: object) -> bool:
    return isinstance(token, int) and not isinstance(token, bool) and token >= 0


def _tokens(name: str, given: object) -> list[int]:
    if not isinstance(given, list | tuple) or not all(map(_is_token, given)):
        raise ValueError(f"{name} is a list of token ids, not {given!r}.")
    return list(given)


def _words(given: Any) -> list[tuple[int, ...]]:
    fits = isinstance(given, list | tuple) and len(given) > 0
    fits = fits and all(isinstance(one, list | tuple) and one for one in given)
    if not fits or not all(_is_token(token) for one in given for token in one):
        raise ValueError(
            f"bad_words_ids is a list of lists of token ids, none of them empty, not {given!r}."
        )
    return [tuple(one) for one in given]


def _biases(given: Any) -> dict[tuple[int, ...], float]:
    pairs = list(given.items()) if isinstance(given, Mapping) else given
    try:
        biases = {tuple(sequence): float(value) for sequence, value in pairs}
    except (TypeError, ValueError):
        biases = {}
    if not biases or not all(one and all(map(_is_token, one)) for one in biases):
        raise ValueError(
            "sequence_bias is a list of [token ids, bias], or a dictionary from tuples of token "
            f"ids to biases, not {given!r}."
        )
    return biases


def _above_zero(name: str, value: float) -> float:
    if not value > 0:
        raise ValueError(f"{name} must be positive, not {value!r}.")
    return value


def _decay(given: Any, ends: list[int]) -> tuple[int, float]:
    if not isinstance(given, list | tuple) or len(given) != 2:
        raise ValueError(
            "exponential_decay_length_penalty is a pair (tokens before it begins, factor), not "
            f"{given!r}."
        )
    if not ends:
        raise ValueError(
            "exponential_decay_length_penalty favours the end of a text, so it needs eos_token_id."
        )
    return int(given[0]), float(given[1])


def _forbid(scores: Tensor, tokens: list[int]) -> Tensor:
    known = [token for token in tokens if token < scores.shape[1]]
    index = torch.tensor(known, dtype=torch.long, device=scores.device)
    return scores.index_fill(1, index, -math.inf)


def _only_allowed(ids: Tensor, scores: Tensor, allowed: PrefixAllowedTokens, beams: int) -> Tensor:
    kept = torch.full_like(scores, -math.inf)
    for row, text in enumerate(ids):
        tokens = [int(token) for token in allowed(row // beams, text)]
        wrong = [token for token in tokens if not 0 <= token < scores.shape[1]]
        if wrong or not tokens:
            raise ValueError(
                f"prefix_allowed_tokens_fn returned {wrong or 'no tokens'} for prompt "
                f"{row // beams} behind {len(text)} tokens; expected ids from 0 to "
                f"{scores.shape[1] - 1}, at least one, such as that of the end of the text."
            )
        kept[row, tokens] = 0.0
    return scores + kept


def _force_at(ids: Tensor, scores: Tensor, tokens: list[int], length: int) -> Tensor:
    if ids.shape[1] != length:
        return scores
    index = torch.tensor(tokens, dtype=torch.long, device=scores.device)
    return torch.full_like(scores, -math.inf).index_fill(1, index, 0.0)


def _finite(scores: Tensor) -> Tensor:
    return scores.nan_to_num(nan=0.0)


def _favour_ends(ids: Tensor, scores: Tensor, ends: list[int], start: int, factor: float) -> Tensor:
    beyond = ids.shape[1] - start
    if beyond <= 0:
        return scores
    index = torch.tensor(ends, dtype=torch.long, device=scores.device)
    found = scores[:, index]
    # The size of a score, so that negative ones rise too.
    gain = (found.abs() * (factor**beyond - 1)).masked_fill(~found.isfinite(), 0.0)
    return scores.index_add(1, index, gain)


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
