"""Packing keeps every token, in order, and pads back to where it came from."""

from __future__ import annotations

import pytest
import torch

from fastbert.runtime.packing import (
    MASKED,
    PackedBatch,
    _token_indices_without_counting,
    in_one_copy,
)

MASKS = {
    "right": [[1, 1, 1, 0], [1, 0, 0, 0]],
    "left": [[0, 1, 1, 1], [0, 0, 0, 1]],
    "holes": [[1, 0, 1, 1], [0, 1, 0, 1]],
    "empty-row": [[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]],
    "empty": [[0, 0], [0, 0]],
    "full": [[1, 1, 1], [1, 1, 1]],
    "single": [[1]],
}


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32, torch.uint8])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_round_trip(mask: list[list[int]], dtype: torch.dtype) -> None:
    mask = torch.tensor(mask, dtype=dtype)
    batch = PackedBatch.from_mask(mask, *mask.shape)
    kept = mask != 0
    x = torch.randn(*mask.shape, 3)
    packed = batch.pack(x)
    assert torch.equal(packed, x[kept])
    assert batch.total == int(kept.sum()) == packed.shape[0]
    assert torch.equal(batch.pad(packed), torch.where(kept[..., None], x, 0.0))
    assert torch.equal(batch.pad(packed, fill=7)[~kept], torch.full_like(x, 7)[~kept])
    lengths = kept.sum(1)
    assert batch.cu_seqlens.tolist() == [0, *lengths.cumsum(0).tolist()]
    assert batch.cu_seqlens.dtype == torch.int32
    assert (batch.min_seqlen, batch.max_seqlen) == (int(lengths.min()), int(lengths.max()))
    assert (batch.indices is None) == bool(kept.all())
    assert batch.key_bias is None


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_first_column_stays_but_is_no_key(mask: list[list[int]]) -> None:
    mask = torch.tensor(mask)
    batch = PackedBatch.from_mask(mask, *mask.shape, keep_first_column=True)
    kept = mask != 0
    kept[:, 0] = True
    x = torch.randn(*mask.shape, 3)
    assert torch.equal(batch.pack(x), x[kept])
    assert torch.equal(batch.pack(x)[batch.first_token_rows()], x[:, 0])
    bias = torch.where(mask[kept] != 0, 0.0, MASKED)
    if bool((mask[:, 0] != 0).all()):
        assert batch.key_bias is None
    else:
        assert torch.equal(batch.key_bias, bias)


def test_dense_removes_nothing() -> None:
    mask = torch.tensor([[1, 0, 1], [0, 0, 0]])
    batch = PackedBatch.dense(2, 3, key_mask=mask)
    assert batch.indices is None
    assert batch.cu_seqlens.tolist() == [0, 3, 6]
    assert batch.key_bias.tolist() == [0.0, MASKED, 0.0, MASKED, MASKED, MASKED]
    x = torch.randn(2, 3, 4)
    assert torch.equal(batch.pad(batch.pack(x)), x)


@pytest.mark.parametrize(("batch_size", "seqlen"), [(0, 5), (3, 0), (0, 0)])
def test_no_tokens(batch_size: int, seqlen: int) -> None:
    mask = torch.ones(batch_size, seqlen)
    for batch in (
        PackedBatch.from_mask(mask, batch_size, seqlen),
        PackedBatch.from_mask(mask, batch_size, seqlen, keep_first_column=True),
        PackedBatch.dense(batch_size, seqlen),
        PackedBatch.from_lengths([0] * batch_size, seqlen=seqlen),
    ):
        assert batch.cu_seqlens.tolist() == [0] * (batch_size + 1)
        assert batch.pack(torch.zeros(batch_size, seqlen, 2)).shape == (0, 2)
        assert batch.pad(torch.zeros(0, 2)).shape == (batch_size, seqlen, 2)


def test_lengths_equal_their_mask() -> None:
    lengths = [3, 0, 5, 1]
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    ours, theirs = PackedBatch.from_lengths(lengths, seqlen=6), PackedBatch.from_mask(mask, 4, 6)
    assert torch.equal(ours.indices, theirs.indices)
    assert torch.equal(ours.cu_seqlens, theirs.cu_seqlens)
    assert (ours.min_seqlen, ours.max_seqlen, ours.seqlen) == (0, 5, 6)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_token_indices_without_asking_how_many(mask: list[list[int]]) -> None:
    flat = torch.tensor(mask).reshape(-1) != 0
    found = _token_indices_without_counting(flat, int(flat.sum()))
    assert found.dtype == torch.int64
    assert torch.equal(found, torch.nonzero(flat).squeeze(1))


def test_one_copy_for_several_tensors() -> None:
    # "meta" stands for a device: what arrives there has shapes, and was moved once.
    parts = [torch.arange(3, dtype=torch.int32), None, torch.arange(5), torch.zeros(2, 0)]
    moved = in_one_copy(parts, torch.device("meta"))
    assert moved[1] is None
    for part, there in zip(parts, moved, strict=True):
        if part is not None and there is not None:
            assert (there.shape, there.dtype) == (part.shape, part.dtype)
            assert there.is_meta and there.is_contiguous()
            assert there.storage_offset() * there.element_size() % 16 == 0
            assert there.untyped_storage().nbytes() == 64
    kept = in_one_copy(parts, torch.device("cpu"))
    assert all(one is other for one, other in zip(parts, kept, strict=True))


def test_parts_of_a_copy_hold_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    staged: list[torch.Tensor] = []
    empty = torch.empty

    def watched(*args: object, **kwargs: object) -> torch.Tensor:
        staged.append(empty(*args, **kwargs))
        return staged[-1]

    monkeypatch.setattr(torch, "empty", watched)
    parts = [torch.arange(3, dtype=torch.int32), torch.arange(5), torch.randn(2, 3)]
    moved = in_one_copy(parts, torch.device("meta"))
    for part, there in zip(parts, moved, strict=True):
        start = there.storage_offset() * there.element_size()
        raw = staged[0][start : start + part.nbytes]
        assert torch.equal(raw.view(part.dtype).view(part.shape), part)


def test_packing_is_differentiable() -> None:
    mask = torch.tensor([[1, 0, 1], [0, 1, 1]])
    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    batch = PackedBatch.from_mask(mask, 2, 3)
    assert torch.autograd.gradcheck(lambda x: batch.pad(batch.pack(x)), x)


def test_what_does_not_fit_is_refused() -> None:
    batch = PackedBatch.from_lengths([2, 0])
    with pytest.raises(ValueError, match=r"\(2, 3\).*was expected"):
        PackedBatch.from_mask(torch.ones(3, 2), 2, 3)
    with pytest.raises(ValueError, match="begin with"):
        batch.pack(torch.zeros(3, 2, 4))
    with pytest.raises(ValueError, match="2 tokens"):
        batch.pad(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="no first one"):
        batch.first_token_rows()
    with pytest.raises(ValueError, match="between 0 and"):
        PackedBatch.from_lengths([2, -1])
    with pytest.raises(ValueError, match="between 0 and"):
        PackedBatch.from_lengths([2, 4], seqlen=3)
