"""What a sentence encoder offers around encode(), under sentence-transformers' names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Unpack, cast, overload

import torch
from torch import Tensor, nn

from fastbert.embedding import workers
from fastbert.embedding.front_door import FrontDoor
from fastbert.embedding.modules import SENTENCE, Pooling, Shape, shapes_of
from fastbert.embedding.request import Encoded, EncodeOptions, Vector, Vectors, check_truncate_dim
from fastbert.embedding.similarity import Similarity
from fastbert.embedding.texts import TextReader, checked, grids

if TYPE_CHECKING:
    from fastbert.embedding.sentence import SentenceEncoder

# The prompts of encode_document, the first that the model has.
_DOCUMENT = ("document", "passage", "corpus")


class EncoderMethods(FrontDoor, Similarity):
    """The methods of a sentence encoder that call its encode(), and its settings."""

    standard_prompts = {"query": "", "document": ""}
    modules: nn.ModuleList
    _truncate_dim: int | None

    @overload
    def encode_query(  # type: ignore[overload-overlap]
        self, inputs: str, **options: Unpack[EncodeOptions]
    ) -> Vector: ...

    @overload
    def encode_query(self, inputs: Iterable[str], **options: Unpack[EncodeOptions]) -> Vectors: ...

    @overload
    def encode_query(self, inputs: str | Iterable[str] | None = None, **options: Any) -> Any: ...

    def encode_query(self, inputs: str | Iterable[str] | None = None, **options: Any) -> Any:
        """Compute the vectors of queries: encode() with the prompt "query", and as that task.

        Args:
            inputs: one text, or any number of them.
            **options: those of encode(); a prompt or prompt_name goes before "query".
        """
        if options.get("prompt") is None and options.get("prompt_name") is None:
            options["prompt_name"] = "query" if "query" in self.prompts else None
        return self._encoder().encode(inputs, **{"task": "query", **options})

    @overload
    def encode_document(  # type: ignore[overload-overlap]
        self, inputs: str, **options: Unpack[EncodeOptions]
    ) -> Vector: ...

    @overload
    def encode_document(
        self, inputs: Iterable[str], **options: Unpack[EncodeOptions]
    ) -> Vectors: ...

    @overload
    def encode_document(self, inputs: str | Iterable[str] | None = None, **options: Any) -> Any: ...

    def encode_document(self, inputs: str | Iterable[str] | None = None, **options: Any) -> Any:
        """Compute the vectors of documents: encode() with their prompt, and as that task.

        The prompt is the first of "document", "passage" and "corpus" that the model has. As in
        sentence-transformers 6, every model has "document", which is empty where nothing is said.

        Args:
            inputs: one text, or any number of them.
            **options: those of encode(); a prompt or prompt_name goes before.
        """
        if options.get("prompt") is None and options.get("prompt_name") is None:
            names = (name for name in _DOCUMENT if name in self.prompts)
            options["prompt_name"] = next(names, None)
        return self._encoder().encode(inputs, **{"task": "document", **options})

    def encode_multi_process(
        self, sentences: Iterable[str], pool: workers.Pool, **options: Any
    ) -> Encoded:
        """Do what encode(sentences, pool=pool) does; the older name of it."""
        return cast(Encoded, self._encoder().encode(sentences, pool=pool, **options))

    def preprocess(
        self, inputs: Sequence[str], prompt: str | None = None, task: str | None = None
    ) -> dict[str, Any]:
        """Tokenise texts, and pad them into one grid.

        Args:
            inputs: the texts.
            prompt: put before every text.
            task: "query" or "document", which may have a length of their own.

        Returns:
            int64 (texts, longest) tensors input_ids, token_type_ids where the model has any, and
            attention_mask; "modality"; with a prompt also "prompt_length".
        """
        texts = checked(inputs)
        if not texts:
            return {}
        reader = self._reader(task)
        ids, types, real = grids(reader.read(texts, prompt or ""))
        pad = reader.tokenizer.pad_token_id or 0
        found: dict[str, Any] = {"input_ids": ids.masked_fill(~real, pad)}
        if types is not None:
            found["token_type_ids"] = types
        found |= {"attention_mask": real.to(torch.int64), "modality": "text"}
        if prompt:
            found["prompt_length"] = reader.prompt_length(prompt)
        return found

    def tokenize(self, texts: Sequence[str], **options: Any) -> dict[str, Tensor]:
        """Do what preprocess() does; the older name of it."""
        return self.preprocess(texts, **options)

    def _encoder(self) -> SentenceEncoder:
        return cast("SentenceEncoder", self)

    def _reader(self, task: str | None) -> TextReader:
        raise NotImplementedError

    @property
    def truncate_dim(self) -> int | None:
        """Values of a vector that encode() keeps; None for all."""
        return self._truncate_dim

    @truncate_dim.setter
    def truncate_dim(self, value: int | None) -> None:
        self._truncate_dim = check_truncate_dim(value)

    def _shapes(self) -> dict[str, Shape]:
        return shapes_of(cast(Any, self.modules), int(self.model.config.hidden_size))

    @property
    def dimension(self) -> int:
        """The number of values of one vector."""
        width = self._shapes()[SENTENCE].width
        return width if self.truncate_dim is None else min(width, self.truncate_dim)

    def get_embedding_dimension(self) -> int:
        """Return the number of values of one vector."""
        return self.dimension

    def get_sentence_embedding_dimension(self) -> int:
        """Return the number of values of one vector; the older name."""
        return self.dimension

    @contextmanager
    def truncate_embeddings(self, truncate_dim: int | None) -> Iterator[None]:
        """Within the block, encode() keeps the first `truncate_dim` values; None for all."""
        before = self.truncate_dim
        self.truncate_dim = truncate_dim
        try:
            yield
        finally:
            self.truncate_dim = before

    @contextmanager
    def truncate_sentence_embeddings(self, truncate_dim: int | None) -> Iterator[None]:
        """Do what truncate_embeddings() does; the older name of it."""
        with self.truncate_embeddings(truncate_dim):
            yield

    def set_pooling_include_prompt(self, include_prompt: bool) -> None:
        """Say whether the first Pooling pools the tokens of the prompt too."""
        for module in self.modules:
            if isinstance(module, Pooling):
                module.include_prompt = include_prompt
                break
