"""The base of CamemBERT's and RemBERT's tokenizers: one sentencepiece vocabulary, two engines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

from tokenizers import AddedToken

from fastbert.checkpoints.storage import write_bytes
from fastbert.tokenizers.base import Tokenizer
from fastbert.tokenizers.engines.python import PieceEngine
from fastbert.tokenizers.engines.rust import RustEngine
from fastbert.tokenizers.sentencepiece.python import SpmModel
from fastbert.tokenizers.special import Default, TokenLike
from fastbert.tokenizers.vocabulary import Engine


class SpmTokenizer(Tokenizer):
    """A tokenizer over a sentencepiece `.model`, a tokenizer.json, or both.

    Args:
        engine: what tokenises texts.
        vocab_file: the sentencepiece model, where there is one.
        **options: see `Tokenizer`.

    Attributes:
        model_file_name: the name of the sentencepiece model in a folder.
        vocab_file: path of the sentencepiece model, None where there is none.
    """

    model_file_name: ClassVar[str]
    vocab_file: str | None

    def __init__(
        self,
        engine: Engine,
        *,
        vocab_file: str | os.PathLike[str] | None,
        **options: Any,
    ) -> None:
        self.vocab_file = None if vocab_file is None else str(vocab_file)
        super().__init__(engine, **options)
        if isinstance(engine, RustEngine) and not engine.from_file:
            engine.set_template(self.template, self.specials)

    @property
    def sp_model(self) -> Any:
        """The SentencePieceProcessor.

        Raises:
            AttributeError: for a tokenizer that runs in Rust.
        """
        return self._spm().processor

    def _spm(self) -> SpmModel:
        if isinstance(self.engine, PieceEngine) and isinstance(self.engine.model, SpmModel):
            return self.engine.model
        raise AttributeError(f"This {type(self).__name__} runs in Rust and has no sp_model.")

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write the sentencepiece model into a folder.

        Returns:
            Its path, or nothing where the tokenizer was made from a tokenizer.json alone.
        """
        target = Path(save_directory) / (
            f"{filename_prefix}-{self.model_file_name}" if filename_prefix else self.model_file_name
        )
        if isinstance(self.engine, PieceEngine):
            write_bytes(target, self._spm().proto)
        elif self.vocab_file is None or not Path(self.vocab_file).is_file():
            return ()
        elif not (target.exists() and target.samefile(self.vocab_file)):
            write_bytes(target, Path(self.vocab_file).read_bytes())
        return (str(target),)

    def _class_name(self) -> str:
        """Leave out "Fast" where the model is saved too, as transformers writes it."""
        name = type(self).__name__
        known = isinstance(self.engine, PieceEngine) or (
            self.vocab_file is not None and Path(self.vocab_file).is_file()
        )
        return name.removesuffix("Fast") if known else name


def need_a_file(cls: type[SpmTokenizer]) -> FileNotFoundError:
    """Return the error for a tokenizer called without any file."""
    return FileNotFoundError(
        f"{cls.__name__} needs vocab_file= ({cls.model_file_name}) or tokenizer_file= "
        f"(tokenizer.json), or use {cls.__name__}.from_pretrained(folder)."
    )


def mask_of(token: TokenLike | None) -> TokenLike | None:
    """Return a mask token that stands for a word together with the space before it.

    One that is no mere str says itself what it strips, and the family's own is one that nobody
    named, which `Tokenizer` looks up first.
    """
    if not isinstance(token, str) or isinstance(token, Default):
        return token
    return AddedToken(token, lstrip=True, normalized=False, special=True)


def filled(
    special: dict[str, TokenLike | None], defaults: dict[str, str]
) -> dict[str, TokenLike | None]:
    """Return special tokens with defaults for those that are None."""
    return {name: defaults.get(name) if t is None else t for name, t in special.items()}
