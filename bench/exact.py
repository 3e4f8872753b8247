"""What the gate compares with: float32 arithmetic on the parameters that an engine was given."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

# Of `Rival.parameters`: what the file's parameters are rounded to before anybody computes.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Rows = Sequence[np.ndarray]


class Exact:
    """Expected rows by `Rival.parameters`; each kind is computed when first asked for."""

    def __init__(self, compute: Callable[[str], Rows]) -> None:
        self._compute = compute
        self._rows: dict[str, Rows] = {}

    def __getitem__(self, parameters: str) -> Rows:
        if parameters not in self._rows:
            self._rows[parameters] = self._compute(parameters)
        return self._rows[parameters]


def token_rows(path: Path, inputs: Sequence[Sequence[int]], parameters: str) -> Rows:
    """transformers' float32 (tokens, hidden) of every text computed alone."""
    library: Any = importlib.import_module("transformers")
    options: dict[str, Any] = {"dtype": DTYPES[parameters]}
    if "flaubert" in path.name:
        # transformers 5 raises a TypeError in every forward of a FlauBERT with pre_norm.
        library, options["backend"] = importlib.import_module("fastbert"), "reference"
    model = library.AutoModel.from_pretrained(path, **options).eval().float()
    with torch.inference_mode():
        return [model(torch.tensor([text])).last_hidden_state[0].numpy().copy() for text in inputs]
