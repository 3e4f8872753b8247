"""Training on packed rows: attention by sequence and dropout by counter are what modules define.

Attention of a pass with gradients or dropout runs sequence by sequence, its softmax on kernels that
draw what is dropped from a counter. Values and gradients are held against the definition on the
grid in float64; dropped weights against the very mask, which a backward pass must find again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import fastbert
from fastbert.kernels import native, training
from fastbert.ops import Traits
from fastbert.ops.attention_grouped import grouped_with_probs
from fastbert.runtime.plan import build_plan, use_backend

pytestmark = pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))

RAGGED = [5, 0, 17, 5, 64, 1, 70]
LONGER = [9, 3, 17, 9, 66, 4, 129]
BOUNDS = {torch.float32: 3e-6, torch.bfloat16: 2e-2}


def offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def operands(
    lengths: list[int],
    keys: list[int] | None = None,
    heads: int = 4,
    kv_heads: int = 4,
    dim: int = 8,
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Any, ...]]:
    """q, k and v, and the arguments that follow."""
    keys = lengths if keys is None else keys
    made = torch.Generator().manual_seed(sum(keys) + dim)
    q = torch.randn(sum(lengths), heads, dim, generator=made, dtype=torch.float64)
    k, v = (
        torch.randn(sum(keys), kv_heads, dim, generator=made, dtype=torch.float64) for _ in range(2)
    )
    return (q, k, v), (offsets(lengths), offsets(keys), max(lengths), max(keys), dim**-0.5)


def with_gradients(
    run: Callable[..., Tensor], tensors: tuple[Tensor, ...], dtype: torch.dtype
) -> list[Tensor]:
    """The result and the gradients of a weighted sum of it."""
    inputs = [x.to(dtype).requires_grad_() for x in tensors]
    out = run(*inputs)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    return [out.detach(), *torch.autograd.grad(out, inputs, weights)]


def compare(found: list[Tensor], exact: list[Tensor], bound: float) -> None:
    for one, other in zip(found, exact, strict=True):
        error = (one.double() - other).norm() / other.norm().clamp(min=1e-30)
        assert error < bound, error


CASES: dict[str, dict[str, Any]] = {
    "ragged": {},
    "causal": {"causal": True},
    "masked": {"masked": True},
    "masked-causal": {"masked": True, "causal": True},
    "grouped": {"kv_heads": 2, "causal": True},
    "one-head": {"kv_heads": 1, "masked": True},
    "cross": {"keys": LONGER},
    "cross-causal": {"keys": LONGER, "causal": True},
    "blind": {"keys": [2, 3, 20, 0, 64, 1, 7], "causal": True},
    "hidden": {"masked": float("-inf")},
}


def case(name: str) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]:
    given = dict(CASES[name])
    causal, masked = given.pop("causal", False), given.pop("masked", False)
    tensors, rest = operands(RAGGED, **given)
    key_bias = None
    if masked:
        hidden = torch.rand(tensors[1].shape[0], generator=torch.Generator().manual_seed(1)) < 0.4
        hidden[:5] = True  # a whole sequence
        lowest = torch.finfo(torch.float32).min if masked is True else masked
        key_bias = torch.zeros(hidden.shape).masked_fill(hidden, lowest)
    names = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k", "scale")
    return tensors, dict(zip(names, rest, strict=True), causal=causal, key_bias=key_bias)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", CASES)
def test_attention_and_its_gradients_are_those_of_the_grid(name: str, dtype: torch.dtype) -> None:
    tensors, rest = case(name)
    rounded = tuple(x.to(dtype).double() for x in tensors)
    exact = with_gradients(lambda *x: grouped_with_probs(*x, **rest)[0], rounded, torch.float64)
    compare(
        with_gradients(lambda *x: training.attention(*x, **rest), rounded, dtype),
        exact,
        BOUNDS[dtype],
    )
    if dtype is torch.float32:
        double = with_gradients(lambda *x: training.attention(*x, **rest), rounded, torch.float64)
        compare(double, exact, 1e-12)


def kept(run: Callable[[], Tensor], seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return run()


@pytest.mark.parametrize("name", ["ragged", "masked-causal", "grouped", "blind"])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_the_backward_pass_finds_the_dropped_weights_again(name: str, dtype: torch.dtype) -> None:
    """The mask is read off values that are unit vectors; with it the definition gives the rest."""
    tensors, rest = case(name)
    rounded = tuple(x.to(dtype).double() for x in tensors)
    probability = 0.3
    longest, kv_heads = rest["max_seqlen_k"], tensors[1].shape[1]
    keys = rest["cu_seqlens_k"].diff().tolist()
    units = torch.cat([torch.eye(longest)[:n] for n in keys])[:, None].expand(-1, kv_heads, -1)
    with torch.no_grad():
        q, k = (x.float() for x in rounded[:2])
        drop = {"dropout_p": probability}
        weights = kept(lambda: training.attention(q, k, units.contiguous(), **rest, **drop))
        whole = training.attention(q, k, units.contiguous(), **rest)
    factors = torch.where(weights > 0, 1 / (1 - probability), 0.0).double()
    assert torch.allclose(weights.double(), whole.double() * factors, atol=1e-6)

    def defined(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        _, probs = grouped_with_probs(q, k, v, **rest)
        parts = []
        group = q.shape[1] // kv_heads
        starts, others = rest["cu_seqlens_q"].tolist(), rest["cu_seqlens_k"].tolist()
        for b, (first, last) in enumerate(itertools.pairwise(starts)):
            rows, columns = last - first, others[b + 1] - others[b]
            mask = factors[first:last].transpose(0, 1)[..., :columns]
            values = v[others[b] : others[b + 1]].transpose(0, 1).repeat_interleave(group, 0)
            parts.append((probs[b, :, :rows, :columns] * mask @ values).transpose(0, 1))
        return torch.cat(parts)

    exact = with_gradients(defined, rounded, torch.float64)
    found = kept(
        lambda: with_gradients(
            lambda *x: training.attention(*x, **rest, dropout_p=probability), rounded, dtype
        )
    )
    compare(found, exact, 2 * BOUNDS[dtype])


def dropped_weights(probability: float, seed: int, heads: int = 8, length: int = 200) -> Tensor:
    """Uniform weights, dropped: (heads, length, length), 0 or 1 / (1 - probability)."""
    q = torch.zeros(length, heads, 4)
    units = torch.eye(length)[:, None].expand(-1, heads, -1).contiguous()
    at = offsets([length])
    torch.manual_seed(seed)
    found = training.attention(q, q, units, at, at, length, length, 1.0, dropout_p=probability)
    return found.transpose(0, 1) * length


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9, 1e-3])
def test_dropout_keeps_the_mean_and_drops_at_its_rate(probability: float) -> None:
    x = torch.ones(1000, 700)
    torch.manual_seed(1)
    for values in (training.dropout(x, probability), dropped_weights(probability, 2)):
        count = values.numel()
        rate = float((values == 0).float().mean())
        deviation = (probability * (1 - probability) / count) ** 0.5
        assert abs(rate - probability) < 5 * deviation
        kept = values[values != 0]
        assert torch.allclose(kept, torch.full_like(kept, 1 / (1 - probability)), rtol=1e-5)


def test_what_is_dropped_is_independent() -> None:
    """Between neighbours, rows, heads, calls and seeds: correlations within 5 deviations of 0."""
    first, second = dropped_weights(0.5, 3) == 0, dropped_weights(0.5, 4) == 0
    torch.manual_seed(5)
    flat = (training.dropout(torch.ones(200_000), 0.5) == 0).float()
    again = (training.dropout(torch.ones(200_000), 0.5) == 0).float()
    pairs = [
        (first[:, :, 1:], first[:, :, :-1]),
        (first[:, 1:], first[:, :-1]),
        (first[1:], first[:-1]),
        (first, second),
        (flat, again),
        *((flat[shift:], flat[:-shift]) for shift in (1, 2, 4, 8, 16, 48, 64, 128, 4096)),
    ]
    for one, other in pairs:
        a, b = one.flatten().float() - 0.5, other.flatten().float() - 0.5
        correlation = float((a * b).mean()) / 0.25
        assert abs(correlation) < 5 / a.numel() ** 0.5
    # As many in each row and in each column as a coin gives.
    for rates in (first.float().mean(2), first.float().mean(1)):
        assert abs(float(rates.std()) - (0.25 / 200) ** 0.5) < 0.004


def test_everything_or_nothing_is_dropped() -> None:
    x = torch.randn(33, requires_grad=True)
    assert torch.equal(training.dropout(x, 1.0), torch.zeros(33))
    assert torch.equal(training.dropout(x, 0.0, x), x + x)
    assert torch.equal(dropped_weights(1.0, 0), torch.zeros(8, 200, 200))


SINGLE, HALF, BRAIN, DOUBLE = torch.float32, torch.float16, torch.bfloat16, torch.float64
MIXED = [(SINGLE, SINGLE), (BRAIN, SINGLE), (BRAIN, BRAIN), (SINGLE, BRAIN)]


@pytest.mark.parametrize("dtypes", [*MIXED, (DOUBLE, DOUBLE), (HALF, SINGLE)])
@pytest.mark.parametrize("count", [0, 1, 63, 65, 1000])
def test_dropout_and_addition(count: int, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    x = (torch.rand(count) + 1).to(dtypes[0]).requires_grad_()
    residual = torch.randn(count).to(dtypes[1]).requires_grad_()
    torch.manual_seed(0)
    out = training.dropout(x, 0.25, residual)
    assert out.dtype == torch.promote_types(*dtypes)
    out.sum().backward()
    assert x.grad is not None and residual.grad is not None
    assert (x.grad.dtype, residual.grad.dtype) == dtypes
    assert torch.equal(residual.grad, torch.ones_like(residual))
    expected = x.detach().double() * (x.grad != 0) / 0.75 + residual.detach().double()
    torch.testing.assert_close(out.double(), expected, rtol=1e-2, atol=2e-2)
    if count == 1000:
        assert 150 < int((x.grad == 0).sum()) < 350


def test_second_gradients_are_those_of_the_definition() -> None:
    tensors, rest = case("masked-causal")
    weights = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(4))

    def second(run: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        inputs = [x.to(dtype).requires_grad_() for x in tensors]
        out = (run(*inputs) * weights.to(dtype)).sum()
        first = torch.autograd.grad(out, inputs, create_graph=True)
        return list(torch.autograd.grad(sum((g**2).sum() for g in first), inputs))

    exact = second(lambda *x: grouped_with_probs(*x, **rest)[0], torch.float64)
    compare(second(lambda *x: training.attention(*x, **rest), torch.float32), exact, 1e-5)
    # With dropout, first gradients by torch and by kernels are of the same dropped weights.
    inputs = [x.float().requires_grad_() for x in tensors]
    torch.manual_seed(0)
    out = training.attention(*inputs, **rest, dropout_p=0.4)
    plain = torch.autograd.grad(out, inputs, weights, retain_graph=True)
    twice = torch.autograd.grad(out, inputs, weights, create_graph=True)
    compare(list(twice), [g.double() for g in plain], 1e-5)
    x = torch.randn(50, requires_grad=True)
    dropped = training.dropout(x.tanh(), 0.5)
    (first,) = torch.autograd.grad(dropped.square().sum(), x, create_graph=True)
    (again,) = torch.autograd.grad(first.sum(), x)
    kept = dropped != 0
    exact_second = (
        kept * 4 * 2 * ((1 - x.tanh() ** 2) ** 2 - 2 * x.tanh() ** 2 * (1 - x.tanh() ** 2))
    )
    torch.testing.assert_close(again, exact_second, rtol=1e-4, atol=1e-4)


def test_gradcheck() -> None:
    tensors, rest = operands([3, 2], heads=2, kv_heads=2, dim=3)
    inputs = tuple(x.requires_grad_() for x in tensors)
    assert torch.autograd.gradcheck(lambda *x: training.attention(*x, *rest), inputs)
    assert torch.autograd.gradgradcheck(lambda *x: training.attention(*x, *rest), inputs)


def test_many_gradients_at_once() -> None:
    """is_grads_batched hands a backward pass tensors without memory of their own."""
    tensors, rest = operands([3, 5])
    inputs = [x.float().requires_grad_() for x in tensors]
    torch.manual_seed(0)
    out = training.dropout(training.attention(*inputs, *rest, dropout_p=0.5), 0.5)
    weights = torch.randn(4, *out.shape)
    many = torch.autograd.grad(out, inputs, weights, is_grads_batched=True, retain_graph=True)
    for index in range(4):
        single = torch.autograd.grad(out, inputs, weights[index], retain_graph=True)
        for one, other in zip(many, single, strict=True):
            torch.testing.assert_close(one[index], other)


def test_transforms_of_torch_func_take_the_definition() -> None:
    tensors, rest = operands([3, 5])
    q, k, v = (x.float() for x in tensors)
    found = torch.func.grad(lambda q: training.attention(q, k, v, *rest).sum())(q)
    (expected,) = torch.autograd.grad(training.attention(q.requires_grad_(), k, v, *rest).sum(), q)
    torch.testing.assert_close(found, expected)
    dropped = torch.func.vmap(lambda x: training.dropout(x, 0.5), randomness="different")
    assert 100 < int((dropped(torch.ones(4, 100)) == 0).sum()) < 300
    tangent = torch.func.jvp(lambda x: training.dropout(x, 0.0), (q.detach(),), (k,))[1]
    assert torch.equal(tangent, k)


# Whole models.

SIZES: dict[str, Any] = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "intermediate_size": 40, "num_labels": 3}


def bert(dropout: float = 0.1, **changes: Any) -> fastbert.BertForSequenceClassification:
    torch.manual_seed(0)
    config = fastbert.BertConfig(
        **SIZES, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, **changes
    )
    return fastbert.BertForSequenceClassification(config).train()


def batch() -> dict[str, Tensor]:
    mask = (torch.arange(70) < torch.tensor([[70], [1], [4], [30], [4]])).long()
    made = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 60, (5, 70), generator=made)
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 2, 1, 1, 0])}


def step(model: Any, seed: int = 5, **changes: Any) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(seed)
    loss = model(**{**batch(), **changes}).loss
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {**found, "loss": loss.detach()}


def test_explain_names_it() -> None:
    choice = build_plan(Traits(), "cpu", torch.float32, needs_grad=True).choice("attention_varlen")
    assert choice.backend == "reference" and "sequence by sequence" in choice.note
    model = bert()
    assert "sequence by sequence" in str(fastbert.explain(model))
    asked = build_plan(Traits(), "cpu", torch.float32, "reference", needs_grad=True)
    assert asked.choice("attention_varlen").note == ""


def test_gradients_of_a_step_are_those_of_the_definition() -> None:
    model = bert(dropout=0.0)
    found = step(model)
    with use_backend("reference"):
        expected = step(bert(dropout=0.0).double())
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-3, atol=2e-6, msg=name)


def test_autocast_is_near_the_definition() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = step(bert(dropout=0.0))
    expected = step(bert(dropout=0.0))
    for name in ("loss", "classifier.weight", "bert.encoder.layer.0.attention.self.value.weight"):
        error = (found[name] - expected[name]).norm() / expected[name].norm()
        assert error < 4e-2, name


def test_a_seed_repeats_a_step() -> None:
    model = bert()
    first, again, other = step(model), step(model), step(model, seed=6)
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
    assert not torch.equal(first["loss"], other["loss"])


def test_checkpointed_layers_drop_the_same() -> None:
    model = bert()
    expected = step(model)
    model.gradient_checkpointing_enable()
    for name, value in step(model).items():
        torch.testing.assert_close(value, expected[name], msg=name)


def test_checkpoint_of_an_attention_drops_the_same() -> None:
    tensors, rest = operands(RAGGED)
    q, k, v = (x.float().requires_grad_() for x in tensors)

    def run(*inputs: Tensor) -> Tensor:
        return training.dropout(training.attention(*inputs, *rest, dropout_p=0.5), 0.5)

    found = []
    for call in (run, lambda *x: checkpoint(run, *x, use_reentrant=False)):
        torch.manual_seed(2)
        found.append(torch.autograd.grad(call(q, k, v).square().sum(), (q, k, v)))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_the_mean_of_many_dropped_passes_is_that_of_torch() -> None:
    """The loss of a model in training, over many seeds: kernels and definition within its error."""
    model = bert(dropout=0.3)
    means = []
    with torch.no_grad():
        for backend in ("auto", "reference"):
            with use_backend(backend):
                losses = []
                for seed in range(100):
                    torch.manual_seed(seed)
                    losses.append(model(**batch()).loss)
            values = torch.stack(losses).double()
            means.append((values.mean(), values.var() / len(losses), values.std()))
    (one, error, spread), (other, error_too, spread_too) = means
    assert abs(one - other) < 5 * (error + error_too).sqrt()
    assert 0.7 < spread / spread_too < 1.4


def test_weights_and_masks_are_still_given() -> None:
    model = bert()
    out = model(**batch(), output_attentions=True)
    assert out.attentions[0].shape == (5, 2, 70, 70)
    out.loss.backward()
    step(model, attention_mask=torch.ones(5, 1, 70, 70))


def test_hooked_and_replaced_parts_are_called() -> None:
    model = bert(dropout=0.0)
    seen: list[str] = []
    layer = model.bert.encoder.layer[0]
    layer.attention.self.register_forward_hook(lambda *_: seen.append("attention"))
    layer.output.LayerNorm.register_forward_hook(lambda *_: seen.append("norm"))
    layer.attention.output.dropout = torch.nn.Dropout(1.0)
    found = step(model)
    assert seen == ["attention", "norm"]
    dense = "bert.encoder.layer.0.attention.output.dense.weight"
    assert not found[dense].any()


def test_apertus_trains_by_sequence() -> None:
    config = fastbert.ApertusConfig(
        vocab_size=60, hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=40, attention_dropout=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = fastbert.ApertusForCausalLM(config).train()
    rows = batch()
    rows["labels"] = rows["input_ids"].masked_fill(rows["attention_mask"] == 0, -100)

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        model(**rows).loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    found = gradients()
    with use_backend("reference"):
        expected = gradients()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_the_native_functions_refuse_what_does_not_fit() -> None:
    x = torch.zeros(3)
    fields = {"x": x.data_ptr(), "out": x.data_ptr(), "count": 3, "seed": 0, "drop_scale": 1.0}
    for changes, told in (
        ({"threshold": 1e9}, "threshold must be 0 to 2"),
        ({"threshold": float("nan")}, "threshold must be 0 to 2"),
        ({"threshold": 0.0, "dtype": 2}, "float32 or bfloat16"),
        ({"threshold": 0.0, "x": 0}, "x"),
    ):
        given = {**fields, "dtype": 0, "out_dtype": 0, **changes}
        with pytest.raises(ValueError, match=told):
            native.library.dropout_add(native.library.DropoutArgs(**given))


def test_dropout_is_that_of_torch_where_kernels_are_not_wanted() -> None:
    plan = build_plan(Traits(), "cpu", torch.float32, "reference", needs_grad=True)
    x = torch.ones(100)
    torch.manual_seed(0)
    found = plan.rows.dropout(x, 0.5, None)
    torch.manual_seed(0)
    assert torch.equal(found, F.dropout(x, 0.5))
