"""Checkpoints and inputs that do not fit: each says what is wrong, none goes unnoticed.

Files are held against their own format, configurations against reason and against the file, and
arguments against what they can mean here.
"""

from __future__ import annotations

import json
import struct
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import fastbert
from fastbert.checkpoints.storage import replaced
from fastbert.checkpoints.tensor_files import SafetensorsFile, save_safetensors

SIZES: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 20}
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
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


@pytest.mark.parametrize("legacy", [False, True])
def test_a_torch_file_that_is_cut_anywhere_is_named(legacy: bool, folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    cuts = {0, 1, 7, 40, 200, 1000, len(whole) - 1, len(whole) - 40, len(whole) - 200}
    for cut in sorted(cuts | set(range(0, len(whole), len(whole) // 40))):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"torch cannot read .* as weights"):
            fastbert.BertModel.from_pretrained(folder)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/x.safetensors", "a/b", "..", "", None, 5]
)
def test_an_index_leads_nowhere_else(name: Any, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "x.safetensors")
    index = {"weight_map": {DENSE: name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="shards are files beside their index"):
        fastbert.BertModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("tf_model.h5", b"x", "tf_model.h5 is weights of TensorFlow"),
        ("flax_model.msgpack", b"x", "flax_model.msgpack is weights of Flax"),
        ("adapter_model.safetensors", b"x", "peft.PeftModel"),
        ("model.Q4.gguf", b"x", "model.Q4.gguf is of a format that is not read here"),
        ("pytorch_model.fp16.bin", b"x", "It holds pytorch_model.fp16.bin; see"),
        ("model.safetensors", LFS, "is a git-lfs pointer"),
        ("pytorch_model.bin", LFS, "is a git-lfs pointer"),
        ("config.json", LFS, "is a git-lfs pointer"),
        ("config.json", b"[" * 100_000, "not valid JSON"),
        ("config.json", b'{"a": ' + b"9" * 6000 + b"}", "not valid JSON"),
    ],
)
def test_what_stands_in_place_of_a_checkpoint_is_named(
    name: str, content: bytes, told: str, folder: Path
) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=told.replace(".", r"\.")):
        fastbert.BertModel.from_pretrained(folder)


def test_a_folder_without_model_type_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"has no model_type.*name the class"):
        fastbert.AutoModel.from_pretrained(configured(folder, model_type=None))
    fastbert.BertModel.from_pretrained(folder)


def test_weights_of_other_libraries_are_named(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    eight = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in state.items()}
    torch.save(eight, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="float8_e4m3fn, which are weights that another library"):
        fastbert.BertModel.from_pretrained(folder, use_safetensors=False)
    with pytest.raises(ValueError, match="float8_e4m3fn"):
        fastbert.BertModel.from_pretrained(folder, state_dict=eight)
    with pytest.raises(ValueError, match="quantised with 'fp8', says its quantization_config"):
        fastbert.BertModel.from_pretrained(
            configured(folder, quantization_config={"quant_method": "fp8"})
        )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_hidden_layers", 10**7),
        ("num_hidden_layers", -1),
        ("num_hidden_layers", 2.0),
        ("num_hidden_layers", None),
        ("hidden_size", 10**18),
        ("vocab_size", 10**15),
        ("num_attention_heads", 0),
        ("num_labels", 10**9),
    ],
)
def test_sizes_are_held_against_reason(name: str, value: Any, folder: Path) -> None:
    with pytest.raises(ValueError, match=rf"{name} is|asks for 10000000 layers"):
        fastbert.BertModel.from_pretrained(configured(folder, **{name: value}))
    with pytest.raises(ValueError, match=f"{name} is"):
        fastbert.BertModel(fastbert.BertConfig(**SIZES | {name: value}))


def test_keywords_that_mean_nothing_here_are_taken(folder: Path) -> None:
    names = "low_cpu_mem_usage trust_remote_code weights_only offload_folder max_memory proxies"
    for auto in (fastbert.AutoModel, fastbert.BertModel):
        auto.from_pretrained(folder, **dict.fromkeys(names.split(), True), from_tf=False)
        for name in ("from_tf", "load_in_8bit", "key_mapping", "gguf_file", "tp_plan"):
            with pytest.raises(ValueError, match=f"does not take {name}"):
                auto.from_pretrained(folder, **{name: True})
    model = fastbert.BertModel.from_pretrained(folder)
    model.save_pretrained(folder, save_function=torch.save, token=None)
    with pytest.raises(TypeError, match="has no argument nonsense"):
        model.save_pretrained(folder, nonsense=1)
    with pytest.raises(ValueError, match="uploads nothing"):
        model.config.save_pretrained(folder, push_to_hub=True)


def test_sizes_that_are_ignored_are_told(folder: Path) -> None:
    head = fastbert.BertForSequenceClassification
    head(fastbert.BertConfig(**SIZES)).save_pretrained(folder)
    with pytest.raises(RuntimeError, match=r"classifier\.weight is \(2, 16\), not \(5, 16\)"):
        head.from_pretrained(folder, num_labels=5)
    with pytest.warns(UserWarning, match=r"classifier\.weight is \(2, 16\), not \(5, 16\)"):
        model = head.from_pretrained(folder, num_labels=5, ignore_mismatched_sizes=True)
    assert float(model.classifier.weight.detach().std()) > 0.01


def test_computed_buffers_of_old_files_pass_a_strict_load(folder: Path) -> None:
    model = fastbert.BertModel.from_pretrained(folder)
    old = {"embeddings.position_ids": torch.arange(20)[None]}
    model.load_state_dict(model.state_dict() | old)
    outer = torch.nn.Sequential(model)
    outer.load_state_dict(outer.state_dict() | {"0.embeddings.position_ids": torch.arange(20)})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict(model.state_dict() | {"embeddings.other": torch.arange(20)})


def test_a_name_that_is_nearly_a_field_is_told() -> None:
    with pytest.warns(UserWarning, match="does not read 'n_layer', but 'n_layers'"):
        fastbert.FlaubertConfig(n_layer=3)


def test_a_variant_goes_there_and_back(folder: Path) -> None:
    model = fastbert.BertModel.from_pretrained(folder)
    for size, count in (("50GB", 1), ("4KB", 2)):
        model.save_pretrained(folder / size, variant="fp16", max_shard_size=size)
        names = [path.name for path in (folder / size).glob("model.fp16*.safetensors")]
        assert len(names) >= count
        again = fastbert.BertModel.from_pretrained(folder / size, variant="fp16")
        theirs = transformers.BertModel.from_pretrained(folder / size, variant="fp16")
        for name, tensor in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], tensor)
            assert torch.equal(theirs.state_dict()[name], tensor)


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
