"""Checkpoints and inputs that do not fit: each says what is wrong, none goes unnoticed."""

from __future__ import annotations

import json
import struct
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import fastbert
from fastbert.checkpoints.storage import replaced
from fastbert.checkpoints.tensor_files import SafetensorsFile, save_safetensors

SIZES: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 20}
DENSE = "encoder.layer.1.output.dense.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    fastbert.BertModel(fastbert.BertConfig(**SIZES)).save_pretrained(tmp_path)
    return tmp_path


def configured(folder: Path, **values: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def test_layers_that_the_configuration_does_not_have_are_told(folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"16 tensors of layers .* such as encoder\.layer\.1\."):
        fastbert.BertModel.from_pretrained(configured(folder, num_hidden_layers=1))
    flaubert = fastbert.FlaubertModel(
        fastbert.FlaubertConfig(n_words=40, emb_dim=16, n_layers=2, n_heads=2)
    )
    flaubert.save_pretrained(folder / "flaubert")
    with pytest.warns(UserWarning, match=r"tensors of layers .* such as attentions\.1\."):
        fastbert.FlaubertModel.from_pretrained(configured(folder / "flaubert", n_layers=1))


def test_heads_that_are_not_wanted_are_no_news(folder: Path) -> None:
    model = fastbert.BertForPreTraining(fastbert.BertConfig(**SIZES))
    model.save_pretrained(folder / "both")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastbert.BertModel.from_pretrained(folder / "both", add_pooling_layer=False)
        fastbert.BertForMaskedLM.from_pretrained(folder / "both")


def test_weights_that_are_integers_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[DENSE] = tensors[DENSE].to(torch.int8)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=rf"holds {DENSE} as torch.int8, but weights are floating"):
        fastbert.BertModel.from_pretrained(folder)


def safetensors_bytes(header: str, data: bytes) -> bytes:
    text = header.encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str, begin: int, end: int, shape: str = "[2]") -> str:
    return f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}'


WHOLE = f'{{"a":{entry("F32", 0, 8)},"b":{entry("F32", 8, 16)}}}'


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", "truncated inside its header", id="empty"),
        pytest.param(safetensors_bytes(WHOLE, b"")[:40], "inside its header", id="in header"),
        pytest.param(safetensors_bytes(WHOLE, bytes(15)), "truncated", id="truncated"),
        pytest.param(safetensors_bytes(WHOLE, bytes(17)), "not valid safetensors", id="too long"),
        pytest.param(
            struct.pack("<Q", 100_000_001) + bytes(100_000_001),
            "header too large",
            id="header too large",
        ),
        pytest.param(
            safetensors_bytes(f'{{"a":{entry("F32", 0, 8)},"b":{entry("F32", 4, 12)}}}', bytes(12)),
            "not valid safetensors",
            id="overlapping",
        ),
        pytest.param(
            safetensors_bytes(
                f'{{"a":{entry("F32", 0, 8)},"b":{entry("F32", 12, 20)}}}', bytes(20)
            ),
            "not valid safetensors",
            id="hole",
        ),
        pytest.param(
            safetensors_bytes(f'{{"a":{entry("F32", 0, 8)},"a":{entry("I32", 0, 8)}}}', bytes(8)),
            "its header names 'a' twice",
            id="twice",
        ),
        pytest.param(
            safetensors_bytes(f'{{"a":{entry("F32", 0, 8, "[3]")}}}', bytes(8)),
            "not valid safetensors",
            id="shape",
        ),
        pytest.param(
            safetensors_bytes(f'{{"a":{entry("F8_E4M3", 0, 2)}}}', bytes(2)),
            "tensors of type F8_E4M3",
            id="dtype",
        ),
        pytest.param(safetensors_bytes("[1, 2]", b""), "not valid safetensors", id="array"),
    ],
)
def test_a_damaged_file_is_named_with_the_remedy(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason) as error:
        SafetensorsFile(path)
    told = str(error.value)
    assert str(path) in told and "\n" not in told
    assert told.endswith(("download or save it again.", "convert it to one of these."))


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes(WHOLE, bytes(16)))
    file = SafetensorsFile(path)
    path.write_bytes(path.read_bytes()[:-4])
    assert torch.equal(file.read("a"), torch.zeros(2))
    with pytest.raises(ValueError, match=r"ended inside the tensor 'b'.*download or save it again"):
        file.read("b")


def test_tensors_that_share_memory_are_saved_one_by_one(tmp_path: Path) -> None:
    joined = torch.arange(12.0).reshape(3, 4)
    state = {"whole": joined, "same": joined, "rows": joined[1:], "columns": joined[:, 1:]}
    state |= {"empty": joined[:0], "scalar": torch.tensor(3), "half": joined.bfloat16()}
    save_safetensors(state, tmp_path / "model.safetensors")
    loaded, file = (
        load_file(tmp_path / "model.safetensors"),
        SafetensorsFile(tmp_path / "model.safetensors"),
    )
    assert set(file.names()) == set(state)
    for name, tensor in state.items():
        assert torch.equal(loaded[name], tensor) and torch.equal(file.read(name), tensor)
        assert file.dtype(name) is tensor.dtype and file.shape(name) == tuple(tensor.shape)
    with pytest.raises(ValueError, match=r"cannot hold 'x' of type torch\.complex64"):
        save_safetensors({"x": torch.zeros(2, dtype=torch.complex64)}, tmp_path / "x.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_write_that_fails_leaves_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"former")
    with pytest.raises(RuntimeError, match="halfway"), replaced(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError("halfway")
    with pytest.raises(OSError, match=r"nowhere.model\.safetensors"):
        save_safetensors({"a": torch.zeros(2)}, tmp_path / "nowhere" / "model.safetensors")
    assert path.read_bytes() == b"former"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("name", ["hidden_size", "num_attention_heads", "layer_norm_eps"])
def test_a_text_in_place_of_a_number_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be a (int|float), not '48'"):
        fastbert.BertModel.from_pretrained(configured(folder, **{name: "48"}))


def test_a_mask_in_place_of_ids_is_refused() -> None:
    model = fastbert.BertModel(fastbert.BertConfig(**SIZES))
    with pytest.raises(TypeError, match=r"input_ids must be integers.*torch\.bool"):
        model(torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"indices must have shape \(1, 3\), but has \(1, 4\)"):
        model(torch.ones(1, 3, dtype=torch.long), position_ids=torch.arange(4)[None])


def test_tied_weights_that_are_stored_apart_stay_two(folder: Path) -> None:
    model = fastbert.BertForMaskedLM(fastbert.BertConfig(**SIZES, tie_word_embeddings=False))
    decoder = model.cls.predictions.decoder
    decoder.weight = torch.nn.Parameter(torch.randn(40, 16))
    model.save_pretrained(folder / "apart")
    configured(folder / "apart", tie_word_embeddings=True)
    with pytest.warns(UserWarning, match="stored with different values, so they stay two"):
        again = fastbert.BertForMaskedLM.from_pretrained(folder / "apart")
    assert torch.equal(again.cls.predictions.decoder.weight, decoder.weight)
    words = again.bert.embeddings.word_embeddings.weight
    assert torch.equal(words, model.bert.embeddings.word_embeddings.weight)
