"""`fastbert rank` scores each good line with CrossEncoder's own score, and names each bad one.

Guarded are what a line may be (a tab, JSON, or a passage of --query), that an answer carries the
number of its line, that the best are those of CrossEncoder.rank, and that nothing that is no pair,
or whose score is no number, gets one.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fastbert
from fastbert.tools import cli, rank
from fastbert.tools.lines import Line, Problems
from fastbert.tools.output import opened_output

# Files of tests are imported by their paths, so their helpers are found through this one's.
sys.path.insert(0, str(Path(__file__).parent))
from sentence_folders import TEXTS, edited, tiny
from test_cross_encoder import classifier

# Bad are 2, 4, 5, 7 to 12.
MIXED = [
    b"\xef\xbb\xbfred\tthe cat\r\n",
    b"no pair\n",
    b'["red", "blue house"]\n',
    b"\xff\tcat\n",
    b"query\tpassage\tmore\n",
    b'{"query": "red", "passage": "the\\tcat", "id": 3}\n',
    b'{"query": "a", "text": "b", "text_pair": "c"}\n',
    b'{"passage": "a"}\n',
    b'["a", null]\n',
    b'["a", "b", "c"]\n',
    b'["\\ud800", "b"]\n',
    b"[" * 100_000 + b"\n",
    b'{"text_pair": "far", "text": "mat"}\n',
    b"\t",
]
GOOD = {1: ("red", "the cat"), 3: ("red", "blue house"), 6: ("red", "the\tcat")}
GOOD |= {13: ("mat", "far"), 14: ("", "")}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("source") / "model")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Path:
    return classifier(tmp_path_factory.mktemp("one"), source)


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("labels", [1, 3])
def test_good_lines_have_the_scores_of_predict_and_bad_ones_are_named(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], labels: int
) -> None:
    folder = classifier(tmp_path / "model", source, labels)
    (tmp_path / "in").write_bytes(b"".join(MIXED))
    assert cli.main(["rank", str(folder), str(tmp_path / "in")]) == 1
    told = capfd.readouterr()
    scores = fastbert.CrossEncoder.from_pretrained(folder).predict(list(GOOD.values()))
    found = lines_of(told.out)
    assert [answer["line"] for answer in found] == list(GOOD)
    key = "score" if labels == 1 else "scores"
    # As text, so that every bit of float32 counts.
    assert [torch.tensor(answer[key]).tolist() for answer in found] == scores.tolist()
    named = [line for line in told.err.splitlines() if line.startswith("fastbert: line ")]
    assert [int(line.split()[2][:-1]) for line in named] == [2, 4, 5, 7, 8, 9, 10, 11, 12]


@pytest.mark.parametrize(
    ("line", "pair"),
    [
        ('["red",\t"blue"]', ("red", "blue")),
        ('{"query":\t"red",\t"passage": "blue\\tcat"\t} ', ("red", "blue\tcat")),
        ('["red"]\tblue', ('["red"]', "blue")),
        ('["red", "blue"]\t', ('["red", "blue"]', "")),
        ("[1]\t[2]", ("[1]", "[2]")),
        ("{\t}", None),
        ('["red",\t"blue",\t"cat"]', None),
        ('{"query": "a", "query": "red", "passage": "blue"}', None),
    ],
)
def test_tabs_between_the_parts_of_json_are_blanks(line: str, pair: tuple[str, str] | None) -> None:
    if pair is None:
        with pytest.raises(ValueError, match="is no pair: expected query, tab, passage"):
            rank.pair_of(line)
    else:
        assert rank.pair_of(line) == pair


def test_the_best_passages_are_those_of_rank(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [*TEXTS, "red", "the\tcat", "red"]
    (tmp_path / "in").write_text("\n".join(texts) + "\n")
    command = ["rank", str(model), str(tmp_path / "in"), "--query", "red house"]
    monkeypatch.setattr(rank, "BLOCK_LINES", 3)
    assert cli.main([*command, "--top-k", "6"]) == 0
    encoder = fastbert.CrossEncoder.from_pretrained(model)
    best = encoder.rank("red house", texts, top_k=6, return_documents=True)
    found = lines_of(capfd.readouterr().out)
    assert [(one["line"] - 1, one["text"]) for one in found] == [
        (one["corpus_id"], one["text"]) for one in best
    ]
    assert cli.main([*command, "-o", str(tmp_path / "out")]) == 0
    everything = lines_of((tmp_path / "out").read_text())
    assert [one["line"] for one in everything] == list(range(1, len(texts) + 1))
    assert {one["line"]: one["score"] for one in found}.items() <= {
        one["line"]: one["score"] for one in everything
    }.items()


def test_what_does_not_fit_is_refused(
    model: Path, source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").write_text("a\n")
    three = classifier(tmp_path / "three", source, 3)
    named = {"architectures": ["BertForSequenceClassification"]}
    headless = edited(source, tmp_path / "headless", "config.json", lambda c: c | named)
    cases = [
        ([str(headless), "--query", "x"], "Answers would be random"),
        ([str(model), "--top-k", "2"], "--query"),
        ([str(three), "--query", "x", "--top-k", "2"], "3 labels"),
        ([str(source), "--query", "x"], "no head that scores pairs"),
        ([str(tmp_path / "no"), "--query", "x"], "does not exist"),
    ]
    for words, told in cases:
        assert cli.main(["rank", words[0], str(tmp_path / "in"), *words[1:]]) == 2
        assert told in capfd.readouterr().err


def test_a_query_that_is_no_text_is_refused_once(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["rank", str(model), "/dev/null", "--query", "a\udcff"])
    assert stopped.value.code == 2 and "not UTF-8" in capsys.readouterr().err


def test_a_score_that_is_no_number_is_a_bad_line(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    encoder = fastbert.CrossEncoder.from_pretrained(model, activation_fn=torch.log)
    problems = Problems()
    score = rank.scoring(encoder, "red")
    with torch.no_grad():
        encoder.model.classifier.bias.fill_(-1000.0)
    encoder.model.refresh()
    lines = [[Line(1, "cat"), Line(2, "dog")]]
    old = tmp_path / "old"
    old.write_text("old")
    with opened_output(str(old)) as target:
        rank.write(rank.all_scored(iter(lines), score, problems), 1, target, problems)
    assert problems.count == 2 and old.read_text() == "old"
    assert "no finite number" in capfd.readouterr().err


def test_the_activation_of_the_folder_is_obeyed(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = {"activation_fn": "torch.nn.modules.activation.Tanh"}
    folder = edited(
        model, tmp_path / "model", "config.json", lambda c: {**c, "sentence_transformers": settings}
    )
    (tmp_path / "in").write_text("red\tcat\n")
    assert cli.main(["rank", str(folder), str(tmp_path / "in")]) == 0
    found = lines_of(capfd.readouterr().out)[0]["score"]
    plain = fastbert.CrossEncoder.from_pretrained(model).predict([("red", "cat")])[0]
    assert found == pytest.approx(math.tanh(math.log(plain / (1 - plain))), abs=1e-4)
