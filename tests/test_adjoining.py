"""A GPU's encoder reads the weights of queries, keys and values where they are, so that a write
that torch keeps no count of (`.data`) reaches all of a model's weights or none."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastbert.engine import encoder_cache, gpu_encoder
from fastbert.engine.adjoining import adjoin, adjoining, read_in_place
from fastbert.engine.gpu_encoder import GpuEncoder
from fastbert.kernels import native
from fastbert.kernels.registration import overload
from fastbert.layers.encoder import ForwardOptions, encode
from fastbert.models.bert import BertModel
from fastbert.ops import REGISTRY
from fastbert.runtime.packing import PackedBatch
from fastbert.runtime.plan import Choice, Plan, build_plan

CPU, META = torch.device("cpu"), torch.device("meta")
SIZES = {
    "vocab_size": 50, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 100, "max_position_embeddings": 40,
}  # fmt: skip
needs_kernels = pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))


class Never:
    """A recorder that is always busy, so that passes are plain."""

    def busy(self) -> bool:
        return True


def model() -> BertModel:
    torch.manual_seed(0)
    made = BertModel(BertModel.config_class(**SIZES), add_pooling_layer=False)
    return made.eval().requires_grad_(False)


def qkv(made: BertModel, layer: int = 0) -> tuple[Any, Any, Any]:
    block = made.blocks()[layer]
    return block.q, block.k, block.v


def moved(made: BertModel) -> BertModel:
    for layer in range(2):
        assert adjoin(qkv(made, layer))
    return made


@needs_kernels
@pytest.mark.parametrize("writes", ["data", "copy_", "numpy", "load_state_dict"])
def test_no_write_leaves_a_model_half_new(writes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Only the CPU's kernels pack the weights of `linear`.
    monkeypatch.setattr(Plan, "prepack", lambda *_: None)
    made = moved(model())
    plan = build_plan(made.traits(), CPU, torch.float32)
    encoder = GpuEncoder(made.blocks(), plan, Never())  # type: ignore[arg-type]
    batch = PackedBatch.from_lengths([7, 3])
    rows = torch.randn(10, 48)
    before = encoder(rows, batch)
    torch.manual_seed(1)
    new = {name: torch.randn_like(tensor) / 8 for name, tensor in made.state_dict().items()}
    if writes == "load_state_dict":
        made.load_state_dict(new)
    for name, parameter in made.named_parameters():
        if writes == "data":
            parameter.data.copy_(new[name])
        elif writes == "copy_":
            parameter.copy_(new[name])
        elif writes == "numpy":
            parameter.numpy()[...] = new[name].numpy()
    after = encoder(rows, batch)
    layers = encode(made.blocks(), rows, batch, plan, ForwardOptions()).packed
    assert torch.equal(after, layers) and not torch.equal(after, before)


def test_moving_changes_no_value_and_copies_nothing() -> None:
    made, expected = model(), {k: v.clone() for k, v in model().state_dict().items()}
    parameters = dict(made.named_parameters())
    moved(made)
    assert all(made.get_parameter(name) is tensor for name, tensor in parameters.items())
    assert all(torch.equal(v, expected[k]) for k, v in made.state_dict().items())
    for layer in range(2):
        assert not adjoin(qkv(made, layer)), "they adjoin already"
        whole = adjoining([part.weight for part in qkv(made, layer)])
        assert whole is not None and whole.data_ptr() == qkv(made, layer)[0].weight.data_ptr()
        assert torch.equal(whole, torch.cat([part.weight for part in qkv(made, layer)]))
        assert read_in_place(qkv(made, layer))


def taken(made: BertModel) -> list[tuple[str, Any]]:
    query = made.blocks()[0].q
    return [
        ("a state dict", made.state_dict()),
        ("data", query.weight.data),
        ("numpy", query.weight.numpy()),
        ("a view", query.weight[3]),
    ]


@pytest.mark.parametrize("which", range(4), ids=lambda n: taken(model())[n][0])
def test_memory_that_somebody_else_holds_stays_the_parameters(which: int) -> None:
    made = model()
    held = taken(made)[which][1]
    place = made.blocks()[0].q.weight.data_ptr()
    adjoin(qkv(made))
    assert made.blocks()[0].q.weight.data_ptr() == place and held is not None
    assert not read_in_place(qkv(made)), "a copy, whose versions are compared"


def test_tied_weights_stay_tied() -> None:
    made = model()
    query, key, _ = qkv(made)
    key.weight = query.weight
    adjoin(qkv(made))
    assert key.weight is query.weight and not read_in_place(qkv(made))


def test_models_are_saved_copied_moved_and_trained_as_before(tmp_path: Path) -> None:
    made = moved(model())
    expected = model().state_dict()
    made.save_pretrained(tmp_path)
    again = BertModel.from_pretrained(tmp_path, add_pooling_layer=False)
    torch.save(made.state_dict(), tmp_path / "x.pt")
    states = (again.state_dict(), copy.deepcopy(made).state_dict(), torch.load(tmp_path / "x.pt"))
    for state in states:
        assert all(torch.equal(tensor, state[name]) for name, tensor in expected.items())
    assert made.to(torch.float64).blocks()[0].q.weight.dtype == torch.float64
    other = moved(model()).requires_grad_(True)
    plain = model().requires_grad_(True)
    for which in (other, plain):
        optimizer = torch.optim.AdamW(which.parameters(), lr=0.1)
        which(torch.arange(6)[None]).last_hidden_state.square().sum().backward()
        optimizer.step()
    for (name, ours), theirs in zip(other.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert read_in_place(qkv(other))


def test_a_models_first_pass_moves_them_and_nothing_is_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With torch's "meta" in a GPU's place: it has no values, and the way there is the same."""
    choices = tuple(Choice(op, "cuda", "sm_90", (), overload(op, "cuda")) for op in REGISTRY)
    plan = Plan(META, torch.float32, choices)
    monkeypatch.setattr(gpu_encoder, "CudaRecorder", lambda device: Never())
    monkeypatch.setattr(encoder_cache, "build_plan", lambda *_: plan)
    made = model().to(META)
    with torch.inference_mode():
        for _ in range(3):
            made(torch.zeros(2, 9, dtype=torch.long, device=META))
    view = made.encoder_cache.view(made)
    assert not view.copied and all(read_in_place(qkv(made, layer)) for layer in range(2))
    encoder = made.encoder_cache.encoder(view, plan)
    assert encoder is made.encoder_cache.encoder(view, plan), "made anew for each pass"
    held: Tensor = made.blocks()[0].q.weight
    assert not held.is_inference()
