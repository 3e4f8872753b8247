"""The environment report, and an import that costs nothing."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import fastbert
from fastbert.kernels import native
from fastbert.tools import env


def python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_import_loads_neither_torch_nor_triton_nor_the_native_library() -> None:
    code = (
        "import sys, fastbert\n"
        "print([m for m in ('torch', 'triton', 'numpy', 'fastbert._C') if m in sys.modules])"
    )
    assert python(code).strip() == "[]"


def test_every_public_name_is_there() -> None:
    for name in fastbert.__all__:
        assert getattr(fastbert, name) is not None, name
    assert set(fastbert.__all__) <= set(dir(fastbert))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="BertForNothing"):
        fastbert.BertForNothing  # noqa: B018


def test_report_tells_versions_features_and_instruction_sets() -> None:
    report = env.collect()
    assert report["fastbert"]["version"] == fastbert.__version__
    assert report["packages"]["torch"]
    if native.reason() is None:
        assert report["native library"]["state"] == "loaded"
        assert report["native library"]["active"] == native.isa()
        assert set(native.usable_isas()) <= set(report["native library"]["isas"])
    text = env.render(report)
    assert all(section in text for section in report)
    assert json.loads(env.render_json(report)) == json.loads(json.dumps(report))


def test_report_comes_out_without_the_native_library_and_says_why() -> None:
    code = (
        "import sys\n"
        "class Broken:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'fastbert._C': raise ImportError('libgone.so.1 is missing')\n"
        "sys.meta_path.insert(0, Broken())\n"
        "from fastbert.tools.cli import main\n"
        "sys.exit(main(['env']))"
    )
    text = python(code)
    assert "libgone.so.1 is missing" in text
    assert "avx" in text or "not told" in text
    assert "torch" in text


def test_a_part_that_breaks_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> dict[str, str]:
        raise RuntimeError("driver says no")

    monkeypatch.setattr(env, "_cuda", broken)
    report = env.collect()
    assert report["cuda"]["state"] == "unavailable: RuntimeError: driver says no"
    assert report["cpu"]["cores"]


def test_a_forced_instruction_set_that_is_not_there_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastbert", "env"],
        capture_output=True,
        text=True,
        env={**__import__("os").environ, "FASTBERT_CPU_ISA": "avx1024"},
    )
    assert done.returncode == 0
    assert "avx1024" in done.stdout
