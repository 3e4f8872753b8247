"""What SentenceEncoder and CrossEncoder share: prompts, lengths, devices, processes."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from fastbert.embedding import workers
from fastbert.embedding.texts import TextReader, lower_cased
from fastbert.embedding.transformer_settings import TextOptions, TransformerSettings
from fastbert.modeling.base import PreTrainedModel
from fastbert.runtime.progress import Progress
from fastbert.tokenizers.base import Tokenizer
from fastbert.tokenizers.engines.rust import RustEngine


class FrontDoor:
    """A model with its tokenizer, which takes texts.

    Attributes:
        model: the model, in eval mode.
        tokenizer: its tokenizer.
        do_lower_case: whether texts are lower-cased before they are tokenised.
        prompts: texts put before the input, by name.
        default_prompt_name: the prompt used where none is asked for; None for none.
        settings: how texts are tokenised.
        standard_prompts: prompts that every object of the class has.
    """

    standard_prompts: ClassVar[Mapping[str, str]] = {}

    def _set_up(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        max_seq_length: int | None,
        do_lower_case: bool,
        settings: TransformerSettings | None,
    ) -> None:
        """Take over what every such class is built from."""
        self.model = model.eval()
        self.do_lower_case = do_lower_case
        self.tokenizer = lower_cased(tokenizer) if do_lower_case else tokenizer
        self.settings = settings or TransformerSettings()
        if max_seq_length is None:
            limit = tokenizer.model_max_length
            longest = length_limit(model, None)
            max_seq_length = int(min(limit, longest)) if limit is not None else longest
        self.max_seq_length = max_seq_length

    def _set_prompts(self, prompts: Mapping[str, str | None] | None, default: str | None) -> None:
        self.prompts = {
            name: text or "" for name, text in {**self.standard_prompts, **(prompts or {})}.items()
        }
        if default is not None and default not in self.prompts:
            raise ValueError(
                f"default_prompt_name is {default!r}, but the prompts are "
                f"{', '.join(self.prompts) or 'none'}."
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

    @property
    def device(self) -> torch.device:
        """The device on which the model computes."""
        return self.model.device

    def _parts(self) -> Sequence[nn.Module]:
        """Return all modules that compute."""
        return (self.model,)

    def to(self, device: torch.device | str) -> Self:
        """Move the model to a device and return the object itself."""
        for module in self._parts():
            module.to(device)
        return self

    @property
    def max_seq_length(self) -> int:
        """Inputs are cut to this many tokens, special tokens included."""
        return self._max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, value: int | None) -> None:
        self._max_seq_length = length_limit(self.model, value)

    def get_max_seq_length(self) -> int:
        """Return `max_seq_length`."""
        return self.max_seq_length

    def _reader_of(self, max_length: int, options: TextOptions) -> TextReader:
        lowered = self.do_lower_case and not isinstance(self.tokenizer.engine, RustEngine)
        return TextReader(self.tokenizer, max_length, options, lowered)

    def start_multi_process_pool(
        self, target_devices: Sequence[str | torch.device] | None = None
    ) -> workers.Pool:
        """Start processes among which calls with pool= divide their inputs.

        Processes are spawned, so a program needs `if __name__ == "__main__":` around its own code.
        The model moves to the CPU, from where the processes get it. Those on the CPU share its
        cores, so several of them rarely gain over one process.

        Args:
            target_devices: one for each process; None for every GPU, or four times the CPU.

        Returns:
            The pool, for pool= and stop_multi_process_pool().
        """
        return workers.start(cast(workers.Worker, self), target_devices)

    @staticmethod
    def stop_multi_process_pool(pool: workers.Pool) -> None:
        """End the processes of a pool."""
        workers.stop(pool)

    def _compute(
        self,
        items: list[Any],
        request: Any,
        show_progress_bar: bool | Progress | None,
        device: str | torch.device | list[str] | None,
        pool: workers.Pool | None,
        chunk_size: int | None,
    ) -> Tensor | list[Any]:
        """Run a request in this process, on a device, or in those of a pool.

        Args:
            items: the inputs.
            request: what `run` takes.
            show_progress_bar: draw progress on standard error, or advance a Progress.
            device: moves the model there first; a list starts a process for each entry.
            pool: processes that compute.
            chunk_size: inputs that a process gets at a time.
        """
        with contextlib.ExitStack() as stack:
            if isinstance(show_progress_bar, Progress):
                progress = show_progress_bar
            else:
                bar = Progress(len(items), shown=bool(show_progress_bar))
                progress = stack.enter_context(bar)
            if isinstance(device, list) and device and pool is None:
                pool = self.start_multi_process_pool(device)
                stack.callback(self.stop_multi_process_pool, pool)
            if pool is not None and items:
                return workers.share(pool, items, request, chunk_size, progress)
            if device is not None and not isinstance(device, list):
                self.to(device)
            return self.run(items, request, progress)

    def run(
        self, texts: list[Any], request: Any, progress: Progress | None = None
    ) -> Tensor | list[Any]:
        """Compute what a request asks for, in this process."""
        raise NotImplementedError


def check_limits(batch_size: int | None, max_tokens: int | None) -> None:
    """Refuse passes of nothing.

    Raises:
        ValueError: for a limit below 1.
    """
    if any(limit is not None and limit < 1 for limit in (max_tokens, batch_size)):
        raise ValueError(
            f"max_tokens and batch_size must be at least 1, but they are {max_tokens} and "
            f"{batch_size}."
        )


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
