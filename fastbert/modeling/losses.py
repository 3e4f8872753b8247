"""The losses that the heads compute when labels are given."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastbert.modeling.config import PreTrainedConfig

IGNORED = -100


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the mean cross-entropy over all labels but -100.

    Args:
        logits: (..., classes).
        labels: (...) of class indices.

    Raises:
        ValueError: for as many labels as there are no logits for.
    """
    flat = logits.reshape(-1, logits.shape[-1])
    if labels.numel() != flat.shape[0]:
        raise ValueError(
            f"labels must hold one class for each of {tuple(logits.shape[:-1])}, but they have the "
            f"shape {tuple(labels.shape)}."
        )
    return F.cross_entropy(flat, labels.to(logits.device).reshape(-1), ignore_index=IGNORED)


def next_token_loss(
    logits: Tensor,
    labels: Tensor | None,
    *,
    shift_labels: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = IGNORED,
) -> Tensor:
    """Compute the cross-entropy of each token's successor, in float32 or better.

    Args:
        logits: (batch, length, vocabulary).
        labels: (batch, length); the label of a token is compared with the logits one column before.
        shift_labels: labels already moved by one column, in place of labels.
        num_items_in_batch: divide the sum by this rather than by the number of labels (gradient
            accumulation).
        ignore_index: label that counts for nothing.

    Raises:
        ValueError: without labels and shift_labels.
    """
    if shift_labels is None:
        if labels is None:
            raise ValueError("The loss needs labels or shift_labels.")
        shift_labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    flat = logits.to(torch.promote_types(logits.dtype, torch.float32))
    flat = flat.reshape(-1, logits.shape[-1])
    targets = shift_labels.to(logits.device).reshape(-1)
    if num_items_in_batch is None:
        return F.cross_entropy(flat, targets, ignore_index=ignore_index)
    total = F.cross_entropy(flat, targets, ignore_index=ignore_index, reduction="sum")
    if isinstance(num_items_in_batch, Tensor):
        num_items_in_batch = num_items_in_batch.to(total.device)
    return total / num_items_in_batch


def sequence_loss(config: PreTrainedConfig, logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the loss of a sequence classification head.

    The problem type is config.problem_type; where that is None it is judged from num_labels and the
    dtype of the labels, and written back into the configuration.

    Args:
        config: of the model; its num_labels and problem_type count.
        logits: (batch, num_labels).
        labels: (batch,) classes or values, or (batch, num_labels) for several labels at once.
    """
    labels = labels.to(logits.device)
    if config.problem_type is None:
        if config.num_labels == 1:
            config.problem_type = "regression"
        elif labels.dtype in (torch.long, torch.int):
            config.problem_type = "single_label_classification"
        else:
            config.problem_type = "multi_label_classification"
    if config.problem_type == "regression":
        if config.num_labels == 1:
            return F.mse_loss(logits.squeeze(), labels.squeeze())
        return F.mse_loss(logits, labels)
    if config.problem_type == "single_label_classification":
        return F.cross_entropy(logits.reshape(-1, config.num_labels), labels.reshape(-1))
    return F.binary_cross_entropy_with_logits(logits, labels)


def span_loss(starts: Tensor, ends: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Compute the mean of the cross-entropies of the two ends of an answer.

    Args:
        starts: logits of the first token, (batch, length).
        ends: logits of the last token, (batch, length).
        first: positions (batch,) or (batch, 1) of the true first token; those beyond the input are
            ignored.
        last: positions of the true last token, likewise.
    """
    length = starts.shape[1]
    losses = []
    for logits, position in ((starts, first), (ends, last)):
        target = position.to(logits.device)
        target = target.squeeze(-1) if target.dim() > 1 else target
        losses.append(F.cross_entropy(logits, target.clamp(0, length), ignore_index=length))
    return (losses[0] + losses[1]) / 2
