"""Our tokenizers against the recorded answers of transformers 4.56.2, text by text.

Compared for every text: tokens, ids, types, special-token mask, decoded text; offsets and word ids
of the Rust classes; a pair, a truncated pair, a padded batch, pre-split words. Where the old
release is at hand (FASTBERT_V4_PYTHON names its Python; `make oracle-v4` installs one), the
recording itself is repeated and must come out the same.
"""

from __future__ import annotations

import json
import lzma
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tok_cases
import tok_corpus

import fastbert.tokenizers

GOLDEN = tok_cases.HERE / "golden" / "v4.json.xz"


def _read(path: Path) -> dict[str, Any]:
    return json.loads(lzma.decompress(path.read_bytes()))


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    return _read(GOLDEN)


def test_the_texts_are_those_recorded(recorded: dict[str, Any]) -> None:
    texts = tok_corpus.texts()
    assert recorded["transformers"] == "4.56.2"
    assert len(texts) == recorded["texts"] >= 3000
    assert tok_corpus.digest(json.dumps(texts)) == recorded["corpus"]
    assert {case.name for case in tok_cases.CASES} == set(recorded["cases"])


def test_no_class_is_left_out() -> None:
    ours = fastbert.tokenizers
    public = {getattr(ours, name) for name in ours.__all__}
    classes = {one for one in public if isinstance(one, type) and issubclass(one, ours.Tokenizer)}
    asked_in_full = {getattr(ours, case.cls) for case in tok_cases.CASES if case.step == 1}
    # The class of any tokenizer.json has no vocabulary of its own; test_tok_any_json.py asks it.
    # test_tok_five_families.py asks the others.
    elsewhere = ("PreTrainedTokenizerFast", "RobertaTokenizer", "XLMRobertaTokenizer")
    elsewhere = (*elsewhere, "DistilBertTokenizer", "ElectraTokenizer", "MPNetTokenizer")
    assert classes - {ours.Tokenizer, *(getattr(ours, name) for name in elsewhere)} == asked_in_full


@pytest.mark.parametrize("case", tok_cases.CASES, ids=lambda case: case.name)
def test_same_answers(case: tok_cases.Case, models: Path, recorded: dict[str, Any]) -> None:
    want = recorded["cases"][case.name]
    tok = tok_cases.make(case, getattr(fastbert.tokenizers, case.cls), models)
    if case.added:
        tok_cases.extend(tok)
    assert json.loads(json.dumps(tok_cases.summary(tok))) == want["summary"]
    texts = tok_cases.texts_of(case)
    found = tok_cases.answers(tok, case.fast, texts)
    for part in tok_cases.PARTS:
        hashes = want["hashes"][part]
        assert len(hashes) == 6 * len(texts)
        wrong = [
            index
            for index, answer in enumerate(found)
            if tok_corpus.digest(answer[part]) != hashes[6 * index : 6 * index + 6]
        ]
        for index in wrong:
            if str(index) in want["whole"]:
                assert found[index][part] == want["whole"][str(index)][part]
        assert not wrong, (part, len(wrong), [(texts[i], found[i][part]) for i in wrong[:3]])


def test_a_wrong_answer_would_show(models: Path, recorded: dict[str, Any]) -> None:
    """The hashes bite: a tokenizer with one setting changed must miss many of them."""
    want = recorded["cases"]["flaubert"]["hashes"]["tokens"]
    changed = fastbert.tokenizers.FlaubertTokenizer.from_pretrained(
        models / "flaubert", do_lowercase=True
    )
    texts = tok_corpus.texts()[:400]
    found = tok_cases.answers(changed, False, texts)
    same = sum(
        tok_corpus.digest(answer["tokens"]) == want[6 * i : 6 * i + 6]
        for i, answer in enumerate(found)
    )
    assert same < 380


def _old_python() -> str | None:
    named = os.environ.get("FASTBERT_V4_PYTHON")
    usual = tok_cases.HERE.parents[1] / ".venv-v4" / "bin" / "python"
    return named or (str(usual) if usual.exists() else None)


@pytest.mark.skipif(
    _old_python() is None or sys.platform == "win32",
    reason="transformers 4.56.2 is not at hand (set FASTBERT_V4_PYTHON, or make oracle-v4)",
)
def test_the_recording_can_be_repeated(tmp_path: Path) -> None:
    out = tmp_path / "v4.json.xz"
    python = _old_python()
    assert python is not None
    script = tok_cases.HERE / "make_golden.py"
    subprocess.run([python, str(script), "--out", str(out)], check=True, capture_output=True)
    assert _read(out) == _read(GOLDEN)


@pytest.mark.skipif(_old_python() is None, reason="transformers 4.56.2 is not at hand")
def test_transformers_4_reads_what_we_save(models: Path, tmp_path: Path) -> None:
    saved: list[str] = []
    wanted: list[list[list[int]]] = []
    for cls, folder, kind in (
        ("BertTokenizer", "bert", "+fast"),
        ("BertTokenizerLegacy", "bert-cased", ""),
        ("CamembertTokenizer", "camembert", ""),
        ("CamembertTokenizerFast", "camembert-bpe", "+fast"),
        ("FlaubertTokenizer", "flaubert", ""),
        ("RemBertTokenizer", "rembert", ""),
        ("RemBertTokenizerFast", "rembert", "+fast"),
    ):
        options = {"do_lower_case": False} if cls == "BertTokenizerLegacy" else {}
        tok = getattr(fastbert.tokenizers, cls).from_pretrained(models / folder, **options)
        tok_cases.extend(tok)
        path = tmp_path / cls
        tok.save_pretrained(path)
        saved.append(f"{path}{kind}")
        wanted.append([tok(text)["input_ids"] for text in tok_corpus.texts()[::16]])
    script = str(tok_cases.HERE / "oracle_v4.py")
    python = _old_python()
    assert python is not None
    run = subprocess.run([python, script, *saved], check=True, capture_output=True, text=True)
    found = json.loads(run.stdout.splitlines()[-1])
    for name, ours, theirs in zip(saved, wanted, found, strict=True):
        assert ours == theirs, name
