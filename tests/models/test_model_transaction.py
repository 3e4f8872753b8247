"""A save is one transaction: whoever reads a folder gets one checkpoint, never halves of two.

Savers are killed before each of their file operations, in a forked process whose audit hook counts
them, and run beside readers. A checkpoint here is one number, which stands in its configuration (as
a label) and in each of its weights, so that a mixture shows.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import shutil
import signal
import stat
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import fastbert
from fastbert.checkpoints import transaction
from fastbert.checkpoints.tensor_files import SafetensorsFile
from fastbert.modeling.quantization import quantize

# Files of tests are imported by their paths, so their helpers are found through this one's.
sys.path.insert(0, str(Path(__file__).parent.parent))
from killed_savers import hidden, in_a_child, in_memory, killed_at

tmp_path = in_memory

SIZES: dict[str, Any] = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1}
SIZES |= {"num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 12}
KINDS: dict[str, dict[str, Any]] = {
    "single": {},
    "sharded": {"max_shard_size": "6KB"},
    "bin": {"safe_serialization": False},
    "int8": {},
}


def model(number: int, kind: str = "single") -> Any:
    """Return a model whose label, and whose every weight, is a number."""
    config = fastbert.BertConfig(**SIZES, id2label={0: f"label {number}", 1: "other"})
    made = fastbert.BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(float(number))
    if kind == "int8":
        made = quantize(made)
    return made


@functools.cache
def expected_state(number: int, kind: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a model."""
    state: dict[str, torch.Tensor] = model(number, kind).state_dict()
    return state


def number_of(loaded: Any, kind: str = "single") -> int:
    """Return the number of a model, which must be the same in all its parts."""
    number = int(loaded.config.id2label[0].split()[1])
    expected = expected_state(number, kind)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name]), f"{name} is not of the model {number}"
    return number


def load(folder: Path) -> Any:
    return fastbert.BertForSequenceClassification.from_pretrained(folder)


def as_others_read(folder: Path) -> set[int]:
    """Return the numbers that a program finds which knows nothing of transactions."""
    if not (folder / "config.json").is_file():
        return set()
    label = json.loads((folder / "config.json").read_text())["id2label"]["0"]
    found = {int(label.split()[1])}
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if not (folder / names[0]).is_file() and index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    for name in names:
        for tensor in load_file(folder / name).values():
            if tensor.dtype == torch.float32 and tensor.numel():
                found |= {int(value) for value in tensor.unique()}
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_save_killed_anywhere_leaves_the_old_or_the_new_checkpoint(
    kind: str, tmp_path: Path
) -> None:
    folder, former = tmp_path / "model", tmp_path / "former"
    old, new = model(1, kind), model(2, kind)
    # A sharded save replaces a single file, and a file of torch's takes the place of shards.
    first = {"sharded": {}, "bin": KINDS["sharded"]}.get(kind, KINDS[kind])
    old.save_pretrained(former, **first)
    seen, step = set(), 0
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(former, folder)
        killed = killed_at(step, folder, lambda: new.save_pretrained(folder, **KINDS[kind]))
        if kind in ("single", "sharded"):
            assert len(as_others_read(folder)) <= 1
        seen.add(number_of(load(folder), kind))
        if not killed:
            break
        if step % 5 == 0:
            new.save_pretrained(folder, **KINDS[kind])
            assert number_of(load(folder), kind) == 2
            assert not hidden(folder)
        step += 1
    assert seen == {1, 2} and step > 15
    assert not hidden(folder)


def test_a_first_save_that_is_killed_is_no_checkpoint_or_a_whole_one(tmp_path: Path) -> None:
    new, outcomes = model(3), set()
    for step in range(100):
        folder = tmp_path / f"{step}"
        killed = killed_at(step, tmp_path, functools.partial(new.save_pretrained, folder))
        try:
            outcomes.add(number_of(load(folder)))
        except FileNotFoundError:
            outcomes.add(0)
        if not killed:
            break
    assert outcomes == {0, 3}


@pytest.mark.parametrize("kind", ["single", "sharded"])
def test_a_reader_beside_a_saver_gets_one_checkpoint(kind: str, tmp_path: Path) -> None:
    models = [model(1), model(2)]
    models[0].save_pretrained(tmp_path, **KINDS[kind])

    def save_on() -> None:
        end = time.monotonic() + 20.0
        while time.monotonic() < end:
            for one in models:
                one.save_pretrained(tmp_path, **KINDS[kind])
                time.sleep(0.002)

    child = os.fork()
    if child == 0:
        try:
            save_on()
        finally:
            os._exit(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            seen = [number_of(load(tmp_path)) for _ in range(40)]
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert set(seen) == {1, 2}


def test_savers_take_turns(tmp_path: Path) -> None:
    children = []
    for number in (1, 2, 3):
        one = model(number)
        child = os.fork()
        if child == 0:
            try:
                for _ in range(4):
                    one.save_pretrained(tmp_path, max_shard_size="6KB")
            except BaseException:
                os._exit(1)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert number_of(load(tmp_path)) in (1, 2, 3)
    assert not hidden(tmp_path)


@pytest.fixture
def sharded(tmp_path: Path) -> Iterator[Path]:
    for number in (1, 2):
        model(number).save_pretrained(tmp_path / str(number), max_shard_size="6KB")
    yield tmp_path


def test_shards_of_two_saves_are_refused(sharded: Path) -> None:
    shard = sorted(path.name for path in (sharded / "1").glob("model-*"))[1]
    shutil.copy(sharded / "2" / shard, sharded / "1" / shard)
    with pytest.raises(ValueError, match=r"parts of two checkpoints: .* not written by the same"):
        load(sharded / "1")
    save_file(load_file(sharded / "2" / shard), sharded / "1" / shard, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="parts of two checkpoints"):
        load(sharded / "1")


def test_an_index_of_another_save_is_refused(sharded: Path) -> None:
    name = "model.safetensors.index.json"
    shutil.copy(sharded / "2" / name, sharded / "1" / name)
    with pytest.raises(ValueError, match=rf"{name} and model-00001.* not written by the same save"):
        load(sharded / "1")


def test_half_of_another_folder_is_told(tmp_path: Path) -> None:
    for number in (1, 2):
        model(number).save_pretrained(tmp_path / str(number))
    target = tmp_path / "1"
    shutil.copy(tmp_path / "2" / "model.safetensors", target)
    with pytest.warns(UserWarning, match="not written together with the config.json"):
        load(target)
    for name in ("config.json", "fastbert_checkpoint.json"):
        shutil.copy(tmp_path / "2" / name, target)
    assert number_of(load(target)) == 2


def test_what_people_do_to_a_folder_is_no_news(tmp_path: Path) -> None:
    model(1).save_pretrained(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config.write_text(config.read_text().replace("label 1", "label 9"))
        assert load(tmp_path).config.id2label[0] == "label 9"
        tensors = {name: tensor * 0 + 9 for name, tensor in load_file(weights).items()}
        save_file(tensors, weights, metadata={"format": "pt"})
        assert number_of(load(tmp_path)) == 9
        (tmp_path / transaction.MANIFEST).write_text("{")
        assert number_of(load(tmp_path)) == 9
        (tmp_path / transaction.MANIFEST).unlink()
        assert number_of(load(tmp_path)) == 9
        model(3).save_pretrained(tmp_path)
        assert number_of(load(tmp_path)) == 3


def test_the_same_model_gives_the_same_files(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        model(1).save_pretrained(tmp_path / folder, max_shard_size="6KB")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    manifest = json.loads((tmp_path / "a" / transaction.MANIFEST).read_text())
    assert set(manifest["files"]) | {transaction.MANIFEST} == {
        path.name for path in (tmp_path / "a").iterdir()
    }
    for name, entry in manifest["files"].items():
        assert entry["bytes"] == (tmp_path / "a" / name).stat().st_size


def test_permissions_are_the_usual_ones_and_private_files_stay_private(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        model(1).save_pretrained(tmp_path)
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {0o640}
    (tmp_path / "model.safetensors").chmod(0o600)
    model(2).save_pretrained(tmp_path)
    assert stat.S_IMODE((tmp_path / "model.safetensors").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "config.json").stat().st_mode) == 0o640


@pytest.mark.parametrize("kind", ["single", "sharded", "bin"])
def test_a_full_disk_leaves_the_former_checkpoint(kind: str, tmp_path: Path) -> None:
    model(1).save_pretrained(tmp_path, **KINDS[kind])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    larger = model(2)
    larger.resize_token_embeddings(5000)

    def save() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            larger.save_pretrained(tmp_path, **KINDS[kind])
        except OSError:
            return
        raise AssertionError("the save did not fail")

    assert in_a_child(save) == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_save_that_raises_leaves_the_former_checkpoint(tmp_path: Path) -> None:
    model(1).save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="cannot hold 'x'"):
        model(2).save_pretrained(tmp_path, state_dict={"x": torch.zeros(2, dtype=torch.cfloat)})
    with pytest.raises(ValueError, match="no values to save"):
        model(2).to("meta").save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="halfway"), transaction.transaction(tmp_path) as staging:
        (staging.folder / "config.json").write_text("{}")
        raise RuntimeError("halfway")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_committed_save_is_read_where_nothing_may_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model(1).save_pretrained(folder)
    # Behind the commit, which is the first rename, and before the first file is moved.
    for step in range(100):
        killed_at(step, folder, lambda: model(2).save_pretrained(folder, max_shard_size="6KB"))
        if (folder / transaction.COMMITTED).is_dir():
            break
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    before = sorted(path.relative_to(copy) for path in copy.rglob("*"))
    assert fastbert.AutoConfig.from_pretrained(copy).id2label[0] == "label 2"
    assert sorted(path.relative_to(copy) for path in copy.rglob("*")) == before
    assert number_of(load(copy)) == 2
    assert not (copy / transaction.COMMITTED).exists()
    fastbert.BertConfig(**SIZES, id2label={0: "label 5", 1: "x"}).save_pretrained(folder)
    assert load(folder).config.id2label[0] == "label 5"


def test_a_manifest_leads_nowhere_else(tmp_path: Path) -> None:
    model(1).save_pretrained(tmp_path / "model")
    victim = tmp_path / "victim"
    victim.write_text("whole")
    committed = tmp_path / "model" / transaction.COMMITTED
    committed.mkdir()
    content = {"format": 1, "save": None, "files": {}, "removes": ["../victim"]}
    (committed / transaction.MANIFEST).write_text(json.dumps(content))
    with pytest.raises(ValueError, match="not a manifest of a checkpoint"):
        load(tmp_path / "model")
    assert victim.read_text() == "whole"


def test_a_file_that_is_overwritten_while_it_is_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model(1).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    read = SafetensorsFile.read

    def overwritten(self: SafetensorsFile, name: str) -> torch.Tensor:
        content = weights.read_bytes()
        os.utime(weights, ns=(1, 1))
        weights.write_bytes(content)
        return read(self, name)

    monkeypatch.setattr(SafetensorsFile, "read", overwritten)
    with pytest.raises(ValueError, match="was written to while it was read"):
        load(tmp_path)
