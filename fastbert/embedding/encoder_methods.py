"""What a sentence encoder offers around encode(), under sentence-transformers' names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Unpack, cast, overload

import torch
from torch import Tensor, nn

from fastbert.embedding import workers
from fastbert.embedding.modules import SENTENCE, Pooling, Shape, shapes_of
from fastbert.embedding.request import Encoded, EncodeOptions, Vector, Vectors, check_truncate_dim
from fastbert.embedding.similarity import Similarity
from fastbert.embedding.texts import TextReader, checked, grids
from fastbert.modeling.base import PreTrainedModel

if TYPE_CHECKING:
    from fastbert.embedding.sentence import SentenceEncoder

# The prompts of encode_document, the first that the model has.
_DOCUMENT = ("document", "passage", "corpus")
# Prompts that every model has; they are empty where nothing is said.
_NO_PROMPTS = {"query": "", "document": ""}


class EncoderMethods(Similarity):
    """The methods of a sentence encoder that call its encode(), and its settings."""

    model: PreTrainedModel
    modules: nn.ModuleList
    prompts: dict[str, str]
    default_prompt_name: str | None
    _truncate_dim: int | None
    _max_seq_length: int

    def _set_prompts(self, prompts: Mapping[str, str | None] | None, default: str | None) -> None:
        self.prompts = {
            name: text or "" for name, text in {**_NO_PROMPTS, **(prompts or {})}.items()
        }
        if default is not None and default not in self.prompts:
            raise ValueError(
                f"default_prompt_name is {default!r}, but the prompts are "
                f"{', '.join(self.prompts)}."
            )
        self.default_prompt_name = default

    def _prefix(self, prompt: str | None, prompt_name: str | None) -> str:
        """Return the text to put before every input."""
        if prompt is not None:
            return prompt
        name = self.default_prompt_name if prompt_name is None else prompt_name
        if name is None:
            return ""
        if name not in self.prompts:
            known = ", ".join(self.prompts) or "none"
            raise ValueError(f"This model has no prompt named {name!r}; it has {known}.")
        return self.prompts[name]

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
    def max_seq_length(self) -> int:
        """Texts are cut to this many tokens, special tokens included."""
        return self._max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, value: int | None) -> None:
        self._max_seq_length = length_limit(self.model, value)

    def get_max_seq_length(self) -> int:
        """Return `max_seq_length`."""
        return self.max_seq_length

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

    def start_multi_process_pool(
        self, target_devices: Sequence[str | torch.device] | None = None
    ) -> workers.Pool:
        """Start processes that encode(pool=...) divides its texts among.

        Processes are spawned, so a program needs `if __name__ == "__main__":` around its own code.
        The encoder moves to the CPU, from where the processes get it. Those on the CPU share its
        cores, so several of them rarely gain over one process.

        Args:
            target_devices: one for each process; None for every GPU, or four times the CPU.

        Returns:
            The pool, for encode() and stop_multi_process_pool().
        """
        return workers.start(self._encoder(), target_devices)

    @staticmethod
    def stop_multi_process_pool(pool: workers.Pool) -> None:
        """End the processes of a pool."""
        workers.stop(pool)


def length_limit(model: PreTrainedModel, asked: int | None) -> int:
    """Return the number of tokens that a text is cut to: what is asked for, or what fits.

    Raises:
        ValueError: for a number that is not possible.
    """
    longest = int(model.base_model.longest())
    if asked is None:
        return longest
    if isinstance(asked, bool) or not isinstance(asked, int) or not 1 <= asked <= longest:
        raise ValueError(
            f"max_seq_length is {asked!r}, but must be at least 1 and at most {longest}, the "
            "number of positions of this model."
        )
    return asked
