"""The parity gate: no speed is printed of an engine whose numbers are wrong.

An engine is compared with float32 arithmetic on the parameters that it was given. Whoever rounds
every parameter of a checkpoint to bfloat16 before an engine sees it has another model, and how far
that one is from the first says nothing about the engine: RemBERT's 32 layers differ by 2.9e-2 in
float32 arithmetic alone, and what bfloat16 arithmetic adds is 0.7e-2 in fastbert and 1.2e-2 in
transformers. `Rival.parameters` says which engines are given what. An engine that takes float32 and
rounds it itself, to 16 bits or 8, answers for that rounding. Tables show both errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Largest relative error. For rivals it tells a broken export from honest rounding; what fastbert
# promises is tighter, and is tested in tests/.
LIMITS = {"fp32": 1e-4, "bf16": 3e-2, "int8": 1e-1}


@dataclass(frozen=True)
class Verdict:
    """Outcome of the gate for one engine in one case."""

    error: float
    passed: bool


def judge(outputs: Sequence[np.ndarray], expected: Sequence[np.ndarray], precision: str) -> Verdict:
    """Compares the real tokens' rows of every text.

    Args:
        outputs, expected: one (tokens, hidden) array a text, padding removed.
        precision: a key of LIMITS.

    Returns:
        The largest relative error (2-norm of the difference over 2-norm of the expected rows) of
        any text; not passed when it is above the limit, NaN, or shapes differ.
    """
    if [a.shape for a in outputs] != [e.shape for e in expected]:
        return Verdict(float("nan"), False)
    errors = [
        float(np.linalg.norm(a.astype(np.float64) - e) / max(np.linalg.norm(e), 1e-30))
        for a, e in zip(outputs, expected, strict=True)
    ]
    worst = float(np.max(errors)) if errors else 0.0
    return Verdict(worst, worst <= LIMITS[precision])
