"""Where results come from: the commit that was measured."""

from __future__ import annotations

import subprocess
from pathlib import Path


def commit() -> str:
    """Return the checkout's commit, "-dirty" behind it where files were changed; or "unknown"."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent,
            check=False,
        )
    except OSError:  # a machine that is lent for measuring may have no git
        return "unknown"
    return found.stdout.strip() or "unknown"
