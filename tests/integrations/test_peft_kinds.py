"""Every kind of adapter beside transformers' model with the same weights and the same adapter.

Adapters replace tables, norms and projections, wrap them, write to their weights behind torch's
back, or hand over embeddings and a cache. Whatever they do, the pass must see it, cold and warm.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import oracle
import peft
import pytest
import torch
import training
from torch import Tensor

BERT, CAMEMBERT, FLAUBERT, REMBERT = (
    "BertForSequenceClassification",
    "CamembertForTokenClassification",
    "FlaubertForSequenceClassification",
    "RemBertForMaskedLM",
)
FAMILIES = (BERT, CAMEMBERT, FLAUBERT, REMBERT)
TIED = ("BertForMaskedLM", "FlaubertWithLMHeadModel")
NORMS = r".*(LayerNorm|layer_norm\d\.\d+|layer_norm_emb)"


def parts(name: str) -> tuple[str, list[str], str]:
    """Names of the table of words, of projections, and of the last projection of a layer."""
    if name.startswith("Flaubert"):
        return "embeddings", ["q_lin", "v_lin"], "lin2"
    return "word_embeddings", ["query", "value"], "output.dense"


def config(kind: str, name: str) -> Any:
    words, inner, last = parts(name)
    if kind == "words":
        targets = [words, *inner]
        return peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    if kind == "dora":
        targets = [words, *inner]
        return peft.LoraConfig(r=4, use_dora=True, target_modules=targets, init_lora_weights=False)
    if kind == "saved":
        return peft.LoraConfig(
            r=4, target_modules=inner, modules_to_save=[words, "pooler", "classifier"]
        )
    if kind == "tokens":
        return peft.LoraConfig(
            r=4, target_modules=inner, trainable_token_indices={words: [4, 5, 9]}
        )
    if kind == "norms":
        return peft.LNTuningConfig(target_modules=NORMS)
    return peft.IA3Config(
        target_modules=[*inner, last], feedforward_modules=[last], init_ia3_weights=False
    )


def adapted(model: Any, chosen: Any) -> Any:
    """The model with an adapter whose weights follow from their names alone."""
    torch.manual_seed(0)
    made = peft.get_peft_model(model, chosen)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, value in sorted(made.named_parameters()):
            if value.requires_grad:
                value += 0.05 * torch.randn(value.shape, generator=generator)
    return made.eval()


def rows(name: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.utils.data.default_collate(training.Rows(name, 4).rows)
    return found


@torch.no_grad()
def answers(model: Any, row: dict[str, Tensor]) -> list[Tensor]:
    """Logits of real tokens of a cold and two warm passes."""
    found = [model(**row)["logits"].clone() for _ in range(3)]
    mask = row["attention_mask"]
    if found[0].dim() == 3:
        added = found[0].shape[1] - mask.shape[1]
        mask = torch.cat([mask.new_ones(len(mask), added), mask], dim=1)
        found = [logits[mask == 1] for logits in found]
    return found


def gradients(model: Any, row: dict[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    answer = model(**row)
    loss = answer["loss"] if "labels" in row else answer["logits"][:, 0].square().sum()
    loss.backward()
    found = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    # One of the families keeps zeros where the other has no gradient.
    return {key: value for key, value in found.items() if bool(value.any())}


def check(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    assert theirs.keys() == ours.keys()
    for what, wanted in theirs.items():
        if isinstance(wanted, list):
            for one, other in zip(wanted, ours[what], strict=True):
                bound = 3e-5 * float(one.abs().max())
                torch.testing.assert_close(other, one, rtol=0, atol=bound, msg=what)
            continue
        assert wanted.keys() == ours[what].keys(), what
        largest = max(float(value.abs().max()) for value in wanted.values())
        for key, value in wanted.items():
            bound = 1e-4 * max(float(value.abs().max()), 1e-3 * largest)
            torch.testing.assert_close(ours[what][key], value, rtol=0, atol=bound, msg=key)


def both(name: str) -> tuple[Any, Any]:
    theirs, ours = (model.eval() for model in training.pair(name))
    ours.set_backend("auto")
    return theirs, ours


KINDS = [
    *(("words", name) for name in (*FAMILIES, *TIED)),
    *(("saved", name) for name in (BERT, FLAUBERT, REMBERT)),
    *(("tokens", name) for name in (CAMEMBERT, FLAUBERT, TIED[0])),
    *(("norms", name) for name in FAMILIES),
    *(("ia3", name) for name in FAMILIES),
    ("dora", BERT),
    ("dora", FLAUBERT),
]


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_an_adapter_computes_what_it_does_on_transformers(
    kind: str, name: str, tmp_path: Path
) -> None:
    found, row = [], rows(name)
    for number, model in enumerate(both(name)):
        answers(model, row)  # so that there is something to forget
        made = adapted(model, config(kind, name))
        seen: dict[str, Any] = {"eval": answers(made, row), "eval grad": gradients(made, row)}
        seen["train grad"] = gradients(made.train(), row)
        seen["eval again"] = answers(made.eval(), row)
        with made.disable_adapter():
            seen["disabled"] = answers(made, row)
        made.save_pretrained(tmp_path / str(number))
        if kind != "saved":
            made.merge_adapter()
            seen["merged"] = answers(made, row)
            made.unmerge_adapter()
            seen["unmerged"] = answers(made, row)
        if kind != "norms":  # which peft has one of at most
            torch.manual_seed(2)
            made.add_adapter("second", config(kind, name))
            made.set_adapter("second")
            seen["second"] = answers(made, row)
            made.set_adapter("default")
        seen["unloaded"] = answers(made.merge_and_unload(), row)
        again = peft.PeftModel.from_pretrained(both(name)[number], tmp_path / str(number)).eval()
        seen["loaded"] = answers(again, row)
        found.append(seen)
    check(*found)


PROMPTS = [
    *((kind, name) for kind in ("prompt", "encoder") for name in (BERT, CAMEMBERT, FLAUBERT)),
    *((kind, name) for kind in ("prefix", "projected") for name in (BERT, CAMEMBERT)),
    ("prefix", "BertLMHeadModel"),
]
TASKS = {"Sequence": "SEQ_CLS", "Token": "TOKEN_CLS", "LMHead": "CAUSAL_LM"}


@pytest.mark.parametrize(("kind", "name"), PROMPTS)
def test_a_learned_prompt_or_prefix_computes_what_it_does_on_transformers(
    kind: str, name: str, tmp_path: Path
) -> None:
    found, row = [], rows(name)
    if "Sequence" not in name:
        del row["labels"]  # which peft gives none for the tokens of a prompt
    chosen: dict[str, Any] = {
        "task_type": next(task for part, task in TASKS.items() if part in name),
        "num_virtual_tokens": 3,
        "token_dim": oracle.HIDDEN,
        "num_layers": oracle.LAYERS,
        "num_attention_heads": oracle.HEADS,
    }
    for number, model in enumerate(both(name)):
        answers(model, row)
        if kind == "prompt":
            made = adapted(model, peft.PromptTuningConfig(**chosen))
        elif kind == "encoder":
            made = adapted(model, peft.PromptEncoderConfig(**chosen, encoder_hidden_size=16))
        else:
            more = {"prefix_projection": kind == "projected", "encoder_hidden_size": 16}
            made = adapted(model, peft.PrefixTuningConfig(**chosen, **more))
        seen: dict[str, Any] = {"eval": answers(made, row), "eval grad": gradients(made, row)}
        seen["train grad"] = gradients(made.train(), row)
        made.eval().save_pretrained(tmp_path / str(number))
        again = peft.PeftModel.from_pretrained(both(name)[number], tmp_path / str(number)).eval()
        seen["loaded"] = answers(again, row)
        found.append(seen)
    check(*found)
