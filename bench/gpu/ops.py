"""Measure kernels beside torch's own.

A kernel is timed only behind its parity gate: the same shape with fewer rows, against float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu.goals import COPY, MATMUL
from bench.gpu.record import Row
from bench.gpu.timing import Stopwatch, Times
from fastbert import kernels
from fastbert.ops import REGISTRY
from fastbert.testing import parity

GROUPS = ("ceilings", "attention", "rows", "gemm", "choice", "choice-bf16", "compiled")
CUBLAS = "cublas"
HEADS, DIM = 12, 64
_GATE_TOKENS = 1024
_BF16 = torch.bfloat16


@dataclass(frozen=True)
class Case:
    """One op at one shape.

    Attributes:
        name: of the case.
        op: name of the op.
        tokens: number of rows.
        make: tokens -> keyword arguments of the op, on the device.
        work: operations or bytes of a call with `tokens` tokens.
        unit: of a rate of 1e12 of them a second.
        size: shape class in the Plan's table, 0 where the case does not belong there.
        dtype: of the operands.
        baselines: name -> a callable on the same arguments, in place of our kernel.
        weight: shape of a gemm's weight, () for other ops.
    """

    name: str
    op: str
    tokens: int
    make: Callable[[int], dict[str, Any]]
    work: float
    unit: str
    size: int = 0
    dtype: torch.dtype = _BF16
    baselines: dict[str, Callable[..., Any]] = field(default_factory=dict)
    weight: tuple[int, ...] = ()


@dataclass(frozen=True)
class Bench:
    """Where cases run.

    Attributes:
        device: where.
        watch: times the calls.
        shrink: how many times smaller than on a GPU the cases are (dry runs).
    """

    device: torch.device
    watch: Stopwatch
    shrink: int = 1

    @property
    def backends(self) -> tuple[str, ...]:
        """Our backends on the device."""
        return ("cuda", "triton") if self.device.type == "cuda" else ("cpu",)

    def tokens(self, count: int) -> int:
        """Return the number of tokens of a case, or fewer in a dry run."""
        return max(64, count // self.shrink)


def run(group: str, bench: Bench) -> Iterator[list[Row]]:
    """Measure a group, and yield the rows of a case at a time."""
    if group == "ceilings":
        yield from _ceilings(bench)
        return
    for case in _cases(group, bench):
        yield measured(group, case, bench)


def _ceilings(bench: Bench) -> Iterator[list[Row]]:
    size = (1 << 32) // bench.shrink**2
    source = torch.empty(size, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    side = 8192 // bench.shrink
    # Random data: multiplying zeros is faster than multiplying anything else.
    a, b = (torch.randn(side, side, device=bench.device).to(_BF16) for _ in range(2))
    for name, call, work, unit in (
        (COPY, lambda: target.copy_(source), 2.0 * size, "TB/s"),
        (MATMUL, lambda: a @ b, 2.0 * side**3, "TFLOP/s"),
    ):
        times = bench.watch.kernels({name: call})[name]
        yield [row_of("ceilings", name, "torch", unit, times, work)]


def _cases(group: str, bench: Bench) -> Iterator[Case]:
    if group == "attention":
        for length in (64, 128, 256, 512, 1024):
            yield attention(bench, f"attention {length}", [length], 16384)
        yield attention(bench, "attention ragged", RAGGED, 16384)
        # The uniform batch whose operations per token are those of the ragged one.
        alike = round(sum(n**3 for n in RAGGED) / sum(n**2 for n in RAGGED))
        yield attention(bench, "attention as ragged, uniform", [alike], 16384)
    elif group == "rows":
        for width in (768, 1024):
            yield from row_ops(bench, width, 32768)
    elif group == "gemm":
        for depth, width in ((768, 3072), (1024, 4096), (3072, 768), (4096, 1024), (768, 768)):
            yield from gemms(bench, depth, width, 16384)
    elif group == "choice-bf16":
        # The table's cases that decide most, for when there is little time.
        for tokens in (16384, 128):
            yield from _choices(bench, _BF16, tokens)
    elif group == "choice":
        for dtype in (_BF16, torch.float16):
            for tokens in (128, 2048, 16384):
                yield from _choices(bench, dtype, tokens)
    elif group == "compiled":
        # Beside torch.compile, whose tuning takes longer than everything else.
        for width in (768, 1024):
            yield from row_ops(bench, width, 32768, compiled=True)
        yield from gemms(bench, 768, 3072, 16384, compiled=True)
    else:
        raise ValueError(f"There is no group {group!r}; choose from {', '.join(GROUPS)}.")


# Lengths that differ 60-fold.
RAGGED = [8, 480, 40, 250, 120, 70, 300, 16]


def _choices(bench: Bench, dtype: torch.dtype, tokens: int) -> Iterator[Case]:
    """Yield the cases that the Plan's table is made of: every op, small to large."""
    yield attention(bench, "attention", [128], tokens, dtype, size=DIM)
    for width in (768, 1024):
        yield from row_ops(bench, width, tokens, dtype, table=True)
        # The products of a layer: queries, keys and values; its output; and the two wide ones.
        for depth, outer in ((1, 3), (1, 1), (1, 4), (4, 1)):
            yield from gemms(bench, depth * width, outer * width, tokens, dtype, table=True)
        yield embedding(bench, width, tokens, dtype)


def attention(
    bench: Bench,
    name: str,
    pattern: list[int],
    tokens: int,
    dtype: torch.dtype = _BF16,
    size: int = 0,
) -> Case:
    """Make a case of sequences.

    Args:
        bench: where it runs.
        name: of the case.
        pattern: lengths of the sequences, one after the other and again.
        tokens: about so many in all.
        dtype: of queries, keys and values.
        size: shape class in the Plan's table.
    """
    tokens = bench.tokens(tokens)

    def lengths(total: int) -> list[int]:
        return pattern * max(1, total // sum(pattern))

    def make(total: int) -> dict[str, Any]:
        sizes = lengths(total)
        offsets = torch.tensor([0, *sizes]).cumsum(0).to(bench.device, torch.int32)
        qkv = torch.randn(sum(sizes), 3, HEADS, DIM, device=bench.device).to(dtype)
        q, k, v = qkv.unbind(1)
        longest = max(sizes)
        return {
            "q": q, "k": k, "v": v, "cu_seqlens_q": offsets, "cu_seqlens_k": offsets,
            "max_seqlen_q": longest, "max_seqlen_k": longest, "scale": DIM**-0.5,
        }  # fmt: skip

    sizes = lengths(tokens)
    baselines: dict[str, Callable[..., Any]] = {"torch varlen": _varlen}
    if len(set(sizes)) == 1:
        baselines["torch sdpa"] = _sdpa
        baselines["torch sdpa cudnn"] = _sdpa_cudnn
    work = 4.0 * HEADS * DIM * sum(n * n for n in sizes)
    name = f"{name}, {sum(sizes)} tokens"
    return Case(name, "attention_varlen", tokens, make, work, "TFLOP/s", size, dtype, baselines)


def _grids(a: dict[str, Any]) -> tuple[Tensor, ...]:
    """Return (batch, heads, length, dim) views of a uniform batch."""
    return tuple(
        a[name].reshape(-1, a["max_seqlen_q"], HEADS, DIM).transpose(1, 2) for name in "qkv"
    )


def _sdpa(**a: Any) -> Tensor:
    return F.scaled_dot_product_attention(*_grids(a), scale=a["scale"])


def _sdpa_cudnn(**a: Any) -> Tensor:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return _sdpa(**a)


def _varlen(**a: Any) -> Any:
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(
        a["q"], a["k"], a["v"], a["cu_seqlens_q"], a["cu_seqlens_k"],
        a["max_seqlen_q"], a["max_seqlen_k"],
    )  # fmt: skip


def row_ops(
    bench: Bench,
    width: int,
    rows: int,
    dtype: torch.dtype = _BF16,
    table: bool = False,
    compiled: bool = False,
) -> Iterator[Case]:
    """Make cases of the row-wise ops.

    Args:
        bench: where they run.
        width: of a row.
        rows: number of rows.
        dtype: of the rows.
        table: whether they belong into the Plan's table.
        compiled: whether torch.compile's form of an op is one of its baselines.
    """
    rows = bench.tokens(rows)
    size = width if table else 0

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device=bench.device).to(dtype)

    makers: dict[str, tuple[Callable[[int], dict[str, Any]], float]] = {
        # Bytes: reads of x and residual and the write; of x and the write; and the u8 write.
        "add_layer_norm": (
            lambda n: {"x": draw(n, width), "weight": draw(width), "bias": draw(width),
                       "eps": 1e-12, "residual": draw(n, width), "x_bias": draw(width)},
            3.0,
        ),
        "act_layer_norm": (
            lambda n: {"x": draw(n, width), "bias": draw(width), "weight": draw(width),
                       "ln_bias": draw(width), "eps": 1e-12, "activation": "gelu"},
            2.0,
        ),
        "bias_act": (
            lambda n: {"x": draw(n, width), "bias": draw(width), "activation": "gelu"}, 2.0,
        ),
        "quantize_rows": (lambda n: {"x": draw(n, width)}, 1.5),
    }  # fmt: skip
    for op, (make, passes) in makers.items():
        baselines = {"torch.compile": _compiled(op)} if compiled and op != "quantize_rows" else {}
        work = passes * dtype.itemsize * rows * width
        name = f"{op} {width}, {rows} rows"
        yield Case(name, op, rows, make, work, "TB/s", size, dtype, baselines)


def _compiled(op: str) -> Callable[..., Any]:
    return torch.compile(REGISTRY[op].reference, mode="max-autotune-no-cudagraphs", dynamic=False)


def embedding(bench: Bench, width: int, tokens: int, dtype: torch.dtype) -> Case:
    """Make a case of three gathers and their norm, out of a vocabulary of BERT's size."""
    tokens, words = bench.tokens(tokens), 30522 // bench.shrink

    def make(n: int) -> dict[str, Any]:
        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, device=bench.device).to(dtype)

        def ids(most: int) -> Tensor:
            return torch.randint(0, most, (n,), device=bench.device)

        return {
            "input_ids": ids(words), "word": draw(words, width), "weight": draw(width),
            "bias": draw(width), "eps": 1e-12, "position_ids": ids(512),
            "position_table": draw(512, width), "token_type_ids": ids(2),
            "type_table": draw(2, width),
        }  # fmt: skip

    work = 2.0 * dtype.itemsize * tokens * width
    name = f"embed_layer_norm {width}, {tokens} rows"
    return Case(name, "embed_layer_norm", tokens, make, work, "TB/s", width, dtype)


def gemms(
    bench: Bench,
    depth: int,
    width: int,
    rows: int,
    dtype: torch.dtype = _BF16,
    table: bool = False,
    compiled: bool = False,
) -> Iterator[Case]:
    """Make cases of `linear` and `int8_linear`, with GELU for those of an "up" projection.

    Args:
        bench: where they run.
        depth: elements that a result is summed over.
        width: columns of the result.
        rows: number of rows.
        dtype: of the rows.
        table: whether they belong into the Plan's table.
        compiled: whether torch.compile's form of `linear` is one of its baselines.
    """
    rows = bench.tokens(rows)
    size = min(depth, width) if table else 0
    activation = "gelu" if width == 4 * depth else "none"

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device=bench.device).to(dtype)

    def linear(n: int) -> dict[str, Any]:
        return {"x": draw(n, depth), "weight": draw(width, depth) / depth**0.5,
                "bias": draw(width), "activation": activation}  # fmt: skip

    def integer(n: int) -> dict[str, Any]:
        weight = torch.randint(-127, 128, (width, depth), device=bench.device, dtype=torch.int8)
        return {"x": draw(n, depth), "qweight": weight,
                "weight_scale": torch.rand(width, device=bench.device) / 1000 + 1e-4,
                "bias": draw(width), "activation": activation}  # fmt: skip

    work = 2.0 * rows * depth * width
    shape = f"{depth}x{width}, {rows} rows"
    baselines: dict[str, Callable[..., Any]] = {CUBLAS: REGISTRY["linear"].reference}
    if compiled:
        baselines["torch.compile"] = _compiled("linear")
    yield Case(f"linear {shape}", "linear", rows, linear, work, "TFLOP/s", size, dtype, baselines,
               (width, depth))  # fmt: skip
    integer_baselines = {} if table else {"torch _int_mm, no epilogue": _int_mm}
    yield Case(f"int8_linear {shape}", "int8_linear", rows, integer, work, "TOPS", size, dtype,
               integer_baselines, (width, depth))  # fmt: skip


def _int_mm(x: Tensor, qweight: Tensor, **_: Any) -> Tensor:
    # It rounds to integers without looking for the range, which is less work than ours.
    return torch._int_mm(x.to(torch.int8), qweight.t())


@torch.no_grad()
def measured(group: str, case: Case, bench: Bench) -> list[Row]:
    """Time our kernels of every backend, behind their gates, interleaved with the baselines."""
    gate, arguments = case.make(min(case.tokens, _GATE_TOKENS)), case.make(case.tokens)
    calls: dict[str, Callable[[], Any]] = {}
    rows: dict[str, Row] = {}
    errors: dict[str, float] = {}
    for backend in bench.backends:
        rows[backend] = row_of(group, _case_name(case), backend, case.unit)
        try:
            kernel = kernels.kernel(backend, case.op)
            verdict = parity(REGISTRY[case.op], kernel, gate, case.dtype)
        except (kernels.Unavailable, RuntimeError, ValueError) as reason:
            rows[backend].note = first_line(reason)
            continue
        errors[backend] = verdict.ours.rms
        if verdict.ok:
            given = arguments | _packed(backend, case.op, arguments)
            calls[backend] = partial(kernel, **given)
        else:
            rows[backend].note = f"not timed: {verdict.reason}"
    for name, baseline in case.baselines.items():
        call = partial(baseline, **arguments)
        try:
            call()
        except Exception as reason:  # a baseline may fail in its own way; its row says how
            rows[name] = row_of(group, _case_name(case), name, case.unit)
            rows[name].note = f"not run: {first_line(reason)}"
        else:
            calls[name] = call
    times = bench.watch.kernels(calls) if calls else {}
    for name, taken in times.items():
        rows[name] = row_of(group, _case_name(case), name, case.unit, taken, case.work)
        rows[name].error = errors.get(name)
    for name, row in rows.items():
        if case.size and name in (*bench.backends, CUBLAS):
            row.op, row.size, row.weight = case.op, case.size, case.weight
            row.dtype = str(case.dtype).removeprefix("torch.")
    return list(rows.values())


def _packed(backend: str, op: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Pack a weight as a layer keeps it for the kernel, outside of the timed call."""
    packer = kernels.packer(backend, op)
    if packer is None:
        return {}
    return {"packed": packer(arguments["weight" if op == "linear" else "qweight"])}


def _case_name(case: Case) -> str:
    precision = str(case.dtype).removeprefix("torch.")
    return case.name if case.dtype is _BF16 else f"{case.name}, {precision}"


def row_of(
    part: str, case: str, engine: str, unit: str, times: Times | None = None, work: float = 0.0
) -> Row:
    """Make a row, with a rate where there are times.

    Args:
        part: of the run.
        case: name of the case.
        engine: what was timed.
        unit: of the rate.
        times: milliseconds, or None.
        work: operations or bytes of a call.
    """
    if times is None:
        return Row(part, case, engine, unit)
    rate = work / times.median / 1e9
    return Row(part, case, engine, unit, times.median, times.quartiles, rate)


def first_line(error: BaseException) -> str:
    """Return an error's type and the first line of its text, for a row's note."""
    told = str(error).splitlines()[0][:160] if str(error) else ""
    return f"{type(error).__name__}: {told}"
