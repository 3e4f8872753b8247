"""The references against what torch itself offers, and the parts of their contract it lacks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastbert.ops import ALL
from fastbert.ops._sample import offsets
from fastbert.ops.act_layer_norm import act_layer_norm
from fastbert.ops.activations import ACTIVATIONS, activate
from fastbert.ops.add_layer_norm import add_layer_norm
from fastbert.ops.attention_varlen import attention_varlen, attention_with_probs
from fastbert.ops.embed_layer_norm import embed_layer_norm
from fastbert.ops.int8_linear import int8_linear
from fastbert.ops.linear import linear
from fastbert.ops.quantize_rows import quantize_rows

DOUBLE = torch.float64


def normal(*shape: int, seed: int = 0, grad: bool = False) -> Tensor:
    out = torch.randn(
        shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=DOUBLE
    )
    return out.requires_grad_(grad)


def by_sequence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lens_q: list[int],
    lens_k: list[int],
    scale: float,
    causal: bool,
) -> Tensor:
    """Attention one sequence at a time, with torch's own op."""
    parts, at_q, at_k = [], 0, 0
    for n, m in zip(lens_q, lens_k, strict=True):
        qs, ks, vs = (
            x.transpose(0, 1) for x in (q[at_q : at_q + n], k[at_k : at_k + m], v[at_k : at_k + m])
        )
        visible = torch.ones(n, m, dtype=torch.bool).tril(m - n) if causal else None
        out = F.scaled_dot_product_attention(qs, ks, vs, attn_mask=visible, scale=scale)
        out = out.transpose(0, 1)
        if causal:
            # torch leaves NaN or an average where nothing is visible; the contract says zeros.
            out = torch.where(visible.any(1)[:, None, None], out, 0.0)
        parts.append(out)
        at_q, at_k = at_q + n, at_k + m
    return torch.cat(parts)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("lens_q", "lens_k"),
    [
        ([4], [4]),
        ([3, 1, 5], [3, 1, 5]),
        ([3, 0, 5, 0], [3, 0, 5, 0]),
        ([1, 1], [5, 9]),
        ([2, 7], [6, 3]),
    ],
)
def test_attention_equals_torch(lens_q: list[int], lens_k: list[int], causal: bool) -> None:
    q = normal(sum(lens_q), 2, 8, grad=True)
    k = normal(sum(lens_k), 2, 8, seed=1, grad=True)
    v = normal(sum(lens_k), 2, 8, seed=2, grad=True)
    expected = by_sequence(q, k, v, lens_q, lens_k, 0.3, causal)
    out = attention_varlen(
        q, k, v, offsets(lens_q), offsets(lens_k), max(lens_q), max(lens_k), 0.3, causal
    )
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad(out.square().sum(), (q, k, v))
    theirs = torch.autograd.grad(expected.square().sum(), (q, k, v))
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_attention_sees_no_other_sequence() -> None:
    """Not even through a NaN: 0 x NaN of a masked neighbour would be one."""
    lengths = [3, 4]
    q, k, v = normal(7, 3, 2, 8).unbind(1)
    k, v = k.clone(), v.clone()
    k[3:], v[3:] = float("nan"), float("nan")
    cu = offsets(lengths)
    out = attention_varlen(q, k, v, cu, cu, 4, 4, 0.3)
    assert torch.isfinite(out[:3]).all()
    assert torch.isnan(out[3:]).all()


def test_attention_of_nothing_visible_is_zero() -> None:
    q, k, v = normal(5, 3, 2, 8).unbind(1)
    cu = offsets([5])
    bias = torch.zeros(1, 1, 5, 5, dtype=DOUBLE)
    bias[..., 2, :] = float("-inf")
    out = attention_varlen(q, k, v, cu, cu, 5, 5, 0.3, bias=bias)
    assert (out[2] == 0).all()
    assert (out[[0, 1, 3, 4]] != 0).all()


def test_attention_of_nothing_but_masked_keys_is_uniform() -> None:
    q, k, v = normal(5, 3, 2, 8).float().unbind(1)
    cu = offsets([5])
    key_bias = torch.full((5,), torch.finfo(torch.float32).min)
    out = attention_varlen(q, k, v, cu, cu, 5, 5, 0.3, key_bias=key_bias)
    torch.testing.assert_close(out, v.mean(0, keepdim=True).expand_as(out))


@pytest.mark.parametrize("total_k", [0, 4])
def test_attention_without_queries_or_keys(total_k: int) -> None:
    q = normal(0 if total_k else 3, 2, 8)
    k = normal(total_k, 2, 8)
    out = attention_varlen(q, k, k, offsets([len(q)]), offsets([total_k]), 3, 4, 0.3)
    assert out.shape == q.shape
    assert (out == 0).all()


def test_attention_weights_are_those_that_were_used() -> None:
    lengths = [3, 5]
    q, k, v = normal(8, 3, 2, 8).unbind(1)
    cu = offsets(lengths)
    head_mask = torch.tensor([0.0, 1.0], dtype=DOUBLE)[None, :, None, None]
    out, probs = attention_with_probs(q, k, v, cu, cu, 5, 5, 0.3, head_mask=head_mask)
    assert probs.shape == (2, 2, 5, 5)
    assert (out[:, 0] == 0).all()
    assert (probs[0, :, :, 3:] == 0).all()
    torch.testing.assert_close(probs[1, 1].sum(-1), torch.ones(5, dtype=DOUBLE))
    torch.testing.assert_close(out[3:, 1], probs[1, 1] @ v[3:, 1])


def test_attention_dropout_drops_and_rescales() -> None:
    q, k, v = torch.randn(3, 200, 1, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    cu = offsets([200])
    torch.manual_seed(0)
    _, probs = attention_with_probs(q, k, v, cu, cu, 200, 200, 0.3, dropout_p=0.25)
    _, plain = attention_with_probs(q, k, v, cu, cu, 200, 200, 0.3)
    kept = probs != 0
    assert 0.7 < kept.float().mean() < 0.8
    torch.testing.assert_close(probs[kept], plain[kept] / 0.75)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_equal_transformers(name: str) -> None:
    if name == "none":
        return
    activations = pytest.importorskip("transformers.activations")
    x = torch.linspace(-12, 12, 1001, dtype=DOUBLE)
    torch.testing.assert_close(
        activate(x, name), activations.ACT2FN[name](x), rtol=1e-12, atol=1e-13
    )


def test_gelu_is_the_erf_form() -> None:
    x = torch.linspace(-6, 6, 1001, dtype=DOUBLE)
    exact = x * 0.5 * torch.erfc(-x / 2**0.5)
    torch.testing.assert_close(activate(x, "gelu"), exact, rtol=1e-9, atol=1e-15)
    assert (activate(x, "gelu_new") - exact).abs().max() > 4e-4


def test_layer_norms_equal_their_formula() -> None:
    x, residual = normal(5, 13), normal(5, 13, seed=1)
    weight, bias, x_bias = normal(13), normal(13, seed=1), normal(13, seed=2)
    total = x + x_bias + residual
    centred = total - total.mean(1, keepdim=True)
    variance = centred.square().mean(1, keepdim=True)
    expected = centred / torch.sqrt(variance + 1e-5) * weight + bias
    out, kept = add_layer_norm(x, weight, bias, 1e-5, residual, x_bias, True)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(kept, total)
    assert add_layer_norm(x, weight, bias, 1e-5)[1].shape == (0,)
    expected, _ = add_layer_norm(activate(x + x_bias, "gelu"), weight, bias, 1e-5)
    torch.testing.assert_close(act_layer_norm(x, x_bias, weight, bias, 1e-5, "gelu"), expected)


def test_embedding_padding_rows_get_no_gradient() -> None:
    word, positions = normal(7, 4, grad=True), normal(5, 4, seed=1, grad=True)
    weight, bias = normal(4, seed=2), normal(4, seed=3)
    ids, places = torch.tensor([1, 3, 1, 6]), torch.tensor([0, 2, 3, 0])
    out = embed_layer_norm(
        ids, word, weight, bias, 1e-5, places, positions, padding_idx=1, position_padding_idx=0
    )
    out.square().sum().backward()
    assert (word.grad[1] == 0).all() and (word.grad[3] != 0).any()
    assert (positions.grad[0] == 0).all() and (positions.grad[2] != 0).any()


def test_embedding_without_words_says_so() -> None:
    with pytest.raises(ValueError, match="inputs_embeds"):
        embed_layer_norm(None, None, normal(4), normal(4), 1e-5)


def test_linear_equals_its_formula() -> None:
    x, weight, bias, residual = normal(5, 7), normal(3, 7), normal(3), normal(5, 3)
    expected = F.gelu(x @ weight.t() + bias) + residual
    torch.testing.assert_close(linear(x, weight, bias, "gelu", residual), expected)


def test_quantised_rows_are_within_half_a_step() -> None:
    x = normal(9, 101).float() * torch.linspace(0.01, 30, 9)[:, None] + 1.0
    q, scale, zero_point = quantize_rows(x)
    assert (q.dtype, scale.dtype, zero_point.dtype) == (torch.uint8, torch.float32, torch.int32)
    restored = (q.float() - zero_point[:, None]) * scale[:, None]
    assert ((restored - x).abs() <= scale[:, None] * 0.5001 + scale[:, None]).all()
    inner = (q > 0) & (q < 255)
    assert ((restored - x).abs() <= scale[:, None] * 0.5001)[inner].all()
    assert (zero_point >= 0).all() and (zero_point <= 255).all()


def test_quantised_zero_is_zero() -> None:
    x = torch.tensor([[0.0, 5.0, 1.0], [-5.0, 0.0, -1.0], [0.0, 0.0, 0.0], [-1.0, 0.0, 3.0]])
    q, scale, zero_point = quantize_rows(x)
    assert (q[x == 0].int() == zero_point[:, None].expand(4, 3)[x == 0]).all()
    assert scale[2] == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_int8_linear_hides_no_nan(bad: float) -> None:
    x = normal(3, 8).float()
    x[1, 4] = bad
    out = int8_linear(x, torch.ones(5, 8, dtype=torch.int8), torch.ones(5))
    assert torch.isnan(out[1]).all()
    assert torch.isfinite(out[[0, 2]]).all()


def test_int8_linear_is_near_the_product() -> None:
    x, weight, bias = normal(17, 256).float(), normal(33, 256).float(), normal(33).float()
    weight_scale = weight.abs().amax(1) / 127
    qweight = torch.round(weight / weight_scale[:, None]).to(torch.int8)
    out = int8_linear(x, qweight, weight_scale, bias, "gelu")
    expected = F.gelu(x @ weight.t() + bias)
    assert (out - expected).norm() / expected.norm() < 0.02


def test_int8_linear_gradient_is_straight_through() -> None:
    x = normal(4, 8).float().requires_grad_()
    qweight = torch.randint(-127, 128, (3, 8), generator=torch.Generator().manual_seed(0))
    qweight, weight_scale = qweight.to(torch.int8), torch.tensor([0.1, 0.2, 0.3])
    out = int8_linear(x, qweight, weight_scale)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    expected = (qweight.float() * weight_scale[:, None]).sum(0).expand(4, 8)
    torch.testing.assert_close(gradient, expected)
    with torch.no_grad():
        assert torch.equal(out, int8_linear(x, qweight, weight_scale))


@pytest.mark.parametrize(
    "op", [op for op in ALL.values() if op.differentiable], ids=lambda o: o.name
)
def test_gradients_equal_finite_differences(op: object) -> None:
    if op.name == "int8_linear":
        pytest.skip("a step function has no finite differences")
    seen = 0
    for case in op.cases():
        arguments = case.make(DOUBLE)
        floats = {
            name: value.detach().to(DOUBLE).requires_grad_()
            for name, value in arguments.items()
            if isinstance(value, Tensor) and value.is_floating_point() and name != "key_bias"
        }
        if not 0 < sum(value.numel() for value in floats.values()) < 900 or seen == 4:
            continue

        def call(*tensors: Tensor, arguments=arguments, floats=floats) -> object:
            return op.reference(**{**arguments, **dict(zip(floats, tensors, strict=True))})

        if arguments.get("activation") == "relu":
            continue
        assert torch.autograd.gradcheck(call, tuple(floats.values()), atol=1e-6), case.name
        seen += 1
    assert seen >= 1
