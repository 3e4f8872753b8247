"""Adapters of peft: what they compute, and weights that they write to in ways torch does not count.

peft merges by `weight.data += x`. Whatever was packed from such a weight must not be used again.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import oracle
import peft
import pytest
import torch
import training
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

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


@pytest.mark.parametrize(
    "config",
    [
        peft.IA3Config(task_type="SEQ_CLS", init_ia3_weights=False),
        LoraConfig(r=4, use_dora=True, target_modules=["query"], init_lora_weights=False),
        LoraConfig(target_modules=["query"], modules_to_save=["classifier", "pooler"]),
        peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3),
    ],
    ids=lambda config: type(config).__name__,
)
def test_other_adapters_compute_what_they_do_on_transformers(config: Any) -> None:
    found = []
    for model in training.pair("BertForSequenceClassification"):
        torch.manual_seed(0)
        adapted = get_peft_model(model, copy.deepcopy(config))
        row = torch.utils.data.default_collate(
            training.Rows("BertForSequenceClassification", 4).rows
        )
        adapted(**row).loss.backward()
        gradients = [p.grad for p in adapted.parameters() if p.grad is not None]
        found.append((scores(adapted.eval()), sorted(float(g.norm()) for g in gradients)))
    assert near(found[1][0], found[0][0])
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-4, abs=1e-6)
