"""The prepared encoder against the layer-by-layer path, and its bookkeeping."""

from __future__ import annotations

import copy
import dataclasses
import gc
import pickle
import threading
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import fastbert.runtime.plan
from fastbert.engine.cpu_encoder import CpuEncoder
from fastbert.engine.cpu_support import supports
from fastbert.engine.encoder_cache import EncoderCache, StaleModel, retrying
from fastbert.kernels import native
from fastbert.layers.block import Block
from fastbert.layers.encoder import ForwardOptions, encode
from fastbert.layers.linear import Linear
from fastbert.modeling.quantization import quantize
from fastbert.models.bert import BertModel
from fastbert.runtime.packing import PackedBatch

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


def model(pooler: bool = False, **changes: object) -> BertModel:
    sizes = {
        "vocab_size": 50,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 100,
        "max_position_embeddings": 400,
    }
    config = BertModel.config_class(**(sizes | changes))
    made = BertModel(config, add_pooling_layer=pooler).eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter.copy_(torch.randn_like(parameter) * (0.25 if parameter.dim() == 2 else 0.5))
    return made


def blocks_of(kind: str) -> tuple[list[Block], torch.dtype]:
    made = model()
    if kind == "bfloat16":
        made = made.bfloat16()
    if kind == "int8":
        quantize(made)
        # What has no factor, or no repeated columns, is int8 too.
        first = next(iter(made.blocks())).up
        first.factor = None
    return list(made.blocks()), made.dtype


def relative(x: Tensor, y: Tensor) -> float:
    return float((x.double() - y).norm() / y.norm())


KINDS = ("float32", "bfloat16", "int8")


@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_the_layers(kind: str) -> None:
    blocks, dtype = blocks_of(kind)
    batch = PackedBatch.from_lengths(LENGTHS)
    rows = torch.randn(batch.total, 48, dtype=dtype)
    with fastbert.runtime.plan.use_backend("reference"):
        reference = model().plan()
        same_dtype = encode(blocks, rows, batch, reference, ForwardOptions()).packed
        if kind == "int8":
            exact = same_dtype.double()
        else:
            wide = [copy.deepcopy(block) for block in blocks]
            for block in wide:
                for field in dataclasses.fields(block):
                    part = getattr(block, field.name)
                    if isinstance(part, torch.nn.Module):
                        part.double()
            exact = encode(wide, rows.double(), batch, reference, ForwardOptions()).packed
    for isa in native.usable_isas():
        native.set_isa(isa)
        error = relative(CpuEncoder(blocks)(rows, batch), exact)
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
    encoder = CpuEncoder(blocks)
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


@pytest.mark.parametrize("kind", KINDS)
def test_products_cut_by_columns_and_by_rows_have_the_same_bits(kind: str) -> None:
    # Wide enough for the numbers of rows at which a pass changes from one to the other, which
    # depend on the precision: with two threads, 36, 64 and 144.
    made = model(hidden_size=544, num_attention_heads=17, num_hidden_layers=1)
    if kind == "int8":
        quantize(made)
    elif kind == "bfloat16":
        made = made.bfloat16()
    encoder = CpuEncoder(list(made.blocks()))
    rows = torch.randn(150, 544, dtype=made.dtype)
    torch.set_num_threads(1)
    lengths = [20, 15, 1, 27, 1, 79, 1, 6]
    whole = encoder(rows, PackedBatch.from_lengths(lengths))
    torch.set_num_threads(2)
    for count in range(1, len(lengths) + 1):
        batch = PackedBatch.from_lengths(lengths[:count])
        assert torch.equal(encoder(rows[: batch.total], batch), whole[: batch.total]), batch.total


def test_masked_keys_that_stay_in_the_batch() -> None:
    blocks, _ = blocks_of("float32")
    mask = torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0]])
    batch = PackedBatch.from_mask(mask, 2, 4, keep_first_column=True)
    assert batch.key_bias is not None
    rows = torch.randn(batch.total, 48)
    with fastbert.runtime.plan.use_backend("reference"):
        expected = encode(blocks, rows, batch, model().plan(), ForwardOptions()).packed
    assert relative(CpuEncoder(blocks)(rows, batch), expected.double()) < 2e-6


def test_padded_output_has_zeros_for_removed_tokens() -> None:
    blocks, _ = blocks_of("float32")
    encoder = CpuEncoder(blocks)
    mask = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0]])
    batch = PackedBatch.from_mask(mask, 3, 4)
    rows = torch.randn(batch.total, 48)
    assert torch.equal(encoder.padded(rows, batch), batch.pad(encoder(rows, batch)))
    dense = PackedBatch.dense(3, 4)
    rows = torch.randn(12, 48)
    assert torch.equal(encoder.padded(rows, dense), dense.pad(encoder(rows, dense)))


def test_strided_rows_are_read_in_place() -> None:
    blocks, _ = blocks_of("float32")
    encoder = CpuEncoder(blocks)
    batch = PackedBatch.from_lengths([5])
    wide = torch.randn(5, 60)
    assert torch.equal(encoder(wide[:, 3:51], batch), encoder(wide[:, 3:51].contiguous(), batch))


def test_a_model_uses_it_and_sees_every_change_of_its_weights() -> None:
    made = model()
    ids = torch.randint(5, 50, (2, 9))
    out = made(ids).last_hidden_state
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
        with fastbert.runtime.plan.use_backend("reference"):
            expected = made(ids).last_hidden_state
        assert relative(new, expected.double()) < (2e-2 if new.dtype is torch.bfloat16 else 5e-6)
        out = new


def changed(made: BertModel, name: str) -> None:
    """Change a model in the way that has this name; see CHANGES."""
    layer = made.encoder.layer[1]
    match name:
        case "config":
            made.config.is_decoder = True
        case "eps":
            layer.output.LayerNorm.eps = 0.5
        case "in place":
            layer.output.dense.bias.add_(1.0)
        case "data":
            layer.output.dense.weight.data = torch.randn(48, 100)
        case "parameter":
            layer.output.dense.weight = torch.nn.Parameter(torch.randn(48, 100))
        case "no bias":
            layer.output.dense.bias = None
        case "module":
            layer.output.dense = Linear(100, 48)
        case "foreign module":
            layer.output.dense = torch.nn.Sequential()
            layer.output.dense.forward = lambda x: torch.zeros(*x.shape[:-1], 48)
        case "layer":
            made.encoder.layer[1] = copy.deepcopy(made.encoder.layer[0])
        case "fewer layers":
            made.encoder.layer = made.encoder.layer[:2]
        case "appended layer":
            made.encoder.layer.append(copy.deepcopy(layer))
        case "pruned":
            made.prune_heads({1: [0]})
        case "embedding row":
            made.embeddings.word_embeddings.weight[:] = torch.randn(50, 48)
        case "embedding table":
            made.set_input_embeddings(torch.nn.Embedding(50, 48).requires_grad_(False))
        case "resized":
            made.resize_token_embeddings(60)
            made.embeddings.word_embeddings.weight.mul_(2.0)
        case "embedding norm":
            made.embeddings.LayerNorm.weight.mul_(-1.0)
        case "pooler":
            made.pooler.dense.weight.mul_(-1.0)
        case "loaded":
            made.load_state_dict(model().state_dict(), strict=False)
        case "assigned":
            made.load_state_dict(model().state_dict(), strict=False, assign=True)
        case "bfloat16":
            made.to(torch.bfloat16)
        case "one module's dtype":
            layer.output.to(torch.bfloat16).to(torch.float32)
        case "quantised":
            quantize(made)
        case "hook":
            layer.output.dense.register_forward_hook(lambda _m, _i, out: out + 1.0)
        case "embedding hook":
            made.embeddings.word_embeddings.register_forward_hook(lambda _m, _i, out: 0.5 * out)
        case "forward":
            layer.output.dense.forward = lambda x: torch.zeros(*x.shape[:-1], 48)
        case _:
            raise AssertionError(name)


CHANGES = [
    "config",
    "eps",
    "in place",
    "data",
    "parameter",
    "no bias",
    "module",
    "foreign module",
    "layer",
    "fewer layers",
    "appended layer",
    "pruned",
    "embedding row",
    "embedding table",
    "resized",
    "embedding norm",
    "pooler",
    "loaded",
    "assigned",
    "bfloat16",
    "one module's dtype",
    "quantised",
    "hook",
    "embedding hook",
    "forward",
]


@pytest.mark.parametrize("name", CHANGES)
def test_no_change_of_a_model_goes_unnoticed(name: str) -> None:
    made = model(pooler=True)
    ids = torch.randint(5, 50, (2, 9))

    def results() -> Tensor:
        out = made(ids)
        return torch.cat([out.last_hidden_state.flatten(), out.pooler_output.flatten()])

    before = results()
    assert torch.equal(results(), before)
    changed(made, name)
    after = results()
    fresh = copy.deepcopy(made)
    fresh.encoder_cache.clear()
    out = fresh(ids)
    assert torch.equal(
        after, torch.cat([out.last_hidden_state.flatten(), out.pooler_output.flatten()])
    )
    assert not torch.equal(after, before.to(after.dtype))


def test_weights_are_packed_again_only_when_they_have_changed() -> None:
    made = model()
    ids = torch.randint(5, 50, (2, 9))

    def encoder() -> CpuEncoder:
        made(ids)
        ready = made.encoder_cache._entry
        assert ready is not None
        return ready.encoder

    first = encoder()
    handle = made.encoder.layer[0].output.dense.register_forward_hook(lambda *_: None)
    made(ids)
    handle.remove()
    with fastbert.runtime.plan.use_backend("reference"):
        made(ids)
    made.train()
    made(ids)
    made.eval()
    made.config.problem_type = "regression"
    made(ids, output_hidden_states=True)
    assert encoder() is first
    made.encoder.layer[0].output.dense.weight.mul_(1.0)
    assert encoder() is not first


def test_a_change_before_the_weights_are_packed_is_seen() -> None:
    ids = torch.randint(5, 50, (2, 9))
    for name in CHANGES:
        made = model(pooler=True)
        with fastbert.runtime.plan.use_backend("reference"):
            made(ids)
        changed(made, name)
        fresh = copy.deepcopy(made)
        assert torch.equal(made(ids).last_hidden_state, fresh(ids).last_hidden_state)


def test_training_steps_do_not_read_the_model_anew() -> None:
    made = model().requires_grad_(True)
    ids = torch.randint(5, 50, (2, 9))
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    views = []
    with torch.enable_grad():
        for _ in range(2):
            made(ids).last_hidden_state.square().sum().backward()
            optimizer.step()
            views.append(made.encoder_cache.view(made))
    assert views[0] is views[1]
    with fastbert.runtime.plan.use_backend("reference"):
        expected = made(ids).last_hidden_state
    assert relative(made(ids).last_hidden_state, expected.double()) < 5e-6


def test_a_model_that_changes_all_the_time_is_given_up_on() -> None:
    made = model()
    ids = torch.randint(5, 50, (2, 9))
    made(ids)
    with pytest.raises(RuntimeError, match="changes while it runs"):
        retrying(made, lambda *_: (_ for _ in ()).throw(StaleModel()), None, None)


def test_a_dropped_model_frees_its_memory() -> None:
    def use() -> weakref.ref[BertModel]:
        made = model()
        # A cycle through the watch, which only the garbage collector can see.
        made.encoder.layer[0].register_forward_hook(lambda *_: made.eval() and None)
        made(torch.randint(5, 50, (2, 9)))
        return weakref.ref(made)

    gone = use()
    gc.collect()
    assert gone() is None


def test_embeddings_and_pooler_of_the_same_call() -> None:
    for dtype, bound in ((torch.float32, 2e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)):
        made = model(pooler=True).to(dtype)
        ids = torch.randint(5, 50, (3, 9))
        mask = (torch.arange(9) < torch.tensor([[9], [4], [1]])).long()
        types, positions = torch.randint(0, 2, (3, 9)), torch.randint(0, 400, (1, 9))
        given = {"attention_mask": mask, "token_type_ids": types, "position_ids": positions}
        exact = copy.deepcopy(made).double()
        for isa in native.usable_isas():
            native.set_isa(isa)
            out = made(ids, **given)
            encoder = made.encoder_cache._entry.encoder
            assert encoder.embeds and encoder.pooled == 48
            wanted = exact(ids, **given)
            assert relative(out.last_hidden_state, wanted.last_hidden_state) < bound
            assert relative(out.pooler_output, wanted.pooler_output) < bound
            assert torch.equal(out.last_hidden_state[1, 4:], torch.zeros(5, 48, dtype=dtype))
            embeds = made.embeddings.word_embeddings(ids)
            for other in (embeds, embeds.transpose(0, 1).contiguous().transpose(0, 1)):
                again = made(inputs_embeds=other, **given)
                assert torch.equal(again.last_hidden_state, out.last_hidden_state)
                assert torch.equal(again.pooler_output, out.pooler_output)
            for b, length in enumerate((9, 4, 1)):
                alone = made(
                    ids[b : b + 1, :length],
                    token_type_ids=types[b : b + 1, :length],
                    position_ids=positions[:, :length],
                )
                assert torch.equal(alone.last_hidden_state[0], out.last_hidden_state[b, :length])
                assert torch.equal(alone.pooler_output[0], out.pooler_output[b])


def test_indices_outside_a_table_are_refused() -> None:
    made = model()
    ids = torch.randint(5, 50, (2, 9))
    made(ids)
    for wrong in (50, -1, 2**40):
        bad = ids.clone()
        bad[1, 3] = wrong
        with pytest.raises(IndexError, match=r"input_ids reach .* the vocabulary"):
            made(bad)
        kinds = torch.zeros(2, 9, dtype=torch.int64)
        kinds[0, 8] = wrong
        with pytest.raises(IndexError, match=r"token_type_ids reach .* the token types"):
            made(ids, token_type_ids=kinds)
        mask = torch.ones(2, 9, dtype=torch.int64)
        mask[1, 3] = 0
        made(bad, attention_mask=mask)


def test_indices_that_another_thread_changes_are_read_once() -> None:
    """Every pass sees valid indices or refuses them: no read is wild."""
    made = model()
    ids = torch.randint(5, 50, (8, 64))
    made(ids)
    stop = threading.Event()

    def meddle() -> None:
        while not stop.is_set():
            ids[3, 7] = 2**45
            ids[3, 7] = 6

    thread = threading.Thread(target=meddle)
    thread.start()
    try:
        for _ in range(200):
            try:
                assert torch.isfinite(made(ids).last_hidden_state).all()
            except IndexError:
                continue
    finally:
        stop.set()
        thread.join()


def test_nan_in_a_table_reaches_the_output() -> None:
    made = model(pooler=True)
    made.embeddings.word_embeddings.weight[7, 3] = float("nan")
    out = made(torch.tensor([[7, 8], [9, 8]]))
    assert out.last_hidden_state[0].isnan().all() and out.pooler_output[0].isnan().all()
    assert not out.last_hidden_state[1].isnan().any() and not out.pooler_output[1].isnan().any()


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
    with fastbert.runtime.plan.use_backend("reference"):
        assert "reference" in str(supports(blocks, model().plan()))


def test_bad_input_is_refused() -> None:
    blocks, _ = blocks_of("float32")
    encoder = CpuEncoder(blocks)
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
        CpuEncoder(blocks)


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
    times = CpuEncoder(blocks).profile(torch.randn(200, 48), PackedBatch.from_lengths([200]))
    assert {t.block for t in times} == {0, 1, 2}
    assert {"qkv", "attention", "out", "up", "down", "output_norm"} <= {t.step for t in times}
    assert all(t.seconds > 0 for t in times if t.step not in ("load", "store", "pool"))


def test_copies_and_pickles_prepare_anew() -> None:
    made = model()
    ids = torch.randint(5, 50, (1, 9))
    out = made(ids).last_hidden_state
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert isinstance(other.encoder_cache, EncoderCache)
        assert other.encoder_cache is not made.encoder_cache
        assert torch.equal(other(ids).last_hidden_state, out)
