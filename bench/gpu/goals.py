"""The figures to reach, each worked out from the rows of a record, or "not measured"."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.gpu.record import Record, Row

OURS = ("cuda", "triton")
# Cases of the part "ceilings".
COPY, MATMUL = "copy", "matmul bf16"


@dataclass(frozen=True)
class Verdict:
    """One goal, and what was found.

    Attributes:
        goal: what it is about.
        found: the figure, None where it was not measured.
        wanted: the figure that is asked for.
        unit: of both.
        at_most: whether less is better.
    """

    goal: str
    found: float | None
    wanted: float
    unit: str
    at_most: bool = False

    @property
    def reached(self) -> bool | None:
        """Whether the goal was reached; None where it was not measured."""
        if self.found is None:
            return None
        return self.found <= self.wanted if self.at_most else self.found >= self.wanted

    def line(self) -> str:
        """Write the goal as a line of a table."""
        if self.found is None:
            return f"{'not measured':<13} {self.goal}: {self._asked()}"
        word = "reached" if self.reached else "missed"
        return f"{word:<13} {self.goal}: {self.found:.4g} {self.unit}, {self._asked()}"

    def _asked(self) -> str:
        return f"asked {'at most' if self.at_most else 'at least'} {self.wanted:.4g} {self.unit}"


def verdicts(record: Record) -> list[Verdict]:
    """Compare every goal with a record."""
    return [
        *_attention(record),
        *_rows(record),
        *_gemms(record),
        *_models(record),
        *_accuracy(record),
    ]


def _starting(record: Record, prefix: str) -> list[Row]:
    return [row for row in record.rows if row.case.startswith(prefix) and row.median_ms]


def _best(rows: list[Row]) -> Row | None:
    return min(rows, key=lambda row: row.median_ms or 0.0, default=None)


def _rate(row: Row | None) -> float | None:
    return None if row is None else row.rate


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below


def _apart(record: Record, prefix: str, part: str) -> tuple[Row | None, Row | None]:
    """Return the fastest row of ours and of the baselines in a case."""
    rows = [row for row in _starting(record, prefix) if row.part == part]
    ours = [row for row in rows if row.engine in OURS]
    return _best(ours), _best([row for row in rows if row.engine not in OURS])


def _attention(record: Record) -> list[Verdict]:
    found = []
    for length, wanted in ((512, 340.0), (1024, 390.0)):
        ours, _ = _apart(record, f"attention {length},", "attention")
        found.append(Verdict(f"attention, length {length}", _rate(ours), wanted, "TFLOP/s"))
    for length in (128, 256):
        ours, baseline = _apart(record, f"attention {length},", "attention")
        gain = _ratio(_rate(ours), _rate(baseline))
        found.append(Verdict(f"attention, length {length}", gain, 1.3, "x torch's best"))
    ragged, _ = _apart(record, "attention ragged,", "attention")
    uniform, _ = _apart(record, "attention as ragged,", "attention")
    share = _ratio(_rate(ragged), _rate(uniform))
    found.append(Verdict("attention, ragged", share, 0.9, "x uniform's rate"))
    return found


def _rows(record: Record) -> list[Verdict]:
    copy = _rate(_best(_starting(record, COPY)))
    found = []
    for op in ("add_layer_norm", "act_layer_norm", "bias_act"):
        for width in (768, 1024):
            ours, _ = _apart(record, f"{op} {width},", "rows")
            share = _ratio(_rate(ours), copy)
            found.append(Verdict(f"{op}, width {width}", share, 0.8, "x copy bandwidth"))
    return found


def _gemms(record: Record) -> list[Verdict]:
    found = []
    for shape in ("768x3072", "1024x4096"):
        ours, _ = _apart(record, f"int8_linear {shape},", "gemm")
        goal = f"int8_linear {shape} with GELU"
        found.append(Verdict(goal, _rate(ours), 1000.0, "TOPS"))
        plain = _best([row for row in _starting(record, f"linear {shape},") if row.part == "gemm"])
        gain = _ratio(_rate(ours), _rate(plain))
        found.append(Verdict(goal, gain, 1.5, "x the bf16 GEMM"))
    return found


def _models(record: Record) -> list[Verdict]:
    def ms(case: str, engine: str) -> float | None:
        row = record.find(case, engine)
        return None if row is None else row.median_ms

    def per_second(engine: str) -> float | None:
        row = record.find("bert-large, SQuAD lengths", engine)
        return float(row.note.split()[0]) if row else None

    ours, sdpa = "fastbert bf16", "transformers sdpa bf16"
    compiled = "torch.compile max-autotune bf16"
    big, ragged = "bert-base 64x512", "bert-base ragged 32"
    gemm = _rate(_best(_starting(record, MATMUL)))
    share = _ratio(_rate(record.find(big, ours)), gemm)
    invariant = ms(big, "fastbert bf16 batch_invariant")
    int8 = "fastbert int8"
    return [
        Verdict(f"{big} bf16", share, 0.55, "x torch's matmul"),
        Verdict(f"{big} bf16", _ratio(ms(big, compiled), ms(big, ours)), 1.3, "x torch.compile"),
        Verdict(f"{ragged} bf16", _ratio(ms(ragged, sdpa), ms(ragged, ours)), 2.5, "x sdpa"),
        Verdict("bert-large, SQuAD lengths bf16", per_second(ours), 5500, "sequences/s"),
        Verdict("bert-large, SQuAD lengths int8", per_second(int8), 9200, "sequences/s"),
        Verdict("bert-base 1x128 bf16", ms("bert-base 1x128", ours), 0.45, "ms", at_most=True),
        Verdict(f"{big}: batch_invariant", _ratio(invariant, ms(big, ours)), 1.1, "x the time",
                at_most=True),
    ]  # fmt: skip


def _accuracy(record: Record) -> list[Verdict]:
    rows = {row.engine: row for row in record.rows if row.case == "bert-base accuracy"}

    def error(engine: str) -> float | None:
        return rows[engine].error if engine in rows else None

    def identical(engine: str) -> float | None:
        return float(rows[engine].note.startswith("same bits")) if engine in rows else None

    cosine = next((row.rate for row in record.rows if row.case.startswith("all-MiniLM")), None)
    ratio = _ratio(error("fastbert bf16"), error("reference bf16"))
    same: list[tuple[str, Callable[[str], float | None]]] = [
        ("fastbert bf16 batch_invariant", identical), ("fastbert int8", identical),
    ]  # fmt: skip
    return [
        Verdict("error of bf16", ratio, 2.0, "x the reference's in bf16", at_most=True),
        Verdict("int8 on the real MiniLM", cosine, 0.999, "mean cosine"),
        *(Verdict(f"{name}: same bits in any batch", of(name), 1, "(1: yes)") for name, of in same),
    ]
