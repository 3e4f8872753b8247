"""The types that a program sees: what a type checker makes of calls that programs write."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")

PROGRAM = """
from typing import Any, assert_type
import numpy as np
from torch import Tensor
from fastbert.embedding.sentence import Encoded, SentenceEncoder, Vector, Vectors
from fastbert.generation.mixin import GenerateOutput, GenerationMixin
from fastbert.pipelines import Pipeline, pipeline
from fastbert.pipelines.classification import TextClassification, ZeroShotClassification
from fastbert.pipelines.features import FeatureExtraction
from fastbert.pipelines.fill_mask import FillMask
from fastbert.pipelines.question_answering import QuestionAnswering
from fastbert.pipelines.token_classification import TokenClassification
from fastbert.tokenizers import AutoTokenizer, BatchEncoding, BertTokenizer, Tokenizer
from fastbert.tokenizers.engines.encoding import Encoding

class Mine(SentenceEncoder): ...

def vectors(encoder: SentenceEncoder, texts: list[str], as_tensor: bool) -> None:
    assert_type(Mine.from_pretrained("x"), Mine)
    assert_type(encoder.encode("text"), Vector)
    assert_type(encoder.encode(texts, batch_size=2, prompt="query: "), Vectors)
    assert_type(encoder.encode(iter(texts), convert_to_tensor=True), Tensor)
    assert_type(encoder.encode("text", convert_to_numpy=False), Tensor)
    assert_type(encoder.encode(texts, convert_to_numpy=False), list[Tensor])
    assert_type(encoder.encode(texts, convert_to_tensor=as_tensor), Encoded)
    assert_type(encoder.encode(texts, precision="binary"), Encoded)
    assert_type(encoder.encode_query(texts), Vectors)
    assert_type(encoder.similarity(encoder.encode(texts), encoder.encode("text")), Tensor)
    encoder.encode(texts, batchsize=2)  # error: call-overload
    assert_type(encoder.to("cpu"), SentenceEncoder)

def answers(task: str) -> None:
    assert_type(pipeline("feature-extraction", "x"), FeatureExtraction)
    assert_type(pipeline("fill-mask", model="x", device=-1), FillMask)
    assert_type(pipeline("question-answering", "x", "y"), QuestionAnswering)
    assert_type(pipeline("text-classification", "x", top_k=None), TextClassification)
    assert_type(pipeline("sentiment-analysis", "x"), TextClassification)
    assert_type(pipeline("token-classification", "x"), TokenClassification)
    assert_type(pipeline("ner", "x"), TokenClassification)
    assert_type(pipeline("zero-shot-classification", "x"), ZeroShotClassification)
    assert_type(pipeline(task, "x"), Pipeline)

def tokens(ids: list[int], rows: list[list[int]]) -> None:
    tokenizer = AutoTokenizer.from_pretrained("x")
    assert_type(tokenizer, Tokenizer)
    assert_type(BertTokenizer.from_pretrained("x"), BertTokenizer)
    assert_type(tokenizer("text", return_tensors="pt"), BatchEncoding)
    assert_type(tokenizer("text")[0], Encoding)
    assert_type(tokenizer("text").to("cpu"), BatchEncoding)
    assert_type(tokenizer.encode("text"), list[int])
    assert_type(tokenizer.pad_token_id, int | None)
    assert_type(tokenizer.mask_token, str | None)
    assert_type(tokenizer.convert_tokens_to_ids("a"), int)
    assert_type(tokenizer.convert_tokens_to_ids(["a"]), list[int])
    assert_type(tokenizer.convert_ids_to_tokens(1), str)
    assert_type(tokenizer.convert_ids_to_tokens(ids), list[str])
    assert_type(tokenizer.decode(ids), str)
    assert_type(tokenizer.decode(rows), list[str])

def texts(model: GenerationMixin, ids: Tensor) -> None:
    assert_type(model.generate(ids, max_new_tokens=3), Tensor | GenerateOutput)
"""


@pytest.mark.slow
def test_a_type_checker_knows_what_calls_return(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    options = ["--ignore-missing-imports", "--follow-imports=silent", "--config-file="]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, f"--cache-dir={tmp_path / 'cache'}", str(path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[1],
    )
    wrong = {int(line.split(":")[1]): line for line in done.stdout.splitlines() if "error:" in line}
    lines = enumerate(PROGRAM.splitlines(), start=1)
    meant = {number for number, line in lines if "# error:" in line}
    assert set(wrong) == meant, done.stdout + done.stderr
