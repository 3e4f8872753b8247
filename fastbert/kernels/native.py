"""The compiled extension `fastbert._C`: loaded on first use, the reason kept when it cannot be.

`library` is the extension, with the types of `fastbert/_C.pyi`. It works on addresses and sizes;
only `fastbert.kernels.cpu` and `fastbert.engine.cpu_encoder` call its ops.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from fastbert.errors import Unavailable

REMEDY = "build it with `make native` in a checkout, or install the package with `pip install .`"


if TYPE_CHECKING:
    from fastbert import _C

    library = _C
else:

    def __getattr__(name: str) -> ModuleType:
        """Load `library` when it is first asked for."""
        if name != "library":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = extension()
        return globals()[name]


# What the extension was told last.
_threads = 0


@functools.cache
def _load() -> tuple[ModuleType | None, str]:
    try:
        module = importlib.import_module("fastbert._C")
    except ImportError as error:
        return None, f"the native library cannot be loaded ({error}); {REMEDY}"
    try:
        module.active_isa()
    except ValueError as error:
        # FASTBERT_CPU_ISA names a set that is unknown or that this machine lacks.
        return None, str(error)
    return module, ""


def reason() -> str | None:
    """None when the extension works, else why it does not and what to do."""
    module, why = _load()
    return why if module is None else None


def extension() -> ModuleType:
    """The extension.

    Raises:
        Unavailable: when it cannot be loaded, with the reason and the remedy.
    """
    module, why = _load()
    if module is None:
        raise Unavailable(f"Native kernels are not available: {why}.")
    return module


def use_torch_threads() -> None:
    """Let the kernels use as many threads as torch does.

    Raises:
        Unavailable: when the extension cannot be loaded, with the reason and the remedy.
    """
    global _threads
    threads = torch.get_num_threads()
    if threads != _threads:
        extension().set_num_threads(threads)
        _threads = threads


@functools.cache
def isa() -> str:
    """Name of the instruction set that the kernels use now; "" without the extension."""
    module, _ = _load()
    return "" if module is None else module.active_isa()


def usable_isas() -> list[str]:
    """Names of the instruction sets that this machine can run, the plainest first."""
    return list(extension().usable_isas())


def set_isa(name: str) -> None:
    """Switches the instruction set; not while kernels run. FASTBERT_CPU_ISA sets it from outside.

    Raises:
        ValueError: when the name is unknown or this machine lacks the set.
    """
    extension().set_isa(name)
    isa.cache_clear()
