"""RoBERTa's tokenizer: BPE over bytes, in Rust."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

from tokenizers import Tokenizer as RustTokenizer, decoders, models, pre_tokenizers, processors

from fastbert.checkpoints.storage import read_json
from fastbert.tokenizers import files
from fastbert.tokenizers.base import Tokenizer
from fastbert.tokenizers.engines import holes
from fastbert.tokenizers.engines.rust import RustEngine
from fastbert.tokenizers.engines.template import SpecialTokensTemplate
from fastbert.tokenizers.engines.tokenizer_json import engine_of
from fastbert.tokenizers.special import Default, DefaultMask, SpecialSet, TokenLike, content
from fastbert.tokenizers.strategies import check_flags

FAIRSEQ_TEMPLATE = SpecialTokensTemplate(
    ("cls", "A", "sep"), ("cls", "A", "sep", "sep", "B", "sep"), 0
)


class RobertaTokenizer(Tokenizer):
    """RoBERTa's tokenizer: words with the space before them, cut by BPE over their bytes.

    `<s> A </s>`, or `<s> A </s></s> B </s>`. Every token type is 0, and token types are not
    returned unless asked for.

    Args:
        vocab_file: vocab.json, or the ids of the tokens as a dict.
        merges_file: merges.txt, or its pairs of pieces, best first.
        tokenizer_file: a tokenizer.json, used instead of both. It runs as it is: only settings that
            are given change it.
        errors: accepted; bytes that are no UTF-8 are decoded as replacement characters.
        bos_token: one of the special tokens, as are the others named so.
        eos_token: see bos_token.
        sep_token: see bos_token.
        cls_token: see bos_token.
        unk_token: see bos_token.
        pad_token: see bos_token.
        mask_token: see bos_token.
        add_prefix_space: put a space before the first word; None for what the tokenizer_file says,
            or False.
        trim_offsets: leave spaces out of offsets; None for what the tokenizer_file says, or True.
        vocab: another name of vocab_file.
        merges: another name of merges_file.
        **options: see `Tokenizer`.
    """

    vocab_files_names: ClassVar = {
        "vocab_file": "vocab.json",
        "merges_file": "merges.txt",
        "tokenizer_file": files.TOKENIZER_FILE,
    }
    model_input_names = ["input_ids", "attention_mask"]
    template = FAIRSEQ_TEMPLATE

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | dict[str, int] | None = None,
        merges_file: str | os.PathLike[str] | list[Any] | None = None,
        tokenizer_file: str | os.PathLike[str] | None = None,
        errors: str = "replace",
        bos_token: TokenLike | None = Default("<s>"),
        eos_token: TokenLike | None = Default("</s>"),
        sep_token: TokenLike | None = Default("</s>"),
        cls_token: TokenLike | None = Default("<s>"),
        unk_token: TokenLike | None = Default("<unk>"),
        pad_token: TokenLike | None = Default("<pad>"),
        mask_token: TokenLike | None = DefaultMask("<mask>"),
        add_prefix_space: bool | None = None,
        trim_offsets: bool | None = None,
        vocab: str | os.PathLike[str] | dict[str, int] | None = None,
        merges: str | os.PathLike[str] | list[Any] | None = None,
        **options: Any,
    ) -> None:
        if errors != "replace":
            raise ValueError(
                f"errors={errors!r} is not possible: the Rust library decodes with 'replace'."
            )
        given = {"add_prefix_space": add_prefix_space, "trim_offsets": trim_offsets}
        check_flags(given)
        special = {
            "bos_token": bos_token,
            "eos_token": eos_token,
            "sep_token": sep_token,
            "cls_token": cls_token,
            "unk_token": unk_token,
            "pad_token": pad_token,
            "mask_token": mask_token,
        }
        disobeyed: list[str] = []
        if tokenizer_file is not None:
            engine, disobeyed = engine_of(tokenizer_file, given)
            _post_process(engine.backend, given)
        else:
            chosen = {
                "add_prefix_space": add_prefix_space is True,
                "trim_offsets": trim_offsets is not False,
            }
            table = _vocabulary(vocab_file if vocab is None else vocab)
            pairs = _merges(merges_file if merges is None else merges)
            names = {name: content(token) for name, token in special.items() if token is not None}
            engine = RustEngine(_build(table, pairs, names, **chosen))
            given |= chosen
        super().__init__(
            engine,
            special=special,
            settings={name: value for name, value in given.items() if value is not None},
            **options,
        )
        self._disobeyed = disobeyed

    def _set_template(self, engine: RustEngine) -> None:
        surround(engine, self.specials)

    @classmethod
    def _enough(cls, arguments: set[str]) -> bool:
        both = {"vocab_file", "vocab"} & arguments and {"merges_file", "merges"} & arguments
        return bool(both) or "tokenizer_file" in arguments

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write vocab.json and merges.txt into a folder and return their paths."""
        assert isinstance(self.engine, RustEngine)
        model = self.engine.backend.model
        if not isinstance(model, models.BPE):  # a tokenizer.json of another kind
            return ()
        return tuple(model.save(save_directory, filename_prefix))


RobertaTokenizerFast = RobertaTokenizer


def surround(
    engine: RustEngine, specials: SpecialSet, add_prefix_space: bool | None = None
) -> None:
    """Put RoBERTa's special tokens around texts, and leave spaces out of offsets.

    Args:
        engine: of a vocabulary that has the tokens.
        specials: the tokens' names.
        add_prefix_space: whether texts begin with a space; None for what the engine's steps say.
    """
    if add_prefix_space is None:
        add_prefix_space = getattr(engine.backend.pre_tokenizer, "add_prefix_space", False)
    vocab = engine.vocab()
    sep, cls = ((name, vocab[name]) for name in map(str, map(specials.name_of, ("sep", "cls"))))
    engine.backend.post_processor = processors.RobertaProcessing(
        sep, cls, trim_offsets=True, add_prefix_space=add_prefix_space
    )


_HINT = "RobertaTokenizer needs vocab_file= and merges_file=, or from_pretrained(folder)."


def _vocabulary(source: str | os.PathLike[str] | dict[str, int] | None) -> dict[str, int]:
    if isinstance(source, dict):
        return source
    path = files.existing_file(source, "vocabulary file (vocab.json)", _HINT)
    found: dict[str, int] = read_json(path, dict)
    ids = list(found.values())
    if not all(isinstance(index, int) and index >= 0 for index in ids) or len(set(ids)) < len(ids):
        raise ValueError(f"'{path}' must be a JSON object of tokens and ids, each id of one token.")
    return found


def _merges(source: str | os.PathLike[str] | list[Any] | None) -> list[tuple[str, str]]:
    """Read pairs of pieces, best first.

    Raises:
        ValueError: for a line that holds no pair.
    """
    if isinstance(source, list):
        lines, where = [pair if isinstance(pair, str) else " ".join(pair) for pair in source], "It"
    else:
        path = files.existing_file(source, "merges file (merges.txt)", _HINT)
        lines, where = Path(path).read_text(encoding="utf-8").split("\n"), f"'{path}'"
    pairs = []
    for number, line in enumerate(lines, 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        parts = line.split(" ")
        if len(parts) != 2:
            raise ValueError(
                f"{where} has {line!r} in line {number}; a merge is two pieces separated by a "
                "space."
            )
        pairs.append((parts[0], parts[1]))
    return pairs


def _build(
    vocab: dict[str, int],
    merges: list[tuple[str, str]],
    names: dict[str, str],
    *,
    add_prefix_space: bool,
    trim_offsets: bool,
) -> RustTokenizer:
    needed = [names.get(name) for name in ("cls_token", "sep_token")]
    missing = [str(name) for name in needed if name not in vocab]
    if missing:
        raise ValueError(
            f"The vocabulary lacks {', '.join(missing)}; pass the names it uses as cls_token and "
            "sep_token, or check that this is a vocabulary of RoBERTa."
        )
    try:
        model = models.BPE(
            vocab | holes.fillers(vocab.values()),
            merges,
            continuing_subword_prefix="",
            end_of_word_suffix="",
        )
    except Exception as error:  # the Rust library raises bare Exception
        raise ValueError(
            f"The vocabulary and the merges do not belong together ({error})."
        ) from error
    backend = RustTokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    cls, sep = str(needed[0]), str(needed[1])
    backend.post_processor = processors.RobertaProcessing(
        (sep, vocab[sep]), (cls, vocab[cls]), trim_offsets, add_prefix_space
    )
    return backend


def _post_process(backend: RustTokenizer, given: dict[str, bool | None]) -> None:
    """Give the processor of a tokenizer.json the settings that its pre-tokenizer was given."""
    processor: Any = backend.post_processor
    if isinstance(processor, processors.RobertaProcessing):
        for name, value in given.items():
            if value is not None and getattr(processor, name) != value:
                setattr(processor, name, value)
                backend.post_processor = processor
