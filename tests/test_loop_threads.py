"""Torch's operators between two passes wake no threads, which would spin on the kernels' cores."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from started_threads import counting, started

import fastbert
from fastbert.embedding.modules import normalize
from fastbert.generation.greedy import likeliest
from fastbert.kernels.openmp import on_one_thread

VOCABULARY = 1 << 17
VOCABULARY = 1 << 17
pytestmark = counting


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: x.amax(-1),
        lambda x: x.div(1.1),
        lambda x: x.bfloat16().float(),
        lambda x: x.log_softmax(-1),
        # MKL's own threads
        lambda x: x.cos(),
        lambda x: x[:, :128].contiguous().exp(),
    ],
    ids=["amax", "div", "float", "log_softmax", "cos", "exp"],
)
def test_operators_alone_start_no_thread(compute: Callable[[torch.Tensor], object]) -> None:
    x = torch.randn(2, VOCABULARY)

    def run() -> None:
        with on_one_thread(x):
            compute(x)

    assert started(run) == 0


def test_what_is_counted_is_seen() -> None:
    x = torch.randn(2, VOCABULARY)
    assert started(lambda: x.amax(-1)) > 0


def test_numbers_of_threads_are_set_back() -> None:
    x = torch.zeros(1)
    with pytest.raises(RuntimeError, match="mine"), on_one_thread(x):
        assert torch.get_num_threads() == 1
        with on_one_thread(x):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
        raise RuntimeError("mine")
    assert torch.get_num_threads() == 2
    assert started(lambda: torch.randn(2, VOCABULARY).cos()) > 0


def test_other_threads_keep_their_numbers() -> None:
    seen = []
    with on_one_thread(torch.zeros(1)):
        other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        other.start()
        other.join()
    assert seen == [2]


def test_very_many_elements_take_all_threads() -> None:
    with on_one_thread(torch.empty(1).expand(1 << 23)):
        assert torch.get_num_threads() == 2


def test_other_devices_change_nothing() -> None:
    with on_one_thread(torch.empty(8, device="meta")):
        assert torch.get_num_threads() == 2


def test_likeliest_starts_no_thread() -> None:
    x = torch.randn(3, 1, VOCABULARY)
    assert started(lambda: likeliest(x)) == 0


def test_scaling_vectors_starts_no_thread() -> None:
    x = torch.randn(128, 1024)
    assert started(lambda: normalize(x)) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [{}, {"do_sample": True, "temperature": 0.7, "top_k": 50, "top_p": 0.9}, {"num_beams": 3}],
    ids=["greedy", "sampling", "beams"],
)
def test_generating_starts_no_thread(dtype: torch.dtype, options: dict[str, float]) -> None:
    config = fastbert.ApertusConfig(
        vocab_size=1 << 16,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=0,
        eos_token_id=None,
    )
    model = fastbert.ApertusForCausalLM(config).to(dtype).eval()
    # Eight texts: their angles are enough for MKL to share.
    ids = torch.randint(4, 100, (8, 5))
    model.generate(ids, max_new_tokens=2, **options)  # the kernels' own threads are there now
    assert started(lambda: model.generate(ids, max_new_tokens=3, **options)) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_passes_op_by_op_start_no_thread(dtype: torch.dtype) -> None:
    config = fastbert.MPNetConfig(
        vocab_size=100,
        hidden_size=96,
        num_hidden_layers=2,
        num_attention_heads=12,
        intermediate_size=64,
    )
    model = fastbert.MPNetModel(config).to(dtype).eval()
    ids = torch.randint(4, 100, (8, 64))
    mask = (torch.arange(64) < torch.tensor([64, 3, 17, 40, 1, 9, 33, 64])[:, None]).long()
    with torch.inference_mode():
        model(ids, attention_mask=mask)
        assert started(lambda: model(ids, attention_mask=mask)) == 0
