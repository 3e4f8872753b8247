"""int8 passes of an accelerated encoder, whose parameters stay as they are.

What kernels pack is the only int8 copy: weights are quantised one layer at a time while they are
packed, from where the original holds them, and again wherever they must be packed again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastbert.engine.cpu_support import on_cpu
from fastbert.integrations.shell import NotServed, Shell, shell_over
from fastbert.layers.linear import Linear
from fastbert.modeling.quantization import quantize, quantize_as_packed
from fastbert.runtime.versions import Contents, Gradients, stamp, uncounted, version


class Int8Copy:
    """A shell whose layers' projections make int8 weights from the original's.

    It is made again where the weights that it was made from have changed. What else has changed of
    the original is found by the shell, as in any other.

    Args:
        original: the encoder of transformers.
        gradients: counts the backward passes through its parameters.
    """

    def __init__(self, original: Any, gradients: Gradients) -> None:
        self._original, self._gradients = original, gradients
        self._made: Shell | None = None
        # What the weights were read from, and how they stood.
        self._held: list[dict[str, Any]] = []
        self._seen: list[Any] = []
        self._contents: Contents | None = None

    def current(self) -> Shell:
        """Return the shell that computes with int8 weights of what the original's are now.

        Raises:
            NotServed: where a projection is not a plain one.
        """
        if self._made is None or not self._holds():
            self._made = None  # its memory goes before the new one's comes
            # Tensors of inference mode have no versions: all bytes would be compared every time.
            with torch.inference_mode(False):
                self._made = self._make()
        return self._made

    def _weights(self) -> list[Tensor]:
        return [held["weight"] for held in self._held]

    def _holds(self) -> bool:
        # Pruning and parametrizations take a weight away, and compute it in its place.
        if any(held.get("weight") is None for held in self._held):
            return False
        weights = self._weights()
        if _stamps(weights) != self._seen:
            return False
        assert self._contents is not None
        return self._contents.same(uncounted(weights))

    def _make(self) -> Shell:
        made = shell_over(self._original)
        parts = [part for group in made.int8_groups() for part in group.parts]
        if any(type(part) is not Linear for part in parts):
            raise NotServed("a projection was replaced, and int8 copies are made of plain ones")
        self._held = [part._parameters for part in parts]
        weights = self._weights()
        self._seen = _stamps(weights)
        names = [f"weight {index} of an int8 copy" for index in range(len(weights))]
        self._contents = Contents(weights, self._gradients, names)
        packed = all(on_cpu(weight.device) for weight in weights)
        (quantize_as_packed if packed else quantize)(made)  # a GPU's encoder packs nothing
        made.keep_replaced()
        return made


def _stamps(weights: list[Tensor]) -> list[Any]:
    return [(id(weight), stamp(weight), version(weight)) for weight in weights]
