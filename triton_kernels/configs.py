"""Tile sizes of every kernel as data, by architecture (80 or 90) and what else they depend on.

No entry depends on how many rows or sequences a batch has in a way that changes a row's
arithmetic: that is what makes results bit-identical alone and in any batch. Where two entries
differ by size (``linear``), they run the same k-steps in the same order.

These choices come from register, shared-memory and occupancy figures of the compiled code;
``bench/gpu.sh`` is what measures them.
"""

from __future__ import annotations

from typing import NamedTuple


class Tile(NamedTuple):
    """Launch configuration of one kernel."""

    m: int
    n: int
    k: int
    warps: int
    stages: int
    columns: int = 64  # of a product that go through its epilogue at a time
    registers: int = 0  # cap per thread, to let one more block into a multiprocessor; 0: none

    @property
    def options(self) -> dict[str, int]:
        """The launch options of this tile."""
        options = {"num_warps": self.warps, "num_stages": self.stages}
        return options | {"maxnreg": self.registers} if self.registers else options

    def for_depth(self, depth: int) -> Tile:
        """Return this tile for a gemm of this depth, without the cap on registers for a ragged end.

        Its masks need more registers than the cap leaves, and spilling would cost more than the
        second block gives.
        """
        return self if depth % self.k == 0 else self._replace(registers=0)


# (architecture, head_dim, 16-bit operands?) -> m: query block, n: key block. k is not used.
ATTENTION: dict[tuple[int, int, bool], Tile] = {
    (90, 32, True): Tile(128, 64, 0, 4, 3),
    (90, 64, True): Tile(128, 64, 0, 4, 3),
    (90, 80, True): Tile(128, 64, 0, 8, 3),
    (90, 96, True): Tile(128, 32, 0, 4, 3),
    (90, 128, True): Tile(128, 64, 0, 8, 3),
    (80, 32, True): Tile(128, 64, 0, 4, 3),
    (80, 64, True): Tile(128, 32, 0, 4, 3),
    (80, 80, True): Tile(64, 32, 0, 4, 2),
    (80, 96, True): Tile(64, 32, 0, 4, 3),
    (80, 128, True): Tile(128, 32, 0, 8, 3),
    (90, 32, False): Tile(64, 32, 0, 4, 2),
    (90, 64, False): Tile(64, 16, 0, 8, 2, registers=255),
    (90, 80, False): Tile(32, 16, 0, 8, 2, registers=255),
    (90, 96, False): Tile(32, 16, 0, 8, 2),
    (90, 128, False): Tile(32, 16, 0, 8, 2),
    (80, 32, False): Tile(64, 32, 0, 4, 2),
    (80, 64, False): Tile(64, 32, 0, 8, 2),
    (80, 80, False): Tile(32, 32, 0, 8, 2),
    (80, 96, False): Tile(32, 32, 0, 8, 2),
    (80, 128, False): Tile(32, 16, 0, 8, 2, registers=255),
}
# With a dense bias, or causal: the same key block n, hence the same order of keys, over more warps
# or fewer rows, or with the compiler kept from taking fewer registers than it needs (it aims at a
# round number of blocks a multiprocessor, and that of triton 3.6 spills a few to get there).
ATTENTION_CROWDED: dict[tuple[int, int, bool], Tile] = {
    (90, 32, True): Tile(128, 64, 0, 8, 2),
    (90, 64, True): Tile(128, 64, 0, 8, 2),
    (90, 96, True): Tile(128, 32, 0, 8, 2),
    (90, 128, True): Tile(64, 64, 0, 8, 2),
    (80, 32, True): Tile(128, 64, 0, 8, 2),
    (80, 64, True): Tile(128, 32, 0, 8, 2),
    (80, 80, True): Tile(64, 32, 0, 4, 2, registers=255),
    (90, 32, False): Tile(32, 32, 0, 8, 2),
    (90, 64, False): Tile(64, 16, 0, 8, 2, registers=255),
    (90, 80, False): Tile(32, 16, 0, 8, 2, registers=255),
    (90, 96, False): Tile(32, 16, 0, 8, 2, registers=255),
    (90, 128, False): Tile(32, 16, 0, 8, 2, registers=255),
    (80, 32, False): Tile(64, 32, 0, 8, 2, registers=128),
    (80, 64, False): Tile(64, 32, 0, 8, 2, registers=255),
    (80, 80, False): Tile(32, 32, 0, 8, 2, registers=255),
}


def attention_tile(arch: int, head_dim: int, half: bool, crowded: bool) -> Tile:
    """Return the committed tile; ``crowded`` stands for a dense bias or a causal mask.

    A bias of keys has no say: a text has the same bits in a batch that needs one and in one that
    does not.
    """
    key = (arch, head_dim, half)
    return ATTENTION_CROWDED.get(key, ATTENTION[key]) if crowded else ATTENTION[key]


# (architecture, kind of operands, few rows?) -> tile. "Few rows" trades reuse for more programs;
# both entries of a pair walk k in the same order, with the same instruction, so a row does not
# change between them. From 64 rows of a tile on, triton 3.6 would multiply float32 by converted
# integers ("w8a32") on the tensor cores of sm_100, as tf32, against the precision that it is asked
# for.
LINEAR: dict[tuple[int, str, bool], Tile] = {
    (90, "int8", False): Tile(128, 128, 128, 8, 3, 32, 128),
    (90, "int8", True): Tile(64, 64, 128, 4, 4),
    (90, "16-bit", False): Tile(128, 128, 64, 8, 3, 64, 128),
    (90, "16-bit", True): Tile(64, 64, 64, 4, 4),
    (90, "w8a16", False): Tile(128, 64, 64, 8, 3),
    (90, "w8a16", True): Tile(64, 64, 64, 4, 4),
    (90, "w8a32", False): Tile(32, 64, 16, 4, 3),
    (90, "w8a32", True): Tile(32, 64, 16, 4, 3),
    (90, "float32", False): Tile(64, 64, 16, 4, 3),
    (90, "float32", True): Tile(32, 64, 16, 4, 3),
    (80, "int8", False): Tile(128, 128, 64, 8, 3, 32, 128),
    (80, "int8", True): Tile(64, 64, 64, 4, 4),
    (80, "16-bit", False): Tile(128, 128, 32, 8, 3, 64, 128),
    (80, "16-bit", True): Tile(64, 64, 32, 4, 4),
    (80, "w8a16", False): Tile(128, 64, 64, 8, 3),
    (80, "w8a16", True): Tile(64, 64, 64, 4, 4),
    (80, "w8a32", False): Tile(32, 64, 16, 4, 3),
    (80, "w8a32", True): Tile(32, 64, 16, 4, 3),
    (80, "float32", False): Tile(64, 64, 16, 4, 3),
    (80, "float32", True): Tile(32, 64, 16, 4, 3),
}
FEW_ROWS = 512
# Row blocks that share a column block before the next column starts: keeps both operands in L2.
GROUP_M = 8


def linear_tile(arch: int, dtype: str, rows: int) -> Tile:
    """Return the committed tile of a gemm with this many rows."""
    return LINEAR[arch, dtype, rows <= FEW_ROWS]


# Elements of a row (rounded up to a power of two) -> warps. One warp holds up to 1024 elements, so
# that the statistics of BERT-size rows need shuffles only, no block barrier.
ROW_WARPS: dict[int, int] = {2048: 2, 4096: 4, 8192: 8, 16384: 16}
ROW_LIMIT = 16384


def row_block(hidden: int) -> tuple[int, int]:
    """(power of two >= hidden, warps) for kernels that keep a whole row in registers."""
    block = max(32, 1 << (hidden - 1).bit_length())
    return block, ROW_WARPS.get(block, 1)


# Heads that a program of `qk_norm_rope` rotates: four of 128 columns are 16 elements a thread.
HEADS_A_PROGRAM = 4
HEAD_LIMIT = 1024


def half_head_block(head_dim: int) -> tuple[int, int]:
    """(power of two >= head_dim / 2, warps) for kernels that rotate halves of heads."""
    block = max(16, 1 << (head_dim // 2 - 1).bit_length())
    return block, max(1, block // 64)


def column_block(width: int) -> int:
    """Columns per program of elementwise kernels: 128 to 1024, dividing width if one does."""
    for block in (1024, 512, 256, 128):
        if width % block == 0:
            return block
    return min(1024, max(128, 1 << (width - 1).bit_length()))
