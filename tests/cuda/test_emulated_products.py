"""The CUDA matrix products run on the CPU: every family and tile, against the reference.

The emulation (tests/cuda/emulated) follows the documented layouts of fragments, descriptors,
swizzles and tensor maps, poisons what has not landed and throws on what CUDA leaves undefined; its
few multiprocessors make blocks stay for several tiles. It adds the 16 products of an instruction
one by one, where the machine has an order of its own: what it says about bits is that tiles give
every element the same instructions in the same order.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fastbert import kernels
from fastbert.kernels.cuda import _gemm
from fastbert.ops import REGISTRY, Case
from fastbert.ops.activations import KERNEL_ACTIVATIONS
from fastbert.testing import misaligned, parity, poisoned_empty

pytestmark = pytest.mark.usefixtures("on_the_cpu")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HALVES = DTYPES[1:]
FMA, MMA, WGMMA = 1, 80, 90
AUTOMATIC = (0, -1)
# The tiles of a family: csrc/cuda/gemm/config.cpp.
TILES = {FMA: (0, 1), MMA: (0, 1), WGMMA: (0, 1)}
RESIDENT = (WGMMA, 2)


def forms(op: str, dtype: torch.dtype, inner: int) -> Iterator[tuple[int, int]]:
    """Every (family, tile) that takes such a product."""
    integer = op == "int8_linear"
    families = [FMA] if dtype == torch.float32 and not integer else [MMA]
    size = 1 if integer else dtype.itemsize
    if FMA not in families and inner > 0 and inner * size % 16 == 0:
        families.append(WGMMA)
    for family in families:
        yield from ((family, tile) for tile in TILES[family])
    if integer and WGMMA in families and inner <= 1024:
        yield RESIDENT


def run(op: str, form: tuple[int, int], **arguments: Any) -> Tensor:
    before, _gemm.FORM = _gemm.FORM, form
    try:
        kernel = kernels.bound("cuda", op)
        options = {"requantize": arguments.pop("requantize")} if "requantize" in arguments else {}
        operands = kernel.check(kernel.target, **arguments)
        result: Tensor = kernel.function(operands, **options)
        return result
    finally:
        _gemm.FORM = before


def sample(
    op: str, dtype: torch.dtype, rows: int, inner: int, outer: int, **more: Any
) -> dict[str, Any]:
    module = importlib.import_module(f"fastbert.ops.{op}")
    make: Callable[..., dict[str, Any]] = getattr(module, "make_arguments", None) or module._make
    return make(dtype, rows=rows, inner=inner, outer=outer, **more)


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check(op: str, form: tuple[int, int], arguments: dict[str, Any], dtype: torch.dtype) -> Tensor:
    """What the form makes of the arguments, judged."""
    results = []

    def candidate(**given: Any) -> Tensor:
        results.append(run(op, form, **given))
        return results[0]

    with poisoned_empty():
        verdict = parity(REGISTRY[op], candidate, arguments, dtype)
    assert verdict.ok, (form, verdict.reason)
    return results[0]


CASES = [
    pytest.param(name, case, dtype, id=f"{name}-{case.name}-{short(dtype)}")
    for name in ("linear", "int8_linear")
    for case in REGISTRY[name].cases()
    for dtype in DTYPES
]


@pytest.mark.parametrize(("op", "case", "dtype"), CASES)
def test_parity(op: str, case: Case, dtype: torch.dtype) -> None:
    arguments = case.make(dtype)
    check(op, AUTOMATIC, arguments, dtype)
    # The kernel of machines before and after sm_90.
    if dtype == torch.bfloat16:
        check(op, (MMA, -1), arguments, dtype)


# (rows, K, N): more than one tile in each direction, with and without ragged ends, and K that ends
# within a slab, within a step of an instruction, and before the first step does.
SHAPES = [(130, 200, 262), (257, 16, 129), (65, 144, 520), (64, 64, 256), (1, 1040, 65)]


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", ["linear", "int8_linear"])
def test_every_form(op: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    rows, inner, outer = shape
    arguments = sample(op, dtype, rows, inner, outer, activation="gelu", residual=True)
    results = []
    for form in forms(op, dtype, inner):
        results.append((form, check(op, form, arguments, dtype)))
    for form, result in results[1:]:
        # Integer sums have no order; the two families of halves are emulated in the same one.
        assert torch.equal(result, results[0][1]), form


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("form", [(WGMMA, 0), (WGMMA, 1), RESIDENT, (MMA, 0), (MMA, 1)], ids=str)
def test_no_order_of_threads_changes_the_result(
    form: tuple[int, int], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 420 x 390: every block of a form that stays has several tiles, and weights to change; K of 656
    # has more slabs than there are stages.
    arguments = sample("int8_linear", torch.bfloat16, 420, 656, 390, residual=True)
    # Of the other family: one that goes wrong in the same way every time must not be its own judge.
    expected = run("int8_linear", (WGMMA if form[0] == MMA else MMA, 1), **arguments)
    monkeypatch.setenv("FASTBERT_EMULATION_SEED", str(seed))
    with poisoned_empty():
        assert torch.equal(run("int8_linear", form, **arguments), expected)


@pytest.mark.parametrize("op", ["linear", "int8_linear"])
def test_integer_sums_are_exact(op: str) -> None:
    generator = torch.Generator().manual_seed(3)
    rows, inner, outer = 140, 1024, 150
    # Whole numbers from -100 to 155: scale 1, zero point 100.
    x = torch.randint(-100, 156, (rows, inner), generator=generator)
    x[:, 0], x[:, 1] = -100, 155
    x[3], x[3, 0] = 155, -100
    weight = torch.randint(-128, 128, (outer, inner), generator=generator)
    weight[5], weight[6] = -128, 127
    exact = (x.double() @ weight.double().t()).float()
    if op == "linear":
        # As halves these are exact up to 2^11, and so are their sums in float32 up to 2^24.
        x, weight = x[:, :192] // 8, weight[:, :192] // 8
        exact = (x.double() @ weight.double().t()).float()
        for family in (MMA, WGMMA):
            for tile in TILES[family]:
                got = run(op, (family, tile), x=x.half(), weight=weight.half())
                assert torch.equal(got, exact.half()), (family, tile)
        return
    ones = torch.ones(outer)
    for form in forms(op, torch.float32, inner):
        got = run(op, form, x=x.float(), qweight=weight.to(torch.int8), weight_scale=ones)
        assert torch.equal(got, exact), form


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("op", ["linear", "int8_linear"])
def test_a_row_is_the_same_in_any_batch_and_tile(op: str, dtype: torch.dtype) -> None:
    arguments = sample(op, dtype, 300, 256, 136, activation="gelu", residual=True)
    x, residual = arguments["x"], arguments["residual"]
    by_family: dict[int, Tensor] = {}
    for family, tile in forms(op, dtype, 256):
        together = run(op, (family, tile), **arguments)
        assert torch.equal(by_family.setdefault(family, together), together), (family, tile)
        for rows in (slice(0, 1), slice(299, 300), slice(60, 70), slice(100, 260)):
            part = arguments | {"x": x[rows], "residual": residual[rows]}
            assert torch.equal(run(op, (family, tile), **part), together[rows]), (family, rows)
    assert torch.equal(run(op, AUTOMATIC, **arguments), together)


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("op", ["linear", "int8_linear"])
def test_layouts_do_not_change_the_bits(op: str, dtype: torch.dtype) -> None:
    arguments = sample(op, dtype, 70, 136, 88, activation="relu", residual=True)
    weight = "weight" if op == "linear" else "qweight"
    wide = {
        name: torch.cat([arguments[name], torch.full_like(arguments[name], 99)], 1)
        for name in ("x", "residual", weight)
    }
    for form in (AUTOMATIC, (MMA, -1)) if dtype != torch.float32 else (AUTOMATIC,):
        expected = run(op, form, **arguments)
        for name in ("x", "residual", "bias"):
            moved = arguments | {name: misaligned(arguments[name])}
            assert torch.equal(run(op, form, **moved), expected), name
        for name, both in wide.items():
            view = arguments | {name: both[:, : arguments[name].shape[1]]}
            assert torch.equal(run(op, form, **view), expected), name
    if form == (MMA, -1):
        # A weight that bulk copies cannot address takes the other family.
        moved = arguments | {weight: misaligned(arguments[weight])}
        assert torch.equal(run(op, form, **moved), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("activation", KERNEL_ACTIVATIONS)
def test_activations_over_their_whole_range(activation: str, dtype: torch.dtype) -> None:
    # The product with an identity is x itself: every value from -12 to 12 passes the epilogue.
    x = torch.linspace(-12, 12, 64 * 32).reshape(64, 32).to(dtype)
    arguments = {"x": x, "weight": torch.eye(32, dtype=dtype), "activation": activation}
    got = check("linear", AUTOMATIC, arguments, dtype).double()
    exact = REGISTRY["linear"].reference(**{**arguments, "x": x.double()}
        | {"weight": torch.eye(32, dtype=torch.float64)})  # fmt: skip
    unit = torch.finfo(dtype).eps / 2
    # Near the value itself, also where it is small: beside rounding, 2e-5 of it (see gelu16), and
    # what 1 + erf loses in float32, or in the float64 of the reference.
    floor = {torch.float32: 4e-7, torch.float16: 2.0**-25, torch.bfloat16: 1e-15}[dtype]
    allowed = exact.abs() * (unit + 2e-5) + floor
    assert ((got - exact).abs() <= allowed).all(), ((got - exact).abs() / allowed).max()


def test_what_is_not_a_number_stays_in_its_place() -> None:
    for op, dtype in (("linear", torch.float16), ("linear", torch.float32),
                      ("int8_linear", torch.bfloat16)):  # fmt: skip
        arguments = sample(op, dtype, 70, 64, 72, activation="gelu", residual=True)
        arguments["x"][3, 5] = float("nan")
        arguments["residual"][9, 7] = float("inf")
        arguments["bias"][20] = float("nan")
        for form in forms(op, dtype, 64):
            got = run(op, form, **arguments)
            expected = REGISTRY[op].reference(**arguments)
            assert torch.equal(got.isnan(), expected.isnan()), (op, form)
            assert torch.equal(got.isinf(), expected.isinf()), (op, form)


@pytest.mark.parametrize("form", [(WGMMA, 0), (WGMMA, 1), RESIDENT, (MMA, 0), (MMA, 1)], ids=str)
def test_requantised_results(form: tuple[int, int]) -> None:
    for outer in (80, 83):
        arguments = sample("int8_linear", torch.float32, 70, 96, outer, activation="gelu")
        real = run("int8_linear", form, **arguments)
        scale = real.abs().amax(1) / 100
        scale[4] = 1e-6  # saturates
        zero_point = torch.randint(0, 256, (70,), dtype=torch.int32)
        steps = torch.round(real / scale[:, None]) + zero_point[:, None]
        expected = steps.clamp(0, 255).to(torch.uint8)
        got = run("int8_linear", form, **arguments, requantize=(scale, zero_point))
        assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("integer", "dtype", "expected"),
    [
        (False, torch.float32, {"fma/0", "fma/1"}),
        (False, torch.bfloat16, {"mma/0", "mma/1", "wgmma/0", "wgmma/1"}),
        (True, torch.bfloat16, {"mma/0", "mma/1", "wgmma/0", "wgmma/1", "wgmma/2"}),
    ],
)
def test_the_bench_of_tiles_runs_them_all(
    integer: bool, dtype: torch.dtype, expected: set[str]
) -> None:
    tiles = pytest.importorskip("bench.gpu.tiles", reason="run from a checkout")
    device = torch.device("cpu")
    product = tiles.Gemm(5, 32, 16, dtype, integer, device)
    words = tiles.line(product, tiles.Stopwatch(device)).split()
    assert {word.rstrip("*") for word in words[::2]} == expected
    assert sum(word.endswith("*") for word in words) == 1
    assert all(float(word) > 0 for word in words[1::2])


def test_the_drive_compares_forms(capsys: pytest.CaptureFixture[str]) -> None:
    drive = pytest.importorskip("bench.gpu.drive", reason="run from a checkout")
    tiles = importlib.import_module("bench.gpu.tiles")
    assert drive.every_form(torch.device("cpu"), 70, 32, 40) == 0
    right = tiles.Gemm.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles.Gemm, "run", lambda self, form: right(self, form) + form[1])
        assert drive.every_form(torch.device("cpu"), 70, 32, 40) > 0
    assert "differs from another of its family" in capsys.readouterr().out


def test_sums_of_weights(emulated: Any) -> None:
    from fastbert.kernels.cuda.int8_linear import int8_linear_prepack

    for outer, inner in ((1, 1), (5, 33), (130, 1000), (3, 0)):
        weight = torch.randint(-128, 128, (outer, inner), dtype=torch.int8)
        sums = int8_linear_prepack(weight).view(torch.int32)
        assert torch.equal(sums, weight.sum(1, dtype=torch.int32))
        doubled = torch.cat([weight, weight], 1)[:, :inner]
        assert torch.equal(int8_linear_prepack(doubled).view(torch.int32), sums)


def test_prepared_sums_are_used() -> None:
    arguments = sample("int8_linear", torch.float32, 8, 32, 16)
    from fastbert.kernels.cuda.int8_linear import int8_linear_prepack

    packed = int8_linear_prepack(arguments["qweight"])
    expected = run("int8_linear", AUTOMATIC, **arguments)
    assert torch.equal(run("int8_linear", AUTOMATIC, **arguments | {"packed": packed}), expected)
    with pytest.raises(ValueError, match="packed has 60 bytes, expected 64"):
        run("int8_linear", AUTOMATIC, **arguments | {"packed": packed[:60]})


@pytest.mark.parametrize(
    ("op", "dtype", "inner", "form", "message"),
    [
        ("linear", torch.float16, 64, (FMA, 0), "the fma family multiplies float32 alone"),
        ("linear", torch.float32, 64, (MMA, 0), "the mma family would round float32"),
        ("linear", torch.float32, 64, (WGMMA, 0), "the wgmma family would round float32"),
        ("linear", torch.float16, 63, (WGMMA, 0), "rows start on 16 bytes; K is 63"),
        ("linear", torch.float16, 64, (WGMMA, 2), "there is no tile 2"),
        ("int8_linear", torch.float16, 2048, RESIDENT, "there is no tile 2"),
        ("linear", torch.float16, 64, (7, 0), "family code 7 is unknown"),
    ],
)
def test_forms_that_do_not_fit(
    op: str, dtype: torch.dtype, inner: int, form: tuple[int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=rf"^{op}: .*{message}"):
        run(op, form, **sample(op, dtype, 4, inner, 8))
