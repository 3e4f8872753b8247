"""Every family through every pipeline and through SentenceEncoder.

Each has its own tokenizer over a vocabulary trained for the tokenizer tests; the expected values
are what transformers' model computes from the same ids.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor

import fastbert
from fastbert.pipelines import TASKS, pipeline

sys.path.append(str(Path(__file__).parent / "tokenizers"))
sys.path.append(str(Path(__file__).parent / "models"))

import oracle
import tok_cases

# Name of a case: family, tokenizer class, vocabulary.
CASES = {
    "camembert": ("Camembert", "CamembertTokenizerFast", "camembert"),
    "camembert-sentencepiece": ("Camembert", "CamembertTokenizer", "camembert-bpe"),
    "flaubert": ("Flaubert", "FlaubertTokenizer", "flaubert"),
    "flaubert-pre-norm": ("Flaubert", "FlaubertTokenizer", "flaubert"),
    "rembert": ("RemBert", "RemBertTokenizer", "rembert"),
    "rembert-rust": ("RemBert", "RemBertTokenizerFast", "rembert"),
    "roberta": ("Roberta", "RobertaTokenizer", "byte-level"),
    "xlm-roberta": ("XLMRoberta", "XLMRobertaTokenizer", "camembert"),
    "distilbert": ("DistilBert", "DistilBertTokenizer", "bert"),
    "electra": ("Electra", "ElectraTokenizer", "bert"),
    "mpnet": ("MPNet", "MPNetTokenizer", "mpnet"),
}
HEADS = {
    "fill-mask": "ForMaskedLM",
    "text-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "zero-shot-classification": "ForSequenceClassification",
    "question-answering": "ForQuestionAnswering",
    "feature-extraction": "Model",
}
NAMES = {
    "FlaubertForMaskedLM": "FlaubertWithLMHeadModel",
    "FlaubertForQuestionAnswering": "FlaubertForQuestionAnsweringSimple",
}
TEXTS = [
    "L'été dernier, j'ai mangé un délicieux fromage à Besançon.",
    "Aujourd'hui, M. Dupont dort.",
    "ok",
]
CONTEXT = "Le petit chat de Mme. Lefèvre dort à Paris. L'ex-président s'arrêta à Besançon. " * 4


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tok_cases.unpack(tmp_path_factory.mktemp("vocabularies"))
    (root / "byte-level").mkdir()
    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    texts = [*TEXTS, CONTEXT] * 2
    trained.train_from_iterator(texts, vocab_size=450, special_tokens=special)
    trained.save_model(str(root / "byte-level"))
    (root / "mpnet").mkdir()
    words = (root / "bert" / "vocab.txt").read_text(encoding="utf-8").split("\n")
    own = {"[CLS]": "<s>", "[SEP]": "</s>", "[PAD]": "<pad>", "[MASK]": "<mask>"}
    renamed = "\n".join(own.get(word, word) for word in words)
    (root / "mpnet" / "vocab.txt").write_text(renamed, encoding="utf-8")
    return root


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, vocabularies: Path) -> tuple[str, Any]:
    """(name of the case, its tokenizer)."""
    _, kind, folder = CASES[request.param]
    return request.param, getattr(fastbert, kind).from_pretrained(vocabularies / folder)


def made(case: tuple[str, Any], task: str, folder: Path) -> tuple[Any, Any]:
    """(transformers' model, our pipeline over the same checkpoint)."""
    name, tokenizer = case
    family = CASES[name][0]
    kind = NAMES.get(family + HEADS[task], family + HEADS[task])
    labels = {"question-answering": 2, "zero-shot-classification": 3}.get(task, 5)
    settings = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 66,
        "num_labels": labels,
        "pad_token_id": tokenizer.pad_token_id,
    }
    settings = {**oracle.FAMILIES[family], **settings}
    if "pre-norm" in name:
        settings["pre_norm"] = True
    if task == "zero-shot-classification":
        settings["label2id"] = {"contradiction": 0, "neutral": 1, "entailment": 2}
        settings["id2label"] = {value: key for key, value in settings["label2id"].items()}
        del settings["num_labels"]
    config = getattr(transformers, f"{family}Config")(attn_implementation="eager", **settings)
    theirs = getattr(transformers, kind)(config).eval()
    oracle.fill(theirs)
    theirs.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ours = pipeline(task, model=str(folder))
    assert type(ours.model).__name__ == kind
    assert type(ours.tokenizer).__name__.removesuffix("Fast") == type(
        tokenizer
    ).__name__.removesuffix("Fast")
    return theirs, ours


def outputs(theirs: Any, tokenizer: Any, *texts: str) -> Any:
    family = type(theirs.config).__name__
    counts = ("CamembertConfig", "RobertaConfig", "XLMRobertaConfig", "MPNetConfig")
    longest = 64 if family in counts else 66
    inputs = tokenizer(*texts, return_tensors="pt", truncation=True, max_length=longest)
    with torch.no_grad():
        return theirs(**inputs), inputs


def close(found: Any, wanted: Tensor | float) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), rtol=0, atol=2e-5)


def test_fill_mask(case: tuple[str, Any], tmp_path: Path) -> None:
    theirs, ours = made(case, "fill-mask", tmp_path)
    tok = ours.tokenizer
    texts = [f"Le {tok.mask_token} dort.", f"{tok.mask_token} et {tok.mask_token}"]
    answers = ours(texts, top_k=4)
    assert ours(texts[0], top_k=4) == answers[0]
    for text, answer in zip(texts, answers, strict=True):
        output, inputs = outputs(theirs, tok, text)
        places = (inputs["input_ids"][0] == tok.mask_token_id).nonzero().squeeze(1)
        rows = [answer] if len(places) == 1 else answer
        for place, row in zip(places, rows, strict=True):
            best = output.logits[0, place].softmax(-1).topk(4)
            assert [one["token"] for one in row] == best.indices.tolist()
            close([one["score"] for one in row], best.values)
            assert [one["token_str"] for one in row] == [tok.decode([i]) for i in best.indices]


def test_feature_extraction(case: tuple[str, Any], tmp_path: Path) -> None:
    theirs, ours = made(case, "feature-extraction", tmp_path)
    for text, answer in zip(TEXTS, ours(TEXTS), strict=True):
        close(answer, outputs(theirs, ours.tokenizer, text)[0].last_hidden_state)


def test_text_classification(case: tuple[str, Any], tmp_path: Path) -> None:
    theirs, ours = made(case, "text-classification", tmp_path)
    pairs = [{"text": TEXTS[0], "text_pair": TEXTS[1]}]
    answers = [*ours([*TEXTS, *pairs], top_k=None), ours(CONTEXT * 3, truncation=True, top_k=None)]
    given = [(text,) for text in TEXTS] + [(TEXTS[0], TEXTS[1]), (CONTEXT * 3,)]
    for texts, answer in zip(given, answers, strict=True):
        scores = outputs(theirs, ours.tokenizer, *texts)[0].logits[0].softmax(-1)
        found = {one["label"]: one["score"] for one in answer}
        close([found[f"LABEL_{i}"] for i in range(5)], scores)


def test_token_classification(case: tuple[str, Any], tmp_path: Path) -> None:
    theirs, ours = made(case, "token-classification", tmp_path)
    for text, answer in zip(TEXTS, ours(TEXTS, ignore_labels=[]), strict=True):
        output, _ = outputs(theirs, ours.tokenizer, text)
        encoded = ours.tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
        real = [i for i, special in enumerate(encoded["special_tokens_mask"]) if not special]
        scores = output.logits[0].softmax(-1)
        assert [one["index"] for one in answer] == real
        assert [one["entity"] for one in answer] == [
            f"LABEL_{int(scores[i].argmax())}" for i in real
        ]
        close([one["score"] for one in answer], scores[real].max(-1).values)
        spans = [(one["start"], one["end"]) for one in answer]
        assert spans == [tuple(encoded["offset_mapping"][i]) for i in real]
    for strategy in ("simple", "first", "average", "max"):
        groups = ours(TEXTS[1], aggregation_strategy=strategy, ignore_labels=[])
        covered = "".join(TEXTS[1][one["start"] : one["end"]] for one in groups)
        assert covered.replace(" ", "") == TEXTS[1].replace(" ", ""), strategy


def test_question_answering(case: tuple[str, Any], tmp_path: Path) -> None:
    theirs, ours = made(case, "question-answering", tmp_path)
    item = {"question": "Où dort-il ?", "context": CONTEXT[:60]}
    exact = copy.copy(ours)
    exact.options = {"align_to_words": False}
    answer = exact(item, max_answer_len=4)
    output, inputs = outputs(theirs, ours.tokenizer, item["question"], item["context"])
    sequence = inputs.sequence_ids(0)
    offsets = ours.tokenizer(item["question"], item["context"], return_offsets_mapping=True)[
        "offset_mapping"
    ]
    # As transformers 4 does: where the family's first token is its CLS token, it takes part.
    first_id = inputs["input_ids"][0] == (ours.tokenizer.cls_token_id)
    allowed = torch.tensor([place == 1 for place in sequence]) | first_id
    starts, ends = (
        torch.where(allowed, logits[0], -10000.0).softmax(-1)
        for logits in (output.start_logits, output.end_logits)
    )
    best = max(
        (float(starts[i] * ends[j]), offsets[i][0], offsets[j][1])
        for i in range(len(sequence))
        for j in range(i, min(i + 4, len(sequence)))
        if sequence[i] == sequence[j] == 1
    )
    close(answer["score"], best[0])
    assert (answer["start"], answer["end"]) == best[1:]
    assert answer["answer"] == item["context"][best[1] : best[2]]
    windows = ours(question=item["question"], context=CONTEXT, top_k=4)
    assert all(CONTEXT[one["start"] : one["end"]] == one["answer"] for one in windows)


def test_zero_shot_classification(case: tuple[str, Any], tmp_path: Path) -> None:
    theirs, ours = made(case, "zero-shot-classification", tmp_path)
    labels = ["voyage", "science", "fromage"]
    answer = ours(TEXTS[0], candidate_labels=labels)
    logits = [
        outputs(theirs, ours.tokenizer, TEXTS[0], f"This example is {label}.")[0].logits[0, 2]
        for label in labels
    ]
    scores = torch.stack(logits).softmax(-1)
    found = dict(zip(answer["labels"], answer["scores"], strict=True))
    close([found[label] for label in labels], scores)
    assert answer["scores"] == sorted(answer["scores"], reverse=True)


def test_all_tasks_are_here() -> None:
    # test_apertus_generation.py, test_align_processor.py
    here = set(TASKS) - {"text-generation", "zero-shot-image-classification"}
    assert here == set(HEADS)
    assert {f"test_{task.replace('-', '_')}" for task in here} <= set(globals())


@pytest.mark.parametrize("options", [{}, {"quantization": "int8"}, {"dtype": "bfloat16"}], ids=str)
def test_sentence_encoder(case: tuple[str, Any], options: dict[str, Any], tmp_path: Path) -> None:
    theirs, _ = made(case, "feature-extraction", tmp_path)
    encoder = fastbert.SentenceEncoder.from_pretrained(tmp_path, **options)
    texts = [*TEXTS, "", CONTEXT, *TEXTS]
    vectors = encoder.encode(texts)
    assert vectors.shape == (8, oracle.HIDDEN) and vectors.dtype == np.float32
    alone = np.stack([encoder.encode(text) for text in texts])
    np.testing.assert_array_equal(vectors, alone)
    few = encoder.encode(texts, max_tokens=30, batch_size=2)
    np.testing.assert_array_equal(vectors, few)
    for text, vector in zip(texts, vectors, strict=True):
        state = outputs(theirs, encoder.tokenizer, text)[0].last_hidden_state[0]
        wanted = state.mean(0)
        if not options:
            close(vector, wanted)
        else:
            cosine = torch.cosine_similarity(torch.from_numpy(vector), wanted, dim=0)
            assert float(cosine) > (0.98 if options.get("quantization") else 0.999)
