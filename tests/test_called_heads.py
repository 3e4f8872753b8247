"""Modules define what a head computes, too: its parts are called, by whatever stands there.

The heads of FlauBERT are modules of their own with transformers' arguments and results, and so are
those that score the vocabulary or judge the next sentence. What is right comes from transformers'
modules with the same change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastbert
from fastbert.runtime.plan import Unavailable
from tests.test_called_parts import IDS, MASK, Around, doubled, hook, pair, put, same, same_tensor

LABELS = torch.tensor([1, 0, 1])
ENDS = {"start_positions": LABELS, "end_positions": LABELS}


class Last(nn.Module):
    """A summary of one's own, which looks at all tokens."""

    def forward(self, hidden_states: Tensor, cls_index: Any = None) -> Tensor:
        return hidden_states.cumsum(1)[:, -1, :2]


class Starts(nn.Module):
    def forward(self, hidden_states: Tensor, p_mask: Any = None) -> Tensor:
        return hidden_states.cumsum(1).sum(-1)


class Ends(nn.Module):
    def forward(self, states: Tensor, start_states: Any = None, start_positions: Any = None,
                p_mask: Any = None) -> Tensor:  # fmt: skip
        out = states.sum(-1)
        return out if start_states is None else out * start_states.sum(-1)


class Scores(nn.Module):
    """A head with transformers' arguments that computes a loss of its own."""

    def __init__(self, old: Any) -> None:
        super().__init__()
        self.proj = old.proj

    def forward(self, x: Tensor, y: Any = None) -> Any:
        scores = self.proj(torch.tanh(x).cumsum(1))
        return (scores,) if y is None else (scores.square().mean(), scores)


SUMMARY = ("SequenceClassification", "MultipleChoice")
SUMMARIES: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda model: None,
    "own": put("sequence_summary", lambda _: Last()),
    "wrapper": put("sequence_summary", Around),
    "hook": hook("sequence_summary"),
    "hook on a dropout": hook("sequence_summary.first_dropout"),
    "hook on the projection": hook("sequence_summary.summary"),
    "projection": put("sequence_summary.summary", lambda old: nn.Sequential(old, nn.Tanh())),
    "activation": put("sequence_summary.activation", lambda _: nn.Softmax(-1)),
    "type": lambda model: setattr(model.sequence_summary, "summary_type", "mean"),
}


@pytest.mark.parametrize("change", SUMMARIES)
@pytest.mark.parametrize("task", SUMMARY)
def test_summaries(task: str, change: str) -> None:
    theirs, ours = pair("flaubert", f"For{task}", summary_activation="tanh")
    many = task == "MultipleChoice"
    given = {"input_ids": IDS, "attention_mask": MASK}
    if many:
        given = {name: value[None] for name, value in given.items()}
    ours(**given)
    for model in (theirs, ours):
        SUMMARIES[change](model)
    with torch.no_grad():
        same_tensor(ours(**given).logits, theirs(**given).logits)


@pytest.mark.parametrize("kind", ["first", "last", "mean", "cls_index"])
@pytest.mark.parametrize("projected", [True, False])
def test_a_summary_by_hand(kind: str, projected: bool) -> None:
    sizes = {"summary_type": kind, "summary_use_proj": projected, "summary_activation": "tanh"}
    theirs, ours = pair("flaubert", "ForSequenceClassification", num_labels=24, **sizes)
    wide, index = torch.randn(3, 7, 24), torch.tensor([4, 0, 6])
    for given in ((wide,), (wide, index)):
        same_tensor(ours.sequence_summary(*given), theirs.sequence_summary(*given))
    expected, found = (
        [name for name, _ in model.sequence_summary.named_children()] for model in (theirs, ours)
    )
    assert sorted(found) == sorted(expected)
    same(theirs, ours)


QA = "ForQuestionAnswering"
SQUAD: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda model: None,
    "own starts": put("qa_outputs.start_logits", lambda _: Starts()),
    "own ends": put("qa_outputs.end_logits", lambda _: Ends()),
    "wrapper": put("qa_outputs.answer_class", Around),
    "hook on starts": hook("qa_outputs.start_logits"),
    "hook on ends": hook("qa_outputs.end_logits"),
    "hook on the answer": hook("qa_outputs.answer_class.dense_1"),
    "norm": put("qa_outputs.end_logits.LayerNorm", lambda _: nn.Identity()),
    "activation": put("qa_outputs.end_logits.activation", lambda _: nn.ReLU()),
    "projection": put("qa_outputs.end_logits.dense_0", lambda _: nn.Linear(48, 24)),
    "beams": lambda model: setattr(model.qa_outputs, "start_n_top", 2),
}


@pytest.mark.parametrize("change", SQUAD)
def test_the_squad_head(change: str) -> None:
    theirs, ours = pair("flaubert", QA, start_n_top=3, end_n_top=3)
    ours(IDS)
    for model in (theirs, ours):
        torch.manual_seed(1)
        SQUAD[change](model)
    p_mask = torch.zeros(3, 7)
    p_mask[:, 0] = 1.0
    impossible = {"cls_index": LABELS, "is_impossible": LABELS.float()}
    with torch.no_grad():
        for given in ({}, {"p_mask": p_mask}, ENDS, {**ENDS, **impossible}, {"cls_index": LABELS}):
            same(theirs, ours, **given)


def test_the_squad_head_by_hand() -> None:
    theirs, ours = pair("flaubert", QA, start_n_top=3, end_n_top=3)
    wide, starts = torch.randn(3, 7, 24), torch.randn(3, 7, 24)
    for path, given in (
        ("start_logits", {}),
        ("start_logits", {"p_mask": MASK.float()}),
        ("end_logits", {"start_states": starts}),
        ("end_logits", {"start_positions": LABELS, "p_mask": MASK.float()}),
        ("answer_class", {"start_states": starts[:, 0]}),
        ("answer_class", {"start_positions": LABELS, "cls_index": LABELS}),
    ):
        expected = getattr(theirs.qa_outputs, path)(wide, **given)
        same_tensor(getattr(ours.qa_outputs, path)(wide, **given), expected)
    for given in ({}, ENDS):
        for one, other in zip(
            theirs.qa_outputs(wide, **given), ours.qa_outputs(wide, **given), strict=True
        ):
            same_tensor(other, one)
    with pytest.raises(ValueError, match="start_states and start_positions"):
        ours.qa_outputs.end_logits(wide)


def test_an_own_squad_head() -> None:
    theirs, ours = pair("flaubert", QA)
    for model in (theirs, ours):
        model.qa_outputs = Around(model.qa_outputs)
        model.qa_outputs.forward = lambda states, **_: (states.sum(), states.mean(1))
    assert torch.allclose(ours(IDS, return_dict=False)[0], theirs(IDS, return_dict=False)[0])
    ours.qa_outputs = nn.Flatten()
    with pytest.raises(TypeError, match="in the place of qa_outputs must return"):
        ours(IDS)
    ours.qa_outputs = None
    with pytest.raises(ValueError, match="has no qa_outputs"):
        ours(IDS)


PREDICTIONS: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda model: None,
    "own": put("pred_layer", Scores),
    "projection": put("pred_layer.proj", lambda old: nn.Sequential(old, nn.Tanh())),
    "hook on the projection": hook("pred_layer.proj"),
    "hook": hook("pred_layer"),
}


@pytest.mark.parametrize("change", PREDICTIONS)
def test_predictions_of_flaubert(change: str) -> None:
    theirs, ours = pair("flaubert", "WithLMHeadModel")
    ours(IDS)
    for model in (theirs, ours):
        PREDICTIONS[change](model)
    labels = torch.where(MASK.bool(), IDS, -100)
    with torch.no_grad():
        same(theirs, ours)
        same(theirs, ours, labels=labels)
        kept = ours(IDS, attention_mask=MASK, logits_to_keep=2).logits
        same_tensor(kept[:1], theirs(IDS, attention_mask=MASK).logits[:1, -2:])
        hidden = torch.randn(3, 7, 24)
        for given in ((hidden,), (hidden, labels)):
            for one, other in zip(theirs.pred_layer(*given), ours.pred_layer(*given), strict=True):
                same_tensor(other, one)


HEADS: dict[str, tuple[str, str, str]] = {
    "next sentence": ("bert", "ForNextSentencePrediction", "cls.seq_relationship"),
    "its head": ("bert", "ForNextSentencePrediction", "cls"),
    "of two": ("bert", "ForPreTraining", "cls.seq_relationship"),
    "transform": ("bert", "ForMaskedLM", "cls.predictions.transform.dense"),
    "activation": ("bert", "ForMaskedLM", "cls.predictions.transform.transform_act_fn"),
    "decoder": ("bert", "ForMaskedLM", "cls.predictions.decoder"),
    "roberta's dense": ("camembert", "ForMaskedLM", "lm_head.dense"),
    "roberta's norm": ("roberta", "ForMaskedLM", "lm_head.layer_norm"),
    "roberta's decoder": ("roberta", "ForMaskedLM", "lm_head.decoder"),
    "roberta's classifier": ("roberta", "ForSequenceClassification", "classifier.dense"),
    "rembert's dense": ("rembert", "ForMaskedLM", "cls.predictions.dense"),
    "rembert's norm": ("rembert", "ForMaskedLM", "cls.predictions.LayerNorm"),
}


@pytest.mark.parametrize("way", ["hook", "wrapper"])
@pytest.mark.parametrize("name", HEADS)
def test_parts_of_heads(name: str, way: str) -> None:
    family, task, path = HEADS[name]
    theirs, ours = pair(family, task)
    with torch.no_grad():
        before = ours(IDS, attention_mask=MASK)[0]
        for model in (theirs, ours):
            (hook(path) if way == "hook" else put(path, Around))(model)
        same(theirs, ours)
        changed = any(
            not torch.equal(one, other)
            for one, other in zip(
                ours(IDS, attention_mask=MASK).to_tuple(), (before,), strict=False
            )
        )
        assert changed or name == "of two"
    assert path in fastbert.explain(ours)
    ours.set_backend("cpu", strict=True)
    with pytest.raises(Unavailable, match=path), torch.no_grad():
        ours(IDS)


@pytest.mark.parametrize("name", HEADS)
def test_heads_that_are_gone(name: str) -> None:
    family, task, path = HEADS[name]
    _, ours = pair(family, task)
    root = path.partition(".")[0]
    setattr(ours, root, None)
    with pytest.raises(ValueError, match=f"has no {root}"):
        ours(IDS)


def test_invariance_that_torch_does_not_promise_is_said(caplog: Any) -> None:
    _, ours = pair("bert", "ForSequenceClassification")
    ours.set_backend("auto", batch_invariant=True)
    with torch.no_grad():
        ours(IDS)
        assert not caplog.messages
        ours.classifier = nn.Linear(24, 2)
        ours.bert.encoder.layer[1].register_forward_hook(doubled)
        ours(IDS)
        ours(IDS)
    told = [text for text in caplog.messages if "batch_invariant=True was asked for" in text]
    assert len(told) == 2
    assert any("classifier is a Linear" in text for text in told)
    assert any("encoder.layer.1 has hooks" in text for text in told)
