"""Fingerprints stand for the bytes of a tensor: every bit and every place counts, nothing else."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastbert.kernels import native
from fastbert.runtime import versions

pytestmark = pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))


def same(tensor: Tensor, change: Callable[[], object]) -> bool:
    before = versions._bytes_of(tensor)
    change()
    return versions._same_bytes(before, versions._bytes_of(tensor))


@pytest.mark.parametrize("size", [1, 7, 16, 31, 32, 33, 255, 4097, 8191, 8192, 8193, 600_000])
def test_every_bit_counts(size: int) -> None:
    memory = torch.randint(0, 256, (size,), dtype=torch.uint8)
    assert same(memory, lambda: None)
    for place in {0, size - 1, *torch.randint(0, size, (64,)).tolist()}:
        bit = 1 << int(torch.randint(0, 8, ()))
        assert not same(memory, functools.partial(memory[place].bitwise_xor_, bit))


def test_the_order_of_words_counts() -> None:
    words = torch.arange(2048, dtype=torch.int64)
    assert not same(words, lambda: words.copy_(words.flip(0)))


def test_bytes_are_read_to_the_last_element_and_no_further() -> None:
    wide = torch.zeros(6, 10)
    inner = wide[1:3, 2:5]
    assert versions.readable_bytes(inner) == (10 + 2 + 1) * 4
    assert versions.readable_bytes(wide.t()) == 60 * 4
    assert versions.readable_bytes(torch.zeros(0, 4)) == 0
    assert versions.readable_bytes(torch.zeros(())) == 4
    assert same(inner, lambda: wide[2, 5].add_(1.0))
    assert not same(inner, lambda: wide[2, 4].add_(1.0))


def test_threads_change_no_fingerprint() -> None:
    memory = torch.randn(3_000_001)
    threads = torch.get_num_threads()
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(versions._bytes_of(memory))
    torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]
    assert isinstance(found[0], bytes) and len(found[0]) == 16 * math.ceil(4 * 3_000_001 / 8192)


def test_copies_on_other_devices_are_compared_as_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "reason", lambda: "none here")
    weight = torch.tensor([[1.0, float("nan")], [0.0, -0.0]])
    assert same(weight, lambda: None)
    assert not same(weight, lambda: weight[1].neg_())
