"""The prepared encoder against the layer-by-layer path, and its bookkeeping."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import fastbert.backend
from fastbert import native
from fastbert.layers.block import Block
from fastbert.layers.encoder import Pass, encode
from fastbert.layers.linear import Int8Linear, Linear
from fastbert.models.bert import BertModel
from fastbert.packing import PackedBatch
from fastbert.prepared import Preparation, PreparedEncoder, supports

pytestmark = pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))

LENGTHS = [37, 0, 128, 1, 300]
PARTS = ("q", "k", "v", "out", "up", "down")


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    threads, isa = torch.get_num_threads(), native.isa()
    torch.manual_seed(0)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)
    native.set_isa(isa)


def model(**changes: object) -> BertModel:
    config = BertModel.config_class(
        vocab_size=50,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=100,
        max_position_embeddings=400,
        **changes,
    )
    made = BertModel(config, add_pooling_layer=False).eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter.copy_(torch.randn_like(parameter) * (0.25 if parameter.dim() == 2 else 0.5))
    return made


def quantised(block: Block) -> Block:
    def convert(part: Linear) -> Int8Linear:
        out = Int8Linear(part.in_features, part.out_features)
        out.weight_scale = part.weight.float().abs().amax(dim=1) / 127
        out.qweight = torch.round(part.weight.float() / out.weight_scale[:, None]).to(torch.int8)
        out.bias = torch.nn.Parameter(part.bias.detach().clone(), requires_grad=False)
        return out

    return dataclasses.replace(block, **{name: convert(getattr(block, name)) for name in PARTS})


def blocks_of(kind: str) -> tuple[list[Block], torch.dtype]:
    made = model()
    if kind == "bfloat16":
        made = made.bfloat16()
    blocks = list(made.blocks())
    if kind == "int8":
        blocks = [quantised(block) for block in blocks]
    return blocks, made.dtype


def relative(x: Tensor, y: Tensor) -> float:
    return float((x.double() - y).norm() / y.norm())


KINDS = ("float32", "bfloat16", "int8")


@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_the_layers(kind: str) -> None:
    blocks, dtype = blocks_of(kind)
    batch = PackedBatch.from_lengths(LENGTHS)
    rows = torch.randn(batch.total, 48, dtype=dtype)
    with fastbert.backend.use_backend("reference"):
        reference = model().plan()
        same_dtype = encode(blocks, rows, batch, reference, Pass()).rows
        if kind == "int8":
            exact = same_dtype.double()
        else:
            wide = [copy.deepcopy(block) for block in blocks]
            for block in wide:
                for field in dataclasses.fields(block):
                    part = getattr(block, field.name)
                    if isinstance(part, torch.nn.Module):
                        part.double()
            exact = encode(wide, rows.double(), batch, reference, Pass()).rows
    for isa in native.usable_isas():
        native.set_isa(isa)
        error = relative(PreparedEncoder(blocks)(rows, batch), exact)
        if kind == "float32":
            assert error < 2e-6, isa
        elif kind == "bfloat16":
            assert error < 2 * relative(same_dtype, exact), isa
        else:
            # Both round rows to 8 bits; attention is bfloat16 here and float32 there.
            assert error < 1.5e-2, isa


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_has_the_same_bits_alone_in_a_batch_and_with_any_threads(kind: str) -> None:
    blocks, dtype = blocks_of(kind)
    encoder = PreparedEncoder(blocks)
    batch = PackedBatch.from_lengths(LENGTHS)
    rows = torch.randn(batch.total, 48, dtype=dtype)
    together = encoder(rows, batch)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(encoder(rows, batch), together)
        for b, length in enumerate(LENGTHS):
            part = slice(int(batch.cu_seqlens[b]), int(batch.cu_seqlens[b + 1]))
            alone = encoder(rows[part], PackedBatch.from_lengths([length]))
            assert torch.equal(alone, together[part])


def test_masked_keys_that_stay_in_the_batch() -> None:
    blocks, _ = blocks_of("float32")
    mask = torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0]])
    batch = PackedBatch.from_mask(mask, 2, 4, keep_first_column=True)
    assert batch.key_bias is not None
    rows = torch.randn(batch.total, 48)
    with fastbert.backend.use_backend("reference"):
        expected = encode(blocks, rows, batch, model().plan(), Pass()).rows
    assert relative(PreparedEncoder(blocks)(rows, batch), expected.double()) < 2e-6


def test_padded_output_has_zeros_for_removed_tokens() -> None:
    blocks, _ = blocks_of("float32")
    encoder = PreparedEncoder(blocks)
    mask = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0]])
    batch = PackedBatch.from_mask(mask, 3, 4)
    rows = torch.randn(batch.total, 48)
    assert torch.equal(encoder.padded(rows, batch), batch.pad(encoder(rows, batch)))
    dense = PackedBatch.dense(3, 4)
    rows = torch.randn(12, 48)
    assert torch.equal(encoder.padded(rows, dense), dense.pad(encoder(rows, dense)))


def test_strided_rows_are_read_in_place() -> None:
    blocks, _ = blocks_of("float32")
    encoder = PreparedEncoder(blocks)
    batch = PackedBatch.from_lengths([5])
    wide = torch.randn(5, 60)
    assert torch.equal(encoder(wide[:, 3:51], batch), encoder(wide[:, 3:51].contiguous(), batch))


def test_a_model_uses_it_and_sees_every_change_of_its_weights() -> None:
    made = model()
    ids = torch.randint(5, 50, (2, 9))
    out = made(ids).last_hidden_state
    encoder = made.preparation.encoder(made.blocks(), made.plan())
    assert encoder is not None
    assert made.preparation.encoder(made.blocks(), made.plan()) is encoder
    changes = (
        lambda: made.encoder.layer[1].output.dense.weight.mul_(2.0),
        lambda: made.encoder.layer[2].output.LayerNorm.bias.add_(1.0),
        lambda: made.load_state_dict(model().state_dict()),
        lambda: setattr(made.encoder.layer[0].attention.self.query, "bias", None),
        lambda: setattr(made.encoder.layer[0].intermediate, "dense", Linear(48, 100).eval()),
        lambda: made.to(torch.bfloat16),
        lambda: made.to(torch.float32),
    )
    for change in changes:
        change()
        new = made(ids).last_hidden_state
        assert not torch.equal(new, out)
        with fastbert.backend.use_backend("reference"):
            expected = made(ids).last_hidden_state
        assert relative(new, expected.double()) < (2e-2 if new.dtype is torch.bfloat16 else 5e-6)
        out = new


def test_the_instruction_set_may_change() -> None:
    made = model()
    ids = torch.randint(5, 50, (2, 9))
    expected = made(ids).last_hidden_state.double()
    for isa in native.usable_isas():
        native.set_isa(isa)
        assert relative(made(ids).last_hidden_state, expected) < 5e-6


def test_hooks_and_foreign_projections_are_left_to_the_layers() -> None:
    made = model()
    ids = torch.randint(5, 50, (1, 9))
    out = made(ids).last_hidden_state
    seen: list[int] = []
    dense = made.encoder.layer[1].output.dense
    handle = dense.register_forward_hook(lambda *_: seen.append(1))
    assert "hooks" in str(supports(made.blocks(), made.plan()))
    assert relative(made(ids).last_hidden_state, out.double()) < 5e-6
    assert seen
    handle.remove()
    assert torch.equal(made(ids).last_hidden_state, out)
    made.encoder.layer[1].output.dense = torch.nn.Identity()
    assert "Identity" in str(supports(made.blocks(), made.plan()))


def test_what_it_does_not_serve_is_named() -> None:
    plan = model().plan()
    blocks = list(model().blocks())
    assert supports(blocks, plan) is None
    assert supports([], plan) == "there are no blocks"
    assert "mish" in str(supports([dataclasses.replace(blocks[0], activation="mish")], plan))
    uneven = [blocks[0], dataclasses.replace(blocks[1], num_heads=1)]
    assert supports(uneven, plan) == "the blocks differ in shape or kind"
    with fastbert.backend.use_backend("reference"):
        assert "reference" in str(supports(blocks, model().plan()))


def test_bad_input_is_refused() -> None:
    blocks, _ = blocks_of("float32")
    encoder = PreparedEncoder(blocks)
    batch = PackedBatch.from_lengths([2, 3])
    with pytest.raises(ValueError, match=r"shape \(5, 48\)"):
        encoder(torch.randn(5, 47), batch)
    with pytest.raises(ValueError, match=r"shape \(5, 48\)"):
        encoder(torch.randn(4, 48), batch)
    with pytest.raises(ValueError, match="float64"):
        encoder(torch.randn(5, 48, dtype=torch.float64), batch)
    wrong = dataclasses.replace(batch, cu_seqlens=torch.tensor([0, 7, 5], dtype=torch.int32))
    with pytest.raises(ValueError, match=r"never fall|more than max_seqlen"):
        encoder(torch.randn(5, 48), wrong)
    wrong = dataclasses.replace(batch, cu_seqlens=batch.cu_seqlens.long())
    with pytest.raises(ValueError, match="int32"):
        encoder(torch.randn(5, 48), wrong)
    wrong = dataclasses.replace(batch, max_seqlen=2)
    with pytest.raises(ValueError, match="max_seqlen"):
        encoder(torch.randn(5, 48), wrong)
    blocks[0].out.bias = torch.nn.Parameter(torch.zeros(3), requires_grad=False)
    with pytest.raises(ValueError, match="bias of shape"):
        PreparedEncoder(blocks)


def test_models_in_several_python_threads() -> None:
    models = [model(), model().bfloat16()]
    ids = torch.randint(5, 50, (3, 40))
    expected = [made(ids).last_hidden_state for made in models]
    wrong: list[int] = []

    def work(which: int) -> None:
        with torch.no_grad():
            for _ in range(5):
                if not torch.equal(models[which](ids).last_hidden_state, expected[which]):
                    wrong.append(which)

    threads = [threading.Thread(target=work, args=(i % 2,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_profile_names_every_step() -> None:
    blocks, _ = blocks_of("float32")
    times = PreparedEncoder(blocks).profile(torch.randn(200, 48), PackedBatch.from_lengths([200]))
    assert {t.block for t in times} == {0, 1, 2}
    assert {"qkv", "attention", "out", "up", "down", "output_norm"} <= {t.step for t in times}
    assert all(t.seconds > 0 for t in times if t.step not in ("load", "store"))


def test_copies_and_pickles_prepare_anew() -> None:
    made = model()
    ids = torch.randint(5, 50, (1, 9))
    out = made(ids).last_hidden_state
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert isinstance(other.preparation, Preparation)
        assert other.preparation is not made.preparation
        assert torch.equal(other(ids).last_hidden_state, out)
