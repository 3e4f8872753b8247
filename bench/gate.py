"""The parity gate: no speed is printed of an engine whose numbers are wrong.

An engine is compared with float32 arithmetic on the parameters that it was given. A checkpoint
whose parameters were all rounded to bfloat16 before an engine sees them is another model, and how
far that one is from the first says nothing about the engine: RemBERT's 32 layers differ by 2.9e-2
in float32 arithmetic alone, and bfloat16 arithmetic adds 0.7e-2 in fastbert and 1.2e-2 in
transformers. `Baseline.parameters` says which engines are given what. An engine that takes float32
and rounds it itself, to 16 bits or 8, answers for that rounding. Tables show both errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Largest relative error. For baselines it tells a broken export from honest rounding; fastbert
# promises less than that, which tests/ hold it to.
TOLERANCES = {"fp32": 1e-4, "bf16": 3e-2, "int8": 1e-1}


@dataclass(frozen=True)
class Verdict:
    """Outcome of the gate for one engine in one case.

    Attributes:
        error: largest relative error of any text; NaN where shapes differ.
        passed: whether the engine is timed.
    """

    error: float
    passed: bool


def judge(outputs: Sequence[np.ndarray], expected: Sequence[np.ndarray], precision: str) -> Verdict:
    """Compare the hidden states of every text's real tokens.

    A text's error is the 2-norm of the difference over that of the expected hidden states. The gate
    lets nothing through whose largest error is above the tolerance or NaN, or whose shapes differ.

    Args:
        outputs: one (tokens, hidden) array for every text, padding removed.
        expected: arrays of the same shapes.
        precision: a key of TOLERANCES.
    """
    if [a.shape for a in outputs] != [e.shape for e in expected]:
        return Verdict(float("nan"), False)
    errors = [
        float(np.linalg.norm(a.astype(np.float64) - e) / max(np.linalg.norm(e), 1e-30))
        for a, e in zip(outputs, expected, strict=True)
    ]
    worst = float(np.max(errors)) if errors else 0.0
    return Verdict(worst, worst <= TOLERANCES[precision])
