"""What all layers add to their attention scores, in the prepared encoder and in whole models."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import fastbert
from fastbert.engine import encoder_cache
from fastbert.engine.cpu_encoder import CpuEncoder
from fastbert.engine.encoder import PACKED
from fastbert.engine.gpu_encoder import GpuEncoder
from fastbert.kernels import native
from fastbert.layers.block import Block
from fastbert.layers.bucket_bias import DistanceBias, bucket_bias
from fastbert.layers.encoder import ForwardOptions, encode
from fastbert.layers.score_bias import ScoreBias
from fastbert.modeling.quantization import quantize
from fastbert.runtime.packing import PackedBatch
from fastbert.runtime.plan import Plan, use_backend
from fastbert.testing import poisoned_empty

sys.path.append(str(Path(__file__).parent / "models"))

import oracle

pytestmark = pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))

CPU = torch.device("cpu")
HEADS, HIDDEN = 3, 48
LENGTHS = [37, 0, 128, 1, 90]
LONGEST = max(LENGTHS)
KINDS = ("float32", "bfloat16", "int8")
# Of what is added: wide enough that to leave it out changes more than int8's rounding does.
SPREAD = 4.0


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape) * SPREAD


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    threads, isa = torch.get_num_threads(), native.isa()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    native.set_isa(isa)


def config_of(family: str, **changes: Any) -> Any:
    sizes = {
        "vocab_size": 60,
        "hidden_size": HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "intermediate_size": 100,
        "max_position_embeddings": 520,
    }
    return getattr(fastbert, f"{family}Config")(**(sizes | changes))


def model(family: str = "MPNet", kind: str = "float32", **changes: Any) -> Any:
    torch.manual_seed(0)
    made = getattr(fastbert, f"{family}Model")(config_of(family, **changes)).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            spread = SPREAD if "relative_attention_bias" in name else 0.25
            parameter.copy_(torch.randn_like(parameter) * (spread if parameter.dim() == 2 else 0.5))
    if kind == "int8":
        return quantize(made)
    return made.bfloat16() if kind == "bfloat16" else made


class Calls:
    """How many passes went through the prepared encoder of a CPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        encoded = CpuEncoder.encode

        def counted(encoder: CpuEncoder, *args: Any) -> Any:
            done = encoded(encoder, *args)
            self.count += done is not None  # None sends the pass back, to begin again
            return done

        monkeypatch.setattr(CpuEncoder, "encode", counted)

    def of(self, run: Callable[[], Any]) -> int:
        self.count = 0
        run()
        return self.count


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


# The prepared encoder alone


def distances(longest: int) -> ScoreBias:
    values = drawn(HEADS, 2 * longest - 1)
    return ScoreBias(values.unfold(1, longest, 1)[None], backwards=True)


BIASES: dict[str, Callable[[], ScoreBias]] = {
    "whole": lambda: ScoreBias(drawn(len(LENGTHS), HEADS, LONGEST, LONGEST)),
    "for all sequences": lambda: ScoreBias(drawn(1, HEADS, LONGEST, LONGEST)),
    "for all heads": lambda: ScoreBias(drawn(len(LENGTHS), 1, LONGEST, LONGEST)),
    "for all queries": lambda: ScoreBias(
        drawn(len(LENGTHS), 1, 1, LONGEST).expand(-1, -1, LONGEST, -1)
    ),
    "keys apart": lambda: ScoreBias(drawn(1, HEADS, LONGEST, LONGEST).transpose(2, 3)),
    "within a larger one": lambda: ScoreBias(drawn(1, HEADS, 200, 200)[..., 5:133, 9:137]),
    "bfloat16": lambda: ScoreBias(drawn(1, HEADS, LONGEST, LONGEST).bfloat16()),
    "distances": lambda: distances(LONGEST),
}


def whole(bias: ScoreBias) -> Tensor:
    return bias.rows.flip(2) if bias.backwards else bias.rows


def in_float64(blocks: list[Block]) -> list[Block]:
    wide = [copy.deepcopy(block) for block in blocks]
    for block in wide:
        for field in dataclasses.fields(block):
            part = getattr(block, field.name)
            if isinstance(part, nn.Module):
                part.double()
    return wide


# Both round rows to 8 bits, each in its own way where values lie between two of them; attention is
# bfloat16 here and float32 there.
INT8 = 4e-2


def relative(x: Tensor, y: Tensor) -> float:
    return float((x.double() - y).norm() / y.norm())


@torch.no_grad()
@pytest.mark.parametrize("form", BIASES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_encoder_agrees_with_the_layers(kind: str, form: str) -> None:
    made, bias = model(kind=kind), BIASES[form]()
    blocks = list(made.blocks())
    batch = PackedBatch.from_lengths(LENGTHS)
    rows = torch.randn(batch.total, HIDDEN).to(made.dtype)
    options = ForwardOptions(bias=whole(bias))
    with use_backend("reference"):
        same_dtype = encode(blocks, rows, batch, made.plan(), options).packed
        exact = same_dtype.double()
        if kind != "int8":
            wide = dataclasses.replace(options, bias=whole(bias).double())
            exact = encode(in_float64(blocks), rows.double(), batch, made.plan(), wide).packed
        without = encode(blocks, rows, batch, made.plan(), ForwardOptions()).packed
    bound = {
        "float32": 2e-6,
        "bfloat16": 2 * relative(same_dtype, exact),
        "int8": INT8,
    }[kind]
    assert relative(without, exact) > 3 * bound
    for isa in native.usable_isas():
        native.set_isa(isa)
        with poisoned_empty():
            found = CpuEncoder(blocks).run(rows, batch, made.dtype, bias=bias)
        assert found is not None and found.packed is not None
        assert relative(found.packed, exact) < bound, isa


@torch.no_grad()
@pytest.mark.parametrize("form", ["whole", "for all sequences", "distances"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_text_has_the_same_bits_alone_in_a_batch_and_with_any_threads(
    kind: str, form: str
) -> None:
    made, bias = model(kind=kind), BIASES[form]()
    encoder = CpuEncoder(list(made.blocks()))
    batch = PackedBatch.from_lengths(LENGTHS)
    rows = torch.randn(batch.total, HIDDEN).to(made.dtype)

    def computed(rows: Tensor, batch: PackedBatch, bias: ScoreBias) -> Tensor:
        out = encoder.run(rows, batch, made.dtype, bias=bias)
        assert out is not None and out.packed is not None
        return out.packed

    together = computed(rows, batch, bias)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(computed(rows, batch, bias), together)
        for b, length in enumerate(LENGTHS):
            part = slice(int(batch.cu_seqlens[b]), int(batch.cu_seqlens[b + 1]))
            own = whole(bias)[b : b + 1] if form == "whole" else whole(bias)
            alone = ScoreBias(own[:, :, :length, :length])
            found = computed(rows[part], PackedBatch.from_lengths([length]), alone)
            assert torch.equal(found, together[part])


@torch.no_grad()
@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (torch.zeros(1, HEADS, 9, 9), r"bias has shape \(1, 3, 9, 9\), expected \(2 or 1, 3 or 1"),
        (torch.zeros(3, HEADS, 6, 6), r"expected \(2 or 1"),
        (torch.zeros(1, 2, 6, 6), "3 or 1"),
        (torch.zeros(1, HEADS, 6, 5), "6, 6"),
        (torch.zeros(HEADS, 6, 6), "bias has shape"),
        (torch.zeros(1, HEADS, 6, 6, dtype=torch.int64), "bias is int64, expected float32"),
    ],
)
def test_a_bias_that_does_not_fit_is_refused(rows: Tensor, told: str) -> None:
    encoder = CpuEncoder(list(model().blocks()))
    batch = PackedBatch.from_lengths([4, 6])
    with pytest.raises((TypeError, ValueError), match=told):
        encoder.run(torch.randn(10, HIDDEN), batch, torch.float32, bias=ScoreBias(rows))


@torch.no_grad()
@pytest.mark.parametrize("lengths", [[], [0, 0], [1], [1, 1]])
def test_nothing_and_single_tokens(lengths: list[int]) -> None:
    encoder = CpuEncoder(list(model().blocks()))
    batch = PackedBatch.from_lengths(lengths)
    longest = batch.max_seqlen
    rows = torch.randn(batch.total, HIDDEN)
    plain = encoder(rows, batch)
    forms = [ScoreBias(torch.randn(1, HEADS, longest, longest))]
    forms += [distances(longest)] if longest else []
    for bias in forms:
        found = encoder.run(rows, batch, torch.float32, bias=bias)
        assert found is not None and found.packed is not None
        assert found.packed.shape == (batch.total, HIDDEN)
        # A softmax over one key is 1, whatever is added.
        torch.testing.assert_close(found.packed, plain)


# What distances add


def masks() -> dict[str, Tensor | None]:
    columns = torch.arange(40)
    right = (columns < torch.tensor([40, 7, 1])[:, None]).long()
    holes = right.flip(1).clone()
    holes[1, 36:38] = 0
    return {"none": None, "right": right, "left": right.flip(1), "holes": holes}


@torch.no_grad()
@pytest.mark.parametrize("padding", masks())
def test_distances_have_the_bits_of_the_whole_bias(padding: str) -> None:
    table = nn.Embedding(32, HEADS)
    mask = masks()[padding]
    batch = PackedBatch.dense(3, 40, CPU)
    if mask is not None:
        batch = PackedBatch.from_mask(mask, 3, 40, CPU, False)
    found = DistanceBias(table, batch).score_bias()
    # A number for each distance, unless a distance of columns is not that of positions.
    assert found.backwards == (padding != "holes")
    assert found.backwards == (found.rows.untyped_storage().nbytes() == HEADS * 79 * 4)
    assert torch.equal(whole(found), bucket_bias(table, batch))


# Whole models


def grid(length: int, mask: Tensor | None) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(2, 60, (3, length), generator=generator)
    return {"input_ids": ids, "attention_mask": mask}


def expected_of(made: Any, given: dict[str, Any]) -> tuple[Tensor, float]:
    """The last hidden states in float64 (int8: on the reference), and how far off others may be."""
    with use_backend("reference"):
        same_dtype = made(**given).last_hidden_state.double()
        if any(module.__class__.__name__ == "Int8Linear" for module in made.modules()):
            return same_dtype, INT8
        exact = copy.deepcopy(made).double()(**given).last_hidden_state
    seen = given["attention_mask"]
    real = torch.ones(exact.shape[:2]) if seen is None or seen.dim() > 2 else seen
    return exact, max(4e-6, 2 * relative(same_dtype[real.bool()], exact[real.bool()]))


@torch.no_grad()
@pytest.mark.parametrize("padding", masks())
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_with_distances_is_one_call(kind: str, padding: str, calls: Calls) -> None:
    made, mask = model(kind=kind), masks()[padding]
    given = grid(40, mask)
    real = torch.ones(3, 40, dtype=torch.bool) if mask is None else mask.bool()
    expected, bound = expected_of(made, given)
    for isa in native.usable_isas():
        native.set_isa(isa)
        with poisoned_empty():
            assert calls.of(lambda: made(**given)) == 1
            found = made(**given).last_hidden_state
        assert relative(found[real], expected[real]) < bound, isa
        for row in range(3):
            alone = {k: None if v is None else v[row : row + 1] for k, v in given.items()}
            assert torch.equal(made(**alone).last_hidden_state[0], found[row])


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "length"), [(0, 5), (2, 1), (1, 512)])
def test_few_and_many_tokens(rows: int, length: int, kind: str, calls: Calls) -> None:
    made = model(kind=kind)
    ids = torch.randint(2, 60, (rows, length))
    assert calls.of(lambda: made(ids)) == 1
    with poisoned_empty():
        found = made(ids).last_hidden_state
    expected, bound = expected_of(made, {"input_ids": ids, "attention_mask": None})
    assert found.shape == (rows, length, HIDDEN)
    assert not rows or relative(found, expected) < bound


@torch.no_grad()
def test_given_embeddings_and_positions(calls: Calls) -> None:
    """Distances are those of columns, whatever positions the tokens have."""
    made = model()
    mask = masks()["left"]
    given = {
        "inputs_embeds": torch.randn(3, 40, HIDDEN),
        "attention_mask": mask,
        "position_ids": torch.arange(100, 140).expand(3, -1),
    }
    assert calls.of(lambda: made(**given)) == 1
    found = made(**given).last_hidden_state
    with use_backend("reference"):
        expected = made.double()(**{**given, "inputs_embeds": given["inputs_embeds"].double()})
    assert mask is not None
    assert relative(found[mask.bool()], expected.last_hidden_state[mask.bool()]) < 2e-6


def square(kind: str) -> Tensor:
    """A mask of three or four dimensions over three texts of 40 tokens."""
    generator = torch.Generator().manual_seed(4)
    seen = torch.rand(3, 40, 40, generator=generator) < 0.1
    seen |= torch.eye(40, dtype=torch.bool)
    return {
        "three dimensions": seen.long(),
        "bool": seen[:, None],
        "for all queries": seen[:, None, :1],
        "numbers of heads": torch.randn(3, HEADS, 40, 40, generator=generator) * SPREAD,
        "numbers for all": torch.randn(1, 1, 40, 40, generator=generator) * SPREAD,
        "minus infinity": torch.zeros(3, 1, 40, 40).masked_fill(~seen[:, None], -torch.inf),
    }[kind]


SQUARES = [
    "three dimensions", "bool", "for all queries", "numbers of heads", "numbers for all",
    "minus infinity",
]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("mask", SQUARES)
@pytest.mark.parametrize("family", ["Bert", "MPNet"])
@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_more_dimensions_are_one_call(
    kind: str, family: str, mask: str, calls: Calls
) -> None:
    made, given = model(family, kind), grid(40, square(mask))
    assert calls.of(lambda: made(**given)) == 1
    expected, bound = expected_of(made, given)
    assert relative(made(given["input_ids"]).last_hidden_state, expected) > 2 * bound
    for isa in native.usable_isas():
        native.set_isa(isa)
        with poisoned_empty():
            found = made(**given).last_hidden_state
        assert relative(found, expected) < bound, isa
    for row in range(3):
        own = given["attention_mask"]
        own = own if own.shape[0] == 1 else own[row : row + 1]
        alone = made(given["input_ids"][row : row + 1], attention_mask=own)
        assert torch.equal(alone.last_hidden_state[0], found[row])


# Who goes on op by op


def hooked(made: Any) -> None:
    layer = made.encoder.layer[0]
    layer.register_forward_hook(lambda module, args, out: out)


def with_another_part(made: Any) -> None:
    made.encoder.layer[1].output.dropout = nn.Sequential(nn.Identity())


@pytest.mark.parametrize("change", [hooked, with_another_part])
def test_a_model_that_was_changed_is_called_as_modules(
    change: Callable[[Any], None], calls: Calls
) -> None:
    made, plain = model(), model()
    change(made)
    with torch.no_grad():
        assert calls.of(lambda: made(**grid(40, masks()["right"]))) == 0
        for mask in (masks()["right"], square("numbers of heads")):
            found = made(**grid(40, mask)).last_hidden_state
            expected = plain(**grid(40, mask)).last_hidden_state
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"output_attentions": True},
        {"output_hidden_states": True},
        {"head_mask": torch.tensor([1.0, 0.0, 1.0])},
    ],
    ids=["attentions", "states", "heads"],
)
@pytest.mark.parametrize("mask", [None, "numbers of heads"])
def test_what_else_is_asked_for_goes_op_by_op(
    options: dict[str, Any], mask: str | None, calls: Calls
) -> None:
    made, given = model(), {**grid(40, None if mask is None else square(mask)), **options}
    with torch.no_grad():
        assert calls.of(lambda: made(**given)) == 0
        found = made(**given)
        with use_backend("reference"):
            expected = made(**given)
    for one, other in zip(found.to_tuple(), expected.to_tuple(), strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=0)


@pytest.mark.parametrize("mask", [None, "numbers of heads"])
@pytest.mark.parametrize("training", [False, True])
def test_gradients_reach_the_table(training: bool, mask: str | None, calls: Calls) -> None:
    made = model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train(training)
    exact = copy.deepcopy(made).double()
    given = grid(40, None if mask is None else square(mask))
    weights = torch.randn(3, 40, HIDDEN)
    assert calls.of(lambda: (made(**given).last_hidden_state * weights).sum().backward()) == 0
    with use_backend("reference"):
        (exact(**given).last_hidden_state * weights).sum().backward()
    table, other = (m.encoder.relative_attention_bias.weight.grad for m in (made, exact))
    assert other.norm() > 0
    assert relative(table, other) < 1e-5


@pytest.mark.parametrize("family", ["Bert", "MPNet"])
def test_gradients_of_a_given_mask_are_not_lost(family: str, calls: Calls) -> None:
    made = model(family).requires_grad_(False)
    mask = square("numbers of heads").requires_grad_(True)
    assert calls.of(lambda: made(**grid(40, mask)).last_hidden_state.sum().backward()) == 0
    assert mask.grad is not None and mask.grad.norm() > 0
    with torch.no_grad():
        assert calls.of(lambda: made(**grid(40, mask))) == 1


def test_under_autocast_the_result_stays(calls: Calls) -> None:
    made, given = model(), grid(40, masks()["right"])
    real = masks()["right"]
    assert real is not None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = made(**given).last_hidden_state
        with use_backend("reference"):
            expected = made(**given).last_hidden_state
    assert found.dtype is expected.dtype
    assert relative(found[real.bool()], expected[real.bool()].double()) < 2e-2


# Changed weights


def changed_in_place(made: Any) -> None:
    with torch.no_grad():
        made.encoder.relative_attention_bias.weight.mul_(-1)


def changed_raw(made: Any) -> None:
    made.encoder.relative_attention_bias.weight.data.mul_(-1)


def another_parameter(made: Any) -> None:
    table = made.encoder.relative_attention_bias
    table.weight = nn.Parameter(table.weight.detach().flip(0).clone())


def another_table(made: Any) -> None:
    made.encoder.relative_attention_bias = nn.Embedding(32, HEADS)


def trained(made: Any) -> None:
    optimizer = torch.optim.SGD([made.encoder.relative_attention_bias.weight], lr=1.0)
    with torch.enable_grad():
        made(**grid(40, None)).last_hidden_state.square().sum().backward()
    optimizer.step()
    made.zero_grad()


@torch.no_grad()
@pytest.mark.parametrize(
    "change", [changed_in_place, changed_raw, another_parameter, another_table, trained]
)
def test_a_changed_table_is_seen(change: Callable[[Any], None], calls: Calls) -> None:
    made, given = model(), grid(40, None)
    before = made(**given).last_hidden_state
    change(made)
    assert calls.of(lambda: made(**given)) == 1
    found = made(**given).last_hidden_state
    with use_backend("reference"):
        expected = made(**given).last_hidden_state
    assert float((before - expected).abs().max()) > 1e-2
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))]
)
def test_copies_have_a_table_of_their_own(duplicate: Callable[[Any], Any], calls: Calls) -> None:
    made, given = model(), grid(40, None)
    before = made(**given).last_hidden_state
    other = duplicate(made)
    assert calls.of(lambda: other(**given)) == 1
    assert torch.equal(other(**given).last_hidden_state, before)
    changed_in_place(made)
    assert torch.equal(other(**given).last_hidden_state, before)
    assert not torch.equal(made(**given).last_hidden_state, before)


# transformers' model


@torch.no_grad()
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_an_accelerated_model_is_one_call(quantization: str | None, calls: Calls) -> None:
    config = transformers.MPNetConfig(**oracle.FAMILIES["MPNet"])
    theirs = transformers.MPNetModel(config).eval()
    oracle.fill(theirs)
    plain = copy.deepcopy(theirs)
    fastbert.accelerate(theirs, quantization=quantization)
    ids = torch.randint(4, oracle.VOCABULARY, (3, 20))
    mask = (torch.arange(20) < torch.tensor([[20], [9], [1]])).long()
    real, bound = mask.bool(), 2e-6 if quantization is None else 5e-2

    def agree() -> None:
        assert calls.of(lambda: theirs(ids, attention_mask=mask)) == 1
        found = theirs(ids, attention_mask=mask).last_hidden_state[real]
        assert relative(found, plain(ids, attention_mask=mask)[0][real].double()) < bound

    agree()
    table = torch.randn_like(plain.encoder.relative_attention_bias.weight) * 2
    for one in (theirs, plain):
        one.encoder.relative_attention_bias.weight.copy_(table)
    agree()
    assert "op by op" not in fastbert.explain(theirs)
    fastbert.restore(theirs)
    assert calls.of(lambda: theirs(ids, attention_mask=mask)) == 0


# On a GPU


@torch.no_grad()
def test_the_encoder_of_a_gpu_declines(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[GpuEncoder] = []
    monkeypatch.setattr(Plan, "prepack", lambda *_: None)
    monkeypatch.setattr(encoder_cache, "on_cpu", lambda device: False)
    monkeypatch.setattr(
        encoder_cache, "GpuEncoder", lambda *args: made.append(GpuEncoder(*args)) or made[-1]
    )
    monkeypatch.setattr(fastbert.modeling.encoder, "on_cpu", lambda device: False)
    ours, given = model(), grid(40, None)
    with use_backend("reference"):
        expected = ours(**given).last_hidden_state
    torch.testing.assert_close(ours(**given).last_hidden_state, expected, atol=2e-5, rtol=0)
    masked = model("Bert")
    masked(**grid(40, square("bool")))
    assert not made
    assert "goes op by op: each layer's attention adds what distances say" in fastbert.explain(ours)
    assert "op by op" not in fastbert.explain(masked)
    encoder = GpuEncoder(list(ours.blocks()), ours.plan(), object())  # type: ignore[arg-type]
    bias = ScoreBias(torch.zeros(1, HEADS, 40, 40))
    with pytest.raises(ValueError, match="adds nothing to attention scores"):
        encoder.encode(None, None, PACKED, None, bias)  # type: ignore[arg-type]


def test_on_a_cpu_nothing_goes_op_by_op() -> None:
    assert "op by op" not in fastbert.explain(model())
