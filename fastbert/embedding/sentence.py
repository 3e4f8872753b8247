"""SentenceEncoder: texts in, one vector a text out, for models in sentence-transformers' format."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Self, TypedDict, Unpack, overload

import numpy as np
import torch
from torch import Tensor

from fastbert.checkpoints.files import FileOptions
from fastbert.embedding.batching import MAX_TOKENS, batches
from fastbert.embedding.modules import read_spec
from fastbert.embedding.pooling import Dense, check_modes, normalize, pool
from fastbert.modeling.base import PreTrainedModel
from fastbert.modeling.encoding import EncoderInputs
from fastbert.models.auto import AutoModel, AutoTokenizer
from fastbert.runtime.packing import in_one_copy
from fastbert.runtime.progress import Progress
from fastbert.tokenizers.base import Tokenizer

# float32: one vector of shape (dimension,), and vectors of shape (texts, dimension).
Vector = np.ndarray[tuple[int], np.dtype[np.float32]]
Vectors = np.ndarray[tuple[int, int], np.dtype[np.float32]]

# Texts handed to the tokenizer at a time: enough for its own threads, few enough that the
# kernels start soon.
CHUNK_TEXTS = 128
_AHEAD = 3


class EncodeOptions(TypedDict, total=False):
    """Options of SentenceEncoder.encode that do not change the type of its result."""

    batch_size: int | None
    max_tokens: int
    show_progress_bar: bool | Progress
    normalize_embeddings: bool | None
    prompt: str | None
    prompt_name: str | None


class SentenceEncoder:
    """Encodes any number of texts into vectors.

    A text's vector is bit-identical whatever texts are encoded with it, in whatever batches,
    with whatever number of threads (backend "cpu").

    Attributes:
        model: the encoder model, in eval mode.
        tokenizer: its tokenizer.
        modes: pooling modes, see `fastbert.embedding.pooling.MODES`.
        normalized: whether vectors are scaled to length 1.
        max_seq_length: texts are truncated to this many tokens, special tokens included.
        do_lower_case: whether texts are lower-cased before they are tokenised.
        dense: projections of the pooled vectors, applied in order.
        prompts: texts put before the input, by name.
        default_prompt_name: the prompt used where none is asked for; None for none.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        modes: Sequence[str] = ("mean",),
        normalized: bool = False,
        max_seq_length: int | None = None,
        do_lower_case: bool = False,
        dense: Sequence[Dense] = (),
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.modes = check_modes(modes)
        self.normalized = normalized
        self.max_seq_length = _length_limit(model, tokenizer, max_seq_length)
        self.do_lower_case = do_lower_case
        self.dense = list(dense)
        self.prompts = dict(prompts or {})
        self.default_prompt_name = default_prompt_name

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike[str], *, max_seq_length: int | None = None, **options: Any
    ) -> Self:
        """Load a model that was saved by sentence-transformers, or a plain encoder.

        Reads modules.json and the folders it names (Transformer, Pooling, Dense, Normalize). A
        plain encoder without modules.json is pooled by the mean of its tokens, not normalised.

        Args:
            path: a local folder, or a hub id when huggingface_hub is installed.
            max_seq_length: overrides the model's own limit.
            **options: dtype, backend, quantization, strict and whatever else the model's
                `from_pretrained` takes.

        Raises:
            FileNotFoundError: when the path, or a file that modules.json names, does not exist.
            ValueError: when modules.json names a module of an unknown type.
        """
        spec = read_spec(path)
        where: FileOptions = {"subfolder": spec.transformer} if spec.transformer else {}
        model: PreTrainedModel = AutoModel.from_pretrained(path, **where, **options)
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(path, **where)
        return cls(
            model,
            tokenizer,
            spec.modes,
            spec.normalized,
            max_seq_length or spec.max_seq_length,
            spec.do_lower_case,
            [dense.to(device=model.device, dtype=model.dtype).eval() for dense in spec.dense],
            spec.prompts,
            spec.default_prompt_name,
        )

    @property
    def dimension(self) -> int:
        """The number of values of one vector."""
        if self.dense:
            return self.dense[-1].linear.out_features
        return int(self.model.config.hidden_size) * len(self.modes)

    @property
    def device(self) -> torch.device:
        """The device on which the model computes."""
        return self.model.device

    def to(self, device: torch.device | str) -> Self:
        """Move the model to a device and return the encoder itself."""
        for module in (self.model, *self.dense):
            module.to(device)
        return self

    @overload
    def encode(  # type: ignore[overload-overlap]
        self,
        texts: str,
        *,
        convert_to_numpy: Literal[True] = True,
        convert_to_tensor: Literal[False] = False,
        **options: Unpack[EncodeOptions],
    ) -> Vector: ...

    @overload
    def encode(
        self,
        texts: Iterable[str],
        *,
        convert_to_numpy: Literal[True] = True,
        convert_to_tensor: Literal[False] = False,
        **options: Unpack[EncodeOptions],
    ) -> Vectors: ...

    @overload
    def encode(
        self,
        texts: str | Iterable[str],
        *,
        convert_to_numpy: bool = True,
        convert_to_tensor: Literal[True],
        **options: Unpack[EncodeOptions],
    ) -> Tensor: ...

    @overload
    def encode(
        self,
        texts: str | Iterable[str],
        *,
        convert_to_numpy: Literal[False],
        convert_to_tensor: bool = False,
        **options: Unpack[EncodeOptions],
    ) -> Tensor: ...

    @overload
    def encode(
        self,
        texts: str | Iterable[str],
        *,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        **options: Unpack[EncodeOptions],
    ) -> Vector | Vectors | Tensor: ...

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        batch_size: int | None = None,
        max_tokens: int = MAX_TOKENS,
        show_progress_bar: bool | Progress = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
    ) -> np.ndarray | Tensor:
        """Compute the vectors of texts, in the order of the texts.

        Texts are tokenised in a thread of their own, ahead of the kernels, and packed without
        padding until `max_tokens` tokens are reached.

        Args:
            texts: one text, or any number of them.
            batch_size: at most so many texts in one pass; no limit by default.
            max_tokens: at most so many tokens in one pass, save that a longer text goes alone.
            show_progress_bar: draw progress on standard error, or advance a Progress of yours.
            convert_to_numpy: return an array; False is the same as convert_to_tensor=True.
            convert_to_tensor: return a tensor on the model's device.
            normalize_embeddings: scale vectors to length 1, or do not, whatever the model says.
            prompt: put before every text.
            prompt_name: the name of one of the model's own prompts.

        Returns:
            float32 (len(texts), dimension), or (dimension,) for one text; (0, dimension) for none.

        Raises:
            TypeError: when an item is not a text.
            ValueError: for an unknown prompt or a limit below 1.
        """
        if max_tokens < 1 or (batch_size is not None and batch_size < 1):
            raise ValueError(
                f"max_tokens and batch_size must be at least 1, but they are {max_tokens} and "
                f"{batch_size}."
            )
        single = isinstance(texts, str)
        inputs = _checked([texts] if isinstance(texts, str) else texts)
        prefix = self._prefix(prompt, prompt_name)
        scaled = self.normalized if normalize_embeddings is None else normalize_embeddings
        parts = [torch.empty(0, self.dimension, device=self.device)]
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if isinstance(show_progress_bar, Progress):
                progress = show_progress_bar
            else:
                progress = stack.enter_context(Progress(len(inputs), shown=show_progress_bar))
            # Closed by whatever ends the loop: a generator that an error's traceback holds on to
            # would keep its thread.
            texts_tokens = stack.enter_context(contextlib.closing(self._tokenized(inputs, prefix)))
            for batch in batches(texts_tokens, _length, batch_size, max_tokens):
                parts.append(self._vectors(batch))
                progress.advance(len(batch))
            vectors = normalize(torch.cat(parts)) if scaled else torch.cat(parts)
        result = vectors[0] if single else vectors
        if convert_to_tensor or not convert_to_numpy:
            return result.clone()
        return result.cpu().numpy()

    def _prefix(self, prompt: str | None, prompt_name: str | None) -> str:
        """Return the text to put before every input."""
        if prompt is not None:
            return prompt
        name = prompt_name or self.default_prompt_name
        if name is None:
            return ""
        if name not in self.prompts:
            known = ", ".join(self.prompts) or "none"
            raise ValueError(f"This model has no prompt named {name!r}; it has {known}.")
        return self.prompts[name]

    def _tokenized(self, texts: list[str], prefix: str) -> Generator[_Tokens, None, None]:
        """Tokenise texts in chunks, ahead of the caller, who must close the generator."""

        def tokenise(begin: int) -> list[_Tokens]:
            chunk = [prefix + text for text in texts[begin : begin + CHUNK_TEXTS]]
            if self.do_lower_case:
                chunk = [text.lower() for text in chunk]
            encoded = self.tokenizer(
                chunk,
                truncation=True,
                max_length=self.max_seq_length,
                padding=False,
                return_attention_mask=False,
            )
            types = encoded.get("token_type_ids") or [None] * len(chunk)
            return [_Tokens(*pair) for pair in zip(encoded["input_ids"], types, strict=True)]

        starts = range(0, len(texts), CHUNK_TEXTS)
        with contextlib.closing(_ahead(tokenise, starts)) as chunks:
            for chunk in chunks:
                yield from chunk

    def _vectors(self, batch: Sequence[_Tokens]) -> Tensor:
        """Compute float32 (texts, dimension) of one batch, in a single pass."""
        lengths = np.array([len(tokens.ids) for tokens in batch])
        real = np.arange(lengths.max(initial=0)) < lengths[:, None]
        ids = _grid([tokens.ids for tokens in batch], real)
        types = None
        if batch[0].types is not None:
            types = _grid([tokens.types or [] for tokens in batch], real)
        ids, types = in_one_copy((ids, types), self.device)
        # The encoder packs these grids of indices at once; hidden states are never padded. The mask
        # stays on the host, where it can be counted without waiting for the device.
        encoding = self.model.base_model.encode(EncoderInputs(ids, torch.from_numpy(real), types))
        vectors = pool(encoding.packed, encoding.batch.cu_seqlens, self.modes, encoding.plan)
        for module in self.dense:
            vectors = module(vectors, encoding.plan)
        return vectors


@dataclass(frozen=True)
class _Tokens:
    """A tokenised text: its ids, and its token types where the tokenizer gives them."""

    ids: list[int]
    types: list[int] | None


def _length(tokens: _Tokens) -> int:
    return len(tokens.ids)


def _checked(texts: object) -> list[str]:
    """Return the texts as a list, or raise a TypeError that names what is no text."""
    if isinstance(texts, bytes) or not isinstance(texts, Iterable):
        raise TypeError(
            f"encode() takes a text or any number of them, but it was given a "
            f"{type(texts).__name__}; pass a str or a list of str."
        )
    inputs = list(texts)
    for index, text in enumerate(inputs):
        if not isinstance(text, str):
            raise TypeError(
                f"encode() takes a text or a sequence of texts, but item {index} is a "
                f"{type(text).__name__}; convert it to str first."
            )
    return inputs


def _grid(lists: Sequence[Sequence[int]], real: np.ndarray) -> Tensor:
    """Lay out lists of numbers as int64 (texts, longest), zero where `real` is false."""
    grid = np.zeros(real.shape, dtype=np.int64)
    grid[real] = np.fromiter(itertools.chain.from_iterable(lists), np.int64, int(real.sum()))
    return torch.from_numpy(grid)


def _ahead(
    work: Callable[[int], list[_Tokens]], arguments: Sequence[int]
) -> Generator[list[_Tokens], None, None]:
    """Yield work(argument) for every argument, in order, up to _AHEAD calls ahead of the caller."""
    if len(arguments) <= 1:
        yield from map(work, arguments)
        return
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="fastbert-tokenizer") as pool:
        pending: deque[Future[list[_Tokens]]] = deque()
        try:
            for argument in arguments:
                pending.append(pool.submit(work, argument))
                if len(pending) > _AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _length_limit(model: PreTrainedModel, tokenizer: Tokenizer, asked: int | None) -> int:
    """Return the number of tokens that a text is cut to: what is asked for, or what fits."""
    longest = model.base_model.longest()
    if asked is None:
        return int(min(longest, tokenizer.model_max_length))
    if not 1 <= asked <= longest:
        raise ValueError(
            f"max_seq_length is {asked}, but must be at least 1 and at most {longest}, the number "
            "of positions of this model."
        )
    return asked
