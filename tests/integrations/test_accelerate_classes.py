"""Every class of transformers before and after accelerate(): the same outputs, row by row.

Both compute from the very same parameters, so what differs is what the kernels of the encoder make
of the arguments: fields, their order, tuples, hidden states, losses and gradients, masked rows too.
"""

from __future__ import annotations

import copy
from typing import Any

import accelerating
import oracle
import pytest
import torch
from accelerating import MASK, as_float, pair, plain, reasons, same

import fastbert

CASES = [(name, case) for name in oracle.CLASSES for case in oracle.inputs_of(name)]
# Answers that kernels do not keep, or decoders, whose passes the original computes.
ELSEWHERE = ("everything returned", "four dimensions")
_pairs: dict[str, tuple[Any, Any]] = {}


def shared(name: str) -> tuple[Any, Any]:
    if name not in _pairs:
        _pairs[name] = pair(name, "eager")
    return _pairs[name]


@pytest.mark.filterwarnings("ignore:A pass of the accelerated")
@pytest.mark.parametrize(("name", "case"), CASES)
def test_a_class_answers_as_before(name: str, case: str) -> None:
    theirs, ours = shared(name)
    given = as_float(oracle.inputs_of(name)[case])
    before = reasons(ours)
    with torch.no_grad():
        same(theirs(**given), ours(**given))
    elsewhere = case in ELSEWHERE or oracle.is_causal(name)
    assert (reasons(ours) != before) == elsewhere, reasons(ours)


@pytest.mark.filterwarnings("ignore:A pass of the accelerated")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", oracle.CLASSES)
def test_gradients_are_the_same(name: str, training: bool) -> None:
    cases = oracle.inputs_of(name)
    given = as_float(cases.get("labels", cases["mask"]))
    theirs = plain(name, "eager")
    for module in theirs.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for setting in ("dropout", "attention_dropout", "hidden_dropout_prob"):
            if isinstance(vars(module).get(setting), float):
                setattr(module, setting, 0.0)
    # FlauBERT and ALIGN keep probabilities of their own, as configured.
    for setting in ("dropout", "attention_dropout", "attention_probs_dropout_prob"):
        if hasattr(theirs.config, setting):
            setattr(theirs.config, setting, 0.0)
    ours = fastbert.accelerate(copy.deepcopy(theirs))
    losses = []
    for model in (theirs, ours):
        out = model.train(training)(**given)
        loss = out.loss if out.get("loss") is not None else out[0].square().mean()
        loss.backward()
        losses.append(loss)
    same(losses[0], losses[1])
    for (path, one), other in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), path
        if one.grad is not None:
            same(one.grad, other.grad, 1e-4)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_masks_of_every_kind(attention: str) -> None:
    theirs, ours = pair("BertModel", attention)
    ids = accelerating.IDS
    for mask in (MASK, MASK.bool(), MASK.float(), MASK.int(), torch.ones_like(MASK), MASK[:1]):
        with torch.no_grad():
            try:
                expected = theirs(input_ids=ids, attention_mask=mask)
            except (ValueError, RuntimeError) as error:
                with pytest.raises(type(error)):
                    ours(input_ids=ids, attention_mask=mask)
                continue
            same(expected, ours(input_ids=ids, attention_mask=mask))


@pytest.mark.parametrize("name", ["BertModel", "CamembertModel", "RemBertModel", "AlignTextModel"])
def test_a_head_that_leaves_out_the_pooler(name: str) -> None:
    import transformers

    theirs = plain(name)
    kind = getattr(transformers, name)
    theirs = kind(theirs.config, add_pooling_layer=False).eval()
    oracle.fill(theirs)
    ours = fastbert.accelerate(copy.deepcopy(theirs))
    same(accelerating.asked(theirs), accelerating.served(ours))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_precisions(dtype: torch.dtype) -> None:
    theirs, ours = (model.to(dtype) for model in pair("BertModel"))
    bound = {torch.float64: 1e-9, torch.bfloat16: 0.06, torch.float16: 0.01}[dtype]
    same(accelerating.asked(theirs), accelerating.served(ours), bound)
