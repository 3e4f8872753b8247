"""The hardware's limits, measured in registers and from memory by a small C program."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

KINDS = ("fp32", "bf16", "int8", "read")
BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
_FLAGS = ("-O2", "-march=native", "-pthread", "-Wall")
_MILLISECONDS = 25


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
    """Compiles limits.c for this very machine, whose compiler may be missing, and runs it."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return Limits(threads, None, None, None, None, ("no C compiler to measure them with",))
    rates: dict[str, float | None] = {}
    reasons: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "limits")
        source = Path(__file__).with_name("limits.c")
        built = subprocess.run(
            [compiler, *_FLAGS, str(source), "-o", str(program)], capture_output=True, text=True
        )
        if built.returncode:
            reason = (built.stderr.strip().splitlines() or ["no message"])[0]
            return Limits(threads, None, None, None, None, (f"limits.c: {reason}",))
        for kind in KINDS:
            run = subprocess.run(
                [str(program), kind, str(threads), str(_MILLISECONDS)],
                capture_output=True,
                text=True,
            )
            rates[kind] = float(run.stdout) if run.returncode == 0 else None
            if run.returncode:
                reasons.append(run.stderr.strip())
    return Limits(threads, **rates, reasons=tuple(reasons))
