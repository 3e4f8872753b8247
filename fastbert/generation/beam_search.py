"""Beam search: the best continuations of each prompt, and when to stop looking."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# A function of ids so far that says whether to stop: one bool, or one for each row.
_Criterion = Callable[[Tensor], bool | Tensor]

# Stands for minus infinity where sums of scores must stay finite.
_NEVER = -1.0e9


_Entry = tuple[float, list[int], list[int]]


class Best(NamedTuple):
    """The best texts of all prompts.

    Attributes:
        ids: int64 (batch * count, length).
        scores: float32 (batch * count,).
        rows: int64 (batch * count, steps), the row that each token was chosen from; -1 behind the
            end of a text.
    """

    ids: Tensor
    scores: Tensor
    rows: Tensor


class _Finished:
    """The best finished continuations of one prompt.

    Attributes:
        capacity: how many are kept.
        entries: (score, ids, rows) of each, the best first; see Best.
        closed: whether the search has ended for this prompt.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.entries: list[_Entry] = []
        self.closed = False

    @property
    def full(self) -> bool:
        """Whether as many are finished as are kept."""
        return len(self.entries) >= self.capacity

    def add(self, entry: _Entry) -> None:
        """Take in a continuation, and drop the worst where there are too many."""
        self.entries.append(entry)
        # Stable: of equal scores the earlier one stays in front.
        self.entries.sort(key=lambda entry: -entry[0])
        del self.entries[self.capacity :]


class Beams:
    """The state of a beam search over a batch of prompts.

    Args:
        ids: (batch * width, prompt length), the prompts, each repeated `width` times.
        width: beams of each prompt.
        ends: tokens that end a text.
        limit: length at which every text ends.
        length_penalty: see GenerationConfig.
        early_stopping: see GenerationConfig.
    """

    def __init__(
        self,
        ids: Tensor,
        width: int,
        ends: Sequence[int],
        limit: int,
        length_penalty: float,
        early_stopping: bool | str,
    ) -> None:
        self.ids = ids
        self.width = width
        self.prompt = ids.shape[1]
        self.limit = limit
        self.length_penalty = length_penalty
        self.early_stopping = early_stopping
        self.batch = ids.shape[0] // width
        self._ends = torch.tensor(list(ends), device=ids.device)
        # Twice as many candidates as beams, or more, so that enough go on if the best all end.
        self._candidates = max(2, 1 + len(ends)) * width
        self._scores = torch.zeros(self.batch, width, device=ids.device)
        # All beams of a prompt are alike at first: only one may bring forth candidates.
        self._scores[:, 1:] = _NEVER
        # The rows (batch * width, steps so far) that the tokens of every beam were chosen from.
        self._rows = torch.empty(ids.shape[0], 0, dtype=torch.long, device=ids.device)
        self._done = [_Finished(width) for _ in range(self.batch)]
        self._exhausted = False

    def finished(self) -> bool:
        """Whether no step could change the result."""
        if self._exhausted or all(pool.closed for pool in self._done):
            return True
        return self.early_stopping is True and all(pool.full for pool in self._done)

    def step(
        self,
        log_probs: Tensor,
        sample: bool,
        generator: torch.Generator | None,
        criteria: Sequence[_Criterion],
    ) -> Tensor:
        """Extend every beam by a token.

        Args:
            log_probs: (batch * width, vocabulary), of the next token.
            sample: draw candidates rather than take the best.
            generator: source of random numbers for drawing.
            criteria: functions of ids so far that return whether to stop.

        Returns:
            int64 (batch * width,): the former row of each beam that goes on.
        """
        vocabulary = log_probs.shape[1]
        total = log_probs.reshape(self.batch, self.width, -1) + self._scores[..., None]
        total = total.reshape(self.batch, -1)
        if sample:
            picked = torch.multinomial(total.softmax(dim=-1), self._candidates, generator=generator)
            scores = total.gather(1, picked)
        else:
            scores, picked = total.topk(self._candidates)
        base = torch.arange(self.batch, device=picked.device)[:, None] * self.width
        rows, tokens = picked // vocabulary + base, picked % vocabulary
        texts = torch.cat([self.ids[rows], tokens[..., None]], dim=2)
        over = torch.isin(tokens, self._ends) | (texts.shape[2] >= self.limit)
        for criterion in criteria:
            verdict = torch.as_tensor(criterion(texts.flatten(0, 1)), device=over.device)
            over = over | (verdict.reshape(over.shape) if verdict.dim() else verdict)
        paths = torch.cat([self._rows[rows], rows[..., None]], dim=2)
        self._collect(texts, paths, scores, over)
        going = scores + over * _NEVER
        self._scores, chosen = going.topk(self.width)
        self.ids, self._rows = (
            x.gather(1, chosen[..., None].expand(-1, -1, x.shape[2])).flatten(0, 1)
            for x in (texts, paths)
        )
        self._close()
        self._exhausted = bool(over.all())
        return rows.gather(1, chosen).flatten()

    def _collect(self, texts: Tensor, paths: Tensor, scores: Tensor, over: Tensor) -> None:
        """Keep the finished among the best `width` candidates of each prompt."""
        norm = (texts.shape[2] - self.prompt) ** self.length_penalty
        for item, pool in enumerate(self._done):
            if pool.closed or (self.early_stopping is True and pool.full):
                continue
            for rank in range(self.width):
                if bool(over[item, rank]):
                    text, path = texts[item, rank].tolist(), paths[item, rank].tolist()
                    pool.add((float(scores[item, rank]) / norm, text, path))

    def _close(self) -> None:
        """Stop a prompt whose running beams will not beat its finished ones."""
        length = self.ids.shape[1] - self.prompt
        if self.early_stopping == "never" and self.length_penalty > 0.0:
            length = self.limit - self.prompt
        for item, pool in enumerate(self._done):
            best = float(self._scores[item, 0]) / length**self.length_penalty
            if pool.full and best <= pool.entries[-1][0]:
                pool.closed = True

    def best(self, count: int, filler: int) -> Best:
        """Return the best texts of each prompt.

        Args:
            count: texts of each prompt; running ones fill up where too few are finished.
            filler: the token that pads shorter texts behind their end.
        """
        chosen: list[_Entry] = []
        for item, pool in enumerate(self._done):
            entries = list(pool.entries)
            for beam in range(self.width):
                if len(entries) < count:
                    row = item * self.width + beam
                    path = self._rows[row].tolist()
                    score = float(self._scores[item, beam])
                    entries.append((score, self.ids[row].tolist(), path))
            chosen += entries[:count]
        scores, texts, paths = zip(*chosen, strict=True)
        device = self.ids.device
        return Best(
            torch.tensor(_filled(texts, filler), device=device),
            torch.tensor(scores, device=device),
            torch.tensor(_filled(paths, -1), device=device),
        )


def _filled(rows: Sequence[list[int]], filler: int) -> list[list[int]]:
    longest = max(map(len, rows))
    return [row + [filler] * (longest - len(row)) for row in rows]
