"""The attention function that transformers' models of other families call.

The mechanism: masks are compared whole with what a layout of sequences stands for, so every model
computes what it computes with `attn_implementation="sdpa"`, gradients included, whichever its mask;
what kernels do not serve goes there, and what sdpa does not compute either is refused.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import fastbert
from fastbert.integrations import attention
from fastbert.integrations.mask_layouts import KeyLayout, read_mask
from fastbert.integrations.transformers import register_attention

register_attention()

_SIZES = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
          "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0,
          "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
_GROUPED = {**_SIZES, "num_key_value_heads": 2}


def _t5() -> Any:
    config = transformers.T5Config(
        vocab_size=60, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, dropout_rate=0.0,
        decoder_start_token_id=0,
    )  # fmt: skip
    return transformers.T5Model(config)


def _vit() -> Any:
    config = transformers.ViTConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        image_size=16, patch_size=4,
    )  # fmt: skip
    return transformers.ViTModel(config)


def _modernbert(window: int) -> Any:
    sizes = {**_SIZES, "num_hidden_layers": 3, "cls_token_id": 1, "sep_token_id": 2}
    config = transformers.ModernBertConfig(
        **sizes, local_attention=window, global_attn_every_n_layers=3, attention_dropout=0.0
    )
    return transformers.ModernBertModel(config)


_MODELS = {
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**_SIZES)),
    "modernbert": lambda: _modernbert(64),
    "modernbert-window": lambda: _modernbert(4),
    "llama": lambda: transformers.LlamaModel(transformers.LlamaConfig(**_GROUPED)),
    "qwen2": lambda: transformers.Qwen2Model(transformers.Qwen2Config(**_GROUPED)),
    "mistral-window": lambda: transformers.MistralModel(
        transformers.MistralConfig(**_GROUPED, sliding_window=3)
    ),
    "vit": _vit,
    "t5": _t5,
}
_WINDOWS = ("modernbert-window", "mistral-window")


def _padded(side: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(3, 60, (3, 9), generator=generator)
    lengths = torch.tensor([[9], [4], [6]])
    columns = torch.arange(9)
    mask = columns < lengths if side == "right" else columns >= 9 - lengths
    if side == "holes":
        mask = (columns + torch.arange(3)[:, None]) % 3 != 1
        mask[:, 0] = True
    return {"input_ids": ids * mask, "attention_mask": mask.long()}


def _inputs(name: str, padding: str) -> dict[str, Tensor]:
    if name == "vit":
        generator = torch.Generator().manual_seed(4)
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
    given = _padded("right" if padding == "none" else padding)
    if padding == "none":
        given = {"input_ids": given["input_ids"].clamp(min=3)}
    if name == "t5":
        given["decoder_input_ids"] = torch.arange(3, 18).reshape(3, 5)
    return given


def _pair(name: str) -> tuple[Any, Any]:
    torch.manual_seed(1)
    theirs = _MODELS[name]().eval()
    theirs.set_attn_implementation("sdpa")
    ours = copy.deepcopy(theirs)
    ours.set_attn_implementation("fastbert")
    return theirs, ours


@pytest.fixture(autouse=True)
def _warnings_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_told", set())


@pytest.mark.parametrize("padding", ["none", "right", "left", "holes"])
@pytest.mark.parametrize("name", [*_MODELS])
def test_models_compute_what_they_do_with_sdpa(name: str, padding: str) -> None:
    theirs, ours = _pair(name)
    given = _inputs(name, padding)
    with warnings.catch_warnings(record=True) as said, torch.no_grad():
        warnings.simplefilter("always")
        found, expected = ours(**given)[0], theirs(**given)[0]
    assert (found - expected).abs().max() <= 2e-5
    left = [str(w.message) for w in said if "to transformers' sdpa" in str(w.message)]
    assert bool(left) == (name in _WINDOWS), left


@pytest.mark.filterwarnings("ignore:attn_implementation")
@pytest.mark.parametrize("padding", ["none", "right", "left", "holes"])
@pytest.mark.parametrize("name", ["bert", "modernbert", "qwen2", "vit"])
def test_gradients_are_those_of_sdpa(name: str, padding: str) -> None:
    theirs, ours = _pair(name)
    given = _inputs(name, padding)
    weight = None
    for model in (theirs, ours):
        out = model(**given)[0]
        weight = torch.randn_like(out) if weight is None else weight
        (out * weight).sum().backward()
    pairs = list(zip(ours.named_parameters(), theirs.parameters(), strict=True))
    assert any(one.grad is not None for (_, one), _ in pairs)
    for (path, one), other in pairs:
        assert (one.grad is None) == (other.grad is None), path
        if one.grad is not None:
            bound = 2e-5 * max(1.0, float(other.grad.abs().max()))
            assert (one.grad - other.grad).abs().max() <= bound, path


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_by_our_own_backward_pass(dtype: torch.dtype, causal: bool) -> None:
    keys = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0]], dtype=torch.bool)
    mask = keys[:, None, None].expand(2, 1, 7, 7)
    if causal:
        mask = mask & torch.ones(7, 7, dtype=torch.bool).tril()
    served = causal is False or dtype is torch.bfloat16
    results = []
    for function, kind in (
        (attention.attention_forward, dtype),
        (sdpa_attention_forward, torch.float64),
    ):
        operands = [x.to(dtype).to(kind).requires_grad_() for x in _operands()]
        with warnings.catch_warnings():
            warnings.simplefilter("error" if served else "ignore")
            out = function(_Module(), *operands, mask)[0]
        out.backward(torch.linspace(-1, 1, out.numel()).reshape(out.shape).to(dtype).to(kind))
        results.append([out.detach(), *(x.grad for x in operands)])
    bound = 2e-6 if dtype is torch.float32 else 3e-2
    for found, expected in zip(*results, strict=True):
        assert (found - expected).abs().max() <= bound * max(1.0, float(expected.abs().max()))


@pytest.mark.filterwarnings("ignore:attn_implementation")
def test_text_is_generated_alike_with_padding_and_cache() -> None:
    torch.manual_seed(2)
    theirs = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**_GROUPED)).eval()
    theirs.set_attn_implementation("sdpa")
    given = {**_padded("left"), "max_new_tokens": 8, "do_sample": False, "num_beams": 2}
    expected = theirs.generate(**given)
    theirs.set_attn_implementation("fastbert")
    assert torch.equal(theirs.generate(**given), expected)


def test_texts_packed_into_one_row_stay_apart() -> None:
    theirs, ours = _pair("llama")
    given = {
        "input_ids": torch.arange(3, 12)[None],
        "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 0, 1, 2]]),
        "use_cache": False,
    }
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        found, expected = ours(**given)[0], theirs(**given)[0]
        alone = ours(given["input_ids"][:, 4:6])[0]
    assert (found - expected).abs().max() <= 2e-5
    assert (found[:, 4:6] - alone).abs().max() <= 2e-5


def test_a_text_without_any_key_gets_what_sdpa_gives() -> None:
    theirs, ours = _pair("bert")
    given = _padded("right")
    given["attention_mask"][1] = 0
    with torch.no_grad():
        assert (ours(**given)[0] - theirs(**given)[0]).abs().max() <= 2e-5


class _Module(nn.Module):
    is_causal = False
    num_key_value_groups = 2


_MASKS = {
    "of numbers": lambda: torch.zeros(1, 1, 7, 7).index_fill_(
        3, torch.tensor([1, 5]), torch.finfo(torch.float32).min
    ),
    "of other numbers": lambda: torch.linspace(-3, 2, 49).reshape(1, 1, 7, 7),
    "a row of lowest numbers": lambda: torch.zeros(1, 1, 7, 7).index_fill_(
        2, torch.tensor([3]), torch.finfo(torch.float32).min
    ),
    "for each head": lambda: (torch.arange(4 * 49) % 3 > 0).reshape(1, 4, 7, 7),
    "of one row": lambda: (torch.arange(7) % 3 > 0).reshape(1, 1, 1, 7),
    "of a window": lambda: torch.ones(2, 1, 7, 7).tril(1).triu(-2) > 0,
    "causal with a hidden key": lambda: (
        torch.ones(2, 1, 7, 7).tril().index_fill_(3, torch.tensor([0]), 0.0) > 0
    ),
    "of one visible pair": lambda: (
        torch.zeros(2, 1, 7, 7).index_fill_(3, torch.tensor([6]), 1.0) > 0
    ),
}


def _operands(**kwargs: Any) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = ((2, 4, 7, 16), (2, 2, 7, 16), (2, 2, 7, 16))
    return [torch.randn(shape, generator=generator, **kwargs) for shape in shapes]


@pytest.mark.filterwarnings("ignore:attn_implementation")
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("kind", [*_MASKS])
def test_masks_of_any_contents(kind: str, biased: bool) -> None:
    mask, operands = _MASKS[kind](), _operands()
    bias = torch.linspace(-2, 2, 4 * 49).reshape(1, 4, 7, 7) if biased else None
    for _ in range(2):  # the second time with what was read at first
        found, _ = attention.attention_forward(_Module(), *operands, mask, position_bias=bias)
        expected, _ = sdpa_attention_forward(_Module(), *operands, mask, position_bias=bias)
        assert found.shape == expected.shape and found.is_contiguous()
        assert (found - expected).abs().max() <= 2e-6


def test_a_mask_that_was_written_to_is_read_again() -> None:
    mask, operands = torch.ones(2, 1, 7, 7, dtype=torch.bool), _operands()
    for _ in range(3):
        found, _ = attention.attention_forward(_Module(), *operands, mask)
        expected, _ = sdpa_attention_forward(_Module(), *operands, mask)
        assert (found - expected).abs().max() <= 2e-6
        mask[:, :, :, int(mask[0, 0, 0].sum()) - 1] = False
    with torch.inference_mode():
        mask = torch.ones(2, 1, 7, 7, dtype=torch.bool)  # torch counts no writes to this one
        for _ in range(3):
            found, _ = attention.attention_forward(_Module(), *operands, mask)
            expected, _ = sdpa_attention_forward(_Module(), *operands, mask)
            assert (found - expected).abs().max() <= 2e-6
            mask[:, :, :, int(mask[0, 0, 0].sum()) - 1] = False


def test_padding_is_left_out_without_copies() -> None:
    keys = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]], dtype=torch.bool)
    layout = read_mask(keys[:, None, None].expand(2, 1, 4, 4), (2, 4, 4))
    assert isinstance(layout, KeyLayout) and layout.key_bias is None
    assert layout.cu_seqlens_k.diff().tolist() == [0, 2, 2, 1, 3, 0]
    assert layout.cu_seqlens_q.diff().tolist() == [0, 4, 0, 0, 4, 0]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"dropout": 0.5}, "drops weights"),
        ({"head_mask": torch.ones(4)}, "head_mask"),
        ({"output_attentions": True}, "output_attentions"),
    ],
)
def test_what_kernels_do_not_serve_is_said_once(given: dict[str, Any], why: str) -> None:
    operands = _operands()
    torch.manual_seed(5)
    with pytest.warns(UserWarning, match=why):
        found, _ = attention.attention_forward(_Module(), *operands, None, **given)
    torch.manual_seed(5)
    assert torch.equal(found, sdpa_attention_forward(_Module(), *operands, None, **given)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attention.attention_forward(_Module(), *operands, None, **given)


@pytest.mark.filterwarnings("ignore:attn_implementation")
def test_other_precisions_and_autocast() -> None:
    for dtype, bound in ((torch.float64, 1e-12), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)):
        operands = _operands(dtype=dtype)
        found, _ = attention.attention_forward(_Module(), *operands, None)
        expected, _ = sdpa_attention_forward(_Module(), *operands, None)
        assert found.dtype is dtype and (found - expected).abs().max() <= bound
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = attention.attention_forward(_Module(), *_operands(), None)
        expected, _ = sdpa_attention_forward(_Module(), *_operands(), None)
    assert found.dtype is expected.dtype is torch.bfloat16
    assert (found - expected).abs().max() <= 2e-2


@pytest.mark.parametrize("name", ["s_aux", "softcap", "indices"])
def test_what_sdpa_would_leave_out_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.*attn_implementation='eager'"):
        attention.attention_forward(_Module(), *_operands(), None, **{name: torch.ones(4)})


def test_models_without_sdpa_and_causal_guesses_are_refused() -> None:
    model = transformers.GptOssModel(
        transformers.GptOssConfig(**_GROUPED, head_dim=8, num_local_experts=2)
    )
    model.set_attn_implementation("fastbert")
    with pytest.raises(ValueError, match="GptOssAttention"):
        model(torch.ones(1, 4, dtype=torch.int64))
    q, k, v = _operands()
    with pytest.raises(ValueError, match="where the queries stand"):
        attention.attention_forward(_Module(), q[:, :, :3], k, v, None, is_causal=True)


def test_a_compiled_pass_computes_the_same() -> None:
    module, operands, mask = _Module(), _operands(), _MASKS["of one row"]()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention.attention_forward(module, q, k, v, mask)[0]

    compiled = torch.compile(attend, backend="eager", fullgraph=True)
    assert (compiled(*operands) - attend(*operands)).abs().max() <= 2e-6


def test_registering_twice_changes_nothing() -> None:
    register_attention()
    model = transformers.BertModel(transformers.BertConfig(**_SIZES))
    model.set_attn_implementation("fastbert")
    assert model.config._attn_implementation == "fastbert"
    assert "fastbert" not in str(model.config.to_dict())


def test_an_accelerated_encoder_with_it_stays_on_kernels() -> None:
    theirs, ours = _pair("bert")
    fastbert.accelerate(ours, strict=True)
    given = _padded("right")
    with torch.no_grad():
        assert (ours(**given)[0] - theirs(**given)[0]).abs().max() <= 2e-5
