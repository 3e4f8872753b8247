"""What the models do besides computing what transformers computes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch

import fastbert
from fastbert.layers.linear import Linear
from fastbert.modeling.quantization import quantize_weight


def near(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal but for the order of sums, which the reference's matrix product chooses by shape."""
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "name",
    ["BertForMaskedLM", "CamembertForMaskedLM", "RemBertForMaskedLM", "FlaubertWithLMHeadModel"],
)
def test_logits_only_where_wanted(name: str) -> None:
    _, ours = oracle.shared_pair(name)
    ids, mask = oracle.random_ids(), oracle.padded_mask()
    labels = oracle.random_labels(61, ids.shape).masked_fill(mask == 0, -100)
    labels[:, ::2] = -100
    with torch.no_grad():
        whole = ours(ids, attention_mask=mask, labels=labels)
        only = ours(ids, attention_mask=mask, labels=labels, logits_to_keep="labels")
        chosen = ours(ids, attention_mask=mask, logits_to_keep=mask.bool()).logits
        rows = torch.tensor([[1, 2], [3, 0], [4, 5], [6, 4]])
        gathered = ours(ids, attention_mask=mask, logits_to_keep=rows).logits
    assert only.logits.shape == (int((labels != -100).sum()), oracle.VOCABULARY)
    assert near(only.logits, whole.logits[labels != -100])
    assert near(only.loss, whole.loss)
    assert near(chosen, whole.logits[mask.bool()])
    assert near(gathered, whole.logits[torch.arange(4)[:, None], rows])
    with pytest.raises(ValueError, match="needs labels"):
        ours(ids, logits_to_keep="labels")


@pytest.mark.parametrize(
    "name",
    ["BertForMaskedLM", "CamembertForCausalLM", "RemBertForMaskedLM", "FlaubertWithLMHeadModel"],
)
def test_resizing_the_vocabulary(name: str, tmp_path: Path) -> None:
    _, ours = oracle.pair(name)
    ids = oracle.random_ids()
    with torch.no_grad():
        before = ours(ids).logits
        ours.resize_token_embeddings(70)
        after = ours(ids).logits
        assert after.shape[-1] == 70 and ours.config.vocab_size == ours.vocab_size == 70
        assert near(after[..., :61], before)
        ours(torch.full((1, 7), 69))
        table, output = ours.get_input_embeddings(), ours.get_output_embeddings()
        tied = output.weight is table.weight
        assert tied is bool(ours.config.tie_word_embeddings)
        assert (table.weight[61:] - table.weight[:61].mean(0)).abs().max() < 1e-3
        ours.save_pretrained(tmp_path)
        again = getattr(fastbert, name).from_pretrained(tmp_path, backend="reference")
        assert near(again(ids).logits, after)
        ours.resize_token_embeddings(61)
        assert near(ours(ids).logits, before)
    assert ours.resize_token_embeddings(61, pad_to_multiple_of=64).num_embeddings == 64
    with pytest.raises(ValueError, match=r"multiple of `1\.3`, which is not and integer"):
        ours.resize_token_embeddings(61, pad_to_multiple_of=1.3)


@pytest.mark.parametrize("rows", [70, 40])
@pytest.mark.parametrize(
    "name", ["BertForMaskedLM", "RobertaForMaskedLM", "FlaubertWithLMHeadModel"]
)
def test_a_table_of_another_size_is_tied_with_its_bias(name: str, rows: int) -> None:
    """Put in by hand, as transformers takes it: the bias gets zeros for new words."""
    theirs, ours = oracle.pair(name)
    ids = 5 + oracle.random_ids() % 30  # no padding
    for model in (theirs, ours):
        torch.manual_seed(2)
        with torch.no_grad():
            model(ids)
            model.set_input_embeddings(torch.nn.Embedding(rows, oracle.HIDDEN, dtype=torch.float64))
            model.tie_weights()
    with torch.no_grad():
        expected, found = theirs(ids)[0], ours(ids)[0]
    assert found.shape[-1] == rows
    error = float((found - expected).abs().max() / expected.abs().max())
    assert error < oracle.tolerance(name)
    assert ours.get_output_embeddings().out_features == rows


@pytest.mark.parametrize("name", ["BertModel", "FlaubertModel"])
def test_pruned_heads_are_masked_heads(name: str, tmp_path: Path) -> None:
    _, ours = oracle.pair(name)
    ids = oracle.random_ids()
    mask = torch.ones(oracle.LAYERS, oracle.HEADS)
    mask[0, 1] = mask[0, 3] = mask[1, 0] = 0
    with torch.no_grad():
        masked = ours(ids, head_mask=mask).last_hidden_state
        ours.prune_heads({0: [1]})
        ours.prune_heads({0: [3, 1], 1: [0]})
        pruned = ours(ids).last_hidden_state
        assert torch.allclose(masked, pruned, rtol=0, atol=1e-12)
        assert [block.num_heads for block in ours.blocks()] == [2, 3]
        ours.save_pretrained(tmp_path)
        again = getattr(fastbert, name).from_pretrained(tmp_path, backend="reference")
        assert torch.equal(again(ids).last_hidden_state, pruned)
    with pytest.raises(ValueError, match="without a head"):
        ours.prune_heads({0: [0, 2]})
    with pytest.raises(ValueError, match="There is no layer 9"):
        ours.prune_heads({9: [0]})


@pytest.mark.parametrize("name", ["BertModel", "FlaubertModel", "CamembertForMaskedLM"])
def test_dropout_only_in_training(name: str) -> None:
    _, ours = oracle.pair(name)
    ids = oracle.random_ids()
    with torch.no_grad():
        assert torch.equal(ours(ids)[0], ours(ids)[0])
        ours.train()
        torch.manual_seed(0)
        one = ours(ids)[0]
        assert not torch.equal(one, ours(ids)[0])
        torch.manual_seed(0)
        assert torch.equal(one, ours(ids)[0])


def test_layerdrop_skips_layers_in_training() -> None:
    _, ours = oracle.pair("FlaubertModel", layerdrop=1.0, dropout=0.0, attention_dropout=0.0)
    with torch.no_grad():
        output = ours.train()(oracle.random_ids(), output_hidden_states=True)
    assert len(output.hidden_states) == 1


def test_gradients_reach_what_is_returned() -> None:
    _, ours = oracle.pair("BertModel")
    output = ours(oracle.random_ids(), output_hidden_states=True, output_attentions=True)
    output.hidden_states[0].retain_grad()
    output.attentions[0].retain_grad()
    output.last_hidden_state.sum().backward()
    assert output.hidden_states[0].grad is not None and output.attentions[0].grad is not None


def test_input_gradients_for_adapters() -> None:
    _, ours = oracle.pair("BertModel")
    ours.requires_grad_(False)
    ours.enable_input_require_grads()
    assert ours(oracle.random_ids()).last_hidden_state.requires_grad
    ours.disable_input_require_grads()
    assert not ours(oracle.random_ids()).last_hidden_state.requires_grad


def test_the_plan_says_who_computes() -> None:
    _, ours = oracle.pair("BertModel")
    ours = ours.float()
    ours.set_backend("auto")
    with torch.no_grad():
        assert ours.plan().choice("linear").backend == "cpu"
    assert ours.plan(needs_grad=True).choice("linear").backend == "reference"
    with fastbert.use_backend("reference"):
        assert ours.plan().choice("linear").backend == "reference"
    with pytest.raises(ValueError, match="no backend"):
        ours.set_backend("tpu")


@pytest.mark.parametrize("name", ["BertModel", "CamembertModel", "FlaubertModel", "RemBertModel"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, "int8"])
def test_a_text_does_not_feel_its_batch(name: str, dtype: Any, tmp_path: Path) -> None:
    _, ours = oracle.pair(name)
    ours.float().save_pretrained(tmp_path)
    options = {"quantization": "int8"} if dtype == "int8" else {"dtype": dtype}
    model = getattr(fastbert, name).from_pretrained(tmp_path, backend="cpu", **options)
    ids = oracle.random_ids()
    with torch.inference_mode():
        alone = [model(ids[i : i + 1, : 3 + i]).last_hidden_state[0] for i in range(4)]
        right = (torch.arange(7) < torch.arange(3, 7)[:, None]).long()
        batch = model(ids, attention_mask=right).last_hidden_state
    for i, one in enumerate(alone):
        assert torch.equal(batch[i, : 3 + i], one), f"{name} {dtype} text {i}"


def test_int8_weights_are_as_near_as_int8_can_be() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(50, 4096, generator=generator)
    weight[:, 0] = 6.0  # worth clipping: the others gain more than it loses
    weight[3] *= 1e-6
    weight[4] = 0
    weight[5, 7] = 40.0
    q, scale = quantize_weight(weight)
    assert q.dtype == torch.int8 and int(q.abs().max()) <= 127
    plain = weight.abs().amax(1).clamp(min=1e-30) / 127
    error = (q * scale[:, None] - weight).square().sum(1)
    rounded = (torch.round(weight / plain[:, None]) * plain[:, None] - weight).square().sum(1)
    assert bool((error <= rounded * (1 + 1e-6)).all()) and float(error.sum()) < float(rounded.sum())
    weight[6, 0] = float("nan")
    assert bool(quantize_weight(weight)[1][6].isnan())


_PEAK = """
import resource, sys, torch, fastbert
torch.set_num_threads(1)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
fastbert.BertModel.from_pretrained(sys.argv[1])
before = peak()
model = fastbert.BertModel.from_pretrained(sys.argv[2], **eval(sys.argv[3]))
print(peak() - before, sum(t.numel() * t.element_size() for _, t in model.named_tensors()))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A folder with a `small` and a `large` checkpoint, and the bytes of the largest tensor."""
    folder = tmp_path_factory.mktemp("saved")
    small = fastbert.BertConfig(**oracle.FAMILIES["Bert"])
    fastbert.BertModel(small).save_pretrained(folder / "small")
    model = fastbert.BertModel(fastbert.BertConfig(vocab_size=60000, hidden_size=768))
    model.save_pretrained(folder / "large")
    return folder, max(p.numel() * p.element_size() for p in model.parameters())


@pytest.mark.parametrize("options", ["{'dtype': 'bfloat16'}", "{'quantization': 'int8'}", "{}"])
def test_loading_holds_one_tensor_beside_the_weights(options: str, saved: tuple[Path, int]) -> None:
    """The peak above an idle process is at most 1.25 x (weights as asked + largest tensor)."""
    folder, largest = saved
    command = [sys.executable, "-c", _PEAK, folder / "small", folder / "large", options]
    grown, weights = map(int, subprocess.check_output(command, text=True).split())
    assert grown <= 1.25 * (weights + largest), f"{grown} bytes for {weights} + {largest}"


FULL = {
    "camembert-base": ("CamembertModel", {"vocab_size": 32005, "max_position_embeddings": 514}),
    "flaubert-base": ("FlaubertModel", {"vocab_size": 68729, "emb_dim": 768, "n_heads": 12}),
    "flaubert-large": (
        "FlaubertModel",
        {"vocab_size": 68729, "emb_dim": 1024, "n_layers": 24, "pre_norm": True},
    ),
    "rembert": ("RemBertModel", {}),
    "distilbert-base": ("DistilBertModel", {}),
    "electra-base": (
        "ElectraModel",
        {
            "embedding_size": 768,
            "hidden_size": 768,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
        },
    ),
    "electra-small": ("ElectraModel", {}),
    "mpnet-base": ("MPNetModel", {"max_position_embeddings": 514, "layer_norm_eps": 1e-5}),
    "bert-large": (
        "BertModel",
        {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
        },
    ),
}


@pytest.fixture(scope="module")
def drawn() -> torch.Tensor:
    """Normal values: drawing all of a large model takes longer than computing with it."""
    return torch.randn(2**22, generator=torch.Generator().manual_seed(0))


def fill(tensor: torch.Tensor, drawn: torch.Tensor, std: float) -> torch.Tensor:
    """Fill with `drawn` over and over, from another place each time."""
    shift = int(torch.randint(len(drawn), ()))
    for part in tensor.view(-1).split(len(drawn)):
        part.copy_(drawn.roll(shift)[: len(part)]).mul_(std)
        shift += 12347
    return tensor


@pytest.mark.parametrize("shape", list(FULL))
def test_full_size(shape: str, drawn: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published shapes, random weights: kernels against the reference path in float32."""
    name, values = FULL[shape]
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(
            torch.Tensor, "normal_", lambda t, mean=0.0, std=1.0, **_: fill(t, drawn, std)
        )
        model = getattr(fastbert, name)(getattr(fastbert, f"{name[:-5]}Config")(**values)).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Linear):
                fill(module.weight, drawn, 0.06)
        ids = torch.randint(10, 30000, (2, 24))
        mask = torch.ones_like(ids)
        mask[1, 17:] = 0
        model.set_backend("reference")
        expected = model(ids, attention_mask=mask).last_hidden_state
        model.set_backend("cpu", strict=True)
        got = model(ids, attention_mask=mask).last_hidden_state
    error = float((expected - got).abs().max() / expected.abs().max())
    assert error < 1e-4, f"{shape}: {error:.2e}"
