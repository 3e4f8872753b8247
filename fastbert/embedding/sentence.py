"""SentenceEncoder: texts in, one vector a text out, for models in sentence-transformers' format."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastbert.checkpoints.files import Checkpoint, resolve_file
from fastbert.checkpoints.storage import read_json
from fastbert.embedding.pooling import (
    Dense,
    check_modes,
    modes_of,
    normalize,
    pool,
)
from fastbert.modeling.encoding import EncoderInputs
from fastbert.models.auto import AutoModel, AutoTokenizer
from fastbert.runtime.packing import in_one_copy
from fastbert.runtime.progress import Progress

# Texts handed to the tokenizer at a time: enough for its own threads, few enough that the
# kernels start soon.
CHUNK_TEXTS = 128
MAX_TOKENS = 4096
_AHEAD = 3
_SETTINGS_FILES = (
    "sentence_bert_config.json",
    "sentence_camembert_config.json",
    "sentence_roberta_config.json",
)


@dataclass
class _Spec:
    """What modules.json and the files it names say."""

    transformer: str = ""
    modes: tuple[str, ...] = ("mean",)
    dense: list[Dense] = field(default_factory=list)
    normalized: bool = False
    max_seq_length: int | None = None
    do_lower_case: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None


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
        prompts: texts put before the input, by name.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
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
    ) -> SentenceEncoder:
        """Loads a model that was saved by sentence-transformers, or a plain encoder.

        Reads modules.json and the folders it names (Transformer, Pooling, Dense, Normalize). A
        plain encoder without modules.json is pooled by the mean of its tokens, not normalised.

        Args:
            path: a local folder, or a hub id when huggingface_hub is installed.
            max_seq_length: overrides the model's own limit.
            **options: dtype, backend, quantization, strict and whatever else the model's
                `from_pretrained` takes.

        Raises:
            FileNotFoundError: when the path, or a file that modules.json names, does not exist.
            ValueError: when modules.json names a module of an unknown kind.
        """
        spec = _read_spec(path)
        where = {"subfolder": spec.transformer} if spec.transformer else {}
        model = AutoModel.from_pretrained(path, **where, **options)
        tokenizers: Any = AutoTokenizer
        tokenizer = tokenizers.from_pretrained(path, **where)
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
        """Number of values of one vector."""
        if self.dense:
            return self.dense[-1].linear.out_features
        return int(self.model.config.hidden_size) * len(self.modes)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        device: torch.device = self.model.device
        return device

    def to(self, device: torch.device | str) -> SentenceEncoder:
        """Moves the model to a device; returns itself."""
        for module in (self.model, *self.dense):
            module.to(device)
        return self

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
        """The vectors of the texts, in the order of the texts.

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
            for pack in _packs(texts_tokens, max_tokens, batch_size):
                parts.append(self._vectors(pack))
                progress.advance(len(pack))
            vectors = normalize(torch.cat(parts)) if scaled else torch.cat(parts)
        result = vectors[0] if single else vectors
        if convert_to_tensor or not convert_to_numpy:
            return result.clone()
        return result.cpu().numpy()

    def _prefix(self, prompt: str | None, prompt_name: str | None) -> str:
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

    def _vectors(self, pack: Sequence[_Tokens]) -> Tensor:
        lengths = np.array([len(tokens.ids) for tokens in pack])
        real = np.arange(lengths.max(initial=0)) < lengths[:, None]
        ids = _grid([tokens.ids for tokens in pack], real)
        types = None
        if pack[0].types is not None:
            types = _grid([tokens.types or [] for tokens in pack], real)
        ids, types = in_one_copy((ids, types), self.device)
        # The encoder packs these grids of indices at once; hidden states are never padded. The mask
        # stays on the host, where it can be counted without waiting for the device.
        encoding = self.model.base_model.encode(EncoderInputs(ids, torch.from_numpy(real), types))
        vectors = pool(encoding.packed, encoding.batch.cu_seqlens, self.modes)
        for module in self.dense:
            vectors = module(vectors, encoding.plan)
        return vectors


@dataclass(frozen=True)
class _Tokens:
    """One tokenised text."""

    ids: list[int]
    types: list[int] | None


def _checked(texts: Any) -> list[str]:
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
    """int64 (texts, longest), zero where `real` is false."""
    grid = np.zeros(real.shape, dtype=np.int64)
    grid[real] = np.fromiter(itertools.chain.from_iterable(lists), np.int64, int(real.sum()))
    return torch.from_numpy(grid)


def _ahead(
    work: Callable[[int], list[_Tokens]], arguments: Sequence[int]
) -> Generator[list[_Tokens], None, None]:
    """work(argument) for every argument, in order, up to _AHEAD calls ahead of the caller."""
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


def _packs(
    texts: Iterable[_Tokens], max_tokens: int, batch_size: int | None
) -> Iterator[list[_Tokens]]:
    """Consecutive texts in groups of at most max_tokens tokens and batch_size texts."""
    pack: list[_Tokens] = []
    total = 0
    for tokens in texts:
        full = total + len(tokens.ids) > max_tokens or len(pack) == batch_size
        if pack and full:
            yield pack
            pack, total = [], 0
        pack.append(tokens)
        total += len(tokens.ids)
    if pack:
        yield pack


def _length_limit(model: Any, tokenizer: Any, asked: int | None) -> int:
    longest: int = model.base_model.longest()
    if asked is None:
        return int(min(longest, tokenizer.model_max_length))
    if not 1 <= asked <= longest:
        raise ValueError(
            f"max_seq_length is {asked}, but must be at least 1 and at most {longest}, the number "
            "of positions of this model."
        )
    return asked


def _read_spec(path: str | os.PathLike[str]) -> _Spec:
    """Read modules.json and the files it names; without it, the spec of a plain encoder."""
    spec = _Spec()
    file = resolve_file(path, "modules.json", optional=True)
    if file is None:
        return spec
    for module in read_json(file, list):
        _READERS.get(str(module["type"]).rsplit(".", 1)[-1], _refuse)(spec, path, module)
    for name in _SETTINGS_FILES:
        settings = _settings(path, name, spec.transformer)
        if settings is not None:
            spec.max_seq_length = settings.get("max_seq_length")
            spec.do_lower_case = bool(settings.get("do_lower_case", False))
            break
    general = _settings(path, "config_sentence_transformers.json") or {}
    spec.prompts = {name: text for name, text in (general.get("prompts") or {}).items() if text}
    spec.default_prompt_name = general.get("default_prompt_name")
    return spec


def _settings(path: str | os.PathLike[str], name: str, folder: str = "") -> dict[str, Any] | None:
    """Read a JSON object of a checkpoint; None where there is no such file."""
    file = resolve_file(path, name, subfolder=folder, optional=True)
    return None if file is None else read_json(file, dict)


def _module_config(path: str | os.PathLike[str], folder: str) -> tuple[dict[str, Any], Path]:
    """Read config.json of a module's folder; the second value is its path, for messages."""
    file = resolve_file(path, "config.json", subfolder=folder)
    return read_json(file, dict), Path(path, folder, "config.json")


def _read_transformer(spec: _Spec, path: str | os.PathLike[str], module: dict[str, Any]) -> None:
    spec.transformer = module.get("path") or ""


def _read_pooling(spec: _Spec, path: str | os.PathLike[str], module: dict[str, Any]) -> None:
    spec.modes = modes_of(*_module_config(path, module["path"]))


def _read_dense(spec: _Spec, path: str | os.PathLike[str], module: dict[str, Any]) -> None:
    folder = module["path"]
    dense = Dense(*_module_config(path, folder))
    weights = Checkpoint.open(path, subfolder=folder)
    dense.load_state_dict({name: weights.read(name).float() for name in dense.state_dict()})
    spec.dense.append(dense)


def _read_normalize(spec: _Spec, path: str | os.PathLike[str], module: dict[str, Any]) -> None:
    spec.normalized = True


def _skip(spec: _Spec, path: str | os.PathLike[str], module: dict[str, Any]) -> None:
    """Dropout does nothing outside of training."""


def _refuse(spec: _Spec, path: str | os.PathLike[str], module: dict[str, Any]) -> None:
    raise ValueError(
        f"{path}/modules.json names a module of type {module['type']!r}, which is not supported; "
        f"expected {', '.join(_READERS)}."
    )


_READERS: dict[str, Callable[[_Spec, str | os.PathLike[str], dict[str, Any]], None]] = {
    "Transformer": _read_transformer,
    "Pooling": _read_pooling,
    "Dense": _read_dense,
    "Normalize": _read_normalize,
    "Dropout": _skip,
}
