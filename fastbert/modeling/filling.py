"""Putting the tensors of a checkpoint into a model, and giving the rest of it weights."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastbert.checkpoints.files import Checkpoint
from fastbert.layers.linear import FLOAT32_BUFFERS, INT8_DTYPES, Int8Linear, as_int8_part
from fastbert.modeling import quantization
from fastbert.modeling.matching import Match

if TYPE_CHECKING:
    from fastbert.modeling.base import PreTrainedModel


def fill(
    model: PreTrainedModel,
    match: Match,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Put every tensor that is stored in its place, in the precision of the model.

    Args:
        model: as its constructor leaves it within `unfilled`.
        match: what is stored where.
        checkpoint: where to read it.
        dtype: of the floating weights.
        device: where they go.

    Raises:
        ValueError: for a tensor of a dtype that its place cannot have.
    """
    filled: dict[str, Tensor] = {}
    floating: dict[int, str] = {}
    uses = Counter(match.sources.values())
    tied = model.tied_weights()
    for name, stored in match.sources.items():
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if isinstance(module, Int8Linear) and leaf == "weight":
            floating[id(module)] = stored
            continue
        if stored in filled:
            _put(module, leaf, filled[stored] if name in tied else filled[stored].clone())
            continue
        tensor = _converted(checkpoint, stored, module, leaf, dtype).to(device)
        place: Tensor = getattr(module, leaf)
        tensor = tensor if tensor.dim() == place.dim() else tensor.reshape(place.shape)
        _put(module, leaf, tensor)
        if uses[stored] > 1:
            filled[stored] = tensor

    def weight_of(part: Int8Linear) -> Tensor | None:
        stored = floating.get(id(part))
        if stored is None:
            return None
        return _floating(checkpoint, stored).to(device)

    if floating:  # after all else, since norms have a say in it
        quantization.fill(model, weight_of)


def _converted(
    checkpoint: Checkpoint, stored: str, module: nn.Module, leaf: str, dtype: torch.dtype
) -> Tensor:
    """Read a tensor in the dtype that its place computes with.

    Raises:
        ValueError: for a dtype from which there is no way there.
    """
    if isinstance(module, Int8Linear) and leaf in INT8_DTYPES:
        try:
            return as_int8_part(leaf, checkpoint.read(stored), module.in_features)
        except ValueError as error:
            raise ValueError(f"{checkpoint.source} holds {stored}: {error}") from error
    if leaf in module._parameters and module._parameters[leaf].is_floating_point():  # type: ignore[union-attr]
        return _floating(checkpoint, stored).to(dtype)
    tensor = checkpoint.read(stored)
    buffer = getattr(module, leaf)
    if tensor.is_floating_point() and buffer.is_floating_point():
        return tensor.to(dtype)
    if tensor.dtype != buffer.dtype and (tensor.is_floating_point() or tensor.dtype == torch.bool):
        raise ValueError(
            f"{checkpoint.source} holds {stored} as {tensor.dtype}, but {type(module).__name__} "
            f"has {buffer.dtype} in that place; save it as that."
        )
    return tensor.to(buffer.dtype)


def _floating(checkpoint: Checkpoint, stored: str) -> Tensor:
    """Read a weight.

    Raises:
        ValueError: for integers.
    """
    if not checkpoint.dtype(stored).is_floating_point:
        raise ValueError(
            f"{checkpoint.source} holds {stored} as {checkpoint.dtype(stored)}, but weights are "
            "floating; a model that another library has quantised cannot be read, its original can."
        )
    return checkpoint.read(stored)


def _put(module: nn.Module, leaf: str, tensor: Tensor) -> None:
    """Fill a parameter or buffer without copying.

    A parameter that is there already stays the same object: modules such as nn.LSTM keep lists of
    their own.
    """
    old = module._parameters.get(leaf)
    if old is None:
        module._buffers[leaf] = tensor
    elif old.is_meta:
        setattr(module, leaf, nn.Parameter(tensor, requires_grad=old.requires_grad))
    else:
        old.data = tensor


@torch.no_grad()
def complete(
    model: PreTrainedModel, match: Match, dtype: torch.dtype, device: torch.device
) -> None:
    """Give weights to what the checkpoint lacks, and leave all others alone.

    What the model's `_init_weights` knows gets its random weights, all else keeps what its
    constructor gave it.
    """
    for path, module in model.named_modules():
        # A part that its constructor loaded from a checkpoint of its own is ready.
        ready = vars(module).get("_initialized", False)
        vars(module)["_initialized"] = True
        held = {**module._parameters, **module._buffers}
        leaves = {leaf: tensor for leaf, tensor in held.items() if tensor is not None}
        absent = [k for k in leaves if (f"{path}.{k}" if path else k) not in match.sources]
        for leaf in absent:
            _place(module, leaf, dtype, device)
        unsaved = module._non_persistent_buffers_set
        if ready or not set(absent) - unsaved:
            continue
        keep = {k: leaves[k].detach().clone() for k in leaves if k not in absent or k in unsaved}
        if any(leaves[leaf].is_meta for leaf in absent) and hasattr(module, "reset_parameters"):
            module.reset_parameters()
        model._init_weights(module)
        for leaf, tensor in keep.items():
            getattr(module, leaf).copy_(tensor)


def _place(module: nn.Module, leaf: str, dtype: torch.dtype, device: torch.device) -> None:
    """Bring what the checkpoint lacks to where and in what the others are."""
    old: Tensor = getattr(module, leaf)
    fixed = leaf in FLOAT32_BUFFERS or leaf in module._non_persistent_buffers_set
    kind = dtype if old.is_floating_point() and not fixed else old.dtype
    if old.is_meta:
        _put(module, leaf, torch.zeros(old.shape, dtype=kind, device=device))
    elif old.dtype != kind or old.device != device:
        _put(module, leaf, old.detach().to(device=device, dtype=kind))


def share(model: PreTrainedModel, shared: list[list[str]]) -> None:
    """Make the same object again what a constructor had made the same object."""
    for first, *others in shared:
        for name in others:
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, model.get_parameter(first))


def tie(model: PreTrainedModel, match: Match) -> None:
    """Tie, unless both names are stored with different values: then the file is right."""
    state = dict(model.named_tensors())
    for target, source in model.tied_weights().items():
        stored = match.sources.get(target), match.sources.get(source)
        both = None not in stored and stored[0] != stored[1]
        if both and not torch.equal(state[target], state[source]):
            warnings.warn(
                f"{target} and {source} are stored with different values, so they stay two "
                "parameters; set tie_word_embeddings=False in config.json to say so.",
                stacklevel=4,
            )
            model.config.tie_word_embeddings = False
            return
    model.tie_weights()
