"""What programs do with models: copy, pickle, cast, train, hook, trace, and call them badly."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import align_pair
import apertus_pair
import numpy as np
import oracle
import pytest
import torch
from torch import Tensor

import fastbert

NAMES = [
    "BertForMaskedLM",
    "CamembertForSequenceClassification",
    "FlaubertForQuestionAnswering",
    "FlaubertWithLMHeadModel",
    "RemBertForTokenClassification",
]


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest) -> Any:
    """In float32, on the kernels, and used once, so that weights are packed."""
    _, ours = oracle.pair(request.param)
    ours = ours.float()
    ours.set_backend("cpu")
    answer(ours)
    return ours


def answer(model: Any) -> Tensor:
    with torch.no_grad():
        return model(oracle.random_ids(), attention_mask=oracle.padded_mask())[0]


def through_pickle(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


def through_torch_save(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def through_state_dict(model: Any) -> Any:
    other = type(model)(copy.deepcopy(model.config)).eval()
    answer(other)  # what it packed from its own weights must not stay
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    return other


WAYS = [copy.deepcopy, through_pickle, through_torch_save, through_state_dict]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_copies_answer_alike(model: Any, way: Callable[[Any], Any]) -> None:
    other = way(model)
    assert torch.equal(answer(other), answer(model))
    tied = model.tied_weights()
    for target, source in tied.items():
        assert other.get_parameter(target) is other.get_parameter(source)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert not torch.equal(answer(other), answer(model)), "the copy shares weights"


@pytest.mark.parametrize("way", WAYS[:3], ids=lambda way: way.__name__)
def test_copies_of_int8_models(way: Callable[[Any], Any], tmp_path: Path) -> None:
    _, ours = oracle.pair("BertForMaskedLM")
    ours.float().save_pretrained(tmp_path)
    model = fastbert.BertForMaskedLM.from_pretrained(tmp_path, quantization="int8")
    before = answer(model)
    assert torch.equal(answer(way(model)), before)
    assert model.num_parameters() == ours.num_parameters()


def scaled_in_place(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)


def scaled_through_data(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.5


def trained(model: Any) -> None:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(2):
        model(oracle.random_ids())[0].square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def cast_there_and_back(model: Any) -> None:
    answer(model.bfloat16())
    model.float()


@pytest.mark.parametrize(
    "change", [scaled_in_place, scaled_through_data, trained, cast_there_and_back]
)
def test_changed_weights_are_the_ones_used(change: Callable[[Any], None]) -> None:
    _, model = oracle.pair("BertForMaskedLM")
    model = model.float()
    model.set_backend("cpu")
    before = answer(model)
    change(model)
    got = answer(model)
    model.set_backend("reference")
    wanted = answer(model)
    assert float((got - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())
    assert not torch.equal(got, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_casts(model: Any, dtype: torch.dtype) -> None:
    before = answer(model)
    model.set_backend("auto")
    cast = model.to(dtype)
    got = answer(cast)
    assert cast.dtype is dtype and got.dtype is dtype
    if "QuestionAnswering" not in type(model).__name__:  # whose first field is sorted
        scale = float(before.abs().max())
        bound = {torch.float16: 0.02, torch.bfloat16: 0.15, torch.float64: 1e-5}[dtype]
        assert float((got.float() - before).abs().max()) <= bound * scale


def test_threads_share_a_model(model: Any) -> None:
    wanted = answer(model)
    fresh = copy.deepcopy(model)  # nothing is packed yet: the threads meet there too
    found: list[Tensor] = []
    threads = [threading.Thread(target=lambda: found.append(answer(fresh))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6 and all(torch.equal(one, wanted) for one in found)


def test_a_training_loop_learns(model: Any) -> None:
    model.set_backend("auto")
    model.train()
    if model.supports_gradient_checkpointing:
        model.gradient_checkpointing_enable()
    ids, mask = oracle.random_ids(), oracle.padded_mask()
    name = type(model).__name__
    labels: dict[str, Tensor] = {"labels": ids.masked_fill(mask == 0, -100)}
    if "TokenClassification" in name:
        labels = {"labels": (ids % 2).masked_fill(mask == 0, -100)}
    elif "SequenceClassification" in name:
        labels = {"labels": torch.tensor([0, 1, 1, 0])}
    elif "QuestionAnswering" in name:
        labels = {"start_positions": torch.arange(4), "end_positions": torch.arange(4) + 1}
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    losses = []
    for _ in range(8):
        loss = model(ids, attention_mask=mask, **labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_hooks_run_wherever_they_are() -> None:
    _, model = oracle.pair("BertModel")
    model = model.float()
    model.set_backend("cpu")
    before = answer(model)
    heard: list[Any] = []
    layer = model.encoder.layer[0]
    handle = layer.attention.self.query.register_forward_hook(lambda *_: heard.append(1))
    assert torch.equal(answer(model), before) or torch.allclose(answer(model), before, atol=1e-5)
    assert heard
    handle.remove()
    for part in (layer, layer.attention, layer.intermediate.intermediate_act_fn, model.pooler):
        for register in (part.register_forward_hook, part.register_forward_pre_hook):
            heard.clear()
            handle = register(lambda *_: heard.append(1))
            assert torch.allclose(answer(model), before, atol=1e-5)
            assert heard == [1]
            handle.remove()
    assert torch.equal(answer(model), before)
    _, squad = oracle.pair("FlaubertForQuestionAnswering")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        handle = squad.qa_outputs.register_forward_hook(lambda *_: heard.append(2))
    answer(squad)
    assert heard[-1] == 2


def test_what_is_no_input() -> None:
    _, model = oracle.shared_pair("BertForMaskedLM")
    ids = oracle.random_ids()
    mask = oracle.padded_mask()
    with pytest.raises(TypeError, match="input_ids must be integers, but the tensor holds"):
        model(ids.double())
    with pytest.raises(TypeError, match="input_ids must be a torch tensor, not a list"):
        model(ids.tolist())
    with pytest.raises(TypeError, match="input_ids must be a torch tensor, not a ndarray"):
        model(np.zeros((2, 3), dtype=np.int64))
    with pytest.raises(TypeError, match="inputs_embeds must be floating"):
        model(inputs_embeds=torch.zeros(1, 2, oracle.HIDDEN, dtype=torch.long))
    with pytest.raises(ValueError, match=r"input_ids \(batch, length\) has 2 dimensions"):
        model(ids[0])
    with pytest.raises(ValueError, match=r"labels must hold one class for each of \(4, 7\)"):
        model(ids, labels=ids[:, :3])
    with pytest.raises(NotImplementedError, match=r"torch\.jit\.trace would record"):
        torch.jit.trace(model, (ids, mask), strict=False, check_trace=False)
    with torch.no_grad():
        wanted = model(ids, attention_mask=mask).logits
        for kind in (torch.int32, torch.uint8, torch.int16):
            assert torch.equal(model(ids.to(kind), attention_mask=mask.bool()).logits, wanted)
        turned = ids.t().contiguous().t()
        assert torch.equal(model(turned, mask.float()).logits, wanted)


def test_saving_over_another_format(tmp_path: Path) -> None:
    """What was saved last is what is read: no file of an earlier format stays in front of it."""
    models = [oracle.pair("BertForMaskedLM")[1].float() for _ in range(3)]
    for number, model in enumerate(models):
        with torch.no_grad():
            model.cls.predictions.bias.fill_(number)
    ways: list[dict[str, Any]] = [{}, {"max_shard_size": "9KB"}, {"safe_serialization": False}]
    for first in ways:
        for second in ways:
            folder = tmp_path / f"{ways.index(first)}{ways.index(second)}"
            models[0].save_pretrained(folder, **first)
            models[1].save_pretrained(folder, **second)
            read = fastbert.BertForMaskedLM.from_pretrained(folder)
            assert float(read.cls.predictions.bias[0].detach()) == 1.0, (first, second)
    models[2].save_pretrained(tmp_path / "00", is_main_process=False)
    read = fastbert.BertForMaskedLM.from_pretrained(tmp_path / "00")
    assert float(read.cls.predictions.bias[0].detach()) == 1.0
    with pytest.raises(ValueError, match="upload_folder"):
        models[0].save_pretrained(tmp_path / "00", push_to_hub=True)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", ["BertModel", "MPNetModel", "FlaubertModel", "ApertusModel"])
def test_inputs_without_values_end_in_a_sentence(name: str, grad: bool) -> None:
    """Whichever input lies on the device meta, ids, masks, positions or hidden states."""
    apertus = name == "ApertusModel"
    ours: Any = apertus_pair.pair(name)[0] if apertus else oracle.shared_pair(name)[1]
    table = ours.get_input_embeddings().weight
    ids = torch.ones(2, 3, dtype=torch.long)
    given = {
        "attention_mask": ids, "position_ids": torch.arange(3).expand(2, 3),
        "token_type_ids": ids * 0, "langs": ids * 0, "lengths": torch.tensor([3, 2]),
    }  # fmt: skip
    taken = inspect.signature(ours.forward).parameters
    embeds = torch.zeros(2, 3, table.shape[1], dtype=table.dtype, device="meta")
    cases: list[dict[str, Any]] = [{"input_ids": ids.to("meta")}, {"inputs_embeds": embeds}]
    cases += [{"input_ids": ids, n: t.to("meta")} for n, t in given.items() if n in taken]
    for case in cases:
        with torch.set_grad_enabled(grad), pytest.raises(ValueError, match=r"device meta.* on cpu"):
            ours(**case)
    with torch.set_grad_enabled(grad), pytest.raises(NotImplementedError, match="hold no values"):
        copy.deepcopy(ours).to("meta")(ids.to("meta"))


def test_images_without_values_end_in_a_sentence(tmp_path: Path) -> None:
    ours, _ = align_pair.pair(tmp_path)
    pixels = align_pair.inputs()["pixel_values"].to("meta")
    with pytest.raises(ValueError, match=r"pixel_values lies on the device meta.* on cpu"):
        ours.vision_model(pixels)
