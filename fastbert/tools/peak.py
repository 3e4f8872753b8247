"""The processor's peak, measured: dot products in registers and reads from memory.

The peak gives the lower bound of a computation's time, which no program can beat.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from fastbert.kernels import native

# Bytes of an element, by precision.
BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
_CODES = {"fp32": 0, "bf16": 1, "int8": 4}
_REPETITIONS = 200


@dataclass(frozen=True)
class Peak:
    """The highest rates that a number of threads reach.

    Attributes:
        threads: how many of them.
        fp32: float32 operations per second in registers; None where it could not be measured.
        bf16: the same of bfloat16.
        int8: the same of 8-bit integers.
        read: bytes per second read from memory, None likewise.
        reasons: why something is None.
    """

    threads: int
    fp32: float | None
    bf16: float | None
    int8: float | None
    read: float | None
    reasons: tuple[str, ...] = ()

    def lower_bound(
        self, precision: str, operations: float, weight_bytes: float = 0.0
    ) -> float | None:
        """Return the seconds of the arithmetic, or of reading every weight once, if that is longer.

        Args:
            precision: "fp32", "bf16" or "int8".
            operations: number of multiplications and additions.
            weight_bytes: what must come from memory.

        Returns:
            None where one of the two rates is not known.
        """
        rate: float | None = getattr(self, precision)
        if rate is None or self.read is None:
            return None
        return max(operations / rate, weight_bytes / self.read)

    def as_dict(self) -> dict[str, object]:
        """Return the fields by name, as a results file holds them."""
        return asdict(self)


def measure(threads: int) -> Peak:
    """Measure the peak with the instruction set in use.

    The arithmetic is the kernels' own inner loop without its loads; the reads are of more memory
    than any cache holds. Where the native library cannot be loaded, every rate is None.

    Args:
        threads: how many threads work at a time.
    """
    reason = native.reason()
    if reason is not None:
        return Peak(threads, None, None, None, None, (reason,))
    fp32, bf16, int8 = (arithmetic(name, threads) for name in ("fp32", "bf16", "int8"))
    return Peak(threads, fp32, bf16, int8, memory(threads))


def arithmetic(precision: str, threads: int) -> float:
    """Measure operations per second in registers.

    Args:
        precision: "fp32", "bf16" or "int8".
        threads: how many threads work at a time.

    Raises:
        Unavailable: when the native library cannot be loaded.
    """
    return float(native.extension().dot_peak(_CODES[precision], threads, _REPETITIONS))


def memory(threads: int) -> float:
    """Measure bytes per second read from memory.

    Args:
        threads: how many threads read at a time.

    Raises:
        Unavailable: when the native library cannot be loaded.
    """
    return float(native.extension().memory_peak(threads))
