"""What a pass adds to the attention scores of all its layers alike."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ScoreBias:
    """A number for every sequence, head, query and key, positions counted within their sequence.

    Attributes:
        rows: (batch or 1, heads or 1, queries, keys), floating.
        backwards: whether the last query's row comes first. So rows in which each query's is the
            former one's, a key later, may be a view of a few numbers: no view of torch goes
            backwards.
    """

    rows: Tensor
    backwards: bool = False
