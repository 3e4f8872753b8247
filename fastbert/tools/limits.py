"""The hardware's limits, measured now: products in registers and reads from memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from fastbert.kernels import native

BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
_CODES = {"fp32": 0, "bf16": 1, "int8": 4}
_REPEATS = 200


@dataclass(frozen=True)
class Limits:
    """Operations per second in registers by precision, and bytes per second read from memory.

    A kind that could not be measured is None, with its reason in `reasons`.
    """

    threads: int
    fp32: float | None
    bf16: float | None
    int8: float | None
    read: float | None
    reasons: tuple[str, ...] = ()

    def floor(self, precision: str, operations: float, weights: float) -> float | None:
        """Seconds that no program can beat: arithmetic, or reading every weight once.

        Args:
            precision: "fp32", "bf16" or "int8".
            operations: multiplications and additions.
            weights: bytes that must come from memory.
        """
        rate: float | None = getattr(self, precision)
        if rate is None or self.read is None:
            return None
        return max(operations / rate, weights / self.read)

    def as_dict(self) -> dict[str, object]:
        """For a results file."""
        return asdict(self)


def measure(threads: int) -> Limits:
    """Measures them with `threads` threads and the instruction set in use.

    The products are those of the kernels' own inner loops, without their loads; the reads are of
    more memory than any cache holds. Where the native library cannot load, every limit is None.
    """
    reason = native.reason()
    if reason is not None:
        return Limits(threads, None, None, None, None, (reason,))
    library = native.extension()
    rates = {name: library.dot_peak(code, threads, _REPEATS) for name, code in _CODES.items()}
    return Limits(threads, **rates, read=library.memory_peak(threads))
