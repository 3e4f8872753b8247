"""Every kernel is launched on the device of its operands and the current stream there, unasked.

The operands are torch's fake tensors of a second GPU: they have a device and no memory, and refuse
whatever would make the host wait for their values. What would be launched is written down.
"""

from __future__ import annotations

import contextlib
import importlib
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from fastbert import kernels
from fastbert.engine.cuda_graphs import CudaRecorder
from fastbert.kernels.cuda import _native
from fastbert.ops import ALL, IMAGES, REGISTRY
from fastbert.runtime.packing import in_one_copy

# Those that have a kernel for GPUs.
OPS = [name for name in REGISTRY if name != "segment_sums"]
OTHER = torch.device("cuda", 1)
STREAM = 77
HALF = torch.bfloat16


def index_of(device: torch.device | int) -> int:
    return device if isinstance(device, int) else device.index


class Machine:
    """Two GPUs, of which the first is the current one, and what is launched on them."""

    def __init__(self) -> None:
        self.current = 0
        self.launches: list[tuple[int, int]] = []

    @contextlib.contextmanager
    def on(self, device: torch.device | int) -> Iterator[None]:
        before, self.current = self.current, index_of(device)
        yield
        self.current = before

    def stream(self, device: Any = None) -> Any:
        index = self.current if device is None else index_of(device)
        return types.SimpleNamespace(cuda_stream=STREAM if index == OTHER.index else 0)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(torch.cuda, "current_device", lambda: made.current)
    monkeypatch.setattr(torch.cuda, "device", made.on)
    monkeypatch.setattr(torch.cuda, "current_stream", made.stream)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    # A fake tensor has no address, and says so at length.
    monkeypatch.setattr(Tensor, "data_ptr", lambda self: 1 << 20)
    monkeypatch.setattr(kernels, "obstacle", lambda *operands: None)
    return made


def there(value: Any) -> Any:
    """A tensor as one of the second GPU, within a FakeTensorMode; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=OTHER)


def launched(op: str, kernel: Callable[..., Any], machine: Machine, expected: Any) -> None:
    """Runs the op's cases, and holds what they launched against what each must have."""
    done = 0
    for case in ALL[op].cases():
        arguments = case.make(HALF)
        with FakeTensorMode(), torch.no_grad():
            try:
                out = kernel(**pytree.tree_map(there, arguments))
            except ValueError as refusal:
                assert "another backend" in str(refusal), case.name  # a head_dim it has not
                continue
        assert all(part.device == OTHER for part in pytree.tree_leaves(out))
        done += 1
    assert done > 5 and len(machine.launches) >= done // 2
    assert set(machine.launches) == {expected}
    assert machine.current == 0, "the caller's device was changed"


@pytest.mark.parametrize("op", [name for name in ALL if name not in ("segment_sums", *IMAGES)])
def test_triton(op: str, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    jit = pytest.importorskip("triton", reason="the triton package is not installed").runtime.jit

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        # As triton does: on the current device, on the stream that is current there.
        machine.launches.append((machine.current, machine.stream().cuda_stream))

    monkeypatch.setattr(jit.JITFunction, "run", run)
    launched(op, kernels.bound("triton", op), machine, (OTHER.index, STREAM))


@pytest.mark.parametrize(
    ("capability", "tiles"),
    [((8, 0), 80), ((8, 9), 80), ((9, 0), 90), ((10, 0), 90), ((12, 0), 80)],
)
def test_tiles_fit_the_gpu(
    capability: tuple[int, int], tiles: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="the triton package is not installed")
    common = importlib.import_module("fastbert.triton_kernels._common")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert common.architecture(OTHER) == tiles


@pytest.mark.parametrize("op", OPS)
def test_cuda(op: str, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *args: machine.launches.append((*args[-2:], machine.current))

    monkeypatch.setattr(_native, "load", lambda: (Library(), ""))
    # Its own device is current already: the library, which would go back to the first by itself,
    # would make a context there.
    launched(op, kernels.bound("cuda", op), machine, (OTHER.index, STREAM, OTHER.index))


@pytest.mark.parametrize("current", [0, 1])
def test_recordings_are_asked_after_on_the_device_itself(
    current: int, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.current = current
    asked: list[int] = []

    def ask() -> bool:
        asked.append(machine.current)
        return machine.current == OTHER.index

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", ask)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "Event", lambda: None)
    assert CudaRecorder(OTHER).busy()
    with pytest.raises(RuntimeError, match="cannot become part of a CUDA graph"):
        in_one_copy([torch.zeros(3)], OTHER)
    # Asked on another one, torch would make a context there, and answer for that one.
    assert asked == [OTHER.index] * 2 and machine.current == current
