"""All cases of every op, judged by the op's own tolerances.

float32 and float16 only: the interpreter's bfloat16 products are off by orders of magnitude and its
conversions truncate, so bfloat16 is checked on a GPU (and compiled in test_compile.py).
"""

from __future__ import annotations

import pytest
import torch

from fastbert import kernels
from fastbert.ops import ALL, IMAGES, REGISTRY, Case, Op
from fastbert.testing import parity, poisoned_empty
from fastbert.triton_kernels.attention_varlen import HEAD_DIMS

DTYPES = (torch.float32, torch.float16)
# The interpreter multiplies integers element by element; of the widest cases one is enough. Of
# linear_w8a16 the epilogues are those of linear.
SLOW = {"plain-1x384x1536", "fused-1x384x1536"}
EPILOGUES = ("-tail", "-residual")


def chosen(op: Op, case: Case, number: int, dtype: torch.dtype) -> bool:
    """Tell whether a case is worth the time that the interpreter takes for it in a dtype."""
    if op.name == "segment_sums" or op.name in IMAGES:
        return False
    if op.name == "int8_linear" and case.name in SLOW:
        return dtype == torch.float16 and case.name != "plain-1x384x1536"
    if op.name == "linear_w8a16" and (case.name in SLOW or case.name.endswith(EPILOGUES)):
        return False
    # Those of decoders in one dtype each, by turns; neighbours often are one size in two forms.
    return op.name in REGISTRY or (number + number // 2) % 2 == (dtype == torch.float16)


CASES = [
    pytest.param(op, case, dtype, id=f"{op.name}-{case.name}-{str(dtype).removeprefix('torch.')}")
    for op in ALL.values()
    for number, case in enumerate(op.cases())
    for dtype in DTYPES
    if chosen(op, case, number, dtype)
]


@pytest.mark.parametrize(("op", "case", "dtype"), CASES)
def check_case(op: Op, case: Case, dtype: torch.dtype) -> None:
    kernel = kernels.kernel("triton", op.name)
    arguments = case.make(dtype)
    if op.name.startswith("attention") and arguments["q"].shape[2] not in HEAD_DIMS:
        with pytest.raises(ValueError, match="head_dim is"):
            kernel(**arguments)
        return
    with poisoned_empty():
        verdict = parity(op, kernel, arguments, dtype)
    assert verdict.ok, verdict.reason
