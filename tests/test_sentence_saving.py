"""A saved sentence encoder is one transaction over all of its files.

Model, tokenizer, the folders of the modules and the settings change together: whoever reads the
folder, after a save that was cut short anywhere or beside one, gets one encoder whole. What is
read back has the same bits, and sentence-transformers gives the same vectors.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fastbert
from fastbert.checkpoints import transaction
from fastbert.embedding.modules import Dense, Normalize, Pooling, SentenceLayerNorm

# Files of tests are imported by their paths, so their helpers are found through this one's.
sys.path.insert(0, str(Path(__file__).parent))
from killed_savers import hidden, in_memory, killed_at
from sentence_folders import HIDDEN, TEXTS, both, tiny

tmp_path = in_memory


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("plain") / "model")


def encoder(plain: Path, number: int, **options: Any) -> fastbert.SentenceEncoder:
    """Return an encoder whose model, Dense, prompt and tokenizer each know its number."""
    loaded = fastbert.SentenceEncoder.from_pretrained(plain, **options)
    torch.manual_seed(number)
    modules = [Pooling(), Dense(HIDDEN, 6 + number), SentenceLayerNorm(6 + number), Normalize()]
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=0.3)
        loaded.model.get_input_embeddings().weight[5] = float(number)
    loaded.tokenizer.add_tokens([f"token{number}"])
    return fastbert.SentenceEncoder(
        loaded.model,
        loaded.tokenizer,
        modules=modules,
        prompts={"query": f"a {number} "},
        max_seq_length=20 + number,
    )


def number_of(folder: Path) -> int:
    """Return the number of a folder's encoder, which must be the same in all its parts."""
    found = fastbert.SentenceEncoder.from_pretrained(folder)
    number = found.max_seq_length - 20
    assert found.dimension == 6 + number
    assert found.prompts["query"] == f"a {number} "
    assert set(found.tokenizer.added_tokens_encoder) >= {f"token{number}"}
    assert f"token{3 - number}" not in found.tokenizer.added_tokens_encoder
    assert found.model.get_input_embeddings().weight[5].unique().tolist() == [float(number)]
    assert found.dense[0].linear.weight.shape == (6 + number, HIDDEN)
    return number


def test_a_save_killed_anywhere_leaves_the_old_or_the_new_encoder(
    tmp_path: Path, plain: Path
) -> None:
    folder, former = tmp_path / "model", tmp_path / "former"
    old, new = encoder(plain, 1), encoder(plain, 2)
    old.save_pretrained(former)
    seen, step, killed = set(), 0, True
    while killed:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(former, folder)
        killed = killed_at(step, folder, lambda: new.save_pretrained(folder))
        seen.add(number_of(folder))
        assert not (folder / transaction.COMMITTED).exists()
        # Before the new files are in their places, every operation is like the one before.
        step += 2 if seen == {1, 2} else 5
    assert seen == {1, 2} and step > 60
    assert not hidden(folder)


def test_a_reader_beside_a_saver_gets_one_encoder(tmp_path: Path, plain: Path) -> None:
    encoders = [encoder(plain, 1), encoder(plain, 2)]
    encoders[0].save_pretrained(tmp_path)
    child = os.fork()
    if child == 0:
        try:
            end = time.monotonic() + 20.0
            while time.monotonic() < end:
                for one in encoders:
                    one.save_pretrained(tmp_path)
                    time.sleep(0.02)
        finally:
            os._exit(0)
    try:
        seen = {number_of(tmp_path) for _ in range(15)}
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert seen == {1, 2}
    assert number_of(tmp_path) in (1, 2)


def test_an_error_leaves_the_former_encoder(
    tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder(plain, 1).save_pretrained(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    new = encoder(plain, 2)
    (tmp_path / "2_Dense").rename(tmp_path / "aside")
    (tmp_path / "2_Dense").write_text("in the way")
    with pytest.raises(FileExistsError, match="2_Dense is a file"):
        new.save_pretrained(tmp_path)
    (tmp_path / "2_Dense").unlink()
    (tmp_path / "aside").rename(tmp_path / "2_Dense")

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(type(new.tokenizer), "save_vocabulary", full)
    with pytest.raises(OSError, match="No space"):
        new.save_pretrained(tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert number_of(tmp_path) == 1


def test_a_save_that_may_not_be_finished_is_named(
    tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction, "_finish", lambda _: None)
    monkeypatch.setattr(transaction, "_PATIENCE", 0.1)
    encoder(plain, 1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="cut short"):
        fastbert.SentenceEncoder.from_pretrained(tmp_path)
    monkeypatch.undo()
    assert number_of(tmp_path) == 1


def test_a_manifest_that_leads_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    for name in ("../x", "a/../../x", "/x", "a//x", ""):
        content = {"format": 1, "save": None, "files": {name: {}}}
        (tmp_path / transaction.MANIFEST).write_text(json.dumps(content))
        with pytest.raises(ValueError, match="not a manifest"):
            transaction.manifest_of(tmp_path)


@pytest.mark.parametrize(
    "options",
    [{}, {"dtype": "bfloat16"}, {"quantization": "int8"}],
    ids=["float32", "bfloat16", "int8"],
)
def test_what_is_read_back_has_the_same_bits(
    tmp_path: Path, plain: Path, options: dict[str, Any]
) -> None:
    made = encoder(plain, 1, **options)
    made.truncate_dim = 5
    made.similarity_fn_name = "euclidean"
    made.save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    made.save_pretrained(tmp_path)
    if not options:
        again, theirs = both(tmp_path)
        found = theirs.encode_query(TEXTS)
        np.testing.assert_allclose(found, made.encode_query(TEXTS), rtol=1e-6, atol=1e-6)
        assert theirs.similarity_fn_name == "euclidean"
    else:
        again = fastbert.SentenceEncoder.from_pretrained(tmp_path)
    np.testing.assert_array_equal(again.encode_query(TEXTS), made.encode_query(TEXTS))
    states = again.model.state_dict(), made.model.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
    assert set(states[0]) == set(states[1])


@pytest.mark.parametrize("part", ["parametrized", "eps"])
def test_parts_without_a_place_in_the_format_are_refused(
    tmp_path: Path, plain: Path, part: str
) -> None:
    made = encoder(plain, 1)
    if part == "parametrized":
        nn.utils.parametrizations.weight_norm(made.dense[0].linear)
    else:
        norm = made.modules[2]
        assert isinstance(norm, SentenceLayerNorm)
        norm.norm.eps = 0.1
    with pytest.raises(ValueError, match="no place for"):
        made.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
