"""The SQuAD head of XLNet and XLM (Yang et al. 2019, arXiv:1906.08237).

It scores the start, then the end given the start, then whether there is an answer. Names, arguments
and results of the modules are those of transformers; within a pass, kernels compute their products.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastbert.branches.products import activated, normalised
from fastbert.layers.calling import call, hidden_of
from fastbert.layers.linear import Linear
from fastbert.layers.norm import LayerNorm
from fastbert.layers.parent import Parent
from fastbert.outputs import FlaubertForQuestionAnsweringOutput


class PoolerStartLogits(Parent):
    """Scores every token as the start.

    Args:
        width: of the hidden states.
    """

    dense: Any

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = Linear(width, 1)

    def forward(self, hidden_states: Tensor, p_mask: Tensor | None = None) -> Tensor:
        """Score starts.

        Args:
            hidden_states: (batch, length, width).
            p_mask: (batch, length), 1 where an answer cannot begin.

        Returns:
            (batch, length).
        """
        return _masked(activated(self.dense, None, hidden_states).squeeze(-1), p_mask)


class PoolerEndLogits(Parent):
    """Scores every token as the end, given a start.

    Args:
        width: of the hidden states.
        eps: of the LayerNorm.
    """

    dense_0: Any
    LayerNorm: Any
    dense_1: Any

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.dense_0 = Linear(2 * width, width)
        self.activation = nn.Tanh()
        self.LayerNorm = LayerNorm(width, eps)
        self.dense_1 = Linear(width, 1)

    def forward(
        self,
        hidden_states: Tensor,
        start_states: Tensor | None = None,
        start_positions: Tensor | None = None,
        p_mask: Tensor | None = None,
    ) -> Tensor:
        """Score ends.

        Args:
            hidden_states: (batch, length, width), or (batch, length, starts, width).
            start_states: the hidden states of the starts, of the same shape.
            start_positions: (batch,), the starts; they go before start_states.
            p_mask: (batch, length), or broadcastable to the scores, 1 where an answer cannot end.

        Returns:
            (batch, length), or (batch, length, starts).

        Raises:
            ValueError: without starts.
        """
        if start_positions is not None:
            start_states = _at(hidden_states, start_positions)[:, None].expand_as(hidden_states)
        both = torch.cat([hidden_states, _given(start_states)], dim=-1)
        hidden = normalised(self.LayerNorm, activated(self.dense_0, self.activation, both))
        return _masked(activated(self.dense_1, None, hidden).squeeze(-1), p_mask)


class PoolerAnswerClass(Parent):
    """Says whether there is an answer.

    Args:
        width: of the hidden states.
    """

    dense_0: Any
    dense_1: Any

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense_0 = Linear(2 * width, width)
        self.activation = nn.Tanh()
        self.dense_1 = Linear(width, 1, bias=False)

    def forward(
        self,
        hidden_states: Tensor,
        start_states: Tensor | None = None,
        start_positions: Tensor | None = None,
        cls_index: Tensor | None = None,
    ) -> Tensor:
        """Score texts.

        Args:
            hidden_states: (batch, length, width).
            start_states: (batch, width), of the start.
            start_positions: (batch,), the starts; they go before start_states.
            cls_index: (batch,), the token that stands for the text; the last one if None.

        Returns:
            (batch,).

        Raises:
            ValueError: without starts.
        """
        if start_positions is not None:
            start_states = _at(hidden_states, start_positions)
        text = hidden_states[:, -1] if cls_index is None else _at(hidden_states, cls_index)
        both = torch.cat([_given(start_states), text], dim=-1)
        hidden = activated(self.dense_0, self.activation, both)
        return activated(self.dense_1, None, hidden).squeeze(-1)


class SQuADHead(Parent):
    """Beam search for the two ends of an answer.

    Args:
        width: of the hidden states.
        eps: of the LayerNorm in the end's scorer.
        start_n_top: starts kept.
        end_n_top: ends kept for each of them.
    """

    start_logits: Any
    end_logits: Any
    answer_class: Any

    def __init__(self, width: int, eps: float, start_n_top: int, end_n_top: int) -> None:
        super().__init__()
        self.start_n_top = start_n_top
        self.end_n_top = end_n_top
        self.start_logits = PoolerStartLogits(width)
        self.end_logits = PoolerEndLogits(width, eps)
        self.answer_class = PoolerAnswerClass(width)

    def forward(
        self,
        hidden_states: Tensor,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        cls_index: Tensor | None = None,
        is_impossible: Tensor | None = None,
        p_mask: Tensor | None = None,
        return_dict: bool = False,
    ) -> Any:
        """Compute the loss where both ends are given, else the best answers.

        Args:
            hidden_states: (batch, length, width).
            start_positions: (batch,), where the true answers begin.
            end_positions: (batch,), where they end.
            cls_index: (batch,), the token that stands for the text; the last one if None.
            is_impossible: (batch,), 1 where there is no answer; counts where cls_index is given.
            p_mask: (batch, length), 1 where an answer cannot begin or end.
            return_dict: whether to return a FlaubertForQuestionAnsweringOutput.

        Returns:
            The loss, or the other fields of FlaubertForQuestionAnsweringOutput, as a tuple or so.

        Raises:
            ValueError: for an input shorter than the beams.
        """
        first, last, cls_index, is_impossible = (
            value.squeeze(-1) if value is not None and value.dim() > 1 else value
            for value in (start_positions, end_positions, cls_index, is_impossible)
        )
        starts = hidden_of(call(self.start_logits, hidden_states, None, p_mask=p_mask))
        if first is not None and last is not None:
            loss = self._loss(hidden_states, starts, first, last, cls_index, is_impossible, p_mask)
            output = FlaubertForQuestionAnsweringOutput(loss=loss)
        else:
            output = self._search(hidden_states, starts, cls_index, p_mask)
        return output if return_dict else output.to_tuple()

    def _loss(
        self,
        states: Tensor,
        starts: Tensor,
        first: Tensor,
        last: Tensor,
        cls_index: Tensor | None,
        is_impossible: Tensor | None,
        p_mask: Tensor | None,
    ) -> Tensor:
        ends = hidden_of(call(self.end_logits, states, None, start_positions=first, p_mask=p_mask))
        loss = (F.cross_entropy(starts, first) + F.cross_entropy(ends, last)) / 2
        if cls_index is not None and is_impossible is not None:
            given = {"start_positions": first, "cls_index": cls_index}
            answerable = hidden_of(call(self.answer_class, states, None, **given))
            target = is_impossible.to(answerable.dtype)
            # Half of it, as XLNet weighs it, so that the scales are alike.
            loss = loss + 0.5 * F.binary_cross_entropy_with_logits(answerable, target)
        return loss

    def _search(
        self, states: Tensor, starts: Tensor, cls_index: Tensor | None, p_mask: Tensor | None
    ) -> FlaubertForQuestionAnsweringOutput:
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
        given = {
            "start_states": chosen[:, None].expand(grid),
            "p_mask": None if p_mask is None else p_mask[..., None],
        }
        ends = hidden_of(call(self.end_logits, states[:, :, None].expand(grid), None, **given))
        top_ends, end_index = ends.softmax(dim=1).topk(self.end_n_top, dim=1)
        mean_start = torch.einsum("blh,bl->bh", states, start_probs)
        given = {"start_states": mean_start, "cls_index": cls_index}
        return FlaubertForQuestionAnsweringOutput(
            start_top_log_probs=top_starts,
            start_top_index=start_index,
            end_top_log_probs=top_ends.flatten(1),
            end_top_index=end_index.flatten(1),
            cls_logits=hidden_of(call(self.answer_class, states, None, **given)),
        )


def _given(start_states: Tensor | None) -> Tensor:
    if start_states is None:
        raise ValueError("One of start_states and start_positions must be given; both are None.")
    return start_states


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
