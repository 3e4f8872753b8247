"""The Plan on a GPU that is only pretended: measurements, their absence, batch invariance."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from fastbert import kernels
from fastbert.kernels import cuda, measured
from fastbert.kernels.measured import Gpu, Ranking
from fastbert.models.bert import BertModel
from fastbert.ops import REGISTRY
from fastbert.ops.operands import Target
from fastbert.runtime import plan as backend
from fastbert.runtime.plan import (
    CUBLAS,
    Plan,
    Traits,
    Unavailable,
    build_plan,
)
from fastbert.tools.explain import explain

TRAITS = Traits(num_heads=12, head_dim=64, hidden_size=768, intermediate_size=3072)
GPU = Gpu("Pretended 9000", "9.0")
DEVICE = torch.device("cuda", 0)
BF16 = torch.bfloat16


def row(
    op: str = "linear", size: int = 768, dtype: str = "bfloat16", weight: Any = None, **ms: float
) -> Any:
    made = {"op": op, "dtype": dtype, "size": size, "case": f"{op} {size}", "ms": ms}
    return made | ({} if weight is None else {"weight": weight})


def table(*rows: Any, name: str = GPU.name, capability: str = GPU.capability) -> Any:
    entry = {"capability": capability, "date": "2026-01-02", "rows": list(rows)}
    return measured.checked({"format": measured.FORMAT, "gpus": {name: entry}})


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A GPU on which every kernel of both backends can run, and nothing is measured."""
    monkeypatch.setattr(kernels, "missing", lambda name, device: _missing(name))
    monkeypatch.setattr(kernels, "refusal", lambda *_: None)
    monkeypatch.setattr(kernels, "kernel", lambda name, op: _nowhere(name))
    monkeypatch.setattr(kernels, "instruction_set", lambda *_: "sm_90")
    monkeypatch.setattr(measured, "gpu", lambda device: GPU)
    monkeypatch.setattr(measured, "load", lambda: {"format": 1, "gpus": {}})
    backend._build.cache_clear()
    yield monkeypatch
    backend._build.cache_clear()


def _nowhere(backend: str) -> kernels.Kernel:
    """A kernel that is chosen and never called."""

    def refuse(*_: object, **__: object) -> object:
        raise AssertionError(f"a kernel of {backend} was called")

    return kernels.Kernel(refuse, Target(backend, "cuda"), refuse)


def _missing(name: str) -> str | None:
    return "its kernels run on cpu tensors" if name == "cpu" else None


def plan(dtype: torch.dtype = BF16, **options: Any) -> Plan:
    return build_plan(TRAITS, DEVICE, dtype, **options)


def test_the_committed_table_is_one() -> None:
    measured.checked(measured.load())


def test_unmeasured_takes_the_default_order_and_says_so(pretended: pytest.MonkeyPatch) -> None:
    made = plan()
    for choice in made.choices:
        assert choice.backend == "triton"
        why = dict(choice.passed_over)["cuda"]
        assert why == "triton goes first by default; not measured on Pretended 9000"
    assert "not measured" in dict(made.choice("linear").passed_over)[CUBLAS]
    assert made.batch_invariant
    assert any(line.startswith("batch invariant   yes") for line in made.lines())


def test_the_measured_order_goes_first(pretended: pytest.MonkeyPatch) -> None:
    rows = [row(cuda=2.0, triton=1.0), row("attention_varlen", 64, cuda=1.0, triton=3.0)]
    pretended.setattr(measured, "load", lambda: table(*rows))
    made = plan()
    assert made.choice("linear").backend == "triton"
    assert dict(made.choice("linear").passed_over)["cuda"] == (
        "2.00 times as long as triton on Pretended 9000, 2026-01-02"
    )
    # cuBLAS was not among the measured, so nothing says that it is faster.
    assert "not measured beside triton" in dict(made.choice("linear").passed_over)[CUBLAS]
    assert made.choice("attention_varlen").backend == "cuda"
    assert "3.00 times" in dict(made.choice("attention_varlen").passed_over)["triton"]
    assert "not measured" in dict(made.choice("bias_act").passed_over)["cuda"]


def test_cublas_only_where_measured_faster_and_not_batch_invariant(
    pretended: pytest.MonkeyPatch,
) -> None:
    pretended.setattr(measured, "load", lambda: table(row(cuda=1.0, triton=1.2, cublas=0.5)))
    made = plan()
    choice = made.choice("linear")
    assert choice.backend == CUBLAS and choice.function is REGISTRY["linear"].reference
    assert "batch_invariant=True" in choice.note
    assert not made.batch_invariant
    assert made.lines()[-1] == (
        "batch invariant   no: torch computes linear, and may choose its algorithm by the batch"
    )
    assert made.prepack("linear", torch.zeros(2, 2)) is None
    assert made.choice("int8_linear").backend == "triton"

    kept = plan(batch_invariant=True, strict=True)
    assert kept.choice("linear").backend == "cuda" and kept.batch_invariant
    assert "number of rows" in dict(kept.choice("linear").passed_over)[CUBLAS]
    assert plan(torch.float32).choice("linear").backend == "triton"
    pretended.setattr(measured, "load", lambda: table(row(cuda=1.0, triton=1.2, cublas=1.1)))
    backend._build.cache_clear()
    assert plan().choice("linear").backend == "cuda"


QKV, OUT, UP, DOWN = (2304, 768), (768, 768), (3072, 768), (768, 3072)


def products(**changes: float) -> Any:
    """cuBLAS for three of a layer's products, ours for the one with GELU."""
    times = {QKV: 0.5, OUT: 0.6, UP: 1.5, DOWN: 0.5}
    rows = [row(weight=list(shape), cuda=1.0, triton=1.2, cublas=t) for shape, t in times.items()]
    return table(*rows, **changes)


def test_every_product_of_a_layer_has_its_own_backend(pretended: pytest.MonkeyPatch) -> None:
    pretended.setattr(measured, "load", products)
    called: list[str] = []

    def kernel(name: str, op: str) -> kernels.Kernel:
        return kernels.Kernel(
            lambda *_, **__: (), Target(name, "cuda"), lambda o: called.append(name)
        )

    pretended.setattr(kernels, "kernel", kernel)
    pretended.setattr(backend, "obstacle", lambda *_: None)
    cublas = dataclasses.replace(
        REGISTRY["linear"], reference=lambda *_, **__: called.append(CUBLAS)
    )
    pretended.setattr(backend, "ALL", {**backend.ALL, "linear": cublas})
    made = plan()
    choice = made.choice("linear")
    for shape, expected in ((QKV, CUBLAS), (OUT, CUBLAS), (UP, "cuda"), (DOWN, CUBLAS)):
        weight = torch.zeros(shape, device="meta")
        assert choice.of(weight).backend == expected, shape
        with torch.no_grad():
            made.linear(torch.zeros(1, shape[1], device="meta"), weight)
        assert called.pop() == expected and not called, shape
    # The pooler's or a head's product is judged by all that were measured at this size.
    assert choice.of(torch.zeros(2, 768, device="meta")).backend == choice.backend == CUBLAS
    assert any(line.startswith("  768 to 3072") and "cuda" in line for line in made.lines())
    assert not made.batch_invariant
    kept = plan(batch_invariant=True)
    assert kept.batch_invariant and not kept.choice("linear").products


def test_a_single_product_on_cublas_ends_batch_invariance(pretended: pytest.MonkeyPatch) -> None:
    rows = [row(weight=list(shape), cuda=1.0, triton=1.1, cublas=1.5) for shape in (QKV, UP, DOWN)]
    rows.append(row(weight=list(OUT), cuda=1.0, triton=1.1, cublas=0.9))
    pretended.setattr(measured, "load", lambda: table(*rows))
    made = plan()
    assert made.choice("linear").backend == "cuda" and not made.batch_invariant
    assert made.choice("linear").of(torch.zeros(OUT, device="meta")).backend == CUBLAS
    assert made.prepack("linear", torch.zeros(OUT, device="meta")) is None


def test_a_products_weight_speaks_for_those_near_it() -> None:
    rows = table(
        row(weight=[768, 768], cuda=1.0, triton=2.0), row(weight=[3072, 768], cuda=2.0, triton=1.0)
    )

    def first(weight: tuple[int, int] | None, size: int = 768) -> Any:
        found = measured.ranking(GPU, "linear", BF16, size, ["cuda", "triton"], rows, weight)
        return found if isinstance(found, str) else next(iter(found.ratios))

    assert (first((768, 768)), first((1024, 1024)), first((4096, 1024))) == (
        "cuda",
        "cuda",
        "triton",
    )
    assert first((1600, 768)) == first(None), "not measured, so all of that size speak"
    assert "at this size" in first((96, 96), 96)


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_a_forced_backend_asks_no_table(name: str, pretended: pytest.MonkeyPatch) -> None:
    pretended.setattr(measured, "load", lambda: table(row(cuda=1.0, triton=2.0, cublas=0.1)))
    for dtype in (BF16, torch.float32):
        made = plan(dtype, backend=name)
        assert {choice.backend for choice in made.choices} == {name}
        assert made.batch_invariant


def test_batch_invariance_that_cannot_be_had_is_said(pretended: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unavailable, match="batch_invariant=True was asked for"):
        plan(backend="reference", batch_invariant=True, strict=True)
    with pytest.raises(Unavailable, match=r"gradients.*; batch_invariant=True was asked") as told:
        plan(needs_grad=True, batch_invariant=True, strict=True)
    assert "eval mode" not in str(told.value)  # that is the CPU's way


def test_on_the_cpu_it_always_holds_and_is_shown() -> None:
    model = BertModel(BertModel.config_class(num_hidden_layers=1)).eval().requires_grad_(False)
    assert "batch invariant   yes: every op runs on a kernel" in explain(model)
    assert "as always on the CPU" in explain(model)
    model.set_backend("reference")
    assert "batch invariant   no: torch computes every op" in explain(model)
    model.set_backend(batch_invariant=True, strict=True)
    assert model.batch_invariant and model.plan().batch_invariant


@pytest.fixture
def capable(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[tuple[int, int]], None]]:
    """Pretends a GPU of a compute capability."""
    pytest.importorskip("triton", reason="the triton package is not installed")

    def pretend(capability: tuple[int, int]) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: GPU.name)
        monkeypatch.setattr(cuda, "unavailable", lambda: None)
        measured.gpu.cache_clear()
        backend._build.cache_clear()

    yield pretend
    measured.gpu.cache_clear()
    backend._build.cache_clear()


@pytest.mark.parametrize(
    ("capability", "missing"),
    [
        ((7, 0), {"cuda": "8.0 or later", "triton": "7.5 or later"}),
        ((7, 5), {"cuda": "compute capability 8.0 or later, Pretended 9000 has 7.5"}),
        ((8, 0), {}),
        ((8, 9), {}),
        ((9, 0), {}),
        ((12, 0), {}),
    ],
)
def test_what_is_too_old_has_no_kernels(
    capability: tuple[int, int], missing: dict[str, str], capable: Any
) -> None:
    capable(capability)
    for name in ("cuda", "triton"):
        reason = kernels.missing(name, DEVICE)
        assert reason is None if name not in missing else missing[name] in (reason or "")
    if len(missing) == 2:
        assert {choice.backend for choice in plan().choices} == {"reference"}
    for name in missing:
        with pytest.raises(Unavailable, match=f"'{name}' was asked for and cannot run here"):
            plan(backend=name)


def test_turing_multiplies_with_torch_and_runs_rows_on_triton(capable: Any) -> None:
    """Triton makes no tensor-core instructions for it; cuBLAS and torch's attention do."""
    capable((7, 5))
    backends = {choice.op: choice.backend for choice in plan(torch.float16).choices}
    rows = {"embed_layer_norm", "add_layer_norm", "act_layer_norm", "bias_act", "quantize_rows"}
    assert {op for op, name in backends.items() if name == "triton"} == rows
    for op in ("linear", "int8_linear", "attention_varlen"):
        assert backends[op] == "reference"
        why = dict(plan(torch.float16).choice(op).passed_over)["triton"]
        assert "no use of the tensor cores" in why
    made = plan(torch.bfloat16)
    assert {choice.backend for choice in made.choices} == {"reference"}
    assert "use float16" in dict(made.choice("bias_act").passed_over)["triton"]


DECODER_ROWS = ("rms_norm", "qk_norm_rope", "xielu")
DECODER_PRODUCTS = ("linear", "linear_w8a16", "attention_grouped")
DECODER = Traits(
    num_heads=32, num_kv_heads=8, head_dim=128, hidden_size=4096, intermediate_size=21504,
    ops=DECODER_ROWS + DECODER_PRODUCTS,
)  # fmt: skip


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0), (10, 0), (12, 0)])
def test_decoders_run_on_triton(capability: tuple[int, int], capable: Any) -> None:
    capable(capability)
    made = build_plan(DECODER, DEVICE, torch.float16)
    backends = {choice.op: choice.backend for choice in made.choices}
    assert {backends[op] for op in DECODER_ROWS} == {"triton"}
    turing = capability == (7, 5)
    for op in DECODER_PRODUCTS:
        assert backends[op] == ("reference" if turing else "triton")
        why = dict(made.choice(op).passed_over)
        assert not turing or "no use of the tensor cores" in why["triton"]
    # CUDA's were not measured either.
    for op in DECODER.ops or ():
        why = dict(made.choice(op).passed_over)["cuda"]
        assert ("triton goes first by default; not measured" in why) != turing, (op, why)
    # What no kernel holds goes to the reference, and says why.
    odd = build_plan(dataclasses.replace(DECODER, head_dim=48), DEVICE, torch.float16)
    assert odd.choice("attention_grouped").backend == "reference"
    if not turing:
        assert "head_dim is 48" in dict(odd.choice("attention_grouped").passed_over)["triton"]
    assert odd.choice("qk_norm_rope").backend == "triton"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, BF16], ids=str)
def test_decoders_run_on_cuda_where_it_is_asked_for(dtype: torch.dtype, capable: Any) -> None:
    capable((9, 0))
    made = build_plan(DECODER, DEVICE, dtype, backend="cuda", strict=True)
    assert {choice.backend for choice in made.choices} == {"cuda"}
    wide = dataclasses.replace(DECODER, head_dim=288)
    reasons = dict(build_plan(wide, DEVICE, dtype).choice("qk_norm_rope").passed_over)
    assert "head_dim is 288, the CUDA kernel holds up to 256" in reasons["cuda"]


def test_grouped_attention_is_measured_by_its_head_dim() -> None:
    assert backend._size("attention_grouped", DECODER) == 128
    assert backend._size("rms_norm", DECODER) == 4096


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_a_device_both_backends_say_so() -> None:
    for name in ("cuda", "triton"):
        assert kernels.missing(name, DEVICE), name
        with pytest.raises(Unavailable, match=f"{name!r} was asked for and cannot run here"):
            plan(backend=name)


def test_ratios_are_geometric_means_over_the_cases() -> None:
    rows = table(row(cuda=1.0, triton=2.0), row(cuda=4.0, triton=1.0))
    found = measured.ranking(GPU, "linear", BF16, 768, ["cuda", "triton"], rows)
    assert isinstance(found, Ranking)
    assert list(found.ratios) == ["triton", "cuda"]
    assert found.ratios == pytest.approx({"triton": 1.0, "cuda": 2**0.5})


def test_the_nearest_measured_size_speaks() -> None:
    rows = table(row(size=768, cuda=1.0, triton=2.0), row(size=1024, cuda=2.0, triton=1.0))

    def first(size: int | None) -> str:
        found = measured.ranking(GPU, "linear", BF16, size, ["cuda", "triton"], rows)
        return found if isinstance(found, str) else next(iter(found.ratios))

    assert (first(768), first(700), first(1024), first(1152)) == (
        "cuda",
        "cuda",
        "triton",
        "triton",
    )
    assert "at this size" in first(128) and "at this size" in first(4096)
    assert first(None) == "cuda"  # both sizes together: a tie, which the first name wins


@pytest.mark.parametrize(
    ("gpu", "told"),
    [
        (Gpu("Pretended 9001", "9.0"), "of the same compute capability as Pretended 9001"),
        (Gpu("Other", "8.0"), "not measured on Other"),
    ],
)
def test_another_gpu(gpu: Gpu, told: str) -> None:
    rows = table(row(cuda=1.0, triton=2.0))
    found = measured.ranking(gpu, "linear", BF16, 768, ["cuda", "triton"], rows)
    assert told in (found if isinstance(found, str) else found.where)


def test_a_backend_without_a_figure_stands_outside() -> None:
    rows = table(row(cuda=1.0, triton=2.0), row(cuda=1.0))
    told = measured.ranking(GPU, "linear", BF16, 768, ["cuda", "triton"], rows)
    assert isinstance(told, str) and "not measured beside another" in told
    other = measured.ranking(GPU, "linear", torch.float16, 768, ["cuda", "triton"], rows)
    assert isinstance(other, str) and "float16" in other


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda t: t.update(format=2), "format 1"),
        (lambda t: t["gpus"][GPU.name]["rows"][0].update(weight=[768]), "no pair of sizes"),
        (lambda t: t["gpus"][GPU.name].pop("date"), "no 'date'"),
        (lambda t: t["gpus"][GPU.name]["rows"][0].pop("size"), "no size"),
        (lambda t: t["gpus"][GPU.name]["rows"][0]["ms"].update(cuda=0.0), "positive"),
        (lambda t: t["gpus"][GPU.name]["rows"][0]["ms"].update(cuda=None), "positive"),
        (lambda t: t["gpus"][GPU.name]["rows"][0]["ms"].update(cuda=float("nan")), "positive"),
    ],
)
def test_a_damaged_table_is_refused(spoil: Any, told: str) -> None:
    damaged = copy.deepcopy(table(row(cuda=1.0, triton=2.0)))
    spoil(damaged)
    with pytest.raises(ValueError, match=told):
        measured.checked(damaged)
