"""Memory of caches lies on huge pages where it fills some, and is the allocator's all the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastbert.kernels import native
from fastbert.layers.kv_cache import DynamicCache
from fastbert.runtime.pages import lasting

HUGE = 1 << 21
CPU = torch.device("cpu")


def advised(address: int) -> bool:
    """Return whether the kernel was asked for huge pages at an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            begin, end = (int(part, 16) for part in first.split("-"))
            inside = begin <= address < end
        elif inside and first == "VmFlags:":
            return "hg" in line.split()
    return False


needs_huge_pages = pytest.mark.skipif(
    native.reason() is not None or not Path("/sys/kernel/mm/transparent_hugepage").is_dir(),
    reason="no native library, or a kernel without huge pages",
)


@needs_huge_pages
def test_large_memory_asks_for_huge_pages() -> None:
    made = lasting((3, 5, HUGE), torch.bfloat16, CPU)
    assert made.shape == (3, 5, HUGE) and made.dtype == torch.bfloat16
    assert advised(made.data_ptr() + made.nbytes // 2)
    assert not advised(torch.empty(16 * HUGE).data_ptr() + 8 * HUGE)


@needs_huge_pages
def test_a_cache_asks_for_huge_pages_when_it_grows() -> None:
    cache = DynamicCache()
    for _ in range(2):
        cache.update(torch.ones(1, 8, 4096, 64), torch.ones(1, 8, 4096, 64), 0)
    layer = cache.layers[0]
    for held in (layer.keys, layer.values):
        assert held is not None and bool((held == 1).all())
        assert advised(held.data_ptr() + HUGE)


def test_small_memory_and_other_devices_are_made_as_ever() -> None:
    assert lasting((4, 8), torch.float32, CPU).shape == (4, 8)
    assert lasting((4, HUGE), torch.float32, torch.device("meta")).device.type == "meta"
