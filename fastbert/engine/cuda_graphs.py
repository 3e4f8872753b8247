"""Recorded passes for small batches: buckets of sizes, the graphs kept for them, their buffers.

A pass over few tokens takes a GPU less time than the host needs to launch its hundred kernels one
by one. So the launches are recorded once per bucket of sizes and replayed. A batch smaller than its
bucket leaves token slots unused; every kernel computes a token from that token and its own sequence
alone, so the contents of unused slots reach no other token.

Only `CudaRecorder` uses CUDA: tests run the rest with a recorder of their own.
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

from fastbert.engine.apart import DRAWS_FOR_ALL, drawing_apart
from fastbert.runtime.devices import capturing
from fastbert.runtime.packing import PackedBatch

# Beyond this many tokens the device computes for longer than the host launches.
TOKEN_LIMIT = 4096
SEQUENCE_LIMIT = 1024
# Upper bounds on the number of sequences. An empty one costs a kernel next to nothing, a further
# bucket costs a recording.
_SEQUENCES = (8, 64, SEQUENCE_LIMIT)
# Number of graphs kept at once: more than there are buckets without a bias (96 that any batch of
# texts meets). They share buffers and the memory of their intermediates.
MOST_GRAPHS = 128
# A bucket is recorded when it is met for the second time: recording costs several plain passes.
MEETINGS = 2
# Where all places are taken, a bucket must have been met so many times as often as the one that
# goes for it; otherwise two that are met equally often would take turns, with a recording each.
_OUSTING = 2
# Meetings count half after so many passes for each place, so that traffic of the past fades.
_HALVING = 16
_recording = threading.Lock()
_log = logging.getLogger("fastbert")


@dataclass(frozen=True)
class Bucket:
    """The sizes that one recording serves.

    Attributes:
        tokens: upper bound on the number of tokens.
        sequences: upper bound on the number of sequences.
        biased: whether the keys have a bias.
    """

    tokens: int
    sequences: int
    biased: bool


def token_bucket(tokens: int) -> int:
    """Round a number of tokens up to the size of a bucket.

    Sizes are multiples of 16 up to 256, then eight for every doubling, so that less than an eighth
    of a larger bucket is unused.
    """
    step = max(16, 1 << max(0, (tokens - 1).bit_length() - 4))
    return -(-tokens // step) * step


def bucket_of(batch: PackedBatch) -> Bucket | None:
    """Return the bucket of a batch, None where it is empty or too large to be worth recording."""
    if not 0 < batch.total <= TOKEN_LIMIT or batch.batch_size > SEQUENCE_LIMIT:
        return None
    sequences = next(bound for bound in _SEQUENCES if batch.batch_size <= bound)
    return Bucket(token_bucket(batch.total), sequences, batch.key_bias is not None)


@dataclass(frozen=True)
class Static:
    """The tensors that a recording reads, of a bucket's sizes.

    Attributes:
        rows: (tokens, hidden), the packed hidden states.
        cu_seqlens: int32 (sequences + 1,); sequences beyond the batch's are empty.
        longest: upper bound on the length of a sequence. Kernels take it from there; in a
            recording it is the number of tokens, so that lengths make no further buckets.
        key_bias: float32 (tokens,); None in a bucket without one.
    """

    rows: Tensor
    cu_seqlens: Tensor
    longest: int
    key_bias: Tensor | None


class Replay(Protocol):
    """A recording, which can be replayed any number of times."""

    def replay(self) -> None:
        """Launch the recorded work again, on the present contents of the buffers."""


class Recorder(Protocol):
    """The interface to a device's way of recording and replaying launches."""

    def busy(self) -> bool:
        """Return whether a recording is under way already, so that this pass must be plain."""

    def turn(self, buffers: tuple[Tensor, ...]) -> contextlib.AbstractContextManager[None]:
        """Give one caller the buffers for a block.

        Work of this block starts behind that of the block before, whatever stream that was on.

        Args:
            buffers: the tensors that the block reads and writes.
        """

    def record(self, run: Callable[[], None]) -> Replay:
        """Record what `run` launches.

        Args:
            run: launches the work; it may be called any number of times.

        Returns:
            The recording.
        """

    def settle(self) -> None:
        """Wait until every replay has ended."""


class Graphs:
    """The recordings of one function over packed hidden states.

    Several threads and streams may call one object: they take turns, since all recordings read and
    write the same buffers.

    Args:
        run: the function, Static -> (tokens, hidden); for the same sizes it must launch the same
            work, whatever the buffers hold.
        hidden: size of a hidden state.
        dtype: of the hidden states.
        device: of the hidden states.
        recorder: records and replays.

    Attributes:
        failure: first line of the error that ended recording; "" while there was none.
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
        self._met = _Meetings()
        self._buffers: _Buffers | None = None
        self.failure = ""

    @property
    def buckets(self) -> list[Bucket]:
        """The buckets that are recorded, the least recently used first."""
        return list(self._kept)

    def __call__(self, rows: Tensor, batch: PackedBatch) -> Tensor | None:
        """Compute the function by a replay.

        Args:
            rows: (batch.total, hidden), the packed hidden states.
            batch: where the tokens came from.

        Returns:
            The function's result (batch.total, hidden), in new memory; None where the caller must
            run the function plainly, since the sizes are met for the first time, are too large, or
            cannot be recorded.
        """
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
        """Count a meeting, and return whether the bucket is recorded or is to be recorded now."""
        met = self._met.count(bucket)
        if bucket in self._kept:
            return True
        if met < MEETINGS or len(self._kept) < MOST_GRAPHS:
            return met >= MEETINGS
        return met > _OUSTING * self._met.of(self._rarest())

    def _rarest(self) -> Bucket:
        """Return the recorded bucket that was met least, of several the least recently used."""
        return min(self._kept, key=self._met.of)

    def _record(self, bucket: Bucket, buffers: _Buffers) -> Replay | None:
        static = buffers.static(bucket)

        def run() -> None:
            buffers.out[: bucket.tokens].copy_(self._run(static))

        if len(self._kept) >= MOST_GRAPHS:
            self._recorder.settle()
            del self._kept[self._rarest()]
        try:
            replay = self._recorder.record(run)
        except RuntimeError as error:  # running out of memory raises one too
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


class _Meetings:
    """How often each bucket was met lately: counts that are halved as further passes come."""

    def __init__(self) -> None:
        self._counts: dict[Bucket, int] = {}
        self._passes = 0

    def count(self, bucket: Bucket) -> int:
        """Add a meeting, and return how many there were."""
        self._passes += 1
        if self._passes >= _HALVING * MOST_GRAPHS:
            self._passes = 0
            halves = ((known, met // 2) for known, met in self._counts.items())
            self._counts = {known: met for known, met in halves if met}
        met = self._counts[bucket] = self.of(bucket) + 1
        return met

    def of(self, bucket: Bucket) -> int:
        """Return how often a bucket was met."""
        return self._counts.get(bucket, 0)


class _Buffers:
    """The tensors that all recordings of one `Graphs` read and write, of the largest bucket's size.

    Attributes:
        rows: (TOKEN_LIMIT, hidden), the hidden states that go in.
        out: (TOKEN_LIMIT, hidden), the result.
        cu_seqlens: int32 (SEQUENCE_LIMIT + 1,).
        key_bias: float32 (TOKEN_LIMIT,).
        tensors: all of them.
    """

    def __init__(self, hidden: int, dtype: torch.dtype, device: torch.device) -> None:
        # Tensors made in inference mode could not be filled outside of it.
        with torch.inference_mode(False):
            self.rows = torch.zeros(TOKEN_LIMIT, hidden, dtype=dtype, device=device)
            self.out = torch.zeros_like(self.rows)
            self.cu_seqlens = torch.zeros(SEQUENCE_LIMIT + 1, dtype=torch.int32, device=device)
            self.key_bias = torch.zeros(TOKEN_LIMIT, dtype=torch.float32, device=device)
        self.tensors = (self.rows, self.out, self.cu_seqlens, self.key_bias)

    def static(self, bucket: Bucket) -> Static:
        """Return the parts of the buffers that a bucket uses."""
        return Static(
            self.rows[: bucket.tokens],
            self.cu_seqlens[: bucket.sequences + 1],
            bucket.tokens,
            self.key_bias[: bucket.tokens] if bucket.biased else None,
        )

    def fill(self, rows: Tensor, batch: PackedBatch, bucket: Bucket) -> None:
        """Copy a batch into the buffers; slots behind its last token keep what they held."""
        self.rows[: batch.total].copy_(rows)
        count = batch.batch_size + 1
        self.cu_seqlens[:count].copy_(batch.cu_seqlens)
        self.cu_seqlens[count : bucket.sequences + 1].fill_(batch.total)
        if batch.key_bias is not None:
            self.key_bias[: batch.total].copy_(batch.key_bias)


class CudaRecorder:
    """CUDA graphs on one device, in one pool of memory.

    Before it records a function, it runs it once plainly, on a stream of its own, so that kernels
    are compiled and libraries have allocated their memory. Other threads may go on using the device
    meanwhile.

    Args:
        device: the CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._last: torch.cuda.Stream | None = None
        self._apart: torch.Generator | None = None

    def busy(self) -> bool:
        """See Recorder.busy."""
        return capturing(self._device)

    @contextlib.contextmanager
    def turn(self, buffers: tuple[Tensor, ...]) -> Iterator[None]:
        """See Recorder.turn."""
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
        """See Recorder.record."""
        graph = torch.cuda.CUDAGraph()
        if DRAWS_FOR_ALL:
            self._apart = self._apart or torch.Generator(self._device)
            default = torch.cuda.default_generators[self._device.index]
            begin = drawing_apart(graph.capture_begin, default, self._apart)
            graph.capture_begin = begin  # type: ignore[method-assign]
        current = torch.cuda.current_stream(self._device)
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            run()
        # Beginning a recording waits for the device and empties torch's cache, and neither may
        # happen within another recording. With thread_local, other threads may allocate and wait
        # meanwhile. The current stream is set explicitly because a recording that fails leaves its
        # own stream current.
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
        """See Recorder.settle."""
        self._side.synchronize()
        if self._last is not None:
            self._done.synchronize()
