"""Apertus computes what transformers computes, where transformers computes what is meant.

The mechanism: one network, written as modules over the ops, against transformers in float64. Where
transformers is wrong (integer masks in eager attention, rounded frequencies, padding in float64),
results are held against the same network without the fault.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from apertus_pair import LLAMA3, PADDED, SIZES, close, exact_norms, ids, pair
from torch import Tensor, nn

import fastbert
from fastbert.layers.rotary import frequencies
from fastbert.models.apertus import ApertusDecoderLayer
from fastbert.ops.xielu import xielu


@pytest.fixture(autouse=True, scope="module")
def exact() -> Iterator[None]:
    yield from exact_norms()


SHAPES = {
    "grouped": {},
    "one-key-head": {"num_key_value_heads": 1},
    "all-key-heads": {"num_key_value_heads": None},
    "head-dim": {"head_dim": 12},
    "bias": {"attention_bias": True},
    "gelu": {"hidden_act": "gelu"},
    "tied": {"tie_word_embeddings": True},
    "eps": {"rms_norm_eps": 0.3},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_forward_loss_and_gradients(shape: str) -> None:
    ours, theirs = pair(**SHAPES[shape])
    batch = ids(2, 9)
    labels = batch.clone()
    labels[0, :3] = -100
    one = ours(batch, labels=labels, output_hidden_states=True)
    other = theirs(batch, labels=labels, output_hidden_states=True)
    close(one.logits, other.logits)
    close(one.loss, other.loss, 1e-6)  # theirs is computed in float32
    assert len(one.hidden_states) == len(other.hidden_states) == SIZES["num_hidden_layers"] + 1
    for a, b in zip(one.hidden_states, other.hidden_states, strict=True):
        close(a, b)
    one.logits.square().sum().backward()
    other.logits.square().sum().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        close(parameter.grad, gradients[name], 1e-10)
    assert {"model.layers.0.mlp.act_fn.alpha_p", "model.layers.1.mlp.act_fn.alpha_n"} <= set(
        gradients
    ) or shape == "gelu"


def test_outputs_and_defaults() -> None:
    ours, theirs = pair()
    batch = ids(1, 5)
    assert list(ours(batch)) == list(theirs(batch)) == ["logits", "past_key_values"]
    assert list(ours(batch, use_cache=False)) == ["logits"]
    assert list(ours.model(batch)) == list(theirs.model(batch))
    assert len(ours(batch, labels=batch, return_dict=False)) == 3
    assert list(inspect_arguments(ours)) == list(inspect_arguments(theirs))
    assert list(inspect_arguments(ours.model)) == list(inspect_arguments(theirs.model))
    assert {n for n, _ in ours.named_parameters()} == {n for n, _ in theirs.named_parameters()}
    assert set(ours.state_dict()) == set(theirs.state_dict())
    with pytest.raises(TypeError, match="nonsense"):
        ours(batch, nonsense=3)
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        ours(batch, inputs_embeds=torch.zeros(1, 5, 32))
    with pytest.raises(ValueError, match="exactly one"):
        ours()
    with pytest.raises(IndexError, match="vocabulary has 53"):
        ours(torch.tensor([[4, 53]]))
    assert ours(torch.zeros(0, 4, dtype=torch.long)).logits.shape == (0, 4, 53)


def inspect_arguments(model: nn.Module) -> list[str]:
    names = inspect.signature(model.forward).parameters
    return [name for name in names if name not in ("kwargs", "options")]


# Positions

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 100.0},
    "linear": {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0},
    "llama3": LLAMA3,
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 100.0,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn-mscale": {
        "rope_type": "yarn",
        "rope_theta": 100.0,
        "factor": 4.0,
        "mscale": 0.7,
        "mscale_all_dim": 0.4,
        "truncate": False,
        "beta_fast": 8.0,
    },
}


@pytest.mark.parametrize("name", ROPES)
def test_every_scaling_of_positions(name: str) -> None:
    ours, theirs = pair(rope_parameters=ROPES[name])
    one, other = ours.model.rotary_emb, theirs.model.rotary_emb
    assert torch.equal(one.inv_freq, other.inv_freq.float())
    assert one.attention_scaling == other.attention_scaling
    batch = ids(2, 40)
    close(ours(batch).logits, theirs(batch).logits)


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "proportional", "mine"])
def test_scalings_that_are_refused(kind: str) -> None:
    parameters = {
        "rope_type": kind,
        "factor": 2.0,
        "short_factor": [1.0] * 4,
        "long_factor": [1.0] * 4,
    }
    config = fastbert.ApertusConfig(**{**SIZES, "rope_parameters": parameters})
    with pytest.raises(ValueError, match=f"rope_type '{kind}' is not supported: .*llama3"):
        fastbert.ApertusModel(config)


def test_frequencies_of_the_real_models() -> None:
    found, scaling = frequencies(fastbert.ApertusConfig().rope_parameters, 128)
    plain, _ = frequencies({"rope_type": "default", "rope_theta": 12e6}, 128)
    ratio = (found / plain).tolist()
    assert scaling == 1.0 and [ratio.count(1.0), ratio.count(0.125)] == [23, 35]
    between = torch.tensor(ratio[23:29])
    expected = torch.tensor([0.919799, 0.675511, 0.486151, 0.339367, 0.225587, 0.137390])
    torch.testing.assert_close(between, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(found[-1].item(), 1.3438195e-8, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_frequencies_stay_float32(dtype: torch.dtype) -> None:
    ours, _ = pair(dtype=torch.float32)
    batch = ids(1, 60)
    exact = copy.deepcopy(ours).to(dtype).double()(batch, use_cache=False).logits
    for converted in (copy.deepcopy(ours).to(dtype), copy.deepcopy(ours).double().to(dtype)):
        assert converted.model.rotary_emb.inv_freq.dtype == torch.float32
        assert torch.equal(converted.model.rotary_emb.inv_freq, ours.model.rotary_emb.inv_freq)
        with torch.no_grad():
            close(converted(batch).logits, exact, 0.03)


def test_sixteen_bits_are_as_near_as_transformers() -> None:
    ours, theirs = pair(dtype=torch.float32)
    ours, theirs = ours.to(torch.bfloat16), theirs.to(torch.bfloat16)
    theirs.model.rotary_emb.inv_freq.data = ours.model.rotary_emb.inv_freq.clone()
    batch = ids(4, 30)
    with torch.no_grad():
        exact = copy.deepcopy(ours).double()(batch).logits
        errors = [
            float((model(batch).logits.double() - exact).norm() / exact.norm())
            for model in (ours, theirs)
        ]
    assert errors[0] < 2 * errors[1] < 0.1


def test_texts_beyond_the_positions_run() -> None:
    ours, theirs = pair()
    batch = ids(1, 70)
    close(ours(batch).logits, theirs(batch).logits)


def test_position_ids() -> None:
    ours, theirs = pair()
    batch, positions = ids(2, 6), torch.arange(6) * 2 + torch.tensor([[3], [11]])
    mask = torch.ones_like(batch)
    given = {"position_ids": positions, "attention_mask": mask}
    close(ours(batch, **given).logits, theirs(batch, **given).logits)
    # A cache that is not refused says that positions which jump belong to one text.
    close(ours(batch, position_ids=positions).logits, theirs(batch, **given).logits)
    alone = ours(batch, position_ids=positions, use_cache=False)
    close(alone.logits, theirs(batch, position_ids=positions, use_cache=False).logits)
    with pytest.raises(ValueError, match="position_ids must have the shape"):
        ours(batch, position_ids=torch.arange(5)[None])


# Masks


@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.float32])
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("side", PADDED)
def test_padding(side: str, cached: bool, dtype: torch.dtype) -> None:
    ours, theirs = pair()
    mask, batch = torch.tensor(PADDED[side]), ids(2, 7)
    given = {"attention_mask": mask.to(dtype), "use_cache": cached}
    one = ours(batch, output_hidden_states=True, **given)
    other = theirs(batch, attention_mask=mask, use_cache=cached)
    # Theirs count the positions of padding on the left; rotations are relative, in float32.
    close(one.logits[mask != 0], other.logits[mask != 0], 1e-6 if side == "left" else 1e-11)
    assert torch.isfinite(one.logits).all()
    real = batch[0][mask[0] != 0][None]
    if side != "holes":
        close(one.logits[0][mask[0] != 0][None], ours(real).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("side", PADDED)
def test_labels_on_padding_count(side: str, cached: bool, dtype: torch.dtype) -> None:
    """The loss of an evaluation is that of training, whatever keeps keys and values."""
    ours, theirs = pair(dtype=dtype)
    batch, mask = ids(2, 7), torch.tensor(PADDED[side])
    given = {"attention_mask": mask, "labels": batch, "use_cache": cached}
    trained = ours(batch, **given)
    with torch.no_grad():
        evaluated = ours(batch, **given)
    close(evaluated.loss, trained.loss, 1e-6)
    close(evaluated.logits, trained.logits, 1e-5)
    if side != "left":  # there the first label is that of a token which sees nothing
        close(evaluated.loss, theirs(batch, **given).loss, 1e-6)
    tagger, other = pair("ApertusForTokenClassification", dtype=dtype, classifier_dropout=0.0)
    given["labels"] = batch % 2
    with torch.no_grad():
        found = tagger(batch, **given).loss
    close(found, tagger(batch, **given).loss, 1e-6)
    if side != "left":
        close(found, other(batch, attention_mask=mask, labels=batch % 2).loss, 1e-6)


def test_a_row_that_is_masked_whole() -> None:
    ours, _ = pair()
    batch, mask = ids(2, 5), torch.tensor([[0] * 5, [1] * 5])
    for cached in (True, False):
        logits = ours(batch, attention_mask=mask, use_cache=cached).logits
        assert torch.isfinite(logits).all()
        close(logits[1:], ours(batch[1:]).logits)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("rows", [1, 2])
def test_masks_with_four_dimensions(rows: int, heads: int) -> None:
    ours, theirs = pair()
    batch = ids(2, 6)
    visible = torch.rand(rows, heads, 6, 6, generator=torch.Generator().manual_seed(3)) < 0.6
    visible |= torch.eye(6, dtype=torch.bool)
    bias = torch.zeros(visible.shape, dtype=torch.float64)
    bias = bias.masked_fill(~visible, torch.finfo(torch.float64).min)
    expected = theirs(batch, attention_mask=bias).logits
    for mask in (bias, visible, visible.long()):
        close(ours(batch, attention_mask=mask).logits, expected)
    both_ways = torch.zeros(1, 1, 6, 6, dtype=torch.float64)
    close(
        ours(batch, attention_mask=both_ways).logits, theirs(batch, attention_mask=both_ways).logits
    )
    close(ours(batch, is_causal=False).logits, theirs(batch, attention_mask=both_ways).logits)
    ours.config.is_causal = False
    close(ours(batch).logits, theirs(batch, attention_mask=both_ways).logits)


def test_masks_that_do_not_fit() -> None:
    ours, _ = pair()
    cache = ours(ids(2, 4)).past_key_values
    with pytest.raises(ValueError, match=r"attention_mask must have shape \(2, 7\)"):
        ours(ids(2, 3), attention_mask=torch.ones(2, 3), past_key_values=cache)
    assert cache.get_seq_length() == 4
    with pytest.raises(ValueError, match="attention_mask"):
        ours(ids(2, 3), attention_mask=torch.ones(2, 1, 4, 3))


def test_attention_weights() -> None:
    ours, _ = pair(dtype=torch.float32)
    sizes = copy.deepcopy(SIZES)
    config = transformers.ApertusConfig(**sizes, attn_implementation="eager")
    theirs = transformers.ApertusForCausalLM(config).eval()
    theirs.load_state_dict(ours.state_dict())
    mask, batch = torch.tensor(PADDED["left"]), ids(2, 7)
    one = ours(batch, attention_mask=mask, output_attentions=True)
    other = theirs(batch, attention_mask=mask, output_attentions=True)
    for a, b in zip(one.attentions, other.attentions, strict=True):
        close(a[0, :, 3:], b[0, :, 3:], 1e-5)
        close(a[1], b[1], 1e-5)
    parts = torch.tensor([[0, 1, 2, 0, 1]])
    packed = ours(ids(1, 5), position_ids=parts, use_cache=False, output_attentions=True)
    assert packed.attentions[0].shape == (1, 4, 5, 5)
    assert float(packed.attentions[0][..., 3:, :3].detach().abs().max()) == 0.0


# Several texts in one row


@pytest.mark.parametrize("options", [{"use_cache": False}, {}], ids=["without-cache", "by-default"])
def test_packed_texts_do_not_see_each_other(options: dict[str, Any]) -> None:
    """transformers forgets that where its configuration asks for a cache."""
    ours, theirs = pair()
    batch, positions = ids(2, 8), torch.tensor([[0, 1, 2, 0, 1, 2, 3, 0], [0, 1, 2, 3, 4, 5, 0, 1]])
    one = ours(batch, position_ids=positions, **options)
    assert one.past_key_values is None
    close(one.logits, theirs(batch, position_ids=positions, use_cache=False).logits)
    close(one.logits[:1, 3:7], ours(batch[:1, 3:7]).logits)
    one.logits.square().sum().backward()
    with pytest.raises(ValueError, match="begin anew within a row"):
        ours(batch, position_ids=positions, use_cache=True)


# Caches


def test_cache_step_by_step() -> None:
    ours, theirs = pair()
    batch = ids(2, 11)
    whole = ours(batch).logits
    with torch.no_grad():
        cache: Any = None
        found = []
        for begin, end in ((0, 6), (6, 9), (9, 10), (10, 11)):
            out = ours(batch[:, begin:end], past_key_values=cache)
            assert cache is None or out.past_key_values is cache
            cache = out.past_key_values
            found.append(out.logits)
        close(torch.cat(found, dim=1), whole)
        theirs_cache = theirs(batch).past_key_values
    for one, other in zip(cache.layers, theirs_cache.layers, strict=True):
        assert one.keys.shape == (2, 2, 11, 8)
        close(one.keys, other.keys)
        close(one.values, other.values)


def test_other_caches() -> None:
    ours, _ = pair()
    batch = ids(2, 9)
    whole = ours(batch).logits
    with torch.no_grad():
        kept = transformers.DynamicCache()
        out = ours(batch[:, :5], past_key_values=kept, use_cache=False)
        assert out.past_key_values is kept and kept.get_seq_length() == 5
        close(ours(batch[:, 5:], past_key_values=kept).logits, whole[:, 5:])
        tuples = ours(batch[:, :5]).past_key_values.to_legacy_cache()
        close(ours(batch[:, 5:], past_key_values=tuples).logits, whole[:, 5:])
        with pytest.raises(ValueError, match="cannot follow"):
            ours(batch[:1, 5:], past_key_values=ours(batch[:, :5]).past_key_values)
        fixed = transformers.StaticCache(
            config=transformers.ApertusConfig(**SIZES), max_cache_len=20
        )
        with pytest.raises(ValueError, match="use a DynamicCache"):
            ours(batch, past_key_values=fixed)


def test_left_padding_behind_a_cache() -> None:
    ours, theirs = pair()
    batch, mask = ids(2, 8), torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1] * 8])
    caches = [
        model(batch[:, :5], attention_mask=mask[:, :5]).past_key_values for model in (ours, theirs)
    ]
    given = {"attention_mask": mask}
    one = ours(batch[:, 5:], past_key_values=caches[0], **given).logits
    close(one, theirs(batch[:, 5:], past_key_values=caches[1], **given).logits, 1e-6)
    close(one[:1], ours(batch[:1, 2:]).logits[:, 3:])


def test_what_was_taken_from_a_cache_stays() -> None:
    """Memory with room is written only behind what nobody else holds."""
    cache = fastbert.DynamicCache()
    step = torch.arange(4.0).reshape(1, 1, 4, 1)
    with torch.no_grad():
        cache.update(step, step, 0)
        for token in range(4, 100):
            new = torch.full((1, 1, 1, 1), float(token))
            keys, _ = cache.update(new, new, 0)
        assert keys.flatten().tolist() == list(range(100))
        copied = copy.deepcopy(cache)
        cache.crop(50)
        other, _ = cache.update(-step, -step, 0)
        assert keys.flatten().tolist() == list(range(100))
        assert other.flatten().tolist() == [*range(50), 0, -1, -2, -3]
        more, _ = copied.update(step, step, 0)
        assert more.flatten().tolist() == [*range(100), 0, 1, 2, 3]
        assert keys.flatten().tolist() == list(range(100))


# xIELU


def test_xielu_has_the_published_values() -> None:
    x = [-20, -5, -1, -1e-3, -2e-6, -1e-6, -5e-7, -1e-8, 0, 1e-8, 1e-3, 1, 5, 20]
    expected = [
        5.2, 0.705390358, -0.205696447, -0.000499600133, -9.999984e-07, -4.999996e-07,
        -6.499996e-07, -7.969996e-07, -7.999996e-07, 5.00000008e-09, 0.0005008, 1.3, 22.5, 330.0,
    ]  # fmt: skip
    act = fastbert.models.apertus.ApertusMLP(fastbert.ApertusConfig(**SIZES)).act_fn.double()
    act.reset_parameters()
    found = act(torch.tensor(x, dtype=torch.float64)[None])[0]
    torch.testing.assert_close(found.tolist(), expected, rtol=1e-6, atol=0)
    zero = torch.zeros(1, dtype=torch.float64)
    for value, result in ((2.0, 3.772588722239781), (-2.0, 0.35462209218399154)):
        given = torch.tensor([[value]], dtype=torch.float64)
        beta, eps = torch.tensor(0.5).double(), torch.tensor(-1e-6).double()
        torch.testing.assert_close(xielu(given, zero, zero, beta, eps).item(), result)


def test_gradients_of_xielu_between_eps_and_zero() -> None:
    """The minimum passes none there, so that the slope is beta less the exponential's factor."""
    ours, theirs = pair()
    one, other = ours.model.layers[0].mlp.act_fn, theirs.model.layers[0].mlp.act_fn
    points = torch.tensor([-3.0, -2e-6, -1e-6, -5e-7, 0.0, 5e-7, 2.0], dtype=torch.float64)
    gradients = []
    for act in (one, other):
        x = points.clone()[None].requires_grad_()
        act(x).sum().backward()
        gradients.append((x.grad, act.alpha_p.grad, act.alpha_n.grad))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


# The parts


def test_parts_can_be_called_alone() -> None:
    ours, theirs = pair()
    hidden = torch.randn(2, 5, 32, dtype=torch.float64)
    positions = torch.arange(5)[None]
    layers = ours.model.layers[1], theirs.model.layers[1]
    rotations = [model.model.rotary_emb(hidden, positions) for model in (ours, theirs)]
    for a, b in zip(*rotations, strict=True):
        assert torch.equal(a, b)
    close(layers[0].mlp(hidden), layers[1].mlp(hidden))
    close(layers[0].attention_layernorm(hidden), layers[1].attention_layernorm(hidden))
    plain = tuple(rotations[1])  # without what the model's own pass adds
    mask = torch.zeros(1, 1, 5, 5).double().masked_fill(~torch.ones(5, 5).tril().bool(), -1e300)
    for rotation in (rotations[0], plain):
        given = {"position_embeddings": rotation, "attention_mask": mask}
        close(layers[0](hidden, **given), layers[1](hidden, **given))
        close(layers[0](hidden, position_embeddings=rotation), layers[1](hidden, **given))
        close(layers[0].self_attn(hidden, **given)[0], layers[1].self_attn(hidden, **given)[0])
    with pytest.raises(TypeError, match="rotary_emb"):
        layers[0](hidden)


def test_hooks_see_the_whole_grid() -> None:
    ours, theirs = pair()
    batch, mask = ids(2, 7), torch.tensor(PADDED["right"])
    seen: list[dict[str, Tensor]] = []
    for model in (ours, theirs):
        shapes: dict[str, Tensor] = {}
        for name, module in model.model.named_modules():
            if name and not name.endswith(("rotary_emb", "self_attn", "layers", "_norm")):
                module.register_forward_hook(
                    lambda _m, _i, out, name=name, shapes=shapes: shapes.update({name: out})
                )
        model(batch, attention_mask=mask, use_cache=False)
        seen.append(shapes)
    assert set(seen[0]) == set(seen[1])
    for name, result in seen[0].items():
        close(result[mask != 0], seen[1][name][mask != 0])


class Doubled(nn.Module):
    """Somebody's own part: what it stands for, twice."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = self.inner(*args, **kwargs)
        return (out[0] * 2, out[1]) if isinstance(out, tuple) else out * 2


@pytest.mark.parametrize(
    "place",
    [
        "norm",
        "embed_tokens",
        "layers.0",
        "layers.1.self_attn",
        "layers.0.mlp",
        "layers.0.mlp.act_fn",
        "layers.1.attention_layernorm",
        "layers.0.feedforward_layernorm",
        "layers.0.self_attn.q_norm",
        "layers.1.self_attn.k_proj",
        "layers.1.mlp.down_proj",
    ],
)
def test_parts_of_others_are_called(place: str) -> None:
    ours, theirs = pair()
    for model in (ours, theirs):
        owner, _, name = place.rpartition(".")
        module = model.model.get_submodule(owner)
        setattr(module, name, Doubled(getattr(module, name)))
    batch, mask = ids(2, 7), torch.tensor(PADDED["right"])
    for cached in (True, False):
        given = {"attention_mask": mask, "use_cache": cached}
        one, other = ours(batch, **given), theirs(batch, **given)
        close(one.logits[mask != 0], other.logits[mask != 0])
    close(ours(batch).logits, theirs(batch).logits)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    given = {"position_ids": positions, "use_cache": False}
    close(ours(batch[:1], **given).logits, theirs(batch[:1], **given).logits)


def test_a_layer_of_transformers_runs_among_ours() -> None:
    ours, theirs = pair()
    batch = ids(2, 7)
    expected = ours(batch).logits
    ours.model.layers[1] = theirs.model.layers[1]
    close(ours(batch).logits, expected)
    ours.model.layers[0].self_attn = theirs.model.layers[0].self_attn
    mask = torch.tensor(PADDED["left"])
    close(ours(batch).logits, expected)
    found = ours(batch, attention_mask=mask).logits[0, 3:]
    close(found, pair()[0](batch, attention_mask=mask).logits[0, 3:])


@pytest.mark.parametrize("name", ["ApertusForCausalLM", "ApertusForTokenClassification"])
def test_whoever_stands_below_and_in_a_head_is_called(name: str) -> None:
    batch, mask = ids(2, 7), torch.tensor(PADDED["right"])
    given = {"attention_mask": mask, "labels": batch % 2, "use_cache": False}
    for kind in ("wrapped", "hooked", "head"):
        found = []
        for model in pair(name):
            seen: list[Tensor] = []
            if kind == "wrapped":
                model.model = Around(model.model)
            elif kind == "hooked":
                model.model.register_forward_hook(
                    lambda _m, _a, out, seen=seen: seen.append(out.last_hidden_state)
                )
            else:
                head = model.lm_head if hasattr(model, "lm_head") else model.score
                head.register_forward_hook(lambda _m, _a, out, seen=seen: seen.append(out * 2))
                head.register_forward_hook(lambda _m, _a, out: out * 2)
            out = model(batch, output_hidden_states=True, **given)
            found.append((out, seen))
        (one, ours), (other, theirs) = found
        close(one.logits, other.logits)
        close(one.loss, other.loss, 1e-6)
        close(one.hidden_states[1], other.hidden_states[1])
        assert len(ours) == len(theirs) == (kind != "wrapped")
        for a, b in zip(ours, theirs, strict=True):
            close(a, b)


class Around(nn.Module):
    """Somebody's own model around a model."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = self.inner(*args, **kwargs)
        out.last_hidden_state = out.last_hidden_state * 2
        return out


def test_fewer_layers_by_the_configuration() -> None:
    ours, theirs = pair()
    ours.config.num_hidden_layers = theirs.config.num_hidden_layers = 1
    batch = ids(1, 5)
    close(ours(batch).logits, theirs(batch).logits)
    assert isinstance(ours.model.layers[1], ApertusDecoderLayer)


# How it computes


def test_the_plan_says_what_runs_where() -> None:
    ours, _ = pair(dtype=torch.float32)
    plan = ours.plan()
    assert [choice.op for choice in plan.choices] == [
        "rms_norm", "linear", "qk_norm_rope", "attention_grouped", "xielu",
    ]  # fmt: skip
    text = fastbert.explain(ours)
    assert all(f"\n{choice.op} " in f"\n{text}" for choice in plan.choices)
    assert {choice.backend for choice in plan.choices} == {"cpu"}
    bert = fastbert.BertConfig(
        vocab_size=9,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    names = [choice.op for choice in fastbert.BertModel(bert).plan().choices]
    assert "rms_norm" not in names and "attention_varlen" in names


def test_float32_without_gradients() -> None:
    ours, _ = pair(dtype=torch.float32)
    batch, mask = ids(3, 9), torch.tensor([[1] * 9, [0] * 4 + [1] * 5, [1] * 9])
    exact = copy.deepcopy(ours).double()(batch, attention_mask=mask).logits
    with torch.no_grad():
        for cached in (True, False):
            found = ours(batch, attention_mask=mask, use_cache=cached).logits
            close(found[mask != 0], exact[mask != 0], 1e-5)
        compiled = torch.compile(ours, backend="eager")
        close(compiled(batch).logits, copy.deepcopy(ours).double()(batch).logits, 1e-5)


def test_pruning_is_refused_by_name() -> None:
    ours, _ = pair(dtype=torch.float32)
    with pytest.raises(ValueError, match="pruned"):
        ours.prune_heads({0: [1]})


@pytest.mark.parametrize("shape", [(0, 6), (2, 0)])
@pytest.mark.parametrize("use_cache", [False, True])
def test_no_texts_and_no_tokens_give_empty_results(shape: tuple[int, int], use_cache: bool) -> None:
    ours = pair(dtype=torch.float32)[0]
    with torch.no_grad():
        empty = torch.zeros(*shape, dtype=torch.long)
        output = ours(empty, use_cache=use_cache)
        assert output.logits.shape == (*shape, SIZES["vocab_size"])
        assert ours.model(empty, use_cache=use_cache).last_hidden_state.shape == (*shape, 32)
        if use_cache:
            output = ours(ids(shape[0], 5), past_key_values=output.past_key_values)
            assert torch.equal(output.logits, ours(ids(shape[0], 5)).logits)
