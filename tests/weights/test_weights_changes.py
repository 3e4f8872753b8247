"""Prepared encoders follow their model: every change of a weight or a module that torch knows of.

Each change is made to a model that has run, once or several times, on the CPU's prepared encoder
and on a GPU's (with the CPU's kernels in the place of a device's). What the model answers next has
the bits of a copy that has packed nothing yet.
"""

from __future__ import annotations

import copy
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from following import IDS, answer, check, made, part
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules
from torch.nn.utils import parametrizations, parametrize, prune, vector_to_parameters

import fastbert
from fastbert.engine.gpu_encoder import GpuEncoder
from fastbert.kernels import native
from fastbert.layers.linear import Linear
from fastbert.modeling.quantization import quantize

pytestmark = pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))


def lora(model: Any, merge: bool) -> None:
    """What peft does: a module around a projection; merging writes to `.data`."""
    parent, base = model.bert.encoder.layer[1].attention.self, part(model)

    class Adapter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_layer = base
            self.in_features, self.out_features = base.in_features, base.out_features
            self.a, self.b = nn.Linear(48, 4, bias=False), nn.Linear(4, 48, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.base_layer(x) + self.b(self.a(x))
            return out

    parent.query = Adapter()
    if merge:
        adapter = parent.query
        check(model, None)
        base.weight.data += adapter.b.weight @ adapter.a.weight
        parent.query = base


class Doubled(Linear):
    """Twice a projection."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return 2.0 * super().forward(*args, **kwargs)


class Negative(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return -x


def averaged(model: Any) -> None:
    for mean, value in zip(model.parameters(), made().parameters(), strict=True):
        mean.copy_(torch.lerp(mean, value, 0.25))


def parametrized(model: Any) -> None:
    parametrize.register_parametrization(part(model), "weight", Negative())
    parametrize.register_parametrization(
        model.bert.encoder.layer[0].output.LayerNorm, "weight", Negative()
    )


def parametrized_then_written(model: Any) -> None:
    parametrized(model)
    check(model, None)
    part(model).parametrizations.weight.original.mul_(0.5)
    norm = model.bert.encoder.layer[0].output.LayerNorm
    norm.parametrizations.weight.original.mul_(0.5)


def weight_normed(model: Any) -> None:
    parametrizations.weight_norm(part(model))
    check(model, None)
    part(model).parametrizations.weight.original0.mul_(2.0)


def old_weight_normed(model: Any) -> None:
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(part(model))
    check(model, None)
    part(model).weight_g.mul_(2.0)


def pruned_by_torch(model: Any) -> None:
    prune.l1_unstructured(part(model), "weight", 0.5)
    check(model, None)
    prune.remove(part(model), "weight")


def square(model: Any) -> None:
    part(model).weight.data = part(model).weight.data.t()


def swapped_memory(model: Any) -> None:
    """Away to other memory and back to memory of the same size, between two passes."""
    weight = part(model).weight
    for _ in range(3):
        weight.data = torch.randn(48, 48)


def vector(model: Any) -> None:
    count = sum(parameter.numel() for parameter in model.parameters())
    vector_to_parameters(torch.randn(count) * 0.2, model.parameters())


def moved(model: Any) -> None:
    model.share_memory()
    model.classifier.bias.add_(1.0)


def without_padding(model: Any) -> None:
    model.bert.embeddings.word_embeddings.weight.data = (
        model.bert.embeddings.word_embeddings.weight.data[1:41]
    )


def class_swapped(model: Any) -> None:
    part(model).__class__ = Doubled


def replaced_config(model: Any) -> None:
    model.bert.config = copy.deepcopy(model.config)
    model.bert.config.is_decoder = True


CHANGES: dict[str, Callable[[Any], object]] = {
    "in place": lambda m: part(m).weight.mul_(2.0),
    "one element": lambda m: part(m).weight[3, 4].add_(1.0),
    "through a view": lambda m: part(m).weight.view(-1)[7:9].fill_(3.0),
    "through detach": lambda m: part(m).weight.detach().t()[5].zero_(),
    "bias": lambda m: part(m).bias[0].add_(1.0),
    "down bias": lambda m: m.bert.encoder.layer[0].output.dense.bias[0].add_(1.0),
    "norm": lambda m: m.bert.encoder.layer[0].output.LayerNorm.weight[0].add_(1.0),
    "embedding norm": lambda m: m.bert.embeddings.LayerNorm.bias[0].add_(1.0),
    "embedding row": lambda m: m.bert.embeddings.word_embeddings.weight[6].add_(1.0),
    "pooler": lambda m: m.bert.pooler.dense.weight[0].add_(1.0),
    "head": lambda m: m.classifier.weight[0, 0].add_(1.0),
    "loaded": lambda m: m.load_state_dict(made().state_dict()),
    "assigned": lambda m: m.load_state_dict(made().state_dict(), assign=True),
    "bfloat16": lambda m: m.to(torch.bfloat16),
    "half": lambda m: m.half(),
    "double": lambda m: m.double(),
    "there and back": lambda m: (m.bfloat16(), m.float()),
    "averaged": averaged,
    "swapped tensors": lambda m: torch.utils.swap_tensors(
        part(m).weight, nn.Parameter(torch.randn(48, 48), requires_grad=True)
    ),
    "data replaced": swapped_memory,
    "data transposed": square,
    "from a vector": vector,
    "shared": moved,
    "table cut": without_padding,
    "parameter": lambda m: setattr(part(m), "weight", nn.Parameter(torch.randn(48, 48))),
    "no bias": lambda m: setattr(part(m), "bias", None),
    "module": lambda m: setattr(m.bert.encoder.layer[0].intermediate, "dense", Linear(48, 100)),
    "layers": lambda m: m.bert.encoder.layer.insert(0, copy.deepcopy(m.bert.encoder.layer[1])),
    "class": class_swapped,
    "hook": lambda m: part(m).register_forward_hook(lambda _m, _i, out: out + 1.0),
    "pre-hook": lambda m: part(m).register_forward_pre_hook(lambda _m, a: (2 * a[0], *a[1:])),
    "forward": lambda m: setattr(part(m), "forward", lambda x, *_, **__: torch.ones_like(x)),
    "eps": lambda m: setattr(m.bert.encoder.layer[0].output.LayerNorm, "eps", 0.5),
    "config": lambda m: setattr(m.config, "is_decoder", True),
    "another config": replaced_config,
    "parametrized": parametrized,
    "parametrized, then written": parametrized_then_written,
    "weight_norm": weight_normed,
    "old weight_norm": old_weight_normed,
    "torch's pruning": pruned_by_torch,
    "pruned heads": lambda m: m.prune_heads({1: [0]}),
    "quantised": quantize,
    "LoRA": lambda m: lora(m, merge=False),
    "LoRA merged": lambda m: lora(m, merge=True),
}


@pytest.mark.parametrize("passes", [1, 4], ids=["cold", "warm"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_followed(name: str, passes: int, engine: str) -> None:
    model = made()
    for _ in range(passes):
        before = answer(model)
    CHANGES[name](model)
    check(model, before)


def test_the_engines_are_the_ones_meant(engine: str) -> None:
    model = made()
    answer(model)
    entry = model.bert.encoder_cache._entry
    assert isinstance(entry.encoder, GpuEncoder) == (engine == "gpu")
    assert len(entry.view.copied) == (0 if engine == "gpu" else 19)


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_kernels_of_a_gpu_pack_int8_weights_only(backend: str) -> None:
    """ModelSnapshot follows what a GPU's encoder copies: joined projections and what is packed."""
    package = {"triton": "fastbert.triton_kernels", "cuda": "fastbert.kernels.cuda"}[backend]
    folder = importlib.util.find_spec(package).submodule_search_locations[0]
    sources = [path.read_text(encoding="utf-8") for path in Path(folder).glob("*.py")]
    assert sources
    assert not any(re.search(r"(?<!int8_)linear_prepack\b", source) for source in sources)


@pytest.mark.parametrize("passes", [1, 4], ids=["cold", "warm"])
@pytest.mark.parametrize("hooks", ["forward", "forward_pre"])
def test_hooks_on_all_modules_are_followed(hooks: str, passes: int, engine: str) -> None:
    model = made()
    for _ in range(passes):
        before = answer(model)

    seen: list[nn.Module] = []

    def change(module: nn.Module, given: Any, *out: Tensor) -> Any:
        seen.append(module)
        if not isinstance(module, nn.Linear):
            return None
        return out[0] + 1.0 if out else (given[0] + 1.0, *given[1:])

    handle = getattr(torch_modules, f"register_module_{hooks}_hook")(change)
    try:
        check(model, before)
        block = model.bert.encoder.layer[1]
        assert {part(model), block.output.LayerNorm, model.bert.pooler.dense} <= set(seen)
        assert model.bert.embeddings.word_embeddings in seen
    finally:
        handle.remove()
    assert torch.equal(answer(model), before)


def test_modes_do_not_change_what_is_packed(engine: str) -> None:
    model = made()
    before = answer(model)
    encoder = model.bert.encoder_cache._entry.encoder
    model.train()
    model(IDS)
    model.eval()
    assert torch.equal(answer(model), before)
    assert model.bert.encoder_cache._entry.encoder is encoder


def test_weights_made_in_inference_mode_are_followed(engine: str) -> None:
    with torch.inference_mode():
        model = made()
        for _ in range(3):
            before = answer(model)
            part(model).weight[3, 4] += 1.0
            model.classifier.weight[0, 0] += 1.0
            check(model, before)
        assert "every pass" in fastbert.explain(model)


def loaded(model: Any, path: Path, how: str) -> Any:
    if how == "from_config":
        return fastbert.AutoModelForSequenceClassification.from_config(model.config)
    given = {"quantization": "int8"} if how == "int8" else {}
    return type(model).from_pretrained(path, **given)


@pytest.mark.parametrize("how", ["from_pretrained", "int8", "from_config"])
def test_weights_loaded_in_inference_mode_are_ordinary_ones(how: str, tmp_path: Path) -> None:
    """Or every pass of a program that runs in inference mode would read all of them once more."""
    made().save_pretrained(tmp_path)
    with torch.inference_mode():
        model = loaded(made(), tmp_path, how).eval()
        answer(model)
        assert "every pass" not in fastbert.explain(model)
    assert not any(tensor.is_inference() for tensor in model.state_dict().values())
    model.classifier.weight.requires_grad_(True)
    with torch.enable_grad():
        model(IDS).logits.sum().backward()
    assert model.classifier.weight.grad is not None


def test_int8_weights_are_followed(engine: str) -> None:
    model = made()
    quantize(model)
    before = answer(model)
    for tensor in (part(model).qweight, part(model).weight_scale, part(model).bias):
        tensor.copy_(tensor.flip(0))
        check(model, before)
        before = answer(model)


def test_a_table_that_was_cut_refuses_what_it_lost() -> None:
    model = made()
    answer(model)
    weight = model.bert.embeddings.word_embeddings.weight
    weight.data = weight.data[:20]
    assert torch.equal(answer(model), answer(copy.deepcopy(model)))
    with pytest.raises(IndexError):
        model(torch.tensor([[30]]))


def test_a_resized_vocabulary_is_followed(engine: str) -> None:
    model = fastbert.BertForMaskedLM(made().config).eval()
    before = model(IDS).logits
    model.resize_token_embeddings(60)
    for _ in range(2):
        logits = model(IDS).logits
        assert logits.shape[-1] == 60
        assert torch.equal(logits, copy.deepcopy(model)(IDS).logits)
        model.get_input_embeddings().weight[55].add_(1.0)
    assert not torch.equal(model(IDS).logits, logits) and before.shape != logits.shape
