"""The gate's reference: float32 arithmetic on the parameters that an engine was given."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

# What the file's parameters are rounded to before anything is computed, by `Baseline.parameters`.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
States = Sequence[np.ndarray]


class Exact:
    """Expected hidden states by `Baseline.parameters`, each computed when first asked for."""

    def __init__(self, compute: Callable[[str], States]) -> None:
        self._compute = compute
        self._states: dict[str, States] = {}

    def __getitem__(self, parameters: str) -> States:
        if parameters not in self._states:
            self._states[parameters] = self._compute(parameters)
        return self._states[parameters]


def token_states(path: Path, inputs: Sequence[Sequence[int]], parameters: str) -> States:
    """Compute the hidden states of every text alone, in float32, with transformers.

    Args:
        path: the checkpoint's folder.
        inputs: token ids of every text.
        parameters: a key of DTYPES.

    Returns:
        float32 (tokens, hidden) of every text.
    """
    library: Any = importlib.import_module("transformers")
    options: dict[str, Any] = {"dtype": DTYPES[parameters]}
    if "flaubert" in path.name:
        # transformers 5 raises a TypeError in every forward of a FlauBERT with pre_norm.
        library, options["backend"] = importlib.import_module("fastbert"), "reference"
    model = library.AutoModel.from_pretrained(path, **options).eval().float()
    with torch.inference_mode():
        return [model(torch.tensor([text])).last_hidden_state[0].numpy().copy() for text in inputs]
