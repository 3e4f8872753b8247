"""Keep what is known of a run: one JSON file, whole after every case, whatever ends the run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.provenance import commit
from fastbert.checkpoints.storage import write_text
from fastbert.kernels import native

FORMAT = 1


@dataclass
class Row:
    """One engine in one case.

    Attributes:
        part: "ceilings", a group of ops, or "models".
        case: name of the case.
        engine: what was timed. Ours are named after a backend, or "fastbert ...".
        unit: of the rate.
        median_ms: of one call; None where there is no figure, with the reason in `note`.
        quartiles_ms: of one call, likewise.
        rate: work per second: real tokens' operations, or bytes.
        note: what else there is to say.
        error: relative to float64, where it was looked at.
        op: under which the Plan's table has it; "" where it does not belong there.
        dtype: likewise.
        size: shape class, likewise; 0 where it does not belong there.
        weight: shape of a gemm's weight there; () for other ops.
    """

    part: str
    case: str
    engine: str
    unit: str
    median_ms: float | None = None
    quartiles_ms: tuple[float, float] | None = None
    rate: float | None = None
    note: str = ""
    error: float | None = None
    op: str = ""
    dtype: str = ""
    size: int = 0
    weight: tuple[int, ...] = ()

    @property
    def key(self) -> tuple[str, str, str]:
        """What a later row must share to replace this one."""
        return self.part, self.case, self.engine


@dataclass
class Record:
    """All rows of one GPU and day.

    Attributes:
        gpu: its name.
        capability: its compute capability.
        date: the day.
        dry_run: whether nothing was measured.
        commit: what was measured.
        versions: of CUDA and the packages.
        rows: what was found.
    """

    gpu: str
    capability: str
    date: str
    dry_run: bool = False
    commit: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    @classmethod
    def here(cls, dry_run: bool) -> Record:
        """Make an empty record of this machine.

        Raises:
            SystemExit: without a GPU, unless nothing is to be measured.
        """
        if not dry_run and not torch.cuda.is_available():
            raise SystemExit(
                "bench.gpu: this machine has no CUDA device, so nothing can be measured; "
                "--dry-run goes through the motions on the CPU."
            )
        name, capability = "none (dry run)", "0.0"
        if not dry_run:
            name = torch.cuda.get_device_name()
            capability = ".".join(map(str, torch.cuda.get_device_capability()))
        return cls(name, capability, time.strftime("%Y-%m-%d"), dry_run, commit(), _versions())

    @property
    def stem(self) -> str:
        """Name of its files."""
        name = "dry-run" if self.dry_run else self.gpu.replace(" ", "-").lower()
        return f"{name}-{self.date}"

    def add(self, rows: Iterable[Row]) -> None:
        """Add rows; each replaces an older one of the same part, case and engine."""
        kept = {row.key: row for row in self.rows} | {row.key: row for row in rows}
        self.rows = list(kept.values())

    def find(self, case: str, engine: str) -> Row | None:
        """Return the row of a case and engine that has a figure, if there is one."""
        for row in self.rows:
            if (row.case, row.engine) == (case, engine) and row.median_ms is not None:
                return row
        return None

    def save(self, folder: Path) -> Path:
        """Write FOLDER/<gpu>-<date>.json, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.stem}.json"
        write_text(path, json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")
        return path

    @classmethod
    def load(cls, path: Path) -> Record:
        """Read a record.

        Raises:
            ValueError: when the file holds none.
        """
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.pop("format", None) != FORMAT:
            raise ValueError(f"{path} holds no GPU measurements of format {FORMAT}.")
        rows = [Row(**row) for row in found.pop("rows")]
        for row in rows:
            if row.quartiles_ms is not None:
                row.quartiles_ms = tuple(row.quartiles_ms)
            row.weight = tuple(row.weight)
        return cls(**found, rows=rows)

    def resumed(self, folder: Path) -> Record:
        """Return this record with the rows that earlier parts of the day left in a folder."""
        path = folder / f"{self.stem}.json"
        if path.exists():
            self.rows = Record.load(path).rows
        return self


def _versions() -> dict[str, str]:
    from importlib import metadata

    versions: dict[str, Any] = {"cuda": torch.version.cuda}
    for name in ("torch", "triton", "transformers"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    # Without it every pass reads its model anew in Python, for milliseconds.
    versions["_C"] = native.reason() or "built"
    return {name: str(version) for name, version in versions.items()}
