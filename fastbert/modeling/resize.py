"""Changing the size of a model's vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from fastbert.layers.linear import Linear

if TYPE_CHECKING:
    from fastbert.modeling.base import PreTrainedModel


@torch.no_grad()
def resize(
    model: PreTrainedModel,
    new_num_tokens: int | None,
    pad_to_multiple_of: int | None,
    mean_resizing: bool,
) -> nn.Embedding:
    """Give a model's word embeddings, and its projection to the vocabulary, another size.

    Args:
        model: the model; its config.vocab_size follows.
        new_num_tokens: the new size; None keeps it (but for pad_to_multiple_of).
        pad_to_multiple_of: round the size up to a multiple of this.
        mean_resizing: new rows are drawn around the mean of the old ones, with 1e-9 of their
            covariance (Hewitt 2021, "Initializing new word embeddings"); else they are drawn as
            at construction.

    Returns:
        The table of word embeddings.

    Raises:
        ValueError: when pad_to_multiple_of is no integer.
    """
    table = cast(nn.Embedding, model.get_input_embeddings())
    if pad_to_multiple_of is not None:
        if not isinstance(pad_to_multiple_of, int):
            raise ValueError(
                f"Asking to pad the embedding matrix to a multiple of `{pad_to_multiple_of}`, "
                "which is not and integer. Please make sure to pass an integer"
            )
        wanted = table.num_embeddings if new_num_tokens is None else new_num_tokens
        new_num_tokens = -(-wanted // pad_to_multiple_of) * pad_to_multiple_of
    if new_num_tokens is None:
        return table
    output = cast(Linear | None, model.get_output_embeddings())
    tied = output is not None and output.weight is table.weight
    rows = table.weight if table.num_embeddings == new_num_tokens else None
    if rows is None:
        rows = _resized(model, table.weight, new_num_tokens, mean_resizing)
        table.weight = rows
        table.num_embeddings = new_num_tokens
        if table.padding_idx is not None and table.padding_idx >= new_num_tokens:
            table.padding_idx = None
    if output is not None and output.out_features != new_num_tokens:
        output.weight = (
            rows if tied else _resized(model, output.weight, new_num_tokens, mean_resizing)
        )
        output.out_features = new_num_tokens
        if output.bias is not None:
            _resize_bias(model, output, new_num_tokens)
    model.config.vocab_size = new_num_tokens
    model.base_model.config.vocab_size = new_num_tokens
    model.tie_weights()
    return table


def _resized(model: PreTrainedModel, old: Tensor, count: int, mean_resizing: bool) -> nn.Parameter:
    kept = min(old.shape[0], count)
    new = torch.empty(count, old.shape[1], dtype=old.dtype, device=old.device)
    new[:kept] = old[:kept]
    if count > kept:
        new[kept:] = _new_rows(model, old, count - kept, mean_resizing)
    return nn.Parameter(new, requires_grad=old.requires_grad)


def _new_rows(model: PreTrainedModel, old: Tensor, count: int, mean_resizing: bool) -> Tensor:
    if not mean_resizing:
        fresh = nn.Embedding(count, old.shape[1]).to(old.device, old.dtype)
        model._init_weights(fresh)
        return fresh.weight
    rows = old.float()
    mean = rows.mean(dim=0)
    centred = rows - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / rows.shape[0])
    noise = torch.randn(count, rows.shape[1], device=rows.device)
    noise = noise * (values.clamp(min=0.0) * 1e-9).sqrt()
    drawn: Tensor = mean + noise @ vectors.T
    return drawn.to(old.dtype)


def _resize_bias(model: PreTrainedModel, output: Linear, count: int) -> None:
    old = output.bias
    new = torch.zeros(count, dtype=old.dtype, device=old.device)
    kept = min(count, old.shape[0])
    new[:kept] = old[:kept]
    bias = nn.Parameter(new, requires_grad=old.requires_grad)
    for owner in model.modules():
        # Heads keep the same bias beside the projection too.
        for name, parameter in list(owner._parameters.items()):
            if parameter is old or (name == "bias" and owner is output):
                setattr(owner, name, bias)
    target = next((t for t in model._tied_weights_keys if t.endswith(".bias")), None)
    if target is not None:
        owner_name, _, name = model._tied_weights_keys[target].rpartition(".")
        holder = model.get_submodule(owner_name)
        if getattr(holder, name).shape[0] != count:
            setattr(holder, name, nn.Parameter(new.clone(), requires_grad=old.requires_grad))
