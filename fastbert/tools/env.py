"""What this machine, this build and this environment offer: the text of ``fastbert env``.

Every line is gathered on its own, so that one part that is missing or broken is named with its
reason and hides none of the others.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from fastbert import __version__

PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "safetensors",
    "tokenizers",
    "sentencepiece",
    "sacremoses",
    "huggingface_hub",
    "transformers",
)
# The features that the instruction sets of csrc/cpu/isa.h are made of, as Linux names them.
CPU_FEATURES = (
    "avx2",
    "fma",
    "f16c",
    "bmi2",
    "avx512f",
    "avx512bw",
    "avx512dq",
    "avx512vl",
    "avx512cd",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
)

Report = dict[str, dict[str, Any]]


def collect() -> Report:
    """Gather everything that is known.

    Returns:
        {section: {key: value}} of values that JSON can hold. A part that cannot be found out holds
        a sentence that begins with "unavailable:".
    """
    return {
        "fastbert": _guarded(_software),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": _guarded(_cpu),
        "native library": _guarded(_native),
        "triton": _guarded(_triton),
        "cuda": _guarded(_cuda),
    }


def render(report: Report) -> str:
    """Write the report as aligned text, one value a line."""
    width = max(len(key) for section in report.values() for key in section)
    lines: list[str] = []
    for section, values in report.items():
        lines.append(section)
        lines += [f"  {key:<{width}}  {_text(value)}" for key, value in values.items()]
    return "\n".join(lines)


def render_json(report: Report) -> str:
    """Write the report as one JSON object."""
    return json.dumps(report, indent=2, ensure_ascii=False)


def cpu_model() -> str:
    """Return the processor's own name for itself, or the architecture where it does not tell."""
    return _cpuinfo().get("model name", platform.processor() or platform.machine())


def usable_cores() -> int:
    """Return the number of cores that this process may use, which containers often restrict."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Describe the processor and what runs on it, as files of results name it."""
    return {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _guarded(gather: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return gather()
    except Exception as error:  # the report must come out whatever is broken, and say what is
        return {"state": f"unavailable: {type(error).__name__}: {error}"}


def _software() -> dict[str, Any]:
    return {
        "version": __version__,
        "path": str(Path(__file__).resolve().parent),
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpuinfo() -> dict[str, str]:
    try:
        first_core = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in first_core.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _cpu() -> dict[str, Any]:
    flags = set(_cpuinfo().get("flags", "").split())
    return {
        "model": cpu_model(),
        "cores": f"{usable_cores()} usable of {os.cpu_count()}",
        "features": [name for name in CPU_FEATURES if name in flags] or "not told by this system",
        "forced instruction set": os.environ.get("FASTBERT_CPU_ISA", "none"),
    }


def _native() -> dict[str, Any]:
    native = importlib.import_module("fastbert.kernels.native")
    reason = native.reason()
    if reason is not None:
        return {"state": f"unavailable: {reason}"}
    library = native.extension()
    return {
        "state": "loaded",
        **{key.replace("_", " "): value for key, value in library.build_info().items()},
        "usable here": native.usable_isas(),
        "active": native.isa(),
        "threads": library.num_threads(),
    }


def _triton() -> dict[str, Any]:
    if _version("triton") == "not installed":
        return {"state": "unavailable: the package triton is not installed"}
    importlib.import_module("triton")
    importlib.import_module("fastbert.triton_kernels")
    return {"state": "kernels importable; they run on CUDA devices only"}


def _cuda() -> dict[str, Any]:
    torch = importlib.import_module("torch")
    if torch.version.cuda is None:
        return {"state": "unavailable: this torch was built without CUDA"}
    if not torch.cuda.is_available():
        return {"torch's CUDA": torch.version.cuda, "state": "no usable device"}
    found: dict[str, Any] = {"torch's CUDA": torch.version.cuda}
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        memory = device.total_memory / 2**30
        found[f"device {index}"] = (
            f"{device.name}, sm_{device.major}{device.minor}, {memory:.0f} GiB"
        )
    return found


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
