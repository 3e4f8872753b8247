"""The engines that generate text: fastbert, transformers and llama.cpp."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from bench.baselines.base import Baseline
from bench.baselines.llama_cpp_engine import LlamaCpp, unavailable
from fastbert.generation.greedy import likeliest

Texts = Sequence[Sequence[int]]


class Decoder(Protocol):
    """A loaded model that continues texts."""

    def logits(self, text: Sequence[int]) -> np.ndarray:
        """Return float32 (vocabulary,): the scores of the token behind a text."""

    def prefill(self, texts: Texts) -> Callable[[], object]:
        """Return a call that reads texts of one length from the start and scores what follows."""

    def decode(self, texts: Texts, steps: int) -> Callable[[], object]:
        """Return a call that continues texts of one length by `steps` tokens each, all at once.

        The texts themselves are read before, not in the call.
        """


class TorchDecoder:
    """A model with the interface of transformers: its own, or fastbert's.

    Args:
        library: "fastbert" or "transformers".
        path: the checkpoint's folder.
        threads: number of threads.
        **options: for from_pretrained.
    """

    def __init__(self, library: str, path: Path, threads: int, **options: Any) -> None:
        torch.set_num_threads(threads)
        classes = importlib.import_module(library)
        self.model = classes.AutoModelForCausalLM.from_pretrained(path, **options).eval()

    def logits(self, text: Sequence[int]) -> np.ndarray:
        """See Decoder."""
        with torch.inference_mode():
            out = self.model(torch.tensor([text]), use_cache=True, logits_to_keep=1)
        return out.logits[0, -1].float().numpy()

    def prefill(self, texts: Texts) -> Callable[[], object]:
        """See Decoder."""
        ids = torch.tensor([list(text) for text in texts])

        def run() -> object:
            with torch.inference_mode():
                return self.model(ids, use_cache=True, logits_to_keep=1).logits

        return run

    def decode(self, texts: Texts, steps: int) -> Callable[[], object]:
        """See Decoder."""
        ids = torch.tensor([list(text) for text in texts])
        with torch.inference_mode():
            first = self.model(ids, use_cache=True, logits_to_keep=1)
        name = "cache" if "cache" in first else "past_key_values"  # transformers 5.24 renamed it
        cache, start = first[name], ids.shape[1]
        given = {name: cache, "use_cache": True, "logits_to_keep": 1}
        chosen = likeliest(first.logits[:, -1:])

        def run() -> object:
            token = chosen
            with torch.inference_mode():
                if cache.get_seq_length() > start:
                    cache.crop(start - cache.get_seq_length())
                for _ in range(steps):
                    out = self.model(token, **given)
                    token = likeliest(out.logits[:, -1:])
            return token

        return run


@dataclass(frozen=True)
class DecoderBaseline(Baseline):
    """An entry of the registry of decoders."""

    def unavailable(self) -> str | None:
        """Return why it cannot run here, None when it can."""
        return super().unavailable() or (unavailable() if self.name.startswith("llama") else None)


def _torch(library: str, **options: Any) -> Callable[[Path, int], Any]:
    return lambda path, threads: TorchDecoder(library, path, threads, **options)


_TRANSFORMERS = ("torch", "transformers")
DECODERS = {
    baseline.name: baseline
    for baseline in (
        DecoderBaseline(
            "fastbert fp32",
            "fp32",
            ("torch",),
            _torch("fastbert", dtype=torch.float32),
            ours=True,
        ),
        DecoderBaseline(
            "fastbert bf16",
            "bf16",
            ("torch",),
            _torch("fastbert", dtype=torch.bfloat16),
            ours=True,
        ),
        DecoderBaseline(
            "fastbert int8",
            "int8",
            ("torch",),
            _torch("fastbert", dtype=torch.bfloat16, quantization="int8"),
            ours=True,
        ),
        DecoderBaseline(
            "transformers fp32",
            "fp32",
            _TRANSFORMERS,
            _torch("transformers", dtype=torch.float32),
        ),
        DecoderBaseline(
            "transformers bf16",
            "bf16",
            _TRANSFORMERS,
            _torch("transformers", dtype=torch.bfloat16),
        ),
        DecoderBaseline("llama.cpp Q8_0", "int8", ("gguf",), LlamaCpp.load),
    )
}
