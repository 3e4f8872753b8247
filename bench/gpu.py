"""Measures the GPU kernels: two ceilings, then every kernel beside torch's own, as JSON.

Run by bench/gpu.sh on a machine with a GPU. A kernel is timed only after its parity gate (the same
shape with fewer rows, against float64) is green; L2 is flushed before every timed call; figures are
medians with quartiles. Rates count the work of real tokens.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastbert import kernels
from fastbert.ops import REGISTRY
from fastbert.testing import parity

FOLDER = Path(__file__).with_name("results")
DEVICE = "cuda"
BF16 = torch.bfloat16
GATE_ROWS = 1024


@dataclass
class Measured:
    """One engine in one case: milliseconds, and the rate in units of `unit` per second."""

    case: str
    engine: str
    median_ms: float | None
    quartiles_ms: tuple[float, float] | None
    rate: float | None
    unit: str
    note: str = ""


@dataclass(frozen=True)
class Case:
    """One op at one shape.

    Attributes:
        make: tokens -> keyword arguments of the op, on the device.
        work: floating or integer operations, or bytes, of a call with `tokens` tokens.
        rivals: name -> a callable on the same arguments, in place of our kernel.
    """

    name: str
    op: str
    tokens: int
    make: Callable[[int], dict[str, Any]]
    work: float
    unit: str
    rivals: dict[str, Callable[..., Any]]


def timed(call: Callable[[], Any]) -> tuple[float, tuple[float, float]]:
    """(median, quartiles) of a call in milliseconds."""
    import triton.testing

    low, median, high = triton.testing.do_bench(
        call, warmup=50, rep=200, quantiles=[0.25, 0.5, 0.75]
    )
    return median, (low, high)


def ceilings() -> Iterator[Measured]:
    """What the machine itself reaches: a copy, and a large product on random data."""
    source = torch.empty(1 << 32, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    median, quartiles = timed(lambda: target.copy_(source))
    yield Measured("ceiling", "copy", median, quartiles, 2 * source.numel() / median / 1e9, "TB/s")
    a, b = (torch.randn(8192, 8192, device=DEVICE, dtype=BF16) for _ in range(2))
    median, quartiles = timed(lambda: a @ b)
    yield Measured(
        "ceiling", "matmul bf16", median, quartiles, 2 * 8192**3 / median / 1e9, "TFLOP/s"
    )


def attention(lengths: Callable[[int], list[int]], name: str, tokens: int = 16384) -> Case:
    heads, dim = 12, 64

    def make(total: int) -> dict[str, Any]:
        sizes = lengths(total)
        offsets = torch.tensor([0, *sizes], device=DEVICE).cumsum(0).to(torch.int32)
        q, k, v = torch.randn(sum(sizes), 3, heads, dim, device=DEVICE, dtype=BF16).unbind(1)
        longest = max(sizes)
        return {
            "q": q, "k": k, "v": v, "cu_seqlens_q": offsets, "cu_seqlens_k": offsets,
            "max_seqlen_q": longest, "max_seqlen_k": longest, "scale": dim**-0.5,
        }  # fmt: skip

    def sdpa(q: Tensor, k: Tensor, v: Tensor, max_seqlen_q: int, **_: Any) -> Tensor:
        def grid(x: Tensor) -> Tensor:
            return x.reshape(-1, max_seqlen_q, heads, dim).transpose(1, 2)

        return F.scaled_dot_product_attention(grid(q), grid(k), grid(v))

    def varlen(**a: Any) -> Any:
        from torch.nn.attention.varlen import varlen_attn

        return varlen_attn(
            a["q"], a["k"], a["v"], a["cu_seqlens_q"], a["cu_seqlens_k"],
            a["max_seqlen_q"], a["max_seqlen_k"],
        )  # fmt: skip

    sizes = lengths(tokens)
    rivals: dict[str, Callable[..., Any]] = {"torch varlen": varlen}
    if len(set(sizes)) == 1:
        rivals["torch sdpa"] = sdpa
    work = 4.0 * heads * dim * sum(n * n for n in sizes)
    return Case(f"attention {name}", "attention_varlen", tokens, make, work, "TFLOP/s", rivals)


def row_ops(width: int, rows: int = 32768) -> Iterator[Case]:
    def vector() -> Tensor:
        return torch.randn(width, device=DEVICE, dtype=BF16)

    def matrix(n: int) -> Tensor:
        return torch.randn(n, width, device=DEVICE, dtype=BF16)

    bytes_ = 2.0 * rows * width
    yield Case(
        f"add_layer_norm {width}", "add_layer_norm", rows,
        lambda n: {"x": matrix(n), "weight": vector(), "bias": vector(), "eps": 1e-12,
                   "residual": matrix(n), "x_bias": vector()},
        3 * bytes_, "TB/s", {},
    )  # fmt: skip
    yield Case(
        f"act_layer_norm {width}", "act_layer_norm", rows,
        lambda n: {"x": matrix(n), "bias": vector(), "weight": vector(), "ln_bias": vector(),
                   "eps": 1e-12, "activation": "gelu"},
        2 * bytes_, "TB/s", {},
    )  # fmt: skip
    yield Case(
        f"bias_act {width}", "bias_act", rows,
        lambda n: {"x": matrix(n), "bias": vector(), "activation": "gelu"},
        2 * bytes_, "TB/s", {},
    )  # fmt: skip
    yield Case(
        f"quantize_rows {width}", "quantize_rows", rows, lambda n: {"x": matrix(n)},
        1.5 * bytes_, "TB/s", {},
    )  # fmt: skip


def products(depth: int, width: int, rows: int = 16384) -> Iterator[Case]:
    def x(n: int) -> Tensor:
        return torch.randn(n, depth, device=DEVICE, dtype=BF16)

    def linear(n: int) -> dict[str, Any]:
        weight = torch.randn(width, depth, device=DEVICE, dtype=BF16) / depth**0.5
        bias = torch.randn(width, device=DEVICE, dtype=BF16)
        return {"x": x(n), "weight": weight, "bias": bias, "activation": "gelu"}

    def integer(n: int) -> dict[str, Any]:
        weight = torch.randint(-127, 128, (width, depth), device=DEVICE, dtype=torch.int8)
        scale = torch.rand(width, device=DEVICE) / 1000
        bias = torch.randn(width, device=DEVICE, dtype=BF16)
        return {"x": x(n), "qweight": weight, "weight_scale": scale, "bias": bias,
                "activation": "gelu"}  # fmt: skip

    def torch_linear(x: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
        return F.gelu(F.linear(x, weight, bias))

    def int_mm(x: Tensor, qweight: Tensor, **_: Any) -> Tensor:
        return torch._int_mm(x.to(torch.int8), qweight.t())

    work = 2.0 * rows * depth * width
    shape = f"{depth}x{width}"
    yield Case(f"linear {shape}", "linear", rows, linear, work, "TFLOP/s",
               {"torch linear + gelu": torch_linear})  # fmt: skip
    yield Case(f"int8_linear {shape}", "int8_linear", rows, integer, work, "TOPS",
               {"torch _int_mm, no epilogue": int_mm})  # fmt: skip


def uniform(length: int, total: int) -> list[int]:
    return [length] * max(1, total // length)


def ragged(total: int) -> list[int]:
    """Lengths that differ 60-fold: about a third of the same batch padded."""
    pattern = [8, 480, 40, 250, 120, 70, 300, 16]
    return pattern * max(1, total // sum(pattern))


def cases() -> Iterator[Case]:
    for length in (64, 128, 256, 512, 1024):
        yield attention(partial(uniform, length), f"length {length}")
    yield attention(ragged, "ragged")
    for width in (768, 1024):
        yield from row_ops(width)
    for depth, width in ((768, 768), (768, 2304), (768, 3072), (3072, 768), (1024, 4096)):
        yield from products(depth, width)


def measured(case: Case) -> Iterator[Measured]:
    """Our kernels of every backend behind their gates, then the rivals."""
    gate = case.make(min(case.tokens, GATE_ROWS))
    arguments = case.make(case.tokens)
    for backend in ("triton", "cuda"):
        try:
            kernel = kernels.kernel(backend, case.op)
        except kernels.Unavailable as reason:
            yield Measured(case.name, backend, None, None, None, case.unit, str(reason))
            continue
        verdict = parity(REGISTRY[case.op], kernel, gate, BF16)
        if not verdict.ok:
            note = f"not timed: {verdict.reason}"
            yield Measured(case.name, backend, None, None, None, case.unit, note)
            continue
        yield one(case, backend, partial(kernel, **arguments))
    for name, rival in case.rivals.items():
        try:
            yield one(case, name, partial(rival, **arguments))
        except (ImportError, RuntimeError) as reason:
            yield Measured(case.name, name, None, None, None, case.unit, f"not run: {reason}")


def one(case: Case, engine: str, call: Callable[[], Any]) -> Measured:
    median, quartiles = timed(call)
    return Measured(case.name, engine, median, quartiles, case.work / median / 1e9, case.unit)


def main() -> None:
    if not torch.cuda.is_available():
        raise SystemExit("bench.gpu: this machine has no CUDA device; nothing was measured.")
    import triton

    torch.manual_seed(0)
    rows: list[Measured] = []
    for source in (ceilings(), *(measured(case) for case in cases())):
        for row in source:
            rows.append(row)
            figure = row.note if row.rate is None else f"{row.median_ms:8.4f} ms {row.rate:9.2f}"
            print(f"{row.case:24} {row.engine:28} {figure} {row.unit}", flush=True)
    name = torch.cuda.get_device_name().replace(" ", "-").lower()
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}-{time.strftime('%Y-%m-%d')}.json"
    versions = {
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
    }
    found = {"device": name, "versions": versions, "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
