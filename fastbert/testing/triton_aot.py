"""Compile what a triton launcher would launch, for a GPU that need not be there.

`recorded(call)` runs an op on CPU tensors with the launch itself replaced by a recorder, so that
the kernel, argument types, strides, tile and warps are exactly those in use. `compiled(launch,
arch)` then goes through triton.compile, specialising arguments as the JIT does, and reads the
result back with cuobjdump.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

# Shared memory a block may use, by architecture (CUDA programming guide, table of compute
# capabilities), and on the smallest GPUs that take the same tiles: sm_86, sm_89 and sm_120 those of
# sm_80.
SHARED_LIMIT = {75: 64 * 1024, 80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
LEAST_SHARED_LIMIT = {75: 64 * 1024, 80: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
_POINTER = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
_LAUNCH_OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg", "enable_fp_fusion")


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    Attributes:
        kernel: the function.
        arguments: by name.
        options: of the compiler.
    """

    kernel: JITFunction
    arguments: dict[str, Any]
    options: dict[str, Any]


@dataclass(frozen=True)
class Binary:
    """The result of compiling a launch.

    Attributes:
        cubin: machine code.
        ptx: the code before it was assembled.
        shared: bytes of shared memory that a block takes.
        registers: registers of a thread.
        stack: bytes of a thread's stack, which lies in local memory.
        local: bytes of a thread in local memory, where spilled registers go.
        warps: of a block.
    """

    cubin: bytes
    ptx: str
    shared: int
    registers: int
    stack: int
    local: int
    warps: int

    @functools.cached_property
    def sass(self) -> str:
        """The machine code in words; takes longer than compiling it did."""
        return _cuobjdump("--dump-sass", self.cubin)

    def count(self, mnemonic: str) -> int:
        """Count instructions in the machine code whose mnemonic starts with this."""
        return len(re.findall(rf"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+ )?{mnemonic}", self.sass, re.M))

    def blocks_per_sm(self, arch: int) -> int:
        """Return how many blocks a multiprocessor holds by their registers and shared memory.

        Registers are allocated by 8 a thread; a block takes 1 KiB of shared memory more than it
        asks for.
        """
        by_registers = 65536 // (-(-self.registers // 8) * 8 * self.warps * 32)
        return min(by_registers, (SHARED_LIMIT[arch] + 1024) // (self.shared + 1024))


def recorded(call: Callable[[], Any], arch: int) -> list[Launch]:
    """Record the launches that an op makes on a GPU of this architecture.

    Args:
        call: runs the op on CPU tensors.
        arch: 80 or 90.
    """
    launches: list[Launch] = []

    def record(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in _LAUNCH_OPTIONS if name in kwargs}
        arguments = dict(zip(self.arg_names, args, strict=False)) | kwargs
        launches.append(Launch(self, arguments, options))

    with (
        mock.patch.object(JITFunction, "run", record),
        mock.patch("fastbert.triton_kernels._common.architecture", lambda device: arch),
        mock.patch("fastbert.triton_kernels._common.interpreted", lambda: True),
    ):
        call()
    return launches


def source(launch: Launch) -> ASTSource:
    """Derive signature and attributes as the JIT does: 1 is constant, multiples of 16 marked."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        name = parameter.name
        plain = parameter.do_not_specialize
        is_one = type(value) is int and value == 1 and not plain
        if parameter.is_constexpr or value is None or is_one:
            signature[name] = "constexpr"
            constants[(index,)] = value
            continue
        if isinstance(value, torch.Tensor):
            signature[name] = _POINTER[value.dtype]
            aligned = value.data_ptr() % 16 == 0
        elif isinstance(value, float):
            signature[name], aligned = "fp32", False
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            aligned = value % 16 == 0 and not plain
        if aligned:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constants, attributes)


def compiled(launch: Launch, arch: int) -> Binary:
    """Compile the launch for sm_75, sm_80, sm_90a or sm_100a, with the triton that is installed."""
    kernel = triton.compile(
        source(launch), target=GPUTarget("cuda", arch, 32), options=launch.options
    )
    cubin = kernel.asm["cubin"]
    usage = _cuobjdump("--dump-resource-usage", cubin)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert found, usage
    return Binary(
        cubin=cubin,
        ptx=kernel.asm["ptx"],
        shared=kernel.metadata.shared,
        registers=int(found[1]),
        stack=int(found[2]),
        local=int(found[3]),
        warps=kernel.metadata.num_warps,
    )


def _cuobjdump(option: str, cubin: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        done = subprocess.run([_tool("cuobjdump"), option, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@functools.cache
def _tool(name: str) -> str:
    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    assert bundled.exists(), f"{bundled} is missing: the triton wheel normally carries it"
    return str(bundled)
