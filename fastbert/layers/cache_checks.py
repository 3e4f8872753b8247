"""Whether what a cache holds can be gone on with, asked before a pass writes to any layer of it."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def check_layers(store: Any, layers: int, every: bool = True) -> None:
    """Refuse a cache that a model of so many layers did not fill.

    A pass that failed in its midst leaves such a cache too: some layers hold a token more.

    Args:
        store: a cache object; one that does not show its layers is believed.
        layers: number of the model's layers.
        every: whether all layers must hold something where one does. A layer that someone else put
            in may leave its own empty.

    Raises:
        TypeError: for keys or values that are no tensors.
        ValueError: for another number of layers, or ones that do not hold the same tokens.
    """
    own = getattr(store, "self_attention_cache", store)
    held: dict[int, tuple[Tensor, Tensor]] = {}
    for index, layer in enumerate(getattr(own, "layers", ())):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None and values is None:
            continue
        if not isinstance(keys, Tensor) or not isinstance(values, Tensor):
            found = type(values if isinstance(keys, Tensor) else keys).__name__
            raise TypeError(
                f"Layer {index} of the cache holds a {found} where keys and values are tensors "
                "(batch, heads, tokens, head_dim)."
            )
        if keys.numel() or values.numel():
            held[index] = keys, values
    if not held:
        return
    missing = [index for index in range(layers) if index not in held]
    if max(held) >= layers or (every and missing):
        raise ValueError(
            f"The cache holds keys of the layers {', '.join(map(str, held))}, and the model has "
            f"{layers} layers, counted from 0; it belongs to another model: begin with a new cache."
        )
    if (text := _differing(own, held)) is not None:
        raise ValueError(
            f"{text}; crop the cache to what all layers hold, or begin with a new one."
        )


def _differing(own: Any, held: dict[int, tuple[Tensor, Tensor]]) -> str | None:
    """Say how layers differ in what they hold; None where they agree."""
    for index, (keys, values) in held.items():
        if keys.dim() != 4 or keys.shape != values.shape:
            return (
                f"Layer {index} of the cache holds keys of shape {tuple(keys.shape)} and values of "
                f"shape {tuple(values.shape)} where both are (batch, heads, tokens, head_dim)"
            )
    lengths = {index: own.get_seq_length(index) for index in held}
    if len(set(lengths.values())) > 1:
        return f"The layers of the cache hold different numbers of tokens: {_listed(lengths)}"
    precisions = {index: keys.dtype for index, (keys, _) in held.items()}
    if len(set(precisions.values())) > 1:
        return f"The layers of the cache hold keys of different precisions: {_listed(precisions)}"
    return None


def _listed(by_layer: dict[int, Any]) -> str:
    return ", ".join(f"{value} in layer {index}" for index, value in by_layer.items())
