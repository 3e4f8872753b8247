"""Random shapes, lengths and contents through the CPU kernels and through whole models.

Every case is drawn from its own number, which a failure names: FASTBERT_FUZZ_FIRST=NUMBER
FASTBERT_FUZZ_COUNT=1 draws it again, a larger count looks further than the suite does.
"""

from __future__ import annotations

import copy
import functools
import os
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastbert
from fastbert import kernels
from fastbert.kernels import native
from fastbert.modeling.quantization import quantize
from fastbert.ops import ALL, Op
from fastbert.testing import gate, misaligned, poisoned_empty, strided, to_float64

pytestmark = pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))

FIRST = int(os.environ.get("FASTBERT_FUZZ_FIRST", "0"))
COUNT = int(os.environ.get("FASTBERT_FUZZ_COUNT", "40"))
ACTIVATIONS = ("none", "gelu", "gelu_new", "relu", "silu", "tanh")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Draw:
    """Sizes and contents of one case."""

    def __init__(self, number: int) -> None:
        self.random = random.Random(number)
        self.generator = torch.Generator().manual_seed(number)
        self.dtype = self.random.choice(DTYPES)

    def size(self, most: int) -> int:
        """1 to `most`, half of them near a multiple of a vector."""
        if self.random.random() < 0.5:
            return self.random.randint(1, most)
        near = 16 * self.random.randint(1, max(1, most // 16)) + self.random.randint(-1, 1)
        return min(most, max(1, near))

    def rows(self, count: int, width: int) -> Tensor:
        """Rows of every kind that models make, and some that they should not."""
        x = torch.randn(count, width, generator=self.generator)
        kind = self.random.randrange(6)
        if kind == 1:  # the few large columns of trained models
            x[:, self.random.randrange(width)] *= 60
        elif kind == 2:  # rows of very different size
            x *= torch.logspace(-4, 2, count)[:, None]
        elif kind == 3:
            x[self.random.randrange(count)] = 0
        elif kind == 4:
            x[self.random.randrange(count)] = 1.5
        elif kind == 5:  # far from zero
            x += 30
        return self.placed(x.to(self.dtype))

    def matrix(self, count: int, width: int) -> Tensor:
        """A weight."""
        x = torch.randn(count, width, generator=self.generator) / width**0.5
        return self.placed(x.to(self.dtype))

    def vector(self, width: int) -> Tensor:
        """A bias or scale."""
        return torch.randn(width, generator=self.generator).to(self.dtype)

    def placed(self, x: Tensor) -> Tensor:
        """The same values somewhere else in memory."""
        return self.random.choice((lambda t: t, strided, misaligned))(x)

    def maybe(self, make: Callable[[], Tensor]) -> Tensor | None:
        """An optional argument."""
        return make() if self.random.random() < 0.5 else None

    def lengths(self, most: int) -> list[int]:
        """Of the sequences of a batch; some are empty."""
        count = self.random.randint(1, 6)
        return [self.random.choice((0, 1, self.size(most))) for _ in range(count)]


def linear(draw: Draw) -> dict[str, Any]:
    # For a few outputs PyTorch sums along a vector, more exactly than any tile of sums does.
    rows, inner, outer = draw.size(130), draw.size(400), 15 + draw.size(285)
    return {
        "x": draw.rows(rows, inner),
        "weight": draw.matrix(outer, inner),
        "bias": draw.maybe(lambda: draw.vector(outer)),
        "activation": draw.random.choice(ACTIVATIONS),
        "residual": draw.maybe(lambda: draw.rows(rows, outer)),
    }


def int8_linear(draw: Draw) -> dict[str, Any]:
    given = linear(draw)
    weight = given.pop("weight").float()
    scale = weight.abs().amax(1) / 127
    return {
        "x": given.pop("x"),
        "qweight": draw.placed((weight / scale[:, None]).round().to(torch.int8)),
        "weight_scale": scale,
        **given,
    }


def attention_varlen(draw: Draw) -> dict[str, Any]:
    heads, head_dim = draw.random.randint(1, 4), draw.size(128)
    lengths = draw.lengths(200)
    total, longest = sum(lengths), max(lengths)
    edges = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)

    def operand() -> Tensor:
        x = torch.randn(total, heads * head_dim, generator=draw.generator) * 2
        return draw.placed(x.to(draw.dtype)).unflatten(1, (heads, head_dim))

    return {
        "q": operand(),
        "k": operand(),
        "v": operand(),
        "cu_seqlens_q": edges,
        "cu_seqlens_k": edges,
        "max_seqlen_q": longest,
        "max_seqlen_k": longest,
        "scale": head_dim**-0.5,
        "causal": draw.random.random() < 0.3,
        "key_bias": draw.maybe(lambda: torch.randn(total, generator=draw.generator)),
        "bias": draw.maybe(
            lambda: torch.randn(1, heads, longest, longest, generator=draw.generator)
        ),
    }


def add_layer_norm(draw: Draw) -> dict[str, Any]:
    rows, width = draw.size(40), 1 + draw.size(1200)
    return {
        "x": draw.rows(rows, width),
        "weight": draw.vector(width),
        "bias": draw.vector(width),
        "eps": draw.random.choice((1e-12, 1e-5)),
        "residual": draw.maybe(lambda: draw.rows(rows, width)),
        "x_bias": draw.maybe(lambda: draw.vector(width)),
    }


def bias_act(draw: Draw) -> dict[str, Any]:
    rows, width = draw.size(40), draw.size(1200)
    return {
        "x": draw.rows(rows, width),
        "bias": draw.vector(width),
        "activation": draw.random.choice(ACTIVATIONS[1:]),
    }


KINDS = {
    kind.__name__: kind
    for kind in (linear, int8_linear, attention_varlen, add_layer_norm, bias_act)
}
KINDS["linear_w8a16"] = int8_linear


def eager_result(spec: Op, given: dict[str, Any]) -> Any:
    """The reference's result in the dtype of the arguments.

    Of a few rows PyTorch may sum along a vector, more exactly than any tile of sums does, so they
    are computed as part of a larger batch.
    """
    rows = given["x"].shape[0] if "weight" in given and spec.name == "linear" else 0
    if not 0 < rows < 16:
        return spec.reference(**given)
    wide = {
        name: given[name].repeat(16, 1) for name in ("x", "residual") if given[name] is not None
    }
    return spec.reference(**{**given, **wide})[:rows]


@functools.lru_cache(maxsize=1)  # all instruction sets of an op come one after the other
def drawn(op: str) -> list[tuple[int, torch.dtype, dict[str, Any], Any, Any]]:
    """(number, dtype, arguments, exact result, eager result) of every case."""
    spec, out = ALL[op], []
    for number in range(FIRST, FIRST + COUNT):
        draw = Draw(number)
        given = KINDS[op](draw)
        exact = spec.reference(**to_float64(given))
        out.append((number, draw.dtype, given, exact, eager_result(spec, given)))
    return out


@pytest.mark.parametrize("op", KINDS)
def test_kernels_on_whatever_comes(op: str, isa: str) -> None:
    spec, kernel = ALL[op], kernels.kernel("cpu", op)
    for number, dtype, given, exact, eager in drawn(op):
        with torch.no_grad(), poisoned_empty():
            result = kernel(**given)
        verdict = gate(result, exact, eager, dtype, spec.tolerances[dtype])
        assert verdict.ok, f"{op}, case {number} on {isa}: {verdict.reason}"


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
def test_models_on_whatever_comes(kind: str) -> None:
    for number in range(FIRST, FIRST + max(1, COUNT // 4)):
        draw = Draw(number)
        heads = draw.random.randint(1, 4)
        config = fastbert.BertConfig(
            vocab_size=60,
            hidden_size=heads * (2 + draw.size(46)),
            num_attention_heads=heads,
            num_hidden_layers=draw.random.randint(1, 3),
            intermediate_size=draw.size(200),
            hidden_act=draw.random.choice(ACTIVATIONS[1:]),
            max_position_embeddings=64,
            initializer_range=0.2,
        )
        torch.manual_seed(number)
        model = fastbert.BertModel(config).eval()
        if kind == "bfloat16":
            model = model.bfloat16()
        if kind == "int8":
            model = quantize(model)
        width = draw.random.randint(1, 64)
        ids = torch.randint(5, 60, (draw.random.randint(1, 5), width), generator=draw.generator)
        mask = torch.rand(ids.shape, generator=draw.generator) < draw.random.random()
        with torch.no_grad():
            together = model(ids, attention_mask=mask).last_hidden_state
            with fastbert.use_backend("reference"):
                eager = model(ids, attention_mask=mask).last_hidden_state
                exact = eager.double()
                if kind != "int8":  # whose roundings another precision would not repeat
                    wide = copy.deepcopy(model).double()
                    exact = wide(ids, attention_mask=mask).last_hidden_state
            assert torch.isfinite(together).all(), number
            seen = mask.bool()
            if seen.any():
                size = exact[seen].norm()
                ours, theirs = (
                    float((rows.double() - exact)[seen].norm() / size) for rows in (together, eager)
                )
                # int8: attention is bfloat16 in the kernels and float32 in the reference.
                limit = 0.15 if kind == "int8" else 2 * theirs + 1e-6
                assert ours < limit, f"case {number}: {ours:.1e}, eager {theirs:.1e}"
            for row in range(ids.shape[0]):
                if seen[row].any():
                    alone = model(ids[row, seen[row]][None], position_ids=_positions(seen[row]))
                    same = torch.equal(alone.last_hidden_state[0], together[row, seen[row]])
                    assert same, f"case {number}, row {row} differs alone"


def _positions(seen: Tensor) -> Tensor:
    """Where the real tokens of a row stood in the grid, as BERT counts."""
    return seen.nonzero().T
