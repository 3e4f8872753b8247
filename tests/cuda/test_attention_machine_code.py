"""What nvcc made of the CUDA attention: the instructions that each form is for, no local memory."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

import pytest

from fastbert.kernels.cuda.attention_varlen import HEAD_DIMS

MachineCode = Callable[[str, str], dict[str, str]]
# Of a multiprocessor.
REGISTERS = 65536


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


def instructions(sass: str) -> list[tuple[int, str]]:
    """(address, text) of each."""
    return [(int(a, 16), x) for a, x in re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", sass)]


def computing(sass: str) -> list[tuple[int, str]]:
    """The part of a Hopper kernel that its computing warpgroups run."""
    return instructions(sass[: sass.index("USETMAXREG.DEALLOC")])


def waits(code: list[tuple[int, str]]) -> list[tuple[int, int]]:
    """(place, products that may still run) of every wait for products."""
    found = [
        (n, re.search(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x(\d)", x)) for n, (_, x) in enumerate(code)
    ]
    return [(n, int(m[1])) for n, m in found if m is not None]


def steady_loop(code: list[tuple[int, str]]) -> tuple[int, int, int, int]:
    """The loop over whole blocks: its begin, its wait for scores, that for outputs, its end."""
    after = waits(code)
    (scores,) = (n for n, left in after if left == 1)
    outputs = min(n for n, _ in after if n > scores)
    for end in range(outputs, len(code)):
        back = re.search(r"\bBRA\b.*0x([0-9a-f]+)", code[end][1])
        if back and int(back[1], 16) < code[scores][0]:
            begin = next(n for n, (a, _) in enumerate(code) if a == int(back[1], 16))
            return begin, scores, outputs, end
    raise AssertionError("no loop")


def number(part: list[tuple[int, str]], name: str) -> int:
    return sum(re.search(rf"\b{name}\b", x) is not None for _, x in part)


def test_exponentials_overlap_the_outputs_of_the_block_before(machine_code: MachineCode) -> None:
    for name, sass in machine_code("sm_90a", "attention_sm90_kernel").items():
        code = computing(sass)
        begin, scores, outputs, end = steady_loop(code)
        # All exponentials of a block stand between the wait for its scores and the wait for the
        # outputs of the block before: those products run meanwhile.
        assert number(code[scores:outputs], "EX2") >= 64, name
        assert number(code[begin:end], "EX2") == number(code[scores:outputs], "EX2"), name
        # Descriptors and barriers are in uniform registers, not moved there between products.
        assert number(code, "R2UR") <= 8, name


def test_a_partial_block_takes_little_more_than_a_whole_one(machine_code: MachineCode) -> None:
    for name, sass in machine_code("sm_90a", "attention_sm90_kernel").items():
        code = computing(sass)
        begin, scores, outputs, end = steady_loop(code)
        begin_partial = next(n for n, _ in waits(code) if n > end + 1 and n != outputs)
        rest = code[begin_partial:]
        # What hides keys: as many selects as scores, then the softmax, and no branch but those for
        # lanes that stopped (BRA.DIV).
        hides = [n for n, (_, x) in enumerate(rest) if re.search(r"\bFSEL\b.*(-INF|0xff800000)", x)]
        runs = [hides[i : i + 64] for i in range(len(hides) - 63)]
        assert runs, f"{name} hides keys otherwise than by selects"
        first, _ = min(((run[0], run[-1]) for run in runs), key=lambda run: run[1] - run[0])
        done = first
        exponentials = 0
        while exponentials < 66:
            done += 1
            exponentials += "MUFU.EX2" in rest[done][1]
        straight = rest[first : done + 1]
        branches = [x for _, x in straight if re.search(r"\b(BRA|BSSY|BRX|CALL)\b", x)]
        assert all("BRA.DIV" in x for x in branches), f"{name}: {branches}"
        whole = end + 1 - begin
        more = len(straight) - (outputs - scores)
        assert more <= 0.3 * whole, f"{name}: {more} more than the {whole} of a whole block"


def test_registers_change_hands_without_a_rest(
    machine_code: MachineCode, registers: dict[tuple[str, str], int]
) -> None:
    """One warpgroup gives up what the others take: with other counts the kernel would hang."""
    for part, shapes in (
        ("attention_sm90_kernel", {128: (3, 32, 160), 168: (2, 40, 232)}),
        ("gemm_wgmma_kernel", {168: (2, 40, 232)}),
    ):
        for name, sass in machine_code("sm_90a", part).items():
            moved = dict(
                re.findall(r"USETMAXREG\.(DEALLOC|TRY_ALLOC)\S* (?:UP\d, )?0x([0-9a-f]+)", sass)
            )
            if not moved and part == "gemm_wgmma_kernel":
                continue  # one warpgroup computes, and has enough
            at_launch = registers["sm_90a", name]
            computing, given, taken = shapes[at_launch]
            assert (int(moved["DEALLOC"], 16), int(moved["TRY_ALLOC"], 16)) == (given, taken), name
            assert given + computing * taken == (1 + computing) * at_launch, name
            assert 128 * (1 + computing) * at_launch <= REGISTERS, name


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
