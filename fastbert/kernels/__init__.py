"""Where kernels are found: one package or module per backend, asked by name and only when needed.

A backend answers three questions: can it run on this device at all (`missing`), does it have a
kernel for this op and these traits (`refusal`), and which one is it (`kernel`). The first two
answer None for yes and otherwise a reason that a person can act on.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from fastbert.errors import Unavailable
from fastbert.kernels import native
from fastbert.ops import ALL, Traits
from fastbert.ops.operands import Target, obstacle, unreadable

NAMES = ("cpu", "cuda", "triton")
# Of a GPU. What is older has neither bfloat16 on its tensor cores nor cp.async, and no machine code
# is embedded for it.
LEAST_CAPABILITY = {"cuda": (8, 0), "triton": (7, 5)}
# Of those, what Triton multiplies matrices for with tensor cores; for older ones its code would be
# slower than torch's products and fused attention by far (tests/triton/test_compile.py).
_TENSOR_CORES = (8, 0)
_MULTIPLYING = ("attention_varlen", "attention_grouped", "linear", "int8_linear", "linear_w8a16")


def missing(backend: str, device: torch.device) -> str | None:
    """Return None when the backend can run on the device, else the reason."""
    if backend == "triton":
        reason = _triton_missing(device)
    elif device.type != backend:
        reason = f"its kernels run on {backend} tensors, these are on {device.type}"
    else:
        module, reason = _module(f"fastbert.kernels.{backend}")
        reason = reason if module is None else module.unavailable()
    if reason is None and device.type == "cuda":
        reason = _too_old(backend, device)
    return reason


def instruction_set(backend: str, device: torch.device) -> str:
    """Return what a backend that is not `missing` is compiled for on this device."""
    if backend == "cpu":
        return native.isa()
    if device.type == "cpu":
        return "interpreter"
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def refusal(
    backend: str, op: str, traits: Traits, dtype: torch.dtype, device: torch.device | None = None
) -> str | None:
    """Return None when a backend that is not `missing` has a kernel for this, else the reason.

    Args:
        backend: its name.
        op: name of the op.
        traits: of the caller.
        dtype: of the activations.
        device: where it is to run; None asks of no device in particular.
    """
    on_gpu = device is not None and device.type == "cuda"
    if on_gpu and torch.cuda.get_device_capability(device) < _TENSOR_CORES:
        if op in _MULTIPLYING:
            return "it makes no use of the tensor cores of this GPU, torch's own product does"
        if dtype == torch.bfloat16:
            return "this GPU has no bfloat16; use float16"
    if dtype not in _DTYPES:
        return f"kernels compute in {', '.join(map(_short, _DTYPES))}, not in {_short(dtype)}"
    module, reason = _op_module(backend, op)
    if module is None:
        return reason
    refused: str | None = (
        module.supports(op, traits) if backend == "cpu" else module.supports(traits)
    )
    return refused


@dataclass(frozen=True)
class Kernel:
    """An op on a backend, callable with the arguments of the op's reference.

    Attributes:
        check: the op's own, which makes the operands.
        target: what the operands are checked for.
        function: the backend's, which takes nothing but the operands.
    """

    check: Callable[..., Any]
    target: Target
    function: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Check the operands and run the op."""
        operands = self.check(self.target, *args, **kwargs)
        if obstacle(operands) is not None:
            raise unreadable(self.function.__name__, operands._asdict())
        return self.function(operands)


@functools.cache
def kernel(backend: str, op: str) -> Kernel:
    """Return the op on the backend.

    Raises:
        Unavailable: when the backend cannot be loaded or has no such kernel.
    """
    return bound(backend, op)


def bound(backend: str, op: str) -> Kernel:
    """Do what `kernel` does, looking anew for where the backend's operands must be."""
    module, reason = _op_module(backend, op)
    if module is None:
        raise Unavailable(f"{op} has no {backend} kernel here: {reason}.")
    home, _ = _module(_HOMES[backend])
    assert home is not None
    return Kernel(ALL[op].check, home.target(), getattr(module, op))


# Which module says where a backend's operands must be.
_HOMES = {
    "cpu": "fastbert.kernels.cpu",
    "cuda": "fastbert.kernels.cuda",
    "triton": "fastbert.triton_kernels._common",
}


def packer(backend: str, op: str) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Return the function that puts a weight into the order of a gemm's kernel, if there is one."""
    module, _ = _op_module(backend, op)
    return None if module is None else getattr(module, f"{op}_prepack", None)


_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _op_module(backend: str, op: str) -> tuple[ModuleType | None, str]:
    if backend == "cpu":
        return _module("fastbert.kernels.cpu")
    if backend == "triton":
        name = f"fastbert.triton_kernels.{op}"
        if importlib.util.find_spec(name) is None:
            return None, f"the triton backend has no {op}"
        return _module(name)
    package, reason = _module("fastbert.kernels.cuda")
    if package is None:
        return None, reason
    if importlib.util.find_spec(f"fastbert.kernels.cuda.{op}") is None:
        return None, f"the cuda backend has no {op}"
    reason = package.unloaded()
    return (None, reason) if reason else _module(f"fastbert.kernels.cuda.{op}")


def _too_old(backend: str, device: torch.device) -> str | None:
    """None when kernels were written for a GPU like this one, else the reason."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device here"
    capability = torch.cuda.get_device_capability(device)
    wanted = LEAST_CAPABILITY[backend]
    if capability >= wanted:
        return None
    have, least = (".".join(map(str, pair)) for pair in (capability, wanted))
    name = torch.cuda.get_device_name(device)
    return f"its kernels need compute capability {least} or later, {name} has {have}"


def _triton_missing(device: torch.device) -> str | None:
    elsewhere = (
        f"its kernels run on cuda tensors (or under TRITON_INTERPRET=1), these are on {device.type}"
    )
    untouched = "triton" not in sys.modules and "TRITON_INTERPRET" not in os.environ
    if device.type != "cuda" and untouched:
        return elsewhere  # without the 0.2 s that importing triton takes
    module, reason = _module("triton")
    if module is None:
        return reason
    package, reason = _module("fastbert.triton_kernels")
    if package is None:
        return reason
    interpreted = device.type == "cpu" and module.knobs.runtime.interpret
    return None if device.type == "cuda" or interpreted else elsewhere


@functools.cache
def _module(name: str) -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module(name), ""
    except ImportError as error:
        return None, f"{name} cannot be imported: {error}"
