"""Heads without weights: a command has nobody to train them, so it refuses them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from fastbert.modeling.matching import UntrainedWeights


@contextmanager
def untrained_refused() -> Iterator[None]:
    """Refuse, while a model is loaded, one whose checkpoint lacks weights that answers depend on.

    Raises:
        ValueError: where weights would be random, and the answers with them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", UntrainedWeights)
        try:
            yield
        except UntrainedWeights as found:
            raise ValueError(
                f"{found} Answers would be random: name a model that was trained for this task."
            ) from found
