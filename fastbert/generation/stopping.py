"""What ends a text beside its end tokens and its length: strings in it, and time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

# A function of (ids so far, the scores of all steps or None) that says whether to stop: one bool,
# or one for each row.
StoppingCriterion = Callable[[Tensor, tuple[Tensor, ...] | None], bool | Tensor]

# What decoders give for bytes that are no whole character yet.
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
# Tokens before the longest stop string: decoders may treat the first of a text otherwise.
_MARGIN = 4


class Decoder(Protocol):
    """The part of a tokenizer that stop strings need."""

    def decode(
        self, token_ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool
    ) -> str:
        """Return the text of tokens."""


class StopStrings:
    """Ends a text whose last token completes one of these strings, in whole or as a part of it.

    Strings that stand further ahead, as in a prompt, end nothing.

    Args:
        strings: what to look for.
        tokenizer: makes text of tokens.

    Raises:
        ValueError: for no strings, empty ones, or no tokenizer.
    """

    def __init__(self, strings: str | Sequence[str], tokenizer: Decoder | None) -> None:
        self._strings = [strings] if isinstance(strings, str) else list(strings)
        if not self._strings or not all(isinstance(s, str) and s for s in self._strings):
            raise ValueError(
                f"stop_strings is a string that is not empty, or a list of them, not {strings!r}."
            )
        if tokenizer is None or not callable(getattr(tokenizer, "decode", None)):
            raise ValueError(
                "stop_strings are looked for in text: give generate the model's tokenizer, as "
                "tokenizer=..."
            )
        self._tokenizer = tokenizer
        # A token holds at least one byte of the text, but for the ones before its first character.
        self._window = max(len(s.encode()) for s in self._strings) + _MARGIN

    def __call__(self, ids: Tensor, scores: object) -> Tensor:
        """Say for each row of ids (rows, length) whether it ends: bool (rows,)."""
        ended = [self._ends(row) for row in ids[:, -self._window :].tolist()]
        return torch.tensor(ended, dtype=torch.bool, device=ids.device)

    def _ends(self, tokens: list[int]) -> bool:
        before, text = self._text(tokens[:-1]).rstrip(_UNFINISHED), self._text(tokens)
        return any(text.find(s, max(0, len(before) - len(s) + 1)) >= 0 for s in self._strings)

    def _text(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(
            tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )


class MaxTime:
    """Ends all texts once so much time has passed; the token in work is finished.

    Args:
        seconds: from now on.

    Raises:
        ValueError: when they are not positive.
    """

    def __init__(self, seconds: float) -> None:
        if not seconds > 0:
            raise ValueError(f"max_time is a number of seconds above 0, not {seconds!r}.")
        self._end = time.monotonic() + seconds

    def __call__(self, ids: Tensor, scores: object) -> bool:
        """Say whether the time is over."""
        return time.monotonic() >= self._end
