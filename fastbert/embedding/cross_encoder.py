"""CrossEncoder: pairs of texts in, scores out, for rerankers in sentence-transformers' format."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, TypedDict, Unpack, overload

import numpy as np
import torch
from torch import Tensor, nn

from fastbert.embedding import workers
from fastbert.embedding.activations import activated, row_wise
from fastbert.embedding.batching import batches, tokens_of_a_pass
from fastbert.embedding.cross_folder import HEAD, loaded, save
from fastbert.embedding.front_door import FrontDoor, check_limits, length_limit
from fastbert.embedding.texts import checked_pairs, grids, no_sequence
from fastbert.embedding.transformer_settings import (
    TextOptions,
    TransformerSettings,
    with_processing,
)
from fastbert.modeling.base import PreTrainedModel
from fastbert.runtime.packing import in_one_copy
from fastbert.runtime.progress import Progress
from fastbert.tokenizers.base import Tokenizer

Activation = Callable[[Tensor], Tensor]
Scores = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


class PredictOptions(TypedDict, total=False):
    """Options of CrossEncoder.predict that do not change the type of its result."""

    prompt_name: str | None
    prompt: str | None
    batch_size: int | None
    show_progress_bar: bool | Progress | None
    activation_fn: Activation | None
    device: str | torch.device | list[str] | None
    pool: workers.Pool | None
    chunk_size: int | None
    max_tokens: int | None
    processing_kwargs: dict[str, dict[str, Any]] | None


class Ranked(TypedDict, total=False):
    """A document's place in a ranking: its index, its score and, where asked for, itself."""

    corpus_id: int
    score: float
    text: str


@dataclass(frozen=True)
class PairRequest:
    """What is computed for every pair, in whatever process.

    Attributes:
        prompt: put before the first text of every pair.
        max_length: tokens of a pair.
        options: how the tokenizer is called.
        batch_size: at most so many pairs in one pass; None for any number.
        max_tokens: at most so many tokens in one pass; None for what suits the device.
    """

    prompt: str
    max_length: int
    options: TextOptions
    batch_size: int | None
    max_tokens: int | None


class CrossEncoder(FrontDoor):
    """Scores any number of pairs of texts, each pair read as one.

    A pair's score is bit-identical whatever pairs are scored with it, in whatever batches, with
    whatever number of threads (backend "cpu").

    Attributes:
        model: the model for sequence classification, in eval mode.
        tokenizer: its tokenizer.
        activation_fn: what makes scores of the head's outputs, float32 (pairs, labels); None for
            a sigmoid where there is one label, and for nothing where there are more.
        do_lower_case: whether texts are lower-cased before they are tokenised.
        prompts: texts put before the first text of a pair, by name.
        default_prompt_name: the prompt used where none is asked for; None for none.
        settings: how texts are tokenised.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        *,
        activation_fn: Activation | None = None,
        max_seq_length: int | None = None,
        do_lower_case: bool = False,
        prompts: Mapping[str, str | None] | None = None,
        default_prompt_name: str | None = None,
        settings: TransformerSettings | None = None,
    ) -> None:
        """Put a model and its tokenizer together.

        Args:
            model: a model for sequence classification.
            tokenizer: its tokenizer.
            activation_fn: what makes scores of the head's outputs; None for a sigmoid where there
                is one label, and for nothing where there are more.
            max_seq_length: tokens of a pair; None for what the tokenizer and the model take.
            do_lower_case: whether texts are lower-cased before they are tokenised.
            prompts: texts put before the first text of a pair, by name.
            default_prompt_name: the prompt used where none is asked for.
            settings: how texts are tokenised, as a folder says it.

        Raises:
            ValueError: for settings that are not possible, or a model with another head.
        """
        if not any(kind.__name__.endswith(HEAD) for kind in type(model).__mro__):
            raise ValueError(
                f"A CrossEncoder takes a ...{HEAD}, not a {type(model).__name__}; load the "
                "checkpoint with fastbert.AutoModelForSequenceClassification."
            )
        self._set_up(model, tokenizer, max_seq_length, do_lower_case, settings)
        self._set_prompts(prompts, default_prompt_name)
        default = nn.Sigmoid() if self.num_labels == 1 else nn.Identity()
        self.activation_fn: Activation = default if activation_fn is None else activation_fn

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        num_labels: int | None = None,
        max_length: int | None = None,
        activation_fn: Activation | None = None,
        prompts: Mapping[str, str | None] | None = None,
        default_prompt_name: str | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        config_kwargs: Mapping[str, Any] | None = None,
        cache_folder: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> Self:
        """Load a cross-encoder of sentence-transformers, or a plain model with such a head.

        What the folder's files say is obeyed, or named in a warning or an error.

        Args:
            path: a local folder, or a hub id when huggingface_hub is installed.
            num_labels: outputs of the head, where config.json does not say it.
            max_length: overrides the model's own limit of tokens of a pair.
            activation_fn: overrides the folder's.
            prompts: add to those of the folder and override them, by name.
            default_prompt_name: overrides the folder's.
            model_kwargs: arguments of the model's from_pretrained, beside those of the folder.
            processor_kwargs: arguments of the tokenizer's from_pretrained, likewise.
            tokenizer_kwargs: the older name of processor_kwargs.
            config_kwargs: values that override those of config.json.
            cache_folder: the same as cache_dir.
            **options: dtype, backend, device, quantization, strict and whatever else the model's
                `from_pretrained` takes, revision and token for example.

        Raises:
            FileNotFoundError: when the path, or a file that modules.json names, does not exist.
            ValueError: for a model without such a head, or a setting that is not supported.
        """
        if cache_folder is not None:
            options.setdefault("cache_dir", cache_folder)
        if num_labels is not None:
            config_kwargs = {**(config_kwargs or {}), "num_labels": num_labels}
        given = [model_kwargs, tokenizer_kwargs, processor_kwargs, config_kwargs]
        arguments = loaded(path, given, max_length, activation_fn, options)
        arguments["prompts"] = {**(arguments["prompts"] or {}), **(prompts or {})}
        if default_prompt_name is not None:
            arguments["default_prompt_name"] = default_prompt_name
        return cls(**arguments)

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write the cross-encoder into a folder, in the format of sentence-transformers.

        It loads there too, save for weights in int8, which only fastbert reads. The save is one
        transaction, like that of a model.

        Args:
            path: a folder, made when it is not there.

        Raises:
            ValueError: for an activation that the format has no place for.
        """
        save(self, path)

    @property
    def num_labels(self) -> int:
        """The number of scores of a pair."""
        return int(self.model.config.num_labels or 0)

    @property
    def max_length(self) -> int:
        """The older name of `max_seq_length`."""
        return self.max_seq_length

    @max_length.setter
    def max_length(self, value: int | None) -> None:
        self.max_seq_length = value

    @overload
    def predict(
        self,
        inputs: Iterable[Sequence[str]] | Sequence[str],
        *,
        apply_softmax: bool | None = False,
        convert_to_numpy: Literal[True] = True,
        convert_to_tensor: Literal[False] = False,
        **options: Unpack[PredictOptions],
    ) -> Scores: ...

    @overload
    def predict(
        self,
        inputs: Iterable[Sequence[str]] | Sequence[str],
        *,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: Literal[True],
        **options: Unpack[PredictOptions],
    ) -> Tensor: ...

    @overload
    def predict(
        self,
        inputs: Iterable[Sequence[str]] | Sequence[str] | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | Progress | None = None,
        activation_fn: Activation | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | torch.device | list[str] | None = None,
        pool: workers.Pool | None = None,
        chunk_size: int | None = None,
        *,
        max_tokens: int | None = None,
        processing_kwargs: dict[str, dict[str, Any]] | None = None,
        sentences: Iterable[Sequence[str]] | Sequence[str] | None = None,
    ) -> Scores | Tensor | list[Tensor]: ...

    def predict(
        self,
        inputs: Iterable[Sequence[str]] | Sequence[str] | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | Progress | None = None,
        activation_fn: Activation | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | torch.device | list[str] | None = None,
        pool: workers.Pool | None = None,
        chunk_size: int | None = None,
        *,
        max_tokens: int | None = None,
        processing_kwargs: dict[str, dict[str, Any]] | None = None,
        sentences: Iterable[Sequence[str]] | Sequence[str] | None = None,
    ) -> Scores | Tensor | list[Tensor]:
        """Score pairs of texts, in the order of the pairs.

        Arguments and results are those of sentence-transformers 6, except that no pairs give
        float32 (0,), or (0, labels). Texts are tokenised in a thread of their own, ahead of the
        kernels, and packed without padding until `max_tokens` tokens are reached.

        Args:
            inputs: one pair, or any number of them.
            prompt_name: the name of one of the model's own prompts.
            prompt: put before the first text of every pair, in place of a prompt by name.
            batch_size: at most so many pairs in one pass; no limit by default.
            show_progress_bar: draw progress on standard error, or advance a Progress of yours.
            activation_fn: makes scores of the head's outputs, in place of the model's own. An
                activation of torch.nn is called row by row, so that a pair's bits do not depend on
                the other pairs; anything else once, with float32 (pairs, labels).
            apply_softmax: whether the scores of a pair with several labels are made to sum to 1.
            convert_to_numpy: return an array; False returns a list of tensors.
            convert_to_tensor: return one tensor on the model's device.
            device: moves the model there first; a list starts a process for each entry.
            pool: processes of start_multi_process_pool() that compute.
            chunk_size: pairs that a process gets at a time.
            max_tokens: at most so many tokens in one pass, save that a longer pair goes alone;
                None takes 4096 on a CPU and 65536 on a GPU.
            processing_kwargs: arguments of the tokenizer for this call, {"text": {"max_length":
                64}} for example.
            sentences: another name of inputs.

        Returns:
            float32 (len(inputs),) where there is one label, (len(inputs), labels) where there are
            more; without the first dimension for one pair.

        Raises:
            TypeError: when an item is not a pair of texts.
            ValueError: for an unknown prompt, or a value that is not possible.
        """
        given = [value for value in (inputs, sentences) if value is not None]
        if len(given) != 1:
            raise TypeError(
                "predict() takes a pair of texts or any number of pairs, once, as inputs= (or "
                "sentences=)."
            )
        pairs, single = checked_pairs(given[0])
        options = with_processing(self.settings.text, processing_kwargs, "predict()", pairs=True)
        length = self.max_seq_length
        if options.max_length is not None:
            length = length_limit(self.model, options.max_length)
        check_limits(batch_size, max_tokens)
        prefix = self._prefix(prompt, prompt_name)
        request = PairRequest(prefix, length, options, batch_size, max_tokens)
        outputs = self._compute(pairs, request, show_progress_bar, device, pool, chunk_size)
        assert isinstance(outputs, Tensor)
        # Out of inference mode, so that the caller may compute with them.
        with torch.no_grad():
            scores = self._scores(outputs.clone(), activation_fn, bool(apply_softmax))
        if convert_to_tensor:
            return scores[0] if single else scores
        if convert_to_numpy:
            values: Scores = scores.float().cpu().numpy()
            return values[0] if single else values
        return scores[0] if single else list(scores)

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        **options: Unpack[PredictOptions],
    ) -> list[Ranked]:
        """Sort documents by their scores with a query, the best one first.

        Args:
            query: the first text of every pair.
            documents: the second ones.
            top_k: so many of them are returned; None for all.
            return_documents: whether each result holds its document, as "text".
            **options: those of predict().

        Returns:
            {"corpus_id": index of the document, "score": float} for each; equal scores keep the
            order of the documents.

        Raises:
            TypeError: when a document is not a text.
            ValueError: for a model with several labels, or a value that is not possible.
        """
        if self.num_labels != 1:
            raise ValueError(
                f"rank() needs a model with one score a pair, but this one has {self.num_labels} "
                "labels; take the one that you want of predict()'s."
            )
        unfit = isinstance(documents, str) or no_sequence(documents) is not None
        if unfit or not isinstance(query, str):
            raise TypeError(
                "rank() takes a query and a sequence of documents, all of them str, not a "
                f"{type(query).__name__} and a {type(documents).__name__}."
            )
        if top_k is not None and (isinstance(top_k, bool) or top_k < 1):
            raise ValueError(f"top_k is {top_k!r}; expected a number of documents, or None.")
        texts = list(documents)
        pairs = [(query, text) for text in texts]
        scores = self.predict(pairs, convert_to_tensor=True, **options).tolist()
        results: list[Ranked] = [
            {"corpus_id": index, "score": score} for index, score in enumerate(scores)
        ]
        if return_documents:
            for result, text in zip(results, texts, strict=True):
                result["text"] = text
        return sorted(results, key=lambda result: result["score"], reverse=True)[:top_k]

    def _scores(self, outputs: Tensor, activation: Activation | None, softmax: bool) -> Tensor:
        """Make scores of the head's outputs, float32 (pairs, labels)."""
        activation = self.activation_fn if activation is None else activation
        if not callable(activation):
            raise TypeError(
                f"activation_fn is {activation!r}; expected a function of a tensor, such as "
                "torch.nn.Sigmoid()."
            )
        if row_wise(activation):
            scores = activated(activation, outputs)
        else:
            scores = activation(outputs) if len(outputs) else outputs
        if not isinstance(scores, Tensor) or scores.shape[:1] != outputs.shape[:1]:
            raise ValueError(
                f"activation_fn made {getattr(scores, 'shape', type(scores).__name__)} of "
                f"{tuple(outputs.shape)}; expected a tensor with as many rows, one for each pair."
            )
        if self.num_labels == 1 and scores.ndim > 1:
            scores = scores.squeeze(-1)
        if softmax and scores.ndim > 1:
            scores = activated(nn.Softmax(dim=1), scores)
        return scores

    def run(
        self, texts: list[tuple[str, str]], request: PairRequest, progress: Progress | None = None
    ) -> Tensor:
        """Compute what a request asks for, in this process.

        Args:
            texts: pairs, all of them.
            request: what is asked for.
            progress: advanced by every batch.

        Returns:
            The head's outputs, float32 (pairs, labels) on the model's device.
        """
        if self.model.training:
            self.model.eval()
        reader = self._reader_of(request.max_length, request.options)
        parts = [torch.empty(0, self.num_labels, device=self.device)]
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            # Closed by whatever ends the loop, as in SentenceEncoder.run.
            tokens = stack.enter_context(contextlib.closing(reader.ahead(texts, request.prompt)))
            most = request.max_tokens or tokens_of_a_pass(self.device)
            for batch in batches(tokens, len, request.batch_size, most):
                ids, types, real = grids(batch)
                ids, types = in_one_copy((ids, types), self.device)
                given = {} if types is None else {"token_type_ids": types}
                outputs = self.model(input_ids=ids, attention_mask=real, **given)
                parts.append(outputs.logits.float())
                if progress is not None:
                    progress.advance(len(batch))
            return torch.cat(parts)
