"""Run every (backend, op, dtype) once, each in its own process: `python -m bench.gpu.once FILE`.

A kernel that hangs, or an illegal access, which ends its process' CUDA context, costs its own line
and no other. Verdicts are printed and written as they come.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.gpu.drive import DTYPES
from fastbert.ops import ALL, IMAGES

# For one process; starting torch, CUDA and Triton takes a good part of it.
SECONDS = 20.0
AT_ONCE = min(8, os.cpu_count() or 1)
# What every process begins with. On a machine that was just started the first one reads gigabytes
# of libraries from disk, and would be said to hang.
_BEGIN = """import torch
if torch.cuda.is_available():
    torch.ones(1).cuda()
import triton
print("started")
"""
_BEGIN_SECONDS = 60.0
# Without a kernel by design.
_WITHOUT = {
    "triton": ("segment_sums", *IMAGES),
    "cuda": ("segment_sums", *IMAGES),
}


def commands(backends: Sequence[str]) -> dict[str, list[str]]:
    """Return the command of every process, by what it runs."""
    found = {}
    for backend in backends:
        for op in ALL:
            for dtype in (str(dtype).removeprefix("torch.") for dtype in DTYPES):
                if op not in _WITHOUT.get(backend, ()):
                    arguments = [backend, op, dtype]
                    command = [sys.executable, "-m", "bench.gpu.drive", *arguments]
                    found[" ".join(arguments)] = command
    return found


def verdict(command: Sequence[str], seconds: float = SECONDS) -> str:
    """Run a command.

    Returns:
        "right" and what it counted, or what went wrong in a few words.
    """
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=os.environ | {"OMP_NUM_THREADS": "2"},
    )
    try:
        told, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()  # and not waited for: the driver may hold it for as long as the kernel runs
        return f"HUNG: not done after {seconds:.0f} s"
    lines = told.strip().splitlines() or [""]
    if process.returncode == 0:
        nothing = lines[-1].startswith("0 calls")
        return f"NOT RUN: {lines[0][:160]}" if nothing else f"right ({lines[-1]})"
    if process.returncode < 0:
        return f"DIED of signal {-process.returncode}: {lines[-1][:160]}"
    if "wrong results" in lines[-1]:
        return f"WRONG: {lines[-1]}; {lines[0][:160]}"
    return f"FAILED: {lines[-1][:160]}"


def warm_up() -> str:
    """Do once what every process begins with, and return the verdict."""
    return verdict([sys.executable, "-c", _BEGIN], _BEGIN_SECONDS)


def main(path: Path, backends: Sequence[str], seconds: float = SECONDS) -> int:
    """Run everything, several at a time.

    Args:
        path: where the verdicts go, a line each.
        backends: ours that are to be tried.
        seconds: for one of them.

    Returns:
        The number that are not right.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    asked = commands(backends)
    print(f"{'starting':<40} {warm_up()}", flush=True)
    wrong = 0
    with path.open("w", encoding="utf-8") as file, ThreadPoolExecutor(AT_ONCE) as pool:
        verdicts = pool.map(lambda command: verdict(command, seconds), asked.values())
        for name, told in zip(asked, verdicts, strict=True):
            wrong += not told.startswith("right")
            line = f"{name:<40} {told}"
            print(line, flush=True)
            file.write(line + "\n")
            file.flush()
    print(f"{len(asked) - wrong} of {len(asked)} are right")
    return wrong


if __name__ == "__main__":
    tried = ("cpu",) if "--dry-run" in sys.argv else ("cuda", "triton")
    sys.exit(min(main(Path(sys.argv[1]), tried), 100))
