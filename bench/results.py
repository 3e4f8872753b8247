"""What one run of the benchmark found, as JSON that names machine, versions and Plan."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastbert.checkpoints.storage import write_text
from fastbert.tools.limits import Limits

from .stats import Summary

FOLDER = Path(__file__).with_name("results")


@dataclass
class Row:
    """One engine in one case and arrangement.

    Attributes:
        case, engine, precision, arrangement: which.
        error: largest relative error against float32 on the file's parameters.
        own: the same against float32 on the parameters it was given; what the gate judged.
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


@dataclass
class Circumstances:
    """Under which one case was measured.

    Attributes:
        date, commit, load: when, of what, and how busy the machine was before.
        limits: what the hardware did just before.
        floors: milliseconds of the case by precision, under those limits.
        plans: lines of our engines' Plans.
        notes: anything else.
    """

    limits: Limits
    floors: dict[str, float] = field(default_factory=dict)
    plans: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    commit: str = field(default_factory=lambda: commit())
    load: float = field(default_factory=lambda: os.getloadavg()[0])


@dataclass
class Results:
    """Every case measured so far: of this run, and of earlier ones into the same file."""

    rows: list[Row] = field(default_factory=list)
    cases: dict[str, Circumstances] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def begin(self, case: str, limits: Limits) -> Circumstances:
        """Makes room for a case, whose earlier rows are forgotten."""
        self.rows = [row for row in self.rows if row.case != case]
        self.cases.pop(case, None)
        self.cases[case] = Circumstances(limits)
        return self.cases[case]

    def floor(self, row: Row) -> float | None:
        """Milliseconds that no program can beat in a row's case and precision."""
        return self.cases[row.case].floors.get(row.precision)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; NaN becomes null."""
        return _plain(
            {
                "machine": machine(),
                "versions": self.versions,
                "cases": {name: asdict(case) for name, case in self.cases.items()},
                "rows": [asdict(row) for row in self.rows],
            }
        )

    def save(self, name: str) -> Path:
        """Writes results/NAME.json, whole or not at all."""
        FOLDER.mkdir(exist_ok=True)
        path = FOLDER / f"{name}.json"
        write_text(path, json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n")
        return path

    @classmethod
    def load(cls, name: str) -> Results:
        """What results/NAME.json holds; nothing where there is no such file.

        Raises:
            ValueError: when it was measured on another machine.
        """
        path = FOLDER / f"{name}.json"
        if not path.exists():
            return cls()
        saved = json.loads(path.read_text())
        here = machine()
        if saved["machine"] != here:
            raise ValueError(
                f"{path} was measured on {saved['machine']}, this machine is {here}; choose "
                f"another --name."
            )
        return cls(
            [_row(row) for row in saved["rows"]],
            {
                name: Circumstances(**{**case, "limits": _limits(case["limits"])})
                for name, case in saved["cases"].items()
            },
            saved["versions"],
        )


def machine() -> dict[str, Any]:
    """The processor and what runs on it."""
    from fastbert.tools import env

    return {
        "cpu": env.cpu_model(),
        "cores": env.usable_cores(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def commit() -> str:
    """Return the commit of the checkout, with "-dirty" where files differ from it."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    return found.stdout.strip() or "unknown"


def _row(saved: dict[str, Any]) -> Row:
    return Row(**{**saved, "time": Summary(**saved["time"]) if saved["time"] else None})


def _limits(saved: dict[str, Any]) -> Limits:
    return Limits(**{**saved, "reasons": tuple(saved["reasons"])})


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value
