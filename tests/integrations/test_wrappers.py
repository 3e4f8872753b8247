"""Noise, hooks and wrappers around parts of a model: numbers of transformers, or a sentence.

NEFTune hooks the table of words, accelerate hooks every module and takes its weights away, and
DistributedDataParallel stands around the model or its encoder.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
import training
from accelerate import cpu_offload, cpu_offload_with_hook, disk_offload, dispatch_model
from accelerate.hooks import attach_align_device_hook
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

NAMES = (
    "BertForSequenceClassification",
    "CamembertForTokenClassification",
    "FlaubertForSequenceClassification",
    "RemBertForMaskedLM",
)
IDS, MASK = oracle.random_ids(), oracle.padded_mask()


@torch.no_grad()
def answers(model: Any) -> Tensor:
    """Logits of real tokens, cold and warm."""
    found = torch.stack([model(IDS, attention_mask=MASK)[0] for _ in range(3)])
    return found[:, MASK == 1] if found.dim() == 4 else found


def both(name: str) -> tuple[Tensor, Any]:
    """What transformers' model answers, and our model, which has been used."""
    theirs, ours = (model.eval() for model in training.pair(name))
    ours.set_backend("auto")
    answers(ours)
    return answers(theirs), ours


def near(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).abs().max() <= 2e-5 * wanted.abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_noise_on_the_words_is_that_of_transformers(name: str, tmp_path: Path) -> None:
    found = []
    for alpha in (5.0, None):
        for model in training.pair(name):
            made = training.trainer(
                model, name, tmp_path, optim="sgd", learning_rate=0.01, neftune_noise_alpha=alpha
            )
            made.train()
            found.append(training.logged(made, "loss", "grad_norm"))
    theirs, ours, *without = found
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert ours != pytest.approx(without[0], rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_dropouts_may_be_set_after_building(name: str) -> None:
    """The attributes that transformers' modules have: 0 in all of them leaves no noise."""
    losses = []
    row = torch.utils.data.default_collate(training.Rows(name, 4).rows)
    for model in oracle.pair(name):
        model.float().train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            elif isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.0
        model.config.summary_first_dropout = 0.0
        loss = model(**row).loss
        loss.backward()
        norms = {key: float(p.grad.norm()) for key, p in model.named_parameters()}
        losses.append([loss.item(), *(norms[key] for key in sorted(norms))])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4, abs=1e-5 * max(losses[0]))


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_were_taken_away_end_in_a_sentence(name: str, tmp_path: Path) -> None:
    model = both(name)[1]
    for taken in (
        cpu_offload(copy.deepcopy(model), execution_device="cpu"),
        disk_offload(copy.deepcopy(model), tmp_path, execution_device="cpu"),
    ):
        with pytest.raises(NotImplementedError, match="load the model without offloading"):
            answers(taken)


@pytest.mark.parametrize("name", NAMES)
def test_hooks_of_accelerate_leave_the_numbers_as_they_are(name: str, tmp_path: Path) -> None:
    wanted, model = both(name)
    here = dispatch_model(copy.deepcopy(model), {"": "cpu"}, main_device="cpu", force_hooks=True)
    assert near(answers(here), wanted)
    later, hook = cpu_offload_with_hook(copy.deepcopy(model), execution_device="cpu")
    assert near(answers(later), wanted)
    hook.offload()
    assert near(answers(later), wanted)
    places = {
        key: "cpu" if key == model.base_model_prefix else "disk"
        for key, _ in model.named_children()
    }
    split = dispatch_model(copy.deepcopy(model), places, main_device="cpu", offload_dir=tmp_path)
    assert near(answers(split), wanted)
    for end in ("layer.1", "attentions.1", "LayerNorm", "layer_norm_emb"):
        one = copy.deepcopy(model)
        for part in [part for path, part in one.named_modules() if path.endswith(end)][:1]:
            attach_align_device_hook(part, execution_device="cpu", offload=True)
            assert near(answers(one), wanted), end


@pytest.fixture(scope="module")
def _alone() -> Iterator[None]:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", ["", "base"])
def test_distributed_around_a_model_or_its_encoder(name: str, part: str, _alone: None) -> None:
    wanted, model = both(name)
    norms = []
    theirs = training.pair(name)[0]
    place = model.base_model_prefix if part else ""
    if place:
        inner = DistributedDataParallel(getattr(model, place), find_unused_parameters=True)
        setattr(model, place, inner)
    else:
        model = DistributedDataParallel(model)
    assert near(answers(model), wanted)
    for one in (theirs, model):
        one.train()
        grid = one(IDS, attention_mask=MASK)[0]
        (grid[MASK == 1] if grid.dim() == 3 else grid).square().sum().backward()
        norms.append(sum(float(p.grad.norm()) for p in one.parameters() if p.grad is not None))
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
    model.eval()
    assert near(answers(model), wanted)
