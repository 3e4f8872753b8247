"""The compiled extension `fastbert._C`: loaded on first use, the reason kept when it cannot be.

`library` is the extension, with the types of `fastbert/_C.pyi`. It works on addresses and sizes;
only `fastbert.kernels.cpu` and `fastbert.engine.cpu_encoder` call its ops.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from fastbert.errors import Unavailable

REMEDY = "run `make native` or `pip install -e .` in the checkout"
_PACKAGE = Path(__file__).resolve().parents[1]

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


def imported(name: str) -> ModuleType:
    """Import a compiled module of this package, from this package's own folder only.

    An editable install of another checkout would else lend its extension to a tree without one.

    Raises:
        ImportError: when this package's folder does not hold it, or it cannot be loaded.
    """
    import fastbert

    spec = importlib.util.find_spec(f"fastbert.{name}")
    if spec is None or str(Path(spec.origin or "").parent) not in fastbert.__path__:
        raise ImportError(f"no fastbert.{name} in {_PACKAGE}")
    return importlib.import_module(f"fastbert.{name}")


@functools.cache
def _load() -> tuple[ModuleType | None, str]:
    try:
        module = imported("_C")
    except ImportError as error:
        return None, f"the native library cannot be loaded ({error}); {_hidden() or REMEDY}"
    try:
        module.active_isa()
    except ValueError as error:
        # FASTBERT_CPU_ISA names a set that is unknown or that this machine lacks.
        return None, str(error)
    return module, ""


def _hidden() -> str | None:
    """Return what to do where a source tree hides an installed package that has the extension."""
    for distribution in metadata.distributions(name="fastbert-kernels"):
        for file in distribution.files or ():
            found = Path(str(distribution.locate_file(file))).resolve()
            if file.match("fastbert/_C.*") and found.suffix == ".so" and found.exists():
                return (
                    f"{_PACKAGE} hides the package that is installed in {found.parent}: start "
                    "Python in another directory, or run `pip install -e .` in the checkout"
                )
    return None


def reason() -> str | None:
    """Return None when the extension works, else why it does not and what to do."""
    module, why = _load()
    return why if module is None else None


def extension() -> ModuleType:
    """Return the extension.

    Raises:
        Unavailable: when it cannot be loaded, with the reason and the remedy.
    """
    module, why = _load()
    if module is None:
        raise Unavailable(f"Native kernels are not available: {why}.")
    return module


@functools.cache
def isa() -> str:
    """Return the name of the instruction set in use; "" without the extension."""
    module, _ = _load()
    return "" if module is None else module.active_isa()


# Whether set_isa chose the instruction set.
_chosen = False


@functools.cache
def slow() -> str | None:
    """Return why the reference is faster than these kernels here; None where it is not.

    On a processor whose instruction sets they do not know, there is plain C++ alone. Whoever asks
    for it by name (FASTBERT_CPU_ISA, `set_isa`) gets it.
    """
    if isa() != "scalar" or _chosen or os.environ.get("FASTBERT_CPU_ISA"):
        return None
    return (
        "for this processor there are kernels in plain C++ only, which take several times as long "
        'as torch\'s own operators; backend="cpu" takes them all the same'
    )


def usable_isas() -> list[str]:
    """Return the instruction sets that this build holds and this machine can run, plainest first.

    Raises:
        Unavailable: when the extension cannot be loaded, with the reason and the remedy.
    """
    return list(extension().usable_isas())


def set_isa(name: str) -> None:
    """Switch the instruction set, while no kernel runs. FASTBERT_CPU_ISA sets it from outside.

    Raises:
        Unavailable: when the extension cannot be loaded, with the reason and the remedy.
        ValueError: when the name is unknown, or this build or this machine lacks the set.
    """
    global _chosen
    extension().set_isa(name)
    _chosen = True
    isa.cache_clear()
    slow.cache_clear()
