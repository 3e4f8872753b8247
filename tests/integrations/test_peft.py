"""Adapters of peft: what they compute, and weights that they write to in ways torch does not count.

peft merges by `weight.data += x`. Whatever was packed from such a weight must not be used again.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
import training
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

import fastbert

HEADS = {
    "BertForSequenceClassification": "all-linear",
    "RemBertForMaskedLM": "all-linear",
    "CamembertForTokenClassification": "all-linear",
    "FlaubertWithLMHeadModel": ["q_lin", "out_lin", "lin1", "lin2", "proj"],
}
IDS, MASK = oracle.random_ids(), oracle.padded_mask()


def lora(target: Any) -> LoraConfig:
    return LoraConfig(r=4, target_modules=target, init_lora_weights=False)


@torch.no_grad()
def scores(model: Any) -> Tensor:
    """Twice, so that whatever is packed is packed."""
    model(IDS, attention_mask=MASK)
    return model(IDS, attention_mask=MASK)[0].clone()


def near(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= 2e-5 * other.abs().max())


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("run_before_merging", [False, True])
def test_a_merged_adapter_gives_the_adapted_results(name: str, run_before_merging: bool) -> None:
    model = training.pair(name)[1].eval()
    model.set_backend("auto")
    plain = scores(model)
    # The projection to the vocabulary is tied: merged, it would change the embeddings too.
    target = HEADS[name][:-1] if name.startswith("Flaubert") else HEADS[name]
    adapted = get_peft_model(model, lora(target)).eval()
    wanted = scores(copy.deepcopy(adapted))
    assert not near(wanted, plain)
    if run_before_merging:
        assert near(scores(adapted), wanted)
    assert near(scores(adapted.merge_and_unload()), wanted)


# peft leaves out the head by itself, of transformers' classes: what docs/training.md has one name.
EXCLUDED = {
    "BertForMaskedLM": "decoder",
    "RobertaForSequenceClassification": "classifier",
    "CamembertForMaskedLM": "decoder",
    "DistilBertForMaskedLM": "vocab_projector",
    "ElectraForMaskedLM": "generator_lm_head",
    "MPNetForMaskedLM": "decoder",
    "RemBertForMaskedLM": "decoder",
    "FlaubertModel": None,
}


def adapted_like(model: Any, config: LoraConfig, weights: dict[str, Tensor] | None) -> Any:
    adapted = get_peft_model(model, config).eval()
    if weights is not None:
        held = {name: value for name, value in weights.items() if "lora_" in name}
        assert held.keys() == {name for name in adapted.state_dict() if "lora_" in name}
        adapted.load_state_dict(held, strict=False)
    return adapted


@pytest.mark.parametrize("name", EXCLUDED)
def test_all_linear_adapts_what_it_adapts_in_transformers(name: str) -> None:
    theirs, ours = (model.float() for model in oracle.pair(name))
    ours.set_backend("auto")
    served = fastbert.accelerate(copy.deepcopy(theirs))
    task = "SEQ_CLS" if name.endswith("SequenceClassification") else None
    plain = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type=task)
    ours_config = copy.deepcopy(plain)
    if EXCLUDED[name] is not None:
        ours_config.exclude_modules = [EXCLUDED[name]]
    first = adapted_like(theirs, plain, None)
    weights = first.state_dict()
    wanted: Any = None
    for model in (
        first,
        adapted_like(ours, ours_config, weights),
        adapted_like(served, copy.deepcopy(plain), weights),
    ):
        outputs = model(IDS, attention_mask=MASK)[0]
        padded = outputs.shape[:2] == MASK.shape
        real = outputs[MASK.bool()] if padded else outputs
        (real * torch.linspace(-1.0, 1.0, real.numel()).view_as(real)).sum().backward()
        grads = {
            n: p.grad for n, p in model.named_parameters() if "lora_" in n and p.grad is not None
        }
        quiet = scores(model)
        found = real.detach(), quiet[MASK.bool()] if padded else quiet, grads
        wanted = wanted or found
        assert near(found[0], wanted[0]) and near(found[1], wanted[1])
        assert grads.keys() == wanted[2].keys()
        largest = max(float(grad.abs().max()) for grad in wanted[2].values())
        for one, grad in grads.items():
            assert (grad - wanted[2][one]).abs().max() <= 1e-4 * largest, one


def test_merging_can_be_undone() -> None:
    model = training.pair("BertForSequenceClassification")[1].eval()
    model.set_backend("auto")
    plain = scores(model)
    adapted = get_peft_model(model, lora("all-linear")).eval()
    wanted = scores(adapted)
    adapted.merge_adapter()
    assert near(scores(adapted), wanted)
    adapted.unmerge_adapter()
    assert near(scores(adapted), wanted)
    adapted.merge_adapter()
    adapted.unmerge_adapter()
    assert near(scores(adapted.unload()), plain)


def test_adapters_train_and_load_as_on_transformers(tmp_path: Path) -> None:
    name, found = "BertForSequenceClassification", []
    config = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "dense"])
    for number, model in enumerate(training.pair(name)):
        plain = copy.deepcopy(model)
        torch.manual_seed(0)
        adapted = get_peft_model(model, config)
        made = training.trainer(
            adapted,
            name,
            tmp_path / str(number),
            optim="sgd",
            learning_rate=0.05,
            save_strategy="steps",
            save_steps=3,
            gradient_checkpointing=True,
        )
        made.train()
        again = PeftModel.from_pretrained(plain, tmp_path / str(number) / "checkpoint-3").eval()
        found.append((training.logged(made, "loss", "grad_norm"), scores(adapted.eval())))
        assert near(scores(again), found[-1][1])
        made.train(resume_from_checkpoint=True)
    (losses, wanted), (ours, answers) = found
    assert ours == pytest.approx(losses, rel=1e-4)
    assert near(answers, wanted)


def test_all_linear_without_the_head_is_what_transformers_models_get() -> None:
    """peft leaves out the head by itself in classes of transformers alone."""
    name, found = "BertForSequenceClassification", []
    for model, left_out in zip(training.pair(name), (None, ["classifier"]), strict=True):
        config = LoraConfig(
            task_type="SEQ_CLS", target_modules="all-linear", exclude_modules=left_out
        )
        adapted = get_peft_model(model, config)
        found.append([key for key, value in adapted.named_parameters() if value.requires_grad])
    assert found[0] == found[1]
