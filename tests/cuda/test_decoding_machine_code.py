"""What nvcc made of the kernels of decoders; rows are with the others in test_machine_code."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

MachineCode = Callable[[str, str], dict[str, str]]
ARCHITECTURES = ("sm_80", "sm_90a")


def no_local_memory(name: str, sass: str) -> None:
    assert not re.search(r"\b(STL|LDL)\b", sass), f"{name} uses local memory"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_attention_of_single_queries(
    machine_code: MachineCode, registers: dict[tuple[str, str], int], arch: str
) -> None:
    kernels = machine_code(arch, "attention_decode_kernel")
    # Three dtypes, five widths of a head, blocks of one, four and eight heads.
    assert len(kernels) == 45
    for name, sass in kernels.items():
        no_local_memory(name, sass)
        # Two blocks of 256 threads a multiprocessor at least.
        assert registers[arch, name] <= 128, name
        # Keys and values 16 bytes at a time, and several of them on their way before the first is
        # used: that is what a step over a long cache waits for.
        assert not re.search(r"LDG\.E\.U?16", sass), name
        assert sum(run >= 3 for run in loads_in_a_row(sass)) >= 2, (name, loads_in_a_row(sass))
    for name, sass in machine_code(arch, "attention_join_kernel").items():
        no_local_memory(name, sass)


def loads_in_a_row(sass: str) -> list[int]:
    """How many loads of 16 bytes stand between arithmetic, for every place where there are any."""
    runs = [0]
    for line in sass.splitlines():
        if "LDG.E.128" in line:
            runs[-1] += 1
        elif re.search(r"\b(FFMA|FMUL|SHFL|BAR|HMMA)\b", line) and runs[-1]:
            runs.append(0)
    return runs


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_int8_weights_with_16_bit_rows(machine_code: MachineCode, arch: str) -> None:
    kernels = machine_code(arch, "linear_w8a16_mma_kernel")
    # Two dtypes, blocks of 8 and 32 rows, aligned operands or any.
    assert len(kernels) == 8
    for name, sass in kernels.items():
        no_local_memory(name, sass)
        kind = ".BF16" if "DTypeE1" in name else ""
        products = len(re.findall(rf"HMMA\.16816\.F32{kind} ", sass))
        # 64 positions of the sum are four steps a tile; some turns are unrolled.
        tiles = 4 if "Li4E" in name else 1
        assert products >= 4 * tiles and products % (4 * tiles) == 0, (name, products)
        # A quarter of the rate, or less: weights are made floats by their bits.
        assert "I2F" not in sass, name
        assert ("LDG.E.128" in sass) == ("Lb1E" in name), name


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_int8_weights_with_float32_rows(machine_code: MachineCode, arch: str) -> None:
    kernels = machine_code(arch, "linear_w8a16_fma_kernel")
    assert len(kernels) == 6
    for name, sass in kernels.items():
        no_local_memory(name, sass)
        assert "I2F" not in sass and "HMMA" not in sass, name
        assert ("LDG.E.128" in sass) == ("Lb1E" in name), name
