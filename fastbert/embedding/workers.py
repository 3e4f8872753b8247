"""Encoding in several processes, each with a copy of the encoder."""

from __future__ import annotations

import logging
import math
import os
import pickle
import queue
import traceback
from collections.abc import Sequence
from typing import Any, Protocol, TypedDict

import numpy as np
import torch
import torch.multiprocessing as mp
from torch import Tensor

from fastbert.runtime.progress import Progress

_log = logging.getLogger("fastbert")

# Texts that a worker takes at a time, at most.
_MOST = 5000
# Seconds between two looks at whether all workers are alive.
_LOOK = 1.0


class Pool(TypedDict):
    """Worker processes and the queues to and from them."""

    input: Any
    output: Any
    processes: list[Any]


class Worker(Protocol):
    """What a process holds: an encoder of sentences or of pairs of them."""

    def to(self, device: torch.device | str) -> object:
        """Move to a device."""
        ...

    def run(self, texts: list[Any], request: Any) -> Tensor | list[Any]:
        """Compute what a request asks for."""
        ...


def start(encoder: Worker, devices: Sequence[str | torch.device] | None) -> Pool:
    """Start one process for each device.

    Processes are spawned, since a fork would take over the threads' locks without the threads.

    Args:
        encoder: is copied to every process; its memory is shared where it can be.
        devices: where they compute; None for every GPU, or for four processes on the CPU.
    """
    if devices is None:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        devices = [f"cuda:{index}" for index in range(count)] or ["cpu"] * 4
    if not devices:
        raise ValueError("A pool needs at least one device; name some, such as ['cpu', 'cpu'].")
    encoder.to("cpu")
    context = mp.get_context("spawn")
    texts, vectors = context.Queue(), context.Queue()
    beside = sum(torch.device(device).type == "cpu" for device in devices)
    threads = max(1, (os.cpu_count() or 1) // max(beside, 1))
    processes = []
    for device in devices:
        arguments = (str(device), encoder, texts, vectors, threads)
        process = context.Process(target=_work, args=arguments, daemon=True)
        process.start()
        processes.append(process)
    return {"input": texts, "output": vectors, "processes": processes}


def stop(pool: Pool) -> None:
    """End the processes of a pool."""
    for process in pool["processes"]:
        process.terminate()
    for process in pool["processes"]:
        process.join()
        process.close()
    pool["input"].cancel_join_thread()
    pool["input"].close()
    pool["output"].close()


def share(
    pool: Pool, texts: list[Any], request: Any, chunk_size: int | None, progress: Progress
) -> Tensor | list[Any]:
    """Let the workers encode texts.

    Args:
        pool: of `start`.
        texts: all of them.
        request: what is asked for, as `SentenceEncoder.run` takes it.
        chunk_size: texts that a worker takes at a time.
        progress: advanced by every chunk.

    Returns:
        What `SentenceEncoder.run` returns for all of them, on the CPU.

    Raises:
        RuntimeError: when a worker has died.
        Exception: what a worker raised.
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, but it is {chunk_size}.")
    if chunk_size is None:
        even = math.ceil(len(texts) / len(pool["processes"]) / 10)
        chunk_size = max(1, min(even, _MOST))
    chunks = [texts[begin : begin + chunk_size] for begin in range(0, len(texts), chunk_size)]
    for index, chunk in enumerate(chunks):
        pool["input"].put((index, chunk, request))
    found: dict[int, Any] = {}
    while len(found) < len(chunks):
        index, result = _next(pool)
        found[index] = result
        progress.advance(len(chunks[index]))
    for index in range(len(chunks)):
        if isinstance(found[index], BaseException):
            raise found[index]
    parts = [as_tensors(found[index]) for index in range(len(chunks))]
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    return [answer for part in parts for answer in part]


def _next(pool: Pool) -> Any:
    while True:
        try:
            return pool["output"].get(timeout=_LOOK)
        except queue.Empty:
            dead = [process for process in pool["processes"] if not process.is_alive()]
            if dead:
                told = ", ".join(f"{p.pid} (exit code {p.exitcode})" for p in dead)
                raise RuntimeError(
                    f"Worker processes have died: {told}. Stop the pool and start a new one. A "
                    'program that starts workers needs `if __name__ == "__main__":` around its '
                    "own code."
                ) from None


def _work(device: str, encoder: Worker, texts: Any, vectors: Any, threads: int) -> None:
    """Encode what comes in until the process is ended from outside."""
    if torch.device(device).type == "cpu":
        torch.set_num_threads(threads)
    encoder.to(device)
    while True:
        index, chunk, request = texts.get()
        try:
            result: Any = on_cpu(encoder.run(chunk, request))
        except Exception as error:  # told to whoever waits for this chunk
            result = _portable(error)
        vectors.put((index, result))


def on_cpu(value: Any) -> Any:
    """Return a value with all its tensors on the CPU, as arrays, which queues copy."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return (value.float() if value.is_floating_point() else value).numpy()
    if isinstance(value, dict):
        return {name: on_cpu(one) for name, one in value.items()}
    return [on_cpu(one) for one in value] if isinstance(value, list) else value


def as_tensors(value: Any) -> Any:
    """Undo `on_cpu`."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, dict):
        return {name: as_tensors(one) for name, one in value.items()}
    return [as_tensors(one) for one in value] if isinstance(value, list) else value


def _portable(error: Exception) -> Exception:
    """Return an error, or its text where it cannot be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error
