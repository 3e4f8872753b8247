"""What nvcc made of csrc/cuda: both architectures, wide accesses, nothing in local memory.

Reads fastbert/_cuda with the cuobjdump of the triton wheel; no GPU is needed.
"""

from __future__ import annotations

import functools
import re
import subprocess
from pathlib import Path

import pytest

from fastbert.kernels.cuda import _native

triton = pytest.importorskip("triton", reason="the triton package, which carries cuobjdump")
module, reason = _native.load()
if module is None:
    pytest.skip(reason, allow_module_level=True)

KERNELS = ("row_norm_kernel", "embed_norm_kernel", "bias_act_kernel", "quantize_rows_kernel")
ARCHITECTURES = ("sm_80", "sm_90a")
# 3 dtypes, each for aligned rows (b1) and for any rows (b0).
VARIANTS = 6


@functools.cache
def functions() -> dict[tuple[str, str], str]:
    """Machine code by (architecture, mangled name)."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    assert module is not None and module.__file__ is not None
    done = subprocess.run(
        [tool, "--dump-sass", module.__file__], capture_output=True, text=True, check=True
    )
    found = {}
    for image in re.split(r"\n(?=\tcode for )", done.stdout):
        arch = re.search(r"code for (sm_\w+)", image)
        for text in re.split(r"\n(?=\t\tFunction : )", image)[1:]:
            name = re.match(r"\t\tFunction : (\S+)", text)
            assert arch and name
            found[arch[1], name[1]] = text
    return found


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel(kernel: str, arch: str) -> None:
    mine = {name: sass for (a, name), sass in functions().items() if a == arch and kernel in name}
    assert len(mine) == VARIANTS, sorted(mine)
    for name, sass in mine.items():
        assert not re.search(r"\b(STL|LDL)\b", sass), f"{name} uses local memory"
        wide = re.search(r"LDG\.E\S*\.128", sass) is not None
        # ...ELb1E...: the second template argument is true.
        assert wide == ("ELb1E" in name), f"{name}: 16-byte loads are for aligned rows alone"


def test_ptx_for_later_architectures_is_there() -> None:
    assert module is not None and module.__file__ is not None
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    done = subprocess.run(
        [tool, "--list-ptx", module.__file__], capture_output=True, text=True, check=True
    )
    assert "sm_90" in done.stdout
