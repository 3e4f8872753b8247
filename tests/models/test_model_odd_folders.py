"""What a folder says is obeyed or refused in a sentence: adapters, nulls, labels, padding, links.

An adapter beside weights would change what they compute, and transformers applies it, so weights
are not read without it in silence. Values of config.json of another kind than their field's
are named, rather than met later as an AttributeError or an assertion of torch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fastbert
from fastbert.tools import cli

# Files of tests are imported by their paths, so their helpers are found through this one's.
sys.path.append(str(Path(__file__).parents[1]))

import small_models

WEIGHTS = "model.safetensors"


def add_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')


def alone(folder: Path) -> None:
    add_adapter(folder)
    (folder / WEIGHTS).rename(folder / "adapter_model.safetensors")
    (folder / "config.json").unlink()


def dangling(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("blobs/gone")


def with_values(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "adapter beside": (add_adapter, "adapter of PEFT"),
    "adapter alone": (alone, "is an adapter: load its base model"),
    "link to nothing": (dangling, "a link to nothing"),
    "no activation": (with_values(hidden_act=None), "hidden_act must be a str, not null"),
    "no eps": (with_values(layer_norm_eps=None), "layer_norm_eps must be a float, not null"),
    "padding outside": (with_values(pad_token_id=10**6), "pad_token_id is 1000000"),
    "padding before": (with_values(pad_token_id=-(10**6)), "pad_token_id is -1000000"),
    "labels as a list": (with_values(id2label=["no", "yes"]), "a name for each number"),
    "labels by name": (with_values(id2label={"no": "no"}), "a name for each number"),
    "two types": (with_values(model_type=["bert"]), "which fastbert does not have"),
}


@pytest.mark.parametrize("case", CASES)
def test_odd_folders_get_a_sentence(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = small_models.bert(tmp_path, hidden_size=32, num_hidden_layers=1, intermediate_size=64)
    change, told = CASES[case]
    change(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        fastbert.AutoModelForMaskedLM.from_pretrained(folder)
    command = ["run", "--task", "fill-mask", "--model", str(folder), "/dev/null"]
    assert cli.main(command) == 2
    errors = capsys.readouterr().err
    assert told in errors and "Traceback" not in errors


def test_what_is_in_order_loads(tmp_path: Path) -> None:
    folder = small_models.bert(tmp_path, hidden_size=32, num_hidden_layers=1, intermediate_size=64)
    with_values(pad_token_id=-1, id2label=None, label2id=None, classifier_dropout=None)(folder)
    assert fastbert.AutoModelForMaskedLM.from_pretrained(folder).config.num_labels == 2


def test_a_save_needs_the_name_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = small_models.bert(
        tmp_path / "model", hidden_size=32, num_hidden_layers=1, intermediate_size=64
    )
    model = fastbert.AutoModelForMaskedLM.from_pretrained(folder)
    tokenizer = fastbert.AutoTokenizer.from_pretrained(folder)
    encoder = fastbert.SentenceEncoder.from_pretrained(folder)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for made in (model, model.config, tokenizer, encoder):
        with pytest.raises(ValueError, match="name is empty"):
            made.save_pretrained("")
        with pytest.raises(ValueError, match="no folder; save_pretrained needs"):
            made.save_pretrained("/dev/null")
    for size in (None, 0, -1, True, [], "0"):
        with pytest.raises(ValueError, match="max_shard_size is"):
            model.save_pretrained("x", max_shard_size=size)
    assert not any(path.is_file() for path in (tmp_path / "empty").rglob("*"))
