"""The choice of the tokenizer class for a folder or hub id."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fastbert.checkpoints.files import HUB_OPTIONS
from fastbert.checkpoints.storage import read_json
from fastbert.tokenizers import files
from fastbert.tokenizers.base import Tokenizer
from fastbert.tokenizers.bert import BertTokenizer
from fastbert.tokenizers.bert_legacy import BertTokenizerLegacy
from fastbert.tokenizers.camembert import CamembertTokenizer, CamembertTokenizerFast
from fastbert.tokenizers.flaubert import FlaubertTokenizer
from fastbert.tokenizers.rembert import RemBertTokenizer

# model_type of config.json to (tokenizer in Python, tokenizer in Rust).
_BY_MODEL: dict[str, tuple[type[Tokenizer], type[Tokenizer]]] = {
    "align": (BertTokenizer, BertTokenizer),
    "align_text_model": (BertTokenizer, BertTokenizer),
    "bert": (BertTokenizer, BertTokenizer),
    "camembert": (CamembertTokenizer, CamembertTokenizerFast),
    "flaubert": (FlaubertTokenizer, FlaubertTokenizer),
    # It runs a tokenizer.json in Rust where there is one; without, sentencepiece's rules are right.
    "rembert": (RemBertTokenizer, RemBertTokenizer),
}
_BY_CLASS: dict[str, tuple[type[Tokenizer], type[Tokenizer]]] = {
    "BertTokenizer": _BY_MODEL["bert"],
    "BertTokenizerLegacy": (BertTokenizerLegacy, BertTokenizerLegacy),
    "CamembertTokenizer": _BY_MODEL["camembert"],
    "FlaubertTokenizer": _BY_MODEL["flaubert"],
    "RemBertTokenizer": _BY_MODEL["rembert"],
}
# What transformers calls a tokenizer.json whose family it does not know.
_NAMELESS = ("PreTrainedTokenizer", "TokenizersBackend", "PythonBackend")


class AutoTokenizer:
    """The tokenizer of a checkpoint, whichever family it is of; use `from_pretrained`."""

    def __init__(self) -> None:
        raise TypeError("AutoTokenizer is used as AutoTokenizer.from_pretrained(name_or_path).")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        use_fast: bool = True,
        config: object = None,
        **kwargs: Any,
    ) -> Tokenizer:
        """Load the tokenizer that tokenizer_config.json or config.json of a checkpoint names.

        Args:
            pretrained_model_name_or_path: a folder or a hub id.
            use_fast: prefer the Rust class, where there are two (CamemBERT).
            config: a model's configuration, whose model_type decides where the files do not.
            **kwargs: see `Tokenizer.from_pretrained`.

        Returns:
            A tokenizer of the family's class.

        Raises:
            FileNotFoundError: for a missing folder or vocabulary.
            ValueError: where the files do not tell the class.
        """
        hub = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        families = {one for pair in _BY_MODEL.values() for one in pair}
        names = sorted({name for family in families for name in family.file_names()})
        folder = files.find_folder(pretrained_model_name_or_path, names, **hub)
        slow, fast = _classes(folder, getattr(config, "model_type", None))
        tokenizer = (fast if use_fast else slow).from_pretrained(folder, **kwargs)
        tokenizer.name_or_path = str(pretrained_model_name_or_path)
        return tokenizer


def _classes(folder: Path, model_type: str | None) -> tuple[type[Tokenizer], type[Tokenizer]]:
    """Return the (Python, Rust) classes of a folder."""
    settings, model = (
        read_json(folder / name, dict) if (folder / name).is_file() else {}
        for name in (files.CONFIG_FILE, "config.json")
    )
    named = settings.get("tokenizer_class") or model.get("tokenizer_class") or ""
    found = _BY_CLASS.get(named.removesuffix("Fast"))
    if found is not None:
        return found
    model_type = model_type or model.get("model_type")
    if model_type in _BY_MODEL and (not named or named.removesuffix("Fast") in _NAMELESS):
        return _BY_MODEL[model_type]
    if named.removesuffix("Fast") == "RobertaTokenizer" or (not named and model_type == "roberta"):
        raise ValueError(
            f"'{folder}' has RoBERTa's tokenizer, a byte-level BPE, which fastbert does not have; "
            "its models take the ids of another library's, such as transformers.AutoTokenizer."
        )
    told = f"tokenizer_class '{named}'" if named else f"model_type '{model_type}'"
    known = ", ".join(sorted(_BY_CLASS))
    if not named and model_type is None:
        raise ValueError(
            f"'{folder}' has neither a tokenizer_config.json with a tokenizer_class nor a "
            f"config.json with a model_type; load it with its own class: {known}."
        )
    raise ValueError(f"'{folder}' has the {told}, which is none of fastbert's: {known}.")
