"""Recorded passes for small batches: buckets of sizes, the graphs kept for them, their buffers.

A pass over few tokens takes a GPU less time than the host needs to launch its hundred kernels one
by one. So the launches are recorded once per bucket of sizes and replayed. A batch smaller than its
bucket leaves rows unused; every kernel computes a row from that row and its own sequence alone, so
what lies in unused rows reaches no other.

Nothing here is CUDA but `CudaRecorder`: tests run the rest with a recorder of their own.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fastbert.runtime.packing import PackedBatch

# Beyond so many tokens the device is busy for longer than the host is with launching.
TOKEN_LIMIT = 4096
SEQUENCE_LIMIT = 1024
# Graphs kept at once; they share their buffers and the memory of their intermediates.
MOST_GRAPHS = 32
# A size is recorded when it is met for the second time: recording costs several plain passes.
MEETINGS = 2
_recording = threading.Lock()
_log = logging.getLogger("fastbert")


@dataclass(frozen=True)
class Bucket:
    """What one recording serves: up to so many tokens in up to so many sequences of at most
    `longest` tokens each; with or without a bias of keys."""

    tokens: int
    sequences: int
    longest: int
    biased: bool


def token_bucket(tokens: int) -> int:
    """The least of the kept sizes that holds this many tokens: multiples of 16 up to 256, then
    eight sizes for every doubling, so that less than an eighth of a bucket is unused."""
    step = max(16, 1 << max(0, (tokens - 1).bit_length() - 4))
    return -(-tokens // step) * step


def _power_of_two(value: int, least: int) -> int:
    return max(least, 1 << max(0, value - 1).bit_length())


def bucket_of(batch: PackedBatch) -> Bucket | None:
    """The bucket of a batch, None where it is empty or too large to be worth recording."""
    if not 0 < batch.total <= TOKEN_LIMIT or batch.batch_size > SEQUENCE_LIMIT:
        return None
    return Bucket(
        token_bucket(batch.total),
        _power_of_two(batch.batch_size, 1),
        _power_of_two(batch.max_seqlen, 32),
        batch.key_bias is not None,
    )


@dataclass(frozen=True)
class Static:
    """The tensors that a recording reads, of a bucket's sizes.

    Attributes:
        rows: (tokens, hidden).
        cu_seqlens: int32 (sequences + 1,); sequences beyond the batch's are empty.
        longest: bound on the length of a sequence.
        key_bias: float32 (tokens,), None in a bucket without.
    """

    rows: Tensor
    cu_seqlens: Tensor
    longest: int
    key_bias: Tensor | None


class Replay(Protocol):
    """A recording."""

    def replay(self) -> None:
        """Do again what was recorded, with what the buffers hold now."""


class Recorder(Protocol):
    """What records and replays on some device."""

    def busy(self) -> bool:
        """Whether somebody else is recording already, so that this pass has to be plain."""

    def turn(self, buffers: tuple[Tensor, ...]) -> contextlib.AbstractContextManager[None]:
        """The time in which one caller has the buffers: behind the turn before it, whatever stream
        that was on."""

    def record(self, run: Callable[[], None]) -> Replay:
        """Record what `run` launches. It may be run any number of times."""

    def settle(self) -> None:
        """Wait until nothing replays any more."""


class Graphs:
    """The recordings of one function over packed rows.

    Args:
        run: Static -> (tokens, hidden), the function; it must launch the same work for the same
            sizes whatever the buffers hold.
        hidden, dtype, device: of the rows.
        recorder: records and replays.

    Several threads and streams may call one object: they take turns, since all recordings read and
    write the same buffers.
    """

    def __init__(
        self,
        run: Callable[[Static], Tensor],
        hidden: int,
        dtype: torch.dtype,
        device: torch.device,
        recorder: Recorder,
    ) -> None:
        self._run = run
        self._like = (hidden, dtype, device)
        self._recorder = recorder
        self._lock = threading.Lock()
        self._kept: OrderedDict[Bucket, Replay] = OrderedDict()
        self._met: OrderedDict[Bucket, int] = OrderedDict()
        self._buffers: _Buffers | None = None
        self.failure = ""

    @property
    def buckets(self) -> list[Bucket]:
        """What is recorded, the least recently used first."""
        return list(self._kept)

    def __call__(self, rows: Tensor, batch: PackedBatch) -> Tensor | None:
        """The function's result (batch.total, hidden) by a replay; None where the caller has to
        run it plainly: sizes met for the first time, too large, or not recordable."""
        bucket = bucket_of(batch)
        if bucket is None or self.failure or self._recorder.busy():
            return None
        with self._lock:
            if not self._due(bucket):
                return None
            if self._buffers is None:
                self._buffers = _Buffers(*self._like)
            buffers = self._buffers
            with self._recorder.turn(buffers.tensors):
                buffers.fill(rows, batch, bucket)
                replay = self._kept.get(bucket) or self._record(bucket, buffers)
                if replay is None:
                    return None
                self._kept.move_to_end(bucket)
                replay.replay()
                return buffers.out[: batch.total].clone()

    def _due(self, bucket: Bucket) -> bool:
        if bucket in self._kept:
            return True
        self._met[bucket] = self._met.get(bucket, 0) + 1
        self._met.move_to_end(bucket)
        if len(self._met) > 8 * MOST_GRAPHS:
            self._met.popitem(last=False)
        return self._met.get(bucket, 0) >= MEETINGS

    def _record(self, bucket: Bucket, buffers: _Buffers) -> Replay | None:
        static = buffers.static(bucket)

        def run() -> None:
            buffers.out[: bucket.tokens].copy_(self._run(static))

        while len(self._kept) >= MOST_GRAPHS:
            self._recorder.settle()
            self._kept.popitem(last=False)
        try:
            replay = self._recorder.record(run)
        except RuntimeError as error:  # out of memory is one
            self._recorder.settle()
            self._kept.clear()
            self._buffers = None
            self.failure = str(error).split("\n")[0]
            _log.warning(
                "fastbert runs small batches without CUDA graphs, since recording one failed: %s",
                self.failure,
            )
            return None
        self._kept[bucket] = replay
        return replay


class _Buffers:
    """What all recordings of one `Graphs` read and write, as large as the largest bucket."""

    def __init__(self, hidden: int, dtype: torch.dtype, device: torch.device) -> None:
        # Tensors of inference mode could not be filled outside of it.
        with torch.inference_mode(False):
            self.rows = torch.zeros(TOKEN_LIMIT, hidden, dtype=dtype, device=device)
            self.out = torch.zeros_like(self.rows)
            self.cu_seqlens = torch.zeros(SEQUENCE_LIMIT + 1, dtype=torch.int32, device=device)
            self.key_bias = torch.zeros(TOKEN_LIMIT, dtype=torch.float32, device=device)
        self.tensors = (self.rows, self.out, self.cu_seqlens, self.key_bias)

    def static(self, bucket: Bucket) -> Static:
        """The parts that a bucket uses."""
        return Static(
            self.rows[: bucket.tokens],
            self.cu_seqlens[: bucket.sequences + 1],
            bucket.longest,
            self.key_bias[: bucket.tokens] if bucket.biased else None,
        )

    def fill(self, rows: Tensor, batch: PackedBatch, bucket: Bucket) -> None:
        """Put a batch in. Rows behind its last keep what they held."""
        self.rows[: batch.total].copy_(rows)
        count = batch.batch_size + 1
        self.cu_seqlens[:count].copy_(batch.cu_seqlens)
        self.cu_seqlens[count : bucket.sequences + 1].fill_(batch.total)
        if batch.key_bias is not None:
            self.key_bias[: batch.total].copy_(batch.key_bias)


class CudaRecorder:
    """CUDA graphs on one device, in one pool of memory.

    Recording runs the function once plainly before (kernels compile, libraries allocate), on a
    stream of its own; other threads may go on using the device meanwhile.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._last: torch.cuda.Stream | None = None

    def busy(self) -> bool:
        return torch.cuda.is_current_stream_capturing()

    @contextlib.contextmanager
    def turn(self, buffers: tuple[Tensor, ...]) -> Iterator[None]:
        with torch.cuda.device(self._device):
            stream = torch.cuda.current_stream(self._device)
            if self._last is not None and stream != self._last:
                stream.wait_event(self._done)
            if stream != self._last:
                for buffer in buffers:
                    buffer.record_stream(stream)
            try:
                yield
            finally:
                self._done.record(stream)
                self._last = stream

    def record(self, run: Callable[[], None]) -> Replay:
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self._device)
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            run()
        # Beginning a recording waits for the device and empties torch's cache, neither of which may
        # happen within another. thread_local: other threads may allocate and wait meanwhile. The
        # stream is named once more because a recording that fails leaves its own one current.
        with (
            _recording,
            torch.cuda.stream(current),
            torch.cuda.graph(
                graph, pool=self._pool, stream=self._side, capture_error_mode="thread_local"
            ),
        ):
            run()
        current.wait_stream(self._side)
        return graph

    def settle(self) -> None:
        self._side.synchronize()
        if self._last is not None:
            self._done.synchronize()
