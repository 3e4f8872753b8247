"""Recorded passes with a recorder that records nothing but functions: buckets, bounds, turns; and
the GPU encoder's arithmetic on the CPU kernels. What only a device shows is in tests/cuda."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from fastbert.engine import cuda_graphs
from fastbert.engine.cuda_graphs import (
    Bucket,
    Graphs,
    Static,
    bucket_of,
    token_bucket,
)
from fastbert.engine.gpu_encoder import GpuEncoder
from fastbert.kernels import native
from fastbert.layers.encoder import ForwardOptions, encode
from fastbert.layers.linear import Int8Linear
from fastbert.modeling.quantization import quantize_weight
from fastbert.models.bert import BertModel
from fastbert.runtime.packing import PackedBatch
from fastbert.runtime.plan import Plan, build_plan, use_backend

CPU = torch.device("cpu")


class Recording:
    def __init__(self, run: Callable[[], None], recorder: FakeRecorder) -> None:
        self._run, self._recorder = run, recorder

    def replay(self) -> None:
        assert self._recorder.inside, "a replay outside of anybody's turn"
        self._recorder.replays += 1
        self._run()


class FakeRecorder:
    """Replays by running again."""

    def __init__(self) -> None:
        self.recordings = self.replays = self.settled = self.inside = 0
        self.recording_by_others = False
        self.fails = ""

    def busy(self) -> bool:
        return self.recording_by_others

    @contextlib.contextmanager
    def turn(self, buffers: tuple[Tensor, ...]) -> Iterator[None]:
        self.inside += 1
        assert self.inside == 1, "two callers have the buffers"
        time.sleep(0)  # lets another thread try
        yield
        self.inside -= 1

    def record(self, run: Callable[[], None]) -> Recording:
        if self.fails:
            raise RuntimeError(self.fails)
        self.recordings += 1
        run()
        return Recording(run, self)

    def settle(self) -> None:
        self.settled += 1


def test_buckets_hold_their_tokens_and_waste_little() -> None:
    kept = sorted({token_bucket(n) for n in range(1, cuda_graphs.TOKEN_LIMIT + 1)})
    for n in range(1, cuda_graphs.TOKEN_LIMIT + 1):
        bucket = token_bucket(n)
        assert bucket >= n and bucket % 16 == 0
        assert bucket == min(size for size in kept if size >= n)
        assert bucket - n < max(16, bucket / 8)
        assert token_bucket(bucket) == bucket
    assert len(kept) == 48 and kept[-1] == cuda_graphs.TOKEN_LIMIT


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([128], Bucket(128, 8, False)),
        ([1], Bucket(16, 8, False)),
        ([100, 29, 0], Bucket(144, 8, False)),
        ([512] * 8, Bucket(4096, 8, False)),
        ([3] * 9, Bucket(32, 64, False)),
        ([3] * 65, Bucket(208, 1024, False)),
        ([512] * 8 + [1], None),
        ([], None),
        ([0, 0], None),
        ([0] * cuda_graphs.SEQUENCE_LIMIT + [1], None),
    ],
)
def test_bucket_of(lengths: list[int], expected: Bucket | None) -> None:
    assert bucket_of(PackedBatch.from_lengths(lengths)) == expected


def doubled() -> tuple[Graphs, FakeRecorder]:
    """Graphs of a function that shows what it was given, and spoils what it was not."""
    recorder = FakeRecorder()

    def run(given: Static) -> Tensor:
        out = given.rows * 2 + (0 if given.key_bias is None else given.key_bias[:, None])
        out[int(given.cu_seqlens[-1]) :] = float("nan")
        return out

    return Graphs(run, 3, torch.float32, CPU, recorder), recorder


def batch_of(tokens: int, biased: bool = False) -> PackedBatch:
    batch = PackedBatch.from_lengths([tokens])
    return dataclasses.replace(batch, key_bias=torch.arange(float(tokens))) if biased else batch


def test_a_size_is_recorded_when_it_is_met_again() -> None:
    made, recorder = doubled()
    for meeting, tokens in enumerate((5, 7, 16, 3)):
        rows = torch.randn(tokens, 3)
        out = made(rows, batch_of(tokens))
        if meeting == 0:
            assert out is None
        else:
            assert out is not None and torch.equal(out, rows * 2)
            assert recorder.replays == meeting
    assert recorder.recordings == 1
    assert made.buckets == [Bucket(16, 8, False)]


def test_biased_batches_have_recordings_of_their_own() -> None:
    made, recorder = doubled()
    for biased in (False, True, True, False):
        rows = torch.randn(4, 3)
        batch = batch_of(4, biased)
        out = made(rows, batch)
        if out is not None:
            bias = 0 if batch.key_bias is None else batch.key_bias[:, None]
            assert torch.equal(out, rows * 2 + bias)
    assert recorder.recordings == 2 and recorder.replays == 2


def test_a_result_outlives_the_next_replay() -> None:
    made, _ = doubled()
    rows = [torch.randn(4, 3) for _ in range(3)]
    results = [made(x, batch_of(4)) for x in rows]
    for x, result in zip(rows[1:], results[1:], strict=True):
        assert result is not None and torch.equal(result, x * 2)


def meet(made: Graphs, tokens: int, times: int) -> list[bool]:
    """Whether each of so many passes of a size was replayed."""
    rows = torch.randn(tokens, 3)
    outs = [made(rows, batch_of(tokens)) for _ in range(times)]
    assert all(out is None or torch.equal(out, rows * 2) for out in outs)
    return [out is not None for out in outs]


def test_the_rarest_recording_goes_for_one_that_is_met_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda_graphs, "MOST_GRAPHS", 3)
    monkeypatch.setattr(cuda_graphs, "_HALVING", 1000)
    made, recorder = doubled()
    for tokens, times in ((16, 9), (32, 2), (48, 2)):
        meet(made, tokens, times)
    meet(made, 32, 1)
    assert [bucket.tokens for bucket in made.buckets] == [16, 48, 32]
    # The size that was met twice stays until another was met more than twice as often.
    assert meet(made, 64, 5) == [False] * 4 + [True]
    assert [bucket.tokens for bucket in made.buckets] == [16, 32, 64]
    assert recorder.settled == 1, "a recording that may still run was let go"
    assert meet(made, 48, 2) == [False] * 2, "two sizes would take turns, with a recording each"
    assert recorder.recordings == 4


def test_traffic_of_the_past_fades(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "MOST_GRAPHS", 1)
    made, _ = doubled()
    meet(made, 16, 1000)
    assert meet(made, 32, 60)[-1], "a size of the past keeps its place for ever"


def test_what_is_remembered_of_sizes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "MOST_GRAPHS", 1)
    made, _ = doubled()
    for tokens in range(1, 2000, 16):
        made(torch.randn(tokens, 3), batch_of(tokens))
    assert len(made._met._counts) <= 16


def texts(seed: int) -> Callable[[], int]:
    """Lengths of texts as they come: lognormal, most of them around 40 tokens, at most 512."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.empty(20000).log_normal_(3.7, 0.8, generator=generator).clamp(3, 512)
    return itertools.cycle(drawn.int().tolist()).__next__


def any_number(most: int) -> Callable[[], int]:
    generator = torch.Generator().manual_seed(7)
    return itertools.cycle(
        torch.randint(1, most + 1, (9000,), generator=generator).tolist()
    ).__next__


def power(most: int) -> Callable[[], int]:
    exponents = any_number(most)
    return lambda: 1 << (exponents() - 1)


TRAFFIC: dict[str, Callable[[], int]] = {
    "one text": lambda: 1,
    "1 to 32 texts": any_number(32),
    "1 to 90 texts": any_number(90),
    "a power of two of texts": power(7),
}


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("kind", TRAFFIC)
def test_hardly_a_pass_of_steady_traffic_is_recorded(kind: str, biased: bool) -> None:
    recorder = FakeRecorder()
    made = Graphs(lambda given: given.rows, 1, torch.float32, CPU, recorder)
    length, number = texts(1), TRAFFIC[kind]

    def passes(count: int) -> tuple[int, int, int]:
        before, eligible = (recorder.recordings, recorder.replays), 0
        for turn in range(count):
            batch = PackedBatch.from_lengths([length() for _ in range(number())])
            if biased and turn % 3 == 0:
                batch = dataclasses.replace(batch, key_bias=torch.zeros(batch.total))
            eligible += bucket_of(batch) is not None
            made(torch.zeros(batch.total, 1), batch)
        return recorder.recordings - before[0], recorder.replays - before[1], eligible

    passes(2400)
    recorded, replayed, eligible = passes(1000)
    assert recorded < 0.02 * eligible, f"{recorded} of {eligible} passes were recorded"
    assert replayed > 0.95 * eligible, f"{replayed} of {eligible} passes were replayed"


def test_a_failure_is_said_once_and_ends_recording(caplog: pytest.LogCaptureFixture) -> None:
    made, recorder = doubled()
    recorder.fails = "out of memory\nand more"
    with caplog.at_level(logging.WARNING, logger="fastbert"):
        for _ in range(4):
            assert made(torch.randn(4, 3), batch_of(4)) is None
    assert made.failure == "out of memory" and len(caplog.messages) == 1
    assert "without CUDA graphs" in caplog.messages[0]
    assert made.buckets == [] and recorder.settled == 1


def test_within_anothers_recording_the_pass_is_plain() -> None:
    made, recorder = doubled()
    recorder.recording_by_others = True
    for _ in range(3):
        assert made(torch.randn(4, 3), batch_of(4)) is None
    assert recorder.recordings == 0


def test_threads_take_turns() -> None:
    made, recorder = doubled()

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(50):
            tokens = int(torch.randint(1, 40, (), generator=generator))
            rows = torch.randn(tokens, 3, generator=generator)
            out = made(rows, batch_of(tokens))
            assert out is None or torch.equal(out, rows * 2)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert recorder.replays > 100


@pytest.mark.parametrize("recorded_in", [True, False])
def test_inference_mode_may_come_and_go(recorded_in: bool) -> None:
    made, _ = doubled()
    rows = torch.randn(4, 3)
    for mode in (recorded_in, recorded_in, not recorded_in, recorded_in):
        with torch.inference_mode(mode):
            out = made(rows, batch_of(4))
    assert out is not None and torch.equal(out, rows * 2)


# CUDA's recorder, over objects that write down what they are asked


class Pretended:
    """Streams, events and graphs of a device that is not there, and the order of what they did."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.did: list[str] = []
        self.current = self.stream("caller")
        cuda = torch.cuda
        patch.setattr(cuda, "Stream", lambda device: self.stream("side"))
        patch.setattr(cuda, "Event", lambda: self.thing("event", "record", "synchronize"))
        patch.setattr(cuda, "CUDAGraph", lambda: self.thing("graph", "replay"))
        patch.setattr(cuda, "graph_pool_handle", lambda: "pool")
        patch.setattr(cuda, "current_stream", lambda device: self.current)
        patch.setattr(cuda, "device", lambda device: contextlib.nullcontext())
        patch.setattr(cuda, "stream", self.on)
        patch.setattr(cuda, "graph", self.capture)
        # Else torch would be asked for a generator of a device that is not there.
        patch.setattr(cuda_graphs, "DRAWS_FOR_ALL", False)
        self.capture_fails = False

    def thing(self, name: str, *methods: str) -> Any:
        made = type(name, (), {})()
        made.name = name
        for method in methods:

            def call(*args: Any, method: str = method) -> None:
                told = " ".join(getattr(a, "name", str(a)) for a in args)
                self.did.append(f"{name}.{method} {told}".strip())

            setattr(made, method, call)
        return made

    def stream(self, name: str) -> Any:
        return self.thing(name, "wait_stream", "wait_event", "synchronize")

    @contextlib.contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextlib.contextmanager
    def capture(
        self, graph: Any, *, pool: str, stream: Any, capture_error_mode: str
    ) -> Iterator[None]:
        self.did.append(f"begin {pool} {capture_error_mode}")
        self.current = stream
        yield
        if self.capture_fails:
            raise RuntimeError("invalidated")  # as torch's: its stream stays the current one
        self.current = self.caller
        self.did.append("end")

    def run(self) -> None:
        self.did.append(f"run on {self.current.name}")

    def recorder(self) -> cuda_graphs.CudaRecorder:
        self.caller = self.current
        return cuda_graphs.CudaRecorder(torch.device("cuda", 0))


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    return Pretended(monkeypatch)


def test_a_recording_runs_once_plainly_and_on_its_own_stream(pretended: Pretended) -> None:
    graph = pretended.recorder().record(pretended.run)
    assert pretended.did == [
        "side.wait_stream caller", "run on side", "begin pool thread_local", "run on side", "end",
        "caller.wait_stream side",
    ]  # fmt: skip
    graph.replay()
    assert pretended.did[-1] == "graph.replay"


def test_a_recording_that_fails_gives_the_stream_back(pretended: Pretended) -> None:
    recorder = pretended.recorder()
    pretended.capture_fails = True
    with pytest.raises(RuntimeError, match="invalidated"):
        recorder.record(pretended.run)
    assert pretended.current is pretended.caller
    assert not cuda_graphs._recording.locked()


class Generator:
    """torch's generator of random numbers: its state can be exchanged."""

    def __init__(self, state: str) -> None:
        self.state = state

    def graphsafe_get_state(self) -> Generator:
        return Generator(self.state)

    def graphsafe_set_state(self, other: Generator) -> None:
        self.state = other.state


@pytest.mark.parametrize("fails", [False, True])
def test_others_draw_random_numbers_while_a_pass_is_recorded(
    fails: bool, pretended: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until torch 2.12 the state that is the default one at the beginning belongs to the graph."""
    default, taken = Generator("usual"), []

    class Graph:
        def capture_begin(self, **options: Any) -> None:
            taken.append(default.state)
            if fails:
                raise RuntimeError("no recording")

    @contextlib.contextmanager
    def capture(graph: Any, **options: Any) -> Iterator[None]:
        graph.capture_begin()
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "default_generators", (default,))
    monkeypatch.setattr(torch, "Generator", lambda device: Generator("apart"))
    monkeypatch.setattr(cuda_graphs, "DRAWS_FOR_ALL", True)

    def run() -> None:
        assert default.state == "usual" and "usual" not in taken

    recorder = pretended.recorder()
    for _ in range(2):
        if fails:
            with pytest.raises(RuntimeError, match="no recording"):
                recorder.record(run)
        else:
            recorder.record(run)
    assert taken == ["apart"] * 2 and default.state == "usual"


def test_real_generators_exchange_their_states_by_these_names() -> None:
    assert callable(torch.Generator.graphsafe_get_state)
    assert callable(torch.Generator.graphsafe_set_state)
    assert "capture_begin" in vars(torch.cuda.CUDAGraph)


def test_another_stream_waits_for_the_turn_before(pretended: Pretended) -> None:
    recorder = pretended.recorder()
    buffer = pretended.thing("buffer", "record_stream")
    other = pretended.stream("other")
    for stream in (pretended.caller, pretended.caller, other, other, pretended.caller):
        with pretended.on(stream), recorder.turn((buffer,)):
            pretended.run()
    assert pretended.did == [
        "buffer.record_stream caller", "run on caller", "event.record caller",
        "run on caller", "event.record caller",
        "other.wait_event event", "buffer.record_stream other", "run on other",
        "event.record other",
        "run on other", "event.record other",
        "caller.wait_event event", "buffer.record_stream caller", "run on caller",
        "event.record caller",
    ]  # fmt: skip
    recorder.settle()
    assert pretended.did[-2:] == ["side.synchronize", "event.synchronize"]


# The encoder


def model(**changes: Any) -> BertModel:
    torch.manual_seed(0)
    config = BertModel.config_class(
        vocab_size=50, hidden_size=48, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=100, max_position_embeddings=400, **changes,
    )  # fmt: skip
    made = BertModel(config, add_pooling_layer=False).eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter.copy_(torch.randn_like(parameter) * (0.25 if parameter.dim() == 2 else 0.5))
    return made


def blocks_of(kind: str) -> tuple[list[Any], torch.dtype]:
    made = model().bfloat16() if kind == "bfloat16" else model()
    blocks = list(made.blocks())
    if kind == "int8":
        for name in ("q", "k", "v", "out", "up", "down"):
            blocks = [
                dataclasses.replace(block, **{name: int8(getattr(block, name), name != "k")})
                for block in blocks
            ]
    if kind == "pre-norm":
        blocks = [dataclasses.replace(block, pre_norm=True) for block in blocks]
    return blocks, made.dtype


def int8(part: Any, bias: bool) -> Int8Linear:
    out = Int8Linear(part.in_features, part.out_features, bias)
    out.qweight, out.weight_scale = quantize_weight(part.weight)
    if bias:
        out.bias = torch.nn.Parameter(part.bias.clone(), requires_grad=False)
    return out


def with_spoiled_rest(plan: Plan) -> Plan:
    """The plan with an attention that takes offsets short of its rows, as the GPU's do, and leaves
    the rows behind them as memory had them."""

    def attention(q: Tensor, k: Tensor, v: Tensor, cu: Tensor, *rest: Any) -> Tensor:
        total = int(cu[-1])
        key_bias = rest[-1]
        lengths = cu.diff()
        longest = int(lengths.max())
        assert longest <= rest[1]
        out = torch.full(q.shape, float("nan"), dtype=q.dtype)
        out[:total] = plan.attention_varlen(
            q[:total], k[:total], v[:total], cu, cu, longest, longest, rest[3], False,
            None if key_bias is None else key_bias[:total],
        )  # fmt: skip
        return out

    choices = tuple(
        dataclasses.replace(choice, function=attention)
        if choice.op == "attention_varlen"
        else choice
        for choice in plan.choices
    )
    return dataclasses.replace(plan, choices=choices)


@pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8", "pre-norm"])
def test_replays_have_the_bits_of_plain_passes_and_of_the_layers(kind: str) -> None:
    torch.manual_seed(1)
    blocks, dtype = blocks_of(kind)
    plan = build_plan(model().traits(), CPU, dtype)
    recorder = FakeRecorder()
    encoder = GpuEncoder(blocks, with_spoiled_rest(plan), recorder)
    with torch.inference_mode():
        for lengths in ([37], [5, 0, 30, 1], [20, 9, 2], [40, 3], [17, 20, 1, 1], [33]):
            batch = PackedBatch.from_lengths(lengths)
            rows = torch.randn(batch.total, 48).to(dtype)
            layers = encode(blocks, rows, batch, plan, ForwardOptions()).packed
            for _ in range(3):
                # Rows behind the batch: what a product of NaN would spread.
                if encoder.graphs._buffers is not None:
                    encoder.graphs._buffers.rows[batch.total :] = float("nan")
                assert torch.equal(encoder(rows, batch), layers), lengths
    assert recorder.replays >= 10


@pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))
def test_masked_keys_that_stay_in_the_batch() -> None:
    blocks, _ = blocks_of("float32")
    plan = build_plan(model().traits(), CPU, torch.float32)
    encoder = GpuEncoder(blocks, with_spoiled_rest(plan), FakeRecorder())
    mask = torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0]])
    batch = PackedBatch.from_mask(mask, 2, 4, keep_first_column=True)
    rows = torch.randn(batch.total, 48)
    expected = encode(blocks, rows, batch, plan, ForwardOptions()).packed
    for _ in range(3):
        assert torch.equal(encoder(rows, batch), expected)


def test_rows_that_do_not_fit_are_refused() -> None:
    blocks, _ = blocks_of("float32")
    plan = build_plan(model().traits(), CPU, torch.float32)
    encoder = GpuEncoder(blocks, plan, FakeRecorder())
    batch = PackedBatch.from_lengths([2, 3])
    for rows in (torch.randn(4, 48), torch.randn(5, 47), torch.randn(5, 48).half()):
        with pytest.raises(ValueError, match=r"float32 \(5, 48\) on cpu"):
            encoder(rows, batch)


def test_another_plan_or_weight_makes_another_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of a GPU's encoder ends with its Plan, and when weights are others; it reads those
    that are there."""
    from fastbert.engine import encoder_cache

    made = model()
    monkeypatch.setattr(encoder_cache, "on_cpu", lambda device: False)
    monkeypatch.setattr(
        encoder_cache, "GpuEncoder", lambda blocks, plan: GpuEncoder(blocks, plan, FakeRecorder())
    )
    kept = made.encoder_cache

    def encoder(plan: Plan) -> GpuEncoder | None:
        view = kept.view(made)
        if not view.holds(contents=True):
            kept.stale(view)
        try:
            return kept.encoder(kept.view(made), plan)
        except encoder_cache.StaleModel:  # weights of queries, keys and values were moved together
            return kept.encoder(kept.view(made), plan)

    plan = made.plan()
    first = encoder(plan)
    assert isinstance(first, GpuEncoder)
    assert encoder(plan) is first
    other = dataclasses.replace(plan, choices=(*plan.choices[1:], plan.choices[0]))
    assert encoder(other) is not first
    first = encoder(plan)
    with use_backend("reference"):
        assert encoder(made.plan()) is None
    query = made.encoder.layer[0].attention.self.query
    query.weight.mul_(2)
    assert encoder(plan) is first
    query.weight = torch.nn.Parameter(query.weight.clone(), requires_grad=False)
    assert encoder(plan) is not first


@pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))
def test_a_model_runs_on_it_and_sees_its_weights_change(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastbert.engine import encoder_cache

    made = model()
    # Only the CPU's kernels pack the weights of `linear`.
    monkeypatch.setattr(Plan, "prepack", lambda *_: None)
    monkeypatch.setattr(encoder_cache, "on_cpu", lambda device: False)
    monkeypatch.setattr(
        encoder_cache,
        "GpuEncoder",
        lambda blocks, plan: GpuEncoder(blocks, with_spoiled_rest(plan), FakeRecorder()),
    )
    ids = torch.randint(5, 50, (2, 9))
    mask = (torch.arange(9) < torch.tensor([[9], [4]])).long()

    def layers() -> Tensor:
        return made(ids, attention_mask=mask, output_hidden_states=True).last_hidden_state

    with torch.inference_mode():
        for _ in range(2):
            for _ in range(3):
                assert torch.equal(made(ids, attention_mask=mask).last_hidden_state, layers())
            ready = made.encoder_cache._entry
            assert ready is not None and isinstance(ready.encoder, GpuEncoder)
            made.encoder.layer[1].attention.self.query.weight.mul_(2)
