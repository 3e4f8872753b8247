"""How a Transformer module is loaded and fed: sentence_bert_config.json and its elder forms."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

_log = logging.getLogger("fastbert")

TRANSFORMER_FILES = tuple(
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_RENAMED = {
    "model_args": "model_kwargs",
    "tokenizer_args": "processor_kwargs",
    "config_args": "config_kwargs",
}
# What a caller says goes before these, and a file must not ask for foreign code.
_CALLERS = ("trust_remote_code", "revision", "token", "cache_dir", "local_files_only", "subfolder")
# They lay out padding and other containers, of which nothing is seen here.
_LAYOUT = (
    "padding",
    "padding_side",
    "pad_to_multiple_of",
    "return_tensors",
    "return_attention_mask",
    "logits_to_keep",
    "verbose",
)
_CUTS: dict[str | bool, str | bool] = {
    True: True,
    False: False,
    "longest_first": True,
    "only_first": "only_first",
    "do_not_truncate": False,
}
# Of modalities that no text has.
_OTHERS = ("audio", "image", "video", "chat_template")


@dataclass(frozen=True)
class Use:
    """What a Transformer module is used for.

    Attributes:
        encoder: the class that reads it, for messages.
        task: its transformer_task.
        output: the output of the model that is read.
        feature: what sentence-transformers calls that.
        pairs: whether it reads pairs of texts.
    """

    encoder: str
    task: str
    output: str
    feature: str
    pairs: bool = False

    def settings(self) -> dict[str, Any]:
        """Return what sentence_bert_config.json says of this use."""
        method = {"method": "forward", "method_output_name": self.output}
        return {
            "transformer_task": self.task,
            "modality_config": {"text": method},
            "module_output_name": self.feature,
        }


HIDDEN_STATES = Use(
    "SentenceEncoder", "feature-extraction", "last_hidden_state", "token_embeddings"
)
SCORES = Use("CrossEncoder", "sequence-classification", "logits", "scores", pairs=True)


@dataclass(frozen=True)
class TextOptions:
    """How the tokenizer is called.

    Attributes:
        max_length: tokens that a text is cut to; None for the encoder's max_seq_length.
        truncation: whether longer texts are cut at all; of pairs, "only_first" or "only_second".
        add_special_tokens: whether a text gets its special tokens.
    """

    max_length: int | None = None
    truncation: bool | str = True
    add_special_tokens: bool = True


@dataclass
class TransformerSettings:
    """What is said of the transformer beside its own files.

    Attributes:
        folder: subfolder of the model and its tokenizer.
        max_seq_length: tokens of a text, special tokens included; None for the tokenizer's limit.
        do_lower_case: whether texts are lower-cased.
        model_kwargs: arguments of the model's from_pretrained.
        processor_kwargs: of the tokenizer's.
        config_kwargs: values that override those of config.json.
        text: how the tokenizer is called.
        lengths: tokens of a text for the tasks "query" and "document", where they have their own.
    """

    folder: str = ""
    max_seq_length: int | None = None
    do_lower_case: bool = False
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    processor_kwargs: dict[str, Any] = field(default_factory=dict)
    config_kwargs: dict[str, Any] = field(default_factory=dict)
    text: TextOptions = field(default_factory=TextOptions)
    lengths: dict[str, int] = field(default_factory=dict)


def read_settings(
    read: Callable[[str, str], dict[str, Any] | None],
    folder: str,
    named: Callable[[str, str], str],
    use: Use = HIDDEN_STATES,
) -> TransformerSettings:
    """Read the settings of a Transformer module.

    Args:
        read: returns the content of a JSON file in a folder, None where there is none.
        folder: the module's folder.
        named: what a file in a folder is called in messages.
        use: what the module is used for.

    Raises:
        ValueError: for a setting that is not supported, or makes no sense.
    """
    if read("adapter_config.json", folder) is not None:
        raise ValueError(
            f"{named(folder, 'adapter_config.json')} describes an adapter of PEFT, which "
            f"{use.encoder} does not apply; merge it into the model (merge_and_unload) and save "
            "that."
        )
    found = ((name, read(name, folder)) for name in TRANSFORMER_FILES)
    name, content = next(((name, c) for name, c in found if c), (TRANSFORMER_FILES[0], {}))
    return _parsed(dict(content), folder, named(folder, name), use)


def _parsed(content: dict[str, Any], folder: str, where: str, use: Use) -> TransformerSettings:
    for old, new in _RENAMED.items():
        if old in content:
            content[new] = content.pop(old)
    settings = TransformerSettings(folder)
    for name in _RENAMED.values():
        values = content.pop(name, None) or {}
        if not isinstance(values, dict):
            raise ValueError(f"{where} has {name} = {values!r}; expected an object.")
        kept = {key: value for key, value in values.items() if key not in _CALLERS}
        setattr(settings, name, kept)
    settings.config_kwargs.pop("use_cache", None)  # for decoders that generate
    _check_use(content, where, use)
    settings.max_seq_length = _length(content.pop("max_seq_length", None), "max_seq_length", where)
    limit = settings.processor_kwargs.pop("model_max_length", None)
    if limit is not None:
        settings.max_seq_length = _length(limit, "model_max_length", where)
    lower = content.pop("do_lower_case", False)
    if not isinstance(lower, bool):
        raise ValueError(f"{where} has do_lower_case = {lower!r}; expected true or false.")
    settings.do_lower_case = lower
    for task in ("query", "document"):
        length = _length(content.pop(f"{task}_length", None), f"{task}_length", where)
        if length is not None:
            settings.lengths[task] = length
    given = content.pop("processing_kwargs", None)
    settings.text = with_processing(TextOptions(), given, where, use.pairs)
    for name in ("unpad_inputs", "cache_dir", "backend"):  # they say how, not what
        content.pop(name, None)
    if content:
        raise ValueError(
            f"{where} has the settings {', '.join(sorted(content))}, which are not supported; use "
            "sentence-transformers for this model, or take them out if they do not matter."
        )
    return settings


def _check_use(content: dict[str, Any], where: str, use: Use) -> None:
    """Take out what says how the transformer is used, and refuse all but one use of texts."""
    wanted = use.settings()
    task = content.pop("transformer_task", use.task)
    if task != use.task:
        raise ValueError(
            f"{where} has the transformer_task {task!r}; {use.encoder} supports {use.task!r} only."
        )
    modalities = content.pop("modality_config", wanted["modality_config"])
    output = content.pop("module_output_name", use.feature)
    if modalities != wanted["modality_config"] or output not in (None, use.feature):
        raise ValueError(
            f"{where} has the modality_config {modalities!r} with the output {output!r}; supported "
            f"are texts alone, with {wanted['modality_config']['text']!r} and {use.feature!r}. Use "
            "sentence-transformers for this model."
        )
    for name in ("query_expansion", "tokenizer_name_or_path"):
        if content.pop(name, None) is not None:
            raise ValueError(
                f"{where} sets {name}, which is not supported; use sentence-transformers for this "
                "model."
            )


def _length(value: object, name: str, where: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 1e30, for no limit
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(
            f"{where} has {name} = {value!r}; expected the number of tokens of a text, at least 1."
        )
    return value


def with_processing(
    options: TextOptions, given: object, where: str, pairs: bool = False
) -> TextOptions:
    """Return options with what `processing_kwargs` says.

    Args:
        options: those without it.
        given: by modality, arguments of the tokenizer's call; None for none.
        where: who gives it, in messages.
        pairs: whether texts come in pairs.

    Raises:
        ValueError: for an argument that would change the tokens in a way that is not supported.
    """
    if given is None:
        return options
    if not isinstance(given, dict) or not all(isinstance(v, dict) for v in given.values()):
        raise ValueError(
            f"{where} has processing_kwargs = {given!r}; expected objects by modality."
        )
    unknown = set(given) - {"text", "common", *_OTHERS}
    if unknown:
        raise ValueError(
            f"{where} has processing_kwargs for {', '.join(sorted(map(str, unknown)))}; expected "
            "text or common."
        )
    values = {**given.get("text", {}), **given.get("common", {})}
    for name in _LAYOUT:
        values.pop(name, None)
    cut = values.pop("truncation", options.truncation)
    special = values.pop("add_special_tokens", options.add_special_tokens)
    length = _length(values.pop("max_length", options.max_length), "max_length", where)
    cuts = {**_CUTS, "only_second": "only_second"} if pairs else _CUTS
    cut = cuts.get(cut) if isinstance(cut, str | bool) else None
    if values or cut is None or not isinstance(special, bool):
        told = ", ".join(sorted(values)) or "truncation or add_special_tokens"
        raise ValueError(
            f"{where} has processing_kwargs that are not supported ({told}); expected max_length, "
            "truncation or add_special_tokens."
        )
    return replace(options, max_length=length, truncation=cut, add_special_tokens=special)
