"""What nvcc made of the CUDA attention: the instructions that each form is for, no local memory."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

import pytest

from fastbert.kernels.cuda.attention_varlen import HEAD_DIMS

MachineCode = Callable[[str, str], dict[str, str]]


def count(pattern: str, sass: str) -> int:
    return len(re.findall(pattern, sass))


def test_hopper(machine_code: MachineCode) -> None:
    mine = machine_code("sm_90a", "attention_sm90_kernel")
    assert len(mine) == 2 * len(HEAD_DIMS)
    for name, sass in mine.items():
        dim = int(re.search(r"ELi(\d+)E", name)[1])  # type: ignore[index]
        server = sass.index("USETMAXREG.DEALLOC")
        computing = sass[:server]
        # Where it computes; the thread that deals out items may keep a counter there.
        assert not re.search(r"\b(STL|LDL)\b", computing), f"{name} uses local memory"
        assert count(r"\b(STL|LDL)\b", sass[server:]) <= 4
        # Products of a whole block: scores 128 keys wide, outputs as wide as a head. Issued twice,
        # for blocks with a predecessor and without; a partial block's beside them.
        assert count(r"HGMMA\.64x128x16", computing) >= 3 * (dim // 16)
        assert count(rf"HGMMA\.64x{dim}x16", computing) >= 2 * 8
        assert count("HGMMA", sass[server:]) == 0
        # Runs of products with no exponential between them: a first block's scores, then a block's
        # scores with the outputs of the one before, then the last outputs with a partial block's
        # scores, then that one's outputs. More runs: the compiler gave up keeping products in
        # flight, and waits for each (its warnings C7510 to C7520).
        order = re.findall(r"HGMMA|MUFU\.EX2", computing)
        runs = [kind for kind, _ in itertools.groupby(order)].count("HGMMA")
        assert runs == 4, f"{name} has {runs} runs of products"
        assert count(r"UTMALDG\.3D", sass[server:]) >= 3
        assert count(r"\bLDGSTS\b|\bHMMA\b", sass) == 0
        assert count(r"MUFU\.EX2", computing) >= 2 * 64


def test_ampere(machine_code: MachineCode) -> None:
    mine = machine_code("sm_80", "attention_sm80_kernel")
    assert len(mine) == 2 * len(HEAD_DIMS)
    for name, sass in mine.items():
        assert not re.search(r"\b(STL|LDL)\b", sass), f"{name} uses local memory"
        dim = int(re.search(r"ELi(\d+)E", name)[1])  # type: ignore[index]
        # 64 keys by 16 queries and back again.
        assert count(r"HMMA\.16816\.F32", sass) >= 2 * 8 * dim // 16
        assert count(r"LDGSTS\S*\.128", sass) > 0 and count(r"LDSM", sass) > 0
        assert count(r"\bHGMMA\b", sass) == 0


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_float32(machine_code: MachineCode, arch: str) -> None:
    mine = machine_code(arch, "attention_f32_kernel")
    assert len(mine) == len(HEAD_DIMS)
    for name, sass in mine.items():
        assert not re.search(r"\b(STL|LDL)\b", sass), f"{name} uses local memory"
        # Exact: no matrix unit, whose float32 mode is tf32.
        assert count(r"\b(H|I|HG|IG)MMA\.", sass) == 0
        assert count(r"LDG\.E\S*\.128", sass) > 0
