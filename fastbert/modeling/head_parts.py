"""What was built of a head, and which of its parts are called since they are no longer that."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from fastbert.modeling.encoding import Encoding
from fastbert.modeling.module_table import Built, foreign_projections, record, why_changed


class BuiltHead:
    """What was built beside an encoder.

    Args:
        model: the model, as it was built.
        encoder: name of its encoder.
    """

    def __init__(self, model: nn.Module, encoder: str) -> None:
        # A dropout in front of a head is always called.
        self._trees: Mapping[str, Mapping[str, Built]] = {
            name: record(part)
            for name, part in model._modules.items()
            if name != encoder and part is not None and not isinstance(part, nn.Dropout)
        }

    def why(self, model: nn.Module, name: str) -> str | None:
        """Return, as a clause, how a part differs from what was built; None if it does not."""
        part = model._modules.get(name)
        if part is None:
            return f"{name} is gone"
        tree = self._trees.get(name)
        return f"{name} is new" if tree is None else why_changed(part, tree, name)

    def clauses(self, model: nn.Module) -> list[str]:
        """Say which parts torch computes."""
        found = []
        for name, tree in self._trees.items():
            why = self.why(model, name)
            if why is not None:
                found.append(f"{why}, so it is called as a module")
                continue
            for clause in foreign_projections(model._modules[name] or model, tree):
                path = f"{name}{clause}" if clause.startswith(" ") else f"{name}.{clause}"
                found.append(f"{path}, which is called for its product")
        return found


def held_part(model: nn.Module, name: str) -> nn.Module:
    """Return the part of that name.

    Raises:
        ValueError: where there is none.
    """
    part = model._modules.get(name)
    if part is None:
        raise ValueError(
            f"The head of this {type(model).__name__} has no {name}; put a module there that "
            f"computes it, or the one that was built."
        )
    return part


def without_padding(logits: Tensor, encoding: Encoding) -> Tensor:
    """Write zeros for padding into scores (batch, length, values), unless a loss reads them."""
    batch = encoding.batch
    if encoding.scores_padding or batch.key_bias is None:
        return logits
    masked = (batch.key_bias != 0).reshape(batch.batch_size, batch.seqlen, 1)
    return logits.masked_fill(masked, 0.0)
