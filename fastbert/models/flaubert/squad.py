"""The SQuAD head of XLNet and XLM (Yang et al. 2019, arXiv:1906.08237).

It scores the start, then the end given the start, then whether there is an answer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastbert.layers.linear import Linear, project
from fastbert.layers.norm import LayerNorm
from fastbert.layers.parameter_tree import ParameterTree
from fastbert.runtime.plan import Plan


class StartScorer(ParameterTree):
    """The part that scores starts.

    Attributes:
        dense: (width -> 1).
    """

    dense: Linear


class EndScorer(ParameterTree):
    """The parts that score ends, given a start.

    Attributes:
        dense_0: (2 * width -> width), which a tanh follows.
        LayerNorm: of its result.
        dense_1: (width -> 1).
    """

    dense_0: Linear
    LayerNorm: LayerNorm
    dense_1: Linear


class AnswerScorer(ParameterTree):
    """The parts that say whether there is an answer.

    Attributes:
        dense_0: (2 * width -> width), which a tanh follows.
        dense_1: (width -> 1), without a bias.
    """

    dense_0: Linear
    dense_1: Linear


class SquadHead(ParameterTree):
    """Beam search for the two ends of an answer.

    Args:
        width: of the hidden states.
        eps: of the LayerNorm in the end's scorer.
        start_n_top: starts kept.
        end_n_top: ends kept for each of them.
    """

    start_logits: StartScorer
    end_logits: EndScorer
    answer_class: AnswerScorer

    def __init__(self, width: int, eps: float, start_n_top: int, end_n_top: int) -> None:
        super().__init__(
            start_logits=StartScorer(dense=Linear(width, 1)),
            end_logits=EndScorer(
                dense_0=Linear(2 * width, width),
                LayerNorm=LayerNorm(width, eps),
                dense_1=Linear(width, 1),
            ),
            answer_class=AnswerScorer(
                dense_0=Linear(2 * width, width), dense_1=Linear(width, 1, bias=False)
            ),
        )
        self.start_n_top = start_n_top
        self.end_n_top = end_n_top

    def forward(
        self,
        states: Tensor,
        plan: Plan,
        *,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        cls_index: Tensor | None = None,
        is_impossible: Tensor | None = None,
        p_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Compute the loss where both ends are given, else the best answers.

        Args:
            states: (batch, length, width).
            plan: the backends.
            start_positions: (batch,), where the true answers begin.
            end_positions: (batch,), where they end.
            cls_index: (batch,), the token that stands for the text; the last one if None.
            is_impossible: (batch,), 1 where there is no answer; counts where cls_index is given.
            p_mask: (batch, length), 1 where an answer cannot begin or end.

        Returns:
            {"loss"}, or the other fields of FlaubertForQuestionAnsweringOutput.

        Raises:
            ValueError: for an input shorter than the beams.
        """
        first, last, cls_index, is_impossible = (
            value.squeeze(-1) if value is not None and value.dim() > 1 else value
            for value in (start_positions, end_positions, cls_index, is_impossible)
        )
        starts = _masked(_rows(self.start_logits.dense, states, plan).squeeze(-1), p_mask)
        if first is not None and last is not None:
            loss = self._loss(states, plan, starts, first, last, cls_index, is_impossible, p_mask)
            return {"loss": loss}
        return self._search(states, plan, starts, cls_index, p_mask)

    def _loss(
        self,
        states: Tensor,
        plan: Plan,
        starts: Tensor,
        first: Tensor,
        last: Tensor,
        cls_index: Tensor | None,
        is_impossible: Tensor | None,
        p_mask: Tensor | None,
    ) -> Tensor:
        start = _at(states, first)
        ends = self._end_logits(states, start[:, None].expand_as(states), plan, p_mask)
        loss = (F.cross_entropy(starts, first) + F.cross_entropy(ends, last)) / 2
        if cls_index is not None and is_impossible is not None:
            answerable = self._answer_class(states, start, plan, cls_index)
            target = is_impossible.to(answerable.dtype)
            # Half of it, as XLNet weighs it, so that the scales are alike.
            loss = loss + 0.5 * F.binary_cross_entropy_with_logits(answerable, target)
        return loss

    def _search(
        self,
        states: Tensor,
        plan: Plan,
        starts: Tensor,
        cls_index: Tensor | None,
        p_mask: Tensor | None,
    ) -> dict[str, Tensor]:
        batch, length, width = states.shape
        if length < max(self.start_n_top, self.end_n_top):
            raise ValueError(
                f"The beam search keeps {self.start_n_top} starts and {self.end_n_top} ends, but "
                f"the input has {length} tokens; give more, or lower start_n_top and end_n_top."
            )
        start_probs = starts.softmax(dim=-1)
        top_starts, start_index = start_probs.topk(self.start_n_top, dim=-1)
        chosen = states.gather(1, start_index[..., None].expand(-1, -1, width))
        grid = (batch, length, self.start_n_top, width)
        mask = None if p_mask is None else p_mask[..., None]
        ends = self._end_logits(
            states[:, :, None].expand(grid), chosen[:, None].expand(grid), plan, mask
        )
        top_ends, end_index = ends.softmax(dim=1).topk(self.end_n_top, dim=1)
        mean_start = torch.einsum("blh,bl->bh", states, start_probs)
        return {
            "start_top_log_probs": top_starts,
            "start_top_index": start_index,
            "end_top_log_probs": top_ends.flatten(1),
            "end_top_index": end_index.flatten(1),
            "cls_logits": self._answer_class(states, mean_start, plan, cls_index),
        }

    def _end_logits(
        self, states: Tensor, starts: Tensor, plan: Plan, p_mask: Tensor | None
    ) -> Tensor:
        parts = self.end_logits
        hidden = _rows(parts.dense_0, torch.cat([states, starts], dim=-1), plan, "tanh")
        normed = parts.LayerNorm(hidden.reshape(-1, hidden.shape[-1]), plan)
        scores = project(parts.dense_1, normed, plan).reshape(states.shape[:-1])
        return _masked(scores, p_mask)

    def _answer_class(
        self, states: Tensor, start: Tensor, plan: Plan, cls_index: Tensor | None
    ) -> Tensor:
        parts = self.answer_class
        text = states[:, -1] if cls_index is None else _at(states, cls_index)
        hidden = project(parts.dense_0, torch.cat([start, text], dim=-1), plan, "tanh")
        return project(parts.dense_1, hidden, plan).squeeze(-1)


def _rows(linear: Linear, x: Tensor, plan: Plan, activation: str = "none") -> Tensor:
    flat = project(linear, x.reshape(-1, x.shape[-1]), plan, activation)
    return flat.reshape(*x.shape[:-1], -1)


def _at(states: Tensor, index: Tensor) -> Tensor:
    """Pick one column of each row: (batch, length, width) to (batch, width)."""
    return states[torch.arange(states.shape[0], device=states.device), index]


def _masked(logits: Tensor, p_mask: Tensor | None) -> Tensor:
    if p_mask is None:
        return logits
    # 1e30 does not fit float16, whose largest value is 65504.
    low = 65500.0 if torch.float16 in (p_mask.dtype, logits.dtype) else 1e30
    mask = p_mask.to(logits.dtype)
    return logits * (1 - mask) - low * mask
