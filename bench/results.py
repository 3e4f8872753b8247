"""What a run of the benchmark found, as JSON that names machine, versions and Plan."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.provenance import commit
from fastbert.checkpoints.storage import write_text
from fastbert.tools.env import machine
from fastbert.tools.peak import Peak
from fastbert.tools.timing import Summary

FOLDER = Path(__file__).with_name("results")
# Names of a case's fields in files of earlier versions.
_EARLIER_NAMES = {"limits": "peak", "floors": "lower_bounds"}


@dataclass
class Row:
    """One engine in one case and arrangement.

    Attributes:
        case: name of the case.
        engine: name of the engine.
        precision: "fp32", "bf16" or "int8".
        arrangement: "arrival" or "sorted".
        error: largest relative error against float32 on the file's parameters.
        own: the same against float32 on the parameters that it was given, which the gate judges.
        passed: whether the gate let it through; without that there is no time.
        time: its times in milliseconds.
        reason: why there is no time, where there is none.
    """

    case: str
    engine: str
    precision: str
    arrangement: str
    error: float | None = None
    passed: bool = False
    time: Summary | None = None
    reason: str = ""
    own: float | None = None

    @property
    def ours(self) -> bool:
        """Whether it is fastbert's."""
        return self.engine.startswith("fastbert")

    @property
    def median(self) -> float:
        """Median in milliseconds; infinite where there is no time."""
        return math.inf if self.time is None else self.time.median


@dataclass
class Circumstances:
    """Under which one case was measured.

    Attributes:
        peak: what the processor reached just before.
        lower_bounds: milliseconds of the case by precision, at that peak.
        plans: lines of the Plan of each of our engines.
        notes: anything else.
        date: when it was measured.
        commit: what was measured.
        load: how busy the machine was before.
    """

    peak: Peak
    lower_bounds: dict[str, float] = field(default_factory=dict)
    plans: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    commit: str = field(default_factory=commit)
    load: float = field(default_factory=lambda: os.getloadavg()[0])


@dataclass
class Results:
    """Every case measured so far: in this run, and in earlier ones into the same file.

    Attributes:
        rows: what was found.
        cases: under which circumstances, by case.
        versions: versions of the engines' packages.
        machine: where it was measured.
    """

    rows: list[Row] = field(default_factory=list)
    cases: dict[str, Circumstances] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=machine)

    def begin(self, case: str, peak: Peak) -> Circumstances:
        """Make room for a case, whose earlier rows are forgotten."""
        self.rows = [row for row in self.rows if row.case != case]
        self.cases.pop(case, None)
        self.cases[case] = Circumstances(peak)
        return self.cases[case]

    def of(self, case: str) -> list[Row]:
        """Return the rows of a case."""
        return [row for row in self.rows if row.case == case]

    def lower_bound(self, row: Row) -> float | None:
        """Return the milliseconds that no program can beat in a row's case and precision."""
        return self.cases[row.case].lower_bounds.get(row.precision)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; NaN becomes null."""
        return _plain(
            {
                "machine": self.machine,
                "versions": self.versions,
                "cases": {name: asdict(case) for name, case in self.cases.items()},
                "rows": [asdict(row) for row in self.rows],
            }
        )

    def save(self, path: Path) -> None:
        """Write a file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read a file of this or an earlier version, measured on any machine."""
        saved = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            [_row(row) for row in saved["rows"]],
            {name: _circumstances(case) for name, case in saved["cases"].items()},
            saved["versions"],
            saved["machine"],
        )

    @classmethod
    def resume(cls, path: Path) -> Results:
        """Read a file to which this machine adds cases; start anew where there is none.

        Raises:
            ValueError: when it was measured on another machine.
        """
        if not path.exists():
            return cls()
        found, here = cls.read(path), machine()
        if found.machine != here:
            raise ValueError(
                f"{path} was measured on {found.machine}, this machine is {here}; choose another "
                "--name."
            )
        return found


def _row(saved: dict[str, Any]) -> Row:
    return Row(**{**saved, "time": Summary(**saved["time"]) if saved["time"] else None})


def _circumstances(saved: dict[str, Any]) -> Circumstances:
    named = {_EARLIER_NAMES.get(name, name): value for name, value in saved.items()}
    peak = named.pop("peak")
    return Circumstances(Peak(**{**peak, "reasons": tuple(peak["reasons"])}), **named)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value
