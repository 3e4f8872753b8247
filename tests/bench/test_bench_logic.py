"""The benchmark's own logic: cases, interleaving, gate, table. Nothing is timed for real here."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from bench import baselines, build, cases, exact, gate, models, results, run, table, texts
from bench.baselines import Baseline, Padded
from fastbert.kernels import native
from fastbert.tools import timing
from fastbert.tools.peak import Peak


class Clock:
    """Time that passes only when a run says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        self.now += seconds


def timed(costs: dict[str, float], repetitions: int, budget: float, least: int = 3):
    clock = Clock()
    order: list[str] = []

    def call(name: str) -> None:
        order.append(name)
        clock.work(costs[name])

    runs = {name: (lambda name=name: call(name)) for name in costs}
    samples = timing.interleave(
        runs, repetitions, budget, least, clock=clock, settle=lambda seconds: None
    )
    return samples, order


def test_every_run_has_its_repetitions_and_its_own_times() -> None:
    samples, _ = timed({"slow": 0.5, "fast": 0.01}, repetitions=6, budget=100.0)
    assert len(samples["slow"]) == 6
    assert len(samples["fast"]) == 6 * timing.CALLS_IN_REPETITION
    assert samples["slow"] == pytest.approx([0.5] * 6)
    assert samples["fast"] == pytest.approx([0.01] * 18)


def test_runs_are_interleaved_rather_than_one_after_the_other() -> None:
    _, order = timed({"a": 1.0, "b": 1.0}, repetitions=8, budget=100.0)
    halves = order[2:10], order[10:]
    assert {half.count("a") for half in halves} == {4}


def test_a_run_beyond_its_budget_has_fewer_repetitions_but_the_least() -> None:
    samples, _ = timed({"slow": 10.0, "fast": 0.01}, repetitions=9, budget=40.0)
    assert len(samples["slow"]) == 4
    samples, _ = timed({"slow": 10.0}, repetitions=9, budget=1.0)
    assert len(samples["slow"]) == 3
    samples, _ = timed({"slow": 10.0}, repetitions=9, budget=1.0, least=1)
    assert len(samples["slow"]) == 1


def test_every_timed_call_comes_after_the_pause_and_not_within_it() -> None:
    clock = Clock()
    waits: list[float] = []

    def settle(seconds: float) -> None:
        waits.append(seconds)
        clock.work(seconds)

    samples = timing.interleave(
        {"a": lambda: clock.work(0.01)}, repetitions=2, clock=clock, settle=settle, pause=0.03
    )
    assert samples["a"] == pytest.approx([0.01] * 2 * timing.CALLS_IN_REPETITION)
    assert waits.count(0.03) == len(samples["a"])


@pytest.mark.parametrize("wanted", range(1, 10))
def test_repetitions_are_spread_evenly(wanted: int) -> None:
    taken = [at for at in range(9) if timing._takes_part(at, 9, wanted)]
    assert len(taken) == wanted
    gaps = np.diff(taken)
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 1


def test_summary_is_of_the_quartiles() -> None:
    summary = timing.Summary.of([0.004, 0.001, 0.002, 0.003, 0.005])
    assert (summary.minimum, summary.median) == (1.0, 3.0)
    assert (summary.quarter, summary.three_quarters) == (2.0, 4.0)
    assert summary.spread == pytest.approx(1 / 3)
    assert summary.ninety_fifth == pytest.approx(4.8)
    assert timing.Summary.of([0.002]).ninety_fifth == 2.0


def test_cases_of_latency_are_measured_back_to_back_and_after_a_pause() -> None:
    found = {case.name: case for case in cases.chosen("latency")}
    cool = {name for name, case in found.items() if case.pause}
    assert {f"{name}-cool" for name in found.keys() - cool} == cool and len(cool) == 7
    assert {found[name].pause for name in cool} == {0.03}


def test_ragged_case_is_the_one_of_the_table() -> None:
    case = cases.CASES["ragged32"]
    assert (len(case.lengths), sum(case.lengths), 32 * max(case.lengths)) == (32, 1868, 5184)
    assert case.fill == pytest.approx(0.36, abs=0.001)
    found = cases.arrangements(case)
    assert [len(batch) for batch in found["sorted"]] == [8, 8, 8, 8]
    assert sorted(itertools.chain(*found["sorted"])) == found["arrival"][0] == list(range(32))
    padded = sum(8 * max(case.lengths[i] for i in batch) for batch in found["sorted"])
    assert 1868 / padded == pytest.approx(0.75, abs=0.01)


FAMILIES = ("bert", "roberta", "xlm-roberta", "distilbert", "electra", "mpnet")


def test_families_are_measured_beside_bert_on_both_kinds_of_texts() -> None:
    found = {case.name: case for case in cases.chosen("families")}
    assert list(found) == [name for family in FAMILIES for name in (family, f"{family}-ragged")]
    for name in FAMILIES:
        even, ragged = found[name], found[f"{name}-ragged"]
        assert even.lengths == cases.CASES["8x128"].lengths and not even.ragged
        assert ragged.lengths == cases.CASES["ragged32"].lengths
        assert even.model == ragged.model == f"{name}-base"
        # Every engine of ours takes each family: none is left out silently.
        ours = [engine for engine in baselines.BASELINES.values() if engine.ours]
        assert len(ours) == 3
        for case in (even, ragged):
            assert not any(run._refusal(engine, case) for engine in ours)


@pytest.mark.parametrize("name", [f"{family}-base" for family in FAMILIES])
def test_checkpoints_are_of_the_families_and_sizes_that_they_say(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fastbert

    small = cases.Shape(name, 2, 48, 96, 4, 60)
    monkeypatch.setattr(models, "CACHE", tmp_path)
    monkeypatch.setitem(cases.SHAPES, name, small)
    made = fastbert.AutoModel.from_pretrained(models.checkpoint(name)).eval()
    assert made.config.model_type == name.removesuffix("-base")
    blocks = list(made.blocks())
    layers = [p for block in blocks for p in (block.q, block.k, block.v, block.out)]
    layers += [p for block in blocks for p in (block.up, block.down)]
    assert sum(part.weight.numel() for part in layers) == small.weights


def test_operations_are_counted_from_the_weights() -> None:
    shape = cases.SHAPES["bert-base"]
    assert shape.weights == 12 * 12 * 768**2
    assert shape.operations((1,)) == pytest.approx(2 * shape.weights + 4 * 12 * 768)
    assert shape.operations((512,)) > 512 * shape.operations((1,))


def test_cases_and_baselines_are_chosen_by_name_part_and_group() -> None:
    assert [case.name for case in cases.chosen("1x16, text")] == ["1x16", "minilm-texts"]
    assert len(cases.chosen("all")) == len(cases.CASES)
    with pytest.raises(ValueError, match="ragged32"):
        cases.chosen("2x16")
    names = [baseline.name for baseline in baselines.chosen("openvino, fastbert int8")]
    assert names == ["fastbert int8", "OpenVINO fp32", "OpenVINO bf16", "OpenVINO int8"]
    with pytest.raises(ValueError, match="OpenVINO"):
        baselines.chosen("tensorrt")


def test_a_missing_package_is_named() -> None:
    baseline = Baseline("x", "fp32", ("torch", "no-such-package"), lambda path, threads: None)
    assert baseline.unavailable() == "not installed: no-such-package"


def test_padding_and_its_removal() -> None:
    batch = Padded.of([[5, 6, 7], [8]])
    assert batch.ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    rows = batch.unpad(np.arange(6.0).reshape(2, 3, 1))
    assert [row[:, 0].tolist() for row in rows] == [[0, 1, 2], [3]]


@pytest.mark.parametrize("precision", gate.TOLERANCES)
def test_the_gate_is_red_just_beyond_its_tolerance(precision: str) -> None:
    exact = [np.ones((4, 3)), np.full((2, 3), 2.0)]
    tolerance = gate.TOLERANCES[precision]
    good = [exact[0], exact[1] * (1 + 0.9 * tolerance)]
    bad = [exact[0], exact[1] * (1 + 1.1 * tolerance)]
    assert gate.judge(good, exact, precision).passed
    verdict = gate.judge(bad, exact, precision)
    assert not verdict.passed
    assert verdict.error == pytest.approx(1.1 * tolerance)


def test_the_gate_is_red_for_nan_and_for_another_shape() -> None:
    exact = [np.ones((2, 3))]
    assert not gate.judge([np.full((2, 3), np.nan)], exact, "int8").passed
    assert not gate.judge([np.ones((3, 3))], exact, "int8").passed
    assert not gate.judge([], exact, "int8").passed


class Small:
    """A BERT of four layers in a folder, and its rows in bfloat16, broken or not."""

    inputs = ([5, 6, 7, 8, 9, 10], [11, 12, 13])

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        torch.manual_seed(0)
        config = transformers.BertConfig(
            hidden_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=128,
            vocab_size=50,
            initializer_range=0.1,
        )
        transformers.BertModel(config).save_pretrained(folder)

    def bf16(self, breakage: Callable[[Any], None]) -> list[np.ndarray]:
        model = transformers.AutoModel.from_pretrained(self.folder, dtype=torch.bfloat16).eval()
        breakage(model.encoder.layer[2])
        with torch.inference_mode():
            return [model(torch.tensor([text]))[0][0].float().numpy() for text in self.inputs]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return Small(tmp_path_factory.mktemp("small"))


def test_the_gate_judges_arithmetic_and_not_what_the_parameters_were_rounded_to(
    small: Small,
) -> None:
    rows = small.bf16(lambda layer: None)
    given = gate.judge(rows, exact.token_states(small.folder, small.inputs, "bf16"), "bf16")
    stored = gate.judge(rows, exact.token_states(small.folder, small.inputs, "fp32"), "bf16")
    assert given.passed
    assert 0 < given.error < 0.9 * stored.error


@pytest.mark.parametrize(
    "breakage",
    [
        lambda layer: layer.attention.output.dense.weight.data.zero_(),
        lambda layer: layer.attention.self.query.weight.data.mul_(0.5),
        lambda layer: layer.attention.self.value.bias.data.add_(0.1),
        lambda layer: setattr(layer.intermediate, "intermediate_act_fn", torch.nn.ReLU()),
        lambda layer: layer.output.LayerNorm.weight.data[:4].zero_(),
    ],
    ids=["no attention", "halved queries", "shifted values", "relu for gelu", "a dead channel"],
)
def test_the_gate_catches_one_broken_layer(small: Small, breakage: Callable[[Any], None]) -> None:
    expected = exact.token_states(small.folder, small.inputs, "bf16")
    verdict = gate.judge(small.bf16(breakage), expected, "bf16")
    assert not verdict.passed, verdict.error


def test_an_engine_with_rounded_parameters_is_compared_on_them() -> None:
    cast = {name for name, engine in baselines.BASELINES.items() if engine.parameters == "bf16"}
    assert cast == {"fastbert bf16", "fastbert int8", "transformers bf16", "compile bf16"}
    assert {engine.parameters for engine in baselines.BASELINES.values()} == set(exact.DTYPES)


def test_exact_states_are_computed_once_and_only_when_asked_for() -> None:
    asked: list[str] = []

    def compute(parameters: str) -> list[np.ndarray]:
        asked.append(parameters)
        return [np.ones((1, 1))]

    expected = exact.Exact(compute)
    assert asked == []
    assert expected["bf16"] is expected["bf16"]
    assert asked == ["bf16"]


def some_results() -> results.Results:
    found = results.Results()
    case = found.begin("case", Peak(2, 5e11, 1e12, 2e12, 4e10))
    case.lower_bounds = {"fp32": 2.0, "int8": 1.0}
    found.rows += [
        results.Row("case", "fastbert int8", "int8", "arrival", 1e-2, True, summary(2.0)),
        results.Row("case", "OpenVINO bf16", "bf16", "sorted", 1e-2, True, summary(3.0)),
        results.Row("case", "OpenVINO bf16", "bf16", "arrival", 1e-2, True, summary(8.0)),
        results.Row("case", "wrong", "fp32", "arrival", math.nan, False, None, "gate: nan"),
    ]
    return found


def summary(milliseconds: float) -> timing.Summary:
    return timing.Summary.of([milliseconds / 1e3])


def test_the_table_compares_and_prints_no_speed_on_a_red_gate() -> None:
    text = table.render(some_results(), ["case"])
    assert "1.50x fastest baseline (OpenVINO bf16, sorted)" in text
    assert "4.00x fastest in arrival order (OpenVINO bf16)" in text
    wrong = next(line for line in text.splitlines() if "wrong" in line)
    assert wrong.split() == ["wrong", "gate:", "nan"]
    ours = next(line for line in text.splitlines() if line.startswith("  fastbert int8 "))
    assert "50%" in ours


def test_shares_of_the_bound_stand_side_by_side() -> None:
    found = some_results()
    found.begin("other", Peak(2, 5e11, None, None, 4e10)).lower_bounds = {"fp32": 900.0}
    found.rows += [
        results.Row("other", "fastbert fp32", "fp32", "arrival", 1e-2, True, summary(1200.0)),
        results.Row("other", "fastbert bf16", "bf16", "arrival", 1e-2, True, summary(7.0)),
        results.Row("other", "fastbert int8", "int8", "arrival", 1.0, False, None, "gate: 1"),
        results.Row("red", "fastbert int8", "int8", "arrival", 1.0, False, None, "gate: 1"),
    ]
    header, first, second = table.shares(found, ["case", "other", "red"]).splitlines()
    assert header.split()[-3:] == ["int8", "fp32", "bf16"]
    assert first.split() == ["case", "2.0", "(50%)", "-", "-"]
    assert second.split() == ["other", "-", "1200", "(75%)", "7.0", "(-)"]


def test_results_are_json_with_machine_and_versions(tmp_path: Path) -> None:
    path = tmp_path / "made" / "run.json"
    some_results().save(path)
    saved = json.loads(path.read_text())
    assert {"machine", "versions", "cases", "rows"} <= set(saved)
    assert {"peak", "lower_bounds", "plans", "commit", "date", "load"} <= set(
        saved["cases"]["case"]
    )
    assert saved["rows"][3]["error"] is None
    assert saved["rows"][0]["time"]["median"] == pytest.approx(2.0)


def test_a_case_measured_again_replaces_its_rows_and_leaves_the_others(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    first = some_results()
    first.begin("other", Peak(2, 5e11, 1e12, 2e12, 4e10))
    first.rows.append(results.Row("other", "fastbert int8", "int8", "arrival", 1e-2, True))
    first.save(path)
    again = results.Results.resume(path)
    assert again.as_dict()["rows"][:3] == first.as_dict()["rows"][:3]
    assert again.cases == first.cases
    again.begin("case", Peak(2, None, None, None, None, ("none",)))
    assert {row.case for row in again.rows} == {"other"}
    assert again.cases["case"].peak.reasons == ("none",)


def test_results_of_another_machine_are_not_added_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.json"
    some_results().save(path)
    monkeypatch.setattr(results, "machine", lambda: {"cpu": "another"})
    with pytest.raises(ValueError, match="choose another --name"):
        results.Results.resume(path)
    assert results.Results.read(path).rows


def test_files_of_earlier_versions_are_read(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    some_results().save(path)
    saved = json.loads(path.read_text())
    case = saved["cases"]["case"]
    case["limits"], case["floors"] = case.pop("peak"), case.pop("lower_bounds")
    path.write_text(json.dumps(saved))
    assert results.Results.read(path).cases == results.Results.resume(path).cases
    assert results.Results.read(path).cases["case"].lower_bounds == {"fp32": 2.0, "int8": 1.0}


@pytest.mark.parametrize("path", sorted(results.FOLDER.glob("zen4*.json")), ids=lambda p: p.stem)
def test_committed_results_still_make_table_and_plot(path: Path, tmp_path: Path) -> None:
    from bench import plot

    pytest.importorskip("matplotlib")
    found = results.Results.read(path)
    text = table.render(found, list(found.cases))
    assert "lower bound, ms: fp32" in text and "fastest baseline" in text
    assert len([line for line in text.splitlines() if " fastbert " in line]) >= 3 * len(found.cases)
    plot.draw(found, tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 10_000


def test_the_plot_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from bench import plot

    plot.draw(some_results(), tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 1000


def test_texts_are_the_same_every_time_and_of_mixed_length() -> None:
    once, twice = texts.english(64), texts.english(64)
    assert once == twice
    assert len(set(once)) == 64
    words = [len(text.split()) for text in once]
    assert min(words) < 10 < 60 < max(words)
    assert texts.digest(once) != texts.digest(once[::-1])


# The command


def test_earlier_names_of_options_are_accepted_and_not_advertised() -> None:
    parser = run._parser()
    given = parser.parse_args(["--rivals", "torch", "--turns", "4"])
    assert (given.baselines, given.repetitions) == ("torch", 4)
    default = parser.parse_args([])
    assert (default.baselines, default.repetitions) == ("all", 9)
    told = parser.format_help()
    assert "--baselines" in told and "--repetitions" in told
    assert "--rivals" not in told and "--turns" not in told


@pytest.mark.parametrize("arguments", [["--cases", "2x16"], ["--baselines", "tensorrt"]])
def test_unknown_names_end_with_a_sentence(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "missing_kernels", lambda: None)
    with pytest.raises(SystemExit) as stopped:
        run.main(arguments)
    assert stopped.value.code == 2
    assert arguments[1] in capsys.readouterr().err


ROOT = Path(__file__).resolve().parents[2]


def test_without_built_kernels_one_sentence_says_what_to_do(tmp_path: Path) -> None:
    for folder in ("bench", "fastbert"):
        ignored = shutil.ignore_patterns("_C*", "triton_kernels", "results", "__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--cases", "1x16", "--results", "found"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("bench: ") and "no built kernels" in line and "make native" in line
    assert not (tmp_path / "found").exists()


def test_an_installed_package_that_a_checkout_hides_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fastbert").mkdir()
    (tmp_path / "fastbert" / "__init__.py").touch()
    monkeypatch.setattr(native, "reason", lambda: "no library")
    monkeypatch.setattr(build.fastbert, "__file__", str(tmp_path / "source" / "__init__.py"))
    monkeypatch.setattr(build, "_installed", lambda: tmp_path / "fastbert")
    told = build.missing_kernels()
    assert told and f"hides the fastbert installed in {tmp_path / 'fastbert'}" in told
    monkeypatch.setattr(build, "_installed", lambda: None)
    told = build.missing_kernels()
    assert told and "hides" not in told and "make native" in told
    # A library that is there and broken has a reason of its own.
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "_C.abi3.so").touch()
    assert build.missing_kernels() == "there is nothing to measure: no library."


def test_no_file_is_written_where_nothing_was_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = Baseline("absent", "fp32", ("no-such-package",), lambda path, threads: None)
    monkeypatch.setattr(run, "missing_kernels", lambda: None)
    monkeypatch.setattr(run.models, "checkpoint", lambda name: tmp_path)
    monkeypatch.setattr(run.baselines, "chosen", lambda names: [absent])
    monkeypatch.setattr(run.peak, "measure", lambda threads: Peak(2, 5e11, 1e12, 2e12, 4e10))
    assert run.main(["--cases", "1x16", "--results", str(tmp_path / "found")]) == 1
    assert "absent  not installed: no-such-package" in capsys.readouterr().out
    assert not (tmp_path / "found").exists()
