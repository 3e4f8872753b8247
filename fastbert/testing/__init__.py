"""What tests and benchmarks share: error figures, parity gates, poisoned memory, odd layouts."""

from fastbert.testing.layouts import misaligned, strided
from fastbert.testing.parity import Errors, Verdict, gate, judge, measure, parity, to_float64
from fastbert.testing.poison import poisoned_empty

__all__ = [
    "Errors",
    "Verdict",
    "gate",
    "judge",
    "measure",
    "misaligned",
    "parity",
    "poisoned_empty",
    "strided",
    "to_float64",
]
