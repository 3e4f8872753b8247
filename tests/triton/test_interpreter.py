"""Every kernel against the reference under triton's interpreter, on CPU tensors.

Whether a kernel is interpreted is decided when triton is imported, so each file of `interpreted/`
runs in a process of its own and no other test sees the setting.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastbert import ops

triton = pytest.importorskip("triton", reason="the triton package is not installed")
if triton.__version__.startswith("3.6.") and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
    # It makes Python numbers of arrays with one element, which numpy refuses since 2.4.
    pytest.skip("triton 3.6's interpreter needs numpy before 2.4", allow_module_level=True)

HERE = Path(__file__).parent
FILES = sorted(path.name for path in (HERE / "interpreted").glob("check_*.py"))


def test_every_kernel_file_is_checked() -> None:
    kernels = {path.stem for path in (HERE.parents[1] / "triton_kernels").glob("[!_]*.py")}
    assert kernels - {"configs"} == set(ops.ALL) - {"segment_sums", *ops.IMAGES}
    assert "check_ops.py" in FILES


@pytest.mark.parametrize("file", FILES)
def test_interpreted(file: str) -> None:
    # The same fastbert as this process, installed or in the source tree.
    package = str(Path(ops.__file__).parents[2])
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([package, os.environ.get("PYTHONPATH", "")]).rstrip(
            os.pathsep
        ),
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", file],
        env=environment,
        cwd=HERE / "interpreted",
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) > 0 and "skipped" not in done.stdout, done.stdout[-2000:]
