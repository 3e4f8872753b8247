"""No look at a device's values on the way from ids to hidden states, with no device.

"meta" stands for the GPU: tensors there have shapes and no values, so whatever would make the host
wait (`item`, `tolist`, `nonzero`, a mask as an index, a copy back) raises. The kernels are the
registered ops, which know the shapes of their results; all else is the code that runs on a GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fastbert.embedding.pooling import MODES, pool
from fastbert.engine import encoder_cache, gpu_encoder
from fastbert.kernels.registration import overload
from fastbert.models.bert import BertForSequenceClassification, BertModel
from fastbert.models.camembert import CamembertModel
from fastbert.models.flaubert.heads import FlaubertModel
from fastbert.models.rembert import RemBertModel
from fastbert.ops import REGISTRY
from fastbert.runtime.packing import PackedBatch
from fastbert.runtime.plan import Choice, Plan

GPU = torch.device("meta")
# One layer: every tensor on "meta" refuses to tell its values, which costs each pass a millisecond.
SIZES = {
    "vocab_size": 60, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 96, "max_position_embeddings": 40,
}  # fmt: skip


class Recorder:
    """Records nothing; a replay runs the function again."""

    def __init__(self, device: torch.device) -> None:
        self.replays = 0

    def busy(self) -> bool:
        return False

    def turn(self, buffers: tuple[Tensor, ...]) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def record(self, run: Any) -> Any:
        recorder = self

        class Replay:
            def replay(self) -> None:
                recorder.replays += 1
                run()

        return Replay()

    def settle(self) -> None:
        raise AssertionError("the host waited")


def gpu_plan(dtype: torch.dtype) -> Plan:
    choices = tuple(Choice(op, "cuda", "sm_90", (), overload(op, "cuda")) for op in REGISTRY)
    return Plan(GPU, dtype, choices)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    plans = {dtype: gpu_plan(dtype) for dtype in (torch.float32, torch.bfloat16)}
    monkeypatch.setattr(gpu_encoder, "CudaRecorder", Recorder)
    monkeypatch.setattr(
        encoder_cache, "build_plan", lambda traits, device, dtype, *rest: plans[dtype]
    )
    with torch.inference_mode():
        yield


def on_gpu(kind: Any, **changes: Any) -> Any:
    with torch.inference_mode(False):
        made = kind(kind.config_class(**SIZES | changes))
        return made.eval().requires_grad_(False).bfloat16().to(GPU)


MASK = torch.arange(9) < torch.tensor([[9], [3], [0], [5]])


def test_what_waits_is_noticed() -> None:
    values = torch.zeros(3, device=GPU)
    for look in (
        lambda: values[0].item(),
        lambda: values.tolist(),
        lambda: bool(values.any()),
        lambda: values.nonzero(),
        lambda: values[values > 0],
        lambda: values.cpu(),
        lambda: torch.arange(3, device=GPU).repeat_interleave(torch.arange(3, device=GPU)),
    ):
        with pytest.raises((RuntimeError, NotImplementedError)):
            look()
    # A mask that lies on the device is worked out there, which takes the one wait it is said to.
    with pytest.raises((RuntimeError, NotImplementedError)):
        PackedBatch.from_mask(MASK.to(GPU), *MASK.shape, GPU)


@pytest.mark.parametrize("lengths", [[9, 3, 0, 5], [4, 4], [1], [0, 0]], ids=str)
def test_lengths_become_a_batch(lengths: list[int]) -> None:
    batch, host = (PackedBatch.from_lengths(lengths, place, 9) for place in (GPU, "cpu"))
    assert batch.cu_seqlens.device == GPU and batch.cu_seqlens.shape == host.cu_seqlens.shape
    assert batch.indices.device == GPU and batch.indices.shape == host.indices.shape
    assert (batch.total, batch.max_seqlen, batch.min_seqlen) == (
        sum(lengths),
        max(lengths),
        min(lengths),
    )
    x = torch.zeros(len(lengths), 9, 7, device=GPU)
    assert batch.pad(batch.pack(x)).shape == x.shape


@pytest.mark.parametrize("keep", [False, True])
def test_a_mask_on_the_host_becomes_a_batch(keep: bool) -> None:
    batch = PackedBatch.from_mask(MASK, *MASK.shape, GPU, keep)
    assert batch.total == int(MASK.sum()) + keep and batch.indices.device == GPU
    assert (batch.key_bias is not None) == keep
    if keep:
        assert batch.first_token_rows().shape == (4,)


FAMILIES: list[tuple[Any, dict[str, Any]]] = [
    (BertModel, {}),
    (CamembertModel, {}),
    (RemBertModel, {"input_embedding_size": 32}),
    (FlaubertModel, {}),
    (BertForSequenceClassification, {}),
]
MASKS = {"bool": MASK, "int": MASK.long(), "none": None}
# Without a mask FlauBERT counts the ids that are not padding: a mask that lies on the device.
PASSES = [
    pytest.param(kind, changes, mask, id=f"{kind.__name__}-{name}")
    for kind, changes in FAMILIES
    for name, mask in MASKS.items()
    if kind is not FlaubertModel or mask is not None
]


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("kind", "changes", "mask"), PASSES)
def test_models_do_not_look(kind: Any, changes: dict[str, Any], mask: Tensor | None) -> None:
    made = on_gpu(kind, **changes)
    ids = torch.zeros(4, 9, dtype=torch.int64, device=GPU)
    for _ in range(3):
        out = made(input_ids=ids, attention_mask=mask)
    hidden = out.logits if "logits" in out else out.last_hidden_state
    assert hidden.device == GPU and hidden.shape[0] == 4
    base = made.base_model
    encoder = base.encoder_cache.encoder(
        base.encoder_cache.view(base), encoder_cache.build_plan(None, GPU, made.dtype)
    )
    assert isinstance(encoder, gpu_encoder.GpuEncoder)
    assert encoder.graphs._recorder.replays == 2, "the passes did not take the prepared path"


@pytest.mark.parametrize("mode", MODES)
def test_pooling_does_not_look(mode: str) -> None:
    batch = PackedBatch.from_lengths([9, 3, 0, 5], GPU, 9)
    rows = torch.zeros(batch.total, 8, dtype=torch.bfloat16, device=GPU)
    plan = gpu_plan(rows.dtype)
    assert pool(rows, batch.cu_seqlens, [mode], plan).shape == (4, 8)
