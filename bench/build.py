"""Whether the fastbert that is imported here has kernels to measure."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import fastbert
from fastbert.kernels import native

_DISTRIBUTION = "fastbert-kernels"
_REMEDY = "run `make native` here, or `pip install -e '.[bench]'`"


def missing_kernels() -> str | None:
    """Return None where the kernels can be loaded, else one sentence that says what to do."""
    reason = native.reason()
    if reason is None:
        return None
    imported = Path(fastbert.__file__).resolve().parent
    installed = _installed()
    if list(imported.glob("_C*.so")):
        return f"there is nothing to measure: {reason}."
    if installed is not None and installed != imported:
        return (
            f"{imported} has no built kernels and hides the fastbert installed in {installed}: "
            f"{_REMEDY}."
        )
    return f"{imported} has no built kernels: {_REMEDY}."


def _installed() -> Path | None:
    """Return the folder of the installed package, None where there is none of its own."""
    try:
        distribution = metadata.distribution(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return None
    found = Path(str(distribution.locate_file("fastbert"))).resolve()
    return found if (found / "__init__.py").is_file() else None
