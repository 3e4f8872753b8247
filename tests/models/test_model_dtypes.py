"""Every tensor is read as what its place computes with, whatever its file and the process say.

A tensor of another dtype is converted where nothing is lost by it, or refused by name; native code
never meets one. Which precision a model gets follows the caller, then config.json, then the file.
The process's default dtype and device change nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import fastbert
from fastbert.modeling.quantization import quantize

SIZES: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 20}
IDS = torch.tensor([[1, 2, 3, 4]])
FLOATS = (torch.float64, torch.float16, torch.bfloat16)
INTEGERS = (torch.int16, torch.int32, torch.int64, torch.bool)
# Buffer -> dtypes that are converted, dtypes that are refused.
RULES: dict[str, tuple[tuple[torch.dtype, ...], tuple[torch.dtype, ...]]] = {
    "weight_scale": (FLOATS, INTEGERS),
    "factor": (FLOATS, INTEGERS),
    "repeated": ((torch.int16, torch.int64), (*FLOATS, torch.bool)),
    "qweight": ((), (*FLOATS, *INTEGERS, torch.uint8)),
}
ACCEPTED = [(leaf, dtype) for leaf, (good, _) in RULES.items() for dtype in good]
REFUSED = [(leaf, dtype) for leaf, (_, bad) in RULES.items() for dtype in bad]
# Rounding a scale to 8 or 11 bits moves a result of size 1 by less than this.
CLOSE = {torch.bfloat16: 2e-2, torch.float16: 2e-3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("dtypes")
    fastbert.BertModel(fastbert.BertConfig(**SIZES)).save_pretrained(root / "float")
    int8 = fastbert.BertModel.from_pretrained(root / "float", quantization="int8")
    int8.save_pretrained(root / "int8")
    return root


def result(model: Any) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(IDS).last_hidden_state
    return out


def changed(state: dict[str, Tensor], leaf: str, change: Callable[[Tensor], Tensor]) -> Any:
    return {k: change(t) if k.endswith(f".{leaf}") else t for k, t in state.items()}


def from_file(folders: Path, tmp_path: Path, leaf: str, change: Callable[[Tensor], Tensor]) -> Any:
    state = changed(load_file(folders / "int8" / "model.safetensors"), leaf, change)
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folders / "int8" / "config.json").read_bytes())
    return fastbert.BertModel.from_pretrained(tmp_path)


def from_state(assign: bool) -> Callable[..., Any]:
    def load(folders: Path, _: Path, leaf: str, change: Callable[[Tensor], Tensor]) -> Any:
        model = fastbert.BertModel.from_pretrained(folders / "int8")
        model.load_state_dict(changed(model.state_dict(), leaf, change), assign=assign)
        return model

    return load


def by_attribute(folders: Path, _: Path, leaf: str, change: Callable[[Tensor], Tensor]) -> Any:
    model = fastbert.BertModel.from_pretrained(folders / "int8")
    for part in model.modules():
        if getattr(part, "qweight", None) is not None and getattr(part, leaf) is not None:
            setattr(part, leaf, change(getattr(part, leaf)))
    return model


WAYS = {
    "file": from_file,
    "assign": from_state(True),
    "copy": from_state(False),
    "attribute": by_attribute,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("leaf", "dtype"), ACCEPTED)
def test_parts_of_int8_are_converted(
    way: str, leaf: str, dtype: torch.dtype, folders: Path, tmp_path: Path
) -> None:
    expected = result(fastbert.BertModel.from_pretrained(folders / "int8"))
    found = result(WAYS[way](folders, tmp_path, leaf, lambda tensor: tensor.to(dtype)))
    assert float((found - expected).abs().max()) <= CLOSE.get(dtype, 0.0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("leaf", "dtype"), REFUSED)
def test_parts_of_int8_are_refused_by_name(
    way: str, leaf: str, dtype: torch.dtype, folders: Path, tmp_path: Path
) -> None:
    with pytest.raises((ValueError, RuntimeError), match=rf"the {leaf} of an int8 projection is"):
        result(WAYS[way](folders, tmp_path, leaf, lambda tensor: tensor.to(dtype)))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shift", [-100, 100])
def test_columns_that_do_not_exist_are_refused(
    way: str, shift: int, folders: Path, tmp_path: Path
) -> None:
    with pytest.raises((ValueError, RuntimeError), match=r"(16|24) columns repeats"):
        result(WAYS[way](folders, tmp_path, "repeated", lambda tensor: tensor + shift))


@pytest.mark.parametrize("leaf", RULES)
def test_parts_of_another_shape_never_reach_kernels(
    leaf: str, folders: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"shape"):
        result(by_attribute(folders, tmp_path, leaf, lambda tensor: tensor[..., :-1].clone()))


@pytest.mark.parametrize("place", ["embeddings.LayerNorm", "encoder.layer.0.output.dense"])
def test_a_weight_that_kernels_do_not_read_is_named(place: str, folders: Path) -> None:
    model = fastbert.BertModel.from_pretrained(folders / "float")
    state = model.state_dict()
    state[f"{place}.weight"] = state[f"{place}.weight"].double()
    model.load_state_dict(state, assign=True)
    with pytest.raises(TypeError, match=r"is float64\. The parts of a model share one precision"):
        result(model)


@pytest.fixture(params=[*FLOATS, "meta"], ids=str)
def default(request: pytest.FixtureRequest) -> Iterator[None]:
    """Set another default dtype or device of the process."""
    if isinstance(request.param, str):
        with torch.device(request.param):
            yield
        return
    torch.set_default_dtype(request.param)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def test_defaults_of_the_process_change_nothing(
    default: None, folders: Path, tmp_path: Path
) -> None:
    expected = load_file(folders / "int8" / "model.safetensors")
    loaded = fastbert.BertModel.from_pretrained(folders / "float", quantization="int8")
    loaded.save_pretrained(tmp_path)
    in_memory = quantize(fastbert.BertModel.from_pretrained(folders / "float"))
    again = fastbert.BertModel.from_pretrained(tmp_path)
    for model in (loaded, in_memory, again):
        for name, tensor in model.state_dict().items():
            assert tensor.dtype == expected[name].dtype, name
            assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
@pytest.mark.parametrize("written", [None, "float16", "bfloat16", "float32"])
@pytest.mark.parametrize("asked", [None, "auto", torch.float32])
def test_precision_follows_the_caller_then_the_configuration_then_the_file(
    stored: torch.dtype, written: str | None, asked: Any, tmp_path: Path
) -> None:
    model = fastbert.BertModel(fastbert.BertConfig(**SIZES)).to(stored)
    model.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    values = json.loads(config.read_text())
    del values["dtype"]
    config.write_text(json.dumps(values if written is None else values | {"dtype": written}))
    found = fastbert.BertModel.from_pretrained(tmp_path, dtype=asked)
    theirs = transformers.BertModel.from_pretrained(tmp_path, dtype=asked or "auto")
    assert found.dtype == theirs.dtype
    assert found.config.dtype == found.dtype


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn", "complex64", torch.float8_e5m2])
def test_a_precision_that_nothing_computes_in_is_refused(dtype: Any, folders: Path) -> None:
    with pytest.raises(ValueError, match="dtype is one of float32, bfloat16, float16, float64"):
        fastbert.BertModel.from_pretrained(folders / "float", dtype=dtype)
