"""Prepared encoders follow their model: every change that torch knows of, and no other work.

Each change is made to a model that has run, once or several times, on the CPU's prepared encoder
and on a GPU's (with the CPU's kernels in the place of a device's). What the model answers next has
the bits of a copy that has packed nothing yet.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import importlib.util
import logging
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules
from torch.nn.utils import parametrizations, parametrize, prune, vector_to_parameters

import fastbert
from fastbert.engine import encoder_cache
from fastbert.engine.gpu_encoder import GpuEncoder
from fastbert.kernels import native
from fastbert.layers.linear import Linear
from fastbert.modeling.quantization import quantize
from fastbert.runtime import versions
from fastbert.runtime.plan import Plan

pytestmark = pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))

IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])
LABELS = torch.tensor([0, 1])
ENGINES = ("cpu", "gpu")


class Recorder:
    """Replays a pass by running it again."""

    def busy(self) -> bool:
        return False

    def turn(self, buffers: tuple[Tensor, ...]) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def record(self, run: Callable[[], None]) -> Any:
        class Replay:
            def replay(self) -> None:
                run()

        return Replay()

    def settle(self) -> None:
        pass


def with_short_offsets(plan: Plan) -> Plan:
    """The plan with an attention that takes offsets short of its rows, as a GPU's does."""

    def attention(q: Tensor, k: Tensor, v: Tensor, cu: Tensor, *rest: Any) -> Tensor:
        total, longest = int(cu[-1]), int(cu.diff().max())
        out = torch.zeros_like(q)
        parts = (q[:total], k[:total], v[:total])
        out[:total] = plan.attention_varlen(*parts, cu, cu, longest, longest, rest[3], False)
        return out

    choices = tuple(
        dataclasses.replace(choice, function=attention)
        if choice.op == "attention_varlen"
        else choice
        for choice in plan.choices
    )
    return dataclasses.replace(plan, choices=choices)


def pretend_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder of a GPU, which reads most weights in place, over the CPU's kernels."""

    def encoder(blocks: Any, plan: Plan) -> GpuEncoder:
        return GpuEncoder(blocks, with_short_offsets(plan), Recorder())

    monkeypatch.setattr(encoder_cache, "on_cpu", lambda device: False)
    monkeypatch.setattr(Plan, "prepack", lambda *_: None)
    monkeypatch.setattr(encoder_cache, "GpuEncoder", encoder)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "gpu":
        pretend_gpu(monkeypatch)
    return str(request.param)


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def made(**changes: Any) -> Any:
    sizes = {
        "vocab_size": 50, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3,
        "intermediate_size": 100, "num_labels": 7,
    }  # fmt: skip
    config = fastbert.BertConfig(**(sizes | changes))
    model = fastbert.BertForSequenceClassification(config).eval()
    for parameter in model.parameters():
        parameter.normal_(0.1, 0.2)
    return model


def answer(model: Any, ids: Tensor = IDS) -> Tensor:
    hidden = model.bert(ids).last_hidden_state
    return torch.cat([hidden.flatten(), model(ids).logits.flatten()])


def check(model: Any, before: Tensor | None) -> None:
    """The model answers as one that has packed nothing, and otherwise than before."""
    after = answer(model)
    fresh = copy.deepcopy(model)
    assert torch.equal(after, answer(fresh))
    assert torch.equal(answer(model), after)
    if before is not None:
        assert after.shape != before.shape or not torch.equal(after, before.to(after.dtype))


def train(model: Any, mode: bool = True) -> None:
    """Give all weights that want them gradients, with the model in train() or eval()."""
    with torch.enable_grad():
        model.train(mode)(IDS, labels=LABELS).loss.backward()
    model.eval()


def part(model: Any) -> Any:
    return model.bert.encoder.layer[1].attention.self.query


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
    model.bert.config.hidden_act = "relu"


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
    "config": lambda m: setattr(m.config, "hidden_act", "relu"),
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
    assert len(entry.view.copied) == (12 if engine == "gpu" else 36)


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


# Optimizers

KINDS: dict[str, dict[str, Any]] = {
    "fused": {"fused": True}, "foreach": {"foreach": True},
    "single": {"fused": False, "foreach": False},
}  # fmt: skip
OPTIMIZERS = ("SGD", "Adam", "AdamW", "Adagrad")


@pytest.mark.parametrize("passes", [1, 4], ids=["cold", "warm"])
@pytest.mark.parametrize("cleared", [True, False], ids=["zero_grad", "gradients stay"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_are_followed(
    name: str, kind: str, cleared: bool, passes: int, engine: str
) -> None:
    model = made()
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=1e-2, **KINDS[kind])
    for mode in (True, False):  # train() and eval()
        for _ in range(2):
            for _ in range(passes):
                before = answer(model)
            train(model, mode)
            optimizer.step()
            if cleared:
                optimizer.zero_grad()
            check(model, before)


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_a_pass_between_forward_and_backward_does_not_hide_a_step(mode: bool, engine: str) -> None:
    model = made()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, fused=True)
    before = answer(model)
    for output in ("logits", "hidden_states", "attentions"):
        asked = {} if output == "logits" else {f"output_{output}": True}
        with torch.enable_grad():
            out = getattr(model.train(mode)(IDS, **asked), output)
        model.eval()
        assert torch.equal(answer(model), before)
        with torch.enable_grad():
            (out if output == "logits" else out[1]).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        check(model, before)
        before = answer(model)


def test_gradients_set_by_hand_are_seen_while_they_are_set(engine: str) -> None:
    model = made()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, fused=True)
    for weight in (part(model).weight, part(model).bias, model.classifier.weight):
        for _ in range(2):
            before = answer(model)
            weight.grad = torch.ones_like(weight)
            optimizer.step()
            check(model, before)
        weight.requires_grad_(False)
        before = answer(model)
        optimizer.step()
        check(model, before)
        weight.grad = None


@pytest.mark.parametrize("name", ["classifier", "bert.pooler", "bert.embeddings.LayerNorm"])
def test_one_part_alone_is_trained(name: str, engine: str) -> None:
    model = made().requires_grad_(False)
    trained = model.get_submodule(name).requires_grad_(True)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-2, fused=True)
    for mode in (True, False):
        for _ in range(2):
            before = answer(model)
            train(model, mode)
            optimizer.step()
            optimizer.zero_grad()
            check(model, before)


@pytest.mark.parametrize("name", ["", "classifier", "bert.pooler"])
def test_a_compiled_training_step_is_followed(name: str) -> None:
    model = made().requires_grad_(False)
    trained = model.get_submodule(name).requires_grad_(True)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-2, fused=True)
    compiled = torch.compile(model, backend="eager")
    for _ in range(2):
        before = answer(model)
        train(compiled)
        optimizer.step()
        optimizer.zero_grad()
        check(model, before)


def test_a_compiled_encoder_is_followed() -> None:
    model = fastbert.BertModel(made().config, add_pooling_layer=False).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    compiled = torch.compile(model, backend="eager")
    for _ in range(2):
        before = model(IDS).last_hidden_state
        with torch.enable_grad():
            compiled.train()(IDS).last_hidden_state.square().sum().backward()
        model.eval()
        optimizer.step()
        optimizer.zero_grad()
        after = model(IDS).last_hidden_state
        assert torch.equal(after, copy.deepcopy(model)(IDS).last_hidden_state)
        assert not torch.equal(after, before)


# What is compared, and when


class Counted:
    """Counts packings and the tensors whose bytes were read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.packed = self.read = 0
        encoder, bytes_of = encoder_cache.CpuEncoder, versions._bytes_of

        def pack(*args: Any) -> Any:
            self.packed += 1
            return encoder(*args)

        def read(tensor: Tensor) -> Any:
            self.read += 1
            return bytes_of(tensor)

        monkeypatch.setattr(encoder_cache, "CpuEncoder", pack)
        monkeypatch.setattr(versions, "_bytes_of", read)

    def of(self, run: Callable[[], object]) -> tuple[int, int]:
        self.packed = self.read = 0
        run()
        return self.packed, self.read


def test_nothing_is_compared_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    model = made()
    assert counted.of(lambda: model(IDS)) == (1, 0)
    assert counted.of(lambda: model(IDS)) == (0, 0)
    part(model).weight.add_(1.0)
    assert counted.of(lambda: model(IDS)) == (1, 0)
    with torch.enable_grad():
        for _ in range(2):
            assert counted.of(lambda: model(IDS)) == (0, 0)


def test_gradients_cost_comparisons_until_they_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    model = made()
    model(IDS)
    assert "every pass" not in fastbert.explain(model)
    train(model)
    assert "model.zero_grad()" in fastbert.explain(model)
    # Packed again, since nobody kept bytes to compare with: 36 tensors of the encoder, 1 head.
    assert counted.of(lambda: model(IDS)) == (1, 37)
    for _ in range(2):
        assert counted.of(lambda: model(IDS)) == (0, 37)
    model.zero_grad()
    assert "every pass" not in fastbert.explain(model)
    model(IDS)
    assert counted.of(lambda: model(IDS)) == (0, 0)
    train(model)
    model.zero_grad()
    assert counted.of(lambda: model(IDS)) == (0, 37)
    assert counted.of(lambda: model(IDS)) == (0, 0)


def test_changed_weights_are_packed_for_the_second_pass_with_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = Counted(monkeypatch)
    model = made()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with torch.enable_grad():
        assert counted.of(lambda: model(IDS)) == (1, 0)
        for fused in (False, True):
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, fused=fused)
            for _ in range(3):
                train(model, mode=False)
                optimizer.step()
                optimizer.zero_grad()
                assert counted.of(lambda: model(IDS))[0] == 0
            assert counted.of(lambda: model(IDS))[0] == 1
            assert counted.of(lambda: model(IDS))[0] == 0
    part(model).weight.add_(1.0)
    assert counted.of(lambda: model(IDS))[0] == 1


# Raw writes

RAW: dict[str, Callable[[Tensor], object]] = {
    "data": lambda w: w.data[1, 2].add_(1.0),
    "numpy": lambda w: w.detach().numpy().__setitem__((1, 2), 5.0),
    "dlpack": lambda w: torch.from_dlpack(w.detach())[1, 2].add_(1.0),
    "storage": lambda w: w.untyped_storage().__setitem__(4 * w.shape[1] + 3, 66),
    "peft": lambda w: setattr(w, "data", w.data.add_(0.1)),
}
RAW_WEIGHTS = ("bert.encoder.layer.1.attention.self.query.weight", "classifier.weight")


@pytest.mark.parametrize("name", RAW_WEIGHTS)
@pytest.mark.parametrize("write", RAW)
def test_raw_writes_are_followed_after_refresh(write: str, name: str, engine: str) -> None:
    model = made()
    before = answer(model)
    RAW[write](model.get_parameter(name))
    model.refresh()
    check(model, before)


@pytest.mark.parametrize("name", RAW_WEIGHTS)
@pytest.mark.parametrize("write", RAW)
def test_raw_writes_are_found_where_everything_is_compared(
    write: str,
    name: str,
    engine: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(versions, "CHECK_ALWAYS", True)
    monkeypatch.setattr(versions, "_warned", set())
    model = made()
    assert "FASTBERT_CHECK_WEIGHTS" in fastbert.explain(model)
    with caplog.at_level(logging.WARNING, logger="fastbert"):
        for _ in range(2):
            before = answer(model)
            RAW[write](model.get_parameter(name))
            check(model, None if write in ("numpy", "storage") else before)
    told = [record.getMessage() for record in caplog.records if "not count" in record.getMessage()]
    expected = "encoder.layer.1.attention.self.query.weight" if "bert" in name else "(7, 48)"
    assert len(told) == 1 and expected in told[0] and "model.refresh()" in told[0]


def test_the_environment_turns_comparing_on() -> None:
    code = "from fastbert.runtime import versions; print(versions.CHECK_ALWAYS)"
    for value, expected in (("1", "True"), ("0", "False"), ("", "False")):
        out = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"FASTBERT_CHECK_WEIGHTS": value},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert out.stdout.strip() == expected


# Fingerprints


def same(tensor: Tensor, change: Callable[[], object]) -> bool:
    before = versions._bytes_of(tensor)
    change()
    return versions._same_bytes(before, versions._bytes_of(tensor))


@pytest.mark.parametrize("size", [1, 7, 16, 31, 32, 33, 255, 4097, 8191, 8192, 8193, 600_000])
def test_every_bit_counts(size: int) -> None:
    memory = torch.randint(0, 256, (size,), dtype=torch.uint8)
    assert same(memory, lambda: None)
    for place in {0, size - 1, *torch.randint(0, size, (64,)).tolist()}:
        bit = 1 << int(torch.randint(0, 8, ()))
        assert not same(memory, functools.partial(memory[place].bitwise_xor_, bit))


def test_the_order_of_words_counts() -> None:
    words = torch.arange(2048, dtype=torch.int64)
    assert not same(words, lambda: words.copy_(words.flip(0)))


def test_bytes_are_read_to_the_last_element_and_no_further() -> None:
    wide = torch.zeros(6, 10)
    inner = wide[1:3, 2:5]
    assert versions.readable_bytes(inner) == (10 + 2 + 1) * 4
    assert versions.readable_bytes(wide.t()) == 60 * 4
    assert versions.readable_bytes(torch.zeros(0, 4)) == 0
    assert versions.readable_bytes(torch.zeros(())) == 4
    assert same(inner, lambda: wide[2, 5].add_(1.0))
    assert not same(inner, lambda: wide[2, 4].add_(1.0))


def test_threads_change_no_fingerprint() -> None:
    memory = torch.randn(3_000_001)
    threads = torch.get_num_threads()
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(versions._bytes_of(memory))
    torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]
    assert isinstance(found[0], bytes) and len(found[0]) == 16 * math.ceil(4 * 3_000_001 / 8192)


def test_copies_on_other_devices_are_compared_as_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "reason", lambda: "none here")
    weight = torch.tensor([[1.0, float("nan")], [0.0, -0.0]])
    assert same(weight, lambda: None)
    assert not same(weight, lambda: weight[1].neg_())


# The process

LOOK = """
import gc, signal, sys, threading
import torch
from torch.nn.modules import module
from torch.optim import optimizer

def process():
    kept = {
        f"{where.__name__}.{name}": dict(value)
        for where in (module, optimizer)
        for name, value in vars(where).items()
        if name.startswith("_global_") and isinstance(value, dict)
    }
    kept["signals"] = {s: signal.getsignal(s) for s in signal.valid_signals()}
    kept["traces"] = (sys.gettrace(), threading.gettrace())
    kept["profiles"] = (sys.getprofile(), threading.getprofile())
    kept["hooks"] = (sys.excepthook, sys.unraisablehook, sys.displayhook, threading.excepthook)
    kept["gc"] = list(gc.callbacks)
    kept["optimizer"] = dict(vars(torch.optim.Optimizer))
    kept["tensor"] = {n: getattr(torch.Tensor, n) for n in ("data", "numpy", "__setattr__")}
    return kept

before = process()
for name in ("optimizer._global_optimizer_post_hooks", "optimizer._global_optimizer_pre_hooks"):
    assert f"torch.optim.{name}" in before, "torch keeps these elsewhere"
assert len([name for name in before if name.startswith("torch.nn")]) >= 5
import fastbert
fastbert.BertModel
model = fastbert.BertForSequenceClassification(fastbert.BertConfig(
    vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
step = torch.optim.AdamW(model.parameters(), fused=True)
ids = torch.tensor([[1, 2]])
model(ids, labels=torch.tensor([0])).loss.backward()
step.step()
with torch.no_grad():
    model.eval()(ids)
after = process()
changed = [name for name in before if before[name] != after[name]]
# torch itself names a hook that profiles on an optimizer's class when it is first made.
assert not [n for n in changed if n != "optimizer"], changed
"""


def test_nothing_is_hung_on_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
