"""How alike vectors are, under sentence-transformers' names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fastbert.embedding.modules import normalize

Embeddings = Tensor | np.ndarray | Sequence[Tensor] | Sequence[np.ndarray] | Sequence[float]


def as_tensor(vectors: Embeddings) -> Tensor:
    """Return vectors as a floating tensor, of at least 32 bits."""
    if isinstance(vectors, list | tuple) and vectors and isinstance(vectors[0], Tensor):
        vectors = torch.stack(list(vectors))
    elif isinstance(vectors, list | tuple):
        vectors = np.asarray(vectors)
    tensor = torch.as_tensor(vectors)
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return normalize(a) @ normalize(b).T


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return a @ b.T


def _euclidean(a: Tensor, b: Tensor) -> Tensor:
    return -torch.cdist(a, b, p=2.0)


def _manhattan(a: Tensor, b: Tensor) -> Tensor:
    return -torch.cdist(a, b, p=1.0)


def _cosine_pairs(a: Tensor, b: Tensor) -> Tensor:
    return (normalize(a) * normalize(b)).sum(dim=-1)


def _dot_pairs(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=-1)


def _euclidean_pairs(a: Tensor, b: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(a - b, dim=-1)
    return -lengths


def _manhattan_pairs(a: Tensor, b: Tensor) -> Tensor:
    return -(a - b).abs().sum(dim=-1)


_Function = Callable[[Tensor, Tensor], Tensor]
# By name: of all with all, and of each with the one at its place.
_FUNCTIONS: dict[str, tuple[_Function, _Function]] = {
    "cosine": (_cosine, _cosine_pairs),
    "dot": (_dot, _dot_pairs),
    "euclidean": (_euclidean, _euclidean_pairs),
    "manhattan": (_manhattan, _manhattan_pairs),
}
SIMILARITIES = tuple(_FUNCTIONS)


class Similarity:
    """What compares the vectors of an encoder."""

    _similarity_fn_name: str | None = None

    @property
    def similarity_fn_name(self) -> str:
        """How vectors are compared: "cosine" (the default), "dot", "euclidean" or "manhattan"."""
        return self._similarity_fn_name or "cosine"

    @similarity_fn_name.setter
    def similarity_fn_name(self, value: object) -> None:
        name = getattr(value, "value", value)  # an enum, or its value
        if name is not None and name not in SIMILARITIES:
            raise ValueError(
                f"similarity_fn_name is {name!r}; expected one of {', '.join(SIMILARITIES)}."
            )
        self._similarity_fn_name = name

    def similarity(self, embeddings1: Embeddings, embeddings2: Embeddings) -> Tensor:
        """Compare all vectors with all others, by `similarity_fn_name`.

        Args:
            embeddings1: (n, dimension) or (dimension,).
            embeddings2: (m, dimension) or (dimension,).

        Returns:
            float32 (n, m), float64 for such vectors; greater is more alike, so distances are
            negative.
        """
        both = as_tensor(embeddings1), as_tensor(embeddings2)
        a, b = (vectors[None] if vectors.ndim == 1 else vectors for vectors in both)
        return _FUNCTIONS[self.similarity_fn_name][0](a, b)

    def similarity_pairwise(self, embeddings1: Embeddings, embeddings2: Embeddings) -> Tensor:
        """Compare each vector with the one at its place, by `similarity_fn_name`.

        Args:
            embeddings1: (n, dimension) or (dimension,).
            embeddings2: likewise.

        Returns:
            float32 (n,), or a scalar for two single vectors.
        """
        a, b = as_tensor(embeddings1), as_tensor(embeddings2)
        return _FUNCTIONS[self.similarity_fn_name][1](a, b)
