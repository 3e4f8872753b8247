"""Apertus with int8 weights computes what these weights say, with rows of 16 bits.

The mechanism: every product of the layers, and the head, is replaced by an Int8Linear whose op is
`linear_w8a16`; loading quantises tensor by tensor, and a head that was tied gets its own weights.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from apertus_pair import ids, pair
from torch import Tensor, nn

import fastbert
from fastbert.layers.linear import Int8Linear
from fastbert.modeling.quantization import quantize

MASK = torch.tensor([[1] * 9, [0] * 4 + [1] * 5, [0] * 7 + [1] * 2])


def made(dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    ours, _ = pair(dtype=dtype, **options)
    return quantize(ours)


def exact(model: Any) -> Any:
    """A floating model in float64 with the values that the int8 weights stand for."""
    config = copy.deepcopy(model.config)
    config.tie_word_embeddings, config.quantization_config = False, None
    plain = fastbert.ApertusForCausalLM(config).double().eval()
    state = {n: t.double() for n, t in model.state_dict().items() if "qweight" not in n}
    for name, part in model.named_modules():
        if isinstance(part, Int8Linear):
            scale = state.pop(f"{name}.weight_scale")
            state[f"{name}.weight"] = part.qweight.double() * scale[:, None]
    plain.load_state_dict(state)
    return plain


def error(found: Tensor, expected: Tensor) -> float:
    real = MASK.bool()
    found, expected = found.double()[real], expected[real]
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("tied", [False, True])
def test_scores_are_those_of_the_weights(tied: bool) -> None:
    """In float32 by the rounding of rows to 16 bits; in bfloat16 no worse than bfloat16 itself."""
    batch = ids(3, 9)
    with torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16):
            model = made(dtype, tie_word_embeddings=tied)
            plain = exact(model)
            expected = plain(batch, attention_mask=MASK).logits
            bound = 4e-4
            if dtype is torch.bfloat16:
                own = copy.deepcopy(plain).to(dtype)
                with fastbert.use_backend("reference"):
                    bound = 2 * error(own(batch, attention_mask=MASK).logits, expected)
            assert error(model(batch, attention_mask=MASK).logits, expected) <= bound
            states = model(batch, attention_mask=MASK, output_hidden_states=True)
            assert error(states.logits, expected) <= bound
            with fastbert.use_backend("reference"):
                assert error(model(batch, attention_mask=MASK).logits, expected) <= bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_alone_in_a_batch_and_token_by_token(dtype: torch.dtype) -> None:
    model, batch = made(dtype), ids(3, 9)
    with torch.no_grad():
        together = model(batch, attention_mask=MASK).logits
        for row, mask in enumerate(MASK):
            text = batch[row : row + 1, mask.bool()]
            assert torch.equal(model(text).logits[0], together[row, mask.bool()])
        first = model(batch[:, :8], attention_mask=MASK[:, :8], use_cache=True)
        last = model(batch[:, 8:], attention_mask=MASK, past_key_values=first.past_key_values)
        steps = model.generate(batch[:1], max_new_tokens=5, use_cache=True)
        assert torch.equal(steps, model.generate(batch[:1], max_new_tokens=5, use_cache=False))
    assert error(last.logits.expand(-1, 9, -1), together[:, -1:].expand(-1, 9, -1).double()) < 2e-2
    assert "one native call" in str(fastbert.explain(model))
    assert "linear_w8a16      cpu" in str(fastbert.explain(model))


def test_every_product_is_int8_and_nothing_else() -> None:
    model = made(tie_word_embeddings=True)
    products = [n for n, m in model.named_modules() if isinstance(m, Int8Linear)]
    assert len(products) == 2 * 6 + 1 and "lm_head" in products
    assert not [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    assert model.get_input_embeddings().weight.dtype is torch.float32
    assert model.tied_weights() == {}
    assert {m.op for m in model.modules() if isinstance(m, Int8Linear)} == {"linear_w8a16"}


@pytest.mark.parametrize("tied", [False, True])
def test_files(tmp_path: Path, tied: bool) -> None:
    """What is loaded from floats, from int8, and quantised in memory is the same."""
    ours, _ = pair(dtype=torch.bfloat16, tie_word_embeddings=tied)
    ours.save_pretrained(tmp_path / "plain")
    model, batch = quantize(ours), ids(2, 7)
    model.save_pretrained(tmp_path / "int8")
    with torch.no_grad():
        expected = model(batch).logits
        loaded = fastbert.AutoModelForCausalLM.from_pretrained(
            tmp_path / "plain", quantization="int8"
        )
        assert torch.equal(loaded(batch).logits, expected)
        again = fastbert.AutoModelForCausalLM.from_pretrained(tmp_path / "int8")
        assert torch.equal(again(batch).logits, expected)
        assert torch.equal(copy.deepcopy(again)(batch).logits, expected)
    assert type(again.lm_head) is Int8Linear
    tokens = fastbert.ApertusForTokenClassification.from_pretrained(
        tmp_path / "plain", quantization="int8", output_loading_info=True
    )[0]
    assert type(tokens.score) is not Int8Linear
    assert type(tokens.model.layers[0].mlp.up_proj) is Int8Linear
    with torch.no_grad():
        assert torch.isfinite(tokens(batch).logits).all()


def test_weights_that_are_written_to_are_seen() -> None:
    model, batch = made(), ids(1, 5)
    with torch.no_grad():
        before = model(batch).logits
        model.lm_head.weight_scale.mul_(2.0)
        assert torch.equal(model(batch).logits, 2 * before)
        model.model.layers[1].mlp.down_proj.qweight.zero_()
        changed = model(batch).logits
        expected = exact(model)(batch).logits
    assert float((changed - expected).norm() / expected.norm()) < 4e-4


def test_what_int8_weights_cannot_do() -> None:
    model = made()
    with pytest.raises(ValueError, match="head of this model is int8"):
        model.resize_token_embeddings(60)


_PEAK = """
import resource, sys, torch, fastbert
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = fastbert.AutoModelForCausalLM.from_pretrained(sys.argv[1], quantization="int8")
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
held = sum(t.numel() * t.element_size() for _, t in model.named_tensors())
print(after - before, held // 1024)
"""


def test_loading_holds_one_floating_tensor_at_a_time(tmp_path: Path) -> None:
    """Beyond what stays, loading takes a few temporaries of one tensor, never all weights."""
    config = fastbert.ApertusConfig(
        vocab_size=2000, hidden_size=512, intermediate_size=2688, num_hidden_layers=9,
        num_attention_heads=8, num_key_value_heads=4, tie_word_embeddings=True,
    )  # fmt: skip
    model = fastbert.ApertusForCausalLM(config).bfloat16()
    model.save_pretrained(tmp_path)
    floats = sum(p.numel() for p in model.parameters()) * 2 // 1024
    ran = subprocess.run(
        [sys.executable, "-c", _PEAK, str(tmp_path)], capture_output=True, text=True, check=True
    )
    grown, held = map(int, ran.stdout.split())
    largest = 2688 * 512 * 4 // 1024
    assert held < 0.6 * floats
    assert grown < held + 5 * largest < floats + held
