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

from fastbert.limits import Limits

from .stats import Summary

FOLDER = Path(__file__).with_name("results")


@dataclass
class Row:
    """One engine in one case and arrangement.

    Attributes:
        case, engine, precision, arrangement: which.
        error: largest relative error the gate saw.
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


@dataclass
class Results:
    """Everything of one run."""

    limits: Limits
    rows: list[Row] = field(default_factory=list)
    floors: dict[str, dict[str, float]] = field(default_factory=dict)
    plans: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; NaN becomes null."""
        return _plain(
            {
                "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "commit": _commit(),
                "machine": machine(),
                "versions": self.versions,
                "limits": self.limits.as_dict(),
                "floors_ms": self.floors,
                "plans": self.plans,
                "notes": self.notes,
                "rows": [asdict(row) for row in self.rows],
            }
        )

    def save(self, name: str) -> Path:
        """Writes results/NAME.json."""
        FOLDER.mkdir(exist_ok=True)
        path = FOLDER / f"{name}.json"
        path.write_text(json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n")
        return path


def machine() -> dict[str, Any]:
    """The processor, its cores and how busy it was when asked."""
    from fastbert import env

    return {
        "cpu": env.cpu_model(),
        "cores": env.usable_cores(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


def _commit() -> str:
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    return found.stdout.strip() or "unknown"


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value
