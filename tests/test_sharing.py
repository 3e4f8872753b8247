"""Models shared by threads, and used in processes that were not forked."""

from __future__ import annotations

import multiprocessing
import threading
from pathlib import Path

import pytest
import torch

import fastbert
from fastbert.kernels import native

pytestmark = pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))

IDS = torch.arange(3 * 40).reshape(3, 40) % 50 + 5


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = fastbert.BertConfig(
        vocab_size=60,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        initializer_range=0.2,
    )
    fastbert.BertModel(config).save_pretrained(tmp_path)
    return tmp_path


def answer(path: Path, quantization: str | None, threads: int) -> torch.Tensor:
    """What a model gives in this process."""
    torch.set_num_threads(threads)
    model = fastbert.BertModel.from_pretrained(path, quantization=quantization).eval()
    with torch.no_grad():
        return model(IDS).last_hidden_state


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_processes_that_start_afresh_give_the_same_bits(
    checkpoint: Path, quantization: str | None
) -> None:
    threads = torch.get_num_threads()
    try:
        expected = answer(checkpoint, quantization, 2)
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            found = pool.starmap(answer, [(checkpoint, quantization, n) for n in (1, 2)])
    finally:
        torch.set_num_threads(threads)
    for rows in found:
        assert torch.equal(rows, expected)


def test_two_models_in_several_threads_of_one_process(checkpoint: Path) -> None:
    models = [
        fastbert.BertModel.from_pretrained(checkpoint, quantization=quantization).eval()
        for quantization in (None, "int8")
    ]
    with torch.no_grad():
        expected = [model(IDS).last_hidden_state for model in models]
    wrong: list[str] = []

    def work(which: int) -> None:
        with torch.no_grad():
            for turn in range(20):
                if not torch.equal(models[which](IDS).last_hidden_state, expected[which]):
                    wrong.append(f"model {which}, turn {turn}")

    threads = [threading.Thread(target=work, args=(number % 2,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def workers(path: Path, counts: tuple[int, ...]) -> list[int]:
    """How many threads this process has after a pass with each number of torch's threads."""
    torch.set_num_threads(1)
    model = fastbert.BertModel.from_pretrained(path).eval()
    found = []
    with torch.no_grad():
        for count in counts:
            torch.set_num_threads(count)
            model(IDS)
            found.append(len(list(Path("/proc/self/task").iterdir())))
    return found


def test_the_number_of_threads_is_torch_s(checkpoint: Path) -> None:
    if not Path("/proc/self/task").exists():
        pytest.skip("threads are counted in /proc, which this system lacks")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        one, two, three, again = pool.apply(workers, (checkpoint, (1, 2, 3, 1)))
    assert (two - one, three - one) == (1, 2)
    assert again == three, "workers that are not needed now are kept"
