"""SentenceEncoder: texts in, one vector a text out, for models in sentence-transformers' format."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self, Unpack, overload

import torch
from torch import Tensor, nn

from fastbert.embedding import workers
from fastbert.embedding.batching import batches, tokens_of_a_pass
from fastbert.embedding.encoder_methods import EncoderMethods
from fastbert.embedding.front_door import length_limit
from fastbert.embedding.loading import loaded
from fastbert.embedding.modules import (
    SENTENCE,
    TOKENS,
    Dense,
    Features,
    Normalize,
    Pooling,
    SentenceModule,
    normalize,
)
from fastbert.embedding.quantize import Precision, check_precision
from fastbert.embedding.request import (
    Encoded,
    EncodeOptions,
    Form,
    Request,
    Vector,
    Vectors,
    check_request,
    check_truncate_dim,
    finished,
    of_everything,
    of_tokens,
)
from fastbert.embedding.saving import save
from fastbert.embedding.texts import TextReader, Tokens, checked, grids
from fastbert.embedding.transformer_settings import (
    TextOptions,
    TransformerSettings,
    with_processing,
)
from fastbert.modeling.base import PreTrainedModel
from fastbert.modeling.encoding import EncoderInputs
from fastbert.runtime.packing import in_one_copy
from fastbert.runtime.plan import tell_of_torch
from fastbert.runtime.progress import Progress
from fastbert.tokenizers.base import Tokenizer

__all__ = ["EncodeOptions", "Encoded", "SentenceEncoder", "Vector", "Vectors"]

OutputValue = Literal["sentence_embedding", "token_embeddings"] | None


class SentenceEncoder(EncoderMethods):
    """Encodes any number of texts into vectors.

    A text's vector is bit-identical whatever texts are encoded with it, in whatever batches,
    with whatever number of threads (backend "cpu").

    Attributes:
        model: the encoder model, in eval mode.
        tokenizer: its tokenizer.
        modules: what follows the model, in order; see `fastbert.embedding.modules`.
        do_lower_case: whether texts are lower-cased before they are tokenised.
        prompts: texts put before the input, by name.
        default_prompt_name: the prompt used where none is asked for; None for none.
        settings: how texts are tokenised.
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
        prompts: Mapping[str, str | None] | None = None,
        default_prompt_name: str | None = None,
        *,
        modules: Sequence[SentenceModule] | None = None,
        similarity_fn_name: str | None = None,
        truncate_dim: int | None = None,
        settings: TransformerSettings | None = None,
    ) -> None:
        """Put a model, its tokenizer and the modules behind them together.

        Args:
            model: an encoder.
            tokenizer: its tokenizer.
            modes: pooling modes, see `fastbert.embedding.pooling.MODES`.
            normalized: whether vectors are scaled to length 1.
            max_seq_length: tokens of a text; None for what the tokenizer and the model take.
            do_lower_case: whether texts are lower-cased before they are tokenised.
            dense: projections of the pooled vectors, in order.
            prompts: texts put before the input, by name.
            default_prompt_name: the prompt used where none is asked for.
            modules: what follows the model, in place of modes, dense and normalized.
            similarity_fn_name: how `similarity` compares; None for "cosine".
            truncate_dim: values of a vector that are kept; None for all.
            settings: how texts are tokenised, as a folder says it.

        Raises:
            ValueError: for settings that are not possible, or modules that do not fit.
        """
        if modules is None:
            modules = [Pooling(modes), *dense, *([Normalize()] if normalized else [])]
        self._set_up(model, tokenizer, max_seq_length, do_lower_case, settings)
        self.modules = nn.ModuleList(modules).to(device=model.device, dtype=model.dtype).eval()
        self._shapes()
        self.truncate_dim = truncate_dim
        self.similarity_fn_name = similarity_fn_name
        self._set_prompts(prompts, default_prompt_name)

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        max_seq_length: int | None = None,
        prompts: Mapping[str, str | None] | None = None,
        default_prompt_name: str | None = None,
        similarity_fn_name: str | None = None,
        truncate_dim: int | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        config_kwargs: Mapping[str, Any] | None = None,
        cache_folder: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> Self:
        """Load a model that was saved by sentence-transformers, or a plain encoder.

        Reads modules.json and all files of the modules it lists, in their order: a Transformer,
        then Pooling, Dense, Normalize, LayerNorm and Dropout. A plain encoder without modules.json
        is pooled by the mean of its tokens, not normalised. What a file says is obeyed, or named
        in a warning or an error.

        Args:
            path: a local folder, or a hub id when huggingface_hub is installed.
            max_seq_length: overrides the model's own limit.
            prompts: add to those of the folder and override them, by name.
            default_prompt_name: overrides the folder's.
            similarity_fn_name: likewise.
            truncate_dim: likewise.
            model_kwargs: arguments of the model's from_pretrained, beside those of the folder.
            processor_kwargs: arguments of the tokenizer's from_pretrained, likewise.
            tokenizer_kwargs: the older name of processor_kwargs.
            config_kwargs: values that override those of config.json.
            cache_folder: the same as cache_dir.
            **options: dtype, backend, device, quantization, strict and whatever else the model's
                `from_pretrained` takes, revision and token for example.

        Raises:
            FileNotFoundError: when the path, or a file that modules.json names, does not exist.
            ValueError: for a module or a setting that is not supported.
        """
        if cache_folder is not None:
            options.setdefault("cache_dir", cache_folder)
        arguments = loaded(
            path,
            [model_kwargs, tokenizer_kwargs, processor_kwargs, config_kwargs],
            max_seq_length,
            options,
        )
        arguments["prompts"] |= prompts or {}
        for name, value in (
            ("default_prompt_name", default_prompt_name),
            ("similarity_fn_name", similarity_fn_name),
            ("truncate_dim", truncate_dim),
        ):
            if value is not None:
                arguments[name] = value
        return cls(**arguments)

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write the encoder into a folder, in the format of sentence-transformers.

        It loads there too, save for weights in int8, which only fastbert reads.

        Args:
            path: a folder, made when it is not there.

        Raises:
            ValueError: for a module or an activation that the format has no place for.
        """
        save(self, path)

    def _parts(self) -> Sequence[nn.Module]:
        return (self.model, self.modules)

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes of the first Pooling."""
        found = (module.modes for module in self.modules if isinstance(module, Pooling))
        return next(found, ())

    @property
    def normalized(self) -> bool:
        """Whether the modules scale vectors to length 1."""
        return any(isinstance(module, Normalize) for module in self.modules)

    @property
    def dense(self) -> list[Dense]:
        """The projections among the modules."""
        return [module for module in self.modules if isinstance(module, Dense)]

    @overload
    def encode(  # type: ignore[overload-overlap]
        self,
        inputs: str,
        *,
        convert_to_numpy: Literal[True] = True,
        convert_to_tensor: Literal[False] = False,
        **options: Unpack[EncodeOptions],
    ) -> Vector: ...

    @overload
    def encode(
        self,
        inputs: Iterable[str],
        *,
        convert_to_numpy: Literal[True] = True,
        convert_to_tensor: Literal[False] = False,
        **options: Unpack[EncodeOptions],
    ) -> Vectors: ...

    @overload
    def encode(
        self,
        inputs: str | Iterable[str],
        *,
        convert_to_numpy: bool = True,
        convert_to_tensor: Literal[True],
        **options: Unpack[EncodeOptions],
    ) -> Tensor: ...

    @overload
    def encode(  # type: ignore[overload-overlap]
        self,
        inputs: str,
        *,
        convert_to_numpy: Literal[False],
        convert_to_tensor: bool = False,
        **options: Unpack[EncodeOptions],
    ) -> Tensor: ...

    @overload
    def encode(
        self,
        inputs: Iterable[str],
        *,
        convert_to_numpy: Literal[False],
        convert_to_tensor: Literal[False] = False,
        **options: Unpack[EncodeOptions],
    ) -> list[Tensor]: ...

    @overload
    def encode(
        self,
        inputs: str | Iterable[str] | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | Progress | None = False,
        output_value: OutputValue = "sentence_embedding",
        precision: Precision | None = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | torch.device | list[str] | None = None,
        normalize_embeddings: bool | None = None,
        truncate_dim: int | None = None,
        pool: workers.Pool | None = None,
        chunk_size: int | None = None,
        *,
        max_tokens: int | None = None,
        task: str | None = None,
        processing_kwargs: dict[str, dict[str, Any]] | None = None,
        sentences: str | Iterable[str] | None = None,
        texts: str | Iterable[str] | None = None,
    ) -> Encoded: ...

    def encode(
        self,
        inputs: str | Iterable[str] | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | Progress | None = False,
        output_value: OutputValue = "sentence_embedding",
        precision: Precision | None = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | torch.device | list[str] | None = None,
        normalize_embeddings: bool | None = None,
        truncate_dim: int | None = None,
        pool: workers.Pool | None = None,
        chunk_size: int | None = None,
        *,
        max_tokens: int | None = None,
        task: str | None = None,
        processing_kwargs: dict[str, dict[str, Any]] | None = None,
        sentences: str | Iterable[str] | None = None,
        texts: str | Iterable[str] | None = None,
    ) -> Encoded:
        """Compute the vectors of texts, in the order of the texts.

        Arguments and results are those of sentence-transformers 6, except that no text gives
        (0, dimension). Texts are tokenised in a thread of their own, ahead of the kernels, and
        packed without padding until `max_tokens` tokens are reached.

        Args:
            inputs: one text, or any number of them.
            prompt_name: the name of one of the model's own prompts.
            prompt: put before every text, in place of a prompt by name.
            batch_size: at most so many texts in one pass; no limit by default.
            show_progress_bar: draw progress on standard error, or advance a Progress of yours.
            output_value: "sentence_embedding", "token_embeddings" for the hidden states of each
                text, or None for everything that was computed, by name.
            precision: "float32", "int8", "uint8", "binary" or "ubinary".
            convert_to_numpy: return an array; False returns a list of tensors.
            convert_to_tensor: return one tensor on the model's device.
            device: moves the model there first; a list starts a process for each entry.
            normalize_embeddings: scale vectors to length 1, after whatever the modules do.
            truncate_dim: keep so many values of a vector, in place of the encoder's own setting.
            pool: processes of start_multi_process_pool() that compute.
            chunk_size: texts that a process gets at a time.
            max_tokens: at most so many tokens in one pass, save that a longer text goes alone;
                None takes 4096 on a CPU and 65536 on a GPU.
            task: "query" or "document", where these have lengths of their own.
            processing_kwargs: arguments of the tokenizer for this call, {"text": {"max_length":
                64}} for example.
            sentences: another name of inputs, as is `texts`.
            texts: likewise.

        Returns:
            float32 (len(inputs), dimension), or (dimension,) for one text; int8 or uint8 in
            another precision. For "token_embeddings" a (tokens, hidden) tensor for each text, for
            None a dictionary for each.

        Raises:
            TypeError: when an item is not a text.
            ValueError: for an unknown prompt, or a value that is not possible.
        """
        given = [value for value in (inputs, sentences, texts) if value is not None]
        if len(given) != 1:
            raise TypeError(
                "encode() takes a text or any number of them, once, as inputs= (or sentences=, "
                "texts=)."
            )
        items = [given[0]] if isinstance(given[0], str) else checked(given[0])
        request = Request(
            self._prefix(prompt, prompt_name),
            *self._lengths(task, processing_kwargs),
            batch_size,
            max_tokens,
            output_value,
            bool(normalize_embeddings),
            self.truncate_dim if truncate_dim is None else check_truncate_dim(truncate_dim),
        )
        form = Form(
            isinstance(given[0], str),
            convert_to_numpy and not convert_to_tensor,
            convert_to_tensor,
            check_precision(precision),
        )
        check_request(request, form)
        result = self._compute(items, request, show_progress_bar, device, pool, chunk_size)
        return finished(result, form)

    def run(
        self, texts: list[str], request: Request, progress: Progress | None = None
    ) -> Tensor | list[Any]:
        """Compute what a request asks for, in this process.

        Args:
            texts: all of them.
            request: what is asked for.
            progress: advanced by every batch.

        Returns:
            float32 (texts, dimension) on the model's device, or one answer for each text.
        """
        if self.model.training:
            self.model.eval()
        reader = self._reader_of(request.max_length, request.options)
        shapes = self._shapes()
        width = min(shapes[SENTENCE].width, request.truncate_dim or shapes[SENTENCE].width)
        parts: list[Any] = []
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            # Closed by whatever ends the loop: a generator that an error's traceback holds on to
            # would keep its thread.
            tokens = stack.enter_context(
                contextlib.closing(reader.ahead(texts, request.prompt)),
            )
            prompt_length = reader.prompt_length(request.prompt)
            most = request.max_tokens or tokens_of_a_pass(self.device)
            for batch in batches(tokens, len, request.batch_size, most):
                features = self._features(batch, prompt_length)
                if request.output_value == TOKENS:
                    parts += of_tokens(features)
                elif request.output_value is None:
                    features.values[SENTENCE] = features.values[SENTENCE][:, :width]
                    parts += of_everything(features, batch, shapes, bool(request.prompt))
                else:
                    vectors = features.values[SENTENCE][:, :width]
                    parts.append(normalize(vectors) if request.normalized else vectors)
                if progress is not None:
                    progress.advance(len(batch))
            if request.output_value != SENTENCE:
                return parts
            if len(parts) == 1:
                only: Tensor = parts[0]
                return only.contiguous()
            return torch.cat([torch.empty(0, width, device=self.device), *parts])

    def _lengths(self, task: str | None, given: object) -> tuple[int, TextOptions]:
        """Return the tokens of a text, and how the tokenizer is called."""
        options = with_processing(self.settings.text, given, "encode()")
        length = self.settings.lengths.get(task or "", self.max_seq_length)
        if options.max_length is not None:
            length = length_limit(self.model, options.max_length)
        return length, options

    def _reader(self, task: str | None) -> TextReader:
        return self._reader_of(*self._lengths(task, None))

    def _features(self, batch: Sequence[Tokens], prompt_length: int) -> Features:
        """Compute the features of one batch, in a single pass."""
        ids, types, real = grids(batch)
        ids, types = in_one_copy((ids, types), self.device)
        # The encoder packs these grids of indices at once; hidden states are never padded. The mask
        # stays on the host, where it can be counted without waiting for the device.
        encoding = self.model.base_model.encode(EncoderInputs(ids, real, types))
        features = Features(
            {TOKENS: encoding.packed}, encoding.batch.cu_seqlens, encoding.plan, prompt_length
        )
        if self.model.strict and not encoding.plan.by_reference:
            beside = [why for dense in self.dense for why in dense.torch_parts()]
            if beside:
                tell_of_torch(beside, True, self.model.batch_invariant)
        for module in self.modules:
            module(features)
        return features
