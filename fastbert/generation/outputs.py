"""What generate() returns beside the ids, and what is read out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastbert.outputs import ModelOutput


@dataclass
class GenerateOutput(ModelOutput):
    """The result of generate().

    Attributes:
        sequences: int64 (batch * num_return_sequences, length), prompts included.
        scores: float32 (rows, vocabulary) of every step, where asked for.
        sequences_scores: float32 (batch * num_return_sequences,) from beam search.
        logits: float32 (rows, vocabulary) of every step, before any change, where asked for.
        beam_indices: int64 (batch * num_return_sequences, steps) from beam search: the row of
            `scores` that each token was chosen from, -1 behind a text's end.
        attentions: of every step what forward returns for its tokens, where asked for.
        hidden_states: likewise.
        past_key_values: the cache, where the model keeps one.
    """

    sequences: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    sequences_scores: Tensor | None = None
    logits: tuple[Tensor, ...] | None = None
    beam_indices: Tensor | None = None
    attentions: tuple[Any, ...] | None = None
    hidden_states: tuple[Any, ...] | None = None
    past_key_values: Any = None


def transition_scores(
    sequences: Tensor,
    scores: Sequence[Tensor],
    beam_indices: Tensor | None = None,
    normalize_logits: bool = False,
) -> Tensor:
    """Return the score of every token that was written.

    Args:
        sequences: int64 (rows, length), of GenerateOutput, like the others.
        scores: float32 (rows or beams, vocabulary) of every step.
        beam_indices: int64 (rows, steps), for beam search.
        normalize_logits: make log-probabilities of the scores first.

    Returns:
        float32 (rows, steps); 0 behind the end of a beam.
    """
    stacked = torch.stack(list(scores), dim=1)
    if normalize_logits:
        stacked = stacked.log_softmax(dim=-1)
    if beam_indices is None:
        rows = torch.arange(stacked.shape[0], device=stacked.device)[:, None]
        beam_indices = rows.expand(-1, stacked.shape[1])
    over = beam_indices < 0
    steps = int((~over).sum(dim=1).max())
    over, rows = over[:, :steps], beam_indices[:, :steps].clamp(min=0)
    tokens = sequences[:, sequences.shape[1] - steps :]
    found = stacked[rows, torch.arange(steps, device=rows.device), tokens]
    return found.masked_fill(over, 0.0)
