"""The choice of the tokenizer class for a folder or hub id."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

from fastbert.checkpoints.storage import read_json
from fastbert.tokenizers import files
from fastbert.tokenizers.base import Tokenizer
from fastbert.tokenizers.bert import BertTokenizer
from fastbert.tokenizers.bert_legacy import BertTokenizerLegacy
from fastbert.tokenizers.camembert import CamembertTokenizer, CamembertTokenizerFast
from fastbert.tokenizers.flaubert import FlaubertTokenizer
from fastbert.tokenizers.generic import PreTrainedTokenizerFast
from fastbert.tokenizers.keywords import sorted_out
from fastbert.tokenizers.like_bert import DistilBertTokenizer, ElectraTokenizer, MPNetTokenizer
from fastbert.tokenizers.rembert import RemBertTokenizer
from fastbert.tokenizers.roberta import RobertaTokenizer
from fastbert.tokenizers.xlm_roberta import XLMRobertaTokenizer

logger = logging.getLogger("fastbert.tokenizers")

# model_type of config.json to (tokenizer in Python, tokenizer in Rust).
_BY_MODEL: dict[str, tuple[type[Tokenizer], type[Tokenizer]]] = {
    "align": (BertTokenizer, BertTokenizer),
    "align_text_model": (BertTokenizer, BertTokenizer),
    "bert": (BertTokenizer, BertTokenizer),
    "camembert": (CamembertTokenizer, CamembertTokenizerFast),
    "distilbert": (DistilBertTokenizer, DistilBertTokenizer),
    "electra": (ElectraTokenizer, ElectraTokenizer),
    "flaubert": (FlaubertTokenizer, FlaubertTokenizer),
    "mpnet": (MPNetTokenizer, MPNetTokenizer),
    # They run a tokenizer.json in Rust where there is one; without, sentencepiece is right.
    "rembert": (RemBertTokenizer, RemBertTokenizer),
    "xlm-roberta": (XLMRobertaTokenizer, XLMRobertaTokenizer),
    "roberta": (RobertaTokenizer, RobertaTokenizer),
}
_BY_CLASS: dict[str, tuple[type[Tokenizer], type[Tokenizer]]] = {
    "BertTokenizer": _BY_MODEL["bert"],
    "BertTokenizerLegacy": (BertTokenizerLegacy, BertTokenizerLegacy),
    "CamembertTokenizer": _BY_MODEL["camembert"],
    "DistilBertTokenizer": _BY_MODEL["distilbert"],
    "ElectraTokenizer": _BY_MODEL["electra"],
    "MPNetTokenizer": _BY_MODEL["mpnet"],
    "RobertaTokenizer": _BY_MODEL["roberta"],
    "XLMRobertaTokenizer": _BY_MODEL["xlm-roberta"],
    "FlaubertTokenizer": _BY_MODEL["flaubert"],
    "RemBertTokenizer": _BY_MODEL["rembert"],
}
# BERT's tokenizer under the names of other families.
_LIKE_BERT = (
    "ConvBertTokenizer",
    "MobileBertTokenizer",
    "RetriBertTokenizer",
    "SqueezeBertTokenizer",
)
# Where a folder names no class, its model's has this one.
_OF_MODEL = {
    "mobilebert": "MobileBertTokenizer",
}
# What transformers calls a tokenizer.json whose family it does not know.
_NAMELESS = ("PreTrainedTokenizer", "TokenizersBackend", "PythonBackend")
# Classes that return no token types, in transformers 4 and 5 alike.
_WITHOUT_TYPES = (
    *("Bart", "Barthez", "Bartpho", "BigBird", "Camembert", "DistilBert", "GPT2", "GPTNeoX"),
    *("Gemma", "LED", "Llama", "Longformer", "Luke", "M2M100", "MBart", "MBart50", "MPNet"),
    *("Mvp", "Nllb", "Pegasus", "Qwen2", "Roberta", "T5", "XGLM", "XLMRoberta"),
)
# Models that read no token types, so a nameless tokenizer beside them returns none.
_MODELS_WITHOUT_TYPES = ("apertus", "apertus1p5", "apertus1p5_text")


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
            **kwargs: see `Tokenizer.from_pretrained`; tokenizer_type stands for a model_type.

        Returns:
            A tokenizer of the family's class; a `PreTrainedTokenizerFast` where the folder names no
            family, or another one, and holds a tokenizer.json.

        Raises:
            FileNotFoundError: for a missing folder or vocabulary.
            ValueError: where the files do not tell the class.
        """
        kwargs, hub, from_slow = sorted_out(kwargs)
        model_type = kwargs.pop("tokenizer_type", None) or getattr(config, "model_type", None)
        folder = files.find_folder(pretrained_model_name_or_path, cls.file_names(), **hub)
        chosen = _choose(folder, model_type, use_fast=use_fast)
        for name, value in chosen.settings.items():
            kwargs.setdefault(name, value)
        tokenizer = chosen.cls.from_pretrained(folder, from_slow=from_slow, **kwargs)
        tokenizer.name_or_path = str(pretrained_model_name_or_path)
        return tokenizer

    @classmethod
    def file_names(cls) -> list[str]:
        """List the files that tokenizers of any family may want."""
        families = {one for pair in _BY_MODEL.values() for one in pair}
        return sorted({name for family in families for name in family.file_names()})


class _Choice(NamedTuple):
    """A class, and settings that it needs where the folder makes none."""

    cls: type[Tokenizer]
    settings: dict[str, Any] = {}


def _choose(folder: Path, model_type: str | None, *, use_fast: bool) -> _Choice:
    """Choose the class of a folder.

    Raises:
        ValueError: where the files do not tell it, or fastbert does not have it.
    """
    settings, model = (
        read_json(folder / name, dict) if (folder / name).is_file() else {}
        for name in (files.CONFIG_FILE, "config.json")
    )
    named = str(settings.get("tokenizer_class") or model.get("tokenizer_class") or "")
    name = named.removesuffix("Fast")
    model_type = model_type or model.get("model_type")
    name = name or _OF_MODEL.get(str(model_type), "")
    pair = _BY_CLASS.get(name)
    has_json = (folder / files.TOKENIZER_FILE).is_file()
    if pair is None and model_type in _BY_MODEL and (not name or name in _NAMELESS):
        # A nameless file runs as it is; without one, the model's family says what there is.
        pair = None if name and has_json else _BY_MODEL[model_type]
    own_code = settings.get("auto_map")
    if own_code.get("AutoTokenizer") if isinstance(own_code, dict) else own_code:
        logger.warning(
            "'%s' brings a tokenizer class of its own, which fastbert does not run; it goes by the "
            "other files.",
            folder,
        )
    if pair is not None:
        return _Choice(pair[use_fast])
    default: dict[str, Any] = {}
    without = name.removesuffix("Tokenizer") in _WITHOUT_TYPES
    without |= model_type in _MODELS_WITHOUT_TYPES
    if without and "model_input_names" not in settings:
        default["model_input_names"] = ["input_ids", "attention_mask"]
    if name in _LIKE_BERT:
        return _Choice(BertTokenizer, default)
    if has_json:
        return _Choice(PreTrainedTokenizerFast, default)
    known = ", ".join(sorted(_BY_CLASS))
    if not named and model_type is None:
        raise ValueError(
            f"'{folder}' has neither a tokenizer.json, nor a tokenizer_config.json with a "
            "tokenizer_class, nor a config.json with a model_type; load it with its own class: "
            f"{known}."
        )
    told = f"tokenizer_class '{named}'" if named else f"model_type '{model_type}'"
    raise ValueError(
        f"'{folder}' has the {told}, which is none of fastbert's ({known}), and no tokenizer.json, "
        "which any class can be run from; transformers writes one: AutoTokenizer."
        "from_pretrained(...).save_pretrained(...)."
    )
