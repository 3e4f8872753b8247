"""The losses that the heads compute when labels are given.

Each is a mean over what has a label. With `num_items_in_batch` it is the sum divided by that number
instead, so that the losses of several batches add up to that of one large batch: a trainer that
accumulates gradients counts the labels of all of them. LOSSES holds the `loss_function` of each
sort of head under transformers' name of it, with the arguments that it has there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from fastbert.modeling.config import PreTrainedConfig

IGNORED = -100
Count: TypeAlias = Tensor | int | float | None


def token_loss(
    logits: Tensor, labels: Tensor, num_items_in_batch: Count = None, ignore_index: int = IGNORED
) -> Tensor:
    """Compute the mean cross-entropy over all labels but -100.

    Args:
        logits: (..., classes).
        labels: (...) of class indices.
        num_items_in_batch: see the module.
        ignore_index: label that counts for nothing.

    Raises:
        ValueError: for as many labels as there are no logits for.
    """
    flat = logits.reshape(-1, logits.shape[-1])
    _check_places(logits, labels)
    return _cross_entropy(
        flat, labels.to(logits.device).reshape(-1), num_items_in_batch, ignore_index
    )


def next_token_loss(
    logits: Tensor,
    labels: Tensor | None,
    *,
    shift_labels: Tensor | None = None,
    num_items_in_batch: Count = None,
    ignore_index: int = IGNORED,
) -> Tensor:
    """Compute the cross-entropy of each token's successor, in float32 or better.

    Args:
        logits: (batch, length, vocabulary).
        labels: (batch, length); the label of a token is compared with the logits one column before.
        shift_labels: labels already moved by one column, in place of labels.
        num_items_in_batch: see the module.
        ignore_index: label that counts for nothing.

    Raises:
        ValueError: without labels and shift_labels, or for labels of another shape.
    """
    if shift_labels is None:
        if labels is None:
            raise ValueError("The loss needs labels or shift_labels.")
        _check_places(logits, labels)
        shift_labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    flat = logits.to(torch.promote_types(logits.dtype, torch.float32))
    flat = flat.reshape(-1, logits.shape[-1])
    targets = shift_labels.to(logits.device).reshape(-1)
    return _cross_entropy(flat, targets, num_items_in_batch, ignore_index)


def sequence_loss(
    config: PreTrainedConfig, logits: Tensor, labels: Tensor, num_items_in_batch: Count = None
) -> Tensor:
    """Compute the loss of a sequence classification head.

    The problem type is config.problem_type; where that is None it is judged from num_labels and the
    dtype of the labels, and written back into the configuration.

    Args:
        config: of the model; its num_labels and problem_type count.
        logits: (batch, num_labels).
        labels: (batch,) classes or values, or (batch, num_labels) for several labels at once.
        num_items_in_batch: see the module; values and several labels count one by one.
    """
    labels = labels.to(logits.device)
    if config.problem_type is None:
        if config.num_labels == 1:
            config.problem_type = "regression"
        elif labels.dtype in (torch.long, torch.int):
            config.problem_type = "single_label_classification"
        else:
            config.problem_type = "multi_label_classification"
    if config.problem_type == "single_label_classification":
        flat = logits.reshape(-1, config.num_labels)
        return _cross_entropy(flat, labels.reshape(-1), num_items_in_batch)
    loss: Callable[..., Tensor] = F.binary_cross_entropy_with_logits
    if config.problem_type == "regression":
        loss = F.mse_loss
        if config.num_labels == 1:
            logits, labels = logits.squeeze(), labels.squeeze()
    if num_items_in_batch is None:
        return loss(logits, labels)
    return _divided(loss(logits, labels, reduction="sum"), num_items_in_batch)


def replaced_loss(logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute the mean binary cross-entropy of which tokens were replaced.

    Args:
        logits: (batch, length).
        labels: (batch, length), 1 where a token was replaced and 0 where not.
        mask: (batch, length); tokens where it is not 1 have no part in the loss. None takes all.

    Raises:
        ValueError: for labels or a mask of another shape.
    """
    for name, given in (("labels", labels), ("attention_mask", mask)):
        if given is not None and given.shape != logits.shape:
            raise ValueError(
                f"This loss needs {name} of shape {tuple(logits.shape)}, one value for each token, "
                f"but they have the shape {tuple(given.shape)}."
            )
    targets = labels.to(logits.device).float()
    if mask is not None:
        counted = mask.to(logits.device) == 1
        logits, targets = logits[counted], targets[counted]
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))


def span_loss(
    starts: Tensor, ends: Tensor, first: Tensor, last: Tensor, num_items_in_batch: Count = None
) -> Tensor:
    """Compute the mean of the cross-entropies of the two ends of an answer.

    Args:
        starts: logits of the first token, (batch, length).
        ends: logits of the last token, (batch, length).
        first: positions (batch,) or (batch, 1) of the true first token; those beyond the input are
            ignored.
        last: positions of the true last token, likewise.
        num_items_in_batch: see the module.
    """
    length = starts.shape[1]
    losses = []
    for logits, position in ((starts, first), (ends, last)):
        target = position.to(logits.device)
        target = target.squeeze(-1) if target.dim() > 1 else target
        losses.append(_cross_entropy(logits, target.clamp(0, length), num_items_in_batch, length))
    return (losses[0] + losses[1]) / 2


def _check_places(logits: Tensor, labels: Tensor) -> None:
    """Refuse labels that do not stand where the logits do; a flat row of as many is taken.

    Raises:
        ValueError: for labels of another shape, such as transposed ones.
    """
    places = logits.shape[:-1]
    wide = [[size for size in shape if size != 1] for shape in (labels.shape, places)]
    if labels.numel() != places.numel() or (len(wide[0]) > 1 and wide[0] != wide[1]):
        raise ValueError(
            f"labels must hold one class for each of {tuple(places)}, but they have the shape "
            f"{tuple(labels.shape)}."
        )


def _check_classes(targets: Tensor, classes: int, ignore_index: int) -> None:
    """Refuse labels that name no class, in words; on a GPU they would end the process's use of it.

    Raises:
        TypeError: for labels that are no integers.
        ValueError: for a class that is not there.
    """
    if targets.is_floating_point() or targets.dtype == torch.bool:
        raise TypeError(f"labels must be integers, but the tensor holds {targets.dtype}.")
    if torch.compiler.is_compiling() or targets.device.type != "cpu" or not targets.numel():
        return
    counted = targets[targets != ignore_index]
    if counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) < classes:
        raise ValueError(
            f"labels reach from {int(counted.min())} to {int(counted.max())}, but there are "
            f"{classes} classes, counted from 0; {ignore_index} stands for no label."
        )


def _cross_entropy(
    flat: Tensor, targets: Tensor, count: Count, ignore_index: int = IGNORED
) -> Tensor:
    _check_classes(targets, flat.shape[-1], ignore_index)
    if count is None:
        return F.cross_entropy(flat, targets, ignore_index=ignore_index)
    total = F.cross_entropy(flat, targets, ignore_index=ignore_index, reduction="sum")
    return _divided(total, count)


def _divided(total: Tensor, count: Tensor | int | float) -> Tensor:
    # nn.DataParallel gives each replica its number as a tensor (1, 1).
    return total / (count.to(total.device).reshape(()) if isinstance(count, Tensor) else count)


def _causal(
    logits: Tensor, labels: Tensor | None, vocab_size: int | None = None, **options: Any
) -> Tensor:
    return next_token_loss(logits, labels, **options)


def _of_tokens(
    logits: Tensor,
    labels: Tensor,
    vocab_size: int | None = None,
    config: PreTrainedConfig | None = None,
    **options: Any,
) -> Tensor:
    return token_loss(logits, labels, **options)


def _of_sequences(
    labels: Tensor, pooled_logits: Tensor, config: PreTrainedConfig, **options: Any
) -> Tensor:
    return sequence_loss(config, pooled_logits, labels, **options)


def _of_spans(
    start_logits: Tensor,
    end_logits: Tensor,
    start_positions: Tensor,
    end_positions: Tensor,
    **options: Any,
) -> Tensor:
    return span_loss(start_logits, end_logits, start_positions, end_positions, **options)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "ForCausalLM": _causal,
    "ForMaskedLM": _of_tokens,
    "ForTokenClassification": _of_tokens,
    "ForSequenceClassification": _of_sequences,
    "ForQuestionAnswering": _of_spans,
}
