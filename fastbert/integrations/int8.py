"""An int8 copy of the projections of an accelerated encoder, whose parameters stay as they are."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastbert.integrations.shell import NotServed, Shell, shell_over
from fastbert.layers.linear import Linear
from fastbert.modeling.quantization import groups, quantize
from fastbert.runtime.versions import Contents, stamp, uncounted, version


class Int8Copy:
    """A shell whose layers' projections hold int8 weights, made from the original's.

    It is made again where the weights that it was made from have changed.

    Args:
        shell: over the original.
        original: the encoder of transformers.
    """

    def __init__(self, shell: Shell, original: Any) -> None:
        self._shell, self._original = shell, original
        self._made: Shell | None = None
        self._weights: list[Tensor] = []
        self._seen: list[Any] = []
        self._contents: Contents | None = None

    def current(self) -> Shell:
        """Return the shell that holds int8 weights of what the original's weights are now.

        Raises:
            NotServed: where a projection is not a plain one.
        """
        if self._made is None or not self._holds():
            self._made = None  # its memory goes before the new one's comes
            self._made = self._make()
        return self._made

    def _plain(self) -> list[Tensor]:
        parts = [part for group in groups(self._shell) for part in group.parts]
        if any(type(part) is not Linear for part in parts):
            raise NotServed("a projection was replaced, and int8 is made of plain ones")
        return [part.weight for part in parts]

    def _stamps(self) -> list[Any]:
        return [(id(weight), stamp(weight), version(weight)) for weight in self._weights]

    def _holds(self) -> bool:
        self._shell.follow()
        if [id(w) for w in self._plain()] != [seen[0] for seen in self._seen]:
            return False
        if self._stamps() != self._seen:
            return False
        assert self._contents is not None
        return self._contents.same(uncounted(self._weights))

    def _make(self) -> Shell:
        self._shell.follow()
        self._weights = self._plain()
        self._seen = self._stamps()
        names = [f"weight {index}" for index in range(len(self._weights))]
        gradients = self._shell.encoder_cache.gradients
        self._contents = Contents(self._weights, gradients, names)
        made = shell_over(self._original)
        choices = (self._shell.backend, self._shell.strict, self._shell.batch_invariant)
        quantize(made)
        made.keep_replaced()
        made.set_backend(*choices)
        return made
