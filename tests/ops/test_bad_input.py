"""What a kernel makes of arguments that do not fit: a sentence, never a crash, never a result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastbert import kernels
from fastbert.kernels import native
from fastbert.ops import ALL, REGISTRY

Change = dict[str, Any]
KERNELS = [*REGISTRY, "linear_w8a16"]
PROJECTIONS = [op for op in KERNELS if "linear" in op]


def good(op: str) -> dict[str, Any]:
    """Arguments that every op accepts, to be spoiled one at a time."""
    names = {
        "attention_varlen": "everything",
        "add_layer_norm": "all-3x7",
        "bias_act": "gelu-3x7",
        "act_layer_norm": "gelu-3x7",
        "linear": "fused-5x16x16",
        "int8_linear": "widened-17x64x40",
        "linear_w8a16": "widened-17x64x40",
        "quantize_rows": "3x8",
        "embed_layer_norm": "tables-wtpe",
        "segment_sums": "means-17",
    }
    case = next(case for case in ALL[op].cases() if case.name == names[op])
    return case.make(torch.float32)


def call(op: str, arguments: dict[str, Any]) -> Any:
    with torch.no_grad():
        return kernels.kernel("cpu", op)(**arguments)


def floats_of(op: str) -> list[str]:
    return [n for n, v in good(op).items() if isinstance(v, Tensor) and v.is_floating_point()]


def tensors_of(op: str) -> list[str]:
    return [n for n, v in good(op).items() if isinstance(v, Tensor)]


def assert_refused(op: str, change: Change) -> None:
    with pytest.raises((ValueError, TypeError, IndexError)) as caught:
        call(op, {**good(op), **change})
    sentence = str(caught.value)
    assert len(sentence) > 20, sentence
    named = (op, "Kernels do not compute", "The activation", "layer_norm", "gemm: ")
    assert any(name in sentence for name in named), sentence


@pytest.mark.parametrize("op", KERNELS)
def test_what_is_spoiled_here_was_good(op: str) -> None:
    call(op, good(op))


@pytest.mark.parametrize(("op", "name"), [(op, n) for op in KERNELS for n in tensors_of(op)])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda x: x.numpy(),
        lambda x: x.tolist(),
        lambda x: 3,
        lambda x: x.to("meta"),
        lambda x: x.to(torch.complex64),
        lambda x: x.to(torch.float64),
        lambda x: x.to(torch.bool),
        lambda x: x[None],
        lambda x: x[0],
        lambda x: x.reshape(-1, 1, 1, 1),
        lambda x: x.to_sparse() if x.dim() else x,
    ],
    ids=[
        "numpy",
        "list",
        "int",
        "meta",
        "complex",
        "float64",
        "bool",
        "unsqueezed",
        "first",
        "4-d",
        "sparse",
    ],
)
def test_wrong_kinds(op: str, name: str, spoil: Callable[[Tensor], Any]) -> None:
    spoiled = spoil(good(op)[name])
    if (
        op == "attention_varlen"
        and name == "bias"
        and getattr(spoiled, "dtype", 0) == torch.float64
    ):
        call(op, {**good(op), name: spoiled})  # a bias of scores may have any floating dtype
        return
    assert_refused(op, {name: spoiled})


@pytest.mark.parametrize(("op", "name"), [(op, n) for op in KERNELS for n in tensors_of(op)])
def test_one_element_too_few(op: str, name: str) -> None:
    """Along every dimension that another argument fixes."""
    arguments = good(op)
    free = {"word": {0}, "position_table": {0}, "type_table": {0}, "language_table": {0}}
    free |= {"x": {"quantize_rows": {0, 1}, "bias_act": {0}, "act_layer_norm": {0}}.get(op, set())}
    free |= {"x": {1}} if op == "segment_sums" else {}
    free |= {"bias": {1} if op == "attention_varlen" else set()}  # one head: broadcast
    for dim in range(arguments[name].dim()):
        if dim in free.get(name, set()):
            continue
        assert_refused(op, {name: arguments[name].narrow(dim, 0, arguments[name].shape[dim] - 1)})


@pytest.mark.parametrize(("op", "name"), [(op, n) for op in KERNELS for n in floats_of(op)])
def test_mixed_dtypes(op: str, name: str) -> None:
    if len(floats_of(op)) == 1 or (op, name) in {
        ("attention_varlen", "bias"),
        ("segment_sums", "x"),
    }:
        pytest.skip("nothing to mix it with")
    assert_refused(op, {name: good(op)[name].to(torch.bfloat16)})


@pytest.mark.parametrize("op", [op for op in REGISTRY if "activation" in good(op)])
@pytest.mark.parametrize("name", ["mish", "", "GELU", "leaky_relu(0.1, 0.2)"])
def test_activations_without_a_kernel(op: str, name: str) -> None:
    assert_refused(op, {"activation": name})


@pytest.mark.parametrize("op", [op for op in REGISTRY if "eps" in good(op)])
@pytest.mark.parametrize("eps", [-1e-5, float("nan"), float("inf"), "small", None])
def test_eps(op: str, eps: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        call(op, {**good(op), "eps": eps})


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


# "everything" has sequences of 19, 5 and 66.
CU = {
    "does not start at 0": ints(1, 19, 24, 90),
    "negative start": ints(-5, 19, 24, 90),
    "falls": ints(0, 24, 19, 90),
    "ends early": ints(0, 19, 24, 89),
    "ends late": ints(0, 19, 24, 91),
    "far beyond": ints(0, 19, 24, 2**31 - 1),
    "overflowing": ints(0, 2**31 - 1, -(2**31), 90),
    "longer than the maximum": ints(0, 1, 2, 90),
    "another batch": ints(0, 19, 90),
    "empty": ints(),
    "int64": torch.tensor([0, 19, 24, 90]),
}


@pytest.mark.parametrize("side", ["q", "k"])
@pytest.mark.parametrize("cu_seqlens", CU.values(), ids=CU)
def test_offsets_that_are_nonsense(side: str, cu_seqlens: Tensor) -> None:
    assert_refused("attention_varlen", {f"cu_seqlens_{side}": cu_seqlens})


@pytest.mark.parametrize("side", ["q", "k"])
@pytest.mark.parametrize("longest", [-1, 0, 65, 2**62])
def test_maximal_lengths_that_are_wrong(side: str, longest: int) -> None:
    assert_refused("attention_varlen", {f"max_seqlen_{side}": longest})


def test_no_offsets_at_all() -> None:
    assert_refused("attention_varlen", {"cu_seqlens_q": ints(), "cu_seqlens_k": ints()})


@pytest.mark.parametrize("bad", [-1, 57, 2**40, -(2**63)])
def test_ids_outside_the_table(bad: int) -> None:
    ids = good("embed_layer_norm")["input_ids"].clone()
    ids[7] = bad
    with pytest.raises(IndexError, match=rf"{bad} at position 7 .*57 entries"):
        call("embed_layer_norm", {**good("embed_layer_norm"), "input_ids": ids})


@pytest.mark.parametrize("table", ["position", "token_type", "language"])
def test_other_ids_outside_their_tables(table: str) -> None:
    ids = good("embed_layer_norm")[f"{table}_ids"].clone()
    ids[0] = 1000
    with pytest.raises(IndexError, match="1000 at position 0"):
        call("embed_layer_norm", {**good("embed_layer_norm"), f"{table}_ids": ids})


@pytest.mark.parametrize(
    "change",
    [
        {"input_ids": None},
        {"word": None},
        {"input_ids": None, "word": None},
        {"position_ids": None},
        {"position_table": None},
        {"type_table": None},
        {"language_ids": None},
    ],
    ids=str,
)
def test_half_a_lookup(change: Change) -> None:
    assert_refused("embed_layer_norm", change)


@pytest.mark.parametrize("op", PROJECTIONS)
def test_packed_weights_of_another_product(op: str) -> None:
    packer = kernels.packer("cpu", op)
    weight = good(op)["weight" if op == "linear" else "qweight"]
    packed = packer(weight)
    other = kernels.packer("cpu", "int8_linear" if op == "linear" else "linear")
    kind = torch.zeros(weight.shape, dtype=torch.int8 if op == "linear" else torch.float32)
    for wrong in (
        packer(torch.zeros(weight.shape[0], weight.shape[1] + 1, dtype=weight.dtype)),
        packer(torch.zeros(weight.shape[0] + 1, weight.shape[1], dtype=weight.dtype)),
        other(kind),
        packed[:-1],
        packed[1:],
        packed[:64],
        packed[:0],
        torch.zeros_like(packed),
        torch.full_like(packed, 255),
        packed.to(torch.int32),
        packed[None],
        weight,
    ):
        assert_refused(op, {"packed": wrong})


@pytest.mark.parametrize("op", ["int8_linear", "linear_w8a16"])
@pytest.mark.parametrize("column", [-1, 64, 2**31 - 1])
def test_repeated_columns_that_are_not_there(op: str, column: int) -> None:
    repeated = good(op)["repeated"].clone()
    repeated[5] = column
    assert_refused(op, {"repeated": repeated})


@pytest.mark.parametrize("op", PROJECTIONS)
def test_packed_weights_of_another_instruction_set(op: str) -> None:
    """Refused where the layouts differ; right where they are the same."""
    before = native.isa()
    weight = good(op)["weight" if op == "linear" else "qweight"]
    refused = 0
    try:
        for maker in native.usable_isas():
            native.set_isa(maker)
            packed = kernels.packer("cpu", op)(weight)
            for user in native.usable_isas():
                native.set_isa(user)
                expected = call(op, good(op))
                try:
                    assert torch.equal(call(op, {**good(op), "packed": packed}), expected)
                except ValueError as error:
                    refused += 1
                    assert maker != user and "packed" in str(error)
    finally:
        native.set_isa(before)
    assert refused or len(native.usable_isas()) == 1


def test_instruction_set_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="scalar"):
        native.set_isa("sse9")
